"""Fixtures of the tests of whole programs."""

import pytest

from support.scripts import Network, write_network


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Network:
    """A nodes file of one node, which is the starter."""
    return write_network(tmp_path_factory.mktemp("alone") / "alone.json", 1)
