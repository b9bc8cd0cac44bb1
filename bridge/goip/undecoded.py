"""Text that a box left as hexadecimal digits, as its module gave it: UCS-2, or octets of the GSM alphabet (§1.1).

A text may look like that by chance: a voucher, a serial number, `DEADBEEF`. It is decoded only where what comes out is
surely text: the limits below leave a random string of digits less than one chance in ten thousand.
"""

import re
import unicodedata
from functools import partial

_DIGITS = re.compile(r"[0-9A-F]+|[0-9a-f]+")
_PLAIN = frozenset(map(chr, (0x0A, 0x0D, *range(0x20, 0x7F), *range(0xA0, 0x100))))
"Latin-1, which needs no further proof when every second octet is zero."

# 3GPP 23.038 §6.2.1 and §6.2.1.1
_GSM = (
    "@£$¥èéùìòÇ\nØø\rÅåΔ_ΦΓΛΩΠΨΣΘΞ\x1bÆæßÉ !\"#¤%&'()*+,-./0123456789:;<=>?"
    "¡ABCDEFGHIJKLMNOPQRSTUVWXYZÄÖÑÜ§¿abcdefghijklmnopqrstuvwxyzäöñüà"
)
_ESCAPED = {
    0x0A: "\f", 0x14: "^", 0x28: "{", 0x29: "}", 0x2F: "\\", 0x3C: "[", 0x3D: "~", 0x3E: "]", 0x40: "|", 0x65: "€",
}  # fmt: skip
_USUAL = frozenset(char for char in _GSM if char.isascii() or char.isalpha()) - frozenset("@\x1bΔΦΓΛΩΠΨΣΘΞ") | {
    "€",
    "£",
}
_WORD = re.compile(r"[A-Za-z][a-z]{3}|[A-Z]{4}")
_NO_WORD = re.compile(r"[a-z][A-Z]|[A-Z]{2}[a-z]")
"Words are seldom like that, and random letters mostly."
MAX_DIGITS = 4096
"Hexadecimal digits of a text; USSD has 182 octets."
MIN_OCTETS = 7
MIN_LATIN, MIN_OTHER, MIN_UNSURE = 2, 4, 5
"Characters of UCS-2: of Latin-1; of other alphabets; of East Asian scripts, or where all hexadecimal digits are 0-9."
ODD = 8
"One of so many characters may be an unusual one."

_EVERYWHERE = re.compile("[\u200c-\u200f\u2010-\u2027\u2030-\u205e\u20a0-\u20cf\u2116\u2122\ufeff]")
"What texts of all scripts have: dashes, quotes, marks of direction, currencies."
_EASTERN = frozenset(
    ("CJK", "HIRAGANA", "KATAKANA", "HANGUL", "BOPOMOFO", "IDEOGRAPHIC", "FULLWIDTH", "HALFWIDTH", "VERTICAL")
)
_EASTERN_MARKS = re.compile("[\u3000-\u303f\uff00-\uff65]")
_IN_USE = {
    "gb2312": (range(0xA1, 0xAA), range(0xB0, 0xD8)),
    "big5": (range(0xA1, 0xC7),),
    "shift_jis": (range(0x81, 0x84), range(0x88, 0x98)),
    "euc_kr": (range(0xA1, 0xAD), range(0xB0, 0xC9)),
}
"""By character set: the first octets of the characters that people use every day, a tenth of the code points of East
Asian scripts."""


def decoded(text: str) -> str | None:
    """What the digits say; None where they are no text, or may not be one."""
    digits = text.strip()
    if len(digits) % 2 or len(digits) > MAX_DIGITS or not _DIGITS.fullmatch(digits):
        return None
    octets = bytes.fromhex(digits)
    numeric = digits.isdecimal()
    return _from_gsm(octets, numeric) or _from_ucs2(octets, numeric)


def _from_gsm(octets: bytes, numeric: bool) -> str | None:
    if numeric or len(octets) < MIN_OCTETS or max(octets) > 0x7F:
        return None
    text = ""
    escaped = False
    for octet in octets:
        if escaped:
            if octet not in _ESCAPED:
                return None
            text += _ESCAPED[octet]
        elif octet != 0x1B:
            text += _GSM[octet]
        escaped = not escaped and octet == 0x1B
    text = text.rstrip("@\r")  # padding (§9)
    odd = sum(char not in _USUAL for char in text)
    words = _WORD.search(text) and len(_NO_WORD.findall(text)) * 2 * ODD <= len(text)
    return text if words and not escaped and odd * ODD <= len(text) else None


def _from_ucs2(octets: bytes, numeric: bool) -> str | None:
    try:
        text = octets.decode("utf-16-be").removeprefix("\ufeff")
    except UnicodeDecodeError:
        return None
    if not any(map(str.isalnum, text)):
        return None
    if _PLAIN.issuperset(text):
        return text if len(text) >= MIN_LATIN else None
    script = _one_script(text)
    if script is None or len(text) < (MIN_UNSURE if numeric or script == "EASTERN" else MIN_OTHER):
        return None
    return text if script != "EASTERN" or (not numeric and any(map(partial(_is_everyday, text), _IN_USE))) else None


def _one_script(text: str) -> str | None:
    """The script of a text's letters, "" for Latin; None where there are several, or too much that is no letter."""
    scripts: set[str] = set()
    others: list[str] = []
    for char in text:
        if char in _PLAIN or _EVERYWHERE.match(char):
            continue
        word = re.split("[ -]", unicodedata.name(char, ""))[0]
        if not word:
            return None  # not assigned, a control character, or of private use
        script = "EASTERN" if word in _EASTERN or _EASTERN_MARKS.match(char) else word
        if unicodedata.category(char)[0] not in "LM" or word in ("COMBINING", "MODIFIER"):
            others.append(script)
        elif word != "LATIN":
            scripts.add(script)
    odd = sum(script not in scripts for script in others)
    return (scripts or {""}).pop() if len(scripts) < 2 and odd * ODD <= len(text) else None


def _is_everyday(text: str, charset: str) -> bool:
    """Whether all East Asian characters of a text are everyday ones of this character set."""
    for char in text:
        if char in _PLAIN or _EVERYWHERE.match(char):
            continue
        encoded = char.encode(charset, errors="ignore")
        if len(encoded) != 2 or not any(encoded[0] in leads for leads in _IN_USE[charset]):
            return False
    return True
