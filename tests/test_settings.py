"""The configuration: what is accepted, what is refused, and whether the message leads to the mistake."""

import json
import os
import re
import subprocess
from pathlib import Path

import hypothesis
import pytest
import yaml
from hypothesis import HealthCheck
from hypothesis import strategies as st
from pydantic import ValidationError

from bridge.config import settings as module
from bridge.config.settings import BrokerUrl, ConfigError, LineSettings, Settings, load, load_with_origins
from bridge.contract import numbers
from bridge.goip.server import _Registered
from brokers import make_certificates

SECRET = "hunter2"


@pytest.fixture(autouse=True)
def in_tmp_path(tmp_path, monkeypatch):
    """Relative paths and ./config.yaml belong to the test."""
    monkeypatch.chdir(tmp_path)


def write(text: str, name: str = "config.yaml") -> Path:
    path = Path(name)
    path.write_text(text, encoding="utf-8")
    return path


def faults(text: str, **environ: str) -> list[str]:
    """The faults of a file with this text."""
    with pytest.raises(ConfigError) as raised:
        load(write(text), environ)
    return raised.value.faults


def accepted(text: str, **environ: str) -> Settings:
    return load(write(text), environ)


# The example of the contract ------------------------------------------------------------------------------------------

EXAMPLE = """\
base_topic: goip
instance: home
mqtt:
  url: mqtt://localhost:1883          # mqtts:// for TLS
  username: bridge
  password_file: mqtt-password
  version: auto
  client_id: null
udp:
  listen: 0.0.0.0:44444
store:
  path: goip-bridge.db
lines:
  goip1: { password: password1 }
  goip2: { password_file: goip2-password, name: "Gate SIM", gateway: rack1, country: DE,
           allow_from: [192.168.1.0/24], repeat_safety: auto }
  front: { goip_id: "+380500000000", password: secret }
pools:
  alarms: { lines: [goip1, goip2], strategy: round_robin }
contacts: { anna: "+4915112345678" }
groups: { family: [anna] }
homeassistant: { discovery: true, prefix: homeassistant }
http: { listen: 127.0.0.1:8080 }
timing: { offline_s: 95, resend_s: 5, wait_s: 90, ussd_s: 120, evidence_s: 900, backoff_s: 30, restored_hold_s: 95 }
"""


def test_the_example_of_the_contract_is_accepted():
    write("mqtt-secret\n", "mqtt-password")
    write("line-secret\r\n", "goip2-password")
    settings = accepted(EXAMPLE)
    assert settings.mqtt.password.get_secret_value() == "mqtt-secret"
    assert settings.lines["goip2"].password.get_secret_value() == "line-secret"
    assert str(settings.lines["goip2"].allow_from[0]) == "192.168.1.0/24"
    assert (settings.udp.host, settings.udp.port) == ("0.0.0.0", 44444)
    assert (settings.http.host, settings.http.port) == ("127.0.0.1", 8080)
    assert {name: line.goip_id for name, line in settings.lines.items()} == {
        "goip1": None, "goip2": None, "front": "+380500000000"
    }  # fmt: skip
    assert settings.groups == {"family": ["anna"]}


def test_without_a_file_everything_has_the_default_of_the_contract():
    settings = load(None, {})
    assert settings == Settings()
    assert settings.timing.model_dump() == {
        "offline_s": 95, "resend_s": 5, "wait_s": 90, "ussd_s": 120, "evidence_s": 900, "backoff_s": 30,
        "restored_hold_s": 95,
    }  # fmt: skip
    assert (settings.base_topic, settings.retain_text, settings.mqtt.address) == ("goip", False, None)
    assert (settings.homeassistant.prefix, settings.http.listen) == ("homeassistant", None)


def test_no_lines_is_allowed_with_a_note():
    assert "none configured" in load(None, {}).notes()[0]
    assert accepted("lines: {goip1: {password: x}}").notes() == []


# Which file -----------------------------------------------------------------------------------------------------------


def test_the_file_is_the_named_one_or_that_of_goip_config_or_config_yaml():
    write("base_topic: default")
    write("base_topic: variable", "variable.yaml")
    write("base_topic: named", "named.yaml")
    variable = {"GOIP_CONFIG": "variable.yaml"}
    assert load(Path("named.yaml"), variable).base_topic == "named"
    assert load(None, variable).base_topic == "variable"
    assert load(None, {}).base_topic == "default"


@pytest.mark.parametrize(("path", "environ"), [(Path("gone.yaml"), {}), (None, {"GOIP_CONFIG": "gone.yaml"})])
def test_a_named_file_that_does_not_exist_is_a_fault(path, environ):
    with pytest.raises(ConfigError, match=r"^gone\.yaml: cannot read it: No such file or directory$"):
        load(path, environ)


@pytest.mark.parametrize("text", ["", "# only a comment\n", "\ufeffbase_topic: goip\n", "mqtt:\nlines:\nhttp:\n"])
def test_a_file_may_be_empty_or_have_empty_sections(text):
    assert accepted(text) == Settings()


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("lines:\n  goip1: {password: x\n", r"config\.yaml:3:1: not valid YAML: "),
        ("base_topic: goip\n\tinstance: x\n", r"config\.yaml:2:1: not valid YAML: indent with blanks"),
        ("- goip\n", r"config\.yaml:1: expected keys and values"),
        ("a: \x07\n", r"config\.yaml: contains a control character"),
        ("lines: &l\n  goip1: *l\n", r"config\.yaml: an alias"),
        ("mqtt: {? [a] : b}\n", r"config\.yaml:1: mqtt: a key must be a plain word"),
        ("instance: !x home\n", r"config\.yaml:1: instance: put a value that starts with ! into quotes"),
    ],
)
def test_what_is_not_usable_yaml_is_located(text, fault):
    assert re.match(fault, faults(text)[0])


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("lines:\n  a: {password: 'x}\n  b: {}\n", ":4:1: not valid YAML: the quote in line 2 is not closed"),
        ('lines:\n  a: {password: "x}\n  b: {password: "y"}\n', "the quote in line 2 is closed in line 3 only"),
        ('lines:\n  a:\n    password: "x\n    name: "y"\n', "the quote in line 3 is closed in line 4 only"),
        ("lines:\n  a: {password: x\n  b: {password: y}\n", "the { in line 2 is not closed, or a comma is missing"),
        ("lines:\n  a: {password: x country: DE}\n", "the { in line 2 is not closed, or a comma is missing"),
        ("lines:\n  a: {password: x, allow_from: [::1}\n", "the [ in line 2 is not closed"),
        (
            "lines:\n  a:\n    name: x\n   password: y\n",
            "does not belong to what begins in line 2; check the indentation",
        ),
        ("lines:\n  a:\n    name: Gate: SIM\n", ":3:15: not valid YAML: a second colon"),
        ("lines:\n  a\n    password: x\n", "or a key without a colon in the line above"),
        (
            "  mqtt: {}\nlines: {}\n",
            ":2:1: not valid YAML: this does not go on with what is above; check the indentation",
        ),
        ("lines: {}\n---\nlines: {}\n", ":2:1: not valid YAML: a second document begins here"),
        ("lines: {a: {password: @x}}\n", "put a value that starts with @ % or ` into quotes"),
        ('lines: {a: {password: "x\\q"}}\n', "use single quotes"),
    ],
)
def test_a_fault_of_yaml_names_what_is_open(text, fault):
    (found,) = faults(text)
    assert fault in found
    assert "block end" not in found


def bomb(first: str, each: str) -> str:
    """Twelve lines, each of which repeats the one before nine times."""
    return f"a0: &a0 {first}\n" + "".join(f"a{n}: &a{n} {each.replace('*', f'*a{n - 1}')}\n" for n in range(1, 13))


MERGED = "{<<: [*, *, *, *, *, *, *, *, *]}"


@pytest.mark.parametrize(
    "text",
    [
        bomb("[x, x, x]", "[*, *, *, *, *, *, *, *, *]"),
        bomb("[]", "[*, *, *, *, *, *, *, *, *]"),
        bomb("{k: v}", "{a: *, b: *, c: *, d: *, e: *, f: *, g: *, h: *, i: *}"),
        bomb("{k: v}", MERGED),
        bomb("{}", MERGED),
        "a: &a {" + "x: 1, " * 2000 + "}\nb: [" + "*a, " * 2000 + "]\n",
    ],
)
def test_an_alias_that_stands_for_millions_of_values_is_a_fault(text):
    """They took 20 s and more; counted, not timed: a twelfth level has 282 thousand million."""
    (fault,) = faults(text)
    assert re.fullmatch(r"config\.yaml:\d+: more than 100000 keys and values, as often as aliases .*", fault)


def test_a_file_that_is_too_large_is_a_fault():
    assert faults("#" * (1 << 20) + "\n") == ["config.yaml: is larger than 1024 kB; is this the right file?"]
    assert faults("- \n" * 100_000) == ["config.yaml: more than 100000 keys and values; write fewer"]


def test_as_many_faults_are_told_as_somebody_reads():
    told = faults("".join(f"unknown{n}: 1\n" for n in range(1000)))
    assert len(told) == 101
    assert told[-1] == "and 900 more faults"


def test_aliases_and_many_lines_are_welcome():
    text = "lines:\n  g0: &g {password: secret, country: DE}\n" + "".join(f"  g{n}: *g\n" for n in range(1, 3000))
    assert len(accepted(text).lines) == 3000


def test_a_file_that_is_not_utf8_is_a_fault():
    Path("config.yaml").write_bytes(b"instance: \xff\n")
    with pytest.raises(ConfigError, match="not UTF-8 text"):
        load(None, {})


def test_a_duplicate_key_names_both_lines():
    text = "lines:\n  goip1: {password: a}\n  goip2: {password: b}\n  goip1: {password: c}\n"
    assert faults(text) == ["config.yaml:4: lines.goip1: given again, first in line 2; keep one of the two"]


def test_a_merge_key_takes_over_what_is_not_given():
    settings = accepted("lines:\n  a: &a {password: x, gateway: rack1}\n  b: {<<: *a, password: y}\n")
    assert settings.lines["b"].gateway == "rack1"
    assert settings.lines["b"].password.get_secret_value() == "y"


def test_unquoted_scalars_stay_what_was_written():
    settings = accepted("lines: {1: {password: 0123, country: NO, goip_id: +380500000000}}\ncontacts: {a: +49151}\n")
    line = settings.lines["1"]
    assert (line.password.get_secret_value(), line.country, line.goip_id) == ("0123", "NO", "+380500000000")
    assert settings.contacts == {"a": "+49151"}


def test_overrides_keep_their_json_types():
    settings = accepted("homeassistant: {overrides: {imei: null, signal: {n: 5, t: '5', b: false, on: ON}}}")
    assert settings.homeassistant.overrides == {"imei": None, "signal": {"n": 5, "t": "5", "b": False, "on": "ON"}}


# Faults say where and what --------------------------------------------------------------------------------------------


def test_a_typo_gets_its_line_and_a_suggestion():
    text = "mqtt:\n  url: mqtt://localhost\n\nlines:\n  goip1:\n    password: x\n    pasword: x\n"
    assert faults(text) == ['config.yaml:7: lines.goip1.pasword: unknown key; did you mean "password"?']


def test_every_fault_is_reported_at_once_in_one_line_each():
    found = faults("lins: {}\nudp: {listen: 5}\ntiming: {wait_s: soon}\nlines: {a: {}}\n", GOIP_X="1")
    assert len(found) == 5
    assert all("\n" not in fault for fault in found)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("base_topic: a//b", "base_topic: has an empty level"),
        ("base_topic: /goip", "base_topic: has an empty level"),
        ("base_topic: goip/", "base_topic: has an empty level"),
        ("base_topic: ''", "base_topic: has an empty level"),
        ("base_topic: goip/#", "base_topic: must not contain the wildcards"),
        ("base_topic: a/+/b", "base_topic: must not contain the wildcards"),
        ("base_topic: $SYS/goip", "base_topic: must not start with $"),
        ("base_topic: homeassistant", "base_topic: overlaps homeassistant.prefix"),
        ("base_topic: homeassistant/goip", "base_topic: overlaps homeassistant.prefix"),
        ("base_topic: a\nhomeassistant: {prefix: a/b}", "base_topic: overlaps homeassistant.prefix"),
        ("instance: my home", "instance: must be 1 to 32"),
        ("lines: {a b: {password: x}}", "lines.a b: must be 1 to 32"),
        (f"lines: {{{'a' * 33}: {{password: x}}}}", "must be 1 to 32"),
        ("lines: {+380500000000: {password: x}}", "put that into goip_id"),
        ("lines: {bridge: {password: x}}", "lines.bridge: is reserved"),
        ("lines: {Pool: {password: x}}", "lines.Pool: is reserved"),
        ("lines: {a: {password: x}, A: {password: x}}", 'lines.A: differs from "a" only in case'),
        ("lines: {a: {password: x}, b: {password: x, goip_id: a}}", 'lines.b.goip_id: line "a" registers'),
        ("lines: {a: {password: x, goip_id: 'a;b'}}", "lines.a.goip_id: must not contain ;"),
        ('lines: {a: {password: x, goip_id: "a\\n"}}', "lines.a.goip_id: must not contain ; or control"),
        ("lines: {a: {}}", "lines.a.password: missing; add password: … or password_file: …"),
        ("lines: {a: secret}", "lines.a: expected keys and values below it, not a single value"),
        ("lines:\n  - a: {password: x}", "lines: expected keys and values below it, not a list: leave out the -"),
        ("lines: {a: [secret]}", "lines.a: expected keys and values below it, not a list"),
        ("mqtt: []", "mqtt: expected keys and values below it, not a list"),
        ("base_topic: {}", "base_topic: expected text, not keys and values"),
        ("lines: {a: {password: x, allow_from: ['::1, ::2']}}", "lines.a.allow_from[0]: several in one; write a list"),
        ("http: {hosts: ['http://a.example']}", "http.hosts[0]: must be a host name alone"),
        ("http: {hosts: ['a.example:80']}", "http.hosts[0]: must be a host name alone"),
        ("lines: {a: {password: x, allow_from: [1.2.3.4.5]}}", "lines.a.allow_from[0]: not an address or network"),
        ("lines: {a: {password: x, allow_from: 10.0.0.0/8}}", "lines.a.allow_from: expected a list"),
        ("lines: {a: {password: x, country: UK}}", "lines.a.country: unknown country; write GB"),
        ("lines: {a: {password: x, country: Germany}}", "lines.a.country: unknown country"),
        ("lines: {a: {password: x, repeat_safety: maybe}}", "lines.a.repeat_safety: input should be 'auto'"),
        ("lines: {a: {password: x, gateway: a/b}}", "lines.a.gateway: must be 1 to 32"),
        ("udp: {listen: 44444}", "udp.listen: must be host:port"),
        ("udp: {listen: '::1:44444'}", "udp.listen: must be host:port"),
        ("udp: {listen: 'a:65536'}", "udp.listen: must be host:port"),
        ("pools: {p: {lines: []}}", "pools.p.lines: list should have at least 1 item"),
        ("pools: {p: {lines: [goip2]}}\nlines: {goip1: {password: x}}", 'no line "goip2"; did you mean "goip1"?'),
        ("pools: {p: {lines: [a], strategy: best}}\nlines: {a: {password: x}}", "pools.p.strategy: input should be"),
        ("contacts: {anna: Vodafone}", "contacts.anna: not a phone number"),
        ("contacts: {a/b: '1'}", "contacts.a/b: must not contain / + #"),
        ("contacts: {'123': '1'}", "contacts.123: must not read as a number"),
        ("contacts: {110-112: '1'}", "contacts.110-112: must not read as a number"),
        ("contacts: {'*100*': '1'}", "contacts.*100*: must not read as a number"),
        ("contacts: {' a': '1'}", "must be 1 to 64 characters, without blanks"),
        ("groups: {family: [ana]}\ncontacts: {anna: '1'}", 'groups.family[0]: there is no contact "ana"; did'),
        ("groups: {anna: [anna]}\ncontacts: {anna: '1'}", "groups.anna: is also a contact"),
        ("groups: {family: []}", "groups.family: list should have at least 1 item"),
        ("timing: {resend_s: 0}", "timing.resend_s: input should be greater than or equal to 0.1"),
        ("timing: {backoff_s: 301}", "timing.backoff_s: input should be less than or equal to 300"),
        ("timing: {wait_s: .nan}", "timing.wait_s: expected a number"),
        ("timing: {wait_s: nan}", "timing.wait_s: input should be"),
        ("retain_text: perhaps", "retain_text: expected true or false"),
        ("homeassistant: {prefix: +}", "homeassistant.prefix: must not contain the wildcards"),
        ("mqtt: {version: 4}", "mqtt.version: input should be 'auto', '5' or '3.1.1'"),
        ("mqtt: {client_id: ''}", "mqtt.client_id: must not be blank"),
        ("mqtt: {username: x}", "mqtt.username: needs mqtt.url"),
        ("mqtt: {url: mqtt://h, password: x}", "mqtt.password: needs mqtt.username"),
        ("mqtt: {url: mqtt://h, ca_file: config.yaml}", "mqtt.ca_file: needs a url that starts with mqtts://"),
        ("mqtt: {server_name: h}", "mqtt.server_name: needs a url that starts with mqtts://"),
        ("mqtt: {url: mqtts://h, cert_file: config.yaml}", "mqtt.cert_file: needs mqtt.key_file"),
        ("mqtt: {url: mqtts://h, key_file: config.yaml}", "mqtt.key_file: needs mqtt.cert_file"),
        ("mqtt: {url: mqtts://h, ca_file: gone.pem}", "mqtt.ca_file: cannot read gone.pem: No such file"),
        ('store: {path: "a\\0b"}', "store.path: must not contain NUL"),
        ('mqtt: {url: mqtts://h, ca_file: "a\\0b"}', "mqtt.ca_file: must not contain NUL"),
        ('lines: {a: {password_file: "a\\0b"}}', "lines.a.password_file: must not contain NUL"),
    ],
)  # fmt: skip
def test_a_bad_value_is_refused_with_its_place(text, fault):
    assert any(fault in found for found in faults(text)), faults(text)


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("mqtt: {host: h}", "url"),
        ("mqtt: {user: u}", "username"),
        ("mqtt: {port: 1883}", "url"),
        ("http: {Port: 80}", "listen"),
        ("lines: {a: {password: x, id: y}}", "goip_id"),
        ("lines: {a: {password: x, ip: y}}", "allow_from"),
        ("gateways: {}", "lines"),
        ("topic: goip", "base_topic"),
        ("homeassistant: {enabled: true}", "discovery"),
    ],
)
def test_the_words_of_others_for_our_keys_are_known(text, key):
    (found,) = faults(text)
    assert found.endswith(f': unknown key; did you mean "{key}"?')


def test_the_words_of_others_lead_to_keys_that_exist():
    for model, words in module._MEANT.items():
        assert set(words.values()) <= set(model.model_fields)
        assert not set(words) & set(model.model_fields)


def test_what_depends_on_other_values_is_looked_at_although_there_are_other_faults():
    text = (
        "groups: {family: [ana]}\ncontacts: {anna: '1'}\npools: {p: {lines: [b, {x: y}]}}\n"
        "lines: {a: {password_file: gone, contry: DE}, A: {}, c: }\nbase_topic: homeassistant\n"
        "homeassistant: {overrides: {imie: }}\nmqtt: {url: mqtt://u:p@h/topic, versoin: 5}\n"
    )
    found = faults(text)
    for fault in [
        'config.yaml:1: groups.family[0]: there is no contact "ana"; did you mean "anna"?',
        'config.yaml:3: pools.p.lines[0]: there is no line "b"',
        "config.yaml:3: pools.p.lines[1]: expected text, not keys and values",
        "config.yaml:4: lines.a.password_file: cannot read gone: No such file or directory",
        'config.yaml:4: lines.a.contry: unknown key; did you mean "country"?',
        "config.yaml:4: lines.A.password: missing; add password: … or password_file: …",
        'config.yaml:4: lines.A: differs from "a" only in case; rename one of them',
        "config.yaml:5: base_topic: overlaps homeassistant.prefix (homeassistant); choose another one",
        "config.yaml:7: mqtt.url: must end after the port; only ws:// and wss:// have a path",
        'config.yaml:7: mqtt.versoin: unknown key; did you mean "version"?',
    ]:
        assert fault in found
    assert any("config.yaml:6: homeassistant.overrides.imie: there is no entity" in fault for fault in found)
    assert len(found) == len(set(found)) == 13  # and: lines.c has no password, A and a would be one device


_KEYS = st.sampled_from(
    sorted({key for model in module._MEANT for key in model.model_fields} | {"a", "A", "imei", "x"})
)
_SCALARS = st.sampled_from(
    ["1", "true", "no", "x", "mqtt://u:p@h", "", None, "a", "+49151", "::1", "127.0.0.1:1", "gone"]
)
_VALUES = st.recursive(
    _SCALARS, lambda below: st.lists(below, max_size=3) | st.dictionaries(_KEYS, below, max_size=4), max_leaves=20
)


@hypothesis.given(st.dictionaries(_KEYS, _VALUES, max_size=6), st.dictionaries(_KEYS, _SCALARS, max_size=3))
@hypothesis.settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_is_in_the_file_each_fault_is_told_once_in_one_line(data, variables):
    environ = {f"GOIP_{key}": value or "" for key, value in variables.items()}
    found: list[str] = []
    try:
        load(write(yaml.safe_dump(data)), environ)
    except ConfigError as error:
        found = error.faults
    assert len(set(found)) == len(found)
    assert all(fault.isprintable() for fault in found)


def test_discovery_that_is_off_is_off_although_there_are_other_faults():
    text = "lines: {a-b: {password: x}, a_b: {password: x}}\nudp: {listen: 1}\n"
    assert len(faults(text)) == 2
    assert len(faults(text + "homeassistant: {discovery: no}\n")) == 1
    assert len(faults(text, GOIP_HOMEASSISTANT='{"discovery": false}')) == 1


@pytest.mark.parametrize("password", ["''", "a b", "a;b", '"a\\nb"', '"a\\rb"', '"a\\u0000b"', '"a\\u00a0b"'])
def test_a_line_password_that_would_break_a_datagram_is_refused(password):
    assert (
        "lines.a.password: must not be empty or contain blanks" in faults(f"lines: {{a: {{password: {password}}}}}")[0]
    )


def test_files_for_tls_that_are_of_no_use_are_faults_like_those_that_are_missing():
    """No attempt to connect would ever mend them."""
    made = make_certificates(Path.cwd())
    write("no certificate", "text.pem")
    subprocess.run(
        ["openssl", "ec", "-in", made.client_key, "-aes128", "-passout", "pass:x", "-out", "locked.key"], check=True
    )
    ours, key = f"cert_file: {made.client_cert}", f"key_file: {made.client_key}"
    for keys, fault in [
        ("ca_file: text.pem", "mqtt.ca_file: text.pem holds no certificate in the form of PEM"),
        (f"cert_file: text.pem, {key}", "mqtt.cert_file: text.pem holds no certificate in the form of PEM"),
        (
            f"{ours}, key_file: {made.server_key}",
            f"server.key is not the private key of mqtt.cert_file, {made.client_cert}",
        ),
        (
            f"{ours}, key_file: text.pem",
            "mqtt.key_file: text.pem holds no private key in the form of PEM that needs no",
        ),
        (f"{ours}, key_file: locked.key", "mqtt.key_file: locked.key holds no private key in the form of PEM that nee"),
    ]:
        (found,) = faults(f"mqtt: {{url: mqtts://h, {keys}}}")
        assert fault in found
    good = accepted(f"mqtt: {{url: mqtts://h, ca_file: {made.ca}, {ours}, {key}}}")
    assert good.mqtt.key_file == made.client_key


# Secrets --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("section", ["lines.a", "mqtt"])
def test_a_secret_file_must_be_readable_and_not_empty_and_alone(section):
    write("\n", "empty")
    os.mkdir("folder")
    shape = "lines: {{a: {{{}}}}}" if section == "lines.a" else "mqtt: {{url: mqtt://h, username: u, {}}}"
    for keys, fault in [
        ("password_file: gone", "cannot read gone: No such file or directory"),
        ("password_file: folder", "cannot read folder: Is a directory"),
        ("password_file: empty", "empty is empty; write the password into it"),
        ("password_file: empty, password: x", "password is given as well; keep one of the two"),
    ]:
        assert faults(shape.format(keys)) == [f"config.yaml:1: {section}.password_file: {fault}"]


def test_a_byte_order_mark_is_no_part_of_a_password():
    Path("secret").write_bytes(b"\xef\xbb\xbfhunter2\r\n")  # as Windows' editors write it
    settings = accepted(
        "lines: {a: {password_file: secret}}\nmqtt: {url: mqtt://h, username: u, password_file: secret}"
    )
    assert settings.lines["a"].password.get_secret_value() == SECRET
    assert settings.mqtt.password.get_secret_value() == SECRET


@pytest.mark.parametrize(
    "text",
    [
        f"lines: {{a: {SECRET}}}",
        f"lines: {{a: {{password: '{SECRET} {SECRET}'}}}}",
        f"lines: {{a: {{password: [{SECRET}]}}}}",
        f"lines: {{a: {{pasword: {SECRET}}}}}",
        f"lines: {{a: {{password: *{SECRET}}}}}",
        f"lines: {{a: {{password: !{SECRET} x}}}}",
        f"lines: {{a: {{password: &{SECRET} x, b: &{SECRET} y}}}}",
        f'lines: {{a: {{password: "{SECRET}\\q"}}}}',
        f"lines: {{a: {{password: {SECRET}, password_file: x}}}}",
        f"mqtt: {{url: 'mqtt://user:{SECRET}@'}}",
        f"mqtt: {{url: 'http://user:{SECRET}@h'}}",
        f"mqtt: {{url: 'mqtt://user:{SECRET}#{SECRET}@h'}}",
        f"mqtt: {{url: 'mqtt://user:12/{SECRET}@h'}}",
        f"mqtt: {{url: 'ws://user:12/{SECRET}@h'}}",
        f"mqtt: {{url: 'mqtt://user:{SECRET}/@h'}}",
        f"mqtt: {{url: 'mqtt://user:{SECRET}@[h'}}",
        f"mqtt: {{url: 'mqtt://user:{SECRET}@h:port'}}",
        f"mqtt: {{url: 'mqtt://user:{SECRET}@h', password: {SECRET}}}",
        f"mqtt: {{url: {SECRET}}}",
        f"timing: {{wait_s: {SECRET}}}",
    ],
)
def test_no_fault_quotes_a_value(text):
    assert SECRET not in "\n".join(faults(text))


@pytest.mark.parametrize("text", ['{"a": {"password": "hunter2"', '["hunter2"]', '"hunter2"', "hunter2"])
def test_no_fault_quotes_the_value_of_a_variable(text):
    assert SECRET not in "\n".join(faults("", GOIP_LINES=text))


def test_secrets_are_in_no_repr_dump_or_error():
    text = f"mqtt: {{url: 'mqtt://user:{SECRET}@h'}}\nlines: {{a: {{password: {SECRET}}}}}\n"
    settings = accepted(text)
    assert settings.mqtt.password.get_secret_value() == SECRET
    for shown in (repr(settings), str(settings.model_dump()), settings.model_dump_json(), str(settings.public_dict())):
        assert SECRET not in shown
    with pytest.raises(ValidationError) as raised:
        LineSettings(password=SECRET, name=[SECRET], allow_from=[SECRET])
    assert SECRET not in str(raised.value)


def test_the_public_configuration_is_json_without_passwords_and_with_masked_numbers():
    public = accepted(
        "lines: {a: {password: x, allow_from: [10.0.0.0/8]}}\ncontacts: {anna: '+4915112345678'}"
    ).public_dict()
    assert json.loads(json.dumps(public)) == public
    assert "password" not in public["lines"]["a"]
    assert "password" not in public["mqtt"]
    assert public["contacts"] == {"anna": "***********678"}
    assert public["lines"]["a"]["allow_from"] == ["10.0.0.0/8"]


# The broker's url -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "parts"),
    [
        ("mqtt://localhost", ("mqtt", "localhost", 1883, "")),
        ("MQTT://localhost:1884/", ("mqtt", "localhost", 1884, "")),
        ("mqtts://broker.example", ("mqtts", "broker.example", 8883, "")),
        ("mqtt://[::1]:1883", ("mqtt", "::1", 1883, "")),
        ("ws://h", ("ws", "h", 80, "/mqtt")),
        ("wss://h/path?x=1", ("wss", "h", 443, "/path?x=1")),
        ("unix:///run/x.sock", ("unix", "", 0, "/run/x.sock")),
    ],
)
def test_a_url_has_its_scheme_and_default_port(url, parts):
    assert accepted(f"mqtt: {{url: '{url}'}}").mqtt.address == BrokerUrl(*parts)


@pytest.mark.parametrize(
    "url",
    ["localhost", "localhost:1883", "http://h", "mqtt://", "mqtt:h", "mqtt://h:0", "mqtt://h:65536", "mqtt://h/topic",
     "mqtt://h#x", "unix://run/x.sock", "unix://", "mqtt://[h", ""],
)  # fmt: skip
def test_a_bad_url_is_refused(url):
    assert faults(f"mqtt: {{url: '{url}'}}")[0].startswith("config.yaml:1: mqtt.url: ")


def test_credentials_are_taken_out_of_the_url():
    mqtt = accepted("mqtt: {url: 'mqtts://us%40er:p%3Ass@h:1'}").mqtt
    assert (mqtt.url, mqtt.username, mqtt.password.get_secret_value()) == ("mqtts://h:1", "us@er", "p:ss")
    assert "mqtt.url: holds a username" in faults("mqtt: {url: 'mqtt://u@h', username: v}")[0]


def test_a_user_in_the_url_goes_with_a_password_beside_it():
    mqtt = accepted("mqtt: {url: 'mqtt://u@h', password: x}").mqtt
    assert (mqtt.url, mqtt.username, mqtt.password.get_secret_value()) == ("mqtt://h", "u", "x")


# The environment ------------------------------------------------------------------------------------------------------


def test_the_environment_overrides_the_file_value_by_value():
    settings = accepted(
        "mqtt: {url: mqtt://file, version: 5}\nlines: {goip1: {password: file, name: Gate}}\n",
        GOIP_MQTT__URL="mqtt://variable",
        GOIP_BASE_TOPIC="house/goip",
        GOIP_TIMING__OFFLINE_S="3",
        GOIP_LINES__goip1__PASSWORD="variable",
    )
    assert (settings.mqtt.url, settings.mqtt.version, settings.base_topic) == ("mqtt://variable", "5", "house/goip")
    assert settings.timing.offline_s == 3
    assert settings.lines["goip1"].password.get_secret_value() == "variable"
    assert settings.lines["goip1"].name == "Gate"


def test_a_variable_may_be_json_and_the_more_nested_name_wins():
    settings = load(
        None,
        {
            "GOIP_LINES": '{"Goip1": {"password": 1234, "allow_from": ["10.0.0.0/8"]}}',
            "GOIP_LINES__Goip1__NAME": "Gate",
            "GOIP_LINES__Goip1__ALLOW_FROM": "[]",
            "GOIP_LINES__other__PASSWORD": "{x}",
        },
    )
    assert settings.lines["Goip1"].password.get_secret_value() == "1234"
    assert (settings.lines["Goip1"].name, settings.lines["Goip1"].allow_from) == ("Gate", [])
    assert settings.lines["other"].password.get_secret_value() == "{x}"


def test_a_line_of_the_file_may_be_written_in_capitals():
    settings = accepted("lines: {goip1: {password: x}}", GOIP_LINES__GOIP1__NAME="Gate")
    assert list(settings.lines) == ["goip1"]
    assert settings.lines["goip1"].name == "Gate"


def test_variables_for_tests_and_for_others_are_ignored():
    assert load(None, {"GOIP_TEST_BROKER": "x", "GOIPX": "y", "MQTT__URL": "z"}) == Settings()


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("GOIP_MQTT_URL", "GOIP_MQTT_URL: unknown variable; did you mean GOIP_MQTT__URL?"),
        ("GOIP_MQTT__UROL", "GOIP_MQTT__UROL: unknown variable; did you mean GOIP_MQTT__URL?"),
        ("GOIP_BASETOPIC", "GOIP_BASETOPIC: unknown variable; did you mean GOIP_BASE_TOPIC?"),
        ("GOIP_LINES__a__PASWORD", "GOIP_LINES__a__PASWORD: unknown variable; did you mean GOIP_LINES__a__PASSWORD?"),
        ("GOIP_FOO", "GOIP_FOO: unknown variable; names are nested with two underscores, such as GOIP_MQTT__URL"),
        ("GOIP_BASE_TOPIC__X", "GOIP_BASE_TOPIC__X: unknown variable; names are nested"),
        ("GOIP_LINES__", "GOIP_LINES__: unknown variable"),
        ("GOIP_MQTT__HOST", "GOIP_MQTT__HOST: unknown variable; did you mean GOIP_MQTT__URL?"),
        ("GOIP_MQTT_USER", "GOIP_MQTT_USER: unknown variable; did you mean GOIP_MQTT__USERNAME?"),
        ("GOIP_UDP__PORT", "GOIP_UDP__PORT: unknown variable; did you mean GOIP_UDP__LISTEN?"),
        ("GOIP_TOPIC", "GOIP_TOPIC: unknown variable; did you mean GOIP_BASE_TOPIC?"),
        ("GOIP_LINES__a__ID", "GOIP_LINES__a__ID: unknown variable; did you mean GOIP_LINES__a__GOIP_ID?"),
        ("GOIP_MQTT_BRIDGE_SERVICE_HOST", "enableServiceLinks: false"),
        ("GOIP_PORT_44444_UDP_ADDR", "enableServiceLinks: false"),
    ],
)
def test_an_unknown_variable_is_a_fault_with_a_suggestion(name, fault):
    found = faults("", **{name: SECRET})
    assert len(found) == 1
    assert fault in found[0]


@pytest.mark.parametrize(
    ("name", "value", "fault"),
    [
        ("GOIP_MQTT__URL", "x", "GOIP_MQTT__URL: mqtt.url: must start with mqtt://"),
        ("GOIP_LINES", "x", 'GOIP_LINES: lines: expected JSON, such as {"key": "value"}'),
        ("GOIP_LINES", "[]", "GOIP_LINES: lines: expected keys and values"),
        ("GOIP_LINES", '{"a": {}, "a": {}}', 'GOIP_LINES: lines: "a" is given twice'),
        ("GOIP_LINES", '{"a": {"pasword": "x"}}', 'lines.a.pasword: unknown key; did you mean "password"?'),
        ("GOIP_LINES__a__ALLOW_FROM", "10.0.0.0/8", 'expected JSON, such as ["goip1"]'),
        ("GOIP_LINES__a__NAME", "x", "GOIP_LINES__a__NAME: lines.a.password: missing"),
    ],
)
def test_a_bad_variable_is_named(name, value, fault):
    assert any(fault in found for found in faults("", **{name: value}))


def test_an_empty_variable_counts_as_not_set():
    text = "instance: home\nmqtt: {url: mqtt://file}\n"
    empty = dict.fromkeys(("GOIP_INSTANCE", "GOIP_MQTT__URL", "GOIP_LINES", "GOIP_LINES__a__PASSWORD", "GOIP_FOO"), "")
    assert accepted(text, **empty) == accepted(text)


@pytest.mark.parametrize(
    ("name", "value"),
    [("GOIP_MQTT__URL", '"mqtt://h"'), ("GOIP_LINES", "'{}'"), ("GOIP_UDP__LISTEN", "'0.0.0.0:1'")],
)
def test_quotes_in_a_variable_are_named_where_they_break_it(name, value):
    (found,) = faults("", **{name: value})
    assert found.startswith(f"{name}: ")
    assert found.endswith("; the quotes are part of the variable's value: leave them out")


def test_quotes_in_a_variable_are_noted_where_they_do_no_harm():
    environ = {"GOIP_LINES__a__PASSWORD": '"x"', "GOIP_BASE_TOPIC": "'goip'", "GOIP_MQTT__URL": "mqtt://h", "HOME": '"'}
    environ["GOIP_HOMEASSISTANT__OVERRIDES__signal__NAME"] = '"S"'  # JSON
    settings = load(None, environ)
    assert settings.lines["a"].password.get_secret_value() == '"x"'
    notes = settings.notes(environ)
    assert sorted(notes) == [
        f"{name}: the quotes are part of its value; leave them out"
        for name in ("GOIP_BASE_TOPIC", "GOIP_LINES__a__PASSWORD")
    ]
    assert settings.notes() == []


def test_overrides_from_the_environment_have_json_types():
    environ = {"GOIP_HOMEASSISTANT__OVERRIDES": '{"imei": null, "signal": {"n": 5}}'}
    assert load(None, environ).homeassistant.overrides == {"imei": None, "signal": {"n": 5}}
    environ = {"GOIP_HOMEASSISTANT__OVERRIDES__signal__N": "5"}
    assert load(None, environ).homeassistant.overrides == {"signal": {"N": 5}}


def test_origins_tell_where_a_value_was_given():
    write("lines:\n  a: {password: x}\n  b: {password: y, allow_from: ['::1']}\n")
    environ = {"GOIP_LINES": '{"b": {"allow_from": ["10.0.0.1"]}}', "GOIP_UDP": '{"listen": "[::]:1"}'}
    settings, origins = load_with_origins(None, environ)
    assert str(settings.lines["b"].allow_from[0]) == "10.0.0.1/32"
    assert origins == {
        ("lines",): "config.yaml:1",
        ("lines", "a"): "config.yaml:2",
        ("lines", "a", "password"): "config.yaml:2",
        ("lines", "b"): "config.yaml:3",
        ("lines", "b", "password"): "config.yaml:3",
        ("lines", "b", "allow_from"): "GOIP_LINES",
        ("udp",): "GOIP_UDP",
        ("udp", "listen"): "GOIP_UDP",
    }


# Small parts ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("networks", "address", "allowed"),
    [
        ([], "203.0.113.5", True),
        (["192.168.1.7/24"], "192.168.1.200", True),
        (["192.168.1.0/24"], "192.168.2.1", False),
        (["192.168.1.0/24"], "::ffff:192.168.1.3", True),
        (["fd00::/8"], "fd00::1", True),
        (["fd00::/8", "10.0.0.1"], "10.0.0.1", True),
        (["fd00::/8"], "10.0.0.1", False),
        (["::ffff:10.0.0.0/104"], "10.0.0.1", True),
        (["::ffff:10.0.0.1"], "::ffff:10.0.0.1", True),
        (["::ffff:10.0.0.1"], "10.0.0.2", False),
    ],
)
def test_allow_from_decides_by_address(networks, address, allowed):
    line = LineSettings(password="x", allow_from=networks)
    assert _Registered(None, b"x", tuple(line.allow_from)).allows(address) is allowed


@pytest.mark.parametrize(
    ("listen", "host", "port"),
    [("[::]:44444", "::", 44444), ("[fe80::1%eth0]:1", "fe80::1%eth0", 1), ("localhost:0", "localhost", 0)],
)
def test_listen_is_taken_apart(listen, host, port):
    udp = accepted(f"udp: {{listen: '{listen}'}}").udp
    assert (udp.host, udp.port) == (host, port)


@pytest.mark.parametrize(
    ("written", "bare"),
    [("+49 (151) 1234-567.8/9", "+49151123456789"), ("*100#", "*100#"), ("112", "112"), ("0" * 32, "0" * 32)],
)
def test_a_number_is_normalised(written, bare):
    assert numbers.normalise(written) == bare


@pytest.mark.parametrize(
    "number", ["", "+", "*#", "Vodafone", "1+2", "++1", "1;2", "1\n", "1\t2", "0" * 33, "١٢٣", "@anna", "1\x00"]
)
def test_what_is_not_a_number_is_refused(number):
    with pytest.raises(ValueError, match="not a phone number"):
        numbers.normalise(number)


@pytest.mark.parametrize(
    ("number", "country", "e164"),
    [
        ("+4915112345678", None, "+4915112345678"),
        ("+49 151 12345678", "US", "+4915112345678"),
        ("0151 12345678", "DE", "+4915112345678"),
        ("004915112345678", "DE", "+4915112345678"),
        ("050 123 4567", "UA", "+380501234567"),
        ("015112345678", None, None),
        ("004915112345678", None, None),
        ("22000", "DE", None),
        ("112", "DE", None),
        ("Vodafone", "DE", None),
        ("*100#", "DE", None),
        ("+*1", "DE", None),
        ("", "DE", None),
    ],
)
def test_e164_is_given_only_where_it_is_certain(number, country, e164):
    assert numbers.to_e164(number, country) == e164


@pytest.mark.parametrize(("number", "masked"), [("+4915112345678", "***********678"), ("22000", "*****"), ("", "")])
def test_a_masked_number_shows_three_characters_at_most(number, masked):
    assert numbers.mask(number) == masked
