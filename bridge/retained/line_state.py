"""The retained state of lines: from what the core knows to the payloads of docs/contract.md §2."""

from collections import ChainMap
from collections.abc import Callable

from ..config.settings import LineSettings
from ..contract import payloads
from ..features.ledger import address_text
from ..goip import wire
from ..goip.line import Line
from ..goip.undecoded import decoded

VOLATILE = ("idle",)
"Keepalive fields that tick by themselves; they are published with the next real change."

_PLACED = frozenset((
    "num", "signal", "gsm_status", "voip_status", "voip_state", "remain_time", "imei", "imsi", "iccid", "pro",
    "disable_status", "cellinfo",
))  # fmt: skip
_CONNECTED = ("LOGIN", "UP")


def line_state(line: Line, wall: Callable[[float], float]) -> payloads.LineState:
    """What is true of a line now; `wall` turns the core's times into unix time."""
    get = ChainMap(line.fields, line.told).get
    gsm_status = get("gsm_status")
    operator = wire.value(get("pro"))
    voip_status = wire.value(get("voip_status"))
    remain = -1 if line.exp_time == 0 else line.remain_time  # no limit at all (docs/protocol.md §8)
    return payloads.LineState(
        signal=_signal(get("signal")),
        gsm=payloads.Gsm(
            status={"LOGIN": "login", "LOGOUT": "logout"}.get(gsm_status or "", "unknown"),  # type: ignore[arg-type]
            registered=None if gsm_status is None else gsm_status == "LOGIN",
            operator=decoded(operator) or operator if operator else None,
            cell=wire.value(get("cellinfo")),
        ),
        voip=payloads.Voip(
            status=voip_status.lower() if voip_status else None,
            registered=None if voip_status is None else voip_status in _CONNECTED,
        ),
        call=payloads.CallState(
            state=line.call.state if line.ever_heard else None,  # type: ignore[arg-type]
            number=line.call.number,
            direction=line.call.direction,  # type: ignore[arg-type]
            since=payloads.timestamp(wall(line.call.since)) if line.call.since is not None else None,
        ),
        sim=payloads.Sim(number=wire.value(get("num")), imsi=wire.value(get("imsi")), iccid=wire.value(get("iccid"))),
        module=payloads.Module(imei=wire.value(get("imei"))),
        limits=payloads.Limits(
            exp_time_min=line.exp_time if line.exp_time is not None and line.exp_time >= 0 else None,
            remain_time_min=remain if remain is not None and remain >= 0 else None,
            unlimited=_unlimited(line.exp_time, remain),
        ),
        enabled={"0": True, "1": False}.get(get("disable_status", "")),
        address=address_text(line.address) if line.address else None,
        last_seen=payloads.timestamp(wall(line.heard)) if line.ever_heard else None,
        problems=_problems(line),
        raw={
            key: value
            for key, value in line.fields.items()
            if key not in _PLACED or (key == "pro" and decoded(value) is not None)
        },
    )


def summary(line: Line, settings: LineSettings | None) -> payloads.LineSummary:
    """A line as `bridge/lines` has it."""
    return payloads.LineSummary(
        id=line.name,
        name=settings.name if settings else None,
        gateway=settings.gateway if settings else None,
        online=line.online_before if line.online is None else line.online,
        address=address_text(line.address) if line.address else None,
    )


def _unlimited(allowed: int | None, left: int | None) -> bool | None:
    """Whether calls have no limit: what is left says so, or else what is allowed in all."""
    known = allowed if left is None else left
    return None if known is None else known < 0


def _signal(text: str | None) -> payloads.Signal:
    """CSQ 0 to 31; 99 and anything else is unknown (docs/protocol.md §3)."""
    csq = wire.integer(text)
    if csq is None or not 0 <= csq <= 31:
        return payloads.Signal()
    return payloads.Signal(csq=csq, dbm=2 * csq - 113, percent=round(csq / 31 * 100))


def _problems(line: Line) -> list[payloads.Problem]:
    problems: list[payloads.Problem] = []
    if line.fields.get("gsm_status") == "LOGOUT":
        problems.append("gsm_logout")
    if line.disabled:
        problems.append("module_disabled")
    if line.password_refused:
        problems.append("password_refused")
    return problems
