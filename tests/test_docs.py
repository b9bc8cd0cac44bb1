"""The documentation says what is so: names, topics, commands, examples and links are looked up or tried."""

import ast
import itertools
import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest
from pydantic import BaseModel

from bridge import __main__ as command_line
from bridge.config.settings import Settings, load, load_with_origins
from bridge.contract import causes, commands, payloads
from bridge.contract.topics import Topics
from bridge.features import admission
from bridge.mqtt.link import TWIN_ADVICE
from bridge.schema import generator as schema
from bridge.store.database import MIGRATIONS
from brokers import make_certificates
from reliability.simulation import SCENARIOS

ROOT = Path(__file__).resolve().parent.parent
COMMANDS, LIMITS, TROUBLESHOOTING = (
    (ROOT / f"docs/{name}.md").read_text() for name in ("commands", "limits", "troubleshooting")
)
README, ARCHITECTURE, CONTRACT, CONTRIBUTING, RELIABILITY = (
    (ROOT / name).read_text()
    for name in ("README.md", "docs/architecture.md", "docs/contract.md", "CONTRIBUTING.md", "docs/reliability.md")
)
USERS = README + COMMANDS + LIMITS + TROUBLESHOOTING
"What a user reads first."
DOCUMENTS = [ROOT / name for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "mosquitto/README.md")]
DOCUMENTS += sorted((ROOT / "docs").glob("*.md"))
LATER = {model.path for model in admission._NOT_YET}
"Commands of the contract that this version answers with `not_supported`."


# -- reading Markdown -----------------------------------------------------------------------------------------------


def section(document: str, title: str) -> str:
    """What is below a heading, up to the next one of its level."""
    _, found, rest = document.partition(f"\n## {title}\n")
    assert found, f"no section {title}"
    return rest.split("\n## ")[0]


def blocks(document: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", document, re.MULTILINE | re.DOTALL)


def code(text: str) -> list[str]:
    """Inline code, outside of blocks."""
    return re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL))


def rows(text: str) -> Iterator[list[str]]:
    """The cells of all tables, without their headings."""
    for table in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        for line in table.splitlines()[2:]:
            yield [cell.strip() for cell in line.strip("|").split("|")]


def shell_lines(document: str) -> list[list[str]]:
    """The words of every command in the sh blocks."""
    return [
        words for block in blocks(document, "sh") for line in block.splitlines() if (words := shlex.split(line, True))
    ]


# -- names in the code ----------------------------------------------------------------------------------------------


def names(path: Path) -> set[str]:
    """`function`, `Class`, `Class.method` and `CONSTANT` of a module."""
    found = set()
    for node in ast.parse(path.read_text()).body:
        match node:
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
                found.add(name)
            case ast.ClassDef(name=name, body=body):
                found.add(name)
                methods = (one for one in body if isinstance(one, ast.FunctionDef | ast.AsyncFunctionDef))
                found |= {f"{name}.{method.name}" for method in methods}
            case ast.Assign(targets=targets):
                found |= {target.id for target in targets if isinstance(target, ast.Name)}
            case ast.AnnAssign(target=ast.Name(id=name)):
                found.add(name)
    return found


NAMED = sorted(set(re.findall(r"`([\w/]+\.py):([\w.]+)`", ARCHITECTURE + RELIABILITY)))


def test_architecture_names_places() -> None:
    assert len(NAMED) > 50


@pytest.mark.parametrize(("file", "name"), NAMED)
def test_every_place_that_architecture_names_exists(file: str, name: str) -> None:
    path = ROOT / "bridge" / file
    assert path.is_file()
    assert name in names(path)


def test_every_test_that_architecture_names_exists() -> None:
    named = set(re.findall(r"`(test_\w+)`", ARCHITECTURE))
    assert {"test_walk_inbound_sms", "test_walk_outbound_sms"} <= named
    named |= set(re.findall(r"`(test_\w+)`", RELIABILITY))
    assert not named - {name for path in (ROOT / "tests").rglob("test_*.py") for name in names(path)}


def test_every_scenario_that_reliability_names_exists() -> None:
    named = {name for words in re.findall(r"simulation: `([\w ]+)`", RELIABILITY) for name in words.split()}
    assert {"rough", "storm"} <= named
    assert not named - set(SCENARIOS)


def test_architecture_has_every_table_of_the_store() -> None:
    created = re.findall(r"CREATE TABLE (\w+)", "".join(MIGRATIONS))
    assert [cells[0] for cells in rows(section(ARCHITECTURE, "The store"))] == [f"`{table}`" for table in created]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_paths_in_documents_exist(document: Path) -> None:
    # `bridge/` is also the beginning of topics.
    path = re.compile(r"bridge/([\w/]+/|[\w/]+\.py)|(docs|tests|schemas|mosquitto|benchmarks)/[\w./]*|\.ci/\w+")
    paths = {text for text in code(document.read_text()) if path.fullmatch(text)}
    missing = {text for text in paths if not (ROOT / text).exists()}
    assert not missing


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_relative_links_resolve(document: Path) -> None:
    links = re.findall(r"\]\(([^)#\s]+)", re.sub(r"^```.*?^```$", "", document.read_text(), flags=re.M | re.S))
    assert not {link for link in links if ":" not in link and not (document.parent / link).exists()}


def test_contributing_names_what_is_there() -> None:
    paths = [cells[0].strip("`") for cells in rows(CONTRIBUTING)]
    assert "docs/" in paths
    assert not [path for path in paths if not (ROOT / path).exists()]
    targets = set(re.findall(r"^    make ([a-z-]+)", CONTRIBUTING, re.MULTILINE))
    assert targets <= set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


def cited_sections() -> set[tuple[str, str]]:
    """(document, section) in comments of the code; a bare `contract §` is docs/contract.md."""
    found = set()
    for path in (ROOT / "bridge").rglob("*.py"):
        for name, numbers in re.findall(r"(?:docs/)?(contract|protocol)(?:\.md)? §§? ?([\d.]+\d|\d)", path.read_text()):
            found.add((name, numbers))
    return found


def test_sections_cited_in_the_code_exist() -> None:
    cited = cited_sections()
    assert len(cited) > 20
    have = set()
    for name in ("contract", "protocol"):
        document = (ROOT / f"docs/{name}.md").read_text()
        for number, body in re.findall(r"^## (\d+)\. .*?\n(.*?)(?=^## |\Z)", document, re.MULTILINE | re.DOTALL):
            have.add((name, number))
            have |= {(name, item) for item in re.findall(r"^### ([\d.]+\d) ", body, re.MULTILINE)}
            have |= {(name, item) for item in re.findall(r"^\| ([\d.]+\d) \|", body, re.MULTILINE)}
            have |= {(name, f"{number}.{item}") for item in re.findall(r"^(\d+)\. ", body, re.MULTILINE)}
    assert not cited - have


# -- topics and commands --------------------------------------------------------------------------------------------


def test_readme_has_exactly_the_topics_of_the_code() -> None:
    written = {cells[0].strip("`") for cells in rows(section(README, "Topics"))}
    placeholders = {"{line}": "<id>", "{job}": "<job>", "{command}": "<command>"}
    published = set()
    for name, (topic, _) in schema.SENT.items():
        if name in ("pool_result", "bridge_result", "response"):
            continue
        for placeholder, shown in placeholders.items():
            topic = topic.replace(placeholder, shown)
        published.add(topic)
    assert written == published


def test_readme_says_rightly_what_is_a_state() -> None:
    kinds = {cells[0].strip("`"): cells[1] for cells in rows(section(README, "Topics"))}
    for topic, payload in schema.SENT.values():
        shown = topic.replace("{line}", "<id>").replace("{job}", "<job>")
        if shown in kinds:
            is_state = payload is None or payload in payloads.STATES
            assert (kinds[shown] == "state") == is_state, shown


def documented_commands() -> tuple[set[str], set[str]]:
    lines, bridge = COMMANDS.split("And to `goip/bridge/cmd/<command>`")
    return tuple({path for cells in rows(part) for path in code(cells[0])} for part in (lines, bridge))  # type: ignore[return-value]


def test_the_page_has_exactly_the_commands_of_the_code() -> None:
    lines, bridge = documented_commands()
    assert lines == (set(commands.LINE_COMMANDS) - LATER) | {"sms/<to>"}
    assert bridge == set(commands.BRIDGE_COMMANDS) - LATER


def test_limits_name_what_is_not_there_yet() -> None:
    limits = " ".join(code(LIMITS))
    assert LATER
    assert {path for path in LATER if path not in limits} == set()


def documented_payloads() -> Iterator[tuple[str, str]]:
    """(command, payload) of the table: a payload belongs to the command in the same place, or to the last one."""
    for cells in rows(COMMANDS):
        paths = code(cells[0])
        for payload in code(cells[1]):
            if payload.startswith("{"):
                yield next((path for path in paths if path.endswith("set")), paths[0]), payload


def test_the_payloads_of_the_page_are_valid() -> None:
    given = list(documented_payloads())
    assert len(given) > 8
    for path, payload in given:
        full = payload.replace("+49…", "+4915112345678").replace("…", "text")
        commands.parse(path, full.encode(), target="line")


def test_the_mqtt_examples_in_the_readme_are_valid() -> None:
    topics, tried = Topics("goip"), 0
    for words in shell_lines(README):
        if words[0] not in ("mosquitto_pub", "mosquitto_rr"):
            continue
        options = dict(itertools.pairwise(words))
        topic = topics.parse_command(options["-t"])
        assert topic is not None, words
        commands.parse(topic.path, options["-m"].encode() if "-m" in words else b"", target="line")
        if words[0] == "mosquitto_rr":
            assert options["-V"] == "5"
            assert topics.response_topic_permitted(options["-e"], "homeassistant")
        tried += 1
    assert tried >= 5


def test_json_in_the_readme_has_the_fields_of_its_payload() -> None:
    (shown,) = blocks(README, "json")
    result = json.loads(shown)
    assert set(result) == set(payloads.Result.__dataclass_fields__) | {"ts"}


def test_contract_has_every_topic_command_and_word() -> None:
    missing = [topic for topic, _ in schema.SENT.values() if topic.count("{") < 2 and not in_contract(topic)]
    assert not missing
    for path in commands.LINE_COMMANDS:
        first, _, rest = path.partition("/")
        assert f"cmd/{path}" in CONTRACT or (f"cmd/{first}/" in CONTRACT and f"/{rest}`" in CONTRACT), path
    words = [*commands.CODES, *get_args(payloads.BridgeEventType), *get_args(payloads.DeliveryType)]
    words += [*get_args(payloads.Problem), *schema.EVENTS, *warning_words()]
    assert not {word for word in words if not re.search(rf"\b{word}\b", CONTRACT)}


def warning_words() -> set[str]:
    sources = ((ROOT / "bridge" / name).read_text() for name in ("contract/commands.py", "features/admission.py"))
    words = set(re.findall(r'warnings\.append\("(\w+)"\)', "".join(sources)))
    assert "line_offline" in words
    return words


def in_contract(topic: str) -> bool:
    shown = topic.replace("{line}", "<id>").replace("{job}", "<job>")
    return f"`{shown}`" in CONTRACT or "{" in shown or not shown


def test_causes_are_those_of_the_code() -> None:
    written = list(rows((ROOT / "docs/causes.md").read_text()))
    table = [*causes.ERRORSTATUS.items(), *causes.TP_STATUS.items()]
    assert written == [
        [str(code), f"`{cause.word}`", cause.meaning, *("yes" if mark else "" for mark in cause[2:])]
        for code, cause in table
    ]


# -- the configuration ----------------------------------------------------------------------------------------------


def test_yaml_in_the_readme_is_a_valid_configuration(tmp_path: Path) -> None:
    examples = [*blocks(README, "yaml"), *blocks(COMMANDS, "yaml")]
    assert examples
    for example in examples:
        file = tmp_path / "config.yaml"
        file.write_text(example)
        assert load(file, {}).lines


EXAMPLE = (ROOT / "config.example.yaml").read_text()
COMMENTED = re.compile(r"^( *)# ( *\w+:(?: .*)?)$", re.MULTILINE)
"A key of the example that is commented out; prose has no word with a colon at the beginning of its line."


def test_the_example_configuration_is_as_it_stands_the_defaults_and_two_lines() -> None:
    lines = {id: {"password": f"password{id[-1]}"} for id in ("goip1", "goip2")}
    assert load(ROOT / "config.example.yaml", {}) == Settings.model_validate({"lines": lines})


def fields(model: type[BaseModel]) -> Iterator[str]:
    for name, field in model.model_fields.items():
        yield name
        for kind in (field.annotation, *get_args(field.annotation)):
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                yield from fields(kind)


def test_the_example_configuration_has_every_key() -> None:
    written = set(re.findall(r"^ *(?:# *)?(\w+):", EXAMPLE, re.MULTILINE))
    assert {"password_file", "offline_s", "strategy"} <= set(fields(Settings))
    assert not set(fields(Settings)) - written


def test_every_key_of_the_example_has_its_default_or_is_commented_out_with_a_valid_example(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    text = COMMENTED.sub(r"\1\2", EXAMPLE)
    text = re.sub(r"^ *password: \S+$(?=\n *password_file:)", "", text, flags=re.MULTILINE)  # one of the two
    text = text.replace("url: mqtt://localhost:1883", "url: mqtts://localhost:8883")  # for the keys of TLS
    for file in re.findall(r"_file: (\S+)", text):
        text = text.replace(file, Path(file).name)
        (tmp_path / Path(file).name).write_text("secret")
    made = make_certificates(tmp_path)
    for name, one in {"broker-ca.pem": made.ca, "client.pem": made.client_cert, "client.key": made.client_key}.items():
        (tmp_path / name).write_bytes(one.read_bytes())
    (tmp_path / "config.yaml").write_text(text)
    settings, origins = load_with_origins(None, {})
    seen = 0
    for place, section in sections(settings):
        for name, field in type(section).model_fields.items():
            if name == "password" or isinstance(getattr(section, name), BaseModel) or place == ("lines", "goip1"):
                continue
            number = int(origins[(*place, name)].rpartition(":")[2])
            is_commented = EXAMPLE.splitlines()[number - 1].lstrip().startswith("#")
            at_default = not field.is_required() and getattr(section, name) == field.get_default(
                call_default_factory=True
            )
            if (*place, name) not in (("lines",), ("pools", "alarms", "strategy")):
                assert at_default is not is_commented, (place, name)
            seen += 1
    assert seen >= 40


def sections(settings: Settings) -> Iterator[tuple[tuple[str, ...], BaseModel]]:
    """Every model in them, with its place."""
    yield (), settings
    for name, value in settings:
        if isinstance(value, BaseModel):
            yield (name,), value
        elif isinstance(value, dict):
            yield from (((name, key), one) for key, one in value.items() if isinstance(one, BaseModel))


def test_the_readme_gives_the_advice_of_the_log_for_two_clients_with_one_client_id() -> None:
    assert TWIN_ADVICE in TROUBLESHOOTING.replace("`", "")


# -- the command line -----------------------------------------------------------------------------------------------


def bridge_calls() -> list[list[str]]:
    """The arguments of every `goip-bridge …` in what a user reads first."""
    inline = [shlex.split(text) for text in code(USERS) if text.startswith("goip-bridge ") and "…" not in text]
    calls = [words for words in (*inline, *shell_lines(USERS)) if words[0].endswith("goip-bridge")]
    return [words[1:] for words in calls]


def test_every_call_of_the_program_in_the_readme_is_valid(capsys: pytest.CaptureFixture[str]) -> None:
    calls = [call for call in bridge_calls() if call != ["--version"]]
    assert {call[0] for call in calls} == set(command_line.COMMANDS) - {"demo"}  # that is `make demo`
    for call in calls:
        command_line._parser(call[0]).parse_args(call)


def test_every_make_target_in_the_readme_exists() -> None:
    called = [words for words in shell_lines(README) if words[0] == "make"]
    called += [shlex.split(text) for text in code(README) if text.startswith("make ")]
    targets = {words[1] for words in called}
    assert {"demo", "test"} <= targets
    assert targets <= set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    options = [word.removeprefix("ARGS=") for words in called for word in words[2:]]
    command_line._parser("demo").parse_args(["demo", *options])


def test_help_lists_every_subcommand(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        command_line.main(["--help"])
    shown = capsys.readouterr().out
    contract = section(CONTRACT, "6. Command line")
    for name in command_line.COMMANDS:
        assert re.search(rf"^ +{name} ", shown, re.MULTILINE)
        assert f"goip-bridge {name}" in contract, name
