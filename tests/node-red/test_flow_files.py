"""The files of examples/node-red: complete, without conflicts, tidy."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from flow_world import FLOWS, PAGE

Json = dict[str, Any]
CORE = {
    "tab",
    "subflow",
    "mqtt-broker",
    "mqtt in",
    "mqtt out",
    "comment",
    "csv",
    "debug",
    "delay",
    "function",
    "inject",
}
CORE |= {"link in", "switch", "template"}
each_file = pytest.mark.parametrize("path", FLOWS, ids=lambda path: path.stem)


def nodes_of(path: Path) -> list[Json]:
    nodes = json.loads(path.read_text())
    assert isinstance(nodes, list)
    return nodes


def test_the_page_names_every_file() -> None:
    assert len(FLOWS) == 6
    assert re.findall(r"^\| `(\S+\.json)`", PAGE.read_text(), re.MULTILINE) == [path.name for path in FLOWS]


@each_file
def test_a_file_says_what_to_change_and_needs_core_nodes_only(path: Path) -> None:
    types = {node["type"] for node in nodes_of(path) if not node["type"].startswith("subflow:")}
    assert types <= CORE
    assert [node["name"] for node in nodes_of(path) if node["type"] == "comment" and "read me" in node["name"]]


@each_file
def test_a_file_imports_on_its_own(path: Path) -> None:
    nodes = nodes_of(path)
    ids = [node["id"] for node in nodes]
    assert len(ids) == len(set(ids))
    assert [node["type"] for node in nodes].count("mqtt-broker") == 1
    for node in nodes:
        named = {node.get("z"), node.get("broker") if node["type"].startswith("mqtt ") else None} - {None}
        named |= {target for port in node.get("wires", []) for target in port}
        if node["type"].startswith("subflow:"):
            named.add(node["type"].partition(":")[2])
        assert named <= set(ids), (node["type"], node.get("name"))


def test_files_share_only_what_is_the_same_in_all() -> None:
    seen: dict[str, Json] = {}
    for path in FLOWS:
        for node in nodes_of(path):
            assert seen.setdefault(node["id"], node) == node, f"{path.name}: another node with the id {node['id']}"


@each_file
def test_the_base_topic_stands_in_one_place(path: Path) -> None:
    nodes = nodes_of(path)
    texts = [node.get("func", "") + node.get("topic", "") for node in nodes]
    texts += [str(variable["value"]) for node in nodes for variable in node.get("env", [])]
    assert not [text for text in texts if "goip/" in text]


@each_file
def test_no_node_lies_on_another(path: Path) -> None:
    placed = [node for node in nodes_of(path) if "x" in node]
    for node in placed:
        assert node["x"] % 10 == 0 or node["type"] == "link in", node["name"]
        assert node["y"] % 20 == 0, node["name"]
    for node, other in ((a, b) for a in placed for b in placed if a is not b and a["z"] == b["z"]):
        assert abs(node["y"] - other["y"]) >= 40 or abs(node["x"] - other["x"]) >= 100, (node["name"], other["name"])
