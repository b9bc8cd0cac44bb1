"""What the store forgets, and when: as chores, a few rows at a time."""

from ..contract.payloads import DAY, timestamp
from ..contract.topics import Topics
from ..store.database import Store
from ..system.clock import Clock
from .batch import Batch
from .chores import Chore

REPEATS_S = 2 * 3600.0
COMMANDS_S = 1.0 * DAY
SMS_S = 7.0 * DAY
"After the last change; those of a job when it is forgotten."
JOBS_S = 7.0 * DAY
"After the end."
TRAFFIC_DAYS = 7


class Pruning:
    """Forgets what is old."""

    def __init__(self, store: Store, topics: Topics, clock: Clock) -> None:
        self._store = store
        self._topics = topics
        self._clock = clock
        self.chores = (
            Chore("old events of gateways", self._old_repeats, lambda _batch, n: store.delete_repeat(n)),
            Chore("old commands", self._old_commands, lambda _batch, n: store.delete_command(n)),
            Chore("old SMS", self._old_sms, lambda _batch, n: store.delete_sms(n)),
            Chore("old jobs", self._of_an_old_job, self._forget_of_job),
            Chore("counters of past days", self._old_traffic, lambda _batch, key: store.fold_traffic(*key)),
        )

    def _old_repeats(self, at: float, _now: float, limit: int) -> list[int]:
        return self._store.old_repeats(at - REPEATS_S, limit)

    def _old_commands(self, at: float, _now: float, limit: int) -> list[int]:
        return self._store.old_commands(at - COMMANDS_S, max(1, limit // 10))  # one may have a megabyte

    def _old_sms(self, at: float, _now: float, limit: int) -> list[int]:
        return self._store.old_sms(at - SMS_S, limit)

    def _of_an_old_job(self, at: float, _now: float, limit: int) -> list[int] | list[str]:
        """The SMS of a job that ended long ago, and in the end itself: after a kill in between it is found again."""
        job = self._store.old_job(min(at, self._clock.time()) - JOBS_S)
        if job is None:
            return []
        return self._store.sms_of_job(job, limit) or [job]

    def _forget_of_job(self, batch: Batch, of_job: int | str) -> None:
        if isinstance(of_job, int):
            self._store.delete_sms(of_job)
        else:
            self._store.delete_job(of_job)
            batch.emptied.append(self._topics.job(of_job))

    def _old_traffic(self, _at: float, _now: float, limit: int) -> list[tuple[str, str]]:
        return self._store.old_traffic(timestamp(self._clock.time() - TRAFFIC_DAYS * DAY)[:10], limit)
