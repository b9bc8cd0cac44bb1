"""The broker of the tests (see broker_fixture.py)."""

from broker_fixture import (
    broker,
    pytest_collection_modifyitems,
    pytest_configure,
    pytest_report_header,
    pytest_terminal_summary,
    run_mosquitto,
)

__all__ = [
    "broker",
    "pytest_collection_modifyitems",
    "pytest_configure",
    "pytest_report_header",
    "pytest_terminal_summary",
    "run_mosquitto",
]

collect_ignore = ["homeassistant"]
"For another Python, with Home Assistant in it: `make test-homeassistant`."
