"""The layout of the topics, both ways."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from paho.mqtt.client import topic_matches_sub

from bridge.contract.topics import CommandTopic, Topics

TOPICS = Topics("goip")
LEVELS = st.lists(
    st.sampled_from(["goip", "cmd", "pool", "any", "bridge", "goip1", "sms", "49", "", "$SYS"]), max_size=7
)


@pytest.mark.parametrize(
    ("topic", "expected"),
    [
        (TOPICS.line("goip1", "availability"), "goip/goip1/availability"),
        (TOPICS.line("goip1", "sms/in"), "goip/goip1/sms/in"),
        (TOPICS.bridge("health"), "goip/bridge/health"),
        (TOPICS.job("j-1"), "goip/job/j-1"),
        (TOPICS.result("goip1", "number/get"), "goip/goip1/result/number/get"),
        (TOPICS.result("bridge", "ping"), "goip/bridge/result/ping"),
        (TOPICS.result("any", "sms"), "goip/any/result/sms"),
        (TOPICS.result("pool/alarms", "sms"), "goip/pool/alarms/result/sms"),
        (TOPICS.command("pool/alarms", "sms"), "goip/pool/alarms/cmd/sms"),
        (Topics("house/gsm").bridge("info"), "house/gsm/bridge/info"),
    ],
)
def test_built_topics(topic, expected):
    assert topic == expected


def test_subscriptions_hear_commands_and_nothing_the_bridge_says():
    assert TOPICS.filters() == ("goip/+/cmd/#", "goip/pool/+/cmd/#")


@pytest.mark.parametrize(
    ("topic", "expected"),
    [
        ("goip/goip1/cmd/sms", CommandTopic("goip1", "sms")),
        ("goip/goip1/cmd/sms/00491511", CommandTopic("goip1", "sms/00491511")),
        ("goip/goip1/cmd/number/get", CommandTopic("goip1", "number/get")),
        ("goip/bridge/cmd/ping", CommandTopic("bridge", "ping")),
        ("goip/any/cmd/sms", CommandTopic("any", "sms")),
        ("goip/pool/alarms/cmd/sms", CommandTopic("pool/alarms", "sms")),
        ("goip/pool/cmd/cmd/sms", CommandTopic("pool/cmd", "sms")),
        ("goip/pool/cmd/sms", CommandTopic("pool", "sms")),
        ("goip/goip1/cmd/cmd", CommandTopic("goip1", "cmd")),
        ("goip/nobody knows/cmd/sms", CommandTopic("nobody knows", "sms")),
        ("goip/goip1/cmd", CommandTopic("goip1", "")),
        ("goip/goip1/cmd/", CommandTopic("goip1", "")),
        ("goip/pool/alarms/cmd", CommandTopic("pool/alarms", "")),
        ("goip/pool/cmd", CommandTopic("pool", "")),
        ("goip/pool/cmd/cmd", CommandTopic("pool", "cmd")),
        ("goip//cmd/sms", None),
        ("goip/cmd/sms", None),
        ("goip/pool//cmd/sms", None),
        ("goip/goip1/state", None),
        ("goip/goip1/result/sms", None),
        ("goip/a/b/cmd/sms", None),
        ("goip2/goip1/cmd/sms", None),
        ("goip/+/cmd/#", None),
        ("x/goip/goip1/cmd/sms", None),
        ("goip/goip1/cmd/s\0", None),
        ("goip/goip1/cmd/s\udc80", None),
        ("", None),
    ],
)
def test_parse_command(topic, expected):
    assert TOPICS.parse_command(topic) == expected


def test_parse_command_below_a_deep_base():
    deep = Topics("house/cmd/gsm")
    assert deep.parse_command("house/cmd/gsm/goip1/cmd/sms") == CommandTopic("goip1", "sms")
    assert deep.parse_command("house/cmd/gsm") is None
    assert deep.parse_command("goip/goip1/cmd/sms") is None


def test_a_command_whose_answer_would_not_fit_a_topic_is_none():
    path = "x" * (65_535 - len("goip/goip1/result/"))
    assert len(TOPICS.result("goip1", path)) == 65_535
    assert TOPICS.parse_command(TOPICS.command("goip1", path)) == CommandTopic("goip1", path)
    assert TOPICS.parse_command(TOPICS.command("goip1", path + "x")) is None


@given(LEVELS.map("/".join))
@example("goip/pool/cmd/cmd/x")
def test_what_is_parsed_was_subscribed_and_comes_back(topic):
    parsed = TOPICS.parse_command(topic)
    if parsed is not None:
        assert any(topic_matches_sub(subscription, topic) for subscription in TOPICS.filters())
        assert TOPICS.command(parsed.target, parsed.path) in (topic, f"{topic}/")  # it may end at `cmd`


@pytest.mark.parametrize(
    "topic",
    [
        "answers/1",
        "cmd/mine",  # not below our base
        "goip2/goip1/cmd/sms",
        "goip",
        "homeassistants/x",
        "/leading",
        "x",
        "a b~\xa0\ufdcf\ufdf0\ufffd",
        "Antworten/für mich",
        "x" * 65_535,
    ],
)
def test_permitted_response_topics(topic):
    assert TOPICS.response_topic_permitted(topic, "homeassistant")


@pytest.mark.parametrize(
    "topic",
    [
        "",
        "goip/goip1/cmd/sms",
        "goip/goip1/cmd",
        "goip/bridge/cmd/reload",
        "goip/pool/alarms/cmd/sms",
        "goip/cmd/x",
        "goip/a/b/c/cmd",
        "goip/bridge/availability",
        "goip/goip1/sms/in",
        "goip/goip1/state",
        "goip/job/x",
        "goip/goip1/result/sms",
        "goip/pool/x/result/sms",
        "reply" + "/" * 200,
        "homeassistant",
        "homeassistant/status",
        "$SYS/x",
        "$share/g/x",
        "a/+/b",
        "a/#",
        "a\0b",
        "a\nb",
        "a\x1fb",
        "a\x7fb",
        "a\x9fb",
        "a\ufdd0b",
        "a\ufdefb",
        "a\ufffeb",
        "a\U0001ffffb",
        "a\ud800b",
        "x" * 65_536,
        "ü" * 32_768,
    ],
)
def test_refused_response_topics(topic):
    assert not TOPICS.response_topic_permitted(topic, "homeassistant")


@given(LEVELS.map("/".join), st.sampled_from(["goip", "a/b", "goip/goip1"]))
def test_no_permitted_response_topic_is_one_of_our_commands(topic, base):
    topics = Topics(base)
    if topics.response_topic_permitted(topic, "homeassistant"):
        assert not any(topic_matches_sub(subscription, topic) for subscription in topics.filters())


@given(st.text(st.characters(codec=None)))
def test_any_string_has_an_answer(topic):
    TOPICS.parse_command(f"goip/{topic}")
    TOPICS.parse_command(f"goip/goip1/cmd/{topic}")
    TOPICS.response_topic_permitted(topic, "homeassistant")
