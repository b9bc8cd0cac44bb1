"""The chaos proxy: what it does to datagrams, and what it says of them."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Callable

from reliability.proxy import ChaosProxy, Network

LIMIT_S = 20.0


class Host:
    """A UDP socket on the other side of the proxy."""

    def __init__(self) -> None:
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        self.socket.bind(("127.0.0.1", 0))
        self.socket.setblocking(False)

    @property
    def address(self) -> tuple[str, int]:
        host, port = self.socket.getsockname()
        return str(host), int(port)

    async def receive(self) -> tuple[bytes, tuple[str, int]]:
        return await asyncio.wait_for(asyncio.get_running_loop().sock_recvfrom(self.socket, 65535), LIMIT_S)


class Gateway(Host):
    def send(self, proxy: ChaosProxy, *datagrams: bytes) -> None:
        for data in datagrams:
            self.socket.sendto(data, proxy.address)


@contextlib.asynccontextmanager
async def network(network: Network | None = None, seed: int = 1) -> AsyncIterator[tuple[Gateway, ChaosProxy, Host]]:
    host, gateway = Host(), Gateway()
    async with ChaosProxy(host.address, seed, network) as proxy:
        try:
            yield gateway, proxy, host
        finally:
            gateway.socket.close()
            host.socket.close()


async def until(condition: Callable[[], bool]) -> None:
    deadline = asyncio.get_running_loop().time() + LIMIT_S
    while not condition():
        assert asyncio.get_running_loop().time() < deadline, "in time"
        await asyncio.sleep(0.005)


async def fates(bad: Network, seed: int, count: int = 400) -> tuple[dict[str, int], list[bytes]]:
    """What became of `count` datagrams: counts, and what reached the host."""
    async with network(bad, seed) as (gateway, proxy, _):
        for number in range(0, count, 50):
            gateway.send(proxy, *(b"datagram %04d" % each for each in range(number, number + 50)))
            done = number + 50
            await until(
                lambda done=done: (
                    proxy.counts["delivered"] + proxy.counts["lost"] + proxy.counts["over_rate"]
                    >= done + proxy.counts["duplicated"]
                )
            )
        return dict(proxy.counts), [seen.data for seen in proxy.reached]


async def test_every_line_has_a_source_of_its_own_and_answers_find_back() -> None:
    async with network() as (one, proxy, host):
        other = Gateway()
        for gateway, id in ((one, b"goip1"), (other, b"goip2")):
            gateway.send(proxy, b"req:1;id:%s;pass:x;" % id)
        sources = {}
        for _ in range(2):
            data, source = await host.receive()
            sources[data] = source
            host.socket.sendto(b"reg:" + data, source)
        assert len(set(sources.values())) == 2
        assert await one.receive() == (b"reg:req:1;id:goip1;pass:x;", proxy.address)
        assert await other.receive() == (b"reg:req:1;id:goip2;pass:x;", proxy.address)
        assert sorted(seen.line for seen in proxy.reached) == ["goip1", "goip2"]
        assert sorted((seen.line, seen.data[:4]) for seen in proxy.left) == [("goip1", b"reg:"), ("goip2", b"reg:")]
        other.socket.close()


async def test_the_same_seed_has_the_same_fates() -> None:
    bad = Network(loss=0.2, duplicate=0.2, corrupt=0.1, truncate=0.1)
    counts, arrived = await fates(bad, seed=7)
    again, arrived_again = await fates(bad, seed=7)
    other, _ = await fates(bad, seed=8)
    assert counts == again
    assert arrived == arrived_again
    assert counts != other
    for what, low, high in (("lost", 50, 110), ("duplicated", 40, 100), ("corrupted", 15, 65), ("truncated", 15, 65)):
        assert low < counts[what] < high, counts
    assert counts["delivered"] == 400 - counts["lost"] + counts["duplicated"] == len(arrived)


async def test_late_datagrams_are_overtaken() -> None:
    bad = Network(reorder=0.3, held=(0.01, 0.02), tail=0.001)
    _, arrived = await fates(bad, seed=3, count=100)
    assert sorted(arrived) == [b"datagram %04d" % number for number in range(100)]
    assert arrived != sorted(arrived)


async def test_more_than_the_rate_is_dropped() -> None:
    counts, arrived = await fates(Network(rate=20.0), seed=3, count=200)
    assert counts["over_rate"] > 100
    assert len(arrived) == 200 - counts["over_rate"] >= 2


async def test_nothing_passes_a_blackout_and_the_directions_are_apart() -> None:
    async with network() as (gateway, proxy, host):
        with proxy.blackout("up"):
            gateway.send(proxy, b"unheard")
            await until(lambda: proxy.counts["blacked_out"] == 1)
        gateway.send(proxy, b"heard")
        data, source = await host.receive()
        assert data == b"heard"
        proxy.become(Network(loss=1.0), "down")
        host.socket.sendto(b"lost", source)
        await until(lambda: proxy.counts["lost"] == 1)
        proxy.become(Network())
        host.socket.sendto(b"answer", source)
        assert (await gateway.receive())[0] == b"answer"
        assert [seen.data for seen in proxy.left] == [b"lost", b"answer"]


async def test_what_found_no_socket_did_not_reach_the_host() -> None:
    async with network() as (gateway, proxy, host):
        gateway.send(proxy, b"before")
        assert (await host.receive())[0] == b"before"
        address = host.address
        host.socket.close()
        gateway.send(proxy, b"into the void", b"and again")
        await until(lambda: proxy.counts["refused"] == 2)
        reborn = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        reborn.bind(address)
        reborn.setblocking(False)
        gateway.send(proxy, b"after")
        await until(lambda: proxy.counts["delivered"] == 2)
        assert [seen.data for seen in proxy.reached] == [b"before", b"after"]
        assert reborn.recv(100) == b"after"
        reborn.close()
