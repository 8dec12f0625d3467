"""What a ring should do, from what was measured of its nodes."""

from dataclasses import replace

import pytest

from mdi.cluster.expectation import RingExpectation
from mdi.cluster.forecast import Costs
from mdi.cluster.plan import Plan
from mdi.control.measurement import LayerTime
from mdi.ids import NodeId
from mdi.model.span import spans_of
from support.measured import JOB, network_with


def expectation_of(*layers: int, slowness: tuple[float, ...] = (1, 2)) -> RingExpectation:
    network, times = network_with(*slowness)
    members = tuple(map(NodeId, range(len(layers))))
    return RingExpectation(Costs(network, times, JOB), Plan(members, tuple(spans_of(layers)), n_slots=2, context=512))


def test_the_rate_is_that_of_the_plan_for_so_many_samples() -> None:
    expectation = expectation_of(8, 4)
    # 8 ms on each node and 1 ms for the head, 0.1 ms on each of two links
    assert expectation.tokens_s(1, 100) == pytest.approx(1 / 17.2e-3, rel=0.01)
    assert expectation.tokens_s(2, 100) == pytest.approx(2 / 18e-3, rel=0.01)


def test_each_node_computes_its_layers_and_the_starter_the_head() -> None:
    expectation = expectation_of(8, 4)
    assert expectation.compute_s(4, 2, 100) == {0: pytest.approx(34e-3), 1: pytest.approx(32e-3)}
    assert expectation.compute_s(16, 0, 100) == {0: pytest.approx(128e-3), 1: pytest.approx(128e-3)}


def test_longer_sequences_take_longer_as_measured() -> None:
    network, times = network_with(1, 1)
    layers = tuple(LayerTime(1, context, context * 1e-5) for context in (128, 512))
    times = type(times)(tuple(type(node)(**vars(node) | {"layers": layers}) for node in times.nodes), times.links)
    plan = Plan((NodeId(0), NodeId(1)), tuple(spans_of((6, 6))), n_slots=1, context=512)
    expectation = RingExpectation(Costs(network, times, JOB), plan)
    assert expectation.compute_s(1, 0, 60)[NodeId(1)] == pytest.approx(6 * 1.28e-3)
    assert expectation.compute_s(1, 0, 200)[NodeId(1)] == pytest.approx(6 * 2.56e-3)  # up to the next multiple


def test_frames_are_not_computed_but_take_their_time() -> None:
    network, times = network_with(1, 1)
    nodes = tuple(replace(node, message_s=1e-3, frame_s=2e-3) for node in times.nodes)
    plan = Plan((NodeId(0), NodeId(1)), tuple(spans_of((6, 6))), n_slots=1, context=512)
    expectation = RingExpectation(Costs(network, replace(times, nodes=nodes), JOB), plan)
    assert expectation.compute_s(1, 0, 100) == {0: pytest.approx(7e-3), 1: pytest.approx(7e-3)}
    assert expectation.tokens_s(1, 100) == pytest.approx(1 / (12e-3 + 2 * 3e-3 + 1e-3 + 0.2e-3), rel=0.01)
