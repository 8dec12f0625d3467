"""Who can end whom over HTTP: a node that works on another run by now goes on."""

from pathlib import Path

import pytest

from mdi.control.client import ControlClient
from mdi.control.protocol import NodeBusy
from support.runs import ENDLESS, start_run, wait_until_generating
from support.scripts import Network, Process, Scripts, call, wait_until

pytestmark = pytest.mark.slow


def test_a_stop_of_another_run_ends_neither_a_starter_nor_a_secondary(
    kept: tuple[Network, list[Process]], scripts: Scripts, long_model: Path
) -> None:
    network, secondaries = kept
    starter = start_run(scripts, network, long_model, *ENDLESS)
    wait_until_generating(network, starter)
    head = ControlClient("starter", "127.0.0.1", network.http_port(0))
    member = ControlClient("secondary 0", "127.0.0.1", network.http_port(1))
    run = head.status().run
    assert run is not None
    with pytest.raises(NodeBusy, match=f"starter at .* refused: this starter works on run {run}, not on {run + 1}"):
        head.stop(run + 1)
    with pytest.raises(NodeBusy, match="refused: this is a starter; it takes no /release"):
        head.release(run)
    with pytest.raises(NodeBusy, match=f"refused: this node serves another run than {run + 1} by now"):
        member.stop(run + 1)
    n_tokens = int(call(network.http_port(0))["tokens"])
    wait_until(lambda: int(call(network.http_port(0)).get("tokens") or 0) > n_tokens + 30, 60, "it goes on")
    head.stop(run)
    assert starter.result(60.0).code == 143
    assert all(secondary.alive for secondary in secondaries)
