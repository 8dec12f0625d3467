"""Fixtures of the tests of whole programs."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import mdi.nodes.starter
from mdi.net.sockets import listen
from mdi.net.timeouts import Timeouts
from support.bench import STYLES, TIMEOUTS, Bench
from support.scripts import Network, write_network


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Network:
    """A nodes file of one node, which is the starter."""
    return write_network(tmp_path_factory.mktemp("alone") / "alone.json", 1)


@pytest.fixture
def make_bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Bench]]:
    with contextlib.ExitStack() as stack:

        def make(n_nodes: int, timeouts: Timeouts = TIMEOUTS) -> Bench:
            bench = Bench(n_nodes, tmp_path / "cache", stack, timeouts=timeouts)
            monkeypatch.setattr(mdi.nodes.starter, "listen", lambda addr, port: listen(addr, bench.behind[port]))
            return bench

        yield make


@pytest.fixture(scope="module")
def lasting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    """Three nodes that live through all the faults of the matrix."""
    with contextlib.ExitStack() as stack:
        yield Bench(3, tmp_path_factory.mktemp("cache"), stack)


@pytest.fixture
def three(lasting: Bench, monkeypatch: pytest.MonkeyPatch) -> Bench:
    monkeypatch.setattr(mdi.nodes.starter, "listen", lambda addr, port: listen(addr, lasting.behind[port]))
    return lasting


@pytest.fixture(scope="module")
def expected(tiny: Path) -> dict[str, list[list[int]]]:
    """What an undisturbed run says: on one node, where nothing can break."""
    with contextlib.ExitStack() as stack:
        alone = Bench(1, Path(), stack)
        return {name: alone.run(tiny, **style) for name, style in STYLES.items()}
