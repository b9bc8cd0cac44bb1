"""Gateways reduced to what loads a bridge: keepalives and inbound SMS, as fast as they are answered."""

import select
import socket
import struct
import time
from collections.abc import Iterator, Sequence

from benchmarks.harness import PASSWORD, TEXT, WrongResultError

RESEND_S = 3.0
"As a box does."
STATE = (
    "num:+491511234567;signal:{signal};gsm_status:LOGIN;voip_status:LOGIN;voip_state:IDLE;remain_time:-1;"
    "imei:867495025433270;imsi:260060148604770;iccid:8948062400000000000;pro:SIMULATED GSM;idle:5;disable_status:0;"
    "SMS_LOGIN:Y;SMB_LOGIN:;CELLINFO:LAC:7E5,CELL ID:5E5B;CGATT:Y;"
)


def keepalive(line: str, count: int, signal: int = 20) -> bytes:
    """A keepalive with the fields of a real one."""
    return f"req:{count};id:{line};pass:{PASSWORD};{STATE.format(signal=signal)}".encode()


def receive(line: str, recvid: int) -> bytes:
    """An inbound SMS."""
    return f"RECEIVE:{recvid};id:{line};password:{PASSWORD};srcnum:+491719876543;msg:{TEXT}".encode()


class Gateways:
    """One socket for each line."""

    def __init__(self, lines: Sequence[str], port: int) -> None:
        self.lines = lines
        self.sockets = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in lines]
        self.counts = [0] * len(lines)
        for sock in self.sockets:
            sock.connect(("127.0.0.1", port))
            # A time-out of the kernel's: Python's own costs a second system call for each datagram.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", int(RESEND_S), 0))

    def close(self) -> None:
        for sock in self.sockets:
            sock.close()

    def keepalives(self, total: int, *, changing: bool = False) -> float:
        """Send so many, each line's next when its last was answered; the seconds it took.

        With `changing`, the signal strength is another one in each keepalive.
        """
        heads = [f"id:{line};pass:{PASSWORD};".encode() for line in self.lines]
        tails = [STATE.format(signal=signal).encode() for signal in ((20, 21) if changing else (20, 20))]
        began = time.monotonic()
        for n in range(total // len(self.lines) + 1):
            for i, sock in enumerate(self.sockets):
                if n:
                    self._registered(sock, self.counts[i])
                self.counts[i] += 1
                sock.send(b"req:%d;%b%b" % (self.counts[i], heads[i], tails[n & 1]))
        for sock, count in zip(self.sockets, self.counts, strict=True):
            self._registered(sock, count)
        return time.monotonic() - began

    @staticmethod
    def _registered(sock: socket.socket, count: int) -> None:
        try:
            answer = sock.recv(2048)
        except BlockingIOError:
            raise WrongResultError(f"keepalive {count} was not answered within {RESEND_S} s") from None
        if answer != b"reg:%d;status:200;" % count:
            raise WrongResultError(f"keepalive {count} was answered with {answer!r}")

    def receives(self, total: int, outstanding: int) -> int:
        """Send so many SMS, with some of each line unanswered at a time; how many had to be sent again."""
        sending = [_Sending(sock, line) for sock, line in zip(self.sockets, self.lines, strict=True)]
        by_fd = {one.sock.fileno(): one for one in sending}
        numbers = iter(range(total))
        with select.epoll() as poll:
            for fd in by_fd:
                poll.register(fd, select.EPOLLIN)
            for _ in range(outstanding):
                for one in sending:
                    one.send_next(numbers)
            repeated, answered = 0, 0
            while answered < total:
                ready = poll.poll(RESEND_S)
                for fd, _ in ready:
                    if by_fd[fd].acknowledged():
                        answered += 1
                        by_fd[fd].send_next(numbers)
                if not ready:
                    repeated += sum(one.repeat() for one in sending)
                    if repeated > total:
                        raise WrongResultError(f"{total - answered} of {total} SMS are not acknowledged")
        return repeated


class _Sending:
    """The SMS of one line that are not acknowledged."""

    def __init__(self, sock: socket.socket, line: str) -> None:
        self.sock = sock
        self.line = line
        self.open: dict[int, bytes] = {}

    def send_next(self, numbers: Iterator[int]) -> None:
        recvid = next(numbers, None)
        if recvid is not None:
            self.open[recvid] = receive(self.line, recvid)
            self.sock.send(self.open[recvid])

    def acknowledged(self) -> bool:
        """Take one answer; false for that of a repeat."""
        verb, recvid, ok = self.sock.recv(2048).split()
        if (verb, ok) != (b"RECEIVE", b"OK"):
            raise WrongResultError(f"{verb!r} {ok!r} is no acknowledgement")
        return self.open.pop(int(recvid), None) is not None

    def repeat(self) -> int:
        for datagram in self.open.values():
            self.sock.send(datagram)
        return len(self.open)
