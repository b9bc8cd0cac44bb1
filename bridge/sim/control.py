"""Control commands and the values they keep (docs/protocol.md §8), and the AT tunnel (§10)."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from . import wire
from .world import Address

if TYPE_CHECKING:
    from .line import SimulatedLine

_BAD_PASSWORD = "password error"
_BAD_VALUE = "bad value"
_AT_TUNNEL = 60.0
"Seconds without ATALIVE after which the box closes the tunnel."
_VALUES = {
    "set_gsm_num": r"\+?[0-9*#]{1,32}",
    "set_num": r"\+?[0-9*#]{1,32}",
    "set_exp_time": r"[0-9]{1,9}",
    "set_imei": r"[0-9]{15}",
    "set_out_call_interval": r"[0-9]{1,9}",
    "set_base_cell": r"[0-9]{1,9}",
    "module_ctl": r"[012]{1,64}",
    "netselect": r"|-1|[0-9]{1,3}",
}
"What each setting accepts."
_ALL_REASONS, _ALL_CONDITIONAL = 4, 5
_FORWARD_REASONS = {_ALL_REASONS: (0, 1, 2, 3), _ALL_CONDITIONAL: (1, 2, 3)}
"CF reasons that stand for several (docs/protocol.md §8)."
_NO_REPLY = 2
"The only CF reason with a time."
_LONGEST_CALL = 3600
"Seconds of a DIAL."


class Control:
    """What is set on a line. It outlives a restart; the AT tunnel does not."""

    cells = "689,638,783,785,640,"

    def __init__(self, line: SimulatedLine) -> None:
        self._line = line
        self.gsm_num = line.options.phone
        "What the box knows as its number."
        self.imei = f"86000002{line.options.number:07d}"
        self.exp_time = 0
        self.remain_time = -1
        "Minutes of outgoing calls left; -1 is no limit."
        self.out_call_interval = 0
        self.module_on = True
        self.cell = "689"
        self._network = 0
        "The choice of netselect; what its numbers mean is not documented."
        self._forwards: dict[int, tuple[str, int]] = {}
        "Number and seconds, by reason."
        self._call_waiting = False
        self._tunnel_boot = -1
        self._tunnel_until = 0.0
        self._tunnel_count = 0

    @property
    def cell_info(self) -> str:
        return f"LAC:7E5,CELL ID:{int(self.cell):X}"

    def spend(self, seconds: float) -> None:
        """An outgoing call used up time; begun minutes count."""
        if self.exp_time:
            self.remain_time = max(0, self.remain_time - -int(-seconds // 60))

    # --- verb sendid [value] password ---

    def command(self, message: wire.Command, source: Address, now: float) -> None:
        verb, sendid, value = message.verb, message.sendid, message.value
        if message.password != self._line.options.password:
            answer = self._error(message, _BAD_PASSWORD)
        elif verb in _VALUES and re.fullmatch(_VALUES[verb], value) is None:
            answer = self._error(message, _BAD_VALUE)
        elif verb in wire.SETTINGS:
            answer = self._set(message, now)
        elif verb.startswith("AT"):
            answer = self._tunnel(verb, sendid, now)
        else:
            answer = self._ask(message, now)
        self._line.reply(source, answer, now)
        if verb == "ATCMD" and answer.endswith("OK"):
            self._trace(sendid, f"write:{value}", now)
            self._line.later(0.2, lambda when: self._trace(sendid, "OK", when), now)

    def _ask(self, message: wire.Command, now: float) -> str:
        verb, sendid = message.verb, message.sendid
        unset = self._line.options.profile.unset
        match verb:
            case "get_gsm_num":
                return f"{verb} {sendid} {self.gsm_num or unset}"
            case "get_exp_time":
                return f"{verb} {sendid} {self.exp_time}"
            case "get_remain_time":
                return f"{verb} {sendid} {max(self.remain_time, 0)}"
            case "get_gsm_state":
                return f"{verb} {sendid} {self._line.calls.state}"
            case "get_imei":
                return f"{verb} {sendid} {self.imei}"
            case "get_out_call_interval":
                return f"{verb} {sendid} {self.out_call_interval}"
            case "CURCELL":
                return f"{verb} {sendid} {self.cell}"
            case "netselect":
                if message.value not in ("", "-1"):
                    self._network = int(message.value)
                return f"{verb} {sendid} {self._network}"
            case "GSM":
                return (
                    f"GSM:{sendid};get_gsm_num:{self.gsm_num or unset};get_exp_time:{self.exp_time};"
                    f"get_remain_time:{max(self.remain_time, 0)};get_gsm_state:{self._line.calls.state};"
                    f"imei:{self.imei};out_call_interval:{self.out_call_interval};"
                    f"module_down:{0 if self.module_on else 1}"
                )
        self._act(verb, now)
        return f"{verb} {sendid} ok"

    def _act(self, verb: str, now: float) -> None:
        line = self._line
        match verb:
            case "reset_remain_time":
                self.remain_time = self.exp_time or -1
            case "svr_drop_call":
                line.calls.hang_up("Normal call clearing", now)
            case "svr_reboot_module":
                line.record(now, "module_reboot")
                line.restart_module(now)
            case "svr_reboot_dev":
                line.record(now, "box_reboot")
                # Not before the answer is out.
                line.later(line.options.profile.answer_delay + 0.1, line.gateway.reboot, now)
            case "get_cells_list":
                delay = line.network_delay(line.options.command_delay)
                line.later(delay, self._report_cells, now)

    def _report_cells(self, now: float) -> None:
        self._line.events.send("CELLS", f"lists:{self.cells}", now)

    def _set(self, message: wire.Command, now: float) -> str:
        verb, sendid, value = message.verb, message.sendid, message.value
        match verb:
            case "module_ctl_i":
                if value != "1" and value not in self._line.options.profile.disable_values:
                    return self._error(message, _BAD_VALUE)
                self.switch_module(value == "1", now)
                return f"{verb} {sendid} ok"
            case "module_ctl":
                self._line.gateway.switch_modules(value, now)
                return f"{verb} {sendid} ok"
            case "ATCMD":
                return self._tunnel(verb, sendid, now)
            case "set_gsm_num" | "set_num":
                if not self._line.options.phone:
                    self._line.world.give_number(value, self._line.receive_sms, before=self.gsm_num)
                self.gsm_num = value
            case "set_exp_time":
                self.exp_time = int(value)
                self.remain_time = self.exp_time or -1
            case "set_imei":
                self.imei = value
            case "set_out_call_interval":
                self.out_call_interval = int(value)
            case "set_base_cell":
                self.cell = value
        return f"{verb} {sendid} {value} ok"

    def switch_module(self, on: bool, now: float) -> None:
        """Enable or disable the line's modem; the box goes on saying that it is disabled."""
        self.module_on = on
        if on:
            self._line.login(now)
        else:
            self._line.logout(now)

    def _error(self, message: wire.Command, reason: str) -> str:
        """`ERROR $sendid $errmsg`; settings echo their value, GSM has a word of its own (docs/protocol.md §8)."""
        if message.verb == "GSM":
            return f"GSMERROR {message.sendid} {reason}"
        if message.verb.startswith("set_"):
            return f"ERROR {message.sendid} {message.value} {reason}"
        return f"ERROR {message.sendid} {reason}"

    # --- call forwarding and waiting: password second, DONE at the end ---

    def call_forward(self, message: wire.CallForward, source: Address, now: float) -> None:
        if message.password != self._line.options.password or not self._line.logged_in:
            self._line.reply(source, f"CFERROR {message.sendid}", now)
            return
        delay = self._line.network_delay(self._line.options.command_delay)
        self._line.later(delay, lambda when: self._line.reply(source, self._forward(message), when), now)

    def _forward(self, message: wire.CallForward) -> str:
        sendid = message.sendid
        reasons = _FORWARD_REASONS.get(message.reason, (message.reason,))
        seconds = int(message.ftime) if re.fullmatch(r"[0-9]{1,3}", message.ftime) else 0
        if not 0 <= message.reason <= _ALL_CONDITIONAL:
            return f"CFERROR {sendid}"
        match message.mode:
            case 1 | 3 if message.number:
                for reason in reasons:
                    self._forwards[reason] = message.number, seconds if reason == _NO_REPLY else 0
            case 0 | 4:
                for reason in reasons:
                    self._forwards.pop(reason, None)
            case 2:
                on = int(reasons[0] in self._forwards)
                number, seconds = self._forwards.get(reasons[0], (self._line.options.profile.unset, 0))
                return f"CFSTATE {sendid} {on} {number} {seconds}"
            case _:
                return f"CFERROR {sendid}"
        return f"CFOK {sendid}"

    def call_waiting(self, message: wire.CallWaiting, source: Address, now: float) -> None:
        if message.password != self._line.options.password or not self._line.logged_in:
            self._line.reply(source, f"CWERROR {message.sendid}", now)
            return
        delay = self._line.network_delay(self._line.options.command_delay)
        self._line.later(delay, lambda when: self._line.reply(source, self._waiting(message), when), now)

    def _waiting(self, message: wire.CallWaiting) -> str:
        if message.mode == 2:
            return f"CWSTATE {message.sendid} {int(self._call_waiting)}"
        if message.mode not in (0, 1):
            return f"CWERROR {message.sendid}"
        self._call_waiting = message.mode == 1
        return f"CWOK {message.sendid}"

    def dial(self, message: wire.Dial, source: Address, now: float) -> None:
        """A call that the server asks for; it is answered and lasts as long as was said."""
        if message.password != self._line.options.password:
            answer = f"ERROR {message.sendid} {_BAD_PASSWORD}"
        elif re.fullmatch(_VALUES["set_gsm_num"], message.number) is None or not 1 <= message.seconds <= _LONGEST_CALL:
            answer = f"ERROR {message.sendid} {_BAD_VALUE}"
        elif not self._line.calls.outgoing(message.number, now, seconds=message.seconds):
            answer = f"ERROR {message.sendid} {'busy' if self._line.logged_in else 'GSM_LOGOUT'}"
        else:
            answer = f"DIAL {message.sendid} ok"
        self._line.reply(source, answer, now)

    # --- AT tunnel ---

    def _tunnel(self, verb: str, sendid: int, now: float) -> str:
        is_open = self._tunnel_boot == self._line.boot and now < self._tunnel_until
        if verb != "ATSTART" and not is_open:
            return f"ERROR {sendid} not started"
        if verb == "ATSTART":
            self._tunnel_count = 0
        if verb in ("ATSTART", "ATALIVE"):
            self._tunnel_boot, self._tunnel_until = self._line.boot, now + _AT_TUNNEL
        elif verb == "ATSTOP":
            self._tunnel_until = 0.0
        return f"{verb} {sendid} OK"

    def _trace(self, sendid: int, text: str, now: float) -> None:
        """One line of modem traffic; nobody acknowledges it (docs/protocol.md §10)."""
        if now >= self._tunnel_until:
            return
        self._tunnel_count += 1
        line = self._line
        line.emit(
            f"AT:{sendid};count:{self._tunnel_count};id:{line.id};password:{line.options.password};receive:{text}"
        )
