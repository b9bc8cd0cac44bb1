"""What Home Assistant is told: one device for each line, each gateway and the bridge, by MQTT device discovery.

Pure: settings in, documents out. `bridge/retained/discovery.py` publishes them. Home Assistant refuses a whole device
for one unknown key at its root or one entity without `unique_id`; a bad value inside a component loses that component
only.
https://www.home-assistant.io/integrations/mqtt/#device-discovery-payload
"""

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol, get_args

import orjson

from .. import __version__
from ..contract import payloads
from ..contract.topics import Topics

ORIGIN = "goip-mqtt-bridge"
FIXED = ("platform", "unique_id")
"Keys of a component that no override may change: without them Home Assistant refuses the device or knows it no more."

MAX_NOTIFY = 100
"Groups and contacts that get a `notify` entity, on every line: an address book of thousands is for `to`."

Component = dict[str, Any]


class LineInventory(Protocol):
    """What Home Assistant shows of a line's configuration."""

    @property
    def name(self) -> str | None:
        """For people."""

    @property
    def gateway(self) -> str | None:
        """The box that it belongs to."""


class Overrides(Protocol):
    """How the configuration changes what is shown."""

    @property
    def overrides(self) -> Mapping[str, Mapping[str, Any] | None]:
        """By component: keys and values; None takes the component away."""


class Inventory(Protocol):
    """What there is to be shown: the configuration, as far as it is known here."""

    @property
    def instance(self) -> str | None:
        """The name of the bridge, where it has one."""

    @property
    def lines(self) -> Mapping[str, LineInventory]:
        """By id."""

    @property
    def contacts(self) -> Mapping[str, str]:
        """Numbers by name."""

    @property
    def groups(self) -> Mapping[str, Sequence[str]]:
        """Contacts by the group's name."""

    @property
    def homeassistant(self) -> Overrides:
        """What was configured for Home Assistant alone."""


Components = dict[str, Component]

_STATE, _STATS, _LAST = "state", "stats", "sms/last"
_DIAGNOSTIC = {"entity_category": "diagnostic"}
_CONFIG = {"entity_category": "config"}
_OFF = {"enabled_by_default": False}
_IN_CALL = "none if value_json.call.state is none else value_json.call.state in ['dialing', 'alerting', 'active']"
_GSM = {"login": "Registered", "logout": "Not registered", "unknown": "Unknown"}
_CALL = {
    "idle": "Idle", "ringing": "Ringing", "dialing": "Dialing", "alerting": "Ringing there", "active": "In call",
    "busy": "Busy",
}  # fmt: skip
"The words of a state as Home Assistant shows them: it has no translations of ours."
_MEASURED = {"state_class": "measurement"}
_COUNTED = {"state_class": "total_increasing", "unit_of_measurement": "SMS"}


def object_ids(instance: str, settings: Inventory) -> list[tuple[str, tuple[str, str]]]:
    """The object id of every device, and what it stands for: (`line`, id), (`gateway`, name) or (`bridge`, "")."""
    gateways = dict.fromkeys(line.gateway for line in settings.lines.values() if line.gateway is not None)
    return [
        (_object_id(instance, "bridge"), ("bridge", "")),
        *((_gateway_id(instance, name), ("gateway", name)) for name in gateways),
        *((_object_id(instance, line), ("line", line)) for line in settings.lines),
    ]


class Hardware(NamedTuple):
    """What a line has told of itself."""

    host: str | None
    "Where its gateway is: an IP address."
    imei: str | None


def documents(
    instance: str, settings: Inventory, topics: Topics, hardware: Mapping[str, Hardware] = MappingProxyType({})
) -> dict[str, bytes]:
    """The configuration payload of every device by its object id: the bridge first, then gateways, then lines."""
    make = maker(instance, settings, topics, hardware)
    return {object_id: make(*what) for object_id, what in object_ids(instance, settings)}


def maker(
    instance: str, settings: Inventory, topics: Topics, hardware: Mapping[str, Hardware]
) -> Callable[[str, str], bytes]:
    """Makes the configuration payload of one device, by what it stands for; `hardware` by line may change meanwhile."""
    devices = _Devices(instance, settings, topics, hardware)
    return lambda kind, name: orjson.dumps(devices.device(kind, name))


def is_ours(document: bytes, topics: Topics) -> bool:
    """Whether a bridge with our base topic published it: names of instances may begin alike, and other programs may use
    the names of our devices.
    """
    try:
        origin = orjson.loads(document)["origin"]["name"]
    except (ValueError, LookupError, TypeError):
        return False
    return bool(origin == ORIGIN) and orjson.dumps(topics.bridge("availability")) in document


def prefix_of(instance: str) -> str:
    """How the object ids of this instance begin."""
    return _object_id(instance, "")


def _object_id(instance: str, name: str) -> str:
    return f"goip_{instance}_{name}".lower().replace("-", "_")


def _gateway_id(instance: str, gateway: str) -> str:
    return _object_id(instance, f"gateway_{gateway}")


def notify_keys(names: Iterable[str]) -> dict[str, str]:
    """The key of the `notify` entity of each contact and group: of letters and digits, and no two alike."""
    slugs = {name: re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_") for name in names}
    count = Counter(slugs.values())
    keys = {}
    for name, slug in slugs.items():
        if not slug or (count[slug] > 1 and name != slug):
            slug = f"{slug}_{hashlib.sha256(name.encode()).hexdigest()[:6]}".lstrip("_")
        keys[name] = f"notify_{slug}"
    return keys


def override_faults(settings: Inventory) -> Iterator[tuple[str, str]]:
    """Overrides that name no component, or what can't be changed: the key, and what is wrong with it."""
    notify = set(notify_keys([*settings.contacts, *settings.groups]).values())
    fixed_keys = {*_LINE_KEYS, *_GATEWAY_KEYS, *_BRIDGE_KEYS}
    for key, changes in settings.homeassistant.overrides.items():
        if key not in fixed_keys | notify:
            yield key, f"there is no entity of this key; {_hint(key, sorted(fixed_keys | notify), sorted(notify))}"
        elif fixed := [name for name in FIXED if changes is not None and name in changes]:
            yield key, f"{fixed[0]} can't be changed; Home Assistant knows the entity by it"
        elif not _is_json(changes):
            yield key, "holds an integer beyond 64 bits, or half a character: it can't be written as JSON"


def _hint(key: str, known: list[str], notify: list[str]) -> str:
    if key.startswith("notify_"):
        return f"there is one for each group and contact: {', '.join(notify) or 'none'}"
    near = [name for name in known if name.startswith(key[:4]) or key in name]
    return f"did you mean {' or '.join(near[:3])}?" if near else f"there are {', '.join(known)}"


def _is_json(value: object) -> bool:
    try:
        orjson.dumps(value)
    except TypeError:
        return False
    return True


class _Devices:
    """Makes the documents of one configuration."""

    def __init__(self, instance: str, settings: Inventory, topics: Topics, hardware: Mapping[str, Hardware]) -> None:
        self._instance = instance
        self._hardware = hardware
        self._settings = settings
        self._topics = topics
        self._bridge_id = _object_id(instance, "bridge")
        self._bridge_availability = {"topic": topics.bridge("availability")}
        self._notify = dict(list(notify_keys([*settings.groups, *settings.contacts]).items())[:MAX_NOTIFY])

    def device(self, kind: str, name: str) -> dict[str, Any]:
        """One device with its components."""
        match kind:
            case "bridge":
                return self._bridge()
            case "gateway":
                return self._gateway(name)
            case _:
                return self._line(name, self._settings.lines[name])

    def _bridge(self) -> dict[str, Any]:
        named = "" if self._settings.instance is None else f" {self._settings.instance}"
        device = {"name": f"GoIP bridge{named}", "model": "goip-mqtt-bridge", "sw_version": __version__}
        return self._document(self._bridge_id, device, _bridge_components(self._topics))

    def _gateway(self, name: str) -> dict[str, Any]:
        lines = [line for line, settings in self._settings.lines.items() if settings.gateway == name]
        first = lines[0]
        device = {"name": f"GoIP {name}", "manufacturer": "DBL", "model": "GoIP", "via_device": self._bridge_id}
        hosts = (self._hardware[line].host for line in lines if line in self._hardware)
        device |= _page(next(filter(None, hosts), None))
        document = self._document(
            _gateway_id(self._instance, name), device, _gateway_components(self._topics, name, first)
        )
        return document | {"availability": [self._bridge_availability]}

    def _line(self, line: str, settings: LineInventory) -> dict[str, Any]:
        via = self._bridge_id if settings.gateway is None else _gateway_id(self._instance, settings.gateway)
        device = {"name": settings.name or line, "manufacturer": "DBL", "model": "GoIP line", "via_device": via}
        known = self._hardware.get(line, Hardware(None, None))
        device |= _page(known.host) | ({"serial_number": known.imei} if known.imei else {})
        components = _line_components(self._topics, line)
        for name, key in self._notify.items():
            components[key] = _notify(self._topics.command(line, "sms"), name)
        for component in components.values():
            told = component.get("state_topic") == self._topics.line(line, "availability")
            if told or component["platform"] == "notify":  # offline is a value; and for an SMS the bridge has a queue
                component["availability"] = [self._bridge_availability]
        availability = [self._bridge_availability, {"topic": self._topics.line(line, "availability")}]
        document = self._document(_object_id(self._instance, line), device, components)
        return document | {"availability": availability, "availability_mode": "all"}

    def _document(self, object_id: str, device: dict[str, Any], components: Components) -> dict[str, Any]:
        return {
            "device": {"identifiers": [object_id], **device},
            "origin": {"name": ORIGIN, "sw_version": __version__},
            "components": dict(self._finished(object_id, components)),
        }

    def _finished(self, object_id: str, components: Components) -> Iterator[tuple[str, Component]]:
        """With what every component has, and the user's changes; a removed one is left out."""
        for key, component in components.items():
            changes = self._settings.homeassistant.overrides.get(key, {})
            if changes is None:
                continue
            finished: Component = {"qos": 1, **component}
            platform = component["platform"]
            if platform != "device_automation":
                unique_id = f"{object_id}_{key}"
                # Older versions of Home Assistant know only object_id, newer ones only default_entity_id.
                finished |= {
                    "unique_id": unique_id,
                    "object_id": unique_id,
                    "default_entity_id": f"{platform}.{unique_id}",
                }
            finished |= changes
            yield key, {name: value for name, value in finished.items() if name not in changes or value is not None}


def _page(host: str | None) -> dict[str, str]:
    """The link to a gateway's own pages."""
    if host is None:
        return {}
    return {"configuration_url": f"http://[{host}]" if ":" in host else f"http://{host}"}


# -- the tables -----------------------------------------------------------------------------------------------------


def _line_components(topics: Topics, line: str) -> Components:
    def at(path: str) -> str:
        return topics.line(line, path)

    def copy(path: str) -> str:
        return topics.for_home_assistant(at(path))

    def event(name: str, path: str, payload: type) -> Component:
        return {"platform": "event", "name": name, "state_topic": copy(path), "event_types": _event_types(payload)}

    def sensor(name: str, path: str, template: str, *more: dict[str, Any], **rest: Any) -> Component:
        return _sensor(name, at(path), template, *more, **rest)

    def binary(name: str, expression: str, *more: dict[str, Any], **rest: Any) -> Component:
        template = f"{{% set on = {expression} %}}{{{{ None if on is none else 'ON' if on else 'OFF' }}}}"
        return _merged("binary_sensor", name, *more, state_topic=at(_STATE), value_template=template, **rest)

    def button(name: str, path: str, **rest: Any) -> Component:
        return _merged("button", name, command_topic=topics.command(line, path), retain=False, **rest)

    def number(name: str, path: str, unit: str, highest: int, **rest: Any) -> Component:
        return _merged(
            "number", name, _CONFIG, _OFF, command_topic=topics.command(line, path), retain=False,
            command_template='{"value": {{ value | int }}}', min=0, max=highest, step=1, mode="box",
            unit_of_measurement=unit, **rest,
        )  # fmt: skip

    def value(path: str) -> str:
        return f"{{{{ value_json.{path} }}}}"

    return {
        "sms_in": event("Incoming SMS", "sms/in", payloads.SmsIn) | {"icon": "mdi:message-text"},
        "delivery": event("Delivery", "delivery", payloads.Delivery) | {"icon": "mdi:message-arrow-right"},
        "call": event("Call", "call", payloads.Call) | {"icon": "mdi:phone"},
        "ussd": event("USSD", "ussd", payloads.Ussd) | {"icon": "mdi:pound"},
        "signal": sensor(
            "Signal strength", _STATE, value("signal.dbm"), _DIAGNOSTIC, _MEASURED, device_class="signal_strength",
            unit_of_measurement="dBm",
        ),
        "signal_pct": sensor(
            "Signal quality", _STATE, value("signal.percent"), _DIAGNOSTIC, _MEASURED, _OFF, unit_of_measurement="%",
            icon="mdi:signal",
        ),
        "gsm": sensor(
            "Mobile network", _STATE, _worded("gsm.status", _GSM), _DIAGNOSTIC, device_class="enum",
            options=list(_GSM.values()), icon="mdi:radio-tower",
        ),
        "operator": sensor("Operator", _STATE, value("gsm.operator"), _DIAGNOSTIC, icon="mdi:sim"),
        "cell": sensor("Cell", _STATE, value("gsm.cell"), _DIAGNOSTIC, _OFF, icon="mdi:radio-tower"),
        "call_state": sensor(
            "Call state", _STATE, _worded("call.state", _CALL), device_class="enum", options=list(_CALL.values()),
            icon="mdi:phone",
        ),
        "talk_left": sensor(
            "Talk time left", _STATE, value("limits.remain_time_min"), _DIAGNOSTIC, _OFF, device_class="duration",
            unit_of_measurement="min",
        ),
        "queue": sensor(
            "SMS queued", _STATS, value("queue.queued"), _DIAGNOSTIC, _MEASURED, unit_of_measurement="SMS",
            icon="mdi:tray-full",
        ),
        "sent": sensor("SMS sent", _STATS, value("total.sent"), _DIAGNOSTIC, _COUNTED, icon="mdi:message-arrow-right"),
        "failed": sensor("SMS failed", _STATS, value("total.failed"), _DIAGNOSTIC, _COUNTED, icon="mdi:message-alert"),
        "delivered": sensor(
            "SMS delivered", _STATS, value("total.delivered"), _DIAGNOSTIC, _COUNTED, _OFF, icon="mdi:message-check"
        ),
        "received": sensor(
            "SMS received", _STATS, value("total.received"), _DIAGNOSTIC, _COUNTED, _OFF,
            icon="mdi:message-arrow-left",
        ),
        "last_seen": sensor("Last seen", _STATE, value("last_seen"), _DIAGNOSTIC, _OFF, device_class="timestamp"),
        "last_sms_at": sensor("Last SMS", _LAST, value("at"), device_class="timestamp")
        | {"json_attributes_topic": at(_LAST)},
        "number": sensor("Phone number", _STATE, value("sim.number"), _DIAGNOSTIC, _OFF, icon="mdi:numeric"),
        "iccid": sensor("SIM card", _STATE, value("sim.iccid"), _DIAGNOSTIC, _OFF, icon="mdi:sim"),
        "imei": sensor("IMEI", _STATE, value("module.imei"), _DIAGNOSTIC, _OFF, icon="mdi:identifier"),
        "registered": binary("Registered", "value_json.gsm.registered", _DIAGNOSTIC, device_class="connectivity"),
        "voip": binary("VoIP", "value_json.voip.registered", _DIAGNOSTIC, _OFF, device_class="connectivity"),
        "in_call": binary("In call", _IN_CALL, device_class="running"),
        "problem": binary("Problem", "value_json.problems | length > 0", _DIAGNOSTIC, device_class="problem")
        | {
            "json_attributes_topic": at(_STATE),
            "json_attributes_template": "{{ {'problems': value_json.problems, 'command_topic': "
            + _literal(topics.command(line, "sms"))
            + "} | tojson }}",
        },
        "online": _merged(
            "binary_sensor", "Online", _DIAGNOSTIC, state_topic=at("availability"), payload_on="online",
            payload_off="offline", device_class="connectivity",
        ),
        "module": _merged(
            "switch", "GSM module", _CONFIG, state_topic=at(_STATE), command_topic=topics.command(line, "module/set"),
            retain=False, payload_on='{"enable": true}', payload_off='{"enable": false}', state_on="ON",
            state_off="OFF", icon="mdi:power",
            value_template="{{ None if value_json.enabled is none else 'ON' if value_json.enabled else 'OFF' }}",
        ),
        "exp_time": number("Call time limit", "exp_time/set", "min", 999_999_999, device_class="duration")
        | {"state_topic": at(_STATE), "value_template": value("limits.exp_time_min")},
        "call_interval": number("Pause between calls", "call_interval/set", "s", 86_400, device_class="duration"),
        "ussd_code": _merged(
            "text", "USSD code", _CONFIG, command_topic=topics.command(line, "ussd"), retain=False,
            command_template='{"code": {{ value | tojson }}}', min=1, max=182, pattern="^[0-9*#+]{1,182}$",
            icon="mdi:pound",
        ),
        "call_drop": button("Hang up", "call/drop", icon="mdi:phone-hangup"),
        "module_reboot": button("Restart module", "module/reboot", device_class="restart") | _CONFIG,
        "refresh": button("Refresh", "refresh", icon="mdi:refresh") | _DIAGNOSTIC,
        "trg_sms_received": _trigger("sms_received", "SMS received", copy("sms/in"), "received"),
        "trg_call_ringing": _trigger("call_ringing", "Call ringing", copy("call"), "ringing"),
    }  # fmt: skip


def _gateway_components(topics: Topics, gateway: str, line: str) -> Components:
    """`line` is the one that is asked to restart the box."""
    chosen = f"value_json.lines | selectattr('gateway', 'eq', '{gateway}') | selectattr('online') | list | count"
    return {
        "lines_online": _sensor(
            "Lines online", topics.bridge("lines"), f"{{{{ {chosen} }}}}", _DIAGNOSTIC, _MEASURED, icon="mdi:sim",
            unit_of_measurement="lines",
        ),
        "reboot": _merged(
            "button", "Restart", _CONFIG, command_topic=topics.command(line, "gateway/reboot"), retain=False,
            device_class="restart", availability_mode="all",
            availability=[{"topic": topics.bridge("availability")}, {"topic": topics.line(line, "availability")}],
        ),
    }  # fmt: skip


def _bridge_components(topics: Topics) -> Components:
    """`connected` is always available: that the bridge is offline is a value."""
    available = {"availability": [{"topic": topics.bridge("availability")}]}

    def sensor(name: str, path: str, value: str, *more: dict[str, Any], **rest: Any) -> Component:
        return _sensor(
            name, topics.bridge(path), f"{{{{ value_json.{value} }}}}", available, _DIAGNOSTIC, *more, **rest
        )

    return {
        "connected": _merged(
            "binary_sensor", "Connection", _DIAGNOSTIC, state_topic=topics.bridge("availability"), payload_on="online",
            payload_off="offline", device_class="connectivity",
        ),
        "version": sensor("Version", "info", "version", icon="mdi:tag"),
        "uptime": sensor("Running since", "info", "started_at", device_class="timestamp"),
        "outbox": sensor(
            "Messages waiting", "health", "outbox.count", _MEASURED, unit_of_measurement="messages",
            icon="mdi:tray-full",
        ),
        "outbox_age": sensor(
            "Oldest message waiting", "health", "outbox.oldest_s | default(0, true)", _MEASURED,
            device_class="duration", unit_of_measurement="s",
        ),
        "reconnects": sensor(
            "Reconnects", "health", "mqtt.reconnects", state_class="total_increasing", icon="mdi:connection"
        ),
        "event": _merged(
            "event", "Notice", available, _DIAGNOSTIC, state_topic=topics.for_home_assistant(topics.bridge("event")),
            event_types=_event_types(payloads.BridgeEvent), icon="mdi:alert-circle-outline",
        ),
        "restart": _merged(
            "button", "Restart", available, _CONFIG, command_topic=topics.command("bridge", "restart"), retain=False,
            device_class="restart",
        ),
    }  # fmt: skip


def _notify(topic: str, name: str) -> Component:
    """SMS to a contact or group."""
    to = _literal(f"@{name}")
    return _merged(
        "notify", name, command_topic=topic, retain=False, icon="mdi:message-arrow-right",
        command_template=f'{{"to": [{to}], "text": {{{{ value | tojson }}}}}}',
    )  # fmt: skip


def _literal(text: str) -> str:
    """A string of JSON and of the template language, which sees no braces in it."""
    return orjson.dumps(text).decode().replace("{", "\\u007b").replace("}", "\\u007d")


def _sensor(name: str, topic: str, template: str, *more: dict[str, Any], **rest: Any) -> Component:
    return _merged("sensor", name, *more, state_topic=topic, value_template=template, **rest)


def _trigger(what: str, shown: str, topic: str, event_type: str) -> Component:
    """`shown` is what the editor of automations has: it knows no translation of ours."""
    return {
        "platform": "device_automation",
        "automation_type": "trigger",
        "type": what,
        "subtype": shown,
        "topic": topic,
        "value_template": "{{ value_json.event_type }}",
        "payload": event_type,
    }


def _merged(platform: str, name: str, *parts: Mapping[str, Any], **rest: Any) -> Component:
    merged: Component = {"platform": platform, "name": name}
    for part in (*parts, rest):
        merged |= part
    return merged


def _event_types(payload: type) -> list[str]:
    """The declared values of a fact's `event_type`."""
    return list(get_args(payload.__annotations__["event_type"]))


def _worded(path: str, words: Mapping[str, str]) -> str:
    """A template that renders a value in these words; what is not known stays so."""
    return f"{{{{ {words!r}.get(value_json.{path}) }}}}"


_LINE_KEYS = tuple(_line_components(Topics("x"), "x"))
_GATEWAY_KEYS = tuple(_gateway_components(Topics("x"), "x", "x"))
_BRIDGE_KEYS = tuple(_bridge_components(Topics("x")))
