"""How many SMS parts a text takes on the air, and in which alphabet.

The gateway splits long texts by itself (docs/protocol.md § 4.7); this is the answer to `parts` and `encoding` in the
result of a command, computed the way 3GPP 23.038 and 23.040 prescribe. Nothing on the wire depends on it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

# 3GPP 23.038 § 6.2.1. ESC (0x1B) is left out: it announces an extension and is no character of its own.
_BASIC = frozenset(
    "@£$¥èéùìòÇ\nØø\rÅåΔ_ΦΓΛΩΠΨΣΘΞÆæßÉ !\"#¤%&'()*+,-./0123456789:;<=>?"
    "¡ABCDEFGHIJKLMNOPQRSTUVWXYZÄÖÑÜ§¿abcdefghijklmnopqrstuvwxyzäöñüà"
)
# § 6.2.1.1: each of these takes an escape and a second septet.
_EXTENDED = frozenset("\f^{}\\[~]|€")
_GSM7 = _BASIC | _EXTENDED


@dataclass(frozen=True, slots=True)
class Segments:
    """What a text becomes on the air."""

    encoding: Literal["gsm7", "ucs2"]
    "The alphabet: `gsm7` where every character is in it, otherwise `ucs2` for the whole text."
    parts: int
    "SMS parts that are sent, and usually charged; an empty text is one."


@lru_cache(256)
def segment(text: str) -> Segments:
    """Count the parts of a text; any string has an answer."""
    if _GSM7.issuperset(text):
        return Segments("gsm7", _parts([2 if char in _EXTENDED else 1 for char in text], single=160, multi=153))
    return Segments("ucs2", _parts([2 if ord(char) > 0xFFFF else 1 for char in text], single=70, multi=67))


def _parts(widths: Sequence[int], *, single: int, multi: int) -> int:
    """Parts for characters of these widths, none of which may be split (23.040 § 9.2.3.24.1)."""
    if sum(widths) <= single:
        return 1
    parts, used = 1, 0
    for width in widths:
        used += width
        if used > multi:
            parts, used = parts + 1, width
    return parts
