"""A ring of real nodes gets another key, while it is used."""

import contextlib
from dataclasses import replace
from pathlib import Path

import pytest

import mdi.nodes.starter
from mdi.config.network import NetworkConfig
from mdi.net.access import Access
from mdi.net.keys import Key, Keys
from mdi.net.sockets import listen
from support.bench import Bench, once

pytestmark = pytest.mark.slow

OLD, NEW = Key("correct horse battery staple", "test"), Key("another horse, another staple", "test")
BEFORE, MEANWHILE, AFTER = Access(Keys(OLD)), Access(Keys(NEW, OLD)), Access(Keys(NEW))


def restart_secondary(bench: Bench, number: int, access: Access) -> None:
    machine = bench.machines[number]
    machine.kill()
    machine.node = replace(machine.node, access=access)
    machine.start()


def restart_starter(bench: Bench, access: Access) -> None:
    """From the next run on the starter has these keys."""
    starter, *secondaries = (replace(node, access=access) for node in bench.network.nodes)
    bench.network = NetworkConfig(starter, tuple(secondaries))


def test_a_ring_gets_a_new_key_node_by_node(
    tiny: Path, expected: dict[str, list[list[int]]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first node is restarted within a run, which goes on with it; the others between two runs."""
    with contextlib.ExitStack() as stack:
        bench = Bench(3, tmp_path / "cache", stack, BEFORE)
        monkeypatch.setattr(mdi.nodes.starter, "listen", lambda addr, port: listen(addr, bench.behind[port]))
        assert bench.run(tiny) == expected["greedy"]
        restart = once(20, lambda: restart_secondary(bench, 1, MEANWHILE))
        assert bench.run(tiny, on_token=restart) == expected["greedy"]
        assert bench.n_recoveries >= 1
        assert bench.run(tiny) == expected["greedy"]
        for access in (MEANWHILE, AFTER):
            restart_starter(bench, access)
            assert bench.run(tiny) == expected["greedy"]
            for number in (2, 1):
                restart_secondary(bench, number, access)
                assert bench.run(tiny) == expected["greedy"]
        bench.assert_at_rest()
