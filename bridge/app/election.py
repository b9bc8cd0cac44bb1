"""Which of several bridges on one base topic serves: one at a time, or every SMS would go out as often.

Each says on `bridge/info`, retained, who it is and since when it serves. One that connects says so too, and holds back
all else: when the broker's last word there was another bridge's, that one, if it is alive, says it again at once.
Whoever serves goes on; the other stands by, and asks again when that one says goodbye, or is not heard of.

There is no store that all of them share, so nothing here is a fence. What takes its place is the order in which one
broker handles packets, and time: a bridge carries out a command only within `AUTHORITY_S` of a packet that it sent and
the broker answered, and another one begins to serve only `ANSWER_S` after the broker had its question. A bridge that
hears a question or a claim carries out nothing more until the broker has its answer and `ANSWER_S` have passed; and one
that begins to serve carries out nothing before the broker has its claim, as an answer that was there earlier is heard
earlier. Of two that serve one gives way only to an answer, since what a dead bridge said may arrive late, and what it
must know after a crash is kept before it speaks. docs/reliability.md says what that promises and what it does not.
"""

import enum

import orjson

ANSWER_S = 5.0
"Within this time a bridge that serves has said so again."
AUTHORITY_S = 4.0
"So long after a packet of ours that the broker answered nobody else serves: less than `ANSWER_S`."
AGAIN_S = 90.0
"One that stands by asks again when it heard nothing of the other for so long: that one may have gone without a word."
_NEVER = "~"  # after every time
_DOUBT = "?"
"Before what is kept: since when this bridge served, perhaps no longer."


class Role(enum.Enum):
    """What a bridge does on its base topic."""

    ASKING = "connected, and asks whether another one serves"
    SERVING = "carries out commands, and keeps the retained topics true"
    STANDING_BY = "another one serves"


class Authority(enum.Enum):
    """What is to become of a command that the broker delivered."""

    TAKE = "carry it out"
    WAIT = "another bridge may be about to serve: decide later"
    PROBE = "first see that the connection stands: send a PINGREQ"
    ASK = "the connection stood still, and another bridge may serve since: ask first"
    DROP = "it is for another bridge, which may have carried it out"


class Election:
    """One bridge's part. `now` is monotonic seconds."""

    def __init__(self, instance: str, started_at: str, since: str | None, rival: str = "") -> None:
        """`since` and `rival` are of the store: what was `kept`, and the other bridge that was heard of last."""
        self.role = Role.SERVING  # there is nobody to ask
        self.yielded = since is not None and since[:1] in ("", _DOUBT)
        "Another one served since this one did. To be kept in the store (`kept`) before the broker has a word of ours."
        self.since = None if self.yielded else since
        self._served = since[1:] if since and self.yielded else None
        "Since when it served before it may have been followed by another one, unheard."
        self.rival = rival
        "The instance of another bridge that was heard of, ever: this one is not alone."
        self.succeeds = False
        "Another one served meanwhile: it may have carried out what waited for us at the broker."
        self._contested = False
        "Another bridge may serve and not have been heard of yet: it has its time to answer."
        self._is_others = False
        "The broker's last word was of one that served: what came before our question is that one's to carry out."
        self._resumed = False
        self._instance = instance
        self._started_at = started_at
        self._until: float | None = None
        "When the time for an answer is over, None until the broker has the question; or when to ask again."
        self._said = True
        "The broker has our last word, which was said after whatever another bridge said."
        self._challenged = False
        "Another bridge spoke since we claimed to serve."
        self._doubtful = False
        "It served too, perhaps: it may have carried out what waits here."
        self._answered_at = self._quiet_until = float("-inf")
        "When the broker had our last answer to another bridge; and until when that one may object."
        self._proved = float("-inf")
        "When we sent the last packet of ours that the broker answered."
        self._stood_still = False
        "The broker's answer came so late that another bridge may have begun to serve unheard."

    @property
    def serving_since(self) -> str | None:
        """As it is told: None while this bridge asks, or stands by."""
        return self.since if self.role is Role.SERVING else None

    @property
    def served_since(self) -> str | None:
        """While it asks: since when it served before. It goes before others that ask."""
        return self.since or self._served if self.role is Role.ASKING else None

    def ask(self, now: float, *, resumed: bool) -> None:
        """Connected, or who served may be gone. `resumed`: commands may have waited for us at the broker."""
        if self._is_in_doubt:  # another one may serve by now, and not have been heard, as after a crash
            self._served = self.since or self._served
            self.yielded, self.since = True, None
        self._contested = self._is_others = self.yielded
        self.role, self._resumed = Role.ASKING, resumed
        self.succeeds = self.yielded and resumed
        self._challenged = self._doubtful = self._stood_still = False
        self._until = None

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
        own = self.since or self._served
        earlier = own is not None and (since or kept) == own
        if instance == self._instance and (retain or earlier or started == self._started_at):
            return False  # ourselves, or an earlier run
        if self.role is Role.STANDING_BY:
            if since is not None and not retain:
                self.heard_of_other(now)
            return False
        self.rival = instance[:32]
        if self.role is Role.ASKING and since is not None:
            self.yielded, self.succeeds = True, self.succeeds or self._resumed
            self.since = self._served = own = None  # whoever serves goes on
        if retain:
            self._contested = True
            if since or kept:
                self._is_others, self.succeeds = True, self.succeeds or self._resumed
            return False
        theirs = (since is None, str(since or kept or _NEVER), started, instance)
        wins = theirs < (self.role is Role.ASKING, own or _NEVER, self._started_at, self._instance)
        # A word of one that is dead may have been on its way for long: only one that answers ours is given way to.
        answers = self.role is Role.ASKING or (self._challenged and self._said and now < self._quiet_until)
        if wins and answers:
            self.yielded, self.succeeds = True, self.succeeds or self.role is Role.SERVING
            self._challenged = False
            self.role, self.since, self._until = Role.STANDING_BY, None, now + AGAIN_S
            self._served = None
            return False
        if self.role is Role.SERVING:
            # A claim that follows when the broker had our answer to the question is taken back before it takes effect.
            harmless = since is None or (self._said and now < self._answered_at + AGAIN_S)
            self._doubtful = not harmless or (self._doubtful and self._is_quiet(now))
            again = not (wins and self._challenged and not self._said)  # else two could answer each other for ever
            self._said, self._challenged = False, True
            return again
        return True

    def say_again(self) -> bool:
        """What it says has changed. True when that is to be kept first (`kept`), and then said, before it goes on."""
        if not self.rival or self.role is not Role.SERVING:
            return False
        self._said = False
        return True

    def heard_of_other(self, now: float) -> None:
        """Standing by: whoever serves is alive."""
        if self.role is Role.STANDING_BY:
            self._until = now + AGAIN_S

    def acknowledged(self, now: float) -> bool:
        """The broker has our last word, and what it said before was heard; true when that makes us serve."""
        if self.role is Role.ASKING and self._until is None:
            self._until = now + ANSWER_S if self._contested else now
        elif self.role is Role.SERVING and not self._said:
            self._said, self.yielded, self._served = True, False, None
            if self._challenged:
                self._answered_at, self._quiet_until = now, now + ANSWER_S
            return True
        return False

    @property
    def kept(self) -> str | None:
        """What is to be kept in the store: since when this bridge serves; the same behind a question mark while another
        one may have followed it; empty when it gave way. None is nothing new.

        To be kept before this bridge says anything. Its words may be on their way for long, be overtaken by another
        one's claim and then overwrite that, so that nothing at the broker tells its next run of it.
        """
        if not self._is_in_doubt:
            return self.since
        served = self.since or self._served
        return _DOUBT + served if served else ""

    @property
    def _is_in_doubt(self) -> bool:
        """What it says may not be at the broker when it ends, or that may hide what another one said."""
        unsaid = bool(self.rival) and (self.role is Role.ASKING or not self._said)
        return self.yielded or self._challenged or unsaid

    @property
    def awaits_broker(self) -> bool:
        """Something follows when the broker has our last word."""
        return self._until is None if self.role is Role.ASKING else self.role is Role.SERVING and not self._said

    @property
    def may_have_missed(self) -> bool:
        """Commands that are dropped now may have been carried out by nobody."""
        return self.succeeds or self._doubtful or self._is_before_question

    @property
    def _is_before_question(self) -> bool:
        """What comes is for whoever served last, and that was another bridge. It may be dead."""
        return self.role is Role.ASKING and self._is_others and self._until is None

    def settle(self, now: float) -> None:
        """Whoever asked, or claimed to serve, has not objected to our answer."""
        if not self._is_quiet(now):
            self._challenged = False

    def is_to_ask(self, now: float) -> bool:
        """Nothing was heard of the one that serves for long enough."""
        return self.role is Role.STANDING_BY and self._until is not None and now >= self._until

    def look(self, now: float, at: str) -> bool:
        """True when this bridge claims to serve from now on; `at` is the same moment, as it is told. It serves when the
        broker has that (`acknowledged`).
        """
        if self.role is not Role.ASKING or self._until is None or now < self._until:
            return False
        self.role, self.since = Role.SERVING, self.since or at
        self._said = self._challenged = self._doubtful = False
        return True

    def proved(self, sent_at: float, now: float) -> None:
        """The broker answered a packet that left at `sent_at`: what it had for us before that was heard."""
        self._proved = max(self._proved, sent_at)
        if now - sent_at > AUTHORITY_S:
            self._stood_still = True

    def vouch(self, now: float) -> None:
        """Nobody objected to our question: what waits here is ours, however slow the connection is."""
        self._proved, self._stood_still = max(self._proved, now), False

    def _is_quiet(self, now: float) -> bool:
        """Nothing is carried out, as another bridge may serve or be about to."""
        return not self._said or now < self._quiet_until

    def authority(self, now: float) -> Authority:
        """What is to become of the commands that wait."""
        if self.role is Role.STANDING_BY:
            return Authority.DROP
        if self.role is Role.ASKING:
            return Authority.DROP if self.succeeds or self._is_before_question else Authority.WAIT
        if self._is_quiet(now):
            return Authority.DROP if self._doubtful else Authority.WAIT
        if self._stood_still:
            return Authority.ASK
        return Authority.TAKE if now - self._proved <= AUTHORITY_S else Authority.PROBE
