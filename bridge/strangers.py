"""Datagrams that got no answer, as notices to the operator: few, and each with what to do."""

from bridge.goip import events
from bridge.ledger import address_text
from bridge.limits import Limiter
from bridge.settings import Settings


class Strangers:
    """Decides which of them are told: once for each id and source, and not too many in all (docs/contract.md §2)."""

    def __init__(self) -> None:
        self._limiter = Limiter()

    def notice(self, event: events.Unauthenticated, settings: Settings, now: float) -> dict[str, object] | None:
        """The fields of a fact on `bridge/event`, or None when this one is only counted."""
        event_type = "line_unknown" if event.reason == "unknown" else "line_unauthorized"
        claimed = "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in event.id[:64])
        count = self._limiter.admit((event_type, claimed, event.address[0]), now)
        if count is None:
            return None
        line = settings.lines.get(event.line) if event.line is not None else None
        return {
            "event_type": event_type,
            "message": _message(event, claimed),
            "line": event.line or claimed,
            "gateway": line.gateway if line is not None else None,
            "address": address_text(event.address),
            "count": count,
        }


def _message(event: events.Unauthenticated, claimed: str) -> str:
    """What the operator should do; the id is quoted as YAML takes it."""
    if event.reason == "unknown":
        return (
            f"A gateway registers with the id {claimed!r}, which is not configured. If it is yours, add it under "
            f"lines: with its SMS client id and password."
        )
    if event.reason == "password":
        return (
            f"Wrong password for line {event.line}. Set the same SMS client password on the gateway's web page and in "
            f"lines.{event.line}.password."
        )
    return (
        f"Line {event.line} came from {event.address[0]}, which lines.{event.line}.allow_from does not list. If that "
        f"is right, add the address there."
    )
