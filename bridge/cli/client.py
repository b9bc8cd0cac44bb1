"""The MQTT connection of the command line: aiomqtt, configured by the same file and variables as the bridge.

Not the service's link (`bridge.mqtt.link`): nothing is kept and nothing is repeated here. A lost connection ends the
command, with one line that says why.
"""

import argparse
import asyncio
import contextlib
import json
import os
import re
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, Literal

import aiomqtt
from aiomqtt import ProtocolVersion
from aiomqtt.exceptions import MqttConnectError
from paho.mqtt.client import MQTT_CLEAN_START_FIRST_ONLY, DisconnectFlags, MQTTMessage, topic_matches_sub
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode
from pydantic import ValidationError

from ..config import settings as configuration
from ..config.settings import BrokerUrl, ConfigError, MqttSettings, Settings
from ..mqtt.link import ADVICE, UNSUPPORTED_VERSION, LinkConfig, tls_context
from ..process.embedded_broker import DEFAULT_PORT, FOLDER, LOOPBACK
from ..system.terminal import clean, cleaned, complain

CONNECT_S = 10.0
REFUSED = 0x80
"Reason codes from here on are refusals."
NO_SUBSCRIBER = 0x10
_TLS_KEYS = ("ca_file", "cert_file", "key_file", "server_name")


class ClientError(Exception):
    """Why the command can't go on: one line for people, with what to do."""


class ConnectError(ClientError):
    """The broker can't be reached, or refuses us; `code` is its reason code, if it gave one."""

    def __init__(self, message: str, code: int | None = None) -> None:
        super().__init__(message)
        self.code = code


class Client(aiomqtt.Client):
    """aiomqtt, which also tells what the broker answered to a publish, and when it hangs up instead of answering.

    `messages` has what `listen` asked for, and nothing else: amqtt sends each client, as it connects, also what is
    retained on the topics that others have subscribed to, and that again when the client subscribes to them itself.
    """

    version: Literal["5", "3.1.1"]
    url: str
    session_present = False
    "The broker had a session of our client id."
    _code = 0
    _filters: tuple[str, ...] = ()

    async def send(
        self, topic: str, payload: str | bytes, *, retain: bool = False, properties: Properties | None = None
    ) -> int:
        """Publish with QoS 1; the reason code of the PUBACK, always 0 on MQTT 3.1.1. One at a time."""
        self._code = 0
        await self.publish(topic, payload, qos=1, retain=retain, properties=properties)
        return self._code

    async def listen(self, *filters: str, qos: int = 1) -> list[str]:
        """Subscribe; those filters that the broker refused."""
        self._filters += filters  # before the SUBACK: brokers may send the first messages ahead of it
        codes = await self.subscribe([(topic_filter, qos) for topic_filter in filters])
        values = [code.value if isinstance(code, ReasonCode) else code for code in codes]
        return [topic_filter for topic_filter, value in zip(filters, values, strict=True) if value >= REFUSED]

    def _on_connect(
        self, client: Any, userdata: Any, flags: Any, reason_code: ReasonCode, properties: Properties | None = None
    ) -> None:
        self.session_present = bool(flags.session_present)
        if self.session_present:  # somebody else's: what waits in it is for him, and is not acknowledged here
            client.manual_ack_set(True)
        super()._on_connect(client, userdata, flags, reason_code, properties)

    def _on_message(self, client: Any, userdata: Any, message: MQTTMessage) -> None:
        if any(topic_matches_sub(topic_filter, message.topic) for topic_filter in self._filters):
            super()._on_message(client, userdata, message)

    def _on_publish(
        self, client: Any, userdata: Any, mid: int, reason_code: ReasonCode, properties: Properties
    ) -> None:
        self._code = reason_code.value
        super()._on_publish(client, userdata, mid, reason_code, properties)

    def _on_disconnect(
        self,
        client: Any,
        userdata: Any,
        flags: DisconnectFlags,
        reason_code: ReasonCode,
        properties: Properties | None = None,
    ) -> None:
        if not self._connected.done():  # aiomqtt would wait for a CONNACK that can't come any more
            self._connected.set_exception(aiomqtt.MqttError("closed by the broker"))
        super()._on_disconnect(client, userdata, flags, reason_code, properties)


class Presence:
    """Whether the bridge is there, as its `bridge/availability` says."""

    def __init__(self) -> None:
        self.said: str | None = None
        "The last word; None before the first one."

    def hear(self, payload: bytes, *, retained: bool) -> str | None:
        """A message on `bridge/availability`; what to warn of, where the bridge went away or was restarted meanwhile.

        A broker may deliver what is retained more than once: only a word that changed, or one published just now, is
        news.
        """
        before, self.said = self.said, read_text(payload)
        if before is None or (retained and self.said == before):
            return None
        if self.said != "online":
            return f"the bridge went {self.said or 'away'}; waiting for it"
        return "the bridge was restarted" if before == "online" else "the bridge is online again"


# -- the command line's side


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of every command that connects to the broker."""
    parser.add_argument("--config", type=Path, metavar="FILE", help="default: $GOIP_CONFIG, then ./config.yaml")
    parser.add_argument("--url", metavar="URL", help="the broker, instead of mqtt.url: mqtt://user:password@host:1883")


def load(args: argparse.Namespace) -> Settings:
    """The settings, with the broker of `--url`. Raises ConfigError."""
    settings = configuration.load(args.config, os.environ)
    if args.url is None:
        return settings
    return settings.model_copy(update={"mqtt": _elsewhere(settings.mqtt, args.url)})


def run(args: argparse.Namespace, work: Callable[[Settings], Awaitable[int]]) -> int:
    """Load the settings, do the work, and turn what goes wrong into one line and an exit code."""
    try:
        settings = load(args)
    except ConfigError as error:
        for fault in error.faults:
            complain(fault)
        return 2

    async def main() -> int:
        return await work(settings)

    try:
        return asyncio.run(main())
    except ClientError as error:
        complain(str(error))
    except aiomqtt.MqttError as error:
        complain(f"{address(settings)[1]}: the connection was lost: {error}")
    return 1


def read(payload: bytes) -> dict[str, Any]:
    """The fields of a payload, fit to be shown; none where it is no JSON object."""
    try:
        value = cleaned(json.loads(payload))
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def read_text(payload: bytes) -> str:
    """A payload of plain text, fit to be shown."""
    return clean(payload.decode(errors="replace"))


@contextlib.asynccontextmanager
async def connect(settings: Settings, role: str) -> AsyncIterator[Client]:
    """A connection with a client id of its own that begins with `role`. Raises ConnectError.

    MQTT 5, and 3.1.1 where the configuration or the broker wants that.
    """
    wanted = settings.mqtt.version
    try:
        client = await _open(settings, role, "3.1.1" if wanted == "3.1.1" else "5")
    except ConnectError as error:
        # A broker without MQTT 5 refuses it, or just hangs up; one that knows 5 says what else is wrong.
        if wanted != "auto" or error.code not in (UNSUPPORTED_VERSION, None) or not isinstance(error, _UnansweredError):
            raise
        client = await _open(settings, role, "3.1.1")
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_exit(client.__aexit__)
        yield client


def properties(**values: object) -> Properties:
    """MQTT 5 properties of a publish."""
    made = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
    for name, value in values.items():
        setattr(made, name, value)
    return made


def address(settings: Settings) -> tuple[BrokerUrl, str]:
    """Where the broker is, and its url for people. Without mqtt.url: the embedded one of a bridge on this machine."""
    found = settings.mqtt.address
    if found is None:
        found = BrokerUrl("mqtt", LOOPBACK, _embedded_port(settings), "")
    where = found.path if found.scheme == "unix" else f"{_bracketed(found.host)}:{found.port}"
    return found, f"{found.scheme}://{where}"


# -- connecting


class _UnansweredError(ConnectError):
    """The broker was reached, and did not answer MQTT 5 as a broker that knows it."""


async def _open(settings: Settings, role: str, version: Literal["5", "3.1.1"]) -> Client:
    """Connect. Where there is a user name, not before it is known that this takes nobody's place."""
    identifier = f"goip-bridge-{role}-{secrets.token_hex(4)}"
    if settings.mqtt.username is not None or settings.mqtt.cert_file is not None:
        await _refuse_to_take_over(settings, identifier, version)
    return await _connected(settings, identifier, version, clean=True)


async def _refuse_to_take_over(settings: Settings, identifier: str, version: Literal["5", "3.1.1"]) -> None:
    """Some brokers take the user name for the client id (`use_username_as_clientid` of mosquitto), and then we are the
    bridge: it is pushed out, and a clean session would throw away its commands. They do not say so; but a session that
    is there for an id that nobody ever had can only be that. It stays as it is, with all that waits in it.
    """
    client = await _connected(settings, identifier, version, clean=False)
    present = client.session_present
    with contextlib.suppress(aiomqtt.MqttError):
        await client.__aexit__(None, None, None)
    if present:
        raise ConnectError(
            f"{client.url}: the broker takes the user name for the client id, so this command would take the place of "
            "the bridge, and of its waiting commands; give it a user of its own, as in --url "
            "mqtt://user:password@host, or switch use_username_as_clientid off. A bridge that runs was cut off, and "
            "connects again within a minute or two"
        )


async def _connected(settings: Settings, identifier: str, version: Literal["5", "3.1.1"], *, clean: bool) -> Client:
    mqtt = settings.mqtt
    broker, url = address(settings)
    kept = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
    kept.SessionExpiryInterval = _link_config(broker, mqtt).session_expiry_s
    transport: Literal["tcp", "websockets", "unix"] = "tcp"
    if broker.scheme in ("ws", "wss"):
        transport = "websockets"
    elif broker.scheme == "unix":
        transport = "unix"
    try:
        client = Client(
            broker.path if broker.scheme == "unix" else broker.host,
            broker.port or DEFAULT_PORT,
            username=mqtt.username,
            password=mqtt.password.get_secret_value() if mqtt.password else None,
            identifier=identifier,
            protocol=ProtocolVersion.V5 if version == "5" else ProtocolVersion.V311,
            clean_session=None if version == "5" else clean,
            clean_start=clean if version == "5" else MQTT_CLEAN_START_FIRST_ONLY,
            properties=kept if version == "5" and not clean else None,
            transport=transport,
            timeout=CONNECT_S,
            keepalive=30,
            tls_context=tls_context(_link_config(broker, mqtt)) if broker.tls else None,
            websocket_path=broker.path if transport == "websockets" else None,
        )
        client.version, client.url = version, url
        await client.__aenter__()
    except MqttConnectError as error:
        raise _refused(url, error) from None
    except aiomqtt.MqttError as error:
        raise _failed(url, str(error), mqtt) from None
    except (OSError, ValueError) as error:  # a certificate that can't be read, a host that can't be one
        raise ConnectError(f"{url}: {error}") from None
    return client


def _refused(url: str, error: MqttConnectError) -> ConnectError:
    code = error.rc.value if isinstance(error.rc, ReasonCode) else error.rc
    advice = ADVICE.get(code or 0, "look into the broker's log")
    kind = _UnansweredError if code == UNSUPPORTED_VERSION else ConnectError
    return kind(f"{url}: the broker refused the connection: {error.rc}; {advice}", code)


def _failed(url: str, reason: str, mqtt: MqttSettings) -> ConnectError:
    if reason in ("closed by the broker", "Operation timed out"):
        return _UnansweredError(f"{url}: no MQTT broker answers there ({reason.lower()}); check mqtt.url")
    if mqtt.url is None:
        hint = "is goip-bridge running here with its embedded broker? Otherwise set mqtt.url or --url"
    elif "CERTIFICATE" in reason.upper():
        hint = "check mqtt.ca_file and mqtt.server_name"
    else:
        hint = "is the broker running, and mqtt.url right?"
    return ConnectError(f"{url}: cannot connect: {reason}; {hint}")


def _link_config(broker: BrokerUrl, mqtt: MqttSettings) -> LinkConfig:
    files = {key: str(value) for key in _TLS_KEYS if (value := getattr(mqtt, key)) is not None}
    return LinkConfig(host=broker.host, client_id="", **files)  # type: ignore[arg-type]


def _elsewhere(mqtt: MqttSettings, url: str) -> MqttSettings:
    """The same settings for another broker: what the url says wins, and what does not fit it is left out."""
    given = {key: getattr(mqtt, key) for key in ("username", "password", "version", *_TLS_KEYS)}
    if "@" in url:
        given["username"] = given["password"] = None
    if not url.lower().startswith(("mqtts:", "wss:")):
        given |= dict.fromkeys(_TLS_KEYS)
    try:
        return MqttSettings.model_validate({**given, "url": url})
    except ValidationError as error:
        reasons = [str(one.get("ctx", {}).get("error", one["msg"])) for one in error.errors(include_input=False)]
        raise ConfigError([f"--url: {reason}" for reason in reasons]) from None


def _embedded_port(settings: Settings) -> int:
    """The bridge takes another port where 1883 is taken, and writes it down for its mosquitto."""
    try:
        written = (settings.store.path.absolute().parent / FOLDER / "mosquitto.conf").read_text()
    except OSError:
        return DEFAULT_PORT
    found = re.search(r"^listener (\d+)", written, re.MULTILINE)
    return int(found[1]) if found else DEFAULT_PORT


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def reason(error: dict[str, Any]) -> str:
    """The `error` of a fact for people; an older bridge does not say what a code means."""
    code, text = error.get("code"), error.get("meaning") or error.get("text")
    return f"{text}" if code is None else f"{code}, {text}"
