"""The broker of the tests (see broker_fixture.py), and the output of their processes (see outputs.py)."""

from broker_fixture import (
    broker,
    pytest_collection_modifyitems,
    pytest_configure,
    pytest_report_header,
    pytest_runtest_setup,
    pytest_terminal_summary,
    run_mosquitto,
    start_broker,
)
from outputs import pytest_runtest_logstart, pytest_runtest_makereport

__all__ = [
    "broker",
    "pytest_collection_modifyitems",
    "pytest_configure",
    "pytest_report_header",
    "pytest_runtest_logstart",
    "pytest_runtest_makereport",
    "pytest_runtest_setup",
    "pytest_terminal_summary",
    "run_mosquitto",
    "start_broker",
]

collect_ignore = ["homeassistant"]
"For another Python, with Home Assistant in it: `make test-homeassistant`."
