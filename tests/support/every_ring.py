"""Networks drawn at random, and the best ring of each by trying every one.

N nodes, L layers; k nodes take part, in P orders, with C splits.
"""

import functools
import itertools
import random
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from mdi.cluster.planner import Curve, LinkCosts, Links, NodeCosts, Workload

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]


def drawn_network(
    rng: random.Random, n_nodes: int, n_layers: int
) -> tuple[list[NodeCosts], list[list[LinkCosts]], Workload]:
    """Uneven machines and links of every kind."""
    nodes = []
    for i in range(n_nodes):
        layer_s = 10 ** rng.uniform(-4, -2)
        layer = Curve(((1, layer_s), (4, layer_s * rng.uniform(1, 2)), (16, layer_s * rng.uniform(2, 8))))
        head = Curve(((1, layer_s * rng.uniform(0, 5)), (16, layer_s * rng.uniform(5, 20))))
        nodes.append(NodeCosts(f"n{i}", layer, head, rng.choice([0.0, 1e-3]), rng.randint(1, n_layers + 1)))
    links = [
        [LinkCosts(10 ** rng.uniform(-4, -1.5), 10 ** rng.uniform(5, 9)) for _ in range(n_nodes)]
        for _ in range(n_nodes)
    ]
    return nodes, links, Workload(n_layers, rng.choice([1000, 10_000]), rng.choice([1, 2, 3, 5, 16]))


def most_tokens_s(nodes: Sequence[NodeCosts], links: Links, work: Workload) -> float:
    """Tokens a second of the best among all choices of nodes, orders and splits; 0 where none holds the model.

    Reckoned from what a round is, and not by the planner's functions.
    """
    sizes = range(1, min(len(nodes), work.n_layers) + 1)
    shortest_s = min(_shortest_round_s(nodes, links, work, k) for k in sizes)
    return 0.0 if shortest_s == np.inf else work.n_samples / shortest_s


def _shortest_round_s(nodes: Sequence[NodeCosts], links: Links, work: Workload, k: int) -> float:
    """Of the rings of k nodes; infinite where none holds the model."""
    rows = _rows_of_messages(work.n_samples, k)
    orders, splits = _orders(len(nodes), k), _splits(work.n_layers, k)  # (P, k), (C, k)
    empty = np.array([[n.message_s + (n.head.at(r) if not i else 0.0) for r in rows] for i, n in enumerate(nodes)])
    layer = np.array([[node.layer.at(r) for r in rows] for node in nodes])  # (N, messages), the largest message first
    trip_s = empty[orders, 0].sum(1)[:, None] + layer[orders, 0] @ splits.T  # (P, C)
    busy_s = empty.sum(1)[orders][:, None] + layer.sum(1)[orders][:, None] * splits  # (P, C, k)
    fits = splits <= np.array([node.max_layers for node in nodes])[orders][:, None]  # (P, C, k)
    round_s = np.maximum(trip_s, busy_s.max(2))
    if k > 1:
        hop_s, transfer_s = _link_times(links, orders, rows[0] * work.row_bytes, work.n_samples * work.row_bytes)
        round_s = np.maximum(np.maximum(trip_s + hop_s.sum(1)[:, None], round_s), transfer_s.max(1)[:, None])
    return float(np.where(fits.all(2), round_s, np.inf).min())


def _rows_of_messages(n_samples: int, k: int) -> list[int]:
    """Samples are dealt to as many messages as there are nodes, if there are as many samples."""
    return [len(range(first, n_samples, k)) for first in range(min(k, n_samples))]


def _link_times(links: Links, orders: Integers, message_bytes: int, all_bytes: int) -> tuple[Floats, Floats]:
    """Seconds that the largest message takes on each hop, and that all of a round keep it busy (P, k)."""
    latency_s = np.array([[link.latency_s for link in row] for row in links])
    bytes_s = np.array([[link.bytes_s for link in row] for row in links])
    hops = orders, np.roll(orders, -1, axis=1)
    return latency_s[hops] + message_bytes / bytes_s[hops], all_bytes / bytes_s[hops]


@functools.cache
def _orders(n_nodes: int, k: int) -> Integers:
    """All rings of k nodes, from the starter on (P, k)."""
    return np.array([(0, *others) for others in itertools.permutations(range(1, n_nodes), k - 1)])


@functools.cache
def _splits(n_layers: int, k: int) -> Integers:
    """All ways to write the number of layers as a sum of k numbers from 1 on (C, k)."""
    cuts = itertools.combinations(range(1, n_layers), k - 1)
    return np.array([np.diff((0, *at, n_layers)) for at in cuts])
