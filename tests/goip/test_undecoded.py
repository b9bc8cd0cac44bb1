"""Hexadecimal digits that are a text, and texts that only look like them."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bridge.goip.undecoded import decoded

TEXTS = [
    "Balance 4.20 €",
    "OK",
    "12:30",
    "Guthaben 4,20\n1 Aufladen",
    "Zůstatek 100 Kč",
    "Số dư tài khoản: 10.000đ",
    "Баланс: 10,50 руб.",
    "Баланс → 10 руб. Спасибо",
    "Υπόλοιπο 5,00€",
    "رصيدك 10 ريال",
    "יתרה 20 ש״ח",
    "आपका बैलेंस 20 रुपये",
    "ยอดเงินคงเหลือ 20 บาท",
    "ბალანსი 5 ლარი",
    "余额为12.50元。",
    "残高は500円です",
    "잔액은 500원입니다",
]
OCTETS = [
    ("Balance", "42616C616E6365"),
    ("Balance 4.20 €", "42616C616E636520342E3230201B65"),
    ("Prüfung [3] für Zoe@x.de", "50727E66756E67201B3C331B3E20667E72205A6F6500782E6465"),
    ("Käyttämätön saldo 5 €", "4B7B797474 7B6D7B74 7C6E2073616C646F2035201B65".replace(" ", "")),
    ("Thank you", "5468616E6B20796F7500"),  # padded to whole octets (docs/protocol.md §9)
    ("1 SALDO\n2 TARIFA", "312053414C444F0A3220544152494641"),
]


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("case", [str.upper, str.lower])
def test_ucs2_becomes_readable(text, case):
    digits = case(text.encode("utf-16-be").hex())
    assert decoded(digits) == decoded(f"{digits}\r\n") == decoded(case("feff") + digits) == text


@pytest.mark.parametrize(("text", "digits"), OCTETS)
def test_octets_of_the_gsm_alphabet_become_readable(text, digits):
    assert decoded(digits) == decoded(digits.lower()) == text


@pytest.mark.parametrize("text", TEXTS + [text for text, _ in OCTETS])
def test_a_text_is_no_digits(text):
    assert decoded(text) is None


@pytest.mark.parametrize(
    "text",
    [
        "", " ", "0", "00", "1234", "0041", "12345678", "DEADBEEF", "CAFEBABE", "C0FFEE", "DEADBEEFCAFE", "FACEFEED",
        "380501234567", "+4915112345678", "490154203237518", "89480611000720000001", "01122026", "04102025",
        "2026120115451234", "00:1A:2B:3C:4D:5E", "001A2B3C4D5E", "1A2B3C4D5E6F", "4142434445464748",
        "d41d8cd98f00b204e9800998ecf8427e", "0042006100Zz", "004200610", "00420061006c0061006E", "Balance 00420061",
        "D800D800D800D800", "FFFFFFFFFFFFFFFF", "0000000000000000", "E000E001E002E003", "1B1B1B1B1B1B1B",
        "42616C616E63651B",
        "0420043004", "2026202620262026",
    ],
)  # fmt: skip
def test_what_may_be_no_text_stays(text):
    assert decoded(text) is None


@pytest.mark.parametrize("alphabet", ["0123456789", "0123456789ABCDEF", "0123456789abcdef"])
def test_hardly_any_random_digits_are_taken_for_a_text(alphabet):
    chosen = random.Random(alphabet)
    strings = ("".join(chosen.choices(alphabet, k=length)) for length in range(2, 42, 2) for _ in range(2_000))
    assert sum(decoded(string) is not None for string in strings) < 4


@settings(deadline=None)
@given(st.text(st.characters(codec=None), max_size=200) | st.text("0123456789abcdefABCDEF", max_size=400))
def test_any_text_is_decoded_or_stays_and_what_comes_out_can_be_printed(text):
    found = decoded(text)
    if found is not None:
        assert found.encode()
        assert all(
            char.isprintable() or char in "\n\r\f\N{NO-BREAK SPACE}\N{SOFT HYPHEN}" or char >= "\u2000"
            for char in found
        )
        assert "\0" not in found


def test_what_no_network_sends_is_not_looked_at():
    digits = "Balance ".encode("utf-16-be").hex() * 200
    assert decoded(digits[:4096]) is not None
    assert decoded(digits) is None


@settings(deadline=None)
@given(st.text("abcdefghijklmnopqrstuvwxyz ABCDEF.,0123456789äöüß", min_size=2, max_size=100))
def test_every_latin_text_comes_through_ucs2(text):
    digits = text.encode("utf-16-be").hex()
    assert decoded(digits) == (text if any(map(str.isalnum, text)) else None)
