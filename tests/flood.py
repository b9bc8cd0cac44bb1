"""An attacker: sends datagrams at a steady rate from many addresses of the loopback network, in a process of its own.

Reads an `Attack` as JSON from standard input, and writes what it sent and got as JSON when its input is closed or its
time is over. Called by test_hostile.py; by hand for longer attacks.
"""

import json
import socket
import sys
import time
from dataclasses import asdict, dataclass

STEP_S = 0.001
CATCH_UP_S = 0.2
"A machine that is busy makes it late: this much is made up for."


@dataclass
class Attack:
    port: int
    rate: float
    seconds: float
    datagrams: list[str]
    "Sent in turn, as hexadecimal digits."
    sources: int = 10
    "Addresses to send from, one IPv4 address each."
    first: int = 1
    "The number of the first of them, so that several attackers differ."


@dataclass
class Outcome:
    sent: int
    seconds: float
    skipped: int
    "Datagrams that were not sent, for it was too late."
    received: list[str]
    "What came back, as hexadecimal digits; the first hundred."
    received_bytes: int


def attack(order: Attack) -> Outcome:
    sockets = [_socket(order.first + n) for n in range(order.sources)]
    datagrams = [bytes.fromhex(text) for text in order.datagrams]
    to = ("127.0.0.1", order.port)
    sent = skipped = turn = 0
    received: list[bytes] = []
    began = time.perf_counter()
    while (passed := time.perf_counter() - began) < order.seconds:
        late = int(passed * order.rate) - sent - skipped
        if late > CATCH_UP_S * order.rate:
            skipped += late - int(CATCH_UP_S * order.rate)
            late = int(CATCH_UP_S * order.rate)
        for _ in range(late):
            try:
                sockets[turn % len(sockets)].sendto(datagrams[turn % len(datagrams)], to)
                sent += 1
            except (BlockingIOError, ConnectionRefusedError):
                skipped += 1
            turn += 1
        time.sleep(STEP_S)
    time.sleep(0.5)  # whatever is still to come
    for sock in sockets:
        try:
            while True:
                received.append(sock.recv(65_535))
        except (BlockingIOError, ConnectionRefusedError):
            sock.close()
    shown = [answer.hex() for answer in received[:100]]
    return Outcome(sent, passed, skipped, shown, sum(map(len, received)))


def _socket(number: int) -> socket.socket:
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
    sock.bind((f"127.{66 + number // 62_500}.{number // 250 % 250}.{number % 250 + 1}", 0))
    sock.setblocking(False)
    return sock


if __name__ == "__main__":
    print(json.dumps(asdict(attack(Attack(**json.load(sys.stdin))))))
