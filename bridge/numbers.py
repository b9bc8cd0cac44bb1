"""Phone numbers: the form that goes on the wire, the form that is published, and the form that may be shown.

Called by the settings (contacts) and by the commands (recipients, values); knows nothing of either.
"""

import re

import phonenumbers

_PUNCTUATION = str.maketrans("", "", " -./()")
_DIALLABLE = re.compile(r"\+?[0-9*#]{1,32}")


def normalise(number: str) -> str:
    """The number without the punctuation people write; ValueError when it can't be dialled or may break a datagram."""
    bare = number.translate(_PUNCTUATION)
    if not _DIALLABLE.fullmatch(bare) or not any(char.isdigit() for char in bare):
        raise ValueError("not a phone number; up to 32 digits, * and #, with at most a + in front")
    return bare


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
    e164 = phonenumbers.PhoneNumberFormat.E164
    distinct = {phonenumbers.format_number(reading, e164): reading for reading in readings}
    if len(distinct) > 1:  # SMS come from mobile phones
        distinct = {text: reading for text, reading in distinct.items() if _is_mobile(reading)}
    return next(iter(distinct)) if len(distinct) == 1 else None


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
