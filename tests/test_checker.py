"""The checker of reliability.md's invariants: it must fail on histories that break them, or it proves nothing."""

import json
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest

from reliability.checker import CHECKERS, NOT_CHECKED, Command, Fault, History, Left, Line, Message, Reached, check

T0 = 1_700_000_000.0


class Story:
    """Makes a history step by step, as a healthy bridge would."""

    def __init__(self, **lines: bool) -> None:
        self.now = T0
        self.boot = "boot1"
        self.seq: dict[str, int] = {}
        self.msgs = 0
        self.history = History(
            radio=[],
            messages=[],
            commands=[],
            reached=[],
            lines={id: Line(id=id, qualified=qualified) for id, qualified in (lines or {"goip1": True}).items()},
            secrets=["hush1"],
        )

    def say(self, topic: str, **payload: Any) -> Message:
        """A fact or result reaches the subscriber."""
        self.now += 0.1
        self.seq[topic] = self.seq.get(topic, 0) + 1
        body = {"v": 1, "ts": _text(self.now), "boot": self.boot, "seq": self.seq[topic], **payload}
        if "event_type" in payload:
            body |= {"id": f"{self.boot}-{topic}-{self.seq[topic]}", "at": _text(self.now)}
        message = Message(at=self.now, topic=topic, payload=json.dumps(body).encode())
        self.history.messages.append(message)
        return message

    def restart(self) -> None:
        self.boot, self.seq = self.boot + "x", {}

    def command(self, id: str | None, to: str, text: str, line: str = "goip1", **more: Any) -> Command:
        if id is None:
            command = Command(topic=f"goip/{line}/cmd/sms/{to}", payload=text.encode(), acknowledged=True)
        else:
            body = json.dumps({"to": to, "text": text, "id": id, **more}).encode()
            command = Command(topic=f"goip/{line}/cmd/sms", payload=body, id=id)
        command.published.append(self.now)
        self.history.commands.append(command)
        return command

    def result(self, id: str, to: str, msg: str, line: str = "goip1", **more: Any) -> None:
        data = {"job": None, "msgs": [{"msg": msg, "to": to}]}
        answer = {"id": id, "command": "sms", "status": "ok", "code": "ok", "data": data}
        self.say(f"goip/{line}/result/sms", **answer | more)

    def delivery(self, msg: str, cmd: str, to: str, event_type: str, line: str = "goip1", **more: Any) -> Message:
        return self.say(f"goip/{line}/delivery", msg=msg, cmd=cmd, to=to, event_type=event_type, **more)

    def radio(self, what: str, line: str = "goip1", **fields: Any) -> None:
        self.now += 0.1
        self.history.radio.append({"at": self.now, "line": line, "what": what, **fields})

    def submit(self, to: str, text: str, line: str = "goip1", result: str = "ok") -> None:
        self.radio("submit", line, to=to, text=text, sms_no=7, sendid=100, telid=1, result=result)

    def accept(self, id: str | None, to: str, text: str, line: str = "goip1", **more: Any) -> str:
        """A command until it is queued; its msg."""
        self.command(id, to, text, line, **more)
        self.msgs += 1
        cmd, msg = id or f"minted{self.msgs}", f"msg{self.msgs}"
        self.result(cmd, to, msg, line)
        self.delivery(msg, cmd, to, "queued", line)
        return msg

    def send(self, id: str | None, to: str, text: str, line: str = "goip1", **more: Any) -> str:
        """A command until its delivery report."""
        msg = self.accept(id, to, text, line, **more)
        cmd = id or f"minted{self.msgs}"
        self.delivery(msg, cmd, to, "sending", line, attempt=1)
        self.submit(to, text, line)
        self.delivery(msg, cmd, to, "sent", line, attempt=1, sms_no=7, evidence="ok")
        self.radio("report", line, to=to, sms_no=7, state=0)
        self.radio("report_outcome", line, to=to, sms_no=7, state=0, result="acked")
        self.delivery(msg, cmd, to, "delivered", line, attempt=1, sms_no=7, evidence="report")
        return msg

    def offer(self, recvid: int, sender: str, text: str, line: str = "goip1", *, reached: bool = True) -> None:
        self.radio("received", line, recvid=recvid, **{"from": sender}, text=text)
        if reached:
            data = f"RECEIVE:{recvid};id:{line};password:hush1;srcnum:{sender};msg:{text}".encode()
            assert self.history.reached is not None
            self.history.reached.append(Reached(at=self.now, line=line, data=data))

    def publish(self, recvid: int, sender: str, text: str, line: str = "goip1", **more: Any) -> Message:
        return self.say(f"goip/{line}/sms/in", event_type="received", recvid=recvid, from_raw=sender, text=text, **more)

    def outcome(self, recvid: int, sender: str, text: str, line: str = "goip1", result: str = "acked") -> None:
        self.radio("received_outcome", line, recvid=recvid, **{"from": sender}, text=text, result=result, tries=1)

    def receive(self, recvid: int, sender: str, text: str, line: str = "goip1") -> None:
        """An inbound SMS, from the modem to the subscriber."""
        self.offer(recvid, sender, text, line)
        self.outcome(recvid, sender, text, line)
        self.publish(recvid, sender, text, line)

    def fault(self, kind: str, seconds: float, line: str | None = None) -> None:
        self.history.faults.append(Fault(kind=kind, at=self.now, until=self.now + seconds, line=line))
        self.now += seconds

    def broken(self) -> list[str]:
        self.history.ended = self.now
        return check(self.history).broken

    def ordinary(self) -> "Story":
        """Some traffic in which nothing is wrong."""
        self.send("c1", "111", "one")
        self.receive(50, "+49", "hello")
        self.receive(49, "+49", "hello")  # the same text is another SMS
        self.restart()
        self.send("c2", "222", "two", line=next(reversed(self.history.lines)))
        self.send(None, "333", "raw")
        return self


def _text(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def test_a_healthy_history_is_accepted() -> None:
    story = Story(goip1=True, goip2=False).ordinary()
    story.fault("worker_kill", 1.0)
    story.history.messages.append(story.history.messages[-1])  # at least once: a copy is fine
    counts = check(story.history).counts
    assert story.broken() == []
    assert (counts.accepted, counts.submitted, counts.delivered, counts.republished) == (3, 3, 3, 1)
    assert (counts.inbound_offered, counts.inbound_reached, counts.inbound_published) == (2, 2, 2)
    assert (counts.outbound_lost, counts.outbound_doubled, counts.inbound_lost, counts.unknown) == (0, 0, 0, 0)


def test_every_invariant_has_a_checker_or_a_reason() -> None:
    assert sorted([*CHECKERS, *NOT_CHECKED], key=lambda name: int(name[1:])) == [f"I{n}" for n in range(1, 16)]


# Each breaks one thing in an otherwise healthy history, and names all invariants that may fall with it.


def accepted_and_forgotten(story: Story) -> None:
    story.command("lost", "999", "lost")
    story.result("lost", "999", "msg-lost")


def no_outcome(story: Story) -> None:
    msg = story.accept("stuck", "999", "stuck")
    story.delivery(msg, "stuck", "999", "sending")


def no_result(story: Story) -> None:
    story.command("ignored", "999", "ignored")


def nobody_asked(story: Story) -> None:
    story.delivery("msg-ghost", "ghost", "998", "queued")
    story.delivery("msg-ghost", "ghost", "998", "expired")


def keyless_lost(story: Story) -> None:
    story.command(None, "997", "raw")


def submitted_twice(story: Story) -> None:
    story.submit("111", "one")


def identical_submitted_twice(story: Story) -> None:
    story.send("same1", "555", "same")
    story.send("same2", "555", "same")
    story.submit("555", "same")


def submitted_without_command(story: Story) -> None:
    story.submit("996", "nobody wanted this")


def sent_and_never_submitted(story: Story) -> None:
    msg = story.accept("lie", "995", "lie")
    story.delivery(msg, "lie", "995", "sending")
    story.delivery(msg, "lie", "995", "sent", evidence="ok")


def failed_and_submitted(story: Story) -> None:
    msg = story.accept("lie", "994", "lie")
    story.delivery(msg, "lie", "994", "sending")
    story.submit("994", "lie")
    story.delivery(msg, "lie", "994", "failed", error={"code": 1, "ambiguous": False})


def refused_and_submitted(story: Story) -> None:
    story.command("refused", "993", "refused")
    story.say("goip/goip1/result/sms", id="refused", command="sms", status="error", code="storage", data={})
    story.submit("993", "refused")


def delivered_without_report(story: Story) -> None:
    msg = story.accept("early", "992", "early")
    story.delivery(msg, "early", "992", "sending")
    story.submit("992", "early")
    story.delivery(msg, "early", "992", "sent")
    story.delivery(msg, "early", "992", "delivered")


def unknown_without_reason(story: Story) -> None:
    msg = story.accept("doubt", "991", "doubt")
    story.delivery(msg, "doubt", "991", "sending")
    story.fault("worker_kill", 1.0)
    story.delivery(msg, "doubt", "991", "unknown", evidence="restart")


def unknown_without_evidence(story: Story) -> None:
    story.history.lines["goip1"] = Line(id="goip1", qualified=False)
    msg = story.accept("doubt", "991", "doubt")
    story.delivery(msg, "doubt", "991", "sending")
    story.delivery(msg, "doubt", "991", "unknown")


def unknown_and_reported(story: Story) -> None:
    story.history.lines["goip1"] = Line(id="goip1", qualified=False)
    msg = story.accept("doubt", "991", "doubt")
    story.delivery(msg, "doubt", "991", "sending")
    story.submit("991", "doubt")
    story.delivery(msg, "doubt", "991", "unknown", evidence="restart")
    story.radio("report", to="991", sms_no=7, state=0)
    story.radio("report_outcome", to="991", sms_no=7, state=0, result="acked")
    story.say("goip/goip1/delivery", msg=None, cmd=None, to="991", event_type="delivered", sms_no=7)


def more_unknown_than_allowed(story: Story) -> None:
    story.history.lines["goip1"] = Line(id="goip1", qualified=False)
    story.history.unknown_allowed = 0
    msg = story.accept("doubt", "991", "doubt")
    story.delivery(msg, "doubt", "991", "sending")
    story.delivery(msg, "doubt", "991", "unknown", evidence="restart")


def reached_and_not_published(story: Story) -> None:
    story.offer(20, "+48", "lost")
    story.outcome(20, "+48", "lost", result="given_up")


def acknowledged_and_not_published(story: Story) -> None:
    story.history.reached = None
    story.offer(20, "+48", "lost", reached=False)
    story.outcome(20, "+48", "lost")


def identical_texts_merged(story: Story) -> None:
    story.offer(20, "+48", "twin")
    story.offer(19, "+48", "twin")
    story.publish(20, "+48", "twin")


def published_with_two_ids(story: Story) -> None:
    story.publish(50, "+49", "hello")


def altered(story: Story) -> None:
    story.offer(20, "+48", "words")
    story.publish(20, "+48", "wrods")


def retained(story: Story) -> None:
    message = story.publish(50, "+49", "hello", replay=True)
    story.history.messages[-1] = Message(at=message.at, topic=message.topic, payload=message.payload, retain=True)


def something_after_the_end(story: Story) -> None:
    story.delivery("msg1", "c1", "111", "sent")


def report_before_queued(story: Story) -> None:
    story.command("odd", "989", "odd")
    story.result("odd", "989", "msg-odd")
    story.delivery("msg-odd", "odd", "989", "sending")
    story.submit("989", "odd")
    story.delivery("msg-odd", "odd", "989", "sent")


def report_disappeared(story: Story) -> None:
    msg = story.accept("quiet", "988", "quiet")
    story.delivery(msg, "quiet", "988", "sending")
    story.submit("988", "quiet")
    story.delivery(msg, "quiet", "988", "sent")
    story.radio("report", to="988", sms_no=7, state=0)
    story.radio("report_outcome", to="988", sms_no=7, state=0, result="acked")


def one_id_for_two_facts(story: Story) -> None:
    message = story.delivery(story.accept("twin", "987", "twin"), "twin", "987", "expired")
    body = json.loads(message.payload)
    body["id"] = json.loads(story.history.messages[-2].payload)["id"]
    story.history.messages[-1] = Message(at=message.at, topic=message.topic, payload=json.dumps(body).encode())


def out_of_order(story: Story) -> None:
    first = story.accept("a", "601", "first")
    second = story.accept("b", "602", "second")
    for msg, cmd, to, text in ((second, "b", "602", "second"), (first, "a", "601", "first")):
        story.delivery(msg, cmd, to, "sending")
        story.submit(to, text)
        story.delivery(msg, cmd, to, "sent")


def gap(story: Story) -> None:
    story.seq["goip/goip1/sms/in"] = story.seq.get("goip/goip1/sms/in", 0) + 1
    story.receive(20, "+48", "after the gap")


def altered_copy(story: Story) -> None:
    message = story.history.messages[0]
    body = json.loads(message.payload) | {"message": "other words"}
    story.history.messages.append(Message(at=story.now, topic=message.topic, payload=json.dumps(body).encode()))


def sent_after_expiry(story: Story) -> None:
    msg = story.accept("late", "701", "late", ttl_s=60)
    story.now += 70.0
    story.delivery(msg, "late", "701", "sending")
    story.submit("701", "late")
    story.delivery(msg, "late", "701", "sent")


def expired_too_early(story: Story) -> None:
    msg = story.accept("early", "703", "early", ttl_s=60)
    story.now += 50.0
    story.delivery(msg, "early", "703", "expired")


def outcome_too_late(story: Story) -> None:
    story.history.stuck_s = 10_000.0
    msg = story.accept("slow", "702", "slow")
    story.now += 1000.0
    story.delivery(msg, "slow", "702", "expired")


def line_stands_still(story: Story) -> None:
    story.history.settle_s = 10_000.0
    msg = story.accept("slow", "702", "slow")
    story.now += 150.0
    story.delivery(msg, "slow", "702", "expired")


def password_published(story: Story) -> None:
    story.history.messages.append(Message(at=story.now, topic="goip/goip1/event", payload=b'{"raw":"x;hush1;y"}'))


def password_logged(story: Story) -> None:
    story.history.logs["bridge.log"] = "started\n< RECEIVE:1;id:goip1;password:hush1;\n"


def one_command_two_sms(story: Story) -> None:
    story.result("c1", "111", "msg-again")
    story.delivery("msg-again", "c1", "111", "queued")
    story.delivery("msg-again", "c1", "111", "cancelled")


def accepted_then_refused(story: Story) -> None:
    story.say("goip/goip1/result/sms", id="c1", command="sms", status="error", code="invalid_payload", data={})


def keyless_twice(story: Story) -> None:
    story.delivery("msg-again", "minted9", "333", "queued")
    story.delivery("msg-again", "minted9", "333", "cancelled")


@pytest.mark.parametrize(
    ("doctor", "broken"),
    [
        (accepted_and_forgotten, "I1"),
        (no_outcome, "I2"),
        (no_result, "I2"),
        (nobody_asked, "I2"),
        (keyless_lost, "I2"),
        (submitted_twice, "I3"),
        (identical_submitted_twice, "I3"),
        (submitted_without_command, "I3"),
        (sent_and_never_submitted, "I4"),
        (failed_and_submitted, "I4"),
        (refused_and_submitted, "I4"),
        (delivered_without_report, "I4"),
        (unknown_without_reason, "I5"),
        (unknown_without_evidence, "I5"),
        (unknown_and_reported, "I5"),
        (more_unknown_than_allowed, "I5"),
        (reached_and_not_published, "I6"),
        (acknowledged_and_not_published, "I6"),
        (identical_texts_merged, "I6"),
        (published_with_two_ids, "I6"),
        (altered, "I6"),
        (retained, "I6"),
        (something_after_the_end, "I7"),
        (report_before_queued, "I7"),
        (report_disappeared, "I7"),
        (one_id_for_two_facts, "I7"),
        (out_of_order, "I8"),
        (gap, "I8"),
        (altered_copy, "I8"),
        (sent_after_expiry, "I10"),
        (expired_too_early, "I10"),
        (outcome_too_late, "I13"),
        (line_stands_still, "I13"),
        (password_published, "I14"),
        (password_logged, "I14"),
        (one_command_two_sms, "I15"),
        (accepted_then_refused, "I15"),
        (keyless_twice, "I15"),
    ],
)
def test_a_broken_history_is_refused(doctor: Callable[[Story], None], broken: str) -> None:
    story = Story().ordinary()
    doctor(story)
    assert story.broken() == [broken]


def test_what_is_allowed() -> None:
    """Odd, but not wrong."""
    story = Story(goip1=True, goip2=False).ordinary()
    # Doubt on a line that is not qualified, resolved by its report.
    msg = story.accept("doubt", "801", "doubt", line="goip2")
    story.delivery(msg, "doubt", "801", "sending", line="goip2")
    story.submit("801", "doubt", line="goip2")
    story.delivery(msg, "doubt", "801", "unknown", line="goip2", evidence="restart")
    story.radio("report", "goip2", to="801", sms_no=7, state=0)
    story.delivery(msg, "doubt", "801", "delivered", line="goip2", evidence="report")
    # Doubt on a qualified line whose gateway restarted.
    msg = story.accept("reboot", "802", "reboot")
    story.delivery(msg, "reboot", "802", "sending")
    story.fault("gateway_reboot", 2.0)
    story.delivery(msg, "reboot", "802", "unknown", evidence="session_lost")
    # at_least_once may be submitted again.
    msg = story.accept("twice", "803", "twice", guarantee="at_least_once")
    for state in ("sending", "unknown", "queued", "sending", "sent"):
        story.delivery(msg, "twice", "803", state, evidence="session_lost")
    story.submit("803", "twice")
    story.submit("803", "twice")
    # A cause after which nobody knows.
    msg = story.accept("maybe", "804", "maybe")
    story.delivery(msg, "maybe", "804", "sending")
    story.submit("804", "maybe")
    story.delivery(msg, "maybe", "804", "failed", error={"code": 38, "ambiguous": True})
    # Never reached the host, or reached a process that was killed with it.
    story.offer(20, "+48", "lost on the way", reached=False)
    story.outcome(20, "+48", "lost on the way", result="given_up")
    story.offer(19, "+48", "died with the process")
    assert story.history.reached is not None
    died = story.history.reached.pop()
    story.history.reached.append(Reached(at=died.at, line=died.line, data=died.data, survived=False))
    # A delivery report that matches nothing is published as such.
    story.radio("report", to="805", sms_no=9, state=0)
    story.radio("report_outcome", to="805", sms_no=9, state=0, result="acked")
    story.say("goip/goip1/delivery", msg=None, cmd=None, to="805", event_type="delivered", sms_no=9)
    # An SMS with a first SEND in time, however late the modem took it.
    msg = story.accept("intime", "806", "in time", ttl_s=60)
    story.delivery(msg, "intime", "806", "sending")
    story.history.left.append(Left(at=story.now, line="goip1", data=b"SEND 100 1 806\n"))
    story.now += 90.0
    story.submit("806", "in time")
    story.delivery(msg, "intime", "806", "sent")
    assert story.broken() == []


def test_a_network_that_doubles_datagrams_is_counted_apart() -> None:
    story = Story(goip1=False).ordinary()
    story.submit("111", "one")
    assert story.broken() == ["I3"]
    story.history.lines["goip1"] = Line(id="goip1", qualified=False, network_duplicates=True)
    assert story.broken() == []
    assert check(story.history).counts.outbound_doubled_by_network == 1
    story.history.lines["goip1"] = Line(id="goip1", qualified=True, network_duplicates=True)
    assert story.broken() == ["I3"]


def test_the_second_copy_of_one_send_may_succeed_where_the_first_failed() -> None:
    story = Story(goip1=False).ordinary()
    story.history.lines["goip1"] = Line(id="goip1", qualified=False, network_duplicates=True)
    msg = story.accept("copied", "807", "copied")
    story.delivery(msg, "copied", "807", "sending")
    story.history.left.append(Left(at=story.now, line="goip1", data=b"SEND 100 1 807\n"))
    story.submit("807", "copied", result="error")
    story.submit("807", "copied")
    story.delivery(msg, "copied", "807", "failed", error={"code": 28, "ambiguous": False})
    assert story.broken() == []
    story.history.left.append(Left(at=story.now, line="goip1", data=b"SEND 100 1 807\n"))
    assert story.broken() == ["I4"], "this one was repeated by us"


def lost_by_the_broker(story: Story) -> None:
    """A fact that the broker acknowledged and forgot: its number is missing, and its neighbours came."""
    story.receive(21, "+48", "before")
    story.offer(20, "+48", "forgotten")
    story.outcome(20, "+48", "forgotten")
    story.seq["goip/goip1/sms/in"] += 1


def test_what_a_broker_lost_with_its_state_is_counted_and_excused() -> None:
    story = Story().ordinary()
    lost_by_the_broker(story)
    story.fault("broker_kill_lossy", 0.5)
    story.receive(19, "+48", "after")
    assert story.broken() == []
    counts = check(story.history).counts
    assert (counts.facts_lost_by_broker, counts.inbound_lost) == (1, 0)


@pytest.mark.parametrize("kind", ["broker_kill", "worker_kill"])
def test_other_kills_excuse_nothing(kind: str) -> None:
    story = Story().ordinary()
    lost_by_the_broker(story)
    story.fault(kind, 0.5)
    story.receive(19, "+48", "after")
    assert story.broken() == ["I6", "I8"]


def test_a_loss_of_the_broker_excuses_only_what_left_a_gap() -> None:
    story = Story().ordinary()
    story.offer(20, "+48", "never stored")
    story.outcome(20, "+48", "never stored")
    story.fault("broker_kill_lossy", 0.5)
    story.receive(19, "+48", "after")
    assert story.broken() == ["I6"]


def test_the_recvids_of_a_restarted_gateway_are_other_sms() -> None:
    story = Story().ordinary()
    for _ in range(2):
        story.receive(12, "+48", "same words")
        story.fault("gateway_reboot", 1.0)
    assert story.broken() == []


def test_commands_without_id_may_be_lost_until_the_bridge_has_subscribed_again() -> None:
    story = Story().ordinary()
    story.fault("broker_kill_lossy", 0.5)
    story.now += 20.0
    story.command(None, "901", "nobody was subscribed")
    assert story.broken() == []
    assert check(story.history).counts.keyless_lost == 1
    story.history.messages.append(Message(at=story.now - 1.0, topic="goip/bridge/availability", payload=b"online"))
    assert story.broken() == ["I2"]
