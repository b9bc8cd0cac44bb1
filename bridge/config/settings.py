"""The configuration: what each key means, and how the file and the environment become one checked `Settings`.

The models and their strings are also the source of the JSON Schema of the configuration file. `load` is called at start
and on reload; nothing here opens a socket or a database.

`Settings` is a pydantic-settings model whose one source is `_Source`: the library's own sources fold line ids to lower
case, pass over unknown variables, and can't say which line of the file a fault is in.
"""

import contextlib
import difflib
import itertools
import json
import re
import ssl
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from pathlib import Path
from types import MappingProxyType, UnionType
from typing import Annotated, Any, Literal, Self, Union, get_args, get_origin
from urllib.parse import SplitResult, unquote, urlsplit

import phonenumbers
import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    JsonValue,
    SecretStr,
    ValidationError,
    WithJsonSchema,
    model_validator,
)
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from ..contract import numbers
from ..homeassistant import documents as homeassistant

Place = tuple[str | int, ...]
"""Where a value is: `("lines", "goip1", "allow_from", 0)`."""

DEFAULT_FILE = Path("config.yaml")
PREFIX = "GOIP_"
RESERVED_IDS = frozenset({"bridge", "any", "pool", "job"})
MAX_FILE_BYTES = 1 << 20
"Of the configuration file: room for 10,000 lines. Reading takes a second for each 100 kB."
MAX_VALUES = 100_000
"Keys and values of the file, each as often as an alias repeats it: a few lines of aliases can stand for millions."
MAX_FAULTS = 100
"Faults that are told at once."
DEFAULT_PORTS = {"mqtt": 1883, "mqtts": 8883, "ws": 80, "wss": 443, "unix": 0}


class ConfigError(Exception):
    """The configuration can't be used; `faults` says why, one line each: where, what, and what to do."""

    def __init__(self, faults: list[str]) -> None:
        super().__init__("\n".join(faults))
        self.faults = faults


class _Faults(ValueError):  # noqa: N818  # a list of faults, not one
    """Several faults of one model, each with its place below that model; pydantic carries one error per validator."""

    def __init__(self, *items: tuple[Place, str]) -> None:
        super().__init__("; ".join(message for _, message in items))
        self.items = items


# Values ---------------------------------------------------------------------------------------------------------------

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
_ID = r"^[A-Za-z0-9_-]{1,32}$"


def _topic(value: str) -> str:
    if not all(value.split("/")):
        raise ValueError("has an empty level; write it like goip or house/goip, without / at either end")
    if value.startswith("$"):
        raise ValueError("must not start with $, which belongs to the broker")
    if value != value.strip():
        raise ValueError("must not have blanks around it")
    if re.search(r"[+#]", value) or _CONTROL.search(value):
        raise ValueError("must not contain the wildcards + and # or control characters")
    return value


def _id(value: str) -> str:
    if not re.fullmatch(_ID, value):
        raise ValueError("must be 1 to 32 of the characters A-Z a-z 0-9 _ -")
    return value


def _line_id(value: str) -> str:
    try:
        _id(value)
    except ValueError as error:
        raise ValueError(f"{error}; if the gateway registers with another id, put that into goip_id") from None
    if value.lower() in RESERVED_IDS:
        raise ValueError("is reserved; choose another id and put this one into goip_id")
    return value


def _goip_id(value: str) -> str:
    if ";" in value or _CONTROL.search(value) or value != value.strip():
        raise ValueError("must not contain ; or control characters, which end a field on the wire, or blanks around it")
    return value


def _printable(value: str) -> str:
    if not value.strip() or _CONTROL.search(value):
        raise ValueError("must not be blank or contain control characters")
    return value


def _contact_name(value: str) -> str:
    if not value or value != value.strip() or len(value) > 64 or value[0] in "$@":
        raise ValueError("must be 1 to 64 characters, without blanks around it and without $ or @ in front")
    if re.search(r"[/+#]", value) or _CONTROL.search(value):
        raise ValueError("must not contain / + # or control characters, since it is also a level of a topic")
    if numbers.reads_as_number(value):
        raise ValueError("must not read as a number, which it would be in cmd/sms/<to>")
    return value


def _contact_number(value: str) -> str:
    try:
        return numbers.normalise(value)
    except ValueError as error:
        rule = "; up to 32 digits, * and #, with at most a + in front" if str(error) == numbers.NOT_A_NUMBER else ""
        raise ValueError(f"{error}{rule}") from None


def _country(value: str) -> str:
    code = value.upper()
    if code not in phonenumbers.SUPPORTED_REGIONS:
        hint = "GB" if code == "UK" else "two letters of ISO 3166, such as DE, GB or UA"
        raise ValueError(f"unknown country; write {hint}")
    return code


def _network(value: object) -> IPv4Network | IPv6Network:
    if isinstance(value, IPv4Network | IPv6Network):
        return value
    try:
        network = ip_network(str(value), strict=False)
    except ValueError:
        if re.search(r"[,; ]", str(value).strip()):
            raise ValueError("several in one; write a list: [192.168.1.0/24, 10.0.0.7]") from None
        raise ValueError("not an address or network; write it like 192.168.1.0/24 or 192.168.1.7") from None
    if isinstance(network, IPv6Network) and (mapped := network.network_address.ipv4_mapped) and network.prefixlen >= 96:
        return IPv4Network((mapped, network.prefixlen - 96))
    return network


def _split_listen(value: str) -> tuple[str, int]:
    match = re.fullmatch(r"(?:\[([0-9A-Fa-f:.%\w]+)\]|([^\s:\[\]/]+)):([0-9]{1,5})", value)
    if match is None or int(match[3]) > 65535:
        raise ValueError("must be host:port, such as 127.0.0.1:8080, 0.0.0.0:44444 or [::]:44444")
    return match[1] or match[2], int(match[3])


def _listen(value: str) -> str:
    _split_listen(value)
    return value


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches what listens there."""
    with contextlib.suppress(ValueError):
        address = ip_address(host.partition("%")[0])
        return ((isinstance(address, IPv6Address) and address.ipv4_mapped) or address).is_loopback
    return host == "localhost"


def _host_name(value: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*", value):
        raise ValueError("must be a host name alone, without http:// and port: sms.example.org")
    return value.lower()


def _line_password(value: SecretStr) -> SecretStr:
    secret = value.get_secret_value()
    if not secret or not secret.isprintable() or " " in secret or ";" in secret:
        raise ValueError(
            "must not be empty or contain blanks, ; or control characters: the gateway's datagrams have no escapes"
        )
    return value


def _mqtt_password(value: SecretStr) -> SecretStr:
    if not value.get_secret_value() or _CONTROL.search(value.get_secret_value()):
        raise ValueError("must not be empty or contain control characters")
    return value


def _raised(value: object) -> object:
    """What a validator of the whole section found wrong with this value."""
    if isinstance(value, ValueError):
        raise value
    return value


def _path(value: Path) -> Path:
    if "\0" in str(value):
        raise ValueError("must not contain NUL")
    return value


def _existing_file(value: Path) -> Path:
    try:
        value.open("rb").close()
    except OSError as error:
        raise ValueError(f"cannot read {value}: {error.strerror}") from None
    return value


Topic = Annotated[str, Field(max_length=256), AfterValidator(_topic)]
Name = Annotated[str, Field(max_length=128), AfterValidator(_printable)]
Id = Annotated[str, AfterValidator(_id), WithJsonSchema({"type": "string", "pattern": _ID})]
LineId = Annotated[str, AfterValidator(_line_id), WithJsonSchema({"type": "string", "pattern": _ID})]
GoipId = Annotated[str, Field(min_length=1, max_length=64), AfterValidator(_goip_id)]
ContactName = Annotated[str, AfterValidator(_contact_name)]
Number = Annotated[str, AfterValidator(_contact_number)]
Country = Annotated[str, AfterValidator(_country), WithJsonSchema({"type": "string", "pattern": "^[A-Za-z]{2}$"})]
Network = Annotated[IPv4Network | IPv6Network, BeforeValidator(_network), WithJsonSchema({"type": "string"})]
Listen = Annotated[str, AfterValidator(_listen)]
HostName = Annotated[str, Field(max_length=253), AfterValidator(_host_name)]
FilePath = Annotated[Path, AfterValidator(_path)]
SecretFile = Annotated[Path, BeforeValidator(_raised)]
ReadableFile = Annotated[FilePath, AfterValidator(_existing_file)]
LinePassword = Annotated[SecretStr, AfterValidator(_line_password), WithJsonSchema({"type": "string", "minLength": 1})]
MqttPassword = Annotated[SecretStr, AfterValidator(_mqtt_password), WithJsonSchema({"type": "string", "minLength": 1})]


# In YAML, `version: 5` is a number; an editor must not complain about it.
MqttVersion = Annotated[Literal["auto", "5", "3.1.1"], WithJsonSchema({"enum": ["auto", "5", "3.1.1", 5]})]


@dataclass(frozen=True, slots=True)
class BrokerUrl:
    """An `mqtt.url` taken apart; it never holds credentials."""

    scheme: str
    "`mqtt`, `mqtts`, `ws`, `wss` or `unix`."
    host: str
    "Host name or address without brackets; empty for `unix`."
    port: int
    "The scheme's own port where the url has none; 0 for `unix`."
    path: str
    "The socket of `unix`, the path of `ws` and `wss`, otherwise empty."

    @property
    def tls(self) -> bool:
        """Whether the connection is encrypted."""
        return self.scheme in ("mqtts", "wss")

    @classmethod
    def parse(cls, url: str) -> Self:
        """The parts of a url without credentials; the ValueError for a bad one never quotes it."""
        parts = _split_url(url)
        if parts.username is not None or "@" in parts.path or "@" in parts.query:
            raise ValueError("has @ in a wrong place; percent-encode the password, or use username and password")
        if parts.scheme == "unix":
            if parts.netloc or not parts.path.startswith("/"):
                raise ValueError("needs an absolute path: unix:///run/mosquitto.sock")
            return cls("unix", "", 0, parts.path)
        try:
            host, port = parts.hostname, parts.port
        except ValueError:
            raise ValueError("has a port that is not a number from 1 to 65535") from None
        if not host or port == 0:
            raise ValueError("needs a host and, where it has one, a port from 1 to 65535: mqtt://localhost:1883")
        path = parts.path + (f"?{parts.query}" if parts.query else "")
        if parts.scheme in ("ws", "wss"):
            return cls(parts.scheme, host, port or DEFAULT_PORTS[parts.scheme], path or "/mqtt")
        if path.strip("/"):
            raise ValueError("must end after the port; only ws:// and wss:// have a path")
        return cls(parts.scheme, host, port or DEFAULT_PORTS[parts.scheme], "")


def _split_url(url: str) -> SplitResult:
    try:
        parts = urlsplit(url)
    except ValueError:
        raise ValueError("is not a url; write it like mqtt://localhost:1883") from None
    if parts.scheme not in DEFAULT_PORTS or not url.lower().startswith(f"{parts.scheme}://"):
        raise ValueError("must start with mqtt:// mqtts:// ws:// wss:// or unix://, such as mqtt://localhost:1883")
    if parts.fragment:
        raise ValueError("must not contain #; percent-encode the password, or use username and password")
    return parts


# Models ---------------------------------------------------------------------------------------------------------------


class _Section(BaseModel):
    """What all sections share: no unknown keys, and a key without a value means its default."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, hide_input_in_errors=True, use_attribute_docstrings=True, allow_inf_nan=False
    )

    @model_validator(mode="before")
    @classmethod
    def _empty_is_default(cls, data: Any) -> Any:
        # In YAML a section whose keys are all commented out is null.
        if data is None:
            return {}
        if not isinstance(data, dict):
            return data
        return {key: value for key, value in data.items() if value is not None or key not in cls.model_fields}


def _read_secret(data: Any) -> Any:
    """`data` with the `password` that its `password_file` holds.

    What is wrong with the file is left in its place, for `_raised`: raised here, it would hide all other faults of the
    section.
    """
    if not isinstance(data, dict) or not isinstance(data.get("password_file"), str | Path):
        return data
    file = data["password_file"]
    try:
        if data.get("password") is not None:
            raise ValueError("password is given as well; keep one of the two")
        return {**data, "password": _secret_in(file)}
    except ValueError as error:
        return {**data, "password_file": error, "password": "unread"}


def _secret_in(file: str | Path) -> str:
    try:
        secret = Path(file).read_text(encoding="utf-8-sig").rstrip("\r\n")
    except OSError as error:
        raise ValueError(f"cannot read {file}: {error.strerror}") from None
    except UnicodeError:
        raise ValueError(f"{file} is not UTF-8 text") from None
    except ValueError:
        raise ValueError("must not contain NUL") from None
    if not secret:
        raise ValueError(f"{file} is empty; write the password into it")
    return secret


def _without_credentials(data: dict[str, Any]) -> dict[str, Any]:
    """The `url` of `data` without its user name and password, and these. ValueError for a url that can't be used."""
    parts = _split_url(data["url"])
    userinfo, at, host = parts.netloc.rpartition("@")
    url = parts._replace(netloc=host).geturl() if at else data["url"]
    BrokerUrl.parse(url)
    username, colon, password = userinfo.partition(":")
    found = {"username": unquote(username)} if username else {}
    if colon:
        found["password"] = unquote(password)
    for key in found:
        if data.get(key) is not None:
            raise ValueError(f"holds a {key}, and one is given beside it; keep one of the two")
    return found | {"url": url}


class MqttSettings(_Section):
    """The broker. Without a `url`, an embedded broker is started."""

    url: Annotated[str | None, BeforeValidator(_raised)] = Field(
        default=None, examples=["mqtt://localhost:1883", "mqtts://broker.example", "unix:///run/m.sock"]
    )
    """The broker: `mqtt://host:1883`, `mqtts://host:8883` (TLS), `ws://host/mqtt`, `wss://host/mqtt` or
    `unix:///path/to/socket`; the port may be left out. Credentials in it are taken out and used. Default: none, which
    starts an embedded broker on loopback."""
    username: Name | None = None
    """User name at the broker. Default: none (anonymous)."""
    password: MqttPassword | None = None
    """Password at the broker. Better in a file: `password_file`. Default: none."""
    password_file: SecretFile | None = None
    """File that holds the password; a line feed at its end is ignored. Instead of `password`."""
    version: MqttVersion = "auto"
    """Version of MQTT: `auto` (5, and 3.1.1 when the broker refuses 5), `5` or `3.1.1`. Default `auto`."""
    client_id: Name | None = None
    """Client id at the broker. Default `goip-bridge-<instance>`."""
    ca_file: ReadableFile | None = None
    """Certificates (PEM) that may have signed the broker's; only with TLS. Default: those of the system."""
    cert_file: ReadableFile | None = None
    """Our own certificate (PEM), for brokers that ask for one; needs `key_file`. Default: none."""
    key_file: ReadableFile | None = None
    """The private key (PEM, without a passphrase) of `cert_file`. Default: none."""
    server_name: Name | None = None
    """Name that the broker's certificate must carry, where it is not the host of the `url`. Default: that host."""

    @property
    def address(self) -> BrokerUrl | None:
        """The `url` in parts; None when there is none and the broker is embedded."""
        return None if self.url is None else BrokerUrl.parse(self.url)

    @model_validator(mode="before")
    @classmethod
    def _credentials(cls, data: Any) -> Any:
        data = _read_secret(data)
        if not isinstance(data, dict) or not isinstance(data.get("url"), str):
            return data
        try:
            return data | _without_credentials(data)
        except ValueError as error:
            return data | {"url": error}

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        address = self.address
        faults: list[tuple[Place, str]] = []
        if address is None and (self.username or self.password):
            place = "username" if self.username else "password_file" if self.password_file else "password"
            faults.append(((place,), "needs mqtt.url; remove it to use the embedded broker"))
        elif self.password and not self.username:
            place = "password_file" if self.password_file else "password"
            faults.append(((place,), "needs mqtt.username"))
        if address is None or not address.tls:
            faults += [
                ((key,), "needs a url that starts with mqtts:// or wss://")
                for key in ("ca_file", "cert_file", "key_file", "server_name")
                if getattr(self, key) is not None
            ]
        for key, other in (("cert_file", "key_file"), ("key_file", "cert_file")):
            if getattr(self, key) is not None and getattr(self, other) is None:
                faults.append(((key,), f"needs mqtt.{other}"))
        if address is not None and address.tls:
            faults += self._tls_faults()
        if faults:
            raise _Faults(*faults)
        return self

    def _tls_faults(self) -> list[tuple[Place, str]]:
        """Files that can be read and are of no use: what no attempt to connect would ever mend."""
        faults: list[tuple[Place, str]] = []
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        for key, file in (("ca_file", self.ca_file), ("cert_file", self.cert_file)):
            try:
                if file is not None:
                    context.load_verify_locations(file)
            except OSError:
                faults.append(((key,), f"{file} holds no certificate in the form of PEM"))
        if self.cert_file is not None and self.key_file is not None and not faults:
            try:
                context.load_cert_chain(self.cert_file, self.key_file, password="")  # or it asks on the terminal
            except OSError as error:
                fault = f"{self.key_file} holds no private key in the form of PEM that needs no passphrase"
                if getattr(error, "reason", "") == "KEY_VALUES_MISMATCH":
                    fault = f"{self.key_file} is not the private key of mqtt.cert_file, {self.cert_file}"
                faults.append((("key_file",), fault))
        return faults


class UdpSettings(_Section):
    """Where the gateways' datagrams arrive."""

    listen: Listen = "0.0.0.0:44444"
    """Address and UDP port, as set in the gateways as SMS server: `host:port`, IPv6 in brackets. Default
    `0.0.0.0:44444`."""

    @property
    def host(self) -> str:
        """The address of `listen`, without brackets."""
        return _split_listen(self.listen)[0]

    @property
    def port(self) -> int:
        """The port of `listen`; 0 lets the system choose one."""
        return _split_listen(self.listen)[1]


class StoreSettings(_Section):
    """The database: what was accepted and is not done, and what was published and not yet confirmed."""

    path: FilePath = Path("goip-bridge.db")
    """The SQLite file; its folder must exist and be writable. Default `goip-bridge.db`."""


class LineSettings(_Section):
    """One SIM channel of a gateway. `password` or `password_file` is required."""

    model_config = ConfigDict(
        json_schema_extra=lambda schema: schema.update(
            required=[], oneOf=[{"required": ["password"]}, {"required": ["password_file"]}]
        )
    )

    password: LinePassword
    """The *SMS Client Password* set in the gateway. Better in a file: `password_file`."""
    password_file: SecretFile | None = None
    """File that holds the password; a line feed at its end is ignored. Instead of `password`."""
    goip_id: GoipId | None = Field(default=None, examples=["+380500000000"])
    """The *SMS Client ID* that the line registers with, where it can't be a level of a topic. Default: the line's own
    id."""
    name: Name | None = Field(default=None, examples=["Gate SIM"])
    """Name for people. Default: the line's id."""
    gateway: Id | None = Field(default=None, examples=["rack1"])
    """The box this line belongs to; lines with the same value are one device, and take turns where it takes only a few
    sessions in all. Default: none; lines at one address count as one box then."""
    country: Country | None = Field(default=None, examples=["DE"])
    """Country of the SIM (ISO 3166, two letters), to complete national numbers of senders, and to know a recipient by
    every spelling of the number. Default: numbers stay as they are."""
    allow_from: list[Network] = Field(default=[], examples=[["192.168.1.0/24"]])
    """Addresses and networks the line's datagrams may come from. Default: any."""
    repeat_safety: Literal["auto", "safe", "unsafe"] = "auto"
    """Whether the firmware answers a repeated SEND with the outcome (`safe`: it is then asked for outcomes that were
    lost on the way) or might send the SMS twice (`unsafe`). `auto` follows the verdict of the self-test, and is
    `unsafe` without one. Default `auto`."""

    @model_validator(mode="before")
    @classmethod
    def _secret(cls, data: Any) -> Any:
        return _read_secret(data)


class PoolSettings(_Section):
    """Lines that share the work of `goip/pool/<name>/cmd/…`."""

    lines: list[LineId] = Field(min_length=1)
    """The ids of its lines, at least one."""
    strategy: Literal["round_robin"] = "round_robin"
    """How a line is picked: `round_robin` takes them in turn. Default `round_robin`."""


class HomeAssistantSettings(_Section):
    """MQTT discovery for Home Assistant."""

    discovery: bool = True
    """Whether devices are announced. Default `true`."""
    prefix: Topic = "homeassistant"
    """Home Assistant's discovery prefix. Default `homeassistant`."""
    overrides: dict[str, dict[str, JsonValue] | None] = Field(
        default={}, examples=[{"signal_pct": {"enabled_by_default": True}, "imei": None}]
    )
    """Changes to the announced entities: the entity's key, then what to set in it; `null` removes the entity.
    Default: none."""


class HttpSettings(_Section):
    """Health checks, metrics and a status page: `/livez`, `/readyz`, `/metrics`, `/`. There is no login."""

    listen: Listen | None = Field(default=None, examples=["127.0.0.1:8080"])
    """Address and port: `host:port`, IPv6 in brackets. Default: none (off)."""
    hosts: list[HostName] = Field(default=[], examples=[["sms.example.org"]])
    """Names under which browsers reach the status page by a proxy. IP addresses, this machine's own name, names without
    a dot, and those below `local`, `localhost`, `internal` and `home.arpa` need no entry. Default: none."""
    send: bool = False
    """Whether the status page can send SMS. Default `false`."""

    @property
    def is_local(self) -> bool:
        """Whether only programs on this machine reach it, or none at all."""
        host = self.host
        return host is None or is_loopback(host)

    @property
    def host(self) -> str | None:
        """The address of `listen`, without brackets; None when off."""
        return None if self.listen is None else _split_listen(self.listen)[0]

    @property
    def port(self) -> int | None:
        """The port of `listen`; None when off."""
        return None if self.listen is None else _split_listen(self.listen)[1]


class TimingSettings(_Section):
    """How long to wait for what, in seconds. The defaults fit real gateways."""

    offline_s: float = Field(default=95, ge=1, le=86400)
    """A line is offline after this long without a keepalive (they come every 30 s). 1 to 86400, default 95."""
    resend_s: float = Field(default=5, ge=0.1, le=60)
    """An unanswered datagram is repeated after this long. 0.1 to 60, default 5."""
    wait_s: float = Field(default=90, ge=1, le=3600)
    """How long a gateway that said WAIT may take for its next answer. 1 to 3600, default 90."""
    ussd_s: float = Field(default=120, ge=1, le=3600)
    """How long the network may take to answer a USSD code. 1 to 3600, default 120."""
    evidence_s: float = Field(default=900, ge=1, le=86400)
    """How long to wait for evidence of an SMS whose session was lost. 1 to 86400, default 900."""
    backoff_s: float = Field(default=30, ge=0.1, le=300)
    """First pause after a refusal that may pass, doubling to 300. 0.1 to 300, default 30."""
    restored_hold_s: float = Field(default=95, ge=0, le=3600)
    """How long a line is held when the store was restored from a backup. 0 to 3600, default 95."""


class Settings(_Section, BaseSettings):
    """Configuration of goip-bridge."""

    model_config = SettingsConfigDict(**_Section.model_config)  # type: ignore[typeddict-item]

    base_topic: Topic = Field(default="goip", examples=["goip", "house/goip"])
    """The topic in front of all others, any depth; no wildcards, and apart from `homeassistant.prefix`. Default
    `goip`."""
    instance: Id | None = Field(default=None, examples=["home"])
    """Name of this bridge, in its client id and its Home Assistant devices: 1 to 32 of `A-Z a-z 0-9 _ -`. Default:
    random, kept in the store."""
    retain_text: bool = False
    """Whether the retained `sms/last` carries the text and not only the masked sender. Default `false`."""
    mqtt: MqttSettings = MqttSettings()
    udp: UdpSettings = UdpSettings()
    store: StoreSettings = StoreSettings()
    lines: dict[LineId, LineSettings] = Field(default={}, examples=[{"goip1": {"password": "password1"}}])
    """The lines by id: 1 to 32 of `A-Z a-z 0-9 _ -`, not `bridge`, `any`, `pool` or `job`. Default: none."""
    pools: dict[Id, PoolSettings] = Field(default={}, examples=[{"alarms": {"lines": ["goip1", "goip2"]}}])
    """Pools of lines by name. Default: none."""
    contacts: dict[ContactName, Number] = Field(default={}, examples=[{"anna": "+4915112345678"}])
    """Phone numbers by name, for `@name` and `cmd/sms/<name>`. Default: none."""
    groups: dict[ContactName, Annotated[list[ContactName], Field(min_length=1)]] = Field(
        default={}, examples=[{"family": ["anna"]}]
    )
    """Lists of contacts by name. Default: none."""
    homeassistant: HomeAssistantSettings = HomeAssistantSettings()
    http: HttpSettings = HttpSettings()
    timing: TimingSettings = TimingSettings()

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Only what `load` read: nothing may slip in from the environment behind its back."""
        return (init_settings,)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if faults := list(self.faults()):
            raise _Faults(*faults)
        return self

    def faults(self) -> Iterator[tuple[Place, str]]:
        """What is wrong with values that are right by themselves, and where."""
        yield from self._topic_faults()
        yield from self._line_faults()
        yield from self._reference_faults()
        yield from self.homeassistant_faults()

    def _topic_faults(self) -> Iterator[tuple[Place, str]]:
        ours, theirs = f"{self.base_topic}/", f"{self.homeassistant.prefix}/"
        if ours.startswith(theirs) or theirs.startswith(ours):
            yield ("base_topic",), f"overlaps homeassistant.prefix ({self.homeassistant.prefix}); choose another one"

    def _line_faults(self) -> Iterator[tuple[Place, str]]:
        folded: dict[str, str] = {}
        registered: dict[str, str] = {}
        for line, settings in self.lines.items():
            other = folded.setdefault(line.lower(), line)
            if other != line:
                yield ("lines", line), f'differs from "{other}" only in case; rename one of them'
            other = registered.setdefault(settings.goip_id or line, line)
            if other != line:
                yield ("lines", line, "goip_id"), f'line "{other}" registers with the same id; ids must be unique'

    def _reference_faults(self) -> Iterator[tuple[Place, str]]:
        for pool, members in self.pools.items():
            yield from _unknown(("pools", pool, "lines"), members.lines, self.lines, "line")
        for group, names in self.groups.items():
            yield from _unknown(("groups", group), names, self.contacts, "contact")
            if group in self.contacts:
                yield ("groups", group), "is also a contact; rename one of them"

    def homeassistant_faults(self) -> Iterator[tuple[Place, str]]:
        """What could not be told apart, or not be written, as devices of Home Assistant."""
        if not self.homeassistant.discovery:
            return
        devices: dict[str, tuple[str, str]] = {}
        for object_id, what in homeassistant.object_ids("", self):
            other = devices.setdefault(object_id, what)
            if other != what:
                place: Place = ("lines", what[1]) if what[0] == "line" else ("lines",)
                yield (
                    place,
                    f"{what[0]} {what[1]} and {' '.join(other).strip()} would be one device in Home Assistant, which "
                    "tells neither case nor - from _; rename one, or set homeassistant.discovery: false",
                )
        for key, fault in homeassistant.override_faults(self):
            yield ("homeassistant", "overrides", key), fault

    def notes(self, environ: Mapping[str, str] = MappingProxyType({})) -> list[str]:
        """What is allowed but probably not meant, in them or in the environment they are from; one line each."""
        notes = [f"{name}: the quotes are part of its value; leave them out" for name in _quoted_variables(environ)]
        if not self.lines:
            notes.append("lines: none configured; gateways that register are reported as events that say what to add")
        if not self.http.is_local:
            may = "see lines and traffic and send SMS" if self.http.send else "see lines and traffic, numbers masked"
            notes.append(f"http.listen: there is no login; everybody who reaches {self.http.listen} can {may}")
        named = len(self.contacts) + len(self.groups)
        if self.homeassistant.discovery and named > homeassistant.MAX_NOTIFY:
            first = f"the first {homeassistant.MAX_NOTIFY} of {named} groups and contacts"
            notes.append(f"homeassistant: {first} get notify entities, the others none; @name works for all")
        if self.http.send and self.http.listen is None:
            notes.append("http.send: needs http.listen; there is no status page without it")
        if self.pools:
            notes.append("pools: this version checks them, but commands can't use them")
        return notes

    def public_dict(self) -> dict[str, Any]:
        """The configuration as JSON values for `bridge/info`: without secrets, contacts' numbers masked."""
        public = self.model_dump(mode="json", exclude={"mqtt": {"password": True}, "lines": {"__all__": {"password"}}})
        public["contacts"] = {name: numbers.mask(number) for name, number in self.contacts.items()}
        return public


def _unknown(place: Place, names: Sequence[object], known: Mapping[str, Any], kind: str) -> Iterator[tuple[Place, str]]:
    for index, name in enumerate(names):
        if isinstance(name, str) and name not in known:
            yield (*place, index), f"there is no {kind} {json.dumps(name)}{_did_you_mean(name, known)}"


# Loading --------------------------------------------------------------------------------------------------------------

Origins = dict[Place, str]
"""Where each value was given: `config.yaml:7` or the name of a variable. What is absent has its default."""


def load(path: Path | None, environ: Mapping[str, str]) -> Settings:
    """The settings from the file and the environment, which wins; ConfigError lists every fault.

    Without a `path` the file is the one that GOIP_CONFIG names, or else ./config.yaml if it exists.
    """
    return load_with_origins(path, environ)[0]


def file_of(path: Path | None, environ: Mapping[str, str]) -> Path | None:
    """The file that `load` reads; None where there is none."""
    if path is None and environ.get("GOIP_CONFIG"):
        path = Path(environ["GOIP_CONFIG"])
    return path if path is not None or not DEFAULT_FILE.exists() else DEFAULT_FILE


def file_named(path: Path | None, environ: Mapping[str, str]) -> str:
    """That file for people: where it is, or where none was found."""
    file = file_of(path, environ)
    if file is not None:
        return str(file.absolute())
    return f"no configuration file ({DEFAULT_FILE.absolute()} does not exist; --config or GOIP_CONFIG name another)"


def load_with_origins(path: Path | None, environ: Mapping[str, str]) -> tuple[Settings, Origins]:
    """As `load`, and where each value came from."""
    source = _Source()
    file = file_of(path, environ)
    if file is not None:
        source.read_file(file)
    source.read_environment(environ)
    source.refuse_private_keys()
    try:
        settings = Settings(**source.data)
    except ValidationError as error:
        found = _Explained(error, source)
        source.faults += itertools.islice(found.faults(), MAX_FAULTS)
        source.faults += itertools.repeat("more faults like these", max(0, error.error_count() - MAX_FAULTS))
    if source.faults:
        raise ConfigError(_first(source.faults))
    return settings, source.origins


def _first(faults: list[str]) -> list[str]:
    """As many as somebody reads."""
    more = len(faults) - MAX_FAULTS
    return faults if more <= 0 else [*faults[:MAX_FAULTS], f"and {more} more faults"]


def origin_of(place: Place, origins: Origins) -> str | None:
    """Where the value, or what it is part of, was given."""
    return next((origins[place[:end]] for end in range(len(place), 0, -1) if place[:end] in origins), None)


class _TooManyError(Exception):
    """The file has more than `MAX_VALUES` keys and values."""


class _Loader(yaml.SafeLoader):
    """PyYAML's, which stops in time: it takes 25 µs for each key and value."""

    composed = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        self.composed += 1
        if self.composed > MAX_VALUES:
            raise _TooManyError
        return super().compose_node(parent, index)


class _Source:
    """The raw values of file and environment, with their origins and the faults found on the way.

    Scalars stay the text that was written, for the models to interpret: YAML would make a number without its zeros or
    its + of an unquoted password or phone number, and `false` of Norway.
    """

    def __init__(self) -> None:
        self.data: dict[str, Any] = {}
        self.origins: Origins = {}
        self.faults: list[str] = []
        self.quoted: frozenset[str] = frozenset()
        "Variables with quotes around their value."
        self._values = 0

    # The file

    def read_file(self, path: Path) -> None:
        """Take in the YAML file; without a readable mapping in it nothing else can be said, so that is raised."""
        try:
            with path.open("rb") as file:
                written = file.read(MAX_FILE_BYTES + 1)
            if len(written) > MAX_FILE_BYTES:
                raise ConfigError([f"{path}: is larger than {MAX_FILE_BYTES >> 10} kB; is this the right file?"])
            text = written.decode("utf-8-sig")
            root = yaml.compose(text, Loader=_Loader)
        except OSError as error:
            raise ConfigError([f"{path}: cannot read it: {error.strerror}"]) from None
        except UnicodeDecodeError:
            raise ConfigError([f"{path}: not UTF-8 text; save it as UTF-8"]) from None
        except yaml.YAMLError as error:
            raise ConfigError([_syntax_fault(path, text, error)]) from None
        except RecursionError:
            raise ConfigError([f"{path}: nested too deep"]) from None
        except _TooManyError:
            raise ConfigError([f"{path}: more than {MAX_VALUES} keys and values; write fewer"]) from None
        if root is None:
            return
        if not isinstance(root, yaml.MappingNode):
            what = "a list" if isinstance(root, yaml.SequenceNode) else "a single value"
            raise ConfigError([f"{path}:1: expected keys and values, such as base_topic: goip, not {what}"])
        try:
            self.data = self._value(path, root, ())
        except RecursionError:
            raise ConfigError([f"{path}: an alias (*) refers to what it is part of"]) from None

    def _count(self, path: Path, node: yaml.Node) -> None:
        self._values += 1
        if self._values > MAX_VALUES:
            fault = f"more than {MAX_VALUES} keys and values, as often as aliases (*) repeat them; write fewer"
            raise ConfigError([f"{path}:{node.start_mark.line + 1}: {fault}"])

    def _value(self, path: Path, node: yaml.Node, place: Place) -> Any:
        self._count(path, node)
        if isinstance(node, yaml.MappingNode):
            return self._mapping(path, node, place)
        if isinstance(node, yaml.SequenceNode):
            return [self._item(path, item, (*place, index)) for index, item in enumerate(node.value)]
        if node.tag.startswith("!"):
            self._fault(f"{path}:{node.start_mark.line + 1}", place, "put a value that starts with ! into quotes")
        if node.tag.endswith(":null"):
            return None
        if place[:2] == ("homeassistant", "overrides") and not getattr(node, "style", None):
            return _json_scalar(node.value)  # goes out as JSON, so here the type matters
        return node.value

    def _item(self, path: Path, node: yaml.Node, place: Place) -> Any:
        self.origins[place] = f"{path}:{node.start_mark.line + 1}"
        return self._value(path, node, place)

    def _mapping(self, path: Path, node: yaml.MappingNode, place: Place) -> dict[str, Any]:
        mapping: dict[str, Any] = {}
        lines: dict[str, int] = {}
        for key, value in node.value:
            self._count(path, key)
            line = key.start_mark.line + 1
            if not isinstance(key, yaml.ScalarNode):
                self._fault(f"{path}:{line}", place, "a key must be a plain word")
            elif key.tag.endswith(":merge"):
                mapping = self._merged(path, value, place) | mapping
            elif key.value in lines:
                again = f"given again, first in line {lines[key.value]}; keep one of the two"
                self._fault(f"{path}:{line}", (*place, key.value), again)
            else:
                lines[key.value] = line
                self.origins[(*place, key.value)] = f"{path}:{line}"
                mapping[key.value] = self._value(path, value, (*place, key.value))
        return mapping

    def _merged(self, path: Path, node: yaml.Node, place: Place) -> dict[str, Any]:
        """What `<<:` takes over from one or several mappings; the first that has a key wins."""
        merged: dict[str, Any] = {}
        for one in node.value if isinstance(node, yaml.SequenceNode) else [node]:
            self._count(path, one)
            if not isinstance(one, yaml.MappingNode):
                self._fault(f"{path}:{one.start_mark.line + 1}", place, "<< takes a mapping, such as *name")
                return {}
            merged = self._mapping(path, one, place) | merged
        return merged

    def refuse_private_keys(self) -> None:
        """`_env_file` and the like are arguments of the settings library, not keys."""
        for key in [key for key in self.data if key.startswith("_")]:
            self._fault(self.origins.get((key,), key), (key,), "unknown key")
            del self.data[key]

    # The environment

    def read_environment(self, environ: Mapping[str, str]) -> None:
        """Lay the GOIP_ variables over what the file gave; the more deeply nested name wins. An empty one counts as not
        set: `NAME=${NAME:-}` makes those.
        """
        self.quoted = _quoted_variables(environ)
        for name in sorted(_variables(environ), key=lambda name: (name.count("__"), name)):
            self._read_variable(name, environ[name])

    def _read_variable(self, name: str, text: str) -> None:
        place: Place = ()
        kind: Any = Settings
        given: Any = self.data
        for part in name.removeprefix(PREFIX).split("__"):
            step = _step(kind, part, given)
            if step is None:
                self.faults.append(f"{name}: unknown variable{_variable_hint(name, place, kind, part)}")
                return
            key, kind = step
            place = (*place, key)
            given = given.get(key) if isinstance(given, dict) else None
        try:
            value = _variable_value(kind, text, place)
        except ValueError as error:
            self._fault(name, place, str(error))
            return
        for step_key in reversed(place):
            value = {step_key: value}
        self._lay_over(self.data, value, (), name)

    def _lay_over(self, below: dict[str, Any], above: dict[str, Any], place: Place, origin: str) -> None:
        for key, value in above.items():
            here = (*place, key)
            if isinstance(value, dict) and isinstance(below.get(key), dict):
                self._lay_over(below[key], value, here, origin)
                continue
            below[key] = value
            self.origins = {at: given for at, given in self.origins.items() if at[: len(here)] != here}
            self._given(value, here, origin)

    def _given(self, value: Any, place: Place, origin: str) -> None:
        self.origins[place] = origin
        for key, below in value.items() if isinstance(value, dict) else ():
            self._given(below, (*place, key), origin)

    def _fault(self, origin: str, place: Place, message: str) -> None:
        self.faults.append(self.fault(origin, place, message))

    def fault(self, origin: str | None, place: Place, message: str) -> str:
        """One line: where it was given, what it is, and what is wrong with it."""
        if origin in self.quoted:
            message += "; the quotes are part of the variable's value: leave them out"
        return ": ".join(part for part in (origin, dotted(place), message) if part)


def _variables(environ: Mapping[str, str]) -> Iterator[str]:
    for name, text in environ.items():
        if name.startswith(PREFIX) and not name.startswith("GOIP_TEST_") and name != "GOIP_CONFIG" and text:
            yield name


def _quoted_variables(environ: Mapping[str, str]) -> frozenset[str]:
    """Those with quotes around their value, as in some env files. Overrides are JSON, where quotes are right."""
    return frozenset(
        name
        for name in _variables(environ)
        if not name.startswith("GOIP_HOMEASSISTANT__OVERRIDES")
        and len(text := environ[name]) > 1
        and text[0] == text[-1]
        and text[0] in "'\""
    )


def _syntax_fault(path: Path, text: str, error: yaml.YAMLError) -> str:
    """The error without the excerpt that PyYAML adds, which may show a password."""
    if not isinstance(error, yaml.MarkedYAMLError) or error.problem_mark is None:
        return f"{path}: contains a control character; YAML is plain text"
    where = f"{path}:{error.problem_mark.line + 1}:{error.problem_mark.column + 1}"
    return f"{where}: not valid YAML: {_syntax_problem(text, error)}"


def _syntax_problem(text: str, error: yaml.MarkedYAMLError) -> str:
    """What is open or out of place, and where that began."""
    problem, context, begun = error.problem or "not YAML", error.context or "", error.context_mark
    opened = f" in line {begun.line + 1}" if begun is not None else ""
    if re.search(r"alias|anchor|tag|directive", problem + context):
        return "put a value that starts with * & ! or % into quotes"
    if "'\\t'" in problem:
        return "indent with blanks, not with tabs"
    if "cannot start any token" in problem:
        return "put a value that starts with @ % or ` into quotes"
    if "escape" in problem:
        return "a backslash in double quotes begins an escape; use single quotes, in which it is just a backslash"
    if "quoted scalar" in context:
        return f"the quote{opened} is not closed"
    if (quote := _long_quote(text)) is not None:
        return f"the quote in line {quote[0]} is closed in line {quote[1]} only; is its end missing?"
    if "flow" in context:
        bracket = "{" if "mapping" in context else "["
        return f"the {bracket}{opened} is not closed, or a comma is missing between two of its values"
    if "simple key" in context:
        return f"there is no colon with a blank behind the key{opened}; write key: value"
    if "mapping values" in problem:
        return (
            "a second colon (put a value with a colon into quotes), a line that is indented too far, or a key without "
            "a colon in the line above"
        )
    if "document start" in problem:
        return "this does not go on with what is above; check the indentation, and that each key there has a colon"
    if "single document" in problem or "single document" in context:
        return "a second document begins here; leave out the ---"
    if "block" in context:
        return f"this does not belong to what begins{opened}; check the indentation, and that quotes are closed"
    return problem


def _long_quote(text: str) -> tuple[int, int] | None:
    """First and last line of the last quoted value before the error, where it goes over several."""
    found = None
    with contextlib.suppress(yaml.YAMLError):
        for token in yaml.scan(text, Loader=yaml.SafeLoader):
            if isinstance(token, yaml.ScalarToken) and token.style in ("'", '"'):
                first, last = token.start_mark.line + 1, token.end_mark.line + 1
                found = (first, last) if last > first else None
    return found


def _json_scalar(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _variable_value(kind: Any, text: str, place: Place) -> Any:
    """What the text of a variable means where a `kind` is expected: JSON for structures, else the text itself."""
    if place[:2] == ("homeassistant", "overrides") and len(place) > 3:
        return _json_scalar(text)
    if not _is_model(kind) and get_origin(kind) not in (dict, list):
        return text
    typed = place[0] == "homeassistant"
    as_written = None if typed else str
    try:
        return json.loads(text, parse_int=as_written, parse_float=as_written, object_pairs_hook=_unique_keys)
    except json.JSONDecodeError as error:
        example = '["goip1"]' if get_origin(kind) is list else '{"key": "value"}'
        raise ValueError(
            f"expected JSON, such as {example}; {error.msg.lower()} at character {error.pos + 1}"
        ) from None


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    keys: dict[str, Any] = {}
    for key, value in pairs:
        if key in keys:
            raise ValueError(f"{json.dumps(key)} is given twice; keep one of the two")
        keys[key] = value
    return keys


# Walking the models ---------------------------------------------------------------------------------------------------


def _is_model(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def _plain(kind: Any) -> Any:
    """The type without Annotated and `| None`."""
    while get_origin(kind) in (Annotated, Union, UnionType):
        kind = next(arg for arg in get_args(kind) if arg is not type(None))
    return kind


def _step(kind: Any, key: str, given: Any) -> tuple[str, Any] | None:
    """The key as configured and the type below it; None when there is no such key.

    Names chosen by the user keep their case, except that a variable may spell a name of the file in capitals.
    """
    if _is_model(kind):
        field = kind.model_fields.get(key.lower())
        return None if field is None else (key.lower(), _plain(field.annotation))
    if get_origin(kind) is not dict or not key:
        return None
    names = given if isinstance(given, dict) else {}
    same = key if key in names else next((name for name in names if name.lower() == key.lower()), key)
    return same, _plain(get_args(kind)[1])


def _kind_at(place: Place) -> Any:
    kind: Any = Settings
    for key in place:
        step = _step(kind, str(key), None)
        if step is None:
            return None
        kind = step[1]
    return kind


def dotted(place: Place) -> str:
    """`lines.goip2.allow_from[0]`; what is not printable in a key is escaped, so that it stays one line."""
    text = "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in place).lstrip(".")
    return text if text.isprintable() else ascii(text)[1:-1]


def _did_you_mean(word: str, known: Mapping[str, Any]) -> str:
    close = difflib.get_close_matches(word, known, n=1)
    return f"; did you mean {json.dumps(close[0])}?" if close else ""


def _variable_hint(name: str, place: Place, kind: Any, part: str) -> str:
    """What the user probably meant by an unknown variable."""
    if "__" not in name and re.search(r"_SERVICE_(HOST|PORT)|_PORT(_\d+_(TCP|UDP).*)?$", name):
        return "; if Kubernetes set it for a service of that name, set enableServiceLinks: false in the pod"
    known = _spellings(kind)
    meant = known.get(part.upper()) or next(
        (known[close] for close in difflib.get_close_matches(part.upper(), known, n=1, cutoff=0.7)), None
    )
    if meant is not None:
        above = name.removesuffix("__".join(name.removeprefix(PREFIX).split("__")[len(place) :]))
        return f"; did you mean {above}{meant}?"
    return "; names are nested with two underscores, such as GOIP_MQTT__URL"


def _spellings(kind: Any) -> dict[str, str]:
    """How the variables of a model are written, and other people's words for them, with what each of them means."""
    if not _is_model(kind):
        return {}
    found: dict[str, str] = {}
    for key, field in kind.model_fields.items():
        found[key.upper()] = key.upper()
        for below, meant in _spellings(_plain(field.annotation)).items():
            found[f"{key.upper()}__{below}"] = f"{key.upper()}__{meant}"
            found[f"{key.upper()}_{below}"] = f"{key.upper()}__{meant}"
    return {word.upper(): key.upper() for word, key in _MEANT.get(kind, {}).items()} | found


# Faults ---------------------------------------------------------------------------------------------------------------

_MESSAGES = {
    "model_type": "expected keys and values below it",
    "dict_type": "expected keys and values below it",
    "list_type": "expected a list, such as [a, b]",
    "string_type": "expected text",
    "bool_parsing": "expected true or false",
    "float_parsing": "expected a number",
}
_MEANT: dict[type[BaseModel], dict[str, str]] = {
    MqttSettings: dict.fromkeys(("host", "hostname", "server", "broker", "address", "uri", "port", "tls", "ssl"), "url")
    | {"user": "username", "login": "username", "pass": "password", "passwd": "password", "id": "client_id"}
    | {"protocol": "version", "ca": "ca_file", "cafile": "ca_file", "cert": "cert_file", "key": "key_file"},
    UdpSettings: dict.fromkeys(("host", "port", "address", "bind", "ip"), "listen"),
    HttpSettings: dict.fromkeys(("port", "address", "bind", "ip"), "listen")
    | {"host": "listen", "allowed_hosts": "hosts"},
    StoreSettings: dict.fromkeys(("file", "database", "db", "folder"), "path"),
    LineSettings: dict.fromkeys(("id", "client_id", "sms_client_id", "username", "user"), "goip_id")
    | dict.fromkeys(("host", "ip", "address", "allow", "networks"), "allow_from")
    | {"pass": "password", "passwd": "password", "box": "gateway", "device": "gateway", "label": "name"},
    HomeAssistantSettings: {"enabled": "discovery", "enable": "discovery", "discovery_prefix": "prefix"},
    Settings: {"broker": "mqtt", "server": "udp", "port": "udp", "listen": "udp", "web": "http", "database": "store"}
    | dict.fromkeys(("gateways", "devices", "channels", "sims", "goip"), "lines")
    | {"topic": "base_topic", "prefix": "base_topic", "phonebook": "contacts", "client_id": "instance"},
}
"Other people's words for our keys, by the model that has the key."


class _Explained:
    """The faults that pydantic found in the data of a source, and what it did not look for because of them."""

    def __init__(self, error: ValidationError, source: _Source) -> None:
        self._error = error
        self._source = source

    def faults(self) -> Iterator[str]:
        """One line for each fault. pydantic's own text would quote the input, which may be a secret."""
        whole = False
        for one in self._error.errors(include_url=False, include_input=False):
            place = tuple(key for key in one["loc"] if key != "[key]")
            whole |= not place
            cause = one.get("ctx", {}).get("error")
            if isinstance(cause, _Faults):
                for below, message in cause.items:
                    yield self._located((*place, *below), message)
            else:
                yield self._located(place, self._message(one["type"], one["msg"], place, cause))
        if not whole:  # what depends on several keys is looked at only when each of them is valid
            for place, message in _readable(Settings, self._source.data).faults():
                yield self._located(place, message)

    def _message(self, kind: str, text: str, place: Place, cause: object) -> str:
        if kind == "extra_forbidden":
            return "unknown key" + _key_hint(str(place[-1]), _kind_at(place[:-1]))
        if kind == "missing":
            key = place[-1]
            return f"missing; add {key}: … or {key}_file: …" if key == "password" else f"missing; add {key}: …"
        if isinstance(cause, ValueError):
            return str(cause)
        message = _MESSAGES.get(kind) or text[:1].lower() + text[1:]
        return message + (f", not {self._shape(place)}" if kind.endswith("_type") else "")

    def _shape(self, place: Place) -> str:
        given: Any = self._source.data
        for key in place:
            given = given[key]
        if isinstance(given, list):
            return "a list: leave out the - or [ ]"
        return "keys and values" if isinstance(given, dict) else "a single value"

    def _located(self, place: Place, message: str) -> str:
        return self._source.fault(origin_of(place, self._source.origins), place, message)


def _key_hint(word: str, kind: Any) -> str:
    known = kind.model_fields if _is_model(kind) else {}
    meant = _MEANT.get(kind, {}).get(word.lower().replace("-", "_"))
    if meant is not None:
        return f"; did you mean {json.dumps(meant)}?"
    return _did_you_mean(word, known) or f"; known are {', '.join(known)}"


def _readable(kind: Any, given: Any) -> Any:
    """What was given, as far as it has the shape that is expected: unchecked, and the rest at its default."""
    if _is_model(kind):
        values: dict[str, Any] = {}
        for key, field in kind.model_fields.items():
            below = _plain(field.annotation)
            if key in given and _fits(below, given[key]):
                values[key] = _readable(below, given[key])
            elif field.is_required():
                values[key] = [] if get_origin(below) is list else ""
        return kind.model_construct(**values)
    if get_origin(kind) is dict:
        below = _plain(get_args(kind)[1])
        values = {key: {} if value is None else value for key, value in given.items()}
        return {key: _readable(below, value) for key, value in values.items() if _fits(below, value)}
    return given if kind is not bool else str(given).lower() in ("true", "t", "yes", "y", "on", "1")


def _fits(kind: Any, given: Any) -> bool:
    if _is_model(kind) or get_origin(kind) is dict:
        return isinstance(given, dict)
    return isinstance(given, list if get_origin(kind) is list else str | bool)
