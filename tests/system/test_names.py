"""Nodes whose addresses are names: containers come back with the name that they had, and another address."""

import socket
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mdi.config.network import NetworkConfig
from mdi.config.options import StarterOptions
from mdi.engine.sample import Outcome, Sample
from support.bench import TIMEOUTS
from support.logs import whenever_logged
from support.rings import ANY_PORT, Machine, ring_of, starter_for
from support.scripts import free_ports

pytestmark = pytest.mark.slow

STARTER, SECONDARY = "starter-0.mdi", "secondary-0.mdi"
PROMPTS = [list(range(5, 25)), [9]]
N_TOKENS = 12


@pytest.fixture
def addresses(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """What the name service knows of the names that end in `.mdi`."""
    known: dict[str, str] = {}
    really = socket.getaddrinfo

    def resolve(host: Any, *arguments: Any, **options: Any) -> Any:
        if str(host).endswith(".mdi") and host not in known:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return really(known.get(host, host), *arguments, **options)

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    return known


def test_a_node_that_comes_back_at_another_address_is_found_by_its_name(
    addresses: dict[str, str], tiny: Path, tmp_path: Path
) -> None:
    (before, after), machine = other_loopback_addresses(), Machine(tmp_path / "cache", TIMEOUTS)
    machine.node = replace(machine.node, addr=SECONDARY, listen=before)
    addresses |= {STARTER: "127.0.0.1", SECONDARY: before}
    http_port, port_in = free_ports(2)
    starter = replace(ANY_PORT, addr=STARTER, listen="127.0.0.1", http_port=http_port, port_in=port_in)

    def lose(sample: Sample, outcome: Outcome) -> None:
        if sample.number == 0 and len(sample.tokens) == N_TOKENS // 2:
            machine.kill()
            del addresses[SECONDARY]

    def return_elsewhere() -> None:
        addresses[SECONDARY] = after
        machine.node = replace(machine.node, listen=after)
        machine.start()

    options = StarterOptions(
        ckpt=tiny, dtype="float32", temperature=0.0, ignore_eos=True, n_tokens=N_TOKENS, node_timeout_s=60.0
    )
    run = starter_for(NetworkConfig(starter, (machine.node,)), options, PROMPTS, sink=lose, timeouts=TIMEOUTS)
    machine.start()
    try:
        with whenever_logged("mdi.cluster.supervisor", "is lost: ", return_elsewhere), run as (running, samples):
            running.prepare()
            running.run()
    finally:
        machine.kill()
    assert running.n_recoveries == 1
    with ring_of(1, tmp_path / "none") as alone:
        assert [s.tokens for s in samples] == alone.generate(tiny, PROMPTS, n_tokens=N_TOKENS)


def other_loopback_addresses() -> tuple[str, str]:
    """Two that this machine has besides 127.0.0.1: Linux has them all, macOS none."""
    found = "127.0.0.2", "127.0.0.3"
    for address in found:
        with socket.socket() as probe:
            try:
                probe.bind((address, 0))
            except OSError:
                pytest.skip("this system has one loopback address")
    return found
