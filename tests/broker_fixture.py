"""The broker that the tests talk to, and a report that says which one it was.

The first of these that is there:

1. ``GOIP_TEST_BROKER=host:port``, a broker of your own (with the users of ``mosquitto/acl`` when
   ``GOIP_TEST_BROKER_PASSWORD``, one password for all of them, is set; else without login),
2. the ``mosquitto`` binary, with the configuration and the access rules of this repository,
3. the ``eclipse-mosquitto:2`` image with the same files mounted, where Docker answers,
4. the embedded broker: MQTT 3.1.1, no roles.

``GOIP_TEST_BROKER=mosquitto``, ``docker`` or ``embedded`` insists on one of them. ``embedded`` also hides the binary:
the tests are those of a machine without mosquitto.

A test that needs more than a bare broker says so, ``@pytest.mark.broker("mqtt5", "roles")``, and is skipped out loud
where that is missing: ``mqtt5``; ``roles`` (users, passwords and rights as in ``mosquitto/acl``); ``binary`` (a
mosquitto binary to start, kill and restart, whichever broker the others use). A test that takes a broker from a fixture
of this module has the mark by itself, so that ``-m broker`` is every test that touches one.
"""

import asyncio
import base64
import contextlib
import functools
import getpass
import hashlib
import importlib.util
import os
import re
import secrets
import socket
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

import brokers
import outputs
from brokers import Mosquitto, find_mosquitto, free_port, own_mosquitto

ROLES = ("bridge", "reader", "sender", "admin", "homeassistant")
FEATURES = {"mqtt5", "roles", "binary"}
FIXTURES = {"broker", "start_broker", "run_mosquitto"}
"A test with one of these touches a broker."
StartBroker = Callable[[Path], contextlib.AbstractContextManager["Broker"]]
REPOSITORY = Path(__file__).resolve().parent.parent
IMAGE = "eclipse-mosquitto:2"


@dataclass(frozen=True, kw_only=True)
class Broker:
    """Where the broker listens, and how each role logs in."""

    kind: str
    "external, mosquitto, docker or embedded"
    host: str
    port: int
    passwords: Mapping[str, str] = field(default_factory=dict)
    "By role, which is the user name too; empty where the broker knows no users."

    @property
    def url(self) -> str:
        return f"mqtt://{self.host}:{self.port}"

    def login(self, role: str) -> dict[str, Any]:
        """The arguments of an ``aiomqtt.Client`` that connects as this role."""
        where = {"hostname": self.host, "port": self.port}
        return where | ({"username": role, "password": self.passwords[role]} if self.passwords else {})


# --- the choice ------------------------------------------------------------------------------------------------


@functools.cache
def choose_broker() -> tuple[str, str]:
    """The kind of broker, and why, without starting it."""
    wish = os.environ.get("GOIP_TEST_BROKER", "")
    if wish in ("mosquitto", "docker", "embedded"):
        return wish, "as GOIP_TEST_BROKER asks"
    if wish:
        return "external", f"GOIP_TEST_BROKER={wish}"
    if binary := find_mosquitto():
        return "mosquitto", binary
    if docker_answers():
        return "docker", f"{IMAGE}; no mosquitto binary"
    return "embedded", "neither a mosquitto binary nor Docker; MQTT 3.1.1, no roles"


def docker_answers() -> bool:
    if not importlib.util.find_spec("testcontainers"):
        return False
    import docker

    try:
        with contextlib.closing(docker.from_env(timeout=5)) as client:
            return bool(client.ping())
    except docker.errors.DockerException:
        return False


def features(kind: str) -> set[str]:
    have = {
        "external": {"mqtt5", "roles"} if os.environ.get("GOIP_TEST_BROKER_PASSWORD") else {"mqtt5"},
        "mosquitto": {"mqtt5", "roles"},
        "docker": {"mqtt5", "roles"},
        "embedded": set[str](),
    }[kind]
    return have | {"binary"} if find_mosquitto() else have


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "broker(*features): needs a broker with these: mqtt5, roles, binary")


def pytest_report_header() -> str:
    return "mqtt broker: {} ({})".format(*choose_broker())


@pytest.hookimpl(tryfirst=True)  # before -m chooses
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    kind, _ = choose_broker()
    for item in items:
        if not FIXTURES.isdisjoint(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.broker)
        needed = {feature for mark in item.iter_markers("broker") for feature in mark.args}
        if unknown := needed - FEATURES:
            raise pytest.UsageError(f"{item.nodeid}: no such broker feature: {', '.join(sorted(unknown))}")
        if missing := needed - features(kind):
            item.add_marker(pytest.mark.skip(reason=f"the broker ({kind}) lacks {', '.join(sorted(missing))}"))


@pytest.hookimpl(tryfirst=True)  # before its fixtures
def pytest_runtest_setup(item: pytest.Item) -> None:
    brokers.may_start = any("binary" in mark.args for mark in item.iter_markers("broker"))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Why tests were skipped, a line for each reason; and which broker it was."""
    skipped = terminalreporter.stats.get("skipped", [])
    if reasons := Counter(_reason(report) for report in skipped):
        terminalreporter.section("skipped")
        for reason, count in reasons.most_common():
            terminalreporter.line(f"{count:5d}  {reason}")
    terminalreporter.section("mqtt broker: {} ({})".format(*choose_broker()))


def _reason(report: pytest.TestReport | pytest.CollectReport) -> str:
    text = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    return text.removeprefix("Skipped: ")


# --- the brokers -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    """One broker for the whole run, retained messages and all: use line ids or base topics of your own."""
    start = {"external": external, "mosquitto": mosquitto, "docker": dockered, "embedded": embedded}
    kind, _ = choose_broker()
    with start[kind](tmp_path_factory.mktemp("broker")) as running:
        yield running


@pytest.fixture(scope="session")
def run_mosquitto() -> StartBroker:
    """Start the binary with the repository's files and its data in a directory; again with the same one to restart."""

    def start(directory: Path) -> contextlib.AbstractContextManager[Broker]:
        own_mosquitto()
        return mosquitto(directory)

    return start


@pytest.fixture(scope="session")
def start_broker() -> StartBroker:
    """Start a broker of the test's own, without users, its data in a directory: mosquitto, or the embedded one where
    there is no binary.
    """
    return embedded if find_mosquitto() is None else plain_mosquitto


@contextlib.contextmanager
def external(_: Path) -> Iterator[Broker]:
    host, _, port = os.environ["GOIP_TEST_BROKER"].rpartition(":")
    password = os.environ.get("GOIP_TEST_BROKER_PASSWORD")
    yield Broker(
        kind="external",
        host=host.strip("[]"),
        port=int(port),
        passwords=dict.fromkeys(ROLES, password) if password else {},
    )


@contextlib.contextmanager
def mosquitto(directory: Path) -> Iterator[Broker]:
    binary = find_mosquitto()
    assert binary, "no mosquitto binary"
    port, passwords = free_port(), make_passwords(directory / "passwd")
    configuration = directory / "mosquitto.conf"
    configuration.write_text(local_configuration(directory, port))
    with (directory / "log").open("ab") as log:
        process = subprocess.Popen([binary, "-c", str(configuration)], stdout=log, stderr=log)
    outputs.show("mosquitto", lambda: process.returncode is None, (directory / "log").read_text)
    try:
        wait_for_port("127.0.0.1", port, lambda: process.poll() is None, lambda: (directory / "log").read_text())
        yield Broker(kind="mosquitto", host="127.0.0.1", port=port, passwords=passwords)
    finally:
        process.terminate()
        process.wait(10)


def local_configuration(directory: Path, port: int) -> str:
    """The repository's configuration with another port and other paths, and nothing else changed."""
    text = (REPOSITORY / "mosquitto/mosquitto.conf").read_text()
    for setting, value in {
        "listener": f"{port} 127.0.0.1",
        "password_file": directory / "passwd",
        "acl_file": REPOSITORY / "mosquitto/acl",
        "persistence_location": f"{directory}/",
    }.items():
        text, count = re.subn(rf"(?m)^{setting} .*$", f"{setting} {value}", text)
        assert count == 1, f"mosquitto.conf has {count} lines with {setting}"
    return text + f"\nuser {getpass.getuser()}\n"  # root: don't become a user who can't read a temporary directory


@contextlib.contextmanager
def plain_mosquitto(directory: Path) -> Iterator[Broker]:
    with Mosquitto(directory, optional=True) as running:
        yield Broker(kind="mosquitto", host=running.host, port=running.port)


@contextlib.contextmanager
def dockered(directory: Path) -> Iterator[Broker]:
    from testcontainers.core.container import DockerContainer
    from testcontainers.core.wait_strategies import LogMessageWaitStrategy

    passwords = make_passwords(directory / "passwd")
    container = DockerContainer(IMAGE).with_exposed_ports(1883).waiting_for(LogMessageWaitStrategy("running"))
    container.with_volume_mapping(str(REPOSITORY / "mosquitto"), "/mosquitto/config", "ro")
    container.with_volume_mapping(str(directory / "passwd"), "/mosquitto/data/passwd", "ro")
    with container:
        host, port = container.get_container_host_ip(), int(container.get_exposed_port(1883))
        wait_for_port(host, port, lambda: True, lambda: str(container.get_logs()))
        yield Broker(kind="docker", host=host, port=port, passwords=passwords)


@contextlib.contextmanager
def embedded(directory: Path) -> Iterator[Broker]:
    """The bridge's own, as it is where there is no mosquitto binary, in a thread with an event loop."""
    from bridge.process.embedded_broker import EmbeddedBroker

    embedded_broker = EmbeddedBroker()
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    try:
        with mock.patch(
            "bridge.process.embedded_broker.find_mosquitto", return_value=None
        ):  # also when somebody insists on this one
            url = asyncio.run_coroutine_threadsafe(embedded_broker.start(directory, 0), loop).result(30)
        yield Broker(kind="embedded", host="127.0.0.1", port=int(url.rpartition(":")[2]))
    finally:
        asyncio.run_coroutine_threadsafe(embedded_broker.stop(), loop).result(30)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)


# --- helpers ---------------------------------------------------------------------------------------------------


def make_passwords(path: Path) -> dict[str, str]:
    """A password for each role, and the file that mosquitto_passwd would make of them."""
    passwords = {role: f"{role}-{secrets.token_urlsafe(12)}" for role in ROLES}
    path.write_text("".join(f"{role}:{mosquitto_hash(password)}\n" for role, password in passwords.items()))
    path.chmod(0o644)  # the broker in the container runs as a user of its own
    return passwords


def mosquitto_hash(password: str) -> str:
    """Mosquitto's "$7$": PBKDF2 with SHA-512, as mosquitto_passwd of 2.0 writes it."""
    salt, iterations = secrets.token_bytes(12), 101
    digest = hashlib.pbkdf2_hmac("sha512", password.encode(), salt, iterations)
    return f"$7${iterations}${base64.b64encode(salt).decode()}${base64.b64encode(digest).decode()}"


def wait_for_port(host: str, port: int, alive: Callable[[], bool], log: Callable[[], str], timeout: float = 15) -> None:
    deadline = time.monotonic() + timeout
    while alive() and time.monotonic() < deadline:
        with contextlib.suppress(OSError), socket.create_connection((host, port), timeout=1):
            return
        time.sleep(0.02)
    pytest.fail(f"the broker did not come up on {host}:{port}:\n{log()}")
