"""What the answers of a gateway to its operations give back (docs/contract.md §3, docs/protocol.md §8)."""

from typing import Any

import pytest

from bridge.features import operations
from bridge.goip.events import RequestAnswered


def given_back(path: str, text: str, fields: dict[str, str] | None = None) -> dict[str, Any]:
    return operations.data(path, RequestAnswered("goip1", 1, True, text, fields))


@pytest.mark.parametrize(
    ("words", "enable", "number", "timeout_s"),
    [
        ("1 +49123 20", True, "+49123", 20),
        ("1 +49123 0", True, "+49123", None),
        ("0 (null) 0", False, None, None),
        ("0 <NULL> 0", False, None, None),
        ("0  0", False, None, None),
        ("0 (null) -1", False, None, None),
        ("1 +49123 (null)", True, "+49123", None),
        ("1 +49123", True, "+49123", None),
        ("0", False, None, None),
        ("", None, None, None),
    ],
)
def test_a_call_forward_is_a_number_and_a_time(
    words: str, enable: bool | None, number: str | None, timeout_s: int | None
) -> None:
    expected = {"enable": enable, "number": number, "timeout_s": timeout_s}
    assert given_back("call_forward/get", words) == expected


@pytest.mark.parametrize(("words", "enable"), [("1", True), ("0", False), ("1 0", True), ("x", None)])
def test_call_waiting_is_on_or_off(words: str, enable: bool | None) -> None:
    assert given_back("call_waiting/get", words) == {"enable": enable}


@pytest.mark.parametrize("unset", ["", "(null)", "<NULL>"])
def test_a_value_that_is_not_set_is_null(unset: str) -> None:
    for path in ("number/get", "imei/get", "cell/get", "gsm_state/get"):
        assert given_back(path, unset) == {"value": None}, path
    for path in ("exp_time/get", "remain_time/get", "call_interval/get"):
        assert given_back(path, unset) == {"value": None}, path
    names = ("get_gsm_num", "get_exp_time", "get_remain_time", "get_gsm_state", "imei", "out_call_interval")
    assert set(given_back("info/get", "", dict.fromkeys((*names, "module_down"), unset)).values()) == {None}
