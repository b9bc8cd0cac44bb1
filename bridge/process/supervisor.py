"""`goip-bridge run`: a small process that starts the bridge, holds its UDP socket, and starts it again when it dies.

The bridge itself (bridge/process/worker.py) is the worker. It binds the socket and hands a duplicate up when it
serves; every later worker gets that one, and reads what gateways sent while none ran. One that hangs is killed. Nothing
of the bridge is imported here, so that this process stays small and has little that could fail.

Supervisor and worker have a pair of stream sockets between them, and say all they have to say in single bytes:

- down, once, at the start: with the held socket, if there is one;
- up, every few seconds while the worker serves, from within its event loop: it is well. The first one comes with the
  socket that it bound, if none was held. A worker that falls silent hangs;
- end of file: the other side is gone.

Under systemd's socket activation systemd does all of this, and the bridge runs in this process.
"""

import argparse
import contextlib
import logging
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from ..system.terminal import ControllingTerminal, LogFormatter
from .keeper import CLOSED, RESTART, Keeper, Supervised, Systemd, UnusableSocketError, receive_socket, send_socket

log = logging.getLogger(__name__)

STOP_S = 9.0
"How long a worker may take to stop before it is killed: Docker kills everything after 10 s."
LONGEST_PAUSE_S = 60.0
STEADY_S = 10.0
"After this long without dying, the next restart comes without delay again."
HANG_S = 60.0
"""A worker that has served and says nothing for so long hangs. Generous: its event loop stands still while it waits for
the disk, and a worn SD card may take many seconds for a sync. Before it serves it has all the time it needs."""
LOOKS = 12
"How often we look at the worker in that time."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `goip-bridge run`."""
    parser.add_argument("--config", type=Path, metavar="FILE", help="configuration file (default: ./config.yaml)")
    parser.add_argument("-v", "--verbose", action="store_true", help="log every datagram, by its kind")
    parser.add_argument(
        "--no-supervisor",
        action="store_true",
        help="run the bridge in this process: nothing starts it again, and nothing holds its UDP socket meanwhile",
    )
    parser.add_argument("--worker-fd", type=int, help=argparse.SUPPRESS)


def main(args: argparse.Namespace) -> int:
    """Run until SIGTERM or SIGINT."""
    set_up_logging(verbose=args.verbose)
    if args.worker_fd is not None:
        return _serve(args, Supervised(args.worker_fd))
    try:
        systemd = Systemd(os.environ)
    except UnusableSocketError as error:
        log.error("%s", error)
        return 2
    if args.no_supervisor or systemd.held is not None:
        return _serve(args, systemd)
    # As we were started, whether as a module or as a script, and with the interpreter's own options.
    return Supervisor([sys.executable, *sys.orig_argv[1:]], systemd).run()


def set_up_logging(*, verbose: bool = False) -> None:
    """To stderr; systemd and containers add the time themselves, but people at a terminal have only this."""
    level = logging.DEBUG if verbose else logging.INFO
    handler = logging.StreamHandler()
    handler.setFormatter(LogFormatter("%(asctime)s %(levelname)-7s %(message)s"))
    logging.basicConfig(level=level, handlers=[handler])
    logging.raiseExceptions = False  # a log that can't be written, on a full disk, is no reason for a traceback in it


def _serve(args: argparse.Namespace, keeper: Keeper) -> int:
    from . import worker  # here: it is large, and the supervisor does without

    return worker.main(args, keeper)


# -- the supervisor ----------------------------------------------------------------------------------------------


class Supervisor:
    """Starts `command` with `--worker-fd N` again and again."""

    def __init__(
        self,
        command: Sequence[str],
        systemd: Systemd | None = None,
        *,
        stop_s: float = STOP_S,
        hang_s: float = HANG_S,
        longest_pause_s: float = LONGEST_PAUSE_S,
        steady_s: float = STEADY_S,
    ) -> None:
        self._command = list(command)
        self._systemd = systemd or Systemd({})
        self._stop_s = stop_s
        self._hang_s = hang_s
        self._look_s = min(hang_s / LOOKS, self._systemd.alive_s or hang_s)
        self._longest_pause_s = longest_pause_s
        self._steady_s = steady_s
        self._held: socket.socket | None = None
        self._pid: int | None = None
        self._code = 0
        "How the last worker ended: its exit code, or the signal as a negative number."
        self._pair: socket.socket | None = None
        self._serving = False
        self._silence = 0.0
        "For how long we have listened to the worker, and heard nothing."
        self._ever_served = False
        self._reload = False
        "SIGHUP came while nobody could take it."
        self._kill_at: float | None = None
        "Set when we were told to stop."
        self._killed = False
        self._terminal = ControllingTerminal()  # before SIGHUP gets a handler
        self._looked = time.monotonic()
        self._wakeup = _wake_up_on(signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD)

    def run(self) -> int:
        """Until SIGTERM or SIGINT, until the terminal is closed, or until the first worker ends before it served; the
        exit code.
        """
        pauses = _pauses(self._longest_pause_s)
        while True:
            started = time.monotonic()
            self._start()
            while self._pid is not None:
                self._attend(None if self._killed else self._kill_at)
                if self._kill_at is not None and time.monotonic() >= self._kill_at:
                    self._kill()
                elif self._kill_at is None and self._serving and self._silence >= self._hang_s:
                    self._kill_hanging()
            if self._kill_at is not None:
                return self._stopped()
            if not self._ever_served:
                return self._never_served()
            if time.monotonic() - started >= self._steady_s:
                pauses = _pauses(self._longest_pause_s)
            if not self._pause(next(pauses)):
                return 0

    def _pause(self, seconds: float) -> bool:
        """Say why and wait; false when we were told to stop. SIGHUP ends it: what was wrong may have been mended."""
        if self._code == RESTART:
            log.info("starting the bridge again, as asked, %s. The UDP socket is held", _when(seconds))
        else:
            log.error(
                "the bridge ended with %s; starting it again %s. The UDP socket is held: what gateways send meanwhile "
                "is read then",
                _how(self._code),
                _when(seconds),
            )
        until = time.monotonic() + seconds
        while self._kill_at is None and not self._reload and time.monotonic() < until:
            self._attend(until)
        return self._kill_at is None

    # -- the worker

    def _start(self) -> None:
        """Start a worker; one that can't be started counts as one that ended."""
        self._serving = self._reload = False
        self._pair, theirs = socket.socketpair()
        with theirs:
            self._pair.setblocking(False)
            theirs.set_inheritable(True)
            try:
                self._pid = os.posix_spawn(
                    self._command[0],
                    [*self._command, "--worker-fd", str(theirs.fileno())],
                    os.environ,
                    setpgroup=0,  # Ctrl-C is for us; the worker hears of it once, from us
                    setsigdef=[signal.SIGPIPE, signal.SIGXFSZ],  # Python ignores these
                )
            except OSError as error:
                log.error("cannot start %s: %s", self._command[0], error.strerror)
                self._ended(1)
                return
        with contextlib.suppress(OSError):  # it is gone already; SIGCHLD tells
            send_socket(self._pair, self._held)

    def _attend(self, until: float | None) -> None:
        """Wait for a signal, the worker's word or the next look, and act; `until` is a time by the monotonic clock."""
        began = time.monotonic()
        timeout = self._look_s if until is None else max(0.0, min(self._look_s, until - began))
        select.select([self._wakeup, *([self._pair] if self._pair is not None else [])], [], [], timeout)
        # A look counts as one, however long it took: when we were stopped, or the whole machine, so was the worker, and
        # it shall have its time to speak. (While the machine is suspended, this clock stands still.)
        self._silence += min(time.monotonic() - began, self._look_s)
        self._systemd.alive()
        self._listen()
        with contextlib.suppress(BlockingIOError):
            for number in self._wakeup.recv(4096):
                self._take(signal.Signals(number))
        if time.monotonic() - self._looked >= ControllingTerminal.LOOK_S:
            self._looked = time.monotonic()
            if self._terminal.look():
                self._stop(CLOSED)

    def _take(self, number: signal.Signals) -> None:
        if number == signal.SIGCHLD:
            self._reap()
        elif number == signal.SIGHUP and self._terminal.hung_up():
            self._stop(CLOSED)
        elif number == signal.SIGHUP:
            self._reload = not (self._serving and self._signal(number))
        elif number in (signal.SIGTERM, signal.SIGINT):
            self._stop()

    def _stop(self, why: str = "") -> None:
        if self._kill_at is None:
            if why:
                log.warning("%s", why)
            self._systemd.notify("STOPPING=1")
            self._kill_at = time.monotonic() + self._stop_s
            self._signal(signal.SIGTERM)

    def _reap(self) -> None:
        """All that ended: as process 1 of a container we inherit every orphan."""
        with contextlib.suppress(ChildProcessError):
            while (ended := os.waitpid(-1, os.WNOHANG))[0] != 0:
                if ended[0] == self._pid:
                    self._ended(os.waitstatus_to_exitcode(ended[1]))

    def _listen(self) -> None:
        """Hear whether the worker serves and is well."""
        if self._pair is None:
            return
        try:
            word, sent = receive_socket(self._pair)
        except BlockingIOError:
            return
        except OSError:  # a worker that died without reading our byte resets the connection
            word, sent = b"", None
        if not word:
            self._pair.close()
            self._pair = None
            return
        self._held = sent or self._held
        self._silence = 0.0
        if self._serving:
            return
        self._serving = self._ever_served = True
        self._systemd.notify("READY=1")
        if self._reload and self._signal(signal.SIGHUP):
            self._reload = False

    def _ended(self, code: int) -> None:
        self._listen()  # its last word
        if self._pair is not None:
            self._pair.close()
            self._pair = None
        self._pid = None
        self._serving = False
        self._code = code

    def _signal(self, number: signal.Signals) -> bool:
        if self._pid is None:
            return False
        os.kill(self._pid, number)  # never another process: its number is free only after it was reaped
        return True

    def _kill(self) -> None:
        if not self._killed:
            self._killed = True
            self._signal(signal.SIGKILL)
            log.error("the bridge did not stop within %g s; killing it", self._stop_s)

    def _kill_hanging(self) -> None:
        """Only its death, which may have to wait for its disk, lets another one begin: they would share the store."""
        self._signal(signal.SIGKILL)  # first: the log may be what it hangs on
        self._serving = False
        log.error(
            "the bridge hangs: it gave no sign of life for %g s. Killing it, to start it again when it is dead",
            self._hang_s,
        )

    # -- the end

    def _stopped(self) -> int:
        # A SIGTERM that comes before the worker has its handler ends it as well, and as cleanly.
        if self._code in (0, RESTART, -signal.SIGTERM):
            return 0
        if not self._killed:
            log.error("the bridge ended with %s while it was stopping", _how(self._code))
        return max(self._code, 1)

    def _never_served(self) -> int:
        if self._code < 0:
            log.error("the bridge ended with %s", _how(self._code))
            return 1
        return self._code  # the worker has said why


def _wake_up_on(*numbers: signal.Signals) -> socket.socket:
    """A socket from which the numbers of these signals can be read. Handlers, because process 1 has no defaults."""
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    theirs.setblocking(False)
    signal.set_wakeup_fd(theirs.detach(), warn_on_full_buffer=False)
    for number in numbers:
        signal.signal(number, lambda *_: None)
    return ours


def _pauses(longest: float) -> Iterator[float]:
    yield 0.0
    pause = 1.0
    while True:
        yield min(pause, longest)
        pause = min(2 * pause, longest)


def _when(seconds: float) -> str:
    return f"in {seconds:g} s" if seconds else "now"


def _how(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    try:
        return f"signal {-code} ({signal.Signals(-code).name})"
    except ValueError:  # a realtime signal
        return f"signal {-code}"
