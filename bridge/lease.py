"""Which of several bridges on one base topic serves: one at a time, or every SMS would go out as often.

Each says on `bridge/info`, retained, who it is and since when it serves. One that connects says so too, and holds back
all else: when the broker's last word there was another bridge's, that one, if it is alive, says it again at once.
Whoever serves goes on; the other stands by, and asks again when that one says goodbye, or from time to time.
"""

import enum

import orjson

ANSWER_S = 5.0
"Within this time a bridge that serves has said so again."
UNHEARD_S = 15.0
"A broker that acknowledges nothing for so long has the question, or never will."
AGAIN_S = 60.0
"One that stands by asks again: whoever it gave way to may have gone without a word."
_NEVER = "~"  # after every time


class Role(enum.Enum):
    """What a bridge does on its base topic."""

    ASKING = "connected, and asks whether another one serves"
    SERVING = "carries out commands, and keeps the retained topics true"
    STANDING_BY = "another one serves"


class Lease:
    """One bridge's part. `now` is monotonic."""

    def __init__(self, instance: str, started_at: str, since: str | None) -> None:
        """`since` is what was kept in the store: since when this bridge serves, or empty while it stood by."""
        self.role = Role.SERVING  # there is nobody to ask
        self.since = since or None
        self.rival = ""
        "The instance of another bridge that was heard of."
        self.succeeds = False
        "Another one served meanwhile: it may have carried out what waited for us at the broker."
        self._contested = False
        "The broker's last word was another bridge's."
        self._resumed = False
        self._instance = instance
        self._started_at = started_at
        self._asked_at = 0.0
        self._until: float | None = None
        "When the time for an answer is over, None until the broker has the question; or when to ask again."

    @property
    def serving_since(self) -> str | None:
        """As it is told: None while this bridge asks, or stands by."""
        return self.since if self.role is Role.SERVING else None

    @property
    def served_since(self) -> str | None:
        """While it asks: since when it served before. It goes before others that ask."""
        return self.since if self.role is Role.ASKING else None

    def ask(self, now: float, *, resumed: bool) -> None:
        """Connected, or who served may be gone. `resumed`: commands may have waited for us at the broker."""
        self._contested = self.role is Role.STANDING_BY
        self.role, self._resumed = Role.ASKING, resumed
        self.succeeds = False
        self._asked_at, self._until = now, None

    def doubt(self) -> None:
        """The broker keeps nothing: that nobody was heard of says nothing until there was time for an answer."""
        self._contested = True

    def hear(self, info: bytes, now: float, *, retain: bool) -> bool:
        """What the topic says; true when our own word is to be said again. `retain`: it is from before."""
        try:
            said = orjson.loads(info)
            instance, started = str(said["instance"]), str(said["started_at"])
            since = said.get("serving_since", started)  # an older version does not say it, and serves
            kept = said.get("served_since")
        except (ValueError, LookupError, TypeError, AttributeError):
            return False
        earlier = self.since is not None and (since or kept) == self.since
        if instance == self._instance and (retain or earlier or started == self._started_at):
            return False  # ourselves, or an earlier run
        if self.role is Role.STANDING_BY:
            return False
        self.rival = instance[:32]
        if self.role is Role.ASKING and since is not None:
            self.succeeds = self.succeeds or self._resumed
            self.since = None  # whoever serves goes on
        if retain:
            self._contested = True
            return False
        theirs = (since is None, str(since or kept or _NEVER), started, instance)
        if theirs < (self.role is Role.ASKING, self.since or _NEVER, self._started_at, self._instance):
            self.role, self.since, self._until = Role.STANDING_BY, None, now + AGAIN_S
            return False
        return True

    def asked(self, now: float) -> None:
        """The broker has the question, and what it said before was heard."""
        if self._until is None:
            self._until = now + ANSWER_S if self._contested else now

    def is_to_ask(self, now: float) -> bool:
        """Standing by for long enough."""
        return self.role is Role.STANDING_BY and self._until is not None and now >= self._until

    def look(self, now: float, at: str) -> bool:
        """True when this bridge serves from now on; `at` is the same moment, as it is told."""
        if self.role is Role.ASKING and now >= self._asked_at + UNHEARD_S:
            self.asked(now)
        if self.role is not Role.ASKING or self._until is None or now < self._until:
            return False
        self.role, self.since = Role.SERVING, self.since or at
        return True
