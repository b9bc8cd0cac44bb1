"""examples/grafana and docs/grafana.md: every metric and label in them is there, and Prometheus itself takes them."""

import asyncio
import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import yaml
from test_http import Http, served, simulated

import outputs
from bridge.http.metrics import METRICS, PROCESS
from brokers import free_port
from harness import LIMIT_S, own_broker

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = ROOT / "examples/grafana"
RULES = EXAMPLES / "goip-rules.yml"
PAGE = (ROOT / "docs/grafana.md").read_text()
OF_THE_TARGET = {"job", "instance"}
"Labels that Prometheus adds."
needs_promtool = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="promtool is not installed: apt install prometheus"
)
needs_prometheus = pytest.mark.skipif(
    shutil.which("prometheus") is None, reason="Prometheus is not installed: apt install prometheus"
)


def dashboard() -> dict[str, Any]:
    loaded = json.loads((EXAMPLES / "goip-dashboard.json").read_text())
    assert isinstance(loaded, dict)
    return loaded


def rules() -> list[dict[str, Any]]:
    return [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]


def expressions() -> Iterator[str]:
    """All PromQL that is shipped."""
    shown = dashboard()
    for panel in shown["panels"]:
        for target in panel.get("targets", []):
            yield target["expr"]
    for annotation in shown["annotations"]["list"]:
        yield annotation["expr"]
    for variable in shown["templating"]["list"]:
        if variable["type"] == "query":
            yield variable["definition"]
    for rule in rules():
        yield rule["expr"]


def known_labels(name: str) -> set[str]:
    return OF_THE_TARGET | set(METRICS[name].labels if name in METRICS else ())


def test_every_metric_and_label_in_dashboard_and_rules_exists() -> None:
    used: set[str] = set()
    for expression in expressions():
        bare = re.sub(r'"[^"]*"', '""', expression)
        names = set(re.findall(r"\b((?:goip|process)_\w+|up)\b", bare))
        assert names, expression
        assert names <= {*METRICS, *PROCESS, "up"}, expression
        for name, labels in re.findall(r"\b(\w+)\{([^}]*)\}", bare):
            assert set(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", labels)) <= known_labels(name), expression
        grouped = re.findall(r"\b(?:by|without|on|ignoring)\s*\(([^)]*)\)", bare)
        grouped += re.findall(r"label_values\([^,]*(?:\{[^}]*\})?, (\w+)\)", bare)
        every = set.union(*(known_labels(name) for name in names))
        assert {label.strip() for some in grouped for label in some.split(",")} <= every, expression
        used |= names
    assert len(used) > 20


def test_the_dashboard_asks_no_data_source_but_the_one_that_is_chosen() -> None:
    shown = dashboard()
    assert shown["id"] is None
    assert shown["schemaVersion"] >= 39
    assert shown["templating"]["list"][0]["type"] == "datasource"
    panels = [panel for panel in shown["panels"] if panel["type"] != "row"]
    for panel in panels:
        assert panel["title"]
        for asked in (panel, *panel["targets"]):
            assert asked["datasource"] == {"type": "prometheus", "uid": "${datasource}"}, panel["title"]
    ids = [panel["id"] for panel in shown["panels"]]
    assert len(set(ids)) == len(ids)
    taken: set[tuple[int, int]] = set()
    for panel in shown["panels"]:
        place = panel["gridPos"]
        cells = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert not taken & cells, f"{panel['title']} lies over another panel"
        assert max(x for x, _ in cells) < 24
        taken |= cells
    variables = {variable["name"] for variable in shown["templating"]["list"]}
    asked_for = set(re.findall(r"\$\{?(\w+)", json.dumps([*expressions()]))) - {"__rate_interval", "labels", "value"}
    assert asked_for <= variables


@needs_promtool
def test_the_rules_are_valid_and_fire_when_they_should() -> None:
    for command in (["check", "rules", "goip-rules.yml"], ["test", "rules", "goip-rules-test.yml"]):
        done = subprocess.run(["promtool", *command], cwd=EXAMPLES, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    done = subprocess.run(
        ["promtool", "check", "config", "prometheus.yml"], cwd=EXAMPLES, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_is_shown_to_fire() -> None:
    tests = yaml.safe_load((EXAMPLES / "goip-rules-test.yml").read_text())["tests"]
    firing = {test["alertname"] for group in tests for test in group["alert_rule_test"] if test["exp_alerts"]}
    alerts = [rule["alert"] for rule in rules()]
    assert len(set(alerts)) == len(alerts)
    assert firing == set(alerts)
    for rule in rules():
        assert rule["labels"]["severity"] in ("warning", "critical")
        assert rule["annotations"]["summary"]


@needs_prometheus
@pytest.mark.broker("binary")
async def test_prometheus_reads_a_running_bridge_and_every_expression_works(tmp_path: Path) -> None:
    lines = {"goip1": {"password": "password1", "gateway": "rack1"}, "goip2": {"password": "password2"}}
    async with (
        own_broker(tmp_path / "broker") as broker,
        served(tmp_path, mqtt={"url": f"mqtt://127.0.0.1:{broker.port}"}, lines=lines, http={"send": True}) as served_,
        simulated(served_[0], lines=2) as simulator,
    ):
        _bridge, client = served_
        simulator.line("goip1").receive_sms("+4915112345678", "x")
        await client.post({"line": "goip1", "to": "+4915112345678", "text": "x"})
        await client.until_status(lambda found: found["lines"][0]["today"]["delivered"] == 1)
        port = await start_prometheus(tmp_path, client.port)
        prometheus = Http(client.session, port)
        try:

            async def ask(expression: str) -> list[dict[str, Any]]:
                code, body, _ = await prometheus.get(f"/api/v1/query?query={quote(expression)}")
                assert code == 200, (expression, body)
                result = json.loads(body)["data"]["result"]
                assert isinstance(result, list)
                return result

            await wait_for(prometheus, "sum(goip_lines) > 0 and on () count_over_time(up[1m]) >= 3")
            target = (await ask("up == 1"))[0]["metric"]
            assert (target["job"], target["instance"]) == ("goip", f"127.0.0.1:{client.port}")
            for rule in json.loads((await prometheus.get("/api/v1/rules"))[1])["data"]["groups"]:
                assert {one["health"] for one in rule["rules"]} <= {"ok", "unknown"}, rule
            empty = []
            for expression in expressions():
                if not expression.startswith("label_values") and not await ask(filled_in(expression)):
                    empty.append(expression)
            # What has nothing to say while all is well: rules, and ratios and rates of what did not happen yet.
            shown = {target["expr"] for panel in dashboard()["panels"] for target in panel.get("targets", [])}
            assert {expression for expression in empty if expression in shown and "increase" not in expression} == set()
            firing = {rule["alert"] for rule in rules() if await ask(rule["expr"])}
            assert firing <= {"GoipEventLoopSlow", "GoipLineWeakSignal"}  # as chance and a busy machine will have it
        finally:
            await stop_prometheus()


def filled_in(expression: str) -> str:
    """With the variables as Grafana sets them."""
    for name in ("job", "instance", "gateway", "line"):
        expression = expression.replace(f"${name}", ".*")
    return expression.replace("$__rate_interval", "1m")


_processes: list[asyncio.subprocess.Process] = []


async def start_prometheus(directory: Path, target: int) -> int:
    """With the shipped configuration, but quicker, and with this target; its port."""
    port = free_port()
    text = (
        (EXAMPLES / "prometheus.yml")
        .read_text()
        .replace("15s", "500ms")
        .replace("127.0.0.1:8080", f"127.0.0.1:{target}")
    )
    (directory / "prometheus.yml").write_text(text)
    shutil.copy(RULES, directory)
    with (directory / "prometheus.log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            "prometheus", "--config.file=prometheus.yml", f"--storage.tsdb.path={directory / 'tsdb'}",
            f"--web.listen-address=127.0.0.1:{port}", cwd=directory, stdout=log, stderr=log,
        )  # fmt: skip
    outputs.show("prometheus", lambda: process.returncode is None, (directory / "prometheus.log").read_text)
    _processes.append(process)
    return port


async def stop_prometheus() -> None:
    process = _processes.pop()
    process.terminate()
    await asyncio.wait_for(process.wait(), LIMIT_S)


async def wait_for(prometheus: Http, expression: str) -> None:
    """Until the expression has a result."""
    await prometheus.until(
        f"/api/v1/query?query={quote(expression)}",
        lambda answer: answer[0] == 200 and bool(json.loads(answer[1])["data"]["result"]),
    )


def test_the_page_has_every_metric_with_its_labels_and_meaning() -> None:
    table = {
        cells[0].strip("` "): [cell.strip() for cell in cells[1:]]
        for cells in (line.strip("|\n").split(" | ") for line in PAGE.splitlines() if line.startswith("| `goip_"))
    }
    wanted = {
        name: [meaning.kind, ", ".join(f"`{label}`" for label in meaning.labels) or "–", meaning.help]
        for name, meaning in METRICS.items()
    }
    assert table == wanted
    assert [name for name in PROCESS if f"`{name}`" not in PAGE] == []


def test_the_page_names_the_files_and_alerts_that_are_there() -> None:
    assert set(re.findall(r"examples/grafana/([\w.-]+)", PAGE)) >= {path.name for path in EXAMPLES.iterdir()}
    assert [rule["alert"] for rule in rules() if f"`{rule['alert']}`" not in PAGE] == []


def test_the_shipped_configuration_of_the_page_is_the_shipped_one() -> None:
    (shown,) = re.findall(r"```yaml\n(scrape_configs:.*?)```", PAGE, re.DOTALL)
    shipped = yaml.safe_load((EXAMPLES / "prometheus.yml").read_text())
    assert yaml.safe_load(shown)["scrape_configs"] == shipped["scrape_configs"]
