"""What codes mean: what the contract and other documents say of them holds."""

import re
from pathlib import Path

import pytest

from bridge.contract import causes

CONTRACT = (Path(__file__).resolve().parent.parent / "docs/contract.md").read_text()


def test_the_ambiguous_ones_are_those_of_the_contract() -> None:
    found = re.search(r"Ambiguous causes: ([0-9, ]+)\.", CONTRACT)
    assert found is not None
    assert [code for code, cause in causes.ERRORSTATUS.items() if cause.ambiguous] == [
        int(code) for code in found[1].split(", ")
    ]


def test_words_are_words_and_meanings_read_on_after_a_code() -> None:
    for table in (causes.ERRORSTATUS, causes.TP_STATUS):
        assert list(table) == sorted(table)
        for cause in table.values():
            assert re.fullmatch(r"[a-z0-9]+(_[a-z0-9]+)*", cause.word)
            assert cause.word != causes.OTHER
            assert re.fullmatch(r"(?!The )[^.|`\n]+", cause.meaning)
    words = [cause.word for cause in causes.ERRORSTATUS.values()]
    assert len(set(words)) == len(words)


@pytest.mark.parametrize("code", [0, 2, 600, 10**6])
def test_an_unknown_code_is_other(code: int) -> None:
    cause = causes.of_errorstatus(code)
    assert (cause.word, cause.ambiguous, cause.passing) == (causes.OTHER, False, False)


@pytest.mark.parametrize(("status", "passing"), [(74, False), (95, False), (102, True), (127, True)])
def test_a_report_of_the_sms_centre_s_own_says_whether_it_may_pass(status: int, passing: bool) -> None:
    assert causes.of_report(status).passing is passing


def test_a_report_from_96_on_may_pass() -> None:
    assert all(cause.passing is (status >= 96) for status, cause in causes.TP_STATUS.items())
