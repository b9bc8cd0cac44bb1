"""What a box makes of a server's datagrams: the recorded ones, the wrong ones, and garbage."""

import random

import pytest

from bridge.sim import wire

RECORDED: list[tuple[str, wire.Message]] = [
    ("reg:10;status:200;", wire.KeepaliveAck(10, 200)),
    ("reg:10;status:0;", wire.KeepaliveAck(10, 0)),
    ("reg:1;status:200;", wire.KeepaliveAck(1, 200)),
    ("reg:1;status:200;v:1;", wire.KeepaliveAck(1, 200)),
    ("reg:99;status:404;v:1;", wire.KeepaliveAck(99, 404)),
    ("reg:99;status:404;", wire.KeepaliveAck(99, 404)),
    ("reg:100;status:-1;", wire.KeepaliveAck(100, -1)),
    ("MSG 11 5 hello\n", wire.OpenSession(11, "hello")),
    ("PASSWORD 11 password1\n", wire.Authenticate(11, "password1")),
    ("SEND 11 1 +8613800138000\n", wire.Submit(11, 1, "+8613800138000")),
    ("SEND 11 2 +8613800138001\n", wire.Submit(11, 2, "+8613800138001")),
    ("DONE 11\n", wire.Done(11)),
    ("MSG 1 12 hello мир\n", wire.OpenSession(1, "hello мир")),
    ("PASSWORD 1 pw1\n", wire.Authenticate(1, "pw1")),
    ("SEND 1 2 +8613800138001\n", wire.Submit(1, 2, "+8613800138001")),
    ("DONE 1\n", wire.Done(1)),
    ("MSG 1795347286 12 hello мир\n", wire.OpenSession(1795347286, "hello мир")),
    ("SEND 1795347286 1795347287 +8613800138000\n", wire.Submit(1795347286, 1795347287, "+8613800138000")),
    ("SMS 8 15 password1 +8613800138000 hello", wire.OneShot(8, 15, "password1", "+8613800138000", "hello")),
    ("HELLO 8\n", wire.Hello(8)),
    ("RECEIVE 1270197307 OK", wire.EventAck("RECEIVE", 1270197307, "OK")),
    ("RECEIVE 1270197307 OK\n", wire.EventAck("RECEIVE", 1270197307, "OK")),
    (
        "RECEIVE -5 ERROR not find this id:goip1, or password error",
        wire.EventAck("RECEIVE", -5, "ERROR", "not find this id:goip1, or password error"),
    ),
    ("DELIVER 7558 OK", wire.EventAck("DELIVER", 7558, "OK")),
    ("DELIVER 1571812803 OK\n", wire.EventAck("DELIVER", 1571812803, "OK")),
    ("STATE 7568 OK", wire.EventAck("STATE", 7568, "OK")),
    ("RECORD 7565 OK", wire.EventAck("RECORD", 7565, "OK")),
    ("REMAIN 7564 OK", wire.EventAck("REMAIN", 7564, "OK")),
    ("EXPIRY 7565 OK", wire.EventAck("EXPIRY", 7565, "OK")),
    ("HANGUP 7566 OK", wire.EventAck("HANGUP", 7566, "OK")),
    ("CELLINFO 7562 OK", wire.EventAck("CELLINFO", 7562, "OK")),
    ("CGATT 7561 OK", wire.EventAck("CGATT", 7561, "OK")),
    ("BCCH 7560 OK", wire.EventAck("BCCH", 7560, "OK")),
    ("USSN 7559 OK", wire.EventAck("USSN", 7559, "OK")),
    ("USSN 100 DISABLE", wire.EventAck("USSN", 100, "DISABLE")),
    ("USSN 100 ERROR EOF", wire.EventAck("USSN", 100, "ERROR", "EOF")),
    ("set_gsm_num 879902 13800138001 password1", wire.Command("set_gsm_num", 879902, "13800138001", "password1")),
    ("USSD 111 password1 557*0110000248*10#", wire.UssdRequest(111, "password1", "557*0110000248*10#")),
    ("USSD 1795347288 pw1 *100#", wire.UssdRequest(1795347288, "pw1", "*100#")),
    ("get_gsm_num 1001 password1", wire.Command("get_gsm_num", 1001, "", "password1")),
    ("get_exp_time 1002 password1", wire.Command("get_exp_time", 1002, "", "password1")),
    ("set_exp_time 1003 120 password1", wire.Command("set_exp_time", 1003, "120", "password1")),
    ("get_remain_time 1004 password1", wire.Command("get_remain_time", 1004, "", "password1")),
    ("reset_remain_time 1005 password1", wire.Command("reset_remain_time", 1005, "", "password1")),
    ("get_gsm_state 1006 password1", wire.Command("get_gsm_state", 1006, "", "password1")),
    ("svr_drop_call 1007 password1", wire.Command("svr_drop_call", 1007, "", "password1")),
    ("svr_reboot_module 1008 password1", wire.Command("svr_reboot_module", 1008, "", "password1")),
    ("svr_reboot_dev 1009 password1", wire.Command("svr_reboot_dev", 1009, "", "password1")),
    ("CF 1010 password1 2 3 13800138001 20", wire.CallForward(1010, "password1", 2, 3, "13800138001", "20")),
    ("get_imei 1011 password1", wire.Command("get_imei", 1011, "", "password1")),
    ("set_imei 1012 000000000000000 password1", wire.Command("set_imei", 1012, "000000000000000", "password1")),
    ("get_out_call_interval 1013 password1", wire.Command("get_out_call_interval", 1013, "", "password1")),
    ("set_out_call_interval 1014 5 password1", wire.Command("set_out_call_interval", 1014, "5", "password1")),
    ("module_ctl_i 1015 1 password1", wire.Command("module_ctl_i", 1015, "1", "password1")),
    ("module_ctl 1016 10120121 password1", wire.Command("module_ctl", 1016, "10120121", "password1")),
    ("set_base_cell 1017 689 password1", wire.Command("set_base_cell", 1017, "689", "password1")),
    ("get_cells_list 1018 password1", wire.Command("get_cells_list", 1018, "", "password1")),
    ("CURCELL 1019 password1", wire.Command("CURCELL", 1019, "", "password1")),
    ("DONE 1010", wire.Done(1010)),
    ("GSM 1 password1", wire.Command("GSM", 1, "", "password1")),
    ("ATSTART 20 password1", wire.Command("ATSTART", 20, "", "password1")),
    ("ATSTOP 20 password1", wire.Command("ATSTOP", 20, "", "password1")),
    ("ATALIVE 20 password1", wire.Command("ATALIVE", 20, "", "password1")),
    ("ATCMD 21 AT+CREG? password1", wire.Command("ATCMD", 21, "AT+CREG?", "password1")),
    ("USSDEXIT 112 password1", wire.UssdExit(112, "password1")),
]
"Everything a server was seen to send, from the vendor's documents and from recordings, with one right reading each."

WRONG: list[tuple[str, wire.Message, str]] = [
    ("req:123;status:200;", wire.KeepaliveAck(123, 200, "req"), "a peer's wrong word: readable, but no login"),
    (
        "MSG 90622 9 hello ми",
        wire.OpenSession(90622, "hello м\N{REPLACEMENT CHARACTER}"),
        "a length in characters: the box counts 9 bytes and cuts inside the last letter",
    ),
]
"Recorded datagrams of servers that get it wrong, with what a box makes of them and why."

DEDUCED: list[tuple[str, wire.Message]] = [
    ("reg:5;status:200;\n", wire.KeepaliveAck(5, 200)),
    ("reg:5;status:200", wire.KeepaliveAck(5, 200)),
    ("STATE 7 not today", wire.EventAck("STATE", 7, "ERROR", "not today")),
    ("CELLS 34347 OK\r\n", wire.EventAck("CELLS", 34347, "OK")),
    ("NUM_ICCID -3 OK", wire.EventAck("NUM_ICCID", -3, "OK")),
    ("MSG 1 11 a; b:c\nline\n", wire.OpenSession(1, "a; b:c\nline")),
    ("MSG 1 0 \n", wire.OpenSession(1, "")),
    ("MSG 1 20 shorter\n", wire.OpenSession(1, "shorter\n")),
    ("DONE 11 \n", wire.Done(11)),
    ("PASSWORD 11 with space\n", wire.Authenticate(11, "with space")),
    ("USSD 1 pw *100#\n", wire.UssdRequest(1, "pw", "*100#\n")),
    ("get_imei 1 pw\n", wire.Command("get_imei", 1, "", "pw\n")),
    ("ATCMD 1 AT+COPS=0,1 ,2 pw", wire.Command("ATCMD", 1, "AT+COPS=0,1 ,2", "pw")),
    ("SMS 1 2 pw +49 two words\n", wire.OneShot(1, 2, "pw", "+49", "two words\n")),
    ("CF 1 pw 0 2", wire.CallForward(1, "pw", 0, 2, "", "")),
    ("CF 1 pw 0 4  0", wire.CallForward(1, "pw", 0, 4, "", "0")),
    ("CW 1 pw 2", wire.CallWaiting(1, "pw", 2)),
    ("ATALIVE 20 password1\n", wire.Command("ATALIVE", 20, "", "password1")),
    ("set_num 7 +49123 pw", wire.Command("set_num", 7, "+49123", "pw")),
    ("netselect 7 pw", wire.Command("netselect", 7, "", "pw")),
    ("netselect 7 pw -1", wire.Command("netselect", 7, "-1", "pw")),
    ("DIAL 7 pw +49123 60", wire.Dial(7, "pw", "+49123", 60)),
    ("USSD 957673032 pw *100#", wire.UssdRequest(957673032, "pw", "*100#")),
]
"Forms that follow from the documented ones: other line ends, empty values, unknown kinds."

GARBAGE = [
    b"",
    b"\x00",
    b" MSG 1 1 a",
    b"reg:x;status:200;",
    b"reg:1;code:200;",
    b"RECEIVEOK:1270197307;id:goip1;status:0;",
    b"RECEIVE OK",
    b"RECEIVE 1270197307",
    b"RECEIVE 1270197307 Okay",
    b"MSG 1",
    b"MSG 1 -1 a",
    b"MSG \xd9\xa3 1 a",
    b"MSG 1 3001 " + b"a" * 3001,
    b"SEND 11",
    b"SEND 11 1",
    b"SEND 1_1 1 +49",
    b"PASSWORD 11",
    b"DONE",
    b"USSD 5 pw",
    b"set_imei 5 pw",
    b"CF 5 pw x y z 0",
    b"DIAL 5 pw +49",
    b"DIAL 5 pw +49 soon",
    b"netselect 5",
    b"\xff\xfe 1 OK",
]


@pytest.mark.parametrize(("datagram", "message"), RECORDED + DEDUCED)
def test_datagram_is_understood(datagram: str, message: wire.Message) -> None:
    assert wire.decode(datagram.encode()) == message


@pytest.mark.parametrize(("datagram", "message", "reason"), WRONG)
def test_wrong_datagram_means_what_a_box_makes_of_it(datagram: str, message: wire.Message, reason: str) -> None:
    assert wire.decode(datagram.encode()) == message, reason


@pytest.mark.parametrize("data", GARBAGE)
def test_garbage_is_a_wire_error(data: bytes) -> None:
    with pytest.raises(wire.WireError):
        wire.decode(data)


def test_longest_text_is_taken() -> None:
    message = wire.decode(b"MSG 1 3000 " + b"a" * 3000)
    assert message == wire.OpenSession(1, "a" * 3000)


def test_error_names_the_sendid_when_the_sender_can_be_told() -> None:
    with pytest.raises(wire.WireError) as caught:
        wire.decode(b"SEND 42 1")
    assert caught.value.sendid == 42


def test_random_bytes_give_a_message_or_a_wire_error() -> None:
    rng = random.Random(7)
    heads = [text.encode() for text, _ in RECORDED]
    for _ in range(5000):
        data = bytearray(rng.choice(heads))
        for _ in range(rng.randint(1, 6)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        try:
            wire.decode(bytes(data[: rng.randint(0, len(data))]))
        except wire.WireError:
            continue
