"""Alive is not progressing: nodes that ping and compute nothing, and links that carry a byte a second."""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from mdi.cluster.member_setup import PeersTimedOut
from mdi.control.client import ControlClient
from mdi.control.status import NodeState, SecondaryStatus
from mdi.model.stage import Stage
from mdi.ring.link import Link
from mdi.segments import Segment
from support.bench import N_TOKENS, PEER_TIMEOUT_S, PROMPTS, TIMEOUTS, Bench, once
from support.logs import before_log
from support.relay import Fault
from support.rings import Machine

pytestmark = pytest.mark.slow

SUPERVISOR = "mdi.cluster.supervisor"
WATCHFUL = replace(TIMEOUTS, slack=10.0)
FORWARD = Stage.forward


class Freezer:
    """Stops the compute thread of a node in the middle of a message, while its other threads go on."""

    def __init__(self) -> None:
        self._frozen: Machine | None = None
        self._thawed = threading.Event()
        self.began_s = 0.0

    def freeze(self, machine: Machine) -> None:
        """From the node's next message on."""
        self._frozen = machine

    def thaw(self) -> None:
        self._frozen = None
        self._thawed.set()

    def pass_through(self) -> None:
        """Called by every compute thread before each message."""
        machine = self._frozen
        if machine is not None and threading.current_thread() is machine._thread:
            self.began_s = time.monotonic()
            self._thawed.wait(300)


@pytest.fixture
def freezer(monkeypatch: pytest.MonkeyPatch) -> Iterator[Freezer]:
    freezer = Freezer()

    def forward(stage: Stage, x: torch.Tensor, segments: Sequence[Segment]) -> torch.Tensor:
        freezer.pass_through()
        return FORWARD(stage, x, segments)

    monkeypatch.setattr(Stage, "forward", forward)
    yield freezer
    freezer.thaw()


@pytest.mark.parametrize("phase", ["prefill", "decode"])
@pytest.mark.parametrize("stuck", [1, 2])
def test_a_node_that_stops_computing_is_found_and_the_others_take_over(
    stuck: int, phase: str, make_bench: Callable[..., Bench], tiny: Path, expected: dict[str, list[list[int]]],
    freezer: Freezer, caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    """Its pings go on, and so does its HTTP: it tells that it computes, and nothing else does."""
    bench = make_bench(3, replace(WATCHFUL, first_patience_s=1.0, max_patience_s=1.0, stall_s=0.5, heartbeat_s=0.1))
    machine, seen = bench.machines[stuck], list[tuple[float, SecondaryStatus]]()
    client = ControlClient("the node", "127.0.0.1", machine.node.http_port)

    def look() -> None:
        status = client.status()
        assert isinstance(status, SecondaryStatus)
        seen.append((time.monotonic() - freezer.began_s, status))

    hooks: dict[str, Any] = {"on_token": once(20, lambda: freezer.freeze(machine))}
    if phase == "prefill":
        hooks = {"before": lambda: freezer.freeze(machine)}
    with contextlib.ExitStack() as stack:
        stack.callback(freezer.thaw)
        stack.enter_context(before_log(SUPERVISOR, "the ring broke: ", look))
        assert bench.run(tiny, node_timeout_s=1.0, **hooks) == expected["greedy"]
        assert bench.starter is not None
        assert bench.starter.status().members == ["starter", f"secondary {2 - stuck}"]
    name = f"secondary {stuck - 1}"
    assert f"{name} has received " in caplog.text
    assert f"going on without {name}, which did not come back within 1 s" in caplog.text
    took_s, status = seen[0]
    assert status.computing_s is not None
    assert status.received > status.computed
    assert took_s < 60.0
    bench.assert_at_rest()


@pytest.mark.parametrize("moment", ["start", "recovering"])
def test_a_node_that_gets_stuck_while_the_ring_closes_counts_as_missing(
    moment: str, make_bench: Callable[..., Bench], tiny: Path, expected: dict[str, list[list[int]]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """It was ready, and its predecessor has connected to it; then its main thread does not connect on."""
    bench, freezer, connect = make_bench(3, replace(TIMEOUTS, stall_s=0.5, heartbeat_s=0.1)), Freezer(), Link.connect

    def connect_unless_frozen(link: Link) -> None:
        freezer.pass_through()
        connect(link)

    monkeypatch.setattr(Link, "connect", connect_unless_frozen)
    with contextlib.ExitStack() as stack:
        stack.callback(freezer.thaw)
        if moment == "start":
            freezer.freeze(bench.machines[1])
            with pytest.raises(PeersTimedOut, match=r"secondary 0 at .*no progress.* Waited 1 s"):
                bench.run(tiny, node_timeout_s=1.0)
            return

        def strike() -> None:
            freezer.freeze(bench.machines[1])
            bench.ring[2].strike(Fault.RESET)

        assert bench.run(tiny, on_token=once(20, strike), node_timeout_s=1.0) == expected["greedy"]
        assert bench.starter is not None
        assert bench.starter.status().members == ["starter", "secondary 1"]
    bench.assert_at_rest()


def test_a_node_that_is_only_slow_for_a_moment_is_left_alone(
    make_bench: Callable[..., Bench], tiny: Path, expected: dict[str, list[list[int]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each third message of a node takes much longer than the others, but not as long as a silence may."""
    bench = make_bench(2, WATCHFUL)
    counted = iter(range(1_000_000))

    def forward(stage: Stage, x: torch.Tensor, segments: Sequence[Segment]) -> torch.Tensor:
        if threading.current_thread() is bench.machines[1]._thread and next(counted) % 3 == 0:
            time.sleep(PEER_TIMEOUT_S / 8)
        return FORWARD(stage, x, segments)

    monkeypatch.setattr(Stage, "forward", forward)
    assert bench.run(tiny, peer_timeout_s=10.0) == expected["greedy"]
    assert bench.n_recoveries == 0


@pytest.mark.parametrize(("phase", "node"), [("decode", 0), ("decode", 1), ("decode", 2), ("prefill", 1), ("end", 2)])
def test_a_link_that_carries_a_byte_a_second_is_broken(
    phase: str, node: int, three: Bench, tiny: Path, expected: dict[str, list[list[int]]],
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    """It is not silent, and whoever pings is heard, in the end."""
    relay = three.ring[node]
    hooks: dict[str, Any] = {"on_token": once(20, lambda: relay.strike(Fault.TRICKLE))}
    if phase == "prefill":
        hooks = {"before": lambda: relay.strike(Fault.TRICKLE)}
    elif phase == "end":
        hooks = {"on_token": once(N_TOKENS * len(PROMPTS), lambda: relay.strike(Fault.TRICKLE))}
    began_s = time.monotonic()
    assert three.run(tiny, peer_timeout_s=2.5, **hooks) == expected["greedy"]  # longer than a byte takes
    assert time.monotonic() - began_s < 120.0  # a message would take an hour
    assert relay.struck.is_set(), "the fault did not happen"
    if phase != "end":
        assert three.n_recoveries >= 1
        assert "is too slow: " in caplog.text
    assert three.starter is not None
    assert three.starter.status().state is NodeState.RUNNING
    three.assert_at_rest()
