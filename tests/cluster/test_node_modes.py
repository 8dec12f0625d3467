"""How each node holds its weights, where a plan may choose."""

import itertools
import random
from collections.abc import Sequence
from dataclasses import replace

import pytest

from mdi.cluster.node_modes import choose_modes
from mdi.cluster.planner import Curve, LinkCosts, NodeCosts, Workload, plan_ring
from mdi.errors import ConfigError
from support.every_ring import drawn_network, most_tokens_s

NEAR = LinkCosts(1e-4, 1e9)


def held_otherwise(rng: random.Random, node: NodeCosts) -> NodeCosts:
    """The same node: faster or slower, for few rows or for many; with more room."""
    layer = Curve(tuple((rows, node.layer.at(rows) * 2 ** rng.uniform(-2, 1)) for rows in (1, 4, 16)))
    head = Curve(tuple((rows, node.head.at(rows) * 2 ** rng.uniform(-2, 1)) for rows in (1, 16)))
    return replace(node, layer=layer, head=head, max_layers=rng.randint(1, 2) * node.max_layers)


def rate(choices: Sequence[Sequence[NodeCosts]], taken: Sequence[int], links: Sequence[Sequence[LinkCosts]],
         work: Workload) -> float:  # fmt: skip
    return plan_ring([own[k] for own, k in zip(choices, taken, strict=True)], links, work).prediction.tokens_s


def test_it_chooses_what_trying_everything_chooses() -> None:
    rng = random.Random(1)
    for _ in range(60):
        nodes, links, work = drawn_network(rng, rng.randint(1, 4), rng.randint(1, 6))
        choices = [[node, *(held_otherwise(rng, node) for _ in range(rng.randint(0, 2)))] for node in nodes]
        every = itertools.product(*(range(len(own)) for own in choices))
        best = max(most_tokens_s([own[k] for own, k in zip(choices, ks, strict=True)], links, work) for ks in every)
        if best == 0.0:
            with pytest.raises(ConfigError):
                choose_modes(choices, links, work)
            continue
        assert rate(choices, choose_modes(choices, links, work, worth=0.0), links, work) == pytest.approx(
            best, rel=1e-6
        )
        assert rate(choices, choose_modes(choices, links, work), links, work) >= 0.98 * best


def node(layer_s: float, max_layers: int = 100, name: str = "a") -> NodeCosts:
    return NodeCosts(name, Curve(((1, layer_s),)), Curve(((1, 0.0),)), 0.0, max_layers)


def choose(*choices: tuple[NodeCosts, ...], n_layers: int = 30, n_samples: int = 2) -> tuple[int, ...]:
    links = [[NEAR] * len(choices)] * len(choices)
    return choose_modes(choices, links, Workload(n_layers, 1000, n_samples))


def test_a_board_is_quantized_beside_a_gpu_that_is_slower_with_it() -> None:
    gpu, board = (node(1e-4, 20), node(3e-4, 40)), (node(2e-3), node(3e-4))
    assert choose(gpu, board, n_samples=8) == (0, 1)


def test_weights_stay_exact_where_that_costs_little() -> None:
    assert choose((node(1e-3), node(0.99e-3))) == (0,)
    assert choose((node(1e-3), node(0.9e-3))) == (1,)
    waits_for_the_other = (node(1e-3, 15), node(0.5e-3, 15))
    assert choose((node(5e-3, 15),), waits_for_the_other, n_layers=30, n_samples=8) == (0, 0)


def test_what_fits_only_quantized_is() -> None:
    assert choose((node(1e-3, 20), node(2e-3, 40))) == (1,)
    with pytest.raises(ConfigError, match="memory for 25 layers of 30"):
        choose((node(1e-3, 20), node(2e-3, 25)))


def test_a_node_that_takes_no_part_is_left_as_it_is() -> None:
    assert choose((node(1e-3),), (node(1.0), node(0.9)), n_samples=1) == (0, 0)


def test_many_nodes_are_chosen_for_too() -> None:
    """Half of them are faster quantized, and those are."""
    choices = [(node(1e-3, 4), node(1e-3 * (0.25 if i % 2 else 4), 4)) for i in range(12)]
    taken = choose(*choices, n_layers=40, n_samples=12)
    assert all(k == 0 for k in taken[::2]) and any(taken[1::2])
