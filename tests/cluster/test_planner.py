"""The planner finds what trying everything finds."""

import random
import time
from collections.abc import Sequence

import pytest

from mdi.cluster import planner
from mdi.cluster.planner import Curve, LinkCosts, NodeCosts, RingPlan, Workload, plan_ring, predict
from mdi.errors import ConfigError
from support.every_ring import drawn_network, most_tokens_s

NEAR = LinkCosts(1e-4, 1e9)


def node(
    name: str, layer_s: float, *, head_s: float = 0.0, max_layers: int = 1000, message_s: float = 0.0
) -> NodeCosts:
    """Costs in proportion to rows, as of a CPU whose arithmetic is the limit."""
    return NodeCosts(name, proportional(layer_s), proportional(head_s), message_s, max_layers)


def proportional(seconds: float) -> Curve:
    return Curve(((1, seconds), (2, 2 * seconds)))


def everywhere(link: LinkCosts, n: int) -> list[list[LinkCosts]]:
    return [[link] * n for _ in range(n)]


def assert_valid(plan: RingPlan, nodes: Sequence[NodeCosts], work: Workload) -> None:
    assert plan.order[0] == 0
    assert len(set(plan.order)) == len(plan.order) == len(plan.layers)
    assert sum(plan.layers) == work.n_layers
    assert all(1 <= count <= nodes[index].max_layers for index, count in zip(plan.order, plan.layers, strict=True))


def assert_best(rng: random.Random, n_nodes: int, n_layers: int) -> None:
    """One network that is drawn is planned as well as it can be."""
    nodes, links, work = drawn_network(rng, n_nodes, n_layers)
    best = most_tokens_s(nodes, links, work)
    if best == 0.0:
        with pytest.raises(ConfigError):
            plan_ring(nodes, links, work)
        return
    plan = plan_ring(nodes, links, work)
    assert_valid(plan, nodes, work)
    assert plan.prediction.tokens_s == pytest.approx(best, rel=1e-9)


def test_it_finds_what_trying_everything_finds() -> None:
    rng = random.Random(1)
    for _ in range(300):
        assert_best(rng, rng.randint(1, 4), rng.randint(1, 7))


@pytest.mark.slow
def test_it_finds_what_trying_everything_finds_on_thousands_of_networks() -> None:
    rng = random.Random(5)
    for _ in range(3000):
        assert_best(rng, rng.randint(1, 5), rng.randint(1, 8))


@pytest.mark.slow
def test_it_finds_what_trying_everything_finds_on_as_many_nodes_as_it_is_exact_for() -> None:
    rng = random.Random(6)
    for n_layers in (8, 9, 12):
        assert_best(rng, planner.MAX_EXACT_NODES, n_layers)


@pytest.mark.slow
def test_many_nodes_are_planned_nearly_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    """Against the exact search, on rings that it can still do."""
    rng = random.Random(2)
    shares = []
    for _ in range(60):
        nodes, links, work = drawn_network(rng, 6, 24)
        nodes = [NodeCosts(n.name, n.layer, n.head, n.message_s, max(n.max_layers, 8)) for n in nodes]
        exact = plan_ring(nodes, links, work)
        monkeypatch.setattr(planner, "MAX_EXACT_NODES", 0)
        found = plan_ring(nodes, links, work)
        monkeypatch.undo()
        assert_valid(found, nodes, work)
        shares.append(found.prediction.tokens_s / exact.prediction.tokens_s)
    assert max(shares) <= 1 + 1e-9
    assert sorted(shares)[len(shares) // 2] > 0.999
    assert sum(share < 0.95 for share in shares) <= 3
    assert min(shares) > 0.75  # of links drawn at random, where a node with one layer may pay as a detour


@pytest.mark.parametrize("are_alike", [False, True])
def test_a_hundred_nodes_and_eighty_layers_take_a_second(are_alike: bool) -> None:
    """Ten times that, on a machine that is busy."""
    nodes, links, work = drawn_network(random.Random(3), 100, 80)
    if are_alike:
        nodes = [node(f"pi{i}", 20e-3, head_s=10e-3 * (i == 0)) for i in range(100)]
        links, work = everywhere(NEAR, 100), Workload(80, 8192, 100)
    begun_s = time.process_time()
    assert_valid(plan_ring(nodes, links, work), nodes, work)
    assert time.process_time() - begun_s < 10


def test_a_slow_node_is_left_out_where_it_costs_more_than_it_gives() -> None:
    nodes = [node("desktop", 1e-3), node("pi", 50e-3)]
    assert plan_ring(nodes, everywhere(NEAR, 2), Workload(20, 4096, 1)).order == (0,)
    both = plan_ring(nodes, everywhere(NEAR, 2), Workload(60, 4096, 2))
    assert both.order == (0, 1)
    assert both.layers == (59, 1)


def test_equal_nodes_share_the_layers_and_what_the_head_costs() -> None:
    nodes = [node("a", 1e-3, head_s=4e-3), node("b", 1e-3), node("c", 1e-3)]
    plan = plan_ring(nodes, everywhere(NEAR, 3), Workload(26, 4096, 3))
    assert sorted(plan.layers) == [6, 10, 10]
    assert plan.layers[0] == 6


def test_one_sample_wants_the_fastest_node_alone_and_many_want_all() -> None:
    nodes = [node("a", 1e-3), node("b", 1e-3)]
    assert plan_ring(nodes, everywhere(NEAR, 2), Workload(20, 4096, 1)).order == (0,)
    assert plan_ring(nodes, everywhere(NEAR, 2), Workload(20, 4096, 2)).layers == (10, 10)


def test_memory_is_a_limit_and_what_is_missing_is_told() -> None:
    nodes = [node("fast", 1e-4, max_layers=3), node("slow", 1e-2, max_layers=9)]
    assert plan_ring(nodes, everywhere(NEAR, 2), Workload(12, 4096, 1)).layers == (3, 9)
    with pytest.raises(ConfigError, match="memory for 12 layers of 14 on 2 nodes: 2 too few"):
        plan_ring(nodes, everywhere(NEAR, 2), Workload(14, 4096, 1))


def test_the_order_avoids_slow_links() -> None:
    nodes = [node(name, 1e-3) for name in "abc"]
    links = everywhere(NEAR, 3)
    links[0][1] = links[1][2] = links[2][0] = LinkCosts(0.5, 1e9)
    assert plan_ring(nodes, links, Workload(30, 4096, 3)).order == (0, 2, 1)


def test_the_bottleneck_is_named() -> None:
    nodes, thin = [node("a", 1e-3), node("b", 1e-3)], LinkCosts(1e-4, 1e4)
    fast = predict(nodes, everywhere(NEAR, 2), Workload(8, 4096, 1), (0, 1), (4, 4))
    assert (fast.bottleneck, fast.tokens_s) == ("the trip of a message", pytest.approx(1 / 8.208192e-3))
    assert predict(nodes, everywhere(NEAR, 2), Workload(8, 10, 2), (0, 1), (6, 2)).bottleneck == "the computing of a"
    links = [[NEAR, thin], [NEAR, NEAR]]
    assert predict(nodes, links, Workload(8, 4096, 8), (0, 1), (4, 4)).bottleneck == "the link from a to b"


@pytest.mark.parametrize(("rows", "seconds"), [(1, 1.0), (2, 1.5), (3, 2.0), (5, 3.0), (7, 4.0), (11, 6.0)])
def test_costs_between_and_beyond_what_was_measured(rows: int, seconds: float) -> None:
    assert Curve(((1, 1.0), (3, 2.0), (7, 4.0))).at(rows) == pytest.approx(seconds)


@pytest.mark.parametrize(
    ("points", "expected"),
    [
        ([(1, 2.0), (4, 3.0)], [2.0, 3.0, 3.0 + 12 / 3]),
        ([(4, 1.0), (1, 3.0)], [2.0, 2.0, 2.0]),  # in any order; what falls is its mean, and stays it
        ([(1, 1.0), (4, 5.0), (8, 3.0)], [1.0, 4.0, 4.0]),
        ([(1, 4.0), (4, 3.0), (8, 2.0)], [3.0, 3.0, 3.0]),
    ],
)
def test_measured_costs_never_fall(points: list[tuple[int, float]], expected: list[float]) -> None:
    curve = Curve.measured(points)
    assert [curve.at(rows) for rows in (1, 4, 16)] == pytest.approx(expected)


def test_samples_are_spread_over_as_many_messages_as_nodes() -> None:
    assert [Workload(1, 1, n).messages(3) for n in (1, 2, 3, 5, 7)] == [[1], [1, 1], [1, 1, 1], [2, 2, 1], [3, 2, 2]]


def test_a_ring_of_all_nodes_can_be_asked_for() -> None:
    nodes = [node("desktop", 1e-3), node("pi", 50e-3)]
    work = Workload(20, 4096, 1)
    assert plan_ring(nodes, everywhere(NEAR, 2), work).order == (0,)
    assert plan_ring(nodes, everywhere(NEAR, 2), work, use_all=True).layers == (19, 1)
    rng = random.Random(4)
    for n_nodes in (3, 10):  # as a search, and beyond it
        many, links, work = drawn_network(rng, n_nodes, 24)
        many = [NodeCosts(n.name, n.layer, n.head, n.message_s, 24) for n in many]
        plan = plan_ring(many, links, work, use_all=True)
        assert_valid(plan, many, work)
        assert len(plan.order) == n_nodes
        assert plan.prediction.tokens_s <= plan_ring(many, links, work).prediction.tokens_s * (1 + 1e-9)


def test_a_node_without_memory_for_a_layer_is_left_out_and_a_starter_cannot_be() -> None:
    nodes = [node("a", 1e-3), node("full", 1e-3, max_layers=0), node("b", 1e-3)]
    assert set(plan_ring(nodes, everywhere(NEAR, 3), Workload(20, 4096, 8)).order) == {0, 2}
    with pytest.raises(ConfigError, match="cannot be spread over all of 3 nodes"):
        plan_ring(nodes, everywhere(NEAR, 3), Workload(20, 4096, 8), use_all=True)
    nodes[0] = node("a", 1e-3, max_layers=0)
    with pytest.raises(ConfigError, match="a has no memory for a single layer beside the embedding and the head"):
        plan_ring(nodes, everywhere(NEAR, 3), Workload(20, 4096, 8))


def first_token_s(prompt_rows: int, layers: tuple[int, ...] = (2, 3, 4), link: LinkCosts = NEAR) -> float:
    """On nodes of which the second is the busiest: 9 ms for a row."""
    nodes = [node("a", 1e-3, head_s=2e-3), node("b", 3e-3), node("c", 1e-3)]
    order = tuple(range(len(layers)))
    work = Workload(sum(layers), 100, 1)
    return planner.first_token_s(
        nodes, everywhere(link, 3), work, order, layers, prompt_rows=prompt_rows, piece_rows=128
    )


def test_the_first_token_of_a_short_prompt_comes_after_one_trip() -> None:
    assert first_token_s(1, (9,)) == pytest.approx(9e-3 + 2e-3)
    assert first_token_s(1) == pytest.approx(2e-3 + 9e-3 + 4e-3 + 3e-4 + 2e-3, abs=1e-6)
    assert first_token_s(128) == pytest.approx(128 * 15e-3 + 3e-4 + 2e-3, abs=1e-4)


def test_pieces_of_a_prompt_come_out_as_fast_as_the_busiest_node_takes_them() -> None:
    assert first_token_s(512) == pytest.approx(128 * (15e-3 + 3 * 9e-3) + 3e-4 + 2e-3, abs=1e-4)


def test_a_link_holds_pieces_up_like_a_node() -> None:
    """It takes 1.28 s for a piece, and the busiest node 1.152 s."""
    slow = LinkCosts(0.0, 1e4)
    trip_s = 128 * 15e-3 + 2 * 1.28
    assert first_token_s(256, link=slow) == pytest.approx(trip_s + 1.28 + 2e-3, abs=1e-4)
