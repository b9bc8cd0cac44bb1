"""Whether the bridge works, for whoever is on the same machine: a Unix socket beside the store, and
`goip-bridge health`, which asks it.

The broker is not asked: a second client there, with the bridge's own user, may push the bridge out, and a bridge that
waits for its broker would look dead. Who connects to the socket is told at once and asks nothing, so nobody can keep it
busy; a thread answers, also while the event loop waits for the disk, and then says that it does.
"""

import argparse
import contextlib
import hashlib
import json
import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ..config import settings as configuration
from ..config.settings import ConfigError
from ..system.terminal import complain, seconds

TIMEOUT_S = 5.0
AGAIN_S = 0.1
"A bridge that does not work is asked again after this long."
LONGEST_ADDRESS = 100
"Bytes: Linux takes 107 for the address of a Unix socket, others fewer."
LONGEST_NAME = 64
RETRY_S = 10.0
"A socket that can't be made, on a full disk or where a folder takes none, is tried again."
ANSWER_S = 1.0
"For an answer of a few hundred bytes to find room in the kernel."
LONGEST_ANSWER = 64 << 10

log = logging.getLogger(__name__)

Checks = dict[str, dict[str, Any]]
"`ok` and `reason` by what was looked at."


def socket_path(store: Path) -> Path:
    """Where the socket of a bridge with this store is."""
    name = f"{store.name}-health"
    if len(os.fsencode(name)) > LONGEST_NAME:
        name = f"{hashlib.blake2b(os.fsencode(store.name), digest_size=12).hexdigest()}-health"
    return store.absolute().with_name(name)


@contextlib.contextmanager
def _address(path: Path) -> Iterator[str]:
    """A short name for a socket: where the whole path is too long, by way of its folder's descriptor."""
    if len(os.fsencode(path)) <= LONGEST_ADDRESS:
        yield str(path)
        return
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)


# -- the bridge's side -----------------------------------------------------------------------------------------------


class HealthSocket:
    """Tells whoever may connect how the bridge is. It takes the place of a socket that an earlier run left behind, so
    only who has the store may make one.
    """

    def __init__(self, path: Path, checks: Callable[[], Checks]) -> None:
        """`checks` is called from another thread, and only reads."""
        self._path = path
        self._checks = checks
        self._closing = threading.Event()
        self._listener: socket.socket | None = None
        self._thread = threading.Thread(target=self._run, name="health", daemon=True)

    def start(self) -> None:
        """Begin to answer. What goes wrong is logged, tried again, and keeps nobody from serving gateways."""
        with contextlib.suppress(OSError):
            self._listener = self._open()
        self._thread.start()

    def close(self) -> None:
        """No socket is left behind."""
        self._closing.set()
        if (listener := self._listener) is not None:
            with contextlib.suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)  # wakes `accept`
        self._thread.join(ANSWER_S)
        with contextlib.suppress(OSError):
            self._path.unlink()

    def _run(self) -> None:
        said = False
        while not self._closing.is_set():
            try:
                listener = self._listener = self._listener or self._open()
                self._answer_all(listener)
            except OSError as error:
                self._listener = None
                if not said and not self._closing.is_set():
                    said = True
                    log.warning("%s: goip-bridge health can't ask here: %s", self._path, error.strerror)
                self._closing.wait(RETRY_S)

    def _open(self) -> socket.socket:
        """It is nobody else's before it listens, and in its place at once."""
        new = self._path.with_name(f"{self._path.name}.new")
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            new.unlink(missing_ok=True)
            with _address(new) as address:
                listener.bind(address)
            new.chmod(0o600)
            listener.listen(16)
            new.replace(self._path)
        except OSError:
            listener.close()
            raise
        return listener

    def _answer_all(self, listener: socket.socket) -> None:
        with listener:
            while not self._closing.is_set():
                connection, _ = listener.accept()
                connection.settimeout(ANSWER_S)
                with connection, contextlib.suppress(OSError):
                    connection.sendall(self._answer())

    def _answer(self) -> bytes:
        """Nothing is locked: a look while the bridge changes may fail, and then whoever asks asks again."""
        try:
            return json.dumps(self._checks()).encode()
        except Exception:  # or nobody would be answered any more
            log.debug("a look at the bridge failed", exc_info=True)
            return b""


# -- the command -----------------------------------------------------------------------------------------------------


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `goip-bridge health`."""
    parser.description = (
        "Exit status 0 when the bridge of this configuration works on this machine, or is on standby for another one; "
        "else 1 and one line that says why. It asks the bridge itself, as the user that runs it, and not the broker."
    )
    parser.add_argument("--config", type=Path, metavar="FILE", help="default: $GOIP_CONFIG, then ./config.yaml")
    parser.add_argument("--url", help=argparse.SUPPRESS)  # of older versions, which asked the broker
    parser.add_argument(
        "--timeout", type=seconds, default=TIMEOUT_S, metavar="S", help=f"wait S seconds for it (default {TIMEOUT_S:g})"
    )


def main(args: argparse.Namespace) -> int:
    """Ask until it works or the time is over."""
    try:
        store = configuration.load(args.config, os.environ).store.path
    except ConfigError as error:
        for fault in error.faults:
            complain(fault)
        return 2
    deadline = time.monotonic() + args.timeout
    while (reason := trouble(store, max(AGAIN_S, deadline - time.monotonic()))) is not None:
        if time.monotonic() + AGAIN_S >= deadline:
            complain(f"not healthy: {reason}")
            return 1
        time.sleep(AGAIN_S)
    return 0


def trouble(store: Path, within_s: float) -> str | None:
    """Why the bridge with this store does not work; None when it does."""
    path = socket_path(store)
    try:
        checks = ask(path, within_s)
    except FileNotFoundError:
        return f"no bridge runs with the store {store.absolute()}: {path.name} is not there; is store.path the same?"
    except ConnectionRefusedError:
        return f"no bridge runs with the store {store.absolute()}: it has ended, or is being started"
    except PermissionError:
        return f"{path}: only the user that runs the bridge, and root, may ask"
    except TimeoutError:
        return f"the bridge does not answer within {within_s:.1f} s: it hangs, or was stopped"
    except (OSError, ValueError) as error:
        return f"{path}: {error}"
    return "; ".join(str(check["reason"]) for check in checks.values() if not check["ok"]) or None


def ask(path: Path, within_s: float) -> Checks:
    """What the bridge says of itself. Raises OSError, and ValueError for what is no answer."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as asking:
        asking.settimeout(within_s)
        with _address(path) as address:
            asking.connect(address)
        answer = b""
        while len(answer) < LONGEST_ANSWER and (more := asking.recv(4096)):
            answer += more
    checks = json.loads(answer)
    if not isinstance(checks, dict) or not all(isinstance(one, dict) and "ok" in one for one in checks.values()):
        raise ValueError("this is not the socket of a bridge")
    return checks
