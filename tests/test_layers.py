"""Which part of the program may know which (docs/architecture.md)."""

import ast
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

BRIDGE = Path(__file__).parent.parent / "bridge"

LAYERS = (
    "goip, contract < homeassistant, system < store < config, mqtt < features < schema, retained < app < http"
    " < process < cli"
)
"A package imports from its left only, and from none of its own group."
ASIDE = {"sim": {"system"}, "": {"system"}}
"""The simulator reads the protocol by itself: it shares how a terminal is written to, and nothing else. Of the files
that are in no package, one tells the version, and the other one imports what the command line asks for by its name."""
KNOW_OF_SIM = {"cli"}
"Only the demonstration starts a simulator in its own process."
PURE = {"goip", "contract"}
"They neither wait, nor open anything, nor know the time."
FORBIDDEN = {
    "asyncio",
    "logging",
    "random",
    "select",
    "selectors",
    "socket",
    "sqlite3",
    "subprocess",
    "threading",
    "time",
}
CIRCLES = {"bridge.sim"}
"The parts of a simulated line know their line, and it knows them."

LEVEL = {name.strip(): level for level, group in enumerate(LAYERS.split("<")) for name in group.split(",")}
FILES = {".".join(path.relative_to(BRIDGE.parent).with_suffix("").parts): path for path in sorted(BRIDGE.rglob("*.py"))}


def imported(module: str) -> Iterator[str]:
    """The modules that a file imports, also for the type checker alone; by whole names."""
    package = module.split(".")[:-1]
    for node in ast.walk(ast.parse(FILES[module].read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            origin = ".".join([*above, *([node.module] if node.module else [])])
            for alias in node.names:
                whole = f"{origin}.{alias.name}"
                yield whole if whole in FILES else f"{origin}.__init__" if f"{origin}.__init__" in FILES else origin


def package(module: str) -> str:
    """`bridge.store.rows` is of `store`, `bridge.__main__` of none."""
    parts = module.split(".")
    return parts[1] if len(parts) > 2 else ""


IMPORTS = {module: set(imported(module)) for module in FILES}
OURS = {module: {other for other in others if other in FILES} for module, others in IMPORTS.items()}


def test_every_package_has_its_place() -> None:
    assert {package(module) for module in FILES} == LEVEL.keys() | ASIDE.keys()
    assert {module for module in FILES if not package(module)} == {"bridge.__init__", "bridge.__main__"}


@pytest.mark.parametrize("module", FILES)
def test_a_package_imports_from_its_left_only(module: str) -> None:
    ours = package(module)
    for other in OURS[module]:
        theirs = package(other)
        if theirs in (ours, ""):
            continue
        if theirs == "sim":
            assert ours in KNOW_OF_SIM, other
        elif ours in ASIDE:
            assert theirs in ASIDE[ours], other
        else:
            assert LEVEL[theirs] < LEVEL[ours], other


@pytest.mark.parametrize("module", FILES)
def test_what_is_imported_of_the_bridge_is_there(module: str) -> None:
    assert {name for name in IMPORTS[module] if name.partition(".")[0] == "bridge"} <= FILES.keys()


def test_no_files_import_each_other() -> None:
    graph = {
        module: others
        for module, others in OURS.items()
        if not any(module.startswith(f"{circle}.") for circle in CIRCLES)
    }
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


@pytest.mark.parametrize("module", [module for module in FILES if package(module) in PURE])
def test_what_is_pure_neither_waits_nor_tells_the_time_nor_opens_anything(module: str) -> None:
    assert not {name.partition(".")[0] for name in IMPORTS[module]} & FORBIDDEN
    called = {
        node.func.id
        for node in ast.walk(ast.parse(FILES[module].read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    }
    assert not called & {"open", "__import__", "exec", "eval", "print"}


@pytest.mark.parametrize("module", [module for module in FILES if package(module) == "goip"])
def test_the_protocol_needs_the_standard_library_alone(module: str) -> None:
    others = {name.partition(".")[0] for name in IMPORTS[module] - OURS[module]}
    assert others <= set(sys.stdlib_module_names) - {"datetime"}


CALLERS = {
    "transaction": {"bridge.app.bridge"},
    "take_datagrams": {"bridge.app.bridge"},
    "sendto": {"bridge.system.udp", "bridge.process.keeper"},
    "acknowledge": {"bridge.app.bridge", "bridge.mqtt.link"},
}
"""Who opens a transaction, takes datagrams from the core, hands one to the kernel (or a word to systemd), and
acknowledges to the broker: the choke point, and the socket or session that it does it by."""


@pytest.mark.parametrize("name", CALLERS)
def test_only_the_choke_point_commits_sends_and_acknowledges(name: str) -> None:
    callers = {
        module
        for module in FILES
        if package(module) != "sim"
        for node in ast.walk(ast.parse(FILES[module].read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == name
    }
    assert callers == CALLERS[name]
