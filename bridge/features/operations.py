"""Commands and the gateway's operations: which wire command carries one out, and what its answer gives back."""

from typing import Any

from ..contract import commands
from ..contract.commands import Command
from ..goip import events, wire
from ..goip.control import Operation

_REASONS = {"unconditional": "0", "busy": "1", "no_reply": "2", "not_reachable": "3", "all": "4", "conditional": "5"}
_INTEGERS = ("exp_time/get", "remain_time/get", "call_interval/get")


def operation(command: Command) -> Operation:
    """The operation of docs/protocol.md §8 that carries out a command. Raises KeyError for one that has none."""
    once = command.once
    match command:
        case commands.NumberGet():
            return Operation(verb="get_gsm_num")
        case commands.NumberSet(value=value):
            return Operation(verb="set_gsm_num", arguments=(value,))
        case commands.ExpTimeGet():
            return Operation(verb="get_exp_time")
        case commands.ExpTimeSet(value=minutes):
            return Operation(verb="set_exp_time", arguments=(str(minutes),))
        case commands.RemainTimeGet():
            return Operation(verb="get_remain_time")
        case commands.RemainTimeReset():
            return Operation(verb="reset_remain_time", once=once)
        case commands.GsmStateGet():
            return Operation(verb="get_gsm_state")
        case commands.InfoGet():
            return Operation(verb="GSM")
        case commands.CallDrop():
            return Operation(verb="svr_drop_call")
        case commands.ModuleReboot():
            return Operation(verb="svr_reboot_module", once=once)
        case commands.ModuleEnable():
            return Operation(verb="module_ctl_i", arguments=("1",))
        case commands.ModuleDisable():
            return Operation(verb="module_ctl_i", arguments=("0",), disable=True)
        case commands.ModuleSet(enable=enable):
            return operation(commands.ModuleEnable() if enable else commands.ModuleDisable())
        case commands.ModulesSet(digits=digits):
            return Operation(verb="module_ctl", arguments=(digits,))
        case commands.GatewayReboot():
            return Operation(verb="svr_reboot_dev", once=once)
        case commands.CallForwardGet(reason=reason):
            # No field may be empty: some parsers would take the next one for it.
            return _exchange("CF", _REASONS[reason], "2", "0", "0")
        case commands.CallForwardSet(reason=reason, enable=enable, number=number, timeout_s=timeout):
            return _exchange("CF", _REASONS[reason], "3" if enable else "4", number or "0", str(timeout or 0))
        case commands.CallWaitingGet():
            return _exchange("CW", "2")
        case commands.CallWaitingSet(enable=enable):
            return _exchange("CW", "1" if enable else "0")
        case commands.ImeiGet():
            return Operation(verb="get_imei")
        case commands.ImeiSet(value=imei):
            return Operation(verb="set_imei", arguments=(imei,))
        case commands.CallIntervalGet():
            return Operation(verb="get_out_call_interval")
        case commands.CallIntervalSet(value=seconds):
            return Operation(verb="set_out_call_interval", arguments=(str(seconds),))
        case commands.CellsGet():
            return Operation(verb="get_cells_list", cells=True)
        case commands.CellGet():
            return Operation(verb="CURCELL")
        case commands.CellSet(value=cell):
            return Operation(verb="set_base_cell", arguments=(cell,))
        case commands.UssdExit():
            return Operation(verb="USSDEXIT", password_first=True, once=True)
    raise KeyError(command.path)


def _exchange(verb: str, *arguments: str) -> Operation:
    return Operation(verb=verb, arguments=arguments, password_first=True, done=True)


def data(path: str, answer: events.RequestAnswered) -> dict[str, Any]:
    """What an ok answer gives back, as `data` of the result."""
    if answer.cells is not None:
        return {"cells": list(answer.cells)}
    if answer.fields is not None:
        return _info(answer.fields)
    if path in _INTEGERS:
        return _number(answer.text)
    if path == "ussd/exit":
        return {"text": None, "exit": True}
    if path == "call_waiting/get":
        return {"enable": _enabled(answer.text)}
    if path == "call_forward/get":
        return _forwarding(answer.text)
    return {"value": _value(answer.text)} if path.endswith("/get") else {}


def _value(text: str | None) -> str | None:
    found = wire.value(text)
    return None if found is None else found.strip()


def _enabled(text: str) -> bool | None:
    return {"1": True, "0": False}.get(text.partition(" ")[0])


def _forwarding(text: str) -> dict[str, Any]:
    """`$enable $number $time` of CFSTATE; older firmware leaves out what it has no value for (docs/protocol.md §8)."""
    _, number, seconds = (*text.split(" ", 2), "", "")[:3]
    timeout = wire.integer(seconds)
    return {
        "enable": _enabled(text),
        "number": _value(number),
        "timeout_s": timeout if timeout is not None and timeout > 0 else None,
    }


def _number(text: str) -> dict[str, Any]:
    number = wire.integer(text)
    return {"value": None, "unlimited": True} if number is not None and number < 0 else {"value": number}


def _info(fields: Any) -> dict[str, Any]:
    """All values at once (`GSM`, docs/protocol.md §8)."""
    exp_time, remain_time = (wire.integer(fields.get(f"get_{name}_time")) for name in ("exp", "remain"))
    return {
        "number": _value(fields.get("get_gsm_num")),
        "exp_time_min": exp_time if exp_time is None or exp_time >= 0 else None,
        "remain_time_min": remain_time if remain_time is None or remain_time >= 0 else None,
        "gsm_state": _value(fields.get("get_gsm_state")),
        "imei": _value(fields.get("imei")),
        "call_interval_s": wire.integer(fields.get("out_call_interval")),
        "module_down": {"0": False, "1": True}.get(fields.get("module_down", "")),
    }
