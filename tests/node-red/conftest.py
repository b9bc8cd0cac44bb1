"""The tests of what others made with node: Node-RED's flows, the AsyncAPI document's parser, and an SMS server.

Collected only by `make test-node-red`, which installs what they need and says where: an ordinary `make test` needs no
node.
"""

import os
from pathlib import Path

import pytest

NODE = os.environ.get("GOIP_TEST_NODE")
collect_ignore_glob = [] if NODE else ["test_*.py"]


@pytest.fixture(scope="session")
def node_modules() -> Path:
    assert NODE is not None
    return Path(NODE) / "node_modules"
