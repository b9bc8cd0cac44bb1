"""Real brokers for the tests: mosquitto as a child process, amqtt (MQTT 3.1.1) in process."""

import contextlib
import getpass
import os
import shutil
import socket
import subprocess
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import outputs

START_TIMEOUT_S = 10.0
SERVER_NAME = "broker.test"
_given: set[int] = set()
may_start = True
"""Whether a test may start a mosquitto of its own: where pytest runs, only one with the mark `broker("binary")`, which
is skipped where there is none."""


def find_mosquitto() -> str | None:
    """The mosquitto binary; Debian keeps it in /usr/sbin, which is not on everyone's PATH. None where the tests are to
    do without (``GOIP_TEST_BROKER=embedded``).
    """
    if os.environ.get("GOIP_TEST_BROKER") == "embedded":
        return None
    return shutil.which("mosquitto") or shutil.which("mosquitto", path="/usr/sbin:/usr/local/sbin:/opt/homebrew/sbin")


def own_mosquitto(*, optional: bool = False) -> str:
    """The binary, for a test that starts one itself."""
    assert may_start or optional, 'a test that starts a mosquitto says so: @pytest.mark.broker("binary")'
    binary = find_mosquitto()
    assert binary is not None, "mosquitto is not installed"
    return binary


def free_port() -> int:
    """Never the same twice: the first may not be in use yet when the second is asked for."""
    while True:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = int(probe.getsockname()[1])
        if port not in _given:
            _given.add(port)
            return port


class Mosquitto:
    """A mosquitto with a plain listener on `port`, others on request, and everything it writes in `directory`.

    `config` is appended, so that it can set anything else. `optional`: whoever starts it takes another broker where
    there is no mosquitto. After `kill` or `terminate`, `start` brings it back on the same ports with the same
    persistence.
    """

    def __init__(
        self,
        directory: Path,
        config: str = "",
        *,
        persistence: bool = False,
        passwords: Mapping[str, str] | None = None,
        acl: str | None = None,
        tls: "Certificates | None" = None,
        unix: bool = False,
        websockets: bool = False,
        optional: bool = False,
    ) -> None:
        self.optional = optional
        self.directory = directory
        self.host = "127.0.0.1"
        self.port = free_port()
        self.tls_port = free_port() if tls is not None else None
        self.websockets_port = free_port() if websockets else None
        self.unix_path = directory / "mosquitto.sock" if unix else None
        self._log_path = directory / "mosquitto.log"
        self._process: subprocess.Popen[bytes] | None = None
        lines = [f"user {getpass.getuser()}", "connection_messages true"]
        if passwords is not None:
            lines += ["allow_anonymous false", f"password_file {_password_file(directory, passwords)}"]
        else:
            lines += ["allow_anonymous true"]
        if acl is not None:
            (directory / "acl").write_text(acl)
            (directory / "acl").chmod(0o600)
            lines += [f"acl_file {directory / 'acl'}"]
        if persistence:
            lines += ["persistence true", f"persistence_location {directory}/"]
            lines += ["autosave_on_changes true", "autosave_interval 1"]  # a kill loses nothing
        lines += [config, f"listener {self.port} {self.host}"]
        if tls is not None:
            lines += [f"listener {self.tls_port} {self.host}", f"cafile {tls.ca}", f"certfile {tls.server_cert}"]
            lines += [f"keyfile {tls.server_key}", "require_certificate true"]
        if websockets:
            lines += [f"listener {self.websockets_port} {self.host}", "protocol websockets"]
        if unix:
            lines += [f"listener 0 {self.unix_path}"]
        (directory / "mosquitto.conf").write_text("\n".join(lines) + "\n")
        outputs.show("mosquitto", lambda: self._process is not None, lambda: self.log)

    @property
    def log(self) -> str:
        """Everything it has written so far, over all its starts."""
        return self._log_path.read_text(errors="replace") if self._log_path.exists() else ""

    def start(self) -> None:
        """Returns when it accepts connections."""
        binary = own_mosquitto(optional=self.optional)
        with self._log_path.open("ab") as log:
            arguments = [binary, "-c", str(self.directory / "mosquitto.conf")]
            self._process = subprocess.Popen(arguments, stdout=log, stderr=subprocess.STDOUT)
        deadline = time.monotonic() + START_TIMEOUT_S
        while not self._accepts():
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.kill()
                raise RuntimeError(f"mosquitto did not start:\n{self.log}")
            time.sleep(0.01)

    def kill(self) -> None:
        """As a power cut would: nothing is saved, nobody is told."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def terminate(self) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait(START_TIMEOUT_S)
            self._process = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, _type: type[BaseException] | None, _value: BaseException | None, _tb: TracebackType | None
    ) -> None:
        self.kill()

    def _accepts(self) -> bool:
        for port in (self.port, self.tls_port, self.websockets_port):
            with socket.socket() as probe:
                if port is not None and probe.connect_ex((self.host, port)) != 0:
                    return False
        return True


def _password_file(directory: Path, passwords: Mapping[str, str]) -> Path:
    path = directory / "passwords"
    path.touch(0o600)
    for user, password in passwords.items():
        subprocess.run(["mosquitto_passwd", "-b", str(path), user, password], check=True, capture_output=True)
    return path


@dataclass(frozen=True, slots=True)
class Certificates:
    """PEM files of one authority; the server's certificate is for SERVER_NAME and nothing else."""

    ca: Path
    server_cert: Path
    server_key: Path
    client_cert: Path
    client_key: Path


def make_certificates(directory: Path) -> Certificates:
    _openssl(directory, "req -x509 -nodes -days 2 -subj /CN=test-ca -keyout ca.key -out ca.crt")
    for name, subject in (("server", SERVER_NAME), ("client", "bridge")):
        _openssl(directory, f"req -nodes -subj /CN={subject} -keyout {name}.key -out {name}.csr")
        (directory / f"{name}.ext").write_text(f"subjectAltName=DNS:{subject}\n")
        signing = f"x509 -req -days 2 -in {name}.csr -CA ca.crt -CAkey ca.key -CAcreateserial -extfile {name}.ext"
        _openssl(directory, f"{signing} -out {name}.crt", new_key=False)
    files = (directory / f for f in ("ca.crt", "server.crt", "server.key", "client.crt", "client.key"))
    return Certificates(*files)


def _openssl(directory: Path, arguments: str, *, new_key: bool = True) -> None:
    key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"] if new_key else []
    subprocess.run(["openssl", *arguments.split(), *key], cwd=directory, check=True, capture_output=True)


@contextlib.asynccontextmanager
async def amqtt_broker() -> AsyncIterator[int]:
    """A broker without MQTT 5; gives its port."""
    from amqtt.broker import Broker  # slow to import, and optional

    port = free_port()
    plugins = {"amqtt.plugins.authentication.AnonymousAuthPlugin": {"allow_anonymous": True}}
    broker = Broker({"listeners": {"default": {"type": "tcp", "bind": f"127.0.0.1:{port}"}}, "plugins": plugins})
    await broker.start()
    try:
        yield port
    finally:
        await broker.shutdown()
