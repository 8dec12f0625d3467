"""The ring as it is shown: who has which layers, who is missing, and how the nodes spend their time."""

from dataclasses import replace

import pytest

from mdi.cluster.node_watch import NodeNews, Sighting
from mdi.cluster.plan import Plan
from mdi.cluster.ring_view import Rates, rates_between, ring_view
from mdi.config.network import NetworkConfig, NodeConfig
from mdi.ids import NodeId
from mdi.model.span import Span
from mdi.work import Work
from support.statuses import IDLE, STARTING

NETWORK = NetworkConfig(
    NodeConfig("10.0.0.1", 8088, 1, 2), (NodeConfig("10.0.0.2", 8089, 1, 2), NodeConfig("10.0.0.3", 8090, 1, 2))
)
NOW_S = 100.0


def sighting(at_s: float, compute_s: float, transfer_s: float, rows: int = 8) -> Sighting:
    return Sighting(at_s, replace(IDLE, work=Work(compute_s, transfer_s, 0.0, rows)))


@pytest.mark.parametrize(
    ("later", "rates"),
    [
        (sighting(14.0, 2.0, 1.5, 28), Rates(0.5, 0.125, 0.375, 5.0)),
        (sighting(14.0, 3.0, 9.0), Rates(0.75, 0.25, 0.0, 0.0)),  # frames came in while it computed
        (sighting(14.0, 4.5, 1.0), Rates(1.0, 0.0, 0.0, 0.0)),  # its answer was late
        (sighting(10.0, 0.0, 1.0), None),
        (Sighting(14.0, IDLE), None),  # of an earlier version
    ],
)
def test_shares_of_the_time_add_up(later: Sighting, rates: Rates | None) -> None:
    assert rates_between(sighting(10.0, 0.0, 1.0), later) == rates


def test_a_ring_of_two_and_one_that_was_left_out() -> None:
    plan = Plan((NodeId(0), NodeId(2)), (Span(0, 3), Span(3, 8)), n_slots=1, context=9)
    news = {
        NodeId(0): NodeNews(Sighting(NOW_S, replace(STARTING, tokens=30)), Sighting(NOW_S - 4, STARTING)),
        NodeId(1): NodeNews(missing_since_s=NOW_S - 7),
        NodeId(2): NodeNews(sighting(NOW_S, 1.0, 0.0), sighting(NOW_S - 2, 0.0, 0.0)),
    }
    view = ring_view(NETWORK, plan, 3, (), news, NOW_S)
    assert (view.epoch, view.n_layers, view.tokens_per_s) == (3, 8, 7.5)
    starter, last, left_out = view.nodes
    assert (starter.name, starter.rank, starter.span, starter.address) == ("starter", 0, Span(0, 3), "10.0.0.1:8088")
    assert (last.name, last.rank, last.rates) == ("secondary 1", 1, Rates(0.5, 0.0, 0.5, 0.0))
    assert (left_out.name, left_out.rank, left_out.span) == ("secondary 0", None, None)
    assert (left_out.missing_s, left_out.is_up, last.is_up) == (7.0, False, True)


def test_before_anybody_has_answered_nothing_is_known() -> None:
    plan = Plan((NodeId(0),), (Span(0, 8),), n_slots=1, context=9)
    view = ring_view(NETWORK, plan, 1, (), dict.fromkeys(map(NodeId, range(3)), NodeNews()), NOW_S)
    assert view.tokens_per_s == 0.0
    assert all((node.status, node.missing_s, node.rates) == (None, None, None) for node in view.nodes)
