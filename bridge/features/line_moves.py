"""Lines that changed their host, as notices to the operator: it may be that somebody else has their password."""

import logging

from ..config.settings import Settings
from ..goip import events
from .ledger import address_text
from .limits import Limiter

MOST = 6
"Told of one line in ten minutes."
LOGGED_A_MINUTE = 30
"Keepalives that are not believed: somebody may replay those of all lines."

log = logging.getLogger(__name__)


class Moves:
    """Decides which moves are told (docs/contract.md §2).

    A new port is no news: behind NAT it changes often. A line on two uplinks may change its host with every keepalive:
    each way is told once in ten minutes, with how often it happened.
    """

    def __init__(self) -> None:
        self._limiters: dict[str, Limiter] = {}
        self._ignored: dict[str, Limiter] = {}
        self._logged = Limiter(total=LOGGED_A_MINUTE, period=60.0)

    def notice(self, event: events.LineMoved, settings: Settings, now: float) -> dict[str, object] | None:
        """The fields of a fact on `bridge/event`, or None when there is nothing to be told."""
        if event.previous is None or (event.previous[0] == event.address[0] and not event.contested):
            return None
        limiter = self._limiters.setdefault(event.line, Limiter(total=MOST))
        count = limiter.admit((event.previous[0], event.address[0], event.contested), now)
        if count is None:
            return None
        message = _message(event)
        log.warning("%s", message)
        line = settings.lines.get(event.line)
        return {
            "event_type": "line_moved",
            "message": message,
            "line": event.line,
            "gateway": line.gateway if line is not None else None,
            "address": address_text(event.address),
            "count": count,
        }

    def log_ignored(self, event: events.KeepaliveIgnored, now: float) -> None:
        """Log why the line stays where it is: each sender once in ten minutes, and few of a line in all."""
        count = self._ignored.setdefault(event.line, Limiter(total=MOST)).admit(event.address, now)
        if count is None or self._logged.admit((event.line, event.address), now) is None:
            return
        here, there = address_text(event.address), address_text(event.believed)
        why = (
            "its place was claimed from elsewhere a moment ago"
            if event.contested
            else f"its count, {event.count}, is not beyond {event.believed_count}, as that of a copy"
        )
        log.warning(
            "line %s: a keepalive from %s, with its password, is not believed: the line is at %s, and %s. A gateway "
            "that has restarted at another address or port is believed when nothing comes from there for %.0f s more%s",
            event.line,
            here,
            there,
            why,
            event.silence,
            f" ({count} times since this was logged last)" if count > 1 else "",
        )


def _message(event: events.LineMoved) -> str:
    """What the operator should do."""
    assert event.previous is not None
    here, there = address_text(event.address), address_text(event.previous)
    keys = f"lines.{event.line}"
    change = (
        f"list the gateway's own network in {keys}.allow_from, and change the SMS client password on its web page and "
        f"in {keys}.password."
    )
    if event.contested:
        return (
            f"Line {event.line} is at {here} again, and had never left: {there} claimed its place, with its password. "
            f"Either two gateways are set to one id, or somebody knows the password: then {change}"
        )
    return (
        f"Line {event.line} was at {there} and registers from {here} now, with its password. If you did not move the "
        f"gateway, and its network did not give it another address, somebody may know the password: {change}"
    )
