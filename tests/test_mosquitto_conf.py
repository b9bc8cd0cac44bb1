"""mosquitto/mosquitto.conf and mosquitto/acl, tried on a real broker: what each role may do, and what survives."""

import queue
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import paho.mqtt.client as paho
import pytest
from paho.mqtt.enums import CallbackAPIVersion

pytestmark = pytest.mark.broker("mqtt5", "roles")

ROLES = {"bridge", "reader", "sender", "admin", "homeassistant"}

SAID = [  # all that the bridge says: everybody reads it
    "goip/bridge/availability",
    "goip/bridge/info",
    "goip/bridge/health",
    "goip/bridge/lines",
    "goip/bridge/event",
    "goip/bridge/result/ping",
    "goip/goip1/availability",
    "goip/goip1/state",
    "goip/goip1/stats",
    "goip/goip1/sms/in",
    "goip/goip1/sms/last",
    "goip/goip1/delivery",
    "goip/goip1/call",
    "goip/goip1/ussd",
    "goip/goip1/event",
    "goip/goip1/result/sms",
    "goip/goip1/result/call_forward/get",
    "goip/any/result/sms",
    "goip/pool/alarms/result/sms",
    "goip/job/5f3a",
]
SMS = [  # commands that send, and manage what was sent
    "goip/goip1/cmd/sms",
    "goip/goip1/cmd/sms/00380501234567",
    "goip/any/cmd/sms",
    "goip/pool/alarms/cmd/sms",
    "goip/pool/alarms/cmd/sms/anna",
    "goip/goip1/cmd/cancel",
    "goip/goip1/cmd/pause",
    "goip/goip1/cmd/resume",
]
EVERYDAY = [  # commands behind an entity of Home Assistant
    "goip/goip1/cmd/ussd",
    "goip/goip1/cmd/call/drop",
    "goip/goip1/cmd/exp_time/set",
    "goip/goip1/cmd/module/reboot",
    "goip/goip1/cmd/module/disable",
    "goip/goip1/cmd/gateway/reboot",
    "goip/goip1/cmd/refresh",
    "goip/bridge/cmd/inbox",
]
FOR_HOME_ASSISTANT = ["goip/goip1/homeassistant/sms/in", "goip/bridge/homeassistant/event"]
RISKY = [
    "goip/goip1/cmd/imei/set",
    "goip/goip1/cmd/imei/get",
    "goip/goip1/cmd/call_forward/set",
    "goip/goip1/cmd/selftest",
    "goip/pool/alarms/cmd/imei/set",
    "goip/pool/alarms/cmd/call_forward/set",
]

WRITERS = [
    (SAID, {"bridge", "admin"}),
    (SMS, {"bridge", "admin", "sender", "homeassistant"}),
    (EVERYDAY, {"bridge", "admin", "homeassistant"}),
    (RISKY, {"bridge", "admin"}),
    (["goip/goip1/cmd/sms/1/2"], {"bridge", "admin", "homeassistant"}),
    (["homeassistant/device/goip_home_goip1/config"], {"bridge", "homeassistant"}),
    (["homeassistant/sensor/other/config", "homeassistant/status"], {"homeassistant"}),
    (["reply/sender/1"], {"bridge"}),
    (FOR_HOME_ASSISTANT, {"bridge", "admin"}),
    (["elsewhere", "goipx/goip1/cmd/sms", "$SYS/broker/uptime"], set()),
]
READERS = [
    (SAID, ROLES),
    ([*SMS, *EVERYDAY, *RISKY], {"bridge", "admin"}),
    (["homeassistant/device/goip_home_goip1/config", "homeassistant/status"], {"bridge", "admin", "homeassistant"}),
    (["homeassistant/sensor/other/config"], {"admin", "homeassistant"}),
    (FOR_HOME_ASSISTANT, {"bridge", "admin", "homeassistant"}),
    (["reply/sender/1"], {"sender"}),
    (["reply/reader/a/b"], {"reader"}),
    (["reply/bridge/1"], {"bridge"}),
]


def rows(table: list[tuple[list[str], set[str]]]) -> list[tuple[str, str, bool]]:
    return [(role, topic, role in who) for topics, who in table for topic in topics for role in sorted(ROLES)]


class Client:
    """A plain MQTT 5 client that shows reason codes and what it received."""

    def __init__(self, broker, user, password):
        self.acks: queue.Queue = queue.Queue()
        self.received: queue.Queue[tuple[str, bytes, bool]] = queue.Queue()
        self.paho = paho.Client(CallbackAPIVersion.VERSION2, protocol=paho.MQTTv5)
        self.paho.username_pw_set(user, password)
        self.paho.on_connect = lambda _c, _u, _f, code, _p: self.acks.put(code.value)
        self.paho.on_publish = lambda _c, _u, _mid, code, _p: self.acks.put(code.value)
        self.paho.on_subscribe = lambda _c, _u, _mid, codes, _p: self.acks.put(max(code.value for code in codes))
        self.paho.on_unsubscribe = lambda _c, _u, _mid, codes, _p: self.acks.put(0)
        self.paho.on_disconnect = lambda _c, _u, _f, code, _p: self.acks.put(f"disconnected: {code}")
        self.paho.on_message = lambda _c, _u, m: self.received.put((m.topic, m.payload, m.retain))
        self.paho.connect(broker.host, broker.port)
        self.paho.loop_start()
        self.connack = self.acks.get(timeout=10)

    def publish(self, topic, payload=b"x", retain=False) -> int:
        """The reason code of the PUBACK."""
        self.paho.publish(topic, payload, qos=1, retain=retain)
        return self.acks.get(timeout=10)

    def subscribe(self, *topics: str) -> int:
        self.paho.subscribe([(topic, paho.SubscribeOptions(qos=1)) for topic in topics])
        return self.acks.get(timeout=10)

    def unsubscribe(self, *topics: str) -> None:
        self.paho.unsubscribe(list(topics))
        self.acks.get(timeout=10)

    def receive_until(self, topic: str) -> list[tuple[str, bytes, bool]]:
        """What came before a message on this topic."""
        messages = []
        while (message := self.received.get(timeout=10))[0] != topic:
            messages.append(message)
        return messages

    def close(self) -> None:
        self.paho.disconnect()
        self.paho.loop_stop()


@pytest.fixture(scope="module")
def clients(broker) -> Iterator[dict[str, Client]]:
    everyone = {role: Client(broker, role, broker.passwords[role]) for role in ROLES}
    assert {role: client.connack for role, client in everyone.items()} == dict.fromkeys(ROLES, 0)
    yield everyone
    for client in everyone.values():
        client.close()


@pytest.mark.parametrize(("role", "topic", "allowed"), rows(WRITERS))
def test_who_may_publish(clients, role, topic, allowed):
    code = clients[role].publish(topic)
    assert code in ((0, 0x10) if allowed else (0x87,))  # success, no matching subscribers; not authorized


@pytest.mark.parametrize(("role", "topic", "allowed"), rows(READERS))
def test_who_may_read(clients, role, topic, allowed):
    publisher = clients["homeassistant" if topic.startswith("homeassistant/") else "bridge"]
    end = f"reply/{role}/end"
    clients[role].subscribe(topic, end)
    assert publisher.publish(topic, b"secret?") < 0x80
    assert clients["bridge"].publish(end) < 0x80
    received = clients[role].receive_until(end)
    clients[role].unsubscribe(topic, end)
    assert received == ([(topic, b"secret?", False)] if allowed else [])


@pytest.mark.parametrize("role", ["reader", "sender", "homeassistant"])
@pytest.mark.parametrize("wildcard", ["#", "goip/#", "goip/+/cmd/#", "+/+/cmd/+"])
def test_a_wildcard_shows_no_command_and_no_one_elses_reply(clients, role, wildcard):
    bridge = clients["bridge"]
    bridge.publish("goip/goip1/cmd/ussd", b"retained", retain=True)
    end = f"reply/{role}/end"
    subscriptions = {wildcard} if wildcard == "#" else {wildcard, end}  # overlapping ones deliver twice
    clients[role].subscribe(*subscriptions)
    for topic in ("goip/goip1/cmd/sms", "goip/pool/alarms/cmd/sms", "goip/bridge/cmd/inbox", "reply/admin/1"):
        assert bridge.publish(topic) < 0x80
    bridge.publish(end)
    received = clients[role].receive_until(end)
    bridge.publish("goip/goip1/cmd/ussd", b"", retain=True)
    clients[role].unsubscribe(*subscriptions)
    assert received == []


@pytest.mark.parametrize("role", ["reader", "sender", "admin"])
def test_the_health_check_of_the_broker_can_read_its_uptime(clients, role):
    clients[role].subscribe("$SYS/broker/uptime")
    topic, payload, _ = clients[role].received.get(timeout=15)
    clients[role].unsubscribe("$SYS/broker/uptime")
    assert (topic, payload.split()[1:]) == ("$SYS/broker/uptime", [b"seconds"])


def test_a_denied_publish_does_not_end_the_connection(clients):
    """Mosquitto 2.0.11 with max_queued_messages 0 disconnects here."""
    for _ in range(3):
        assert clients["sender"].publish("goip/goip1/cmd/imei/set") == 0x87
        assert clients["sender"].publish("goip/goip1/cmd/sms") < 0x80


@pytest.mark.parametrize(("user", "password"), [(None, None), ("bridge", "wrong"), ("bridge", ""), ("nobody", "x")])
def test_nobody_connects_without_a_right_password(broker, user, password):
    client = Client(broker, user, password)
    client.close()
    assert client.connack in (0x86, 0x87)  # bad user name or password, not authorized


@pytest.mark.broker("binary")
def test_retained_states_and_queued_commands_survive_a_restart(
    run_mosquitto: Callable[[Path], AbstractContextManager], tmp_path
):
    session = paho.Properties(paho.PacketTypes.CONNECT)
    session.SessionExpiryInterval = 3600
    with run_mosquitto(tmp_path) as broker:
        bridge = paho.Client(CallbackAPIVersion.VERSION2, client_id="bridge", protocol=paho.MQTTv5)
        bridge.username_pw_set("bridge", broker.passwords["bridge"])
        subscribed: queue.Queue = queue.Queue()
        bridge.on_connect = lambda *_: bridge.subscribe("goip/+/cmd/#", qos=1)
        bridge.on_subscribe = lambda *_: subscribed.put(True)
        bridge.connect(broker.host, broker.port, clean_start=False, properties=session)
        bridge.loop_start()
        subscribed.get(timeout=10)
        bridge.publish("goip/goip1/state", b"{}", qos=1, retain=True).wait_for_publish(10)
        bridge.disconnect()
        bridge.loop_stop()
        sender = Client(broker, "sender", broker.passwords["sender"])
        assert sender.publish("goip/goip1/cmd/sms", b"while the bridge is away") == 0
        sender.close()

    with run_mosquitto(tmp_path) as broker:
        reader = Client(broker, "reader", broker.passwords["reader"])
        reader.subscribe("goip/goip1/state")
        assert reader.received.get(timeout=10) == ("goip/goip1/state", b"{}", True)
        reader.close()
        commands: queue.Queue = queue.Queue()
        bridge = paho.Client(CallbackAPIVersion.VERSION2, client_id="bridge", protocol=paho.MQTTv5)
        bridge.username_pw_set("bridge", broker.passwords["bridge"])
        bridge.on_message = lambda _c, _u, message: commands.put((message.topic, message.payload))
        bridge.connect(broker.host, broker.port, clean_start=False, properties=session)
        bridge.loop_start()
        assert commands.get(timeout=10) == ("goip/goip1/cmd/sms", b"while the bridge is away")
        bridge.disconnect()
        bridge.loop_stop()
