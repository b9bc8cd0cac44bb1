"""What keeps the UDP socket while the bridge is started again, as the bridge sees it: its supervisor, or systemd."""

import contextlib
import os
import select
import signal
import socket
import sys
from collections.abc import MutableMapping

ALIVE_S = 5.0
"How often a worker says that it is well."
RESTART = 75
"Exit code of a worker that is to be started again because somebody asked for it (EX_TEMPFAIL of sysexits.h)."
CLOSED = "the terminal was closed: stopping. To go on without one, run it as a service, or with nohup"
SYSTEMD_FIRST_FD = 3
"SD_LISTEN_FDS_START."
NOTIFY_S = 5.0
"For systemd to take notice: it may be busy, but must not stop us for ever."


def send_socket(pair: socket.socket, shared: socket.socket | None) -> None:
    """A sign of life, and perhaps a socket with it."""
    if shared is None:
        pair.send(b".")
    else:
        socket.send_fds(pair, [b"."], [shared.fileno()])


def receive_socket(pair: socket.socket) -> tuple[bytes, socket.socket | None]:
    """Signs of life, and the socket that came with them."""
    word, descriptors, _, _ = socket.recv_fds(pair, 4096, 1)
    for descriptor in descriptors:
        os.set_inheritable(descriptor, False)
        return word, socket.socket(fileno=descriptor)
    return word, None


class Supervised:
    """The supervisor, from below. A worker must not outlive it: two bridges would share one socket and one store."""

    restarts = True
    "A bridge that ends with `RESTART` is started again."
    alive_s: float | None = ALIVE_S
    "How often to call `alive`, once the bridge serves; None for never."

    def __init__(self, fd: int) -> None:
        self.lifeline: socket.socket | None = socket.socket(fileno=fd)
        "Readable when the supervisor is gone."
        self.lifeline.set_inheritable(False)
        _die_with_parent()
        word, self.held = receive_socket(self.lifeline)
        "The socket that an earlier worker bound."
        # It may have died before it could take us along. A dying process closes its files before it tells its children.
        if not word or select.select([self.lifeline], [], [], 0)[0]:
            os._exit(1)

    def serving(self, bound: socket.socket) -> None:
        """The bridge serves, on this socket."""
        assert self.lifeline is not None
        with contextlib.suppress(OSError):  # it is gone: so are we, soon
            send_socket(self.lifeline, bound if self.held is None else None)

    def alive(self) -> None:
        """The bridge serves, and is well. Never waits: what finds no room is one of many that nobody has read yet."""
        assert self.lifeline is not None
        with contextlib.suppress(OSError):
            self.lifeline.send(b".", socket.MSG_DONTWAIT)


class UnusableSocketError(Exception):
    """What systemd passed is not a UDP socket; the text says what to do."""


class Systemd:
    """systemd, or whatever else speaks its protocols, or nobody: what the environment says.

    The variables are taken out of it: they are for us, not for the processes that we start.
    """

    lifeline = None

    def __init__(self, environment: MutableMapping[str, str]) -> None:
        self._notify_path = environment.pop("NOTIFY_SOCKET", "")
        self.restarts = bool(self._notify_path)
        "Our unit says Restart=always."
        watchdog_s = _watchdog_s(environment)
        self.alive_s = watchdog_s if self._notify_path else None
        "How often to call `alive`; None for never."
        for_us = environment.pop("LISTEN_PID", "") == str(os.getpid())
        count = environment.pop("LISTEN_FDS", "")
        environment.pop("LISTEN_FDNAMES", None)
        self.held = _passed_socket(int(count)) if for_us and count.isdecimal() and count != "0" else None
        "The socket of the .socket unit."

    def serving(self, _bound: socket.socket) -> None:
        """The bridge serves."""
        self.notify("READY=1")

    def alive(self) -> None:
        """The bridge is well (WatchdogSec=). Never waits: the next time will do as well."""
        if self.alive_s is not None:
            self.notify("WATCHDOG=1", 0)

    def notify(self, state: str, longest_s: float = NOTIFY_S) -> None:
        """Tell the service manager, where it wants to know (Type=notify); wait so long if it is busy."""
        if not self._notify_path:
            return
        path = self._notify_path
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.settimeout(longest_s)
            sock.sendto(state.encode(), "\0" + path[1:] if path.startswith("@") else path)


Keeper = Supervised | Systemd


def _watchdog_s(environment: MutableMapping[str, str]) -> float | None:
    """Half of what systemd waits for a sign of life, as its manual advises; None if it waits for none of ours."""
    interval = environment.pop("WATCHDOG_USEC", "")
    if environment.pop("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()) or not interval.isdecimal():
        return None
    return int(interval) / 1e6 / 2 or None


def _passed_socket(count: int) -> socket.socket:
    if count > 1:
        raise UnusableSocketError(
            f"systemd passes {count} sockets, and the bridge can use one: leave one ListenDatagram= in its .socket unit"
        )
    try:
        passed = socket.socket(fileno=SYSTEMD_FIRST_FD)
    except OSError as error:
        raise UnusableSocketError(f"what systemd passes is not a socket: {error.strerror}") from None
    if passed.type != socket.SOCK_DGRAM or passed.family not in (socket.AF_INET, socket.AF_INET6):
        raise UnusableSocketError(
            "what systemd passes is not a UDP socket: write ListenDatagram= with a port into the .socket unit"
        )
    passed.set_inheritable(False)
    return passed


def _die_with_parent() -> None:
    """Have the kernel kill us when the supervisor dies, however busy we are."""
    if sys.platform == "linux":
        import ctypes  # here: the supervisor does without

        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)
