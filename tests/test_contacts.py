"""Contacts and groups: `@name` in `to`, and names in the topic (docs/contract.md §3, §5)."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bridge.app.bridge import Bridge
from bridge.config.settings import Settings
from bridge.contract.commands import MAX_RECIPIENTS
from bridge.contract.numbers import normalise
from bridge.mqtt.link import Incoming
from bridge.store.database import Store

CONTACTS = {
    "anna": "+49 151 1234 5678",
    "ben": "+4915187654321",
    "Gate keeper": "+4915100000001",
    "notify": "+4915100000002",
    'Zoë "Z" {{ 1 }} 🚪': "+4915100000003",
}
GROUPS = {"family": ["anna", "ben"], "all of us": ["anna", "ben", "notify"]}


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = Store(tmp_path / "bridge.db")
    yield opened
    opened.close()


@pytest.fixture
async def bridge(store: Store) -> Bridge:
    return made(store, CONTACTS, GROUPS)


def made(store: Store, contacts: dict[str, str], groups: dict[str, list[str]], *, country: str | None = None) -> Bridge:
    settings = Settings(lines={"l0": {"password": "p", "country": country}}, contacts=contacts, groups=groups)
    return Bridge(settings, store, lambda: settings)


def sent(bridge: Bridge, path: str, payload: object) -> dict[str, Any]:
    """The result of a command."""
    raw = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
    bridge.received([Incoming(f"goip/l0/cmd/{path}", raw, False, False, None, None, 1, 1)])
    rows = [row for row in bridge.store.outbox(0, 100_000) if row.schema == "result"]
    result = json.loads(rows[-1].body)
    assert isinstance(result, dict)
    return result


def queued(store: Store) -> list[tuple[str, str]]:
    return [(row.number, row.text) for row in store.queued("l0", 100_000)]


async def test_a_contact_and_a_group_stand_for_their_numbers(bridge: Bridge, store: Store) -> None:
    result = sent(bridge, "sms", {"to": ["@Gate keeper", "110", "@family"], "text": "hi"})
    assert result["code"] == "ok"
    numbers = ["+4915100000001", "110", "+4915112345678", "+4915187654321"]
    assert [message["to"] for message in result["data"]["msgs"]] == numbers
    assert queued(store) == [(number, "hi") for number in numbers]
    assert result["data"]["job"] is not None
    assert result["warnings"] == ["line_offline"]


@pytest.mark.parametrize("name", CONTACTS)
async def test_any_contact_can_be_named_in_the_topic_and_in_the_payload(
    bridge: Bridge, store: Store, name: str
) -> None:
    assert sent(bridge, f"sms/{name}", "Ü".encode())["code"] == "ok"
    assert sent(bridge, "sms", {"to": f"@{name}", "text": "Ü"})["code"] == "ok"
    number = CONTACTS[name].replace(" ", "")
    assert queued(store) == [(number, "Ü"), (number, "Ü")]


async def test_a_group_in_the_topic_is_a_job_with_its_result_on_sms(bridge: Bridge, store: Store) -> None:
    result = sent(bridge, "sms/all of us", b"hi")
    assert (result["command"], result["code"]) == ("sms", "ok")
    assert len(result["data"]["msgs"]) == 3
    assert len(queued(store)) == 3


async def test_who_is_named_twice_gets_one_sms(bridge: Bridge, store: Store) -> None:
    result = sent(bridge, "sms", {"to": ["@anna", "@family", "+49 (151) 12345678"], "text": "hi"})
    assert result["warnings"] == ["duplicate_recipient", "line_offline"]
    assert queued(store) == [("+4915112345678", "hi"), ("+4915187654321", "hi")]


SPELLINGS = ["+4915112345678", "004915112345678", "0151 12345678", "+49 (0)151 12345678", 4915112345678]


@pytest.mark.parametrize("first", range(len(SPELLINGS)))
async def test_a_phone_in_several_spellings_gets_one_sms(store: Store, first: int) -> None:
    spellings: list[Any] = SPELLINGS[first:] + SPELLINGS[:first]
    contacts = {f"c{n}": str(spelling) for n, spelling in enumerate(spellings)}
    bridge = made(store, contacts, {"all": list(contacts)}, country="DE")
    expected = normalise(str(spellings[0]))
    for to in (spellings, [f"@{name}" for name in contacts], ["@all"], [spellings[0], "@all"]):
        result = sent(bridge, "sms", {"to": to, "text": "hi"})
        assert [message["to"] for message in result["data"]["msgs"]] == [expected]
        assert result["warnings"] == ["duplicate_recipient", "line_offline"]
        assert result["data"]["job"] is None
    messages = [{"to": spelling, "text": text} for text in ("one", "two") for spelling in spellings]
    result = sent(bridge, "sms", {"messages": messages, "dry_run": True})
    assert "duplicate_recipient" in result["warnings"]
    assert sent(bridge, "sms", {"messages": messages})["message"] == "Queued 2 SMS."


async def test_phones_that_are_not_surely_the_same_get_an_sms_each(store: Store) -> None:
    without_country = made(store, {}, {})
    assert sent(without_country, "sms", {"to": SPELLINGS, "text": "hi"})["message"] == "Queued 3 SMS."
    bridge = made(store, {}, {}, country="DE")
    other = ["22000", "+22000", "*22000", "015112345678", "+4315112345678", "15112345679", "112", "0112"]
    result = sent(bridge, "sms", {"to": other, "text": "hi"})
    assert [message["to"] for message in result["data"]["msgs"]] == other
    assert result["warnings"] == ["line_offline"]


async def test_an_unknown_name_with_an_invisible_character_says_so(bridge: Bridge) -> None:
    result = sent(bridge, "sms", {"to": "@anna\u200b", "text": "hi"})
    assert result["message"].endswith("configuration; it has U+200B (ZERO WIDTH SPACE) at character 4")
    result = sent(bridge, "sms", {"to": "@anna, @ben", "text": "hi"})
    assert result["message"].endswith("configuration; several recipients are a list, one entry for each")


async def test_each_text_of_several_goes_to_all_of_its_group(bridge: Bridge, store: Store) -> None:
    messages = [{"to": "@family", "text": "one"}, {"to": "@anna", "text": "two"}]
    assert sent(bridge, "sms", {"messages": messages})["code"] == "ok"
    assert queued(store) == [("+4915112345678", "one"), ("+4915187654321", "one"), ("+4915112345678", "two")]


@pytest.mark.parametrize(
    ("path", "payload", "place"),
    [
        ("sms", {"to": "@nobody", "text": "hi"}, "to: "),
        ("sms", {"to": ["110", "@ANNA"], "text": "hi"}, "to[1]: "),
        ("sms", {"messages": [{"to": "110", "text": "a"}, {"to": "@x", "text": "b"}]}, "messages[1].to: "),
        ("sms/nobody", b"hi", "to: "),
    ],
)
async def test_an_unknown_name_refuses_the_whole_command(
    bridge: Bridge, store: Store, path: str, payload: object, place: str
) -> None:
    result = sent(bridge, path, payload)
    assert result["code"] == "invalid_payload"
    assert result["message"] == f"{place}there is no contact or group of this name in the configuration"
    assert queued(store) == []


async def test_groups_may_not_multiply_beyond_the_limit(store: Store) -> None:
    contacts = {f"c{n}": f"+49{n:09d}" for n in range(5000)}
    bridge = made(store, contacts, {"many": list(contacts)})
    messages = [{"to": "@many", "text": f"{n}"} for n in range(3)]
    result = sent(bridge, "sms", {"messages": messages})
    assert result["code"] == "too_large"
    assert result["message"].startswith("messages[2].to: more than")
    assert queued(store) == []
    assert sent(bridge, "sms", {"messages": messages[:2]})["code"] == "ok"
    assert len(queued(store)) == MAX_RECIPIENTS


async def test_a_changed_number_counts_from_the_reload_on(store: Store) -> None:
    old = Settings(lines={"l0": {"password": "p"}}, contacts={"anna": "+491"})
    new = old.model_copy(update={"contacts": {"anna": "+492"}})
    bridge = Bridge(old, store, lambda: new)
    assert sent(bridge, "sms", {"id": "a", "to": "@anna", "text": "hi"})["code"] == "ok"
    bridge.reload()
    assert sent(bridge, "sms", {"id": "a", "to": "@anna", "text": "hi"})["duplicate"] is True
    assert sent(bridge, "sms", {"id": "b", "to": "@anna", "text": "hi"})["code"] == "ok"
    assert queued(store) == [("+491", "hi"), ("+492", "hi")]
