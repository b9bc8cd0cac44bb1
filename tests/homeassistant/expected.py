"""The entities that Home Assistant has to have, for the contacts and lines of conftest.py.

Each table: the key, the platform, the category (- for none) and whether it is off until the user enables it. The unique
id is `<device>_<key>` and the entity id `<platform>.<device>_<key>`, with the device as in its discovery topic.
"""

from dataclasses import dataclass

LINE = """
    sms_in          event          -            on
    delivery        event          -            on
    call            event          -            on
    ussd            event          -            on
    notify_anna     notify         -            on
    notify_ben      notify         -            on
    notify_notify   notify         -            on
    notify_family   notify         -            on
    signal          sensor         diagnostic   on
    signal_pct      sensor         diagnostic   off
    gsm             sensor         diagnostic   on
    operator        sensor         diagnostic   on
    cell            sensor         diagnostic   off
    call_state      sensor         -            on
    talk_left       sensor         diagnostic   off
    queue           sensor         diagnostic   on
    sent            sensor         diagnostic   on
    failed          sensor         diagnostic   on
    delivered       sensor         diagnostic   off
    received        sensor         diagnostic   off
    last_seen       sensor         diagnostic   off
    last_sms_at     sensor         -            on
    number          sensor         diagnostic   off
    iccid           sensor         diagnostic   off
    imei            sensor         diagnostic   off
    registered      binary_sensor  diagnostic   on
    voip            binary_sensor  diagnostic   off
    in_call         binary_sensor  -            on
    problem         binary_sensor  diagnostic   on
    online          binary_sensor  diagnostic   on
    module          switch         config       on
    exp_time        number         config       off
    call_interval   number         config       off
    ussd_code       text           config       on
    call_drop       button         -            on
    module_reboot   button         config       on
    refresh         button         diagnostic   on
"""

GATEWAY = """
    lines_online    sensor         diagnostic   on
    reboot          button         config       on
"""

BRIDGE = """
    connected       binary_sensor  diagnostic   on
    version         sensor         diagnostic   on
    uptime          sensor         diagnostic   on
    outbox          sensor         diagnostic   on
    outbox_age      sensor         diagnostic   on
    reconnects      sensor         diagnostic   on
    event           event          diagnostic   on
    restart         button         config       on
"""

TRIGGERS = {("sms_received", "SMS received"), ("call_ringing", "Call ringing")}
"Type and subtype of a line's device triggers."


@dataclass(frozen=True, order=True)
class Row:
    """One entity as Home Assistant's registry has it."""

    unique_id: str
    entity_id: str
    platform: str
    category: str | None
    enabled: bool


def rows(device: str, table: str) -> list[Row]:
    """The entities of a device."""
    found = []
    for line in table.strip().splitlines():
        key, platform, category, enabled = line.split()
        found.append(
            Row(
                unique_id=f"{device}_{key}",
                entity_id=f"{platform}.{device}_{key}",
                platform=platform,
                category=None if category == "-" else category,
                enabled=enabled == "on",
            )
        )
    return found
