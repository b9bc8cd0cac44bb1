"""What a line starts by itself: events, sent again until acknowledged (docs/protocol.md §6 and §7)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from . import wire
from .world import Record

if TYPE_CHECKING:
    from .line import SimulatedLine


@dataclass(slots=True)
class _Event:
    text: str
    record: Record | None
    tries: int = 0


class Events:
    """The line's open events. One recvid counter serves all kinds, counting down (docs/protocol.md §2.1)."""

    def __init__(self, line: SimulatedLine, recvid: int) -> None:
        self._line = line
        self._recvid = recvid
        self._open: dict[tuple[str, int], _Event] = {}

    def __len__(self) -> int:
        return len(self._open)

    def send(self, kind: str, fields: str, now: float, record: Record | None = None) -> int:
        """Send an event and keep it until it is acknowledged; a record is logged now and again with the outcome."""
        recvid, self._recvid = self._recvid, self._recvid - 1
        line = self._line
        text = f"{kind}:{recvid};id:{line.id};password:{line.options.password};{fields}"
        event = _Event(text, record)
        if record is not None:
            record["recvid"] = recvid
            self._log(event, "", now)
        self._open[kind, recvid] = event
        self._transmit(kind, recvid, now)
        return recvid

    def acknowledged(self, ack: wire.EventAck, now: float) -> None:
        """Only the right word with the right number counts; after a refusal the box goes on (docs/protocol.md §6)."""
        if ack.result == "ERROR":
            return
        event = self._open.pop((ack.kind, ack.recvid), None)
        if event is not None:
            self._log(event, "acked", now)

    def abandon(self, now: float) -> None:
        """The line goes off: nothing open is ever offered again."""
        for event in self._open.values():
            self._log(event, "lost_by_restart", now)
        self._open.clear()

    def _transmit(self, kind: str, recvid: int, now: float) -> None:
        event = self._open.get((kind, recvid))
        if event is None:
            return
        options = self._line.options
        if event.tries > options.repeats:
            del self._open[kind, recvid]
            self._log(event, "given_up", now)
            return
        event.tries += 1
        self._line.emit(event.text)
        self._line.later(options.resend, lambda when: self._transmit(kind, recvid, when), now)

    def _log(self, event: _Event, outcome: str, now: float) -> None:
        if event.record is None:
            return
        fields = dict(event.record)
        what = str(fields.pop("what"))
        if outcome:
            self._line.record(now, f"{what}_outcome", **fields, result=outcome, tries=event.tries)
        else:
            self._line.record(now, what, **fields)
