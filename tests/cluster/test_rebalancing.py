"""A ring is formed anew on a better split when that is worth it, and never goes back and forth."""

import itertools

import pytest

from mdi.cluster.forecast import Costs
from mdi.cluster.plan import Plan
from mdi.cluster.rebalancing import Rebalancing, best_split
from mdi.cluster.returns import QUIET_WAIT_S, NextRing
from mdi.ids import NodeId
from mdi.model.span import spans_of
from support.measured import JOB, network_with

ONE = NodeId(1)
COSTS = Costs(*network_with(1, 1), JOB)


def plan_of(*layers: int) -> Plan:
    return Plan(tuple(map(NodeId, range(len(layers)))), tuple(spans_of(layers)), n_slots=2, context=512)


class Ring:
    """A ring whose plan follows what is due, asked every ten seconds."""

    def __init__(self) -> None:
        self.rebalancing, self.plan, self.now_s = Rebalancing(), plan_of(6, 6), 0.0
        self.changes: list[tuple[float, str]] = []

    def passes(self, seconds: float, slowness: dict[NodeId, float]) -> None:
        for _ in range(int(seconds / 10)):
            self.now_s += 10.0
            found = self.rebalancing.due(self.now_s, COSTS, self.plan, slowness)
            if found is not None:
                self.plan = plan_of(*found.ring.layers)
                self.rebalancing.changed(self.now_s)
                self.changes.append((self.now_s, found.ring.split))


@pytest.fixture
def ring() -> Ring:
    return Ring()


def test_a_node_that_became_slow_gets_fewer_layers() -> None:
    found = best_split(COSTS, plan_of(6, 6), {ONE: 2.0})
    assert found is not None
    assert (found.members, found.ring.split) == ((0, 1), "8,4")
    assert found.gain == pytest.approx(24 / 18, rel=0.01)  # the busiest node: 12 ms for each of two messages, or 9 ms


def test_a_better_split_is_taken_once_it_was_better_for_a_minute(ring: Ring) -> None:
    ring.passes(60, {ONE: 2.0})
    assert ring.changes == []
    ring.passes(10, {ONE: 2.0})
    assert ring.changes == [(70.0, "8,4")]
    ring.passes(3600, {ONE: 2.0})
    assert len(ring.changes) == 1, "what was chosen is the best"


def test_a_gain_that_comes_and_goes_or_is_small_changes_nothing(ring: Ring) -> None:
    for _ in range(20):
        ring.passes(50, {ONE: 2.0})
        ring.passes(10, {ONE: 1.0})
    ring.passes(600, {ONE: 1.15})
    assert ring.changes == []


def test_ten_minutes_lie_between_two_changes(ring: Ring) -> None:
    ring.passes(70, {ONE: 2.0})
    for factor in (1.0, 2.0) * 30:
        ring.passes(120, {ONE: factor})
    times = [at_s for at_s, _ in ring.changes]
    assert len(times) > 2
    assert all(later - earlier >= 600 for earlier, later in itertools.pairwise(times))


def test_a_node_of_which_nothing_is_known_now_is_as_it_was(ring: Ring) -> None:
    ring.passes(70, {ONE: 2.0})
    ring.passes(3600, {})
    assert len(ring.changes) == 1


def test_a_ring_with_a_node_that_was_not_measured_stays_as_it_is() -> None:
    rebalancing = Rebalancing()
    for now_s in range(0, 1000, 10):
        assert rebalancing.due(now_s, COSTS, plan_of(4, 4, 4), {ONE: 9.0}) is None
        assert rebalancing.due(now_s, None, plan_of(6, 6), {ONE: 9.0}) is None


def test_a_better_split_waits_for_a_quiet_moment_and_a_node_does_not() -> None:
    better = NextRing((), plan_of(8, 4), None, found_s=100.0)  # type: ignore[arg-type]
    assert better.is_due(101.0, n_running=0)
    assert not better.is_due(101.0, n_running=2)
    assert better.is_due(100.0 + QUIET_WAIT_S, n_running=2)
    assert NextRing((ONE,), plan_of(8, 4), None, found_s=100.0).is_due(101.0, n_running=2)  # type: ignore[arg-type]
