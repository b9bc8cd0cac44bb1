"""Every MQTT topic of the bridge, built and taken apart (contract §§ 2-3). Pure: no client, no settings.

The only place that knows the layout below the base topic.
"""

from dataclasses import dataclass

MAX_TOPIC_BYTES = 65_535
MAX_LEVELS = 200
"Mosquitto closes the connection of a client that publishes to more."
_OUR_TOPICS = frozenset(
    (
        "availability", "state", "stats", "sms/in", "sms/last", "delivery", "call", "ussd", "event",
        "info", "health", "lines",
    )
)  # fmt: skip
_LONGER_BY = len("result") - len("cmd")


@dataclass(frozen=True, slots=True)
class CommandTopic:
    """Where a command was sent to. Whether the target exists is for the caller to find out."""

    target: str
    "A line's id, `bridge`, `any` or `pool/<name>`; `Topics.result` takes it as it is."
    path: str
    "What follows `cmd/`: `sms`, `sms/00491511`, `number/get`; empty where the topic ends at `cmd`."


@dataclass(frozen=True, slots=True)
class Topics:
    """The topics below one base topic, which is taken as valid (the settings check it)."""

    base: str

    def line(self, line: str, path: str) -> str:
        """A line's topic: `line("goip1", "sms/in")`."""
        return f"{self.base}/{line}/{path}"

    def bridge(self, path: str) -> str:
        """A topic of the bridge itself: `bridge("health")`."""
        return f"{self.base}/bridge/{path}"

    def for_home_assistant(self, topic: str) -> str:
        """Where the copy for Home Assistant of a fact goes: `goip/goip1/homeassistant/sms/in`."""
        target, _, path = topic.removeprefix(f"{self.base}/").partition("/")
        return f"{self.base}/{target}/homeassistant/{path}"

    def job(self, job: str) -> str:
        """The state of a command with several recipients."""
        return f"{self.base}/job/{job}"

    def result(self, target: str, path: str) -> str:
        """Where the result of a command goes; the path is the command's, without the recipient of `sms/<to>`."""
        return f"{self.base}/{target}/result/{path}" if path else f"{self.base}/{target}/result"

    def command(self, target: str, path: str) -> str:
        """Where a command is sent to, for clients of the bridge."""
        return f"{self.base}/{target}/cmd/{path}"

    def filters(self) -> tuple[str, str]:
        """What the bridge subscribes to."""
        return f"{self.base}/+/cmd/#", f"{self.base}/pool/+/cmd/#"

    def parse_command(self, topic: str) -> CommandTopic | None:
        """The target and path of a command topic; None for any other, and where the answer's topic would not fit."""
        if not topic.startswith(f"{self.base}/") or not _is_topic_name(topic, MAX_TOPIC_BYTES - _LONGER_BY):
            return None
        match topic.removeprefix(f"{self.base}/").split("/"):
            case ["pool", name, "cmd", *path] if name and (path or name != "cmd"):  # a pool may be called `cmd`
                return CommandTopic(f"pool/{name}", "/".join(path))
            case [target, "cmd", *path] if target:
                return CommandTopic(target, "/".join(path))
        return None

    def response_topic_permitted(self, topic: str, discovery_prefix: str) -> bool:
        """Whether a caller may have its result sent to this topic too (contract § 4.2).

        Never where a result would be taken for a command or a discovery message, and never what a broker answers
        by closing the connection: one caller could then cut off everybody.
        """
        if not _is_topic_name(topic, MAX_TOPIC_BYTES) or topic.startswith("$"):
            return False
        if _is_below(topic, discovery_prefix):
            return False
        return not (_is_below(topic, self.base) and self._is_taken(topic.removeprefix(self.base).split("/")[1:]))

    @staticmethod
    def _is_taken(levels: list[str]) -> bool:
        """Below the base: a command, or a topic on which subscribers expect facts and states from us alone."""
        if "cmd" in levels or levels[:1] == ["job"] or "result" in levels[1:3] or levels[1:2] == ["homeassistant"]:
            return True
        return "/".join(levels[1:]) in _OUR_TOPICS


def _is_below(topic: str, prefix: str) -> bool:
    return topic == prefix or topic.startswith(f"{prefix}/")


def _is_topic_name(topic: str, max_bytes: int) -> bool:
    """Whether brokers accept this as the topic of a publish (MQTT 5 §§ 1.5.4, 4.7)."""
    try:
        size = len(topic.encode())
    except UnicodeEncodeError:  # a lone surrogate
        return False
    return 0 < size <= max_bytes and topic.count("/") < MAX_LEVELS and not any(map(_is_refused, topic))


def _is_refused(char: str) -> bool:
    """Wildcards and NUL, which must not be there; controls and noncharacters, for which brokers disconnect."""
    point = ord(char)
    is_control = point < 0x20 or 0x7F <= point <= 0x9F
    is_noncharacter = 0xFDD0 <= point <= 0xFDEF or point & 0xFFFE == 0xFFFE
    return char in "+#" or is_control or is_noncharacter
