"""`schemas/`: in step with the models, true of what a running bridge publishes, and complete."""

import argparse
import asyncio
import contextlib
import json
from pathlib import Path
from typing import Any, get_args

import jsonschema
import pytest
import yaml

from bridge.app import bridge as app
from bridge.app.bridge import Bridge
from bridge.config.settings import BrokerUrl, Settings
from bridge.contract import payloads
from bridge.contract.commands import BRIDGE_COMMANDS, LINE_COMMANDS, CommandError, parse
from bridge.contract.payloads import KINDS, STATES
from bridge.goip import events
from bridge.mqtt.link import Incoming
from bridge.retained import topics as board
from bridge.schema import generator as schema
from bridge.sim.options import LineOptions
from bridge.sim.run import SimOptions, Simulator
from bridge.store.database import Store
from schema_check import SCHEMAS, read_schema, validate_published, validator

PUBLISHED = {kind.schema: model for model, kind in schema.PUBLISHED.items()}
COMMANDS = {schema.command_name(model): ("line", model) for model in LINE_COMMANDS.values()} | {
    schema.command_name(model, bridge=True): ("bridge", model) for model in BRIDGE_COMMANDS.values()
}
NAMES = [*PUBLISHED, *COMMANDS, "config"]


def example(name: str, number: int = 0) -> dict[str, Any]:
    found = read_schema(name)["examples"][number]
    assert isinstance(found, dict)
    return found


# --- the files -----------------------------------------------------------------------------------------------------


def test_the_files_are_in_step():
    assert schema.check(SCHEMAS) == [], "run: make schemas"
    assert {path.name for path in SCHEMAS.iterdir()} == {f"{name}.json" for name in NAMES} | {"asyncapi.yaml"}


def test_check_names_what_is_out_of_step_and_write_mends_it(tmp_path):
    schema.write(tmp_path)
    (tmp_path / "call.json").unlink()
    (tmp_path / "job.json").write_text("{}\n")
    (tmp_path / "cmd_gone.json").write_text(json.dumps({"$schema": schema.DIALECT, "$id": "cmd_gone.json"}))
    (tmp_path / "package.json").write_text("{}")
    assert [fault.rpartition("/")[2] for fault in schema.check(tmp_path)] == [
        "call.json: is missing",
        "job.json: is not what the models say",
        "cmd_gone.json: belongs to no model any more",
    ]
    schema.write(tmp_path)
    assert schema.check(tmp_path) == []
    assert (tmp_path / "package.json").exists(), "it was not ours"


def test_the_files_name_no_machine():
    for path in SCHEMAS.iterdir():
        text = path.read_text()
        assert text.endswith("\n")
        assert not text.endswith("\n\n")
        assert str(Path.home()) not in text
        assert str(SCHEMAS.parent) not in text


def run(*arguments: str) -> int:
    parser = argparse.ArgumentParser()
    schema.add_arguments(parser)
    return schema.main(parser.parse_args(arguments))


def test_the_command_lists_and_prints(capsys):
    assert run() == 0
    assert capsys.readouterr().out.split() == sorted([*NAMES, "asyncapi"])
    assert run("sms_in") == 0
    assert capsys.readouterr().out == (SCHEMAS / "sms_in.json").read_text()
    assert run("asyncapi") == 0
    assert capsys.readouterr().out == (SCHEMAS / "asyncapi.yaml").read_text()
    assert run("smsin") == 2
    assert capsys.readouterr().err == "there is no schema smsin; did you mean sms_in?\n"


def test_the_command_writes_and_checks(tmp_path, capsys):
    folder = tmp_path / "new"
    assert run("--check", str(folder)) == 1
    assert len(capsys.readouterr().err.splitlines()) == len(NAMES) + 2
    assert run("--write", str(folder)) == 0
    assert run("--check", str(folder)) == 0
    (tmp_path / "file").touch()
    assert run("--write", str(tmp_path / "file")) == 1
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_the_command_names_files_that_are_out_of_step_and_what_to_do(tmp_path, capsys):
    assert run("--write", str(tmp_path)) == 0
    (tmp_path / "call.json").unlink()
    assert run("--check", str(tmp_path)) == 1
    assert capsys.readouterr().err.splitlines() == [
        f"{tmp_path}/call.json: is missing",
        f"to mend: goip-bridge schema --write {tmp_path}",
    ]


# --- the schemas ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_a_schema_is_valid_and_described_and_so_are_its_examples(name):
    found = read_schema(name)
    jsonschema.Draft202012Validator.check_schema(found)
    assert found["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert found["$id"] == f"{name}.json"
    assert found["title"]
    assert found["description"]
    for key, value in found["properties"].items():
        described = value if "description" in value else found["$defs"][value["$ref"].rpartition("/")[2]]
        assert described["description"], key
    assert found["examples"]
    for one in found["examples"]:
        validator(name).validate(one)


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_field_of_a_published_payload_is_required_and_additions_are_allowed(name):
    found = read_schema(name)
    assert found["required"] == list(found["properties"])
    assert {"v", "ts"} <= found["properties"].keys()
    assert "from_" not in found["properties"]
    validator(name).validate(example(name) | {"added_later": 1})


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_examples_hold_nothing_that_is_not_described(name):
    for one in read_schema(name)["examples"]:
        validate_published(name, json.dumps(one).encode())


@pytest.mark.parametrize("name", [kind.schema for kind in KINDS.values() if kind.schema not in ("event", "result")])
def test_there_is_an_example_of_each_event_type(name):
    found = read_schema(name)
    types = found["properties"]["event_type"]
    known = types.get("enum", [types.get("const")])
    assert {one["event_type"] for one in found["examples"]} == set(known)


def test_there_is_an_example_of_each_event_of_a_line():
    shown = {one["event_type"] for one in read_schema("event")["examples"]}
    assert shown > schema.EVENTS.keys()
    documented = (events.LineEvent.__doc__ or "").split("`")[1].split()
    assert list(schema.EVENTS) == [*documented, "selftest"]


def test_an_example_of_the_configuration_is_a_configuration():
    for one in read_schema("config")["examples"]:
        Settings.model_validate(one)


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("sms_in", {"text": 5}),
        ("sms_in", {"event_type": "sent"}),
        ("sms_in", {"ts": None}),
        ("sms_in", {"ts": "2026-05-30 18:46:24"}),
        ("sms_in", {"at": "2026-05-30T18:46:24+02:00"}),
        ("sms_in", {"at": "2026-13-30T18:46:24.512Z"}),
        ("sms_in", {"v": 2}),
        ("sms_in", {"chars": None}),
        ("sms_in", {"from": -1}),
        ("delivery", {"event_type": "submitted"}),
        ("delivery", {"error": {"code": 1}}),
        ("delivery", {"evidence": "guess"}),
        ("call", {"duration_s": "3"}),
        ("event", {"event_type": "remain", "unlimited": "no"}),
        ("event", {"event_type": "cells"}),
        ("event", {"event_type": "num_iccid"}),
        ("bridge_event", {"event_type": "line_missing"}),
        ("bridge_event", {"from": "yesterday"}),
        ("result", {"code": "gone"}),
        ("result", {"data": None}),
        ("state", {"problems": ["cold"]}),
        ("state", {"signal": {"csq": 1}}),
        ("state", {"raw": {"idle": 11}}),
        ("bridge_lines", {"lines": [{"id": "goip1"}]}),
        ("job", {"state": "lost"}),
    ],
)
def test_a_wrong_payload_is_refused(name, changes):
    with pytest.raises(jsonschema.ValidationError):
        validator(name).validate(example(name) | changes)


@pytest.mark.parametrize(
    ("name", "changes"),
    [("sms_in", {"mood": "good"}), ("event", {"mood": "good"}), ("bridge_lines", {"lines": [{"mood": "good"}]})],
)
def test_our_own_tests_see_fields_that_are_not_described(name, changes):
    body = example(name)
    if name == "bridge_lines":
        changes = {"lines": [body["lines"][0] | changes["lines"][0]]}
    with pytest.raises(jsonschema.ValidationError, match="mood"):
        validate_published(name, json.dumps(body | changes).encode())


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_payload_without_one_of_its_fields_is_refused(name):
    body = example(name)
    for key in read_schema(name)["required"]:
        with pytest.raises(jsonschema.ValidationError):
            validator(name).validate({other: value for other, value in body.items() if other != key})


# --- commands ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", COMMANDS)
def test_the_examples_of_a_command_are_taken(name):
    target, model = COMMANDS[name]
    for one in read_schema(name)["examples"]:
        assert isinstance(parse(model.path, json.dumps(one).encode(), target=target), model)


@pytest.mark.parametrize(
    ("name", "payload"),
    [
        ("cmd_sms", {}),
        ("cmd_sms", {"to": "+4911"}),
        ("cmd_sms", {"to": [], "text": "x"}),
        ("cmd_sms", {"to": [True], "text": "x"}),
        ("cmd_sms", {"to": "+4911", "text": ""}),
        ("cmd_sms", {"to": "+4911", "text": "x", "messages": [{"to": "+4911", "text": "x"}]}),
        ("cmd_sms", {"messages": [{"to": "+4911"}]}),
        ("cmd_sms", {"to": "+4911", "text": "x", "priority": 10}),
        ("cmd_sms", {"to": "+4911", "text": "x", "priority": "5"}),
        ("cmd_sms", {"to": "+4911", "text": "x", "prio": 5}),
        ("cmd_sms", {"to": "+4911", "text": "x", "send_at": "tomorrow"}),
        ("cmd_sms", {"to": "+4911", "text": "x", "guarantee": "maybe"}),
        ("cmd_cancel", {"job": ""}),
        ("cmd_ussd", {"code": "hello"}),
        ("cmd_ussd", {"code": "*100#", "timeout_s": 0}),
        ("cmd_number_set", {}),
        ("cmd_number_set", {"value": 10**15}),
        ("cmd_exp_time_set", {"value": -1}),
        ("cmd_exp_time_set", {"value": 1.5}),
        ("cmd_modules_set", {"value": "123"}),
        ("cmd_modules_set", {"value": {"0": True}}),
        ("cmd_modules_set", {"value": {"1": 1}}),
        ("cmd_call_forward_set", {"reason": "sometimes", "enable": False}),
        ("cmd_imei_set", {"value": "1"}),
        ("cmd_selftest", {}),
        ("cmd_selftest", {"to": "goip/2"}),
        ("cmd_selftest", {"to": "goip2", "number": 10**15}),
        ("cmd_refresh", {"now": True}),
        ("cmd_refresh", {"expires_at": -1}),
        ("bridge_cmd_ping", {"pong": 1}),
        ("bridge_cmd_inbox", {"limit": 0}),
    ],
)
def test_what_a_schema_refuses_the_parser_refuses(name, payload):
    target, model = COMMANDS[name]
    assert not validator(name).is_valid(payload)
    with pytest.raises(CommandError):
        parse(model.path, json.dumps(payload).encode(), target=target)


# --- a running bridge ----------------------------------------------------------------------------------------------


class Link:
    """In the place of the MQTT link: keeps what is published, and acknowledges it."""

    latest: "Link"

    def __init__(self, _config: object, handler: Bridge) -> None:
        Link.latest = self
        self.handler = handler
        self.connected = False
        self.retains, self.mute_s = True, 0.0
        self.room = 50
        self.seen: list[tuple[str, str | None, bytes]] = []
        self.news = asyncio.Event()
        self.reason_codes = {"goip/goip1/call": 0x87, "goip/goip1/ussd": 0x10}
        "For the first publish to a topic."

    async def run(self) -> None:
        self.connected = True
        self.handler.connected(session_present=False, version="5")
        await asyncio.Event().wait()

    def publish(self, publication: Any) -> int:
        self.seen.append((publication.topic, publication.schema, publication.payload))
        self.news.set()
        code = self.reason_codes.pop(publication.topic, 0)
        asyncio.get_running_loop().call_soon(self.handler.published, [(len(self.seen), code)])
        return len(self.seen)

    def acknowledge(self, _message: Incoming) -> None:
        pass

    def probe(self) -> None:
        loop = asyncio.get_running_loop()
        loop.call_soon(self.handler.proved, loop.time())

    def subscribe_again(self) -> None:
        pass

    async def disconnect(self, *, clean: bool = True) -> None:
        self.connected = False

    def command(self, topic: str, payload: object, *, retain: bool = False) -> None:
        body = json.dumps(payload).encode()
        self.handler.received([Incoming(topic, body, retain, False, None, None, 1, 1)])

    def json(self, name: str) -> list[dict[str, Any]]:
        return [json.loads(payload) for _, schema_name, payload in self.seen if schema_name == name]

    def types(self, name: str) -> set[str]:
        return {body["event_type"] for body in self.json(name)}

    async def until(self, *done: Any) -> None:
        """Until all of these are true."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(15):
                while not all(one() for one in done):
                    self.news.clear()
                    await self.news.wait()
        assert [one() for one in done] == [True] * len(done)


@contextlib.asynccontextmanager
async def running_bridge(folder: Path, monkeypatch: pytest.MonkeyPatch):
    """A bridge with two simulated lines, and the link that sees all it publishes."""
    monkeypatch.setattr(app, "MqttLink", Link)
    lines = {f"goip{number}": {"password": f"password{number}"} for number in (1, 2)}
    settings = Settings.model_validate(
        {"lines": lines, "udp": {"listen": "127.0.0.1:0"}, "store": {"path": folder / "bridge.db"}, "retain_text": True}
    )
    store = Store(settings.store.path)
    bridge = Bridge(settings, store, lambda: settings)
    stop = asyncio.Event()
    task = asyncio.create_task(bridge.run(stop, BrokerUrl.parse("mqtt://localhost")))
    await asyncio.sleep(0)
    assert bridge.udp is not None, task
    box = LineOptions(time_scale=200, keepalive=0.2, boot_time=20, command_delay=(0, 0))
    try:
        async with Simulator(SimOptions(server=bridge.udp.address, lines=2, channels=2, line=box, seed=1)) as sim:
            await sim.wait_registered()
            yield Link.latest, sim
    finally:
        stop.set()
        await task
        store.close()


def let_everything_happen(sim: Simulator) -> None:
    """One event of each kind on the first line, and strangers."""
    line = sim.line("goip1")
    line.receive_sms("+4915112345678", "Hello 🚗")
    line.receive_sms("", "")
    line.raw(b"RECEIVE:77;id:goip1;password:password1;srcnum:Bank;msg:\xff\x00!")
    line.incoming_call("+4915112345678", seconds=20)
    line.ussd_push("Your bundle ends tomorrow.")
    for kind, fields in (
        ("REMAIN", "gsm_remain_time:42"), ("REMAIN", "gsm_remain_time:-1"), ("REMAIN", "gsm_remain_time:"),
        ("EXPIRY", "exp:0"), ("EXPIRY", "exp:?"), ("CELLS", "lists:\"23,78\""), ("BCCH", "bcch:23,78,"),
        ("CELLINFO", 'info:"LAC:7E5,CELL ID:5E5B"'), ("CGATT", "cgatt:1"), ("CGATT", "cgatt:maybe"),
        ("NUM_ICCID", "iccid:8949"),
    ):  # fmt: skip
        line.event(kind, fields)
    line.raw(b"req:1;id:stranger;pass:x;num:;signal:1;")
    line.raw(b"req:1;id:goip2;pass:wrong;num:;signal:1;")


async def command_everything(link: Link) -> None:
    """Every command, one after another: a line takes only so many at once."""
    orders: list[tuple[str, object]] = [
        (f"{'bridge' if target == 'bridge' else 'goip2'}/cmd/{model.path}", example(name))
        for name, (target, model) in COMMANDS.items()
        if model.path not in ("module/reboot", "gateway/reboot", "module/disable", "modules/set")
    ]
    orders += [
        ("goip2/cmd/sms", {"to": ["+4911", "+4912", "+4913"], "text": "Hi", "id": "job"}),
        ("goip2/cmd/sms", {"to": "+4911", "text": "Hi", "dry_run": True}),
        ("goip2/cmd/sms", {"to": "+4911"}),
        ("goip2/cmd/nothing", {}),
        ("goip3/cmd/ussd", {"code": "*100#"}),
    ]
    for count, (topic, payload) in enumerate(orders, 1):
        link.command(f"goip/{topic}", payload)
        await link.until(lambda count=count: len(link.json("result")) >= count)
    link.command("goip/goip2/cmd/refresh", {}, retain=True)


async def test_everything_a_running_bridge_publishes_is_as_described(tmp_path, monkeypatch):
    async with running_bridge(tmp_path, monkeypatch) as (link, sim):
        sim.line("goip2").fail_next(38)
        let_everything_happen(sim)
        await command_everything(link)
        gets = {path for path in LINE_COMMANDS if path.endswith("/get")}
        await link.until(
            lambda: link.types("event") == {*schema.EVENTS, "num_iccid"} - {"selftest"},
            lambda: link.types("call") >= {"ringing", "answered", "ended"},
            lambda: link.types("delivery") >= {"queued", "sending", "sent", "delivered", "failed"},
            lambda: link.types("bridge_event") >= {"line_online", "line_unknown", "line_unauthorized"},
            lambda: link.types("bridge_event") >= {"retained_command", "no_subscriber", "publish_refused"},
            lambda: len(link.json("sms_in")) == 3,
            lambda: {body["command"] for body in link.json("result") if body["code"] == "ok"} >= gets,
            lambda: any(body["state"] == "done" for body in link.json("job")),
        )
        sim.line("goip1").reboot()
        link.command("goip/goip1/cmd/ussd", {"code": "*100#", "timeout_s": 1})
        await link.until(
            lambda: "gateway_reboot" in link.types("bridge_event"), lambda: "timeout" in link.types("ussd")
        )
        link.command("goip/goip2/cmd/selftest", {"id": "test", "to": "goip1", "number": "+4911"})
        await link.until(lambda: "selftest" in link.types("event"))
        sim.line("goip1").reboot()
        await link.until(lambda: any(body["data"].get("verdict") for body in link.json("result")))
        link.handler.takeover()
        link.handler._minute()  # or the test would take one
    assert {name for _, name, _ in link.seen if name} == PUBLISHED.keys()
    for topic, name, payload in link.seen:
        if name is not None and payload:
            validate_published(name, payload)
        elif topic.startswith("homeassistant/device/"):
            assert json.loads(payload)["origin"]["name"] == "goip-mqtt-bridge"
        else:
            assert payload in (b"online", b"offline", b""), topic


# --- the AsyncAPI document -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    found = yaml.safe_load((SCHEMAS / "asyncapi.yaml").read_text())
    assert isinstance(found, dict)
    return found


def references(node: object):
    match node:
        case {"$ref": str(reference)}:
            yield reference
        case dict():
            for value in node.values():
                yield from references(value)
        case list():
            for value in node:
                yield from references(value)


def resolve(document: dict[str, Any], reference: str) -> Any:
    file, _, pointer = reference.partition("#")
    node: Any = json.loads((SCHEMAS / file).read_text()) if file else document
    for step in pointer.split("/")[1:]:
        node = node[step.replace("~1", "/")]
    return node


def test_every_reference_resolves(document):
    found = set(references(document))
    assert len(found) > 100
    for reference in found:
        assert resolve(document, reference) is not None
    assert {f"./{name}.json" for name in NAMES if name != "config"} <= found


def test_every_topic_of_the_contract_has_its_message(document):
    sent = {
        resolve(document, operation["channel"]["$ref"])["address"]: operation
        for operation in document["operations"].values()
        if operation["action"] == "send"
    }
    for address, (name, retain, expiry) in {
        "goip/bridge/availability": ("availability", True, None),
        "goip/bridge/info": ("bridge_info", True, None),
        "goip/bridge/health": ("bridge_health", True, 180),
        "goip/bridge/lines": ("bridge_lines", True, None),
        "goip/bridge/event": ("bridge_event", False, 86_400),
        "goip/{line}/availability": ("availability", True, None),
        "goip/{line}/state": ("state", True, None),
        "goip/{line}/stats": ("stats", True, 86_400),
        "goip/{line}/sms/in": ("sms_in", False, 7 * 86_400),
        "goip/{line}/sms/last": ("sms_last", True, 7 * 86_400),
        "goip/{line}/delivery": ("delivery", False, 7 * 86_400),
        "goip/{line}/call": ("call", False, 600),
        "goip/{line}/ussd": ("ussd", False, 3600),
        "goip/{line}/event": ("event", False, 86_400),
        "goip/{line}/homeassistant/sms/in": ("sms_in", False, 7 * 86_400),
        "goip/{line}/homeassistant/delivery": ("delivery", False, 7 * 86_400),
        "goip/{line}/homeassistant/call": ("call", False, 600),
        "goip/{line}/homeassistant/ussd": ("ussd", False, 3600),
        "goip/bridge/homeassistant/event": ("bridge_event", False, 86_400),
        "goip/job/{job}": ("job", True, 7 * 86_400),
        "goip/{line}/result/{command}": ("result", False, 3600),
        "goip/pool/{pool}/result/{command}": ("result", False, 3600),
        "goip/bridge/result/{bridge_command}": ("result", False, 3600),
        None: ("result", False, 3600),
    }.items():
        operation = sent.pop(address)
        assert list(resolve(document, operation["channel"]["$ref"])["messages"]) == [name]
        binding = operation["bindings"]["mqtt"]
        assert (binding["qos"], binding["retain"], binding.get("messageExpiryInterval")) == (1, retain, expiry)
    assert sent == {}


def test_every_command_has_its_topic_message_and_reply(document):
    received = {
        resolve(document, operation["channel"]["$ref"])["address"]: operation
        for operation in document["operations"].values()
        if operation["action"] == "receive"
    }
    for name, (target, model) in COMMANDS.items():
        operation = received.pop(f"goip/{'bridge' if target == 'bridge' else '{line}'}/cmd/{model.path}")
        assert list(resolve(document, operation["channel"]["$ref"])["messages"]) == [name]
        replies = resolve(document, operation["reply"]["channel"]["$ref"])["address"]
        assert replies.startswith("goip/bridge/result/" if target == "bridge" else "goip/{line}/result/")
    assert received.keys() == {
        "goip/{line}/cmd/sms/{to}",
        "goip/pool/{pool}/cmd/sms/{to}",
        "goip/pool/{pool}/cmd/{command}",
    }
    parameters = document["components"]["parameters"]
    assert parameters["command"]["enum"] == list(LINE_COMMANDS)
    assert parameters["bridge_command"]["enum"] == list(BRIDGE_COMMANDS)


def test_every_message_says_what_the_bridge_puts_into_its_properties(document):
    messages = document["components"]["messages"]
    for name in PUBLISHED:
        message = messages[name]
        assert message["headers"]["properties"] == {"schema": {"const": name}}
        assert message["contentType"] == message["bindings"]["mqtt"]["contentType"] == "application/json"
        assert message["payload"] == {"$ref": f"./{name}.json"}
    for name in ("availability", "sms_text"):
        assert messages[name]["contentType"] == messages[name]["bindings"]["mqtt"]["contentType"] == "text/plain"


def test_the_document_agrees_with_the_program(document):
    assert document["asyncapi"] == "3.0.0"
    assert document["info"]["version"].split(".")[0] == str(board.API)
    documented = [
        (model.__doc__ or "").partition("Topic `<base>/")[2].partition("`")[0].replace("<id>", "{line}")
        for model in [*KINDS, *STATES]
    ]
    addresses = {channel["address"] for channel in document["channels"].values()}
    for topic in documented:
        assert f"goip/{topic.replace('<command path>', '{command}').replace('<job>', '{job}')}" in addresses


def test_an_address_names_each_of_its_parameters(document):
    for channel in document["channels"].values():
        for name in channel.get("parameters", {}):
            assert f"{{{name}}}" in channel["address"]
        assert (channel["address"] or "").count("{") == len(channel.get("parameters", {}))


def test_every_code_of_a_result_is_listed():
    assert read_schema("result")["properties"]["code"]["enum"] == list(get_args(payloads.Code))
