"""Datagrams that got no answer, as notices to the operator: few, and each with what to do."""

import difflib
import itertools
import logging
import re

from ..config.settings import Settings
from ..contract.numbers import mask_all
from ..goip import events
from .ledger import address_text
from .limits import Limiter

OF_A_LINE = 3
"Sources that are told of one line in ten minutes, for each reason; of guessing one."
LOGGED_A_MINUTE = 30
"Of those that are told of lines, so many are logged: an attack on a thousand lines must not fill the disk."
LOOKALIKES = 100
"Configured ids that an unknown one is compared with."

log = logging.getLogger(__name__)


class Strangers:
    """Decides which of them are told, and logs these: once for each id, source and reason, and not too many in all
    (docs/contract.md §2).

    Each configured line has a budget of its own for each reason: who invents ids, or sources, uses up nothing of
    another line's; a wrong password that was mended does not hide the next fault; nothing hides that somebody guesses.
    """

    def __init__(self) -> None:
        self._unknown = Limiter()
        self._lines: dict[tuple[str, str], Limiter] = {}
        "By line and reason."
        self._logged = Limiter(total=LOGGED_A_MINUTE, period=60.0)
        self._unheard: dict[str, int] = {}
        "By line: datagrams that were not listened to, to be told with the next notice."

    def notice(self, event: events.Unauthenticated, settings: Settings, now: float) -> dict[str, object] | None:
        """The fields of a fact on `bridge/event`, or None when this one is only counted."""
        event_type = "line_unknown" if event.reason == "unknown" else "line_unauthorized"
        claimed = "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in event.id[:64])
        if event.line is None:
            limiter, key = self._unknown, (claimed, event.address[0])
        else:
            new = Limiter(total=1 if event.reason == "guessing" else OF_A_LINE)
            limiter = self._lines.setdefault((event.line, event.reason), new)
            key = (event.line, event.address[0])
            self._unheard[event.line] = self._unheard.get(event.line, 0) + event.count - 1
        count = limiter.admit(key, now)
        if count is None:
            return None
        count += self._unheard.pop(event.line or "", 0)
        line = settings.lines.get(event.line) if event.line is not None else None
        similar = _similar(claimed, settings) if event.reason == "unknown" else None
        if event.line is None or self._logged.admit((event.line, event.address[0], event.reason), now) is not None:
            times = f" ({count} times since this was told last)" if count > 1 else ""
            log.warning("%s: %s%s", address_text(event.address), _message(event, mask_all(claimed), similar), times)
        return {
            "event_type": event_type,
            "message": _message(event, claimed, similar),
            "line": event.line or claimed,
            "gateway": line.gateway if line is not None else None,
            "address": address_text(event.address),
            "count": count,
        }


def _similar(claimed: str, settings: Settings) -> str | None:
    """The configured line whose id was probably meant. `goip3` is no misspelt `goip2`, so the digits must agree."""
    digits = _digits(claimed)
    ids = ((name, line.goip_id or name) for name, line in settings.lines.items())
    alike = ((name, id) for name, id in ids if _digits(id) == digits)
    names = {id.casefold(): name for name, id in itertools.islice(alike, LOOKALIKES)}
    close = difflib.get_close_matches(claimed.casefold(), names, n=1, cutoff=0.7)
    return names[close[0]] if close else None


def _digits(id: str) -> list[int]:
    return [int(digits) for digits in re.findall("[0-9]+", id)]


def _message(event: events.Unauthenticated, claimed: str, similar: str | None = None) -> str:
    """What the operator should do; the id is quoted as YAML takes it."""
    if event.reason == "unknown" and similar is not None:
        return (
            f"A gateway registers with the id {claimed!r}, which is not configured. Did you mean line {similar}? An id "
            f"has to agree letter by letter: correct the SMS client id on the gateway's web page, or write it into "
            f"lines.{similar}.goip_id."
        )
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
