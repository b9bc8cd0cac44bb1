"""Facts and counts of the last hour, and each fact without what is private in it: for the status page.

`Recent` is fed with every committed batch and keeps what is not kept elsewhere; it is only there when `http.listen` is
set. The page has no login, so nothing that leaves here has the text of an SMS or a whole phone number.
"""

import asyncio
import itertools
from collections import deque
from functools import lru_cache
from typing import Any

import orjson

from ..contract.numbers import mask, mask_all
from ..contract.payloads import timestamp
from ..features.batch import Batch
from ..store.database import OutboxRow

FACTS = 100
"Facts that are kept."
MINUTES = 60
"Minutes whose traffic is kept."
COUNTED = ("received", "sent", "delivered", "failed")


class Recent:
    """Facts and counts of the last hour, in memory."""

    def __init__(self) -> None:
        self.count = 0
        "Facts that were ever taken."
        self.awaited: dict[tuple[str, str], asyncio.Future[bytes]] = {}
        "By the topic of a result and the id of its command: who waits for it."
        self._facts: deque[OutboxRow] = deque(maxlen=FACTS)
        self._minutes: dict[int, dict[str, int]] = {}
        self._last_sms: dict[str, tuple[float, str | None, int]] = {}

    def take(self, batch: Batch) -> None:
        """Keep what a batch brought. This is on the way of every datagram: nothing is decoded here."""
        for row in batch.rows:
            if row.schema != "result":
                self._facts.append(row)
                self.count += 1
            elif self.awaited:
                self._hand_over(row)
        if batch.traffic:
            self._add_traffic(batch)
        for line, (sender, text) in batch.sms_last.items():
            self._last_sms[line] = batch.wall, sender, len(text)

    def facts(self, after: int = 0) -> list[OutboxRow]:
        """Those that were taken after the first `after`, as far as they are kept; oldest first."""
        first = max(0, len(self._facts) - (self.count - after))
        return list(itertools.islice(self._facts, first, None))

    def position(self, fact_id: str) -> int:
        """How many facts were taken up to the one with this id; 0, so that all are new, if it is not kept."""
        for place, row in enumerate(self._facts):
            if orjson.loads(row.body)["id"] == fact_id:
                return self.count - len(self._facts) + place + 1
        return 0

    def minutes(self, wall: float) -> list[dict[str, Any]]:
        """Traffic of the last hour, minute by minute, oldest first."""
        last = int(wall // 60)
        return [
            {"at": timestamp(minute * 60.0)} | dict.fromkeys(COUNTED, 0) | self._minutes.get(minute, {})
            for minute in range(last - MINUTES + 1, last + 1)
        ]

    def last_sms(self, line: str) -> dict[str, Any] | None:
        """The last inbound SMS of this run, its sender masked."""
        if line not in self._last_sms:
            return None
        at, sender, chars = self._last_sms[line]
        return {"at": timestamp(at), "from": mask(sender) if sender else None, "chars": chars}

    def _add_traffic(self, batch: Batch) -> None:
        now = int(batch.wall // 60)
        minute = self._minutes.get(now)
        if minute is None:
            minute = self._minutes[now] = dict.fromkeys(COUNTED, 0)
            for old in [other for other in self._minutes if not now - MINUTES < other <= now]:
                del self._minutes[old]  # also those of a clock that was ahead
        for counts in batch.traffic.values():
            for what, count in counts.items():
                if what in minute:
                    minute[what] += count

    def _hand_over(self, row: OutboxRow) -> None:
        waiting = self.awaited.pop((row.topic, orjson.loads(row.body)["id"]), None)
        if waiting is not None and not waiting.done():
            waiting.set_result(row.body)


# -- facts, without what is private ----------------------------------------------------------------------------------


@lru_cache(maxsize=2 * FACTS)
def public_fact(base: str, topic: str, kind: str, body: bytes) -> bytes:
    """A fact as everybody may see it: numbers masked, texts only counted."""
    said = orjson.loads(body)
    target = topic.removeprefix(f"{base}/").partition("/")[0]
    fact = {
        "id": said["id"],
        "at": said["at"],
        "topic": topic,
        "line": target if kind != "bridge_event" else _scrubbed(said.get("line")),
        "kind": kind,
        "event_type": _scrubbed(said["event_type"]),
    }
    return orjson.dumps(fact | _details(kind, said))


def _details(kind: str, said: dict[str, Any]) -> dict[str, Any]:
    """What fits without private data. USSD codes and the fields of unknown events may have some."""
    match kind:
        case "sms_in":
            return {"from": _masked(said["from"] or said["from_raw"]), "chars": said["chars"]}
        case "delivery":
            error = said["error"] or {}
            told = {key: said[key] for key in ("msg", "sms_no", "attempt", "evidence")}
            return {
                "to": _masked(said["to"]),
                **told,
                "code": error.get("code"),
                "message": error.get("meaning") or _scrubbed(error.get("text")),
            }
        case "call":
            told = {key: said[key] for key in ("direction", "duration_s")}
            return {"number": _masked(said["number"]), **told, "cause": _scrubbed(said["cause"])}
        case "ussd":
            return {"chars": None if said["text"] is None else len(said["text"])}
        case "event":
            return {key: said[key] for key in ("remain_time_min", "round", "step", "cgatt") if key in said}
        case "bridge_event":
            told = {key: said[key] for key in ("gateway", "address", "count")}
            return told | {
                "code": said["reason_code"],
                "message": _scrubbed(said["message"]),
                "since": said["from"],
                "until": said["to"],
            }
    return {}


def _masked(number: str | None) -> str | None:
    return None if number is None else mask(number)


def _scrubbed(text: str | None) -> str | None:
    """Words of gateways, and ids that strangers claim, with whatever may be a phone number masked."""
    return None if text is None else mask_all(text)
