"""The protocol core knows neither clocks nor sockets (docs/architecture.md)."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import bridge.goip

CORE = Path(bridge.goip.__file__).parent
FORBIDDEN = {
    "asyncio",
    "socket",
    "time",
    "logging",
    "sqlite3",
    "threading",
    "select",
    "selectors",
    "random",
    "datetime",
}
MODULES = sorted(CORE.rglob("*.py"))


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "absolute imports only"
            yield node.module or ""


def test_there_are_modules_to_check():
    assert {path.name for path in MODULES} >= {"wire.py", "session.py", "line.py", "server.py"}


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.name)
def test_core_imports_the_standard_library_and_itself_only(path):
    for name in imports(path):
        top = name.partition(".")[0]
        assert name.startswith("bridge.goip") or top in sys.stdlib_module_names, name


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.name)
def test_core_imports_nothing_that_waits_or_tells_the_time(path):
    assert not {name.partition(".")[0] for name in imports(path)} & FORBIDDEN


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.name)
def test_core_opens_and_imports_nothing_behind_the_back(path):
    called = {
        node.func.id
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    }
    assert not called & {"open", "__import__", "exec", "eval", "print"}
