"""Phone numbers: the form that goes on the wire, the form that is published, the form that may be shown, and which of
them are the same phone.

Called by the settings (contacts) and by the commands (recipients, values); knows nothing of either.
"""

import re
import unicodedata

import phonenumbers

_PUNCTUATION = str.maketrans("", "", " -./()")
_LONG_NUMBER = re.compile(r"\+?\d(?:[ /()-]{0,2}\d){6,}")
_DIALLABLE = re.compile(r"\+?[0-9*#]{1,32}")
_BRACKETED_ZERO = re.compile(r"\([ \-./]*(0)")
"A bracket that begins with a zero: often the trunk prefix, which is not dialled behind a country code."
_DECIMALS = re.compile(r"\+?[0-9]+\.00?")
_SEVERAL = re.compile(r"[;,|\n]")
MAX_DIGITS = 15
"Of a number with its country code (E.164)."
MAX_DIALLED = 17
"Of a number without `+`, with whatever is dialled in front of it, such as 00."
SHORTEST = 7
"Digits of a number that is no short code."
READABLE = 100
"Characters of a text that could be meant as a number: of a longer one nobody wants to know more."
NOT_A_NUMBER = "not a phone number"


def normalise(number: str) -> str:
    """The number without the punctuation people write. It goes on the wire.

    ValueError, whose words fit behind "is", when it can't be dialled, may break a datagram, or could be another number
    without its punctuation.
    """
    bare = number.translate(_PUNCTUATION)
    if not reads_as_number(number):
        raise ValueError(_why_not(number))
    if bare == number:
        return bare
    digits = bare.removeprefix("+")
    if digits.isdecimal() and len(digits) > (MAX_DIGITS if digits != bare else MAX_DIALLED):
        raise ValueError(f"{NOT_A_NUMBER}: it has too many digits, as if it were several; write each by itself")
    if _DECIMALS.fullmatch(number):
        raise ValueError("a number with decimals, which are no part of a phone number; write its digits as a string")
    zeros = [match.start(1) for match in _BRACKETED_ZERO.finditer(number)]
    zeros = [at for at in zeros if number[:at].translate(_PUNCTUATION)]  # in front of a number it is dialled
    return _settled(number, bare, zeros) if zeros else bare


def _settled(number: str, bare: str, zeros: list[int]) -> str:
    """The number with or without the zero that is in brackets: whichever of the two exists."""
    prefix = next((prefix for prefix in ("+", "00") if bare.startswith(prefix)), None)
    if prefix is not None and len(zeros) == 1:
        without = (number[: zeros[0]] + number[zeros[0] + 1 :]).translate(_PUNCTUATION)
        found = [reading for reading in (bare, without) if _exists(f"+{reading.removeprefix(prefix)}")]
        if len(found) == 1:
            return found[0]
    raise ValueError("ambiguous: nobody can know whether its (0) is to be dialled; write it without (0), and with +")


def _exists(international: str) -> bool:
    """Whether these are the digits of a number, all of them: the library would drop a zero."""
    try:
        number = phonenumbers.parse(international)
    except phonenumbers.NumberParseException:
        return False
    return phonenumbers.is_valid_number(number) and _e164(number) == international


def reads_as_number(text: str) -> bool:
    """Whether a text is taken for a number, and not for a name; it may still be one that nobody can be sure of."""
    bare = text.translate(_PUNCTUATION)
    return bool(_DIALLABLE.fullmatch(bare)) and any(char.isdigit() for char in bare)


def reads_as_several(text: str) -> bool:
    """Whether a text is a list of numbers and names, as mail programs write it."""
    parts = [part.strip() for part in _SEVERAL.split(text[: 8 * READABLE]) if part.strip()]
    return len(parts) > 1 and all(part.startswith("@") or reads_as_number(_plain(part)) for part in parts)


def _why_not(number: str) -> str:
    """What is wrong with a text that is no number, without what it says."""
    if reads_as_several(number):
        return f"{NOT_A_NUMBER} but several; write each by itself"
    strange = strange_character(number)
    if strange is None or len(number) > READABLE:
        return NOT_A_NUMBER
    return f"{NOT_A_NUMBER}: it has {strange}; write it without" if reads_as_number(_plain(number)) else NOT_A_NUMBER


def _plain(text: str) -> str:
    """A text as it may have been meant: digits of other scripts as our own, and without what nobody sees."""
    digits = ((char, unicodedata.decimal(char, None)) for char in text)
    return "".join(
        char if digit is None else str(digit) for char, digit in digits if digit is not None or _is_usual(char)
    )


def _is_usual(char: str) -> bool:
    return (char.isascii() and char.isprintable()) or char.isalpha() or unicodedata.category(char) == "So"


def strange_character(text: str) -> str | None:
    """The first character that nobody sees, or that only looks like one of a number, and where it is."""
    for at, char in enumerate(text[:READABLE]):
        if not _is_usual(char):
            name = unicodedata.name(char, "")
            return f"U+{ord(char):04X}{f' ({name})' if name else ''} at character {at}"
    return None


def phone(number: str, country: str | None) -> str:
    """The identity of a recipient: equal for the same phone, however its number is written.

    `number` is normalised; `country` is that of the SIM that sends. A short code, and a number of which nobody can be
    sure, is known by its characters: two phones that were taken for one would cost one of them its SMS.
    """
    if len(number) < SHORTEST:
        return number
    if number.startswith("00") and number[2:].isdecimal():
        return f"+{number[2:]}"
    return to_e164(number, country) or number


def to_e164(number: str, country: str | None) -> str | None:
    """`+…` for an international number, or for a national one that is valid in `country`; otherwise None.

    Short codes and alphanumeric senders are not numbers: guessing a country in front of them would invent a subscriber.
    """
    try:
        bare = normalise(number)
    except ValueError:
        return None
    if bare.startswith("+") and bare[1:].isdecimal():
        return bare
    if country is None or not bare.isdecimal():
        return None
    # Some networks leave out the + of an international number, so digits may be meant either way.
    readings = [reading for text in (bare, f"+{bare}") if (reading := _valid(text, country)) is not None]
    distinct = {_e164(reading): reading for reading in readings}
    if len(distinct) > 1:  # SMS come from mobile phones
        distinct = {text: reading for text, reading in distinct.items() if _is_mobile(reading)}
    return next(iter(distinct)) if len(distinct) == 1 else None


def _e164(number: phonenumbers.PhoneNumber) -> str:
    return phonenumbers.format_number(number, phonenumbers.PhoneNumberFormat.E164)


def _valid(text: str, country: str) -> phonenumbers.PhoneNumber | None:
    """The number, if it is one of that country."""
    try:
        number = phonenumbers.parse(text, country)
    except phonenumbers.NumberParseException:
        return None
    ours = number.country_code == phonenumbers.country_code_for_region(country)
    return number if ours and phonenumbers.is_valid_number(number) else None


def _is_mobile(number: phonenumbers.PhoneNumber) -> bool:
    return phonenumbers.number_type(number) in (
        phonenumbers.PhoneNumberType.MOBILE,
        phonenumbers.PhoneNumberType.FIXED_LINE_OR_MOBILE,
    )


def mask(number: str) -> str:
    """The number with all but its last three characters hidden; short ones are hidden whole."""
    shown = 3 if len(number) > 6 else 0
    return "*" * (len(number) - shown) + number[len(number) - shown :]


def mask_all(text: str) -> str:
    """The text with whatever may be a phone number masked."""
    return _LONG_NUMBER.sub(lambda found: mask(found.group()), text)
