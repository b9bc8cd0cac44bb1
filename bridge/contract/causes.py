"""Why an SMS did not go out, or did not arrive, in words: one table for facts, the log, `goip-bridge send` and
docs/causes.md.

A gateway's errorstatus is read as a +CMS ERROR (3GPP 27.005 §3.2.5: below 128 a cause of the network, 3GPP 24.011 annex
E). That is a guess (docs/protocol.md §4.5). A delivery report has a TP-Status (3GPP 23.040 §9.2.3.15).
"""

from typing import NamedTuple


class Cause(NamedTuple):
    """One code."""

    word: str
    "For programs; never changes."
    meaning: str
    "For people: goes on after the code and a comma."
    ambiguous: bool = False
    "The SMS may have gone out all the same: the network did not answer, or failed on the way."
    passing: bool = False
    "Sending it again later may work."


OTHER = "other"

ERRORSTATUS = {
    1: Cause("general", "boxes say 1 for most failures; by the standard the number is not assigned"),
    8: Cause("operator_barred", "the operator has barred this SIM"),
    10: Cause("call_barred", "outgoing SMS are barred for this SIM"),
    21: Cause("rejected", "SMS rejected by the network"),
    27: Cause("destination_out_of_order", "the recipient's phone can't be reached: out of order"),
    28: Cause("unidentified_subscriber", "the number is not one of a subscriber"),
    29: Cause("facility_rejected", "the network rejects this service"),
    30: Cause("unknown_subscriber", "the number is not known to the network"),
    38: Cause("network_out_of_order", "network out of order", ambiguous=True, passing=True),
    41: Cause("temporary_failure", "temporary failure of the network", ambiguous=True, passing=True),
    42: Cause("congestion", "network congested", ambiguous=True, passing=True),
    47: Cause("no_resources", "the network has no resources left", ambiguous=True, passing=True),
    50: Cause("not_subscribed", "SMS are not part of this SIM's contract"),
    69: Cause("not_implemented", "the network does not have this service"),
    81: Cause("invalid_reference", "invalid reference of the SMS"),
    95: Cause("invalid_message", "the network calls the SMS invalid"),
    96: Cause("invalid_information", "mandatory information is invalid"),
    97: Cause("unknown_message_type", "the network does not know this type of message"),
    98: Cause("message_out_of_state", "the message does not fit the state of the protocol"),
    99: Cause("unknown_element", "the network does not know an element of the message"),
    111: Cause("protocol_error", "protocol error", ambiguous=True),
    127: Cause("interworking", "failure between two networks", ambiguous=True),
    128: Cause("telematic_interworking", "telematic interworking is not supported"),
    129: Cause("type_0_not_supported", "SMS of type 0 are not supported"),
    130: Cause("cannot_replace", "the earlier SMS can't be replaced"),
    143: Cause("pid_error", "protocol identifier not accepted"),
    144: Cause("alphabet_not_supported", "alphabet not supported"),
    145: Cause("class_not_supported", "message class not supported"),
    159: Cause("dcs_error", "data coding scheme not accepted"),
    160: Cause("command_not_actioned", "the command can't be carried out"),
    161: Cause("command_not_supported", "command not supported"),
    175: Cause("command_error", "command not accepted"),
    176: Cause("tpdu_not_supported", "this kind of SMS is not supported"),
    192: Cause("sc_busy", "SMS centre busy"),
    193: Cause("no_sc_subscription", "this SIM has no subscription at the SMS centre"),
    194: Cause("sc_failure", "failure of the SMS centre"),
    195: Cause("invalid_address", "the SMS centre calls the number invalid"),
    196: Cause("destination_barred", "the recipient is barred"),
    197: Cause("duplicate", "rejected as a duplicate"),
    198: Cause("vpf_not_supported", "format of the validity period not supported"),
    199: Cause("vp_not_supported", "validity period not supported"),
    208: Cause("sim_full", "SMS storage of the SIM full"),
    209: Cause("no_sim_storage", "the SIM has no room for SMS"),
    210: Cause("phone_error", "error in the module"),
    211: Cause("memory_exceeded", "memory full"),
    212: Cause("toolkit_busy", "SIM application toolkit busy"),
    213: Cause("download_error", "error while data was loaded to the SIM"),
    255: Cause("unspecified", "no cause given"),
    300: Cause("module_failure", "failure of the module"),
    301: Cause("service_reserved", "the SMS service of the module is in use"),
    302: Cause("not_allowed", "not allowed"),
    303: Cause("not_supported", "not supported by the module"),
    304: Cause("invalid_pdu", "invalid parameter in PDU mode"),
    305: Cause("invalid_text_mode", "invalid parameter in text mode"),
    310: Cause("sim_missing", "no SIM in the module"),
    311: Cause("sim_pin", "the SIM wants its PIN"),
    312: Cause("phone_pin", "the module is locked to another SIM and wants its PIN"),
    313: Cause("sim_failure", "failure of the SIM"),
    314: Cause("sim_busy", "SIM busy"),
    315: Cause("sim_wrong", "wrong SIM"),
    316: Cause("sim_puk", "the SIM wants its PUK"),
    317: Cause("sim_pin2", "the SIM wants its PIN2"),
    318: Cause("sim_puk2", "the SIM wants its PUK2"),
    320: Cause("memory_failure", "failure of the memory"),
    321: Cause("invalid_index", "no such place in the memory"),
    322: Cause("memory_full", "memory full"),
    330: Cause("smsc_unknown", "the number of the SMS centre is not set in the SIM or the gateway"),
    331: Cause("no_network", "no network", passing=True),
    332: Cause("network_timeout", "the network did not answer in time", ambiguous=True, passing=True),
    340: Cause("no_acknowledgement", "an acknowledgement was expected that did not come"),
    500: Cause("unknown_error", "unknown error", ambiguous=True, passing=True),
}  # fmt: skip
"By the gateway's errorstatus."

TP_STATUS = {
    64: Cause("remote_procedure_error", "remote procedure error"),
    65: Cause("incompatible_destination", "the phone can't take it"),
    66: Cause("connection_rejected", "connection rejected by the phone"),
    67: Cause("not_obtainable", "the phone can't be reached"),
    68: Cause("no_quality_of_service", "quality of service not available"),
    69: Cause("no_interworking", "no way into the other network"),
    70: Cause("validity_expired", "it was kept for as long as it was valid, and the phone did not come"),
    71: Cause("deleted_by_sender", "deleted by the sender"),
    72: Cause("deleted_by_sc", "deleted by the SMS centre"),
    73: Cause("does_not_exist", "the SMS centre does not know this SMS"),
    96: Cause("congestion", "network congested; given up", passing=True),
    97: Cause("phone_busy", "phone busy; given up", passing=True),
    98: Cause("no_response", "no answer from the phone; given up", passing=True),
    99: Cause("service_rejected", "service rejected; given up", passing=True),
    100: Cause("no_quality_of_service", "quality of service not available; given up", passing=True),
    101: Cause("phone_error", "error in the phone; given up", passing=True),
}
"By the TP-Status of a delivery report; those below 64 are no failures."


def of_errorstatus(code: int) -> Cause:
    """The cause of a `failed` SMS."""
    return ERRORSTATUS.get(code) or Cause(OTHER, "a cause that the standard does not name")


def of_report(status: int) -> Cause:
    """The cause of an `undelivered` SMS. From 96 on the network gave up, and may not do so another time."""
    return TP_STATUS.get(status) or Cause(OTHER, "a status that the standard does not name", passing=status >= 96)
