"""Sending SMS as a box does it: sessions, their memory, and the one modem behind them (docs/protocol.md §4)."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from . import wire
from .text import split_text
from .world import Address, Record

if TYPE_CHECKING:
    from .line import SimulatedLine

_NO_NETWORK = 331
"errorstatus of an SMS that waited when the network went away: +CMS ERROR 331, no network service."
_BAD_NUMBER = 38
"errorstatus captured for a destination that was too short (docs/protocol.md §4.5)."
_SHORTEST_NUMBER = 3


@dataclass(slots=True)
class _Job:
    """One SMS to one number."""

    sendid: int
    telid: int
    number: str
    text: str
    source: Address
    answer: str | None = None
    "The outcome as a datagram, once there is one."


_Memory = dict[tuple[int, int], _Job]
"The last numbers by sendid and telid, oldest first (docs/protocol.md §4.2)."


@dataclass(slots=True)
class _Session:
    text: str
    heard: float
    authenticated: bool = False
    jobs: _Memory = field(default_factory=dict)


class SmsSender:
    """The sessions of one line, and its modem, which sends one SMS at a time."""

    def __init__(self, line: SimulatedLine) -> None:
        self._line = line
        self._sessions: dict[int, _Session] = {}
        self._one_shots: _Memory = {}
        "SMS commands; they have no session, so the line remembers them."
        self._queue: deque[_Job] = deque()
        self._busy = False
        self._sms_no = 0
        self._forced_errors: deque[int] = deque()

    # --- the session (docs/protocol.md §4.1) ---

    def open(self, message: wire.OpenSession, source: Address, now: float) -> None:
        """MSG. A repeat finds its session again and opens no second one."""
        sendid = message.sendid
        session = self._session(sendid, now)
        if session is not None:
            self._line.reply(source, f"{'SEND' if session.authenticated else 'PASSWORD'} {sendid}\n", now)
        elif not self._line.logged_in:
            self._line.reply(source, f"ERROR {sendid} GSM_LOGOUT\n", now)
        elif self._sessions_that_count(now) >= self._line.options.sessions:
            self._line.reply(source, f"ERROR {sendid} too_many_sends_in_server\n", now)
        else:
            self._sessions[sendid] = _Session(message.text, heard=now)
            self._line.reply(source, f"PASSWORD {sendid}\n", now)

    def authenticate(self, message: wire.Authenticate, source: Address, now: float) -> None:
        session = self._session(message.sendid, now)
        if session is None:
            self._line.reply(source, f"ERROR {message.sendid} SENDID\n", now)
        elif message.password != self._line.options.password:
            self._line.reply(source, f"ERROR {message.sendid} PASSWORD\n", now)
        else:
            session.authenticated = True
            self._line.reply(source, f"SEND {message.sendid}\n", now)

    def submit(self, message: wire.Submit, source: Address, now: float) -> None:
        session = self._session(message.sendid, now)
        if session is None:
            self._line.reply(source, f"ERROR {message.sendid} SENDID\n", now)
        elif not session.authenticated:
            self._line.reply(source, f"ERROR {message.sendid} PASSWORD\n", now)
        else:
            job = _Job(message.sendid, message.telid, message.number, session.text, source)
            self._submit(session.jobs, job, now)

    def done(self, message: wire.Done, source: Address, now: float) -> None:
        """Confirmed even for unknown ids, as a repeated DONE asks for what is already so. Queued SMS still leave."""
        self._sessions.pop(message.sendid, None)
        self._line.reply(source, f"DONE {message.sendid}\n", now)

    def one_shot(self, message: wire.OneShot, source: Address, now: float) -> None:
        """SMS: text, number and password in one command (docs/protocol.md §4.8)."""
        if message.password != self._line.options.password:
            self._line.reply(source, f"ERROR {message.sendid} {message.telid} PASSWORD\n", now)
            return
        job = _Job(message.sendid, message.telid, message.number, message.text, source)
        self._submit(self._one_shots, job, now)

    def open_sessions(self, now: float) -> int:
        """Sessions heard of lately; the others are forgotten here (docs/protocol.md §4.2)."""
        idle = self._line.options.session_idle
        self._sessions = {key: value for key, value in self._sessions.items() if now - value.heard < idle}
        return len(self._sessions)

    def _sessions_that_count(self, now: float) -> int:
        lines = self._line.gateway.lines if self._line.options.sessions_per == "box" else [self._line]
        return sum(line.sms.open_sessions(now) for line in lines)

    def _session(self, sendid: int, now: float) -> _Session | None:
        self.open_sessions(now)
        session = self._sessions.get(sendid)
        if session is not None:
            session.heard = now
        return session

    def _submit(self, memory: _Memory, job: _Job, now: float) -> None:
        """Accept a number, or answer for one that is remembered (docs/protocol.md §4.3)."""
        key = job.sendid, job.telid
        known = memory.get(key)
        if known is not None and not self._submits_again(known):
            known.source = job.source
            self._line.reply(job.source, known.answer or _waiting(known), now)
            return
        if not self._line.logged_in:
            self._line.reply(job.source, f"ERROR {job.sendid} GSM_LOGOUT\n", now)
            return
        memory.pop(key, None)
        memory[key] = job
        while len(memory) > self._line.options.profile.telids_remembered:
            del memory[next(iter(memory))]
        self._queue.append(job)
        self._line.reply(job.source, _waiting(job), now)
        self._transmit(now)

    def _submits_again(self, known: _Job) -> bool:
        repeat = self._line.options.profile.repeat_submits
        return repeat == "always" or (repeat == "waiting" and known.answer is None)

    # --- the modem ---

    def fail_next(self, code: int) -> None:
        """Let the network refuse the next SMS with this errorstatus."""
        self._forced_errors.append(code)

    def network_lost(self, now: float) -> None:
        """What still waits was never submitted, and fails; what is on its way ends as it would."""
        waiting, self._queue = self._queue, deque()
        for job in waiting:
            self._finish(job, f"ERROR {job.sendid} {job.telid} errorstatus:{_NO_NETWORK}\n", now)

    def _transmit(self, now: float) -> None:
        """Take the next SMS to the network. This moment is the submission, whatever the server learns of it."""
        if self._busy or not self._queue:
            return
        job = self._queue.popleft()
        self._busy = True
        code = self._error_code(job)
        sms_no: int | None = None
        if code is None:
            sms_no, self._sms_no = self._sms_no, (self._sms_no + 1) % 256
        self._line.record(
            now,
            "submit",
            to=job.number,
            text=job.text,
            sendid=job.sendid,
            telid=job.telid,
            sms_no=sms_no,
            result="ok" if code is None else "error",
            code=code,
        )
        options = self._line.options
        seconds = self._line.network_delay(options.wait or options.profile.wait) * len(split_text(job.text))
        self._line.later(seconds, lambda when: self._transmitted(job, sms_no, code, when), now)

    def _transmitted(self, job: _Job, sms_no: int | None, code: int | None, now: float) -> None:
        self._busy = False
        if code is not None or sms_no is None:
            self._finish(job, f"ERROR {job.sendid} {job.telid} errorstatus:{code}\n", now)
        else:
            number = f" {sms_no}" if self._line.options.profile.answers_sms_no else ""
            self._finish(job, f"OK {job.sendid} {job.telid}{number}\n", now)
            self._plan_arrival(job, now)
            self._plan_report(job, sms_no, now)
        self._transmit(now)

    def _finish(self, job: _Job, answer: str, now: float) -> None:
        """Keep the outcome for questions, and push it (docs/protocol.md §4.1)."""
        job.answer = answer
        self._line.reply(job.source, answer, now)

    def _plan_arrival(self, job: _Job, now: float) -> None:
        """Only at another simulated line can it be seen."""
        line = self._line
        if phone := line.world.phone(job.number):
            sender = line.control.gsm_num
            delay = line.network_delay(line.options.sms_delay)
            line.world.at(now + delay, lambda when: phone(sender, job.text, when))

    def _plan_report(self, job: _Job, sms_no: int, now: float) -> None:
        options = self._line.options
        if self._line.world.rng.random() >= options.reports:
            return
        fields = f"sms_no:{sms_no};state:{options.report_state};num:{job.number}"

        def report(when: float) -> None:
            record: Record = {"what": "report", "to": job.number, "sms_no": sms_no, "state": options.report_state}
            self._line.events.send("DELIVER", fields, when, record)

        self._line.later(self._line.network_delay(options.report_delay), report, now)

    def _error_code(self, job: _Job) -> int | None:
        if self._forced_errors:
            return self._forced_errors.popleft()
        if sum(char.isdigit() for char in job.number) < _SHORTEST_NUMBER:
            return _BAD_NUMBER
        options = self._line.options
        return options.radio_error_code if self._line.world.rng.random() < options.radio_errors else None


def _waiting(job: _Job) -> str:
    return f"WAIT {job.sendid} {job.telid}\n"
