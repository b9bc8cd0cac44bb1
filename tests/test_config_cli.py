"""`goip-bridge config`: exit codes, one line for each fault, and a schema that agrees with what is accepted."""

import argparse
import json
import os
from pathlib import Path

import jsonschema
import pytest
import yaml

from bridge.cli import config as config_cli
from bridge.config.settings import ConfigError, Settings, load

SECRET = "hunter2"
GOOD = f"""\
mqtt: {{url: 'mqtts://user:{SECRET}@broker.example', version: 5}}
lines:
  goip1: {{password: {SECRET}, name: "Gate: SIM", allow_from: [10.0.0.0/8]}}
  goip2: {{password_file: secret}}
contacts: {{anna: "+4915112345678"}}
homeassistant: {{overrides: {{imei: null}}}}
"""


@pytest.fixture(autouse=True)
def alone(tmp_path, monkeypatch):
    """A folder of its own, and no variables but those of the test."""
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith("GOIP_")]:
        monkeypatch.delenv(name)
    Path("secret").write_text(SECRET + "\n")


def run(*arguments: str) -> int:
    parser = argparse.ArgumentParser()
    config_cli.add_arguments(parser)
    return config_cli.main(parser.parse_args(arguments))


def test_check_summarises_a_good_file(capsys):
    Path("config.yaml").write_text(GOOD)
    assert run("check") == 0
    out, err = capsys.readouterr()
    summary, *notes = out.splitlines()
    assert (
        summary
        == f"ok: {Path.cwd()}/config.yaml: 2 lines, broker mqtts://broker.example, gateways at udp://0.0.0.0:44444"
    )
    assert all(note.startswith("note: ") for note in notes)
    assert err == ""


def test_check_without_anything_says_what_is_embedded_and_missing(capsys):
    assert run("check") == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0] == (
        f"ok: no configuration file ({Path.cwd()}/config.yaml does not exist; --config or GOIP_CONFIG name another): "
        "0 lines, broker embedded, gateways at udp://0.0.0.0:44444"
    )
    assert out[1].startswith("note: lines: none configured")


def test_check_names_the_file_that_was_read(capsys, monkeypatch):
    Path("config.yaml").write_text(GOOD)
    Path("other.yaml").write_text("instance: a\n")
    Path("third.yaml").write_text("instance: b\n")
    monkeypatch.setenv("GOIP_CONFIG", "other.yaml")
    assert run("check") == 0
    assert capsys.readouterr().out.startswith(f"ok: {Path.cwd()}/other.yaml: 0 lines")
    assert run("check", "--config", "third.yaml") == 0
    assert capsys.readouterr().out.startswith(f"ok: {Path.cwd()}/third.yaml: 0 lines")


@pytest.mark.parametrize("action", ["check", "show"])
def test_faults_go_to_stderr_one_line_each_and_give_exit_code_2(action, capsys):
    Path("other.yaml").write_text(
        f"base_topic: goip\nlines:\n  a: {{pasword: {SECRET}}}\n  b: {{password: '{SECRET} x'}}\n"
    )
    assert run(action, "--config", "other.yaml") == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert [line.split(" ")[0] for line in err.splitlines()] == ["other.yaml:3:", "other.yaml:3:", "other.yaml:4:"]
    assert 'lines.a.pasword: unknown key; did you mean "password"?' in err
    assert SECRET not in err


def test_show_hides_secrets_and_tells_where_values_come_from(capsys, monkeypatch):
    Path("config.yaml").write_text(GOOD)
    monkeypatch.setenv("GOIP_LINES__goip1__COUNTRY", "de")
    monkeypatch.setenv("GOIP_UDP", '{"listen": "[::]:1"}')
    assert run("show") == 0
    out = capsys.readouterr().out
    assert SECRET not in out
    lines = [line.strip() for line in out.splitlines()]
    for line in [
        "base_topic: goip  # default",
        "url: mqtts://broker.example  # config.yaml:1",
        "username: user  # config.yaml:1",
        "password: '********'  # config.yaml:1",
        "version: '5'  # config.yaml:1",
        "name: 'Gate: SIM'  # config.yaml:3",
        "country: DE  # GOIP_LINES__goip1__COUNTRY",
        "allow_from: [10.0.0.0/8]  # config.yaml:3",
        "password_file: secret  # config.yaml:4",
        "password: '********'  # config.yaml:4",
        "listen: '[::]:1'  # GOIP_UDP",
        "imei: null  # config.yaml:6",
        "offline_s: 95.0  # default",
        "pools: {}  # default",
    ]:
        assert line in lines
    shown = yaml.safe_load(out)
    assert shown["contacts"] == {"anna": "+4915112345678"}
    assert shown.keys() == Settings.model_fields.keys()


def test_show_marks_absent_secrets_as_absent(capsys):
    Path("config.yaml").write_text("mqtt: {url: mqtt://h}\n")
    run("show")
    assert "  password: null  # default\n" in capsys.readouterr().out


def test_schema_prints_json_schema(capsys):
    assert run("schema") == 0
    schema = json.loads(capsys.readouterr().out)
    assert schema == config_cli.config_schema()
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert schema["$id"] == "config"


# The schema -----------------------------------------------------------------------------------------------------------


def properties():
    schema = config_cli.config_schema()
    yield from schema["properties"].items()
    for name, section in schema["$defs"].items():
        for key, value in section.get("properties", {}).items():
            yield f"{name}.{key}", value


def test_the_schema_is_valid_and_describes_every_key():
    schema = config_cli.config_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    sections = schema["$defs"]
    for name, value in properties():
        described = value.get("description") or sections[value["$ref"].rpartition("/")[2]].get("description")
        assert described, name


def test_the_examples_of_the_schema_are_valid():
    schema = config_cli.config_schema()
    seen = 0
    for name, value in properties():
        for example in value.get("examples", []):
            seen += 1
            jsonschema.validate(example, {**value, "$defs": schema["$defs"]})
            if "." not in name and name != "pools":
                Settings.model_validate({name: example} | ({"contacts": {"anna": "1"}} if name == "groups" else {}))
    assert seen > 8


@pytest.mark.parametrize(
    ("text", "good"),
    [
        (GOOD, True),
        ("lines: {a: {password: x}}", True),
        ("lines: {a: {}}", False),
        ("lines: {a: {password: x, password_file: secret}}", False),
        ("lines: {a b: {password: x}}", False),
        ("lines: {a: {pasword: x}}", False),
        ("lines: {a: {password: x, country: Germany}}", False),
        ("lines: {a: {password: x, repeat_safety: often}}", False),
        ("pools: {p: {lines: []}}", False),
        ("mqtt: {version: 4}", False),
        ("timing: {resend_s: 0}", False),
        ("timing: {resend_s: 0.5}", True),
        ("unknown: 1", False),
        ("homeassistant: {discovery: false, overrides: {x: {a: [1]}, y: null}}", True),
    ],
)
def test_the_schema_and_the_program_agree(text, good):
    Path("config.yaml").write_text(text)
    document = yaml.safe_load(text)
    assert jsonschema.Draft202012Validator(config_cli.config_schema()).is_valid(document) is good
    if good:
        load(None, {})
    else:
        with pytest.raises(ConfigError):
            load(None, {})
