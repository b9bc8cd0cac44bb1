"""The status page in a headless Chromium, against a running bridge, a simulator and a mosquitto."""

import asyncio
import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import pytest
import yaml

import outputs
from bridge.sim.options import LineOptions
from bridge.sim.run import SimOptions, Simulator
from broker_fixture import Broker
from brokers import free_port
from harness import LIMIT_S, bridge_config

pytest.importorskip("selenium", reason="needs selenium: pip install -e .[dev]")
pytest.importorskip("aiohttp", reason="needs aiohttp: pip install -e .")
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
pytestmark = [
    pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="needs Chromium: apt-get install chromium chromium-driver"),
    pytest.mark.broker("binary"),
]

ODD = '<b onclick=x>"Ünï" 🚪</b>'
T = TypeVar("T")


def until(check: Callable[[], T], what: str) -> T:
    """What the check gives as soon as it is true; fails after `LIMIT_S`."""
    deadline = time.monotonic() + LIMIT_S
    while not (found := check()):
        assert time.monotonic() < deadline, f"not seen in {LIMIT_S} s: {what}"
        time.sleep(0.05)
    return found


class SimulatorThread:
    """A simulator with an event loop of its own, because the browser is asked without one."""

    def __init__(self, udp_port: int, lines: int, radio_log: Path) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self.radio_log = radio_log
        line = LineOptions(id="goip%d", password="password%d", keepalive=0.5, time_scale=20.0)
        self._simulator = Simulator(
            SimOptions(server=("127.0.0.1", udp_port), lines=lines, line=line, seed=7, radio_log=radio_log)
        )

    def __enter__(self) -> "SimulatorThread":
        self._thread.start()
        self._wait(self._simulator.__aenter__())
        return self

    def __exit__(self, *_: object) -> None:
        self._wait(self._simulator.__aexit__(None, None, None))
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)

    def receive_sms(self, line: str, sender: str, text: str) -> None:
        self._loop.call_soon_threadsafe(lambda: self._simulator.line(line).receive_sms(sender, text))

    def logout(self, line: str) -> None:
        self._loop.call_soon_threadsafe(lambda: self._simulator.line(line).logout())

    def login(self, line: str) -> None:
        self._loop.call_soon_threadsafe(lambda: self._simulator.line(line).login())

    def submitted(self) -> list[dict[str, Any]]:
        """The SMS that went on the air."""
        records = [json.loads(line) for line in self.radio_log.read_text().splitlines()]
        return [record for record in records if record["what"] == "submit"]

    def _wait(self, coroutine: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(LIMIT_S)


@dataclass
class Stage:
    """A bridge as a process, with its page."""

    directory: Path
    config: dict[str, Any]
    process: subprocess.Popen[bytes] | None = field(default=None)

    @property
    def url(self) -> str:
        return f"http://{self.config['http']['listen']}/"

    def start(self) -> None:
        (self.directory / "config.yaml").write_text(yaml.safe_dump(self.config))
        with (self.directory / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "bridge", "run", "--config", "config.yaml"],
                cwd=self.directory, stdout=log, stderr=log,
                env=os.environ | {"PYTHONPATH": str(Path(__file__).parent.parent)},
            )  # fmt: skip
        process = self.process
        outputs.show("bridge", lambda: process.returncode is None, (self.directory / "log").read_text)

    def stop(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(LIMIT_S)

    def ended(self) -> bool:
        return self.process is not None and self.process.poll() is not None

    def status(self) -> dict[str, Any] | None:
        """What the page is told; None while the bridge is not there."""
        with contextlib.suppress(OSError), urllib.request.urlopen(f"{self.url}status.json", timeout=5) as answer:
            status: dict[str, Any] = json.load(answer)
            return status
        return None

    def online(self) -> int:
        status = self.status()
        return status["bridge"]["lines"]["online"] if status else -1


@contextlib.contextmanager
def staged(directory: Path, broker: Broker, base: str, lines: dict[str, Any], **http: Any) -> Iterator[Stage]:
    """A running bridge."""
    config = bridge_config(broker, base, lines, timing={"offline_s": 3})
    config["http"] = {"listen": f"127.0.0.1:{free_port()}"} | http
    stage = Stage(directory, config)
    stage.start()
    try:
        until(lambda: stage.status() or stage.ended(), "an answer of the bridge")
        assert not stage.ended(), "the bridge ended"
        yield stage
    finally:
        stage.stop()


@pytest.fixture(scope="module")
def own_broker(run_mosquitto: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    with run_mosquitto(tmp_path_factory.mktemp("page-broker")) as broker:
        yield broker


@pytest.fixture(scope="module")
def simulated(own_broker: Broker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Stage, SimulatorThread]]:
    """Three lines that are there, one of an odd name, and one that is not; sending allowed."""
    directory = tmp_path_factory.mktemp("page")
    lines = {
        "goip1": {"password": "password1"},
        "goip2": {"password": "password2", "name": ODD, "gateway": "rack-1"},
        "goip3": {"password": "password3", "name": "Gate"},
        "gone": {"password": "password4"},
    }
    with staged(directory, own_broker, "goip", lines, send=True) as stage:
        port = int(stage.config["udp"]["listen"].rpartition(":")[2])
        with SimulatorThread(port, 3, directory / "radio.log") as simulator:
            until(lambda: stage.online() == 3, "3 lines online")
            yield stage, simulator


class Page:
    """The browser with the page, as its user sees it."""

    def __init__(self, driver: webdriver.Chrome) -> None:
        self.driver = driver
        self.expected_errors = r"^$"
        "What the console may say, as a regular expression."

    def open(
        self, stage: Stage, width: int = 1280, *, scheme: str = "light", reduced: bool = False, link: str = "Live"
    ) -> None:
        self.driver.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride",
            {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 700},
        )
        features = {"prefers-color-scheme": scheme, "prefers-reduced-motion": "reduce" if reduced else "no-preference"}
        self.driver.execute_cdp_cmd(
            "Emulation.setEmulatedMedia",
            {"features": [{"name": name, "value": value} for name, value in features.items()]},
        )
        self.driver.get(stage.url)
        until(lambda: self.text("#link") == link, f"{link} on the page")

    def leave(self) -> None:
        """To be done before its bridge is stopped, for the console's sake."""
        self.driver.get("about:blank")

    def run(self, script: str, *arguments: object) -> Any:
        return self.driver.execute_script(script, *arguments)

    def find(self, selector: str) -> WebElement:
        return self.driver.find_element("css selector", selector)

    def text(self, selector: str) -> str:
        """The text as it is, also where it is scrolled away; empty if there is no such element."""
        return str(self.run("return document.querySelector(arguments[0])?.textContent || ''", selector))

    def visible(self, selector: str) -> bool:
        return self.find(selector).is_displayed()

    def rows(self) -> dict[str, str]:
        """The lines in their order: the name, and all that is said of it."""
        found: list[list[str]] = self.run(
            "return [...document.querySelectorAll('#rows tr')]"
            ".map(tr => [tr.querySelector('.name').textContent, tr.innerText])"
        )
        return dict(found)

    def facts(self) -> int:
        """How many are listed."""
        return int(self.run("return document.querySelectorAll('#facts li').length"))

    def keys(self, *keys: str) -> None:
        """Type, wherever the focus is."""
        for key in keys:
            self.driver.switch_to.active_element.send_keys(key)

    def console(self) -> list[str]:
        return [entry["message"] for entry in self.driver.get_log("browser")]


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    options = webdriver.ChromeOptions()
    assert CHROMIUM is not None
    options.binary_location = CHROMIUM
    for flag in (
        "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-component-update",
        "--disable-background-networking", "--disable-sync", f"--user-data-dir={tmp_path_factory.mktemp('profile')}",
    ):  # fmt: skip
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    try:
        yield driver
    finally:
        driver.quit()


@pytest.fixture
def page(driver: webdriver.Chrome) -> Iterator[Page]:
    """A page whose console stays empty: errors and violations of the content security policy are written there."""
    page = Page(driver)
    yield page
    said = page.console()
    page.leave()
    assert [line for line in said if not re.search(page.expected_errors, line)] == []


# --- what it shows ---------------------------------------------------------------------------------------------


def test_lines_are_shown_and_the_ones_in_trouble_come_first(
    page: Page, simulated: tuple[Stage, SimulatorThread]
) -> None:
    stage, _ = simulated
    page.open(stage)
    until(lambda: page.text("#health") == "Ready", "the bridge's health")
    until(lambda: "Offline" in page.rows()["gone"], "the line that is not there")
    rows = page.rows()
    assert list(rows) == ["gone", ODD, "Gate", "goip1"]
    assert "never seen" in rows["gone"]
    assert "Online" in rows[ODD]
    assert "goip2 · rack-1" in rows[ODD]
    assert re.search(r"\N{MINUS SIGN}\d+ dBm", rows[ODD])
    assert "SIMULATED GSM" in rows[ODD]
    assert "registered" in rows[ODD]
    assert "Lines online3 of 4" in page.text("#tiles")
    assert "MQTT 5" in page.text("#tiles")
    assert page.text("#why") == "The bridge works; 1 line needs attention."
    assert page.driver.title == "(1) GoIP bridge"


def test_a_received_sms_appears_by_itself_everywhere(page: Page, simulated: tuple[Stage, SimulatorThread]) -> None:
    stage, simulator = simulated
    page.open(stage)
    total = "return +document.querySelector('#plot .series tspan').textContent"
    before = page.run(total)
    page.run("document.querySelector('#figures').open = true")
    text = "The secret text of 34 characters.."
    simulator.receive_sms("goip2", "+4915112345678", text)
    fact = "[...document.querySelectorAll('#facts li')].find(li => li.textContent.includes('…678, 34 characters'))"
    until(lambda: page.run(f"return !!{fact}"), "the fact")
    assert page.run(f"return {fact}.querySelector('.name').textContent") == ODD
    assert page.run(f"return {fact}.innerText").startswith("SMS received")
    until(lambda: re.search(r"just now\s+from …678", page.rows()[ODD]), "the last SMS of the line")
    until(lambda: page.run(total) == before + 1, "the plot")
    figures = page.run("return [...document.querySelectorAll('#figures tbody tr')].map(tr => +tr.cells[1].textContent)")
    assert len(figures) == 60
    assert sum(figures) == before + 1
    bars = page.run(
        "return [...document.querySelectorAll('#plot rect.received')].filter(r => +r.getAttribute('height'))"
    )
    assert bars
    until(lambda: re.search("SMS received|new events, the last", page.text("#say")), "what screen readers are told")
    source = page.run("return document.documentElement.outerHTML")
    assert text not in source
    assert "15112345678" not in source.replace('placeholder="+4915112345678 or @name"', "")


def test_facts_are_told_without_being_asked_for(page: Page, simulated: tuple[Stage, SimulatorThread]) -> None:
    stage, simulator = simulated
    page.open(stage)
    page.run("window.fetch = () => new Promise(() => {})")
    simulator.receive_sms("goip1", "+4915112345555", "hello")
    until(lambda: "…555" in page.text("#facts"), "the fact")


def test_an_update_leaves_focus_selection_and_layout_alone(
    page: Page, simulated: tuple[Stage, SimulatorThread]
) -> None:
    stage, simulator = simulated
    page.open(stage)
    until(lambda: "Offline" in page.rows()["gone"], "the line that is not there")
    page.find("#filter").send_keys("g")
    until(lambda: "goip1" in page.rows(), "the filter")
    page.run(
        "getSelection().selectAllChildren(document.querySelector('#rows .name')); document.activeElement.id || "
        "document.querySelector('#filter').focus({preventScroll: true})"
    )
    selected = page.run("return getSelection().toString()")
    where = (
        "return [...document.querySelectorAll('section, #rows tr, #tiles div, h1, #filter')]"
        ".map(node => Object.values(node.getBoundingClientRect().toJSON()).join())"
    )
    page.run("window.first = document.querySelector('#rows tr')")
    before, facts = page.run(where), page.facts()
    simulator.receive_sms("goip1", "+4915112345777", "hello")
    until(lambda: page.facts() > facts, "the fact")
    until(lambda: "…777" in page.rows()["goip1"], "the last SMS of the line")
    assert page.run(where) == before
    assert page.run("return window.first === document.querySelector('#rows tr')")
    assert page.run("return getSelection().toString()") == selected != ""
    assert page.find("#filter").get_property("value") == "g"


def test_events_can_be_paused(page: Page, simulated: tuple[Stage, SimulatorThread]) -> None:
    stage, simulator = simulated
    page.open(stage)
    before = page.facts()
    page.find("#pause").send_keys(Keys.ENTER)
    assert page.find("#pause").get_attribute("aria-pressed") == "true"
    simulator.receive_sms("goip1", "+4915112345666", "hello")
    until(lambda: re.fullmatch(r"Resume \(\d new\)", page.text("#pause")), "that something is held back")
    until(lambda: "…666" in page.rows()["goip1"], "the last SMS of the line")
    assert page.facts() == before
    assert "…666" not in page.text("#facts")
    page.find("#pause").send_keys(Keys.ENTER)
    assert page.facts() > before
    assert "…666" in page.text("#facts")


def test_filter_and_attention_choose_lines(page: Page, simulated: tuple[Stage, SimulatorThread]) -> None:
    stage, _ = simulated
    page.open(stage)
    until(lambda: "Offline" in page.rows()["gone"], "the line that is not there")
    page.find("#filter").send_keys("RACK")
    assert list(page.rows()) == [ODD]
    assert page.text("#shown") == "1 of 1 line (4 in all)"
    page.keys(Keys.CONTROL + "a", "no such line")
    assert page.rows() == {}
    assert page.text("#shown") == "No line matches this filter."
    page.keys(Keys.CONTROL + "a", Keys.BACKSPACE)
    page.find("#attention").send_keys(Keys.SPACE)
    assert list(page.rows()) == ["gone"]


def test_two_thousand_lines_are_shown_in_pages(page: Page, own_broker: Broker, tmp_path: Path) -> None:
    lines = {f"goip{n}": {"password": "p", "name": f"Site {n}"} for n in range(1, 2001)}
    with staged(tmp_path, own_broker, "many", lines) as stage:
        page.open(stage)
        assert len(page.rows()) == 50
        assert list(page.rows())[:3] == ["Site 1", "Site 2", "Site 3"]
        page.find("#more").send_keys(Keys.ENTER)
        assert len(page.rows()) == 250
        page.find("#filter").send_keys("site 1987")
        assert list(page.rows()) == ["Site 1987"]
        page.leave()


# --- the connection --------------------------------------------------------------------------------------------


def test_a_lost_connection_is_said_and_found_again(page: Page, own_broker: Broker, tmp_path: Path) -> None:
    """And the form is there only where sending is allowed."""
    page.expected_errors = (
        r"ERR_CONNECTION_REFUSED|ERR_INCOMPLETE_CHUNKED_ENCODING|ERR_CONNECTION_RESET|ERR_EMPTY_RESPONSE"
    )
    with staged(tmp_path, own_broker, "lost", {"goip1": {"password": "p"}}) as stage:
        page.open(stage)
        assert not page.visible("#send")
        assert not page.visible("#lost")
        page.run("window.same = true")
        stage.stop()
        until(lambda: page.visible("#lost"), "that the connection is lost")
        assert re.match(r"No connection to the bridge\. What is shown is from \d\d:\d\d:\d\d$", page.text("#lost-what"))
        assert page.text("#link") == "No answer"
        until(lambda: re.fullmatch(r"\([2-9] s ago\)", page.text("#lost-age")), "how old it is")
        assert page.text("#say-link") == page.text("#lost-what")
        assert page.driver.title == "No connection: GoIP bridge"
        assert "goip1" in page.rows()
        stage.config["http"]["send"] = True
        stage.start()
        until(lambda: page.text("#link") == "Live", "that it is found again")
        assert not page.visible("#lost")
        assert page.text("#say-link") == "Connected to the bridge again"
        assert page.visible("#send")
        assert page.run("return window.same"), "the page was not loaded again"


def test_without_a_stream_the_page_asks(page: Page, simulated: tuple[Stage, SimulatorThread]) -> None:
    """All streams are taken; a line in trouble goes up the list all the same, and down again."""
    page.expected_errors = r"/events - Failed to load resource: the server responded with a status of 503"
    stage, simulator = simulated
    page.leave()

    def refused() -> bool:
        try:
            streams.enter_context(urllib.request.urlopen(f"{stage.url}events", timeout=5))
        except urllib.error.HTTPError as error:
            return error.code == 503
        return False

    with contextlib.ExitStack() as streams:
        until(refused, "that there are no more streams")
        page.open(stage, link="Every 5 s")
        until(lambda: "Offline" in page.rows()["gone"], "the line that is not there")
        assert list(page.rows()) == ["gone", ODD, "Gate", "goip1"]
        simulator.logout("goip1")
        until(lambda: list(page.rows()) == ["gone", "goip1", ODD, "Gate"], "the line that lost its network")
        assert "No network" in page.rows()["goip1"]
        assert page.text("#attention-count") == "2"
    simulator.login("goip1")
    until(lambda: page.text("#link") == "Live", "a stream, now that there are some again")
    until(lambda: list(page.rows()) == ["gone", ODD, "Gate", "goip1"], "the line that found its network")


def test_what_is_wrong_with_the_bridge_is_said(page: Page, tmp_path: Path) -> None:
    """A broker that is not there."""
    broker = Broker(kind="mosquitto", host="127.0.0.1", port=free_port())
    with staged(tmp_path, broker, "wrong", {"goip1": {"password": "p"}}) as stage:
        page.open(stage)
        assert page.text("#health") == "Not ready"
        assert "MQTT broker: not connected to the broker" in page.text("#why")
        assert "Not connected" in page.text("#tiles")
        assert page.driver.title.endswith("GoIP bridge: not ready")
        page.leave()


# --- sending ---------------------------------------------------------------------------------------------------


def write_sms(page: Page, line: str, to: str, text: str) -> None:
    """By keyboard, from the first field on."""
    page.run("document.querySelector('#line').focus()")
    page.keys(line, Keys.TAB)
    page.keys(to, Keys.TAB)
    page.keys(text)


def test_an_sms_typed_on_the_keyboard_goes_out_once(page: Page, simulated: tuple[Stage, SimulatorThread]) -> None:
    stage, simulator = simulated
    page.open(stage)
    write_sms(page, "goip1", "+4915112345001", "Grüße, 5 €")
    assert page.text("#count") == "10 characters, 1 SMS"
    page.keys(Keys.TAB)
    assert page.run("return document.activeElement.id") == "submit"
    # Submitted three times in one go, as by an impatient hand.
    page.run("for (let i = 0; i < 3; i++) document.querySelector('#form').requestSubmit()")
    until(lambda: "Delivered." in page.text("#sent"), "the delivery")
    assert page.run("return document.activeElement.id") == "submit"
    assert page.find("#text").get_property("value") == ""
    assert page.run("return document.querySelectorAll('#sent li').length") == 1
    found = [record for record in simulator.submitted() if record["to"] == "+4915112345001"]
    assert [(record["line"], record["text"]) for record in found] == [("goip1", "Grüße, 5 €")]


def test_a_lost_answer_makes_no_second_sms(page: Page, simulated: tuple[Stage, SimulatorThread]) -> None:
    """The command arrives, its answer does not: the same again is the same SMS."""
    stage, simulator = simulated
    page.open(stage)
    page.run(
        "const real = window.fetch; window.fetch = async (...request) => { const answer = await real(...request);"
        " if (request[0] === 'send') { window.fetch = real; throw new TypeError('lost'); } return answer; };"
    )
    write_sms(page, "Gate", "+4915112345002", "once")
    page.keys(Keys.TAB, Keys.ENTER)
    until(lambda: "No answer: it is not known" in page.text("#sent"), "that the answer is missing")
    assert page.find("#text").get_property("value") == "once"
    page.keys(Keys.ENTER)
    until(lambda: page.find("#text").get_property("value") == "", "the answer")
    until(lambda: any(r["to"] == "+4915112345002" for r in simulator.submitted()), "the SMS")
    write_sms(page, "Gate", "+4915112345003", "after it")  # lines send in order
    page.keys(Keys.TAB, Keys.ENTER)
    until(lambda: any(r["to"] == "+4915112345003" for r in simulator.submitted()), "the SMS after it")
    assert len([r for r in simulator.submitted() if r["to"] == "+4915112345002"]) == 1


def test_a_refused_sms_says_why(page: Page, simulated: tuple[Stage, SimulatorThread]) -> None:
    page.expected_errors = r"/send - Failed to load resource: the server responded with a status of 400"
    stage, _ = simulated
    page.open(stage)
    write_sms(page, "goip1", "nobody", "hello")
    page.keys(Keys.TAB, Keys.ENTER)
    until(lambda: "Refused: to" in page.text("#sent"), "the reason")
    assert page.find("#text").get_property("value") == "hello"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a" * 160, "160 characters, 1 SMS"),
        ("a" * 161, "161 characters, 2 SMS"),
        ("{" * 80, "80 characters, 1 SMS"),
        ("{" * 153, "153 characters, 3 SMS"),
        ("ж" * 70, "70 characters, 1 SMS"),
        ("🚪" * 66, "66 characters, 2 SMS"),
        ("🚪" * 67, "67 characters, 3 SMS"),
        ("ж" * 1501, "1501 characters, 23 SMS: too long"),
    ],
    ids=range(8),
)
def test_characters_and_parts_are_counted(
    page: Page, simulated: tuple[Stage, SimulatorThread], text: str, said: str
) -> None:
    page.open(simulated[0])
    page.run(
        "const field = document.querySelector('#text'); field.value = arguments[0];"
        "field.dispatchEvent(new Event('input'))",
        text,
    )
    assert page.text("#count") == said


# --- for everybody ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [320, 390, 768, 1280, 1728])
def test_nothing_is_wider_than_the_screen(page: Page, simulated: tuple[Stage, SimulatorThread], width: int) -> None:
    page.open(simulated[0], width)
    page.run("document.querySelector('#figures').open = true")
    until(lambda: page.rows(), "the lines")
    assert page.run("const page = document.documentElement; return page.scrollWidth <= page.clientWidth")
    assert page.run("return innerWidth") == width  # a phone's browser zooms out to show what is too wide
    cut = page.run(
        "return [...document.querySelectorAll('#rows td, #rows th, button, #tiles dd:not(.note)')]"
        ".filter(node => node.scrollWidth > node.clientWidth + 1 && node.checkVisibility()).map(node => node.innerText)"
    )
    assert cut == []


CONTRAST = """
const rgb = text => { const [r, g, b, a = 1] = text.match(/[\\d.]+/g).map(Number); return [r, g, b, a]; };
const light = ([r, g, b]) => [r, g, b].map(v => v / 255)
  .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
  .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
const poor = [];
for (const node of document.querySelectorAll('body *')) {
  const said = [...node.childNodes].some(child => child.nodeType === 3 && child.data.trim());
  if (!said || !node.checkVisibility()) continue;
  const style = getComputedStyle(node), ink = rgb(node.closest('svg') ? style.fill : style.color);
  let ground = [0, 0, 0, 0];
  for (let at = node; at && ground[3] < 1; at = at.parentElement) ground = rgb(getComputedStyle(at).backgroundColor);
  const [high, low] = [light(ink), light(ground)].sort((a, b) => b - a), ratio = (high + 0.05) / (low + 0.05);
  if (ratio < 4.5) poor.push(`${node.tagName} ${node.textContent.trim().slice(0, 30)}: ${ratio.toFixed(2)}`);
}
return poor;
"""


def test_dark_and_light_are_both_readable(page: Page, simulated: tuple[Stage, SimulatorThread]) -> None:
    colours = {}
    for scheme in ("light", "dark"):
        page.open(simulated[0], scheme=scheme, reduced=True)
        until(lambda: "Offline" in page.rows()["gone"], "the line that is not there")
        assert page.run(CONTRAST) == []
        colours[scheme] = page.run(
            "const style = getComputedStyle(document.body); return [style.color, style.backgroundColor]"
        )
    (ink, ground), (dark_ink, dark_ground) = colours["light"], colours["dark"]
    brightness = {name: sum(map(int, re.findall(r"\d+", name)[:3])) for name in (ink, ground, dark_ink, dark_ground)}
    assert brightness[ink] < 200 < 600 < brightness[ground]
    assert brightness[dark_ground] < 200 < 600 < brightness[dark_ink]


def test_nothing_moves_for_those_who_do_not_want_it(page: Page, simulated: tuple[Stage, SimulatorThread]) -> None:
    stage, simulator = simulated
    names = {}
    for reduced in (False, True):
        page.open(stage, reduced=reduced)
        simulator.receive_sms("goip1", "+4915112345888", "hello")
        until(lambda: page.run("return !!document.querySelector('#facts li.new')"), "the fact")
        names[reduced] = page.run("return getComputedStyle(document.querySelector('#facts li.new')).animationName")
    assert names == {False: "new", True: "none"}


@pytest.mark.parametrize("width", [390, 1280])
def test_every_control_is_reached_by_tab_and_shows_it(
    page: Page, simulated: tuple[Stage, SimulatorThread], width: int
) -> None:
    page.open(simulated[0], width)
    page.run("document.querySelector('#figures').open = true")
    wanted = page.run(
        "const all = document.querySelectorAll('a, button, input, select, textarea, summary, [tabindex=\"0\"]');"
        "window.controls = [...all]"
        ".filter(node => node.checkVisibility()); return controls.map((node, i) => `${i} ${node.tagName}#${node.id}`)"
    )
    assert len(wanted) >= 12
    reached, dim, unnamed = [], [], []
    for _ in wanted:
        page.keys(Keys.TAB)
        at, outline, name = page.run(
            "const node = document.activeElement, i = controls.indexOf(node), style = getComputedStyle(node);"
            "return [`${i} ${node.tagName}#${node.id}`,"
            " style.outlineStyle !== 'none' && parseFloat(style.outlineWidth) >= 2,"
            " node.ariaLabel || node.labels?.[0]?.textContent || node.textContent]"
        )
        reached.append(at)
        dim += [] if outline else [at]
        unnamed += [] if name.strip() else [at]
    assert reached == wanted, "in the order in which they are written, and no trap"
    assert dim == []
    assert unnamed == []


def test_the_plot_is_read_by_arrow_keys(page: Page, simulated: tuple[Stage, SimulatorThread]) -> None:
    page.open(simulated[0])
    page.run("document.querySelector('#plot').focus()")
    last = page.find("#plot").get_attribute("aria-valuetext")
    page.keys(Keys.ARROW_LEFT, Keys.ARROW_LEFT)
    now = page.find("#plot").get_attribute("aria-valuetext")
    assert page.find("#plot").get_attribute("aria-valuenow") == "57"
    assert now != last
    assert re.fullmatch(r"\d\d:\d\d: \d+ received, \d+ sent, \d+ delivered, \d+ failed", now)
    assert page.text("#minute") == now
