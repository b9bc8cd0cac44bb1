"""How the mobile network cuts a text into messages (docs/protocol.md §4.7)."""

from __future__ import annotations

from collections.abc import Callable

_BASIC = frozenset(
    "@£$¥èéùìòÇ\nØø\rÅåΔ_ΦΓΛΩΠΨΣΘΞÆæßÉ !\"#¤%&'()*+,-./0123456789:;<=>?¡"
    "ABCDEFGHIJKLMNOPQRSTUVWXYZÄÖÑÜ§¿abcdefghijklmnopqrstuvwxyzäöñüà"
)
_EXTENDED = frozenset("\f^{}\\[~]|€")
"Characters of the GSM alphabet that take two septets."


def split_text(text: str) -> list[str]:
    """The parts in which the text travels; one part for a text that fits."""
    if all(char in _BASIC or char in _EXTENDED for char in text):
        return _cut(text, 160, 153, lambda char: 2 if char in _EXTENDED else 1)
    return _cut(text, 70, 67, lambda char: 2 if ord(char) > 0xFFFF else 1)


def _cut(text: str, single: int, part: int, cost: Callable[[str], int]) -> list[str]:
    if sum(map(cost, text)) <= single:
        return [text]
    parts, current, used = [], "", 0
    for char in text:
        if used + cost(char) > part:
            parts.append(current)
            current, used = "", 0
        current += char
        used += cost(char)
    return [*parts, current]
