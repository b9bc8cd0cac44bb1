"""Parts and alphabet of a text, against two independent implementations."""

import gsm0338
import pytest
import smsutil
from hypothesis import example, given
from hypothesis import strategies as st

from bridge.contract.segments import Segments, segment

ORACLE_CODEC = gsm0338.Codec()
# The oracles let an escape through as a character of its own; on the air it is none.
GSM7_CHARS = [char for char in smsutil.codecs.GSM_CHARSET if char != "\x1b"]
GSM7_TEXTS = st.text(st.sampled_from(GSM7_CHARS), max_size=500)
# Around the limits, and of few kinds of characters: where an off-by-one shows.
LONG_TEXTS = st.lists(
    st.tuples(st.sampled_from("a€ñЖ😀"), st.integers(1, 170)).map(lambda run: run[0] * run[1]), max_size=6
).map("".join)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", Segments("gsm7", 1)),
        ("a" * 160, Segments("gsm7", 1)),
        ("a" * 161, Segments("gsm7", 2)),
        ("a" * 306, Segments("gsm7", 2)),
        ("a" * 307, Segments("gsm7", 3)),
        ("€" * 80, Segments("gsm7", 1)),
        ("€" * 81, Segments("gsm7", 2)),
        ("a" * 159 + "€", Segments("gsm7", 2)),
        ("a" * 152 + "€" + "a" * 152, Segments("gsm7", 3)),  # 306 septets, but € would be cut in two
        ("a" * 151 + "€" + "a" * 153, Segments("gsm7", 2)),
        ("€" * 152, Segments("gsm7", 2)),
        ("€" * 153, Segments("gsm7", 3)),  # 306 septets, of which 152 fit a part
        ("ç", Segments("ucs2", 1)),  # the alphabet has only the capital one
        ("Ж" * 70, Segments("ucs2", 1)),
        ("Ж" * 71, Segments("ucs2", 2)),
        ("Ж" * 134, Segments("ucs2", 2)),
        ("Ж" * 135, Segments("ucs2", 3)),
        ("😀" * 35, Segments("ucs2", 1)),
        ("😀" * 36, Segments("ucs2", 2)),
        ("😀" * 66, Segments("ucs2", 2)),
        ("😀" * 67, Segments("ucs2", 3)),  # 134 code units, of which 66 fit a part
        ("\uffff" * 70, Segments("ucs2", 1)),
        ("a" * 70 + "Ж", Segments("ucs2", 2)),
        ("\x1b", Segments("ucs2", 1)),
        ("\ud800", Segments("ucs2", 1)),
    ],
)
def test_limits(text, expected):
    assert segment(text) == expected


@pytest.mark.parametrize("char", GSM7_CHARS)
def test_every_character_of_the_alphabet_has_its_width(char):
    septets = len(ORACLE_CODEC.encode(char)[0])
    assert segment(char * (160 // septets)) == Segments("gsm7", 1)
    assert segment(char * (160 // septets) + "a") == Segments("gsm7", 2)


@given(st.characters(exclude_characters="\x1b"))
@example("\f")
@example("\u2126")  # the ohm sign, which is no omega
def test_alphabet_agrees_with_gsm0338(char):
    try:
        ORACLE_CODEC.encode(char)
    except UnicodeEncodeError:
        assert segment(char).encoding == "ucs2"
    else:
        assert segment(char).encoding == "gsm7"


@given(st.one_of(GSM7_TEXTS, LONG_TEXTS, st.text(st.characters(exclude_characters="\x1b"), max_size=300)).filter(bool))
def test_parts_agree_with_smsutil(text):
    expected = smsutil.split(text)
    assert segment(text).parts == len(expected.parts)
    assert segment(text).encoding == {"gsm0338": "gsm7", "utf_16_be": "ucs2"}[expected.encoding]
