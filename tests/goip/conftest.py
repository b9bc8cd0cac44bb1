"""A bench for the protocol core; see `goip_bench`."""

import pytest
from goip_bench import Bench


@pytest.fixture
def bench() -> Bench:
    """A server with one line, which is online."""
    return Bench()


@pytest.fixture
def fresh() -> Bench:
    """A server with one line, never heard of."""
    return Bench(online=False)
