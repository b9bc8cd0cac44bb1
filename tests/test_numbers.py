"""Numbers: what is removed from one never makes another of it, and which spellings are one phone."""

import phonenumbers
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from bridge.contract import numbers
from bridge.features.admission import ENDING

MOBILE = {
    country: number
    for country in sorted(phonenumbers.SUPPORTED_REGIONS)
    if (number := phonenumbers.example_number_for_type(country, phonenumbers.PhoneNumberType.MOBILE)) is not None
}
"A mobile number of every country that has some."


@pytest.mark.parametrize(
    ("written", "dialled"),
    [
        ("+49 (0)151 12345678", "+4915112345678"),
        ("+49 ( 0 ) 151 12345678", "+4915112345678"),
        ("0049(0)151-12345678", "004915112345678"),
        ("(+49) (0)151 12345678", "+4915112345678"),
        ("+49 (0151) 12345678", "+4915112345678"),
        ("+49 (0 151 12345678", "+4915112345678"),
        ("+44 (0)20 7946 0958", "+442079460958"),
        ("+55 (011) 98765-4321", "+5511987654321"),
        ("+39 (06) 69821234", "+390669821234"),  # in Italy it is dialled
        ("(0)30 1234567", "0301234567"),  # and within a country everywhere
        ("(030) 1234567", "0301234567"),
        ("(0049) 151 12345678", "004915112345678"),
        ("0151/123 456-78", "015112345678"),
        ("06.12.34.56.00", "0612345600"),
        ("011 49 151 12345678", "0114915112345678"),
        ("12345678901234567890", "12345678901234567890"),
    ],
)
def test_what_is_removed_does_not_change_whom_a_number_reaches(written, dialled):
    assert numbers.normalise(written) == dialled


@pytest.mark.parametrize(
    ("written", "why"),
    [
        ("+39 (0)341 234567", r"without \(0\)"),  # with the zero a phone in Lecco, without it a mobile one
        ("+49 (0)151 1", r"without \(0\)"),
        ("+49 (0)151 (0)12345678", r"without \(0\)"),
        ("49 (0)151 12345678", r"without \(0\), and with \+"),
        ("0151 12345678 / 0151 87654321", "several"),
        ("+4712345678 87654321", "several"),
        ("4915112345678.0", "decimals"),
        ("112.00", "decimals"),
        ("\u202a+4915112345678\u202c", r"U\+202A .LEFT-TO-RIGHT EMBEDDING. at character 0"),
        ("+49151\u200b12345678", r"U\+200B"),
        ("+49 151\u201112345678", r"U\+2011 .NON-BREAKING HYPHEN. at character 7"),
        ("\ufeff112", r"U\+FEFF"),
        ("１１２", r"U\+FF11 .FULLWIDTH DIGIT ONE. at character 0"),
        ("\u202a+491\u202c;\u202a+492", "several"),
    ],
)
def test_a_number_that_could_be_another_one_is_refused(written, why):
    with pytest.raises(ValueError, match=why) as refused:
        numbers.normalise(written)
    assert "15112345678" not in str(refused.value)


WRITTEN = st.text(st.sampled_from("0123456789+ -./()*#"), min_size=1, max_size=24) | st.builds(
    "{}{}{}{}".format,
    st.sampled_from(["+49", "0049", "+39 ", "+44", "(+1)", "49", "0"]),
    st.sampled_from(["(0)", " ( 0) ", "(0", "(01", "", "/"]),
    st.text(st.sampled_from("0123456789 -./"), min_size=2, max_size=12),
    st.sampled_from(["", "(0)", ")", ".0"]),
)


@settings(deadline=None)
@given(WRITTEN)
def test_cleaning_invents_nothing_and_drops_only_punctuation_and_one_bracketed_zero(written):
    try:
        cleaned = numbers.normalise(written)
    except ValueError:
        return
    bare = "".join(char for char in written if char not in " -./()")
    assert numbers.normalise(cleaned) == cleaned
    if cleaned != bare:
        assert written.count("(") >= 1
        assert cleaned in {bare[:at] + bare[at + 1 :] for at, char in enumerate(bare) if char == "0"}
        assert bare.startswith(("+", "00"))
        international = f"+{cleaned.removeprefix('+').removeprefix('00')}" if bare[0] == "0" else cleaned
        assert phonenumbers.is_valid_number(phonenumbers.parse(international))


def spellings(number):
    """Of one phone: international with + and 00, and as it is dialled in its country."""
    e164 = phonenumbers.format_number(number, phonenumbers.PhoneNumberFormat.E164)
    national = phonenumbers.format_number(number, phonenumbers.PhoneNumberFormat.NATIONAL)
    return e164, f"00{e164[1:]}", numbers.normalise(national)


@pytest.mark.parametrize("country", MOBILE)
def test_the_mobile_phone_of_a_country_is_one_phone_however_it_is_written(country):
    e164, with_zeros, national = spellings(MOBILE[country])
    assert numbers.phone(e164, country) == numbers.phone(with_zeros, country) == e164
    if len(national) >= numbers.SHORTEST:
        assert numbers.phone(national, country) in (e164, national), "never somebody else's"
        if numbers.phone(national, country) == e164:
            assert national[-ENDING:] == e164[-ENDING:]
    assert numbers.phone(national, None) == national


def test_nearly_every_country_has_its_national_spelling_recognised():
    unknown = []
    for country, number in MOBILE.items():
        e164, _, national = spellings(number)
        if len(national) >= numbers.SHORTEST and numbers.phone(national, country) != e164:
            unknown.append(country)
    assert len(unknown) < 10, unknown


@settings(deadline=None)
@example("000", None)
@given(st.text(st.sampled_from("0123456789*#+"), min_size=1, max_size=16), st.sampled_from([None, "DE", "IT", "US"]))
def test_the_identity_of_a_phone_keeps_how_its_number_ends(written, country):
    """By this alone the bridge finds which recipients to compare."""
    if numbers.reads_as_number(written):
        assert numbers.phone(written, country)[-ENDING:] == written[-ENDING:]


@pytest.mark.parametrize(
    ("number", "country", "identity"),
    [
        ("015112345678", "DE", "+4915112345678"),
        ("015112345678", "FR", "015112345678"),
        ("015112345678", None, "015112345678"),
        ("4915112345678", "DE", "+4915112345678"),
        ("00", "DE", "00"),
        ("000", None, "000"),
        ("22000", "DE", "22000"),
        ("110110", "DE", "110110"),
        ("*100#", "DE", "*100#"),
        ("+015112345678", "DE", "+015112345678"),
    ],
)
def test_the_identity_of_a_phone(number, country, identity):
    assert numbers.phone(number, country) == identity
