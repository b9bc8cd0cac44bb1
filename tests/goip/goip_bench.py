"""Our SMS server on a bench: time passes when the test says so, datagrams are strings, the box is the test."""

from typing import Any, TypeVar

from bridge.goip import events
from bridge.goip.control import Operation
from bridge.goip.events import Address
from bridge.goip.line import Line
from bridge.goip.server import LineConfig, SmsServer
from bridge.goip.session import Recipient
from bridge.goip.timing import Timing

HOME: Address = ("192.0.2.10", 10991)
"Where the box is."
ELSEWHERE: Address = ("198.51.100.66", 4444)
START = 1000.0
SENDID = 1_700_000_001
"The first sendid that a bench gives."
NOISE = (events.Seen, events.LineChanged)

E = TypeVar("E")


class Bench:
    """`tell` is the box speaking; what the server answers is returned, what it has to report collects in `log`."""

    def __init__(self, *, online: bool = True, timing: Timing | None = None, **config: Any) -> None:
        self.config = LineConfig(**({"name": "goip1", "goip_id": "goip1", "password": "pw1"} | config))
        self.server = SmsServer([self.config], timing or Timing(), next_sendid=SENDID, now=START)
        self.now = START
        self.count = 0
        self.log: list[events.Event] = []
        self.destinations: list[Address] = []
        "Where the datagrams returned last went to."
        self.recvid = 1_700_000_000
        if online:
            self.keepalive()
            self.events()

    @property
    def line(self) -> Line:
        line = self.server.line("goip1")
        assert line is not None
        return line

    def tell(self, *datagrams: str | bytes, source: Address = HOME) -> list[str]:
        """The box sends these; what the server answers at once."""
        for datagram in datagrams:
            data = datagram.encode() if isinstance(datagram, str) else datagram
            self.server.receive_datagram(data, source, self.now)
        return self.sent()

    def keepalive(self, fields: str = "gsm_status:LOGIN;", *, count: int | None = None, **where: Any) -> list[str]:
        """A keepalive of the line, with the next count."""
        self.count = self.count + 1 if count is None else count
        return self.tell(f"req:{self.count};id:goip1;pass:pw1;{fields}", **where)

    def event(self, kind: str, fields: str, *, recvid: int | None = None, **where: Any) -> list[str]:
        """An event of the line, with the next recvid."""
        if recvid is None:
            self.recvid -= 1
            recvid = self.recvid
        return self.tell(f"{kind}:{recvid};id:goip1;password:pw1;{fields}", **where)

    def advance(self, seconds: float) -> list[str]:
        """Time passes, from timer to timer; what the server sends meanwhile."""
        end = self.now + seconds
        sent = []
        while (deadline := self.server.deadline()) is not None and deadline <= end:
            self.now = max(self.now, deadline)
            self.server.handle_timer(self.now)
            after = self.server.deadline()
            assert after is None or after > self.now, "a timer that is due stays due"
            sent += self.sent()
        self.now = end
        return sent

    def sent(self) -> list[str]:
        """What the server has sent since this was last asked."""
        self.log += self.server.take_events()
        taken = self.server.take_datagrams()
        self.destinations = [address for _, address in taken]
        return [data.decode() for data, _ in taken]

    def events(self) -> list[events.Event]:
        """What the server has reported since this was last asked, but for the events that every datagram causes."""
        self.log += self.server.take_events()
        taken, self.log = self.log, []
        return [event for event in taken if not isinstance(event, NOISE)]

    def told(self, kind: type[E]) -> list[E]:
        """The events of one type among `events()`."""
        return [event for event in self.events() if isinstance(event, kind)]

    # -- orders

    def send_sms(self, *numbers: str, text: str = "hello", **recipient: Any) -> list[str]:
        """Begin a bulk session; the SMS are numbered from 1."""
        recipients = [Recipient(n, number, **recipient) for n, number in enumerate(numbers or ("+491",), 1)]
        self.server.send_sms("goip1", text, recipients, self.now)
        return self.sent()

    def submit(self, *numbers: str, sendid: int = SENDID, **options: Any) -> list[str]:
        """Bring a session to its first SEND, which is returned."""
        self.send_sms(*numbers, **options)
        self.tell(f"PASSWORD {sendid}\n")
        sent = self.tell(f"SEND {sendid}\n")
        self.events()
        return sent

    def request(self, verb: str, *arguments: str, token: int | None = 1, **options: Any) -> list[str]:
        """Send a control command."""
        self.server.request("goip1", token, Operation(verb=verb, arguments=arguments, **options), self.now)
        return self.sent()

    def ussd(self, code: str, *, token: int = 1, timeout: float = 120.0) -> list[str]:
        """Send a USSD code."""
        self.server.ussd("goip1", token, code, timeout, self.now)
        return self.sent()
