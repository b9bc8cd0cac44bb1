"""schemas/asyncapi.yaml is what the official parser takes, with every schema it refers to."""

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

from broker_fixture import REPOSITORY

PARSE = """
const {Parser} = require("@asyncapi/parser");
const {readFileSync} = require("fs");
const file = process.argv[1];
new Parser().parse(readFileSync(file, "utf8"), {source: file}).then(({document, diagnostics}) => {
    const channels = document ? document.channels().all() : [];
    const messages = document ? document.messages().all() : [];
    console.log(JSON.stringify({
        accepted: document !== undefined,
        version: document && document.info().version(),
        topics: channels.map((channel) => channel.address()).filter(Boolean),
        payloads: Object.fromEntries(messages.map((message) => [message.name(), message.payload().json()])),
        diagnostics: diagnostics.map(({severity, code, message, path}) => ({severity, code, message, path})),
    }));
});
"""
ERROR, WARNING = 0, 1


def parse(file: Path, node_modules: Path) -> dict[str, Any]:
    command = ["node", "-e", PARSE, str(file)]
    answer = subprocess.run(command, cwd=node_modules, capture_output=True, text=True, timeout=60)
    assert answer.returncode == 0, answer.stderr
    found = json.loads(answer.stdout)
    assert isinstance(found, dict)
    return found


def test_the_document_is_accepted_without_errors_and_warnings(node_modules: Path) -> None:
    found = parse(REPOSITORY / "schemas/asyncapi.yaml", node_modules)
    assert found["accepted"]
    assert not [one for one in found["diagnostics"] if one["severity"] in (ERROR, WARNING)]
    assert {"goip/{line}/sms/in", "goip/{line}/cmd/sms", "goip/job/{job}"} <= set(found["topics"])


def test_the_parser_read_the_schemas_that_the_document_refers_to(node_modules: Path) -> None:
    payloads = parse(REPOSITORY / "schemas/asyncapi.yaml", node_modules)["payloads"]
    for name in ("sms_in", "delivery", "result", "cmd_sms", "job"):
        schema = json.loads((REPOSITORY / f"schemas/{name}.json").read_text())
        assert set(schema["properties"]) == set(payloads[name]["properties"]), name


def test_the_parser_would_notice(node_modules: Path, tmp_path: Path) -> None:
    schemas = shutil.copytree(REPOSITORY / "schemas", tmp_path / "schemas")
    (schemas / "delivery.json").unlink()
    found = parse(schemas / "asyncapi.yaml", node_modules)
    assert [one["severity"] for one in found["diagnostics"]].count(ERROR) >= 1
