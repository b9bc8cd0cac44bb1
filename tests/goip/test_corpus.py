"""Every datagram of the corpus: captures, the vendor's documents, and what other programs were seen to send.

`corpus/captures.jsonl` has one JSON object a line with `direction`, `kind`, `wire`, `source`, `evidence`.
"""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from bridge.goip import wire
from bridge.sim import wire as box

CORPUS = [json.loads(line) for line in (Path(__file__).parent / "corpus/captures.jsonl").read_text().splitlines()]
FROM_BOX = [entry["wire"] for entry in CORPUS if entry["direction"] == "goip->server"]
FROM_SERVER = [entry["wire"] for entry in CORPUS if entry["direction"] == "server->goip"]


def event(kind: str, recvid: int, id: str, password: str) -> dict[str, Any]:
    return {"kind": kind, "recvid": recvid, "id": id, "password": password}


def receive(recvid: int, id: str, password: str, srcnum: str, text: str) -> tuple[type, dict[str, Any]]:
    fields = {"srcnum": srcnum, "text": text, "raw": text.encode(), "damaged": False, "smscnum": None, "senttime": None}
    return wire.Receive, event("RECEIVE", recvid, id, password) | fields


def reply(verb: str, sendid: int, text: str = "") -> tuple[type, dict[str, Any]]:
    return wire.Reply, {"verb": verb, "sendid": sendid, "text": text}


def keepalive(count: int, id: str, password: str, **fields: str) -> tuple[type, dict[str, Any]]:
    return wire.Keepalive, {"count": count, "id": id, "password": password, "fields": fields}


GOIP_1 = ("goip-1", "goip")
OSNOSOV = ("+380500000000", "password")
STYRYL = ("c1", "gateway_password")

DECODED: list[tuple[str, tuple[type, dict[str, Any]]]] = [
    # -- keepalives
    (
        "req:10;id:goipid1;pass:password1;num:12345;signal:23;gsm_status:LOGIN;voip_status:LOGIN;",
        keepalive(10, "goipid1", "password1", num="12345", signal="23", gsm_status="LOGIN", voip_status="LOGIN"),
    ),
    ("req:10;id:goipid1;pass:password1;", keepalive(10, "goipid1", "password1")),
    (
        "req:27;id:gateway_name;pass:gateway_password;num:;signal:29;gsm_status:LOGIN;voip_status:LOGOUT;"
        "voip_state:IDLE;remain_time:-1;imei:860000023950001;imsi:260060172000001;iccid:89480611000720000001;pro:POL;"
        "idle:11;disable_status:0;SMS_LOGIN:N;SMB_LOGIN:;CELLINFO:LAC:7E5,CELL ID:5E5B;CGATT:Y;",
        keepalive(
            27, "gateway_name", "gateway_password", num="", signal="29", gsm_status="LOGIN", voip_status="LOGOUT",
            voip_state="IDLE", remain_time="-1", imei="860000023950001", imsi="260060172000001",
            iccid="89480611000720000001", pro="POL", idle="11", disable_status="0", SMS_LOGIN="N", SMB_LOGIN="",
            cellinfo="LAC:7E5,CELL ID:5E5B", CGATT="Y",
        ),
    ),
    (
        "req:3;id:goip-1;pass:goip;num:;signal:;gsm_status:LOGIN;voip_status:LOGOUT;voip_state:IDLE;remain_time:-1;"
        "imei:000000000000000;imsi:000000000000000;iccid:00000000000000000000;pro:CHINA UNICOM GSM;idle:1;"
        "disable_status:0;SMS_LOGIN:N;SMB_LOGIN:;CELLINFO:LAC:FFFF,CELL ID:FFFF;CGATT:Y;",
        keepalive(
            3, *GOIP_1, num="", signal="", gsm_status="LOGIN", voip_status="LOGOUT", voip_state="IDLE",
            remain_time="-1", imei="0" * 15, imsi="0" * 15, iccid="0" * 20, pro="CHINA UNICOM GSM", idle="1",
            disable_status="0", SMS_LOGIN="N", SMB_LOGIN="", cellinfo="LAC:FFFF,CELL ID:FFFF", CGATT="Y",
        ),
    ),
    (
        "req:19;id:goip01;pass:XXX;num:;signal:15;gsm_status:LOGIN;voip_status:LOGIN;voip_state:IDLE;remain_time:-1;"
        "imei:123455;imsi:345667;iccid:678890;pro:dna;",
        keepalive(
            19, "goip01", "XXX", num="", signal="15", gsm_status="LOGIN", voip_status="LOGIN", voip_state="IDLE",
            remain_time="-1", imei="123455", imsi="345667", iccid="678890", pro="dna",
        ),
    ),
    (
        "req:1102;id:goippy_2508;pass:...;num:+37200000268;signal:25;gsm_status:LOGIN;voip_status:LOGIN;"
        "voip_state:IDLE;remain_time:-1;pro:Tele2;disable_status:0;...",
        keepalive(
            1102, "goippy_2508", "...", num="+37200000268", signal="25", gsm_status="LOGIN", voip_status="LOGIN",
            voip_state="IDLE", remain_time="-1", pro="Tele2", disable_status="0",
        ),
    ),
    # -- bulk sessions
    ("PASSWORD 11\n", (wire.PasswordPrompt, {"sendid": 11})),
    ("SEND 11\n", (wire.SendPrompt, {"sendid": 11})),
    ("OK 11 1 160\n", (wire.SubmitOk, {"sendid": 11, "telid": 1, "sms_no": 160})),
    ("WAIT 11 2\n", (wire.SubmitWait, {"sendid": 11, "telid": 2})),
    ("OK 11 2 161\n", (wire.SubmitOk, {"sendid": 11, "telid": 2, "sms_no": 161})),
    ("OK 11 1\n", (wire.SubmitOk, {"sendid": 11, "telid": 1, "sms_no": None})),
    ("WAIT 11 1\n", (wire.SubmitWait, {"sendid": 11, "telid": 1})),
    ("DONE 11\n", (wire.Done, {"sendid": 11})),
    ("ERROR 11 too_many_sends_in_server\n", (wire.Error, {"sendid": 11, "text": "too_many_sends_in_server"})),
    ("ERROR 11 PASSWORD\n", (wire.Error, {"sendid": 11, "text": "PASSWORD"})),
    ("ERROR 11 1 errorstatus:1\n", (wire.SubmitError, {"sendid": 11, "telid": 1, "code": 1})),
    ("ERROR 8622 1 errorstatus:38", (wire.SubmitError, {"sendid": 8622, "telid": 1, "code": 38})),
    ("ERROR 8 SENDID", (wire.Error, {"sendid": 8, "text": "SENDID"})),
    ("ERROR 8 GSM_LOGOUT", (wire.Error, {"sendid": 8, "text": "GSM_LOGOUT"})),
    ("OK 123 1 0", (wire.SubmitOk, {"sendid": 123, "telid": 1, "sms_no": 0})),
    ("OK 123 1 11", (wire.SubmitOk, {"sendid": 123, "telid": 1, "sms_no": 11})),
    # -- inbound SMS and delivery reports
    (
        "RECEIVE:1270197307;id:goipid1;pass:password1;srcnum:+8613500000667;msg:just a test",
        receive(1270197307, "goipid1", "password1", "+8613500000667", "just a test"),
    ),
    (
        "RECEIVE:441;id:c1;password:gateway_password;srcnum:100;msg:This is sample sms message",
        receive(441, *STYRYL, "100", "This is sample sms message"),
    ),
    (
        "RECEIVE:1734804704;id:goip01;password:xxxxxx;srcnum:+358401234567;msg:Hello",
        receive(1734804704, "goip01", "xxxxxx", "+358401234567", "Hello"),
    ),
    (
        "RECEIVE:1655046449;id:0500000000;password:password;srcnum:+380990000000;msg:message",
        receive(1655046449, "0500000000", "password", "+380990000000", "message"),
    ),
    (
        "RECEIVE:1270197307;id:goip1;password:pw1;srcnum:+8613500000667;msg:just; a test: x\nline2",
        receive(1270197307, "goip1", "pw1", "+8613500000667", "just; a test: x\nline2"),
    ),
    ("RECEIVE:-5;id:goip1;password:wrong;srcnum:+1;msg:bad", receive(-5, "goip1", "wrong", "+1", "bad")),
    (
        "DELIVER:429;id:c1;password:gateway_password;sms_no:3;state:0;num:999999999",
        (wire.Deliver, event("DELIVER", 429, *STYRYL) | {"sms_no": 3, "state": 0, "num": "999999999"}),
    ),
    # -- calls
    (
        "STATE:7568;id:goip1;password:password1;gsm_remain_state:IDLE",
        (wire.State, event("STATE", 7568, "goip1", "password1") | {"state": "IDLE", "number": ""}),
    ),
    (
        "STATE:446;id:c1;password:gateway_password;gsm_remain_state:DIALING:999999999",
        (wire.State, event("STATE", 446, *STYRYL) | {"state": "DIALING", "number": "999999999"}),
    ),
    (
        "STATE:1571812793;id:goip-1;password:goip;gsm_remain_state:IDLE",
        (wire.State, event("STATE", 1571812793, *GOIP_1) | {"state": "IDLE", "number": ""}),
    ),
    (
        "STATE:1655172059;id:+380500000000;password:password;gsm_remain_state:INCOMING:+380990000000",
        (wire.State, event("STATE", 1655172059, *OSNOSOV) | {"state": "INCOMING", "number": "+380990000000"}),
    ),
    (
        "STATE:1655172055;id:+380500000000;password:password;gsm_remain_state:IDLE",
        (wire.State, event("STATE", 1655172055, *OSNOSOV) | {"state": "IDLE", "number": ""}),
    ),
    (
        "RECORD:7565;id:goip2;password:password2;dir:2;num:10086",
        (wire.Record, event("RECORD", 7565, "goip2", "password2") | {"dir": 2, "num": "10086"}),
    ),
    (
        "RECORD:1571812801;id:goip-1;password:goip;dir:1;num:1380013800",
        (wire.Record, event("RECORD", 1571812801, *GOIP_1) | {"dir": 1, "num": "1380013800"}),
    ),
    (
        "RECORD:1571812801;id:goip-1;password:goip;dir:2;num:10086",
        (wire.Record, event("RECORD", 1571812801, *GOIP_1) | {"dir": 2, "num": "10086"}),
    ),
    (
        "REMAIN:7568;id:goip-1;password:goip;gsm_remain_time:-1",
        (wire.Remain, event("REMAIN", 7568, *GOIP_1) | {"minutes": -1}),
    ),
    (
        "EXPIRY:1571812871;id:goip-1;password:goip;exp:0",
        (wire.Expiry, event("EXPIRY", 1571812871, *GOIP_1) | {"exp": 0}),
    ),
    (
        "HANGUP:1571812814;id:goip-1;password:goip;num:,cause:Normal call clearing",
        (wire.Hangup, event("HANGUP", 1571812814, *GOIP_1) | {"num": "", "cause": "Normal call clearing"}),
    ),
    (
        "HANGUP:1655172054;id:+380500000000;password:password;num:,cause:Normal call clearing",
        (wire.Hangup, event("HANGUP", 1655172054, *OSNOSOV) | {"num": "", "cause": "Normal call clearing"}),
    ),
    # -- other events
    (
        "CELLS:34347;id:goip-1;password:goip;lists:689,638,783,785,640,",
        (wire.Cells, event("CELLS", 34347, *GOIP_1) | {"cells": (689, 638, 783, 785, 640)}),
    ),
    (
        "CELLINFO:7562;id:goip1;password:pw1;info:LAC:1,CELL ID:2",
        (wire.CellInfo, event("CELLINFO", 7562, "goip1", "pw1") | {"info": "LAC:1,CELL ID:2"}),
    ),
    (
        'CELLINFO:7562;id:goip1;password:pw1;info:"LAC:7E5,CELL ID:5E5B"',
        (wire.CellInfo, event("CELLINFO", 7562, "goip1", "pw1") | {"info": "LAC:7E5,CELL ID:5E5B"}),
    ),
    (
        "CGATT:7561;id:goip1;password:pw1;cgatt:1",
        (wire.Cgatt, event("CGATT", 7561, "goip1", "pw1") | {"attached": True}),
    ),
    (
        "USSN:7559;id:goip1;password:pw1;msg:Balance 5",
        (wire.Ussn, event("USSN", 7559, "goip1", "pw1") | {"text": "Balance 5"}),
    ),
    (
        "AT:20;count:1;id:goip-1;password:goip;receive:write:AT+CREG?",
        (wire.AtTrace, event("AT", 20, *GOIP_1) | {"text": "write:AT+CREG?"}),
    ),
    # -- control commands and USSD
    ("set_gsm_num 879902 13800138001 ok", reply("set_gsm_num", 879902, "13800138001 ok")),
    (
        "GSM:1;get_gsm_num:(null);get_exp_time:0;get_remain_time:0;get_gsm_state:IDLE;imei:000000000000000;"
        "out_call_interval:0;module_down:0",
        (
            wire.GsmValues,
            {
                "sendid": 1,
                "fields": {
                    "get_gsm_num": "(null)", "get_exp_time": "0", "get_remain_time": "0", "get_gsm_state": "IDLE",
                    "imei": "000000000000000", "out_call_interval": "0", "module_down": "0",
                },
            },
        ),
    ),
    (
        "USSD 111 You are going to transfer 10.00 EGP to 20110000248. The service fee is 2% with a minimum of 0.20 "
        "EGP. Press 1 to confirm, or any key to cancel",
        reply(
            "USSD",
            111,
            "You are going to transfer 10.00 EGP to 20110000248. The service fee is 2% with a minimum of 0.20 EGP. "
            "Press 1 to confirm, or any key to cancel",
        ),
    ),
    ("get_gsm_num 1001 13800138001", reply("get_gsm_num", 1001, "13800138001")),
    ("get_exp_time 1002 0", reply("get_exp_time", 1002, "0")),
    ("set_exp_time 1003 120 ok", reply("set_exp_time", 1003, "120 ok")),
    ("get_remain_time 1004 37", reply("get_remain_time", 1004, "37")),
    ("reset_remain_time 1005 ok", reply("reset_remain_time", 1005, "ok")),
    ("get_gsm_state 1006 IDLE", reply("get_gsm_state", 1006, "IDLE")),
    ("svr_drop_call 1007 ok", reply("svr_drop_call", 1007, "ok")),
    ("svr_reboot_module 1008 ok", reply("svr_reboot_module", 1008, "ok")),
    ("svr_reboot_dev 1009 ok", reply("svr_reboot_dev", 1009, "ok")),
    ("CFOK 1010", reply("CFOK", 1010)),
    ("get_imei 1011 000000000000000", reply("get_imei", 1011, "000000000000000")),
    ("set_imei 1012 000000000000000 ok", reply("set_imei", 1012, "000000000000000 ok")),
    ("get_out_call_interval 1013 0", reply("get_out_call_interval", 1013, "0")),
    ("set_out_call_interval 1014 5 ok", reply("set_out_call_interval", 1014, "5 ok")),
    ("module_ctl_i 1015 ok", reply("module_ctl_i", 1015, "ok")),
    ("module_ctl 1016 ok", reply("module_ctl", 1016, "ok")),
    ("set_base_cell 1017 689 ok", reply("set_base_cell", 1017, "689 ok")),
    ("get_cells_list 1018 ok", reply("get_cells_list", 1018, "ok")),
    ("CURCELL 1019 689", reply("CURCELL", 1019, "689")),
    ("CFERROR 1010", reply("CFERROR", 1010)),
    ("CFSTATE 1010 1 +49123 20", reply("CFSTATE", 1010, "1 +49123 20")),
    ("CFSTATE 1010 0 (null) 0", reply("CFSTATE", 1010, "0 (null) 0")),
    ("netselect 1020 2", reply("netselect", 1020, "2")),
    ("ERROR 879902 13800138001 bad value", (wire.Error, {"sendid": 879902, "text": "13800138001 bad value"})),
    ("GSMERROR 1 bad password", reply("GSMERROR", 1, "bad password")),
    ("ATSTART 20 OK", reply("ATSTART", 20, "OK")),
    ("ATSTOP 20 OK", reply("ATSTOP", 20, "OK")),
    ("ATALIVE 20 OK", reply("ATALIVE", 20, "OK")),
    ("ATCMD 21 OK", reply("ATCMD", 21, "OK")),
    ("USSDEXIT 112", reply("USSDEXIT", 112)),
    ("USSDERROR 112 timeout", reply("USSDERROR", 112, "timeout")),
]  # fmt: skip


def command(verb: str, sendid: int, *arguments: str, password: str = "password1", first: bool = False) -> bytes:
    return wire.encode_command(verb, sendid, arguments, password, password_first=first)


OURS: list[tuple[str, bytes]] = [
    ("reg:10;status:200;", wire.encode_registered(10)),
    ("reg:1;status:200;", wire.encode_registered(1)),
    ("MSG 11 5 hello\n", wire.encode_msg(11, "hello")),
    ("PASSWORD 11 password1\n", wire.encode_password(11, "password1")),
    ("SEND 11 1 +8613800138000\n", wire.encode_send(11, 1, "+8613800138000")),
    ("SEND 11 2 +8613800138001\n", wire.encode_send(11, 2, "+8613800138001")),
    ("DONE 11\n", wire.encode_done(11)),
    ("MSG 1 12 hello мир\n", wire.encode_msg(1, "hello мир")),
    ("PASSWORD 1 pw1\n", wire.encode_password(1, "pw1")),
    ("SEND 1 2 +8613800138001\n", wire.encode_send(1, 2, "+8613800138001")),
    ("DONE 1\n", wire.encode_done(1)),
    ("MSG 1795347286 12 hello мир\n", wire.encode_msg(1795347286, "hello мир")),
    ("SEND 1795347286 1795347287 +8613800138000\n", wire.encode_send(1795347286, 1795347287, "+8613800138000")),
    ("RECEIVE 1270197307 OK\n", wire.encode_ack("RECEIVE", 1270197307)),
    ("DELIVER 1571812803 OK\n", wire.encode_ack("DELIVER", 1571812803)),
    ("STATE 7568 OK", wire.encode_ack("STATE", 7568)),
    ("RECORD 7565 OK", wire.encode_ack("RECORD", 7565)),
    ("REMAIN 7564 OK", wire.encode_ack("REMAIN", 7564)),
    ("EXPIRY 7565 OK", wire.encode_ack("EXPIRY", 7565)),
    ("USSN 7559 OK", wire.encode_ack("USSN", 7559)),
    ("set_gsm_num 879902 13800138001 password1", command("set_gsm_num", 879902, "13800138001")),
    ("USSD 111 password1 557*0110000248*10#", command("USSD", 111, "557*0110000248*10#", first=True)),
    ("USSD 957673032 password1 *100#", command("USSD", 957673032, "*100#", first=True)),
    ("USSD 1795347288 pw1 *100#", command("USSD", 1795347288, "*100#", password="pw1", first=True)),
    ("get_gsm_num 1001 password1", command("get_gsm_num", 1001)),
    ("get_exp_time 1002 password1", command("get_exp_time", 1002)),
    ("set_exp_time 1003 120 password1", command("set_exp_time", 1003, "120")),
    ("get_remain_time 1004 password1", command("get_remain_time", 1004)),
    ("reset_remain_time 1005 password1", command("reset_remain_time", 1005)),
    ("get_gsm_state 1006 password1", command("get_gsm_state", 1006)),
    ("svr_drop_call 1007 password1", command("svr_drop_call", 1007)),
    ("svr_reboot_module 1008 password1", command("svr_reboot_module", 1008)),
    ("svr_reboot_dev 1009 password1", command("svr_reboot_dev", 1009)),
    ("CF 1010 password1 2 3 13800138001 20", command("CF", 1010, "2", "3", "13800138001", "20", first=True)),
    ("get_imei 1011 password1", command("get_imei", 1011)),
    ("set_imei 1012 000000000000000 password1", command("set_imei", 1012, "0" * 15)),
    ("get_out_call_interval 1013 password1", command("get_out_call_interval", 1013)),
    ("set_out_call_interval 1014 5 password1", command("set_out_call_interval", 1014, "5")),
    ("module_ctl_i 1015 1 password1", command("module_ctl_i", 1015, "1")),
    ("module_ctl 1016 10120121 password1", command("module_ctl", 1016, "10120121")),
    ("set_base_cell 1017 689 password1", command("set_base_cell", 1017, "689")),
    ("get_cells_list 1018 password1", command("get_cells_list", 1018)),
    ("CURCELL 1019 password1", command("CURCELL", 1019)),
    ("GSM 1 password1", command("GSM", 1)),
    ("USSDEXIT 112 password1", command("USSDEXIT", 112, first=True)),
]

OTHERS: list[tuple[str, object, str]] = [
    ("reg:10;status:0;", box.KeepaliveAck(10, 0), "the older editions' ok; we say 200 (§3)"),
    ("reg:1;status:200;v:1;", box.KeepaliveAck(1, 200), "v: is not understood by anybody, so we don't send it (§3)"),
    ("reg:99;status:404;v:1;", box.KeepaliveAck(99, 404), "we are silent to strangers"),
    ("reg:99;status:404;", box.KeepaliveAck(99, 404), "we are silent to strangers"),
    ("reg:100;status:-1;", box.KeepaliveAck(100, -1), "we are silent to strangers"),
    ("req:123;status:200;", box.KeepaliveAck(123, 200, "req"), "the wrong word, of another program"),
    ("MSG 90622 9 hello ми", box.OpenSession(90622, "hello м\N{REPLACEMENT CHARACTER}"), "broken: characters counted"),
    (
        "SMS 8 15 password1 +8613800138000 hello",
        box.OneShot(8, 15, "password1", "+8613800138000", "hello"),
        "undocumented; not used (§4.8)",
    ),
    ("HELLO 8\n", box.Hello(8), "a dead branch of the vendor's server"),
    ("RECEIVE 1270197307 OK", box.EventAck("RECEIVE", 1270197307, "OK"), "we end it with a newline (§1.1)"),
    (
        "RECEIVE -5 ERROR not find this id:goip1, or password error",
        box.EventAck("RECEIVE", -5, "ERROR", "not find this id:goip1, or password error"),
        "we are silent to strangers",
    ),
    ("RECEIVEOK:1270197307;id:goip1;status:0;", box.WireError, "the wrong form, of another program"),
    ("DELIVER 7558 OK", box.EventAck("DELIVER", 7558, "OK"), "we end it with a newline (§1.1)"),
    ("HANGUP 7566 OK", box.EventAck("HANGUP", 7566, "OK"), "we end it with a newline (§1.1)"),
    ("CELLINFO 7562 OK", box.EventAck("CELLINFO", 7562, "OK"), "we end it with a newline (§1.1)"),
    ("CGATT 7561 OK", box.EventAck("CGATT", 7561, "OK"), "we end it with a newline (§1.1)"),
    ("BCCH 7560 OK", box.EventAck("BCCH", 7560, "OK"), "we end it with a newline (§1.1)"),
    ("USSN 100 DISABLE", box.EventAck("USSN", 100, "DISABLE"), "not ours to say (§7)"),
    ("USSN 100 ERROR EOF", box.EventAck("USSN", 100, "ERROR", "EOF"), "we never refuse an event (§6.2)"),
    ("DONE 1010", box.Done(1010), "we end it with a newline, as in a session"),
    ("ATSTART 20 password1", box.Command("ATSTART", 20, "", "password1"), "the AT tunnel is not used (§10)"),
    ("ATSTOP 20 password1", box.Command("ATSTOP", 20, "", "password1"), "the AT tunnel is not used (§10)"),
    ("ATALIVE 20 password1", box.Command("ATALIVE", 20, "", "password1"), "the AT tunnel is not used (§10)"),
    ("ATALIVE 20 password1\n", box.Command("ATALIVE", 20, "", "password1"), "the AT tunnel is not used (§10)"),
    ("CF 1023 password1 0 2  ", box.CallForward(1023, "password1", 0, 2, "", ""), "we leave no field empty (§8)"),
    ("set_num 1021 +49123 password1", box.Command("set_num", 1021, "+49123", "password1"), "we say set_gsm_num (§8)"),
    ("netselect 1020 password1 -1", box.Command("netselect", 1020, "-1", "password1"), "not used (§8)"),
    ("DIAL 1022 password1 +49123 60", box.Dial(1022, "password1", "+49123", 60), "we place no calls (§8)"),
    (
        "ATCMD 21 AT+CREG? password1",
        box.Command("ATCMD", 21, "AT+CREG?", "password1"),
        "the AT tunnel is not used (§10)",
    ),
]


def test_every_datagram_of_a_box_is_in_the_table():
    assert sorted(datagram for datagram, _ in DECODED) == sorted(set(FROM_BOX))


def test_every_datagram_of_a_server_is_in_a_table():
    listed = [datagram for datagram, _ in OURS] + [datagram for datagram, _, _ in OTHERS]
    assert sorted(listed) == sorted(set(FROM_SERVER))


def test_every_line_of_the_corpus_has_a_direction():
    assert len(FROM_BOX) + len(FROM_SERVER) == len(CORPUS) == 155


@pytest.mark.parametrize(("datagram", "expected"), DECODED, ids=[datagram[:40] for datagram, _ in DECODED])
def test_datagram_of_a_box_means(datagram, expected):
    message = wire.decode(datagram.encode())
    assert (type(message), asdict(message)) == expected


@pytest.mark.parametrize(("datagram", "encoded"), OURS, ids=[datagram[:40] for datagram, _ in OURS])
def test_datagram_of_a_server_is_ours_byte_for_byte(datagram, encoded):
    assert encoded == datagram.encode()


@pytest.mark.parametrize(("datagram", "expected", "why"), OTHERS, ids=[datagram[:40] for datagram, _, _ in OTHERS])
def test_datagram_of_another_server_is_understood_by_the_simulated_box(datagram, expected, why):
    assert why
    if expected is box.WireError:
        with pytest.raises(box.WireError):
            box.decode(datagram.encode())
    else:
        assert box.decode(datagram.encode()) == expected
