"""`goip-bridge doctor` finds what is wrong and says what to do."""

import asyncio
import contextlib
import os
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from paho.mqtt import publish
from test_send import Installation, cli, environment

from bridge.cli import doctor
from bridge.cli.doctor import Report, examine_host
from bridge.config.settings import Settings
from bridge.store.database import MIGRATIONS, Store
from broker_fixture import StartBroker
from brokers import Mosquitto, free_port
from harness import watching


@pytest.fixture(scope="module")
def installation(tmp_path_factory: pytest.TempPathFactory, start_broker: StartBroker) -> Iterator[Installation]:
    folder = tmp_path_factory.mktemp("installation")
    with start_broker(folder) as broker, Installation(folder, broker, lines=2) as running:
        yield running


def problems(result: subprocess.CompletedProcess[str]) -> list[str]:
    assert "Traceback" not in result.stderr
    return [line.split(maxsplit=1)[1] for line in result.stdout.splitlines() if line.startswith("problem ")]


# -- everything together


def test_a_sound_installation_has_no_problem(installation):
    result = installation.cli("doctor")
    assert problems(result) == []
    assert (result.returncode, result.stderr) == (0, "")
    assert "is in use by a running bridge" in result.stdout
    assert "lines: 2 of 2 online and well" in result.stdout
    assert f"configuration: {installation.folder}/config.yaml: 2 lines, base topic goip" in result.stdout
    assert "acl: may publish and subscribe what the bridge needs" in result.stdout
    assert result.stdout.endswith("no problem\n")


async def test_it_leaves_nothing_on_the_broker(installation):
    await asyncio.to_thread(installation.cli, "doctor")
    async with watching(installation.broker, "#") as watcher:
        await watcher.publish("end", "of what is retained")
        await watcher.until("end")
    topics = {seen.topic for seen in watcher.seen if seen.retain}
    assert "goip/bridge/availability" in topics
    assert not any("doctor" in topic for topic in topics)


def test_a_line_the_bridge_does_not_know_and_one_never_heard(tmp_path, start_broker):
    with start_broker(tmp_path) as broker, Installation(tmp_path, broker, lines=2, simulated=1) as running:
        config = (tmp_path / "config.yaml").read_text().replace("lines:", "lines:\n  new: {password: secret-1}")
        (tmp_path / "config.yaml").write_text(config)
        result = running.cli("doctor")
    assert result.returncode == 1
    assert len(problems(result)) == 2, result.stdout
    unknown, silent = problems(result)
    assert unknown.startswith("line new: is configured, but the running bridge does not know it")
    assert silent.startswith("line goip2: never heard of. On the web page")
    assert f"SMS Server Port {running.udp_port}, SMS Client ID goip2" in silent
    assert "password2" not in result.stdout
    assert "secret-1" not in result.stdout


def test_a_retained_command_is_found_where_no_bridge_removes_it(tmp_path, start_broker):
    with start_broker(tmp_path) as broker:
        where = {"hostname": broker.host, "port": broker.port}
        publish.single("goip/goip1/cmd/module/reboot", "{}", 1, True, **where)
        publish.single("goip/bridge/availability", "offline", 1, True, **where)
        result = cli(tmp_path, "doctor", "--url", broker.url)
    assert result.returncode == 1
    away, retained = problems(result)
    assert away.startswith("bridge: not running: goip/bridge/availability says offline")
    assert "mosquitto_pub -r -n -t 'goip/goip1/cmd/module/reboot'" in retained


@pytest.mark.broker("binary")
def test_missing_rights_are_named(tmp_path):
    acl = "user some\ntopic read #\ntopic write goip/bridge/cmd/#\ntopic write homeassistant/#\n"
    with Mosquitto(tmp_path, passwords={"some": "thing"}, acl=acl) as broker:
        url = f"mqtt://some:thing@127.0.0.1:{broker.port}"
        result = cli(tmp_path, "doctor", "--timeout", "1", "--url", url)
        assert "publish: the broker refuses goip/bridge/result/doctor (reason code 135)" in result.stdout
        assert result.returncode == 1
        assert "acl: may" not in result.stdout
        wrong = cli(tmp_path, "doctor", "--url", url.replace("thing", "wrong"))
    assert wrong.returncode == 1
    assert problems(wrong)[0].startswith(f"mqtt: mqtt://127.0.0.1:{broker.port}: the broker refused the connection")
    assert "wrong" not in wrong.stdout


@pytest.mark.broker("binary")
def test_not_being_allowed_to_read_commands_is_noticed(tmp_path):
    acl = "user some\ntopic write #\ntopic read goip/bridge/availability\n"
    with Mosquitto(tmp_path, passwords={"some": "thing"}, acl=acl) as broker:
        result = cli(tmp_path, "doctor", "--timeout", "1", "--url", f"mqtt://some:thing@127.0.0.1:{broker.port}")
    assert any("does not reach us" in problem for problem in problems(result))


def test_an_invalid_configuration_is_exit_code_2(tmp_path):
    (tmp_path / "config.yaml").write_text("linse: {}\n")
    result = cli(tmp_path, "doctor")
    assert result.returncode == 2
    assert problems(result) == ['configuration: config.yaml:1: linse: unknown key; did you mean "lines"?']


def test_a_broker_that_is_not_there_is_a_problem_with_advice(tmp_path):
    port = free_port()
    result = cli(tmp_path, "doctor", "--url", f"mqtt://127.0.0.1:{port}")
    assert result.returncode == 1
    assert problems(result)[-1].startswith(f"mqtt: mqtt://127.0.0.1:{port}: cannot connect")


# -- this machine, without a broker


def examine(tmp_path: Path, **config: object) -> Report:
    settings = Settings.model_validate(
        {"store": {"path": tmp_path / "s.db"}, "udp": {"listen": "127.0.0.1:0"}} | config
    )
    report = Report()
    examine_host(settings, report, "config.yaml")
    return report


def problem_texts(report: Report) -> list[str]:
    return [f"{one.what}: {one.text}" for one in report.findings if one.level == "problem"]


def test_a_store_held_by_a_bridge_is_recognised_and_not_disturbed(tmp_path):
    # In another process: locks of the same one do not exclude each other.
    holder = (
        "import sys; from pathlib import Path; from bridge.store.database import Store\n"
        "store = Store(Path(sys.argv[1])); print('held', flush=True); sys.stdin.read()\n"
        "with store.transaction(): store.put('key', 1)\n"
        "store.close()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", holder, str(tmp_path / "s.db")],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment(),
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == b"held\n"
    report = examine(tmp_path)
    process.communicate(timeout=30)
    assert process.returncode == 0
    assert any("in use by a running bridge" in one.text for one in report.findings)
    # A bridge that runs and does not listen where the configuration says is worth a word.
    assert problem_texts(report) == ["udp.listen: a bridge runs, but not on UDP 127.0.0.1:0"]


def test_a_store_at_rest_is_examined_and_nothing_is_left_beside_it(tmp_path):
    Store(tmp_path / "s.db").close()
    before = sorted(tmp_path.iterdir())
    report = examine(tmp_path)
    assert problem_texts(report) == []
    assert any("is sound" in one.text for one in report.findings)
    assert sorted(tmp_path.iterdir()) == before


def test_a_store_that_is_none_or_too_new_is_a_problem(tmp_path):
    (tmp_path / "s.db").write_bytes(b"not a database, but long enough to be looked at" * 100)
    assert "is not a store" in problem_texts(examine(tmp_path))[0]
    (tmp_path / "s.db").unlink()
    with contextlib.closing(sqlite3.connect(tmp_path / "s.db")) as db:
        db.execute(f"PRAGMA user_version = {len(MIGRATIONS) + 1}")
    assert "newer version" in problem_texts(examine(tmp_path))[0]


def test_the_database_of_another_program_is_a_problem(tmp_path):
    with contextlib.closing(sqlite3.connect(tmp_path / "s.db")) as db:
        db.execute("CREATE TABLE line (x)")
    (found,) = problem_texts(examine(tmp_path))
    assert "s.db is the database of another program" in found


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_is_not_writable_is_a_problem(tmp_path):
    tmp_path.chmod(0o500)
    assert "not writable" in problem_texts(examine(tmp_path))[0]


def test_a_udp_port_of_another_program_is_a_problem(tmp_path):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
        taken.bind(("127.0.0.1", 0))
        listen = f"127.0.0.1:{taken.getsockname()[1]}"
        [found] = problem_texts(examine(tmp_path, udp={"listen": listen}))
        assert found.startswith(f"udp.listen: UDP {listen} is in use by process {os.getpid()} (")


def test_an_address_of_another_machine_is_a_problem(tmp_path):
    assert (
        "cannot listen on UDP 192.0.2.1:44444" in problem_texts(examine(tmp_path, udp={"listen": "192.0.2.1:44444"}))[0]
    )


def test_a_clock_that_was_never_set_is_a_problem(tmp_path, monkeypatch):
    monkeypatch.setattr(doctor.time, "time", lambda: 86400.0)
    assert problem_texts(examine(tmp_path)) == ["clock: this machine's clock is not set"]


def test_no_broker_to_embed_is_a_problem(tmp_path, monkeypatch):
    monkeypatch.setattr(doctor, "find_mosquitto", lambda: None)
    report = examine(tmp_path)
    assert any("the bridge starts amqtt" in one.text for one in report.findings)
    monkeypatch.setattr(doctor.importlib.util, "find_spec", lambda _: None)
    assert problem_texts(examine(tmp_path)) == ["mqtt.url: not set"]


@pytest.mark.parametrize(
    ("passwords", "found"),
    [
        (["1234"], "lines.l0.password: only a few digits, which can be guessed: l0"),
        (["123456", "a1234567", "00000000001"], "passwords: only a few digits, which can be guessed: l0, l2"),
        (["1"] * 10, "passwords: only a few digits, which can be guessed: l0, l1, l2, l3, l4, l5, l6, l7 and 2 more"),
        (["password1", "123456789012"], None),
    ],
)
def test_passwords_of_a_few_digits_are_noted(tmp_path, passwords, found):
    report = examine(tmp_path, lines={f"l{n}": {"password": password} for n, password in enumerate(passwords)})
    notes = [f"{one.what}: {one.text}" for one in report.findings if one.level == "note" and "guessed" in one.text]
    assert notes == ([] if found is None else [found])
    assert not any(password in one.text + one.advice for one in report.findings for password in set(passwords) - {"1"})


def test_a_tcp_port_of_another_program_is_a_problem(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        listen = f"127.0.0.1:{taken.getsockname()[1]}"
        found = problem_texts(examine(tmp_path, http={"listen": listen}))
        holder = f"process {os.getpid()} ("
        assert any(one.startswith(f"http.listen: TCP {listen} is in use by {holder}") for one in found)
