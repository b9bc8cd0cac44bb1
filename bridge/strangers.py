"""Datagrams that got no answer, as notices to the operator: few, and each with what to do."""

from bridge.goip import events
from bridge.ledger import address_text
from bridge.limits import Limiter
from bridge.settings import Settings

OF_A_LINE = 3
"Sources with a wrong password that are told of one line in ten minutes."


class Strangers:
    """Decides which of them are told: once for each id and source, and not too many in all (docs/contract.md §2).

    Each configured line has a budget of its own for that, and one for the news that its password is being guessed: who
    invents ids, or sources, uses up nothing of another line's, and hides no attack.
    """

    def __init__(self) -> None:
        self._unknown = Limiter()
        self._lines: dict[tuple[str, bool], Limiter] = {}
        self._unheard: dict[str, int] = {}
        "By line: datagrams that were not listened to, to be told with the next notice."

    def notice(self, event: events.Unauthenticated, settings: Settings, now: float) -> dict[str, object] | None:
        """The fields of a fact on `bridge/event`, or None when this one is only counted."""
        event_type = "line_unknown" if event.reason == "unknown" else "line_unauthorized"
        claimed = "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in event.id[:64])
        guessing = event.reason == "guessing"
        if event.line is None:
            limiter, key = self._unknown, (claimed, event.address[0])
        else:
            new = Limiter(total=1 if guessing else OF_A_LINE)
            limiter = self._lines.setdefault((event.line, guessing), new)
            key = (event.line, event.address[0])
            self._unheard[event.line] = self._unheard.get(event.line, 0) + event.count - 1
        count = limiter.admit(key, now)
        if count is None:
            return None
        count += self._unheard.pop(event.line or "", 0)
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
    if event.reason == "guessing":
        return (
            f"Somebody at {event.address[0]} tries passwords for line {event.line}. For this line nobody there is "
            f"listened to while that goes on, but the line itself at the address it has. Set "
            f"lines.{event.line}.allow_from, and a long password of letters and digits, on the gateway's web page and "
            f"in lines.{event.line}.password."
        )
    return (
        f"Line {event.line} came from {event.address[0]}, which lines.{event.line}.allow_from does not list. If that "
        f"is right, add the address there."
    )
