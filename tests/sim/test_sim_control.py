"""Control commands, call forwarding, the AT tunnel and the whole box, against docs/protocol.md §8 and §10."""

import pytest


@pytest.mark.parametrize(
    ("request_", "answer"),
    [
        ("get_gsm_num 1 password1", "get_gsm_num 1 (null)"),
        ("get_exp_time 2 password1", "get_exp_time 2 0"),
        ("get_remain_time 3 password1", "get_remain_time 3 0"),
        ("reset_remain_time 4 password1", "reset_remain_time 4 ok"),
        ("get_gsm_state 5 password1", "get_gsm_state 5 IDLE"),
        ("svr_drop_call 6 password1", "svr_drop_call 6 ok"),
        ("svr_reboot_module 7 password1", "svr_reboot_module 7 ok"),
        ("svr_reboot_dev 8 password1", "svr_reboot_dev 8 ok"),
        ("get_imei 9 password1", "get_imei 9 860000020000001"),
        ("get_out_call_interval 10 password1", "get_out_call_interval 10 0"),
        ("module_ctl_i 11 1 password1", "module_ctl_i 11 ok"),
        ("module_ctl 12 10120121 password1", "module_ctl 12 ok"),
        ("get_cells_list 13 password1", "get_cells_list 13 ok"),
        ("CURCELL 14 password1", "CURCELL 14 689"),
        (
            "GSM 15 password1",
            "GSM:15;get_gsm_num:(null);get_exp_time:0;get_remain_time:0;get_gsm_state:IDLE;"
            "imei:860000020000001;out_call_interval:0;module_down:0",
        ),
        ("get_gsm_num 16 wrong", "ERROR 16 password error"),
        ("get_gsm_num 17 password1\n", "ERROR 17 password error"),
        ("set_exp_time 18 120 wrong", "ERROR 18 120 password error"),
        ("set_exp_time 19 soon password1", "ERROR 19 soon bad value"),
        ("set_imei 20 12 password1", "ERROR 20 12 bad value"),
        ("set_gsm_num 21 +49 172 password1", "ERROR 21 +49 172 bad value"),
        ("GSM 22 wrong", "GSMERROR 22 password error"),
        ("module_ctl_i 23 7 password1", "ERROR 23 bad value"),
        ("module_ctl 24 13 password1", "ERROR 24 bad value"),
        ("set_imei 25 password1", "ERROR 25 value or password missing\n"),
        ("ATALIVE 26 password1", "ERROR 26 not started"),
        ("ATSTART 27 password1", "ATSTART 27 OK"),
        ("ATCMD 28 AT+CSQ password1", "ERROR 28 not started"),
        ("set_num 29 +4917212345 password1", "set_num 29 +4917212345 ok"),
        ("set_num 30 +4917212345 wrong", "ERROR 30 +4917212345 password error"),
        ("set_num 31 nobody password1", "ERROR 31 nobody bad value"),
        ("netselect 32 password1", "netselect 32 0"),
        ("netselect 33 password1 -1", "netselect 33 0"),
        ("netselect 34 password1 2", "netselect 34 2"),
        ("netselect 35 password1 umts", "ERROR 35 bad value"),
        ("netselect 36 wrong 2", "ERROR 36 password error"),
        ("DIAL 37 wrong +4911 30", "ERROR 37 password error"),
        ("DIAL 38 password1 +4911 0", "ERROR 38 bad value"),
        ("DIAL 39 password1 +4911 3601", "ERROR 39 bad value"),
        ("DIAL 40 password1 nobody 30", "ERROR 40 bad value"),
        ("DIAL 41 password1 +4911", "ERROR 41 fields missing\n"),
    ],
)
def test_command_is_answered(bench, request_, answer):
    assert bench().tell(request_) == [answer]


@pytest.mark.parametrize(
    ("setting", "question", "value"),
    [
        ("set_gsm_num", "get_gsm_num", "+4917212345"),
        ("set_num", "get_gsm_num", "+4917212345"),
        ("set_exp_time", "get_exp_time", "120"),
        ("set_exp_time", "get_remain_time", "120"),
        ("set_imei", "get_imei", "123456789012345"),
        ("set_out_call_interval", "get_out_call_interval", "5"),
        ("set_base_cell", "CURCELL", "785"),
    ],
)
def test_what_is_set_is_returned_even_after_a_reboot(bench, setting, question, value):
    box = bench(boot_time=5)
    assert box.tell(f"{setting} 1 {value} password1") == [f"{setting} 1 {value} ok"]
    assert box.tell(f"{question} 2 password1") == [f"{question} 2 {value}"]
    box.gateway.reboot(box.now)
    box.advance(6)
    assert box.tell(f"{question} 3 password1") == [f"{question} 3 {value}"]


@pytest.mark.parametrize("verb", ["set_gsm_num", "set_num"])
def test_set_number_shows_in_the_keepalive(bench, verb):
    box = bench()
    box.tell(f"{verb} 1 +4917212345 password1")
    assert ";num:+4917212345;" in box.advance(30)[0]


def test_network_choice_is_kept(bench):
    box = bench()
    box.tell("netselect 1 password1 2")
    assert box.tell("netselect 2 password1 -1") == ["netselect 2 2"]


def test_dialled_call_lasts_as_long_as_was_said(bench):
    box = bench(ring=(2, 2))
    assert box.tell("DIAL 1 password1 +4911 30")[-1] == "DIAL 1 ok"
    assert box.tell("DIAL 2 password1 +4922 30") == ["ERROR 2 busy"]
    box.advance(1)
    box.advance(2)
    box.sent()
    assert "EXPIRY:exp:30" in box.events(30)
    [end] = box.records("call_end")
    assert (end["number"], end["seconds"]) == ("+4911", 30.0)
    box.line.logout(box.now)
    assert "ERROR 3 GSM_LOGOUT" in box.tell("DIAL 3 password1 +4911 30")


def test_unset_value_by_firmware(bench):
    box = bench(profile="unset_null", command_delay=(0, 0))
    assert box.tell("get_gsm_num 1 password1") == ["get_gsm_num 1 <NULL>"]
    assert box.tell("GSM 2 password1")[0].startswith("GSM:2;get_gsm_num:<NULL>;")
    box.tell("CF 3 password1 0 2 0 0")
    assert box.advance(0) == ["CFSTATE 3 0 <NULL> 0"]


@pytest.mark.parametrize(
    ("profile", "value", "disables"),
    [
        ("spec", "0", True),
        ("spec", "2", True),
        ("status0", "0", True),
        ("status0", "2", False),
        ("status200", "0", False),
        ("status200", "2", True),
    ],
)
def test_disabling_a_module_by_edition(bench, profile, value, disables):
    box = bench(profile=profile)
    [answer] = box.tell(f"module_ctl_i 1 {value} password1")
    assert answer == ("module_ctl_i 1 ok" if disables else "ERROR 1 bad value")
    [keepalive] = box.advance(30)
    assert (";disable_status:1;" in keepalive) is disables
    assert (";gsm_status:LOGOUT;" in keepalive) is disables
    box.tell("module_ctl_i 2 1 password1")
    assert ";gsm_status:LOGIN;" in box.advance(30)[0]


def test_module_digits_concern_the_whole_box(bench):
    box = bench(lines=4)
    box.tell("module_ctl 1 0212 password2", line=1)
    assert [line.logged_in for line in box.gateway.lines] == [False, True, True, True]
    box.tell("module_ctl 2 1000 password1")
    assert [line.logged_in for line in box.gateway.lines] == [True, False, False, False]


def test_box_reboot_silences_every_line_after_the_answer(bench):
    box = bench(lines=2, boot_time=20)
    assert box.tell("svr_reboot_dev 1 password2", line=1) == ["svr_reboot_dev 1 ok"]
    assert box.advance(19) == []
    assert not any(line.powered for line in box.gateway.lines)
    assert [text.split(";")[0] for text in box.advance(2)] == ["req:1", "req:1"]


def test_module_reboot_keeps_the_count(bench):
    box = bench(boot_time=20)
    box.tell("svr_reboot_module 1 password1")
    assert not box.line.logged_in
    [keepalive] = box.advance(30)
    assert keepalive.startswith("req:2;")
    assert ";gsm_status:LOGIN;" in keepalive


def test_cells_list_is_followed_by_the_event(bench):
    box = bench(command_delay=(2, 2))
    box.tell("get_cells_list 1 password1")
    assert box.events(2) == ["CELLS:lists:689,638,783,785,640,"]


def test_call_forwarding_is_kept_for_each_reason(bench):
    box = bench(command_delay=(1, 1))

    def ask(text):
        assert box.tell(text) == []
        return box.advance(1)

    assert ask("CF 1 password1 2 3 +4911 20") == ["CFOK 1"]
    assert box.tell("DONE 1") == ["DONE 1\n"]
    assert ask("CF 2 password1 2 2  0") == ["CFSTATE 2 1 +4911 20"]
    assert ask("CF 3 password1 1 2  0") == ["CFSTATE 3 0 (null) 0"]
    assert ask("CF 4 password1 5 4  0") == ["CFOK 4"]
    assert ask("CF 5 password1 2 2  0") == ["CFSTATE 5 0 (null) 0"]
    assert ask("CF 10 password1 4 3 +4922 15") == ["CFOK 10"]
    times = (0, 0, 15, 0)  # only of no reply
    expected = [f"CFSTATE 11 1 +4922 {seconds}" for seconds in times]
    assert [ask(f"CF 11 password1 {reason} 2")[0] for reason in range(4)] == expected
    assert ask("CF 6 password1 0 3  0") == ["CFERROR 6"]
    assert ask("CF 7 password1 9 3 +4911 0") == ["CFERROR 7"]
    assert box.tell("CF 8 wrong 0 2  0") == ["CFERROR 8"]


def test_call_waiting(bench):
    box = bench(command_delay=(0, 0))
    answers = [(box.tell(f"CW {n} password1 {mode}") + box.advance(0))[0] for n, mode in enumerate((2, 1, 2, 0, 2, 9))]
    assert answers == ["CWSTATE 0 0", "CWOK 1", "CWSTATE 2 1", "CWOK 3", "CWSTATE 4 0", "CWERROR 5"]
    assert box.tell("CW 9 wrong 2") == ["CWERROR 9"]


def test_at_tunnel_traces_a_command_and_closes_without_alive(bench):
    box = bench()
    box.tell("ATSTART 20 password1")
    assert box.tell("ATCMD 21 AT+CREG? password1") == [
        "ATCMD 21 OK",
        "AT:21;count:1;id:goip1;password:password1;receive:write:AT+CREG?",
    ]
    assert box.advance(1) == ["AT:21;count:2;id:goip1;password:password1;receive:OK"]
    box.advance(50)
    assert box.tell("ATALIVE 20 password1") == ["ATALIVE 20 OK"]
    box.advance(50)
    assert box.tell("ATALIVE 20 password1\n") == ["ATALIVE 20 OK"]
    box.advance(61)
    assert box.tell("ATCMD 22 AT password1") == ["ERROR 22 not started"]
    box.tell("ATSTART 23 password1")
    assert box.tell("ATSTOP 23 password1") == ["ATSTOP 23 OK"]
    assert box.tell("ATSTOP 23 password1") == ["ERROR 23 not started"]


def test_answers_of_an_outgoing_call_count_against_the_time_left(bench):
    box = bench(ring=(2, 2))
    box.tell("set_exp_time 1 10 password1")
    box.line.calls.outgoing("+4911", box.now, seconds=61)
    box.advance(70)
    assert box.tell("get_remain_time 2 password1") == ["get_remain_time 2 8"]
    assert box.tell("reset_remain_time 3 password1", "get_remain_time 4 password1")[1] == "get_remain_time 4 10"
