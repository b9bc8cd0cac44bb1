"""A simulated line on a bench: time passes when the test says so, datagrams are strings in a list."""

import random
from collections.abc import Callable
from dataclasses import replace

import pytest

from bridge.sim.gateway import SimulatedGateway
from bridge.sim.options import LineOptions
from bridge.sim.profiles import PROFILES
from bridge.sim.world import Address, Record, World

START = 1_700_000_000.0
SERVER: Address = ("192.0.2.1", 44444)


class Bench:
    """One box without sockets. `tell` is the server speaking; answers and everything else collect in `sent`."""

    def __init__(self, profile: str = "spec", lines: int = 1, seed: int = 1, **options: object) -> None:
        settings = LineOptions(profile=PROFILES[profile], reports=0.0)
        settings = replace(settings, **options)  # type: ignore[arg-type]
        self.world = World(random.Random(seed))
        self.gateway = SimulatedGateway([settings.numbered(n) for n in range(1, lines + 1)], self.world)
        self.line = self.gateway.lines[0]
        self.now = START
        self.radio: list[Record] = []
        for line in self.gateway.lines:
            line.power_on(self.now)

    def tell(self, *datagrams: str, line: int = 0, source: Address = SERVER) -> list[str]:
        """The server sends these; what the box answers at once."""
        for datagram in datagrams:
            self.gateway.lines[line].receive_datagram(datagram.encode(), source, self.now)
        return self.sent()

    def advance(self, seconds: float) -> list[str]:
        """Time passes; what the box sends meanwhile."""
        self.now += seconds
        self.world.run_due(self.now)
        return self.sent()

    def sent(self) -> list[str]:
        """What the box has sent since this was last asked."""
        return [datagram.data.decode() for datagram in self.world.take_datagrams()]

    def events(self, seconds: float) -> list[str]:
        """Time passes; the events sent meanwhile, acknowledged, as `KIND:fields` without recvid, id and password."""
        found = []
        end = self.now + seconds
        while True:
            # In small steps, as an event that is acknowledged late would be repeated.
            for text in self.advance(min(1.0, end - self.now)):
                head, _, rest = text.partition(";")
                kind, _, recvid = head.partition(":")
                if kind != "req":
                    self.tell(f"{kind} {recvid} OK")
                    found.append(f"{kind}:{rest.split(';', 2)[2]}")
            if self.now >= end:
                return found

    def records(self, what: str) -> list[Record]:
        """The radio records of this kind since the start."""
        self.radio += self.world.take_records()
        return [record for record in self.radio if record["what"] == what]

    def open_session(self, sendid: int = 7, text: str = "hello") -> None:
        """Bring a session to the point where it takes numbers."""
        length = len(text.encode())
        assert self.tell(f"MSG {sendid} {length} {text}\n") == [f"PASSWORD {sendid}\n"]
        assert self.tell(f"PASSWORD {sendid} password1\n") == [f"SEND {sendid}\n"]


@pytest.fixture
def bench() -> Callable[..., Bench]:
    """Make a box: `bench(profile="…", lines=2, …)` with any option of a line."""

    def make(**options: object) -> Bench:
        made = Bench(**options)  # type: ignore[arg-type]
        made.sent()
        return made

    return make
