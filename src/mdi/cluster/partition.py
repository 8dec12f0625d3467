"""Layers -> one half-open span per node; pure arithmetic.

Every layer has a weight (its number of parameters) and the starter carries the embedding and the
head besides, so it gets fewer layers for that. A node with share 2 may carry twice the weight.
"""

from collections.abc import Callable, Sequence
from itertools import accumulate, pairwise
from typing import NamedTuple

from mdi.errors import ConfigError
from mdi.model.span import Span, spans_of
from mdi.strings import count

# Layers on (the starter, each secondary), by number of layers and of nodes: the published table.
PUBLISHED: dict[int, dict[int, tuple[int, int]]] = {
    5: {2: (2, 3), 3: (1, 2)},
    7: {2: (3, 4), 3: (1, 3)},
    9: {2: (4, 5), 3: (1, 4)},
    12: {2: (5, 7), 3: (2, 5)},
    22: {2: (10, 12), 3: (6, 8), 4: (4, 6), 5: (2, 5)},
    24: {2: (10, 14), 3: (4, 10)},
    32: {2: (14, 18), 3: (8, 12), 4: (5, 9), 5: (4, 7)},
    36: {2: (16, 20), 3: (10, 13)},
    48: {2: (22, 26), 3: (14, 17)},
}
TABLE_TOLERANCE = 1.05  # `auto` keeps the published split while its maximum load is within 5% of the best


class Load(NamedTuple):
    """What is to be split: the weight of each layer and of the starter's embedding and head, and each node's share."""

    layers: Sequence[float]
    head: float
    shares: Sequence[float]

    def max_load(self, spans: Sequence[Span]) -> float:
        """The largest weight per share of any node under `spans`."""
        weights = [sum(self.layers[span.start : span.stop]) for span in spans]
        weights[0] += self.head
        return max(weight / share for weight, share in zip(weights, self.shares, strict=True))


def split(method: str, load: Load) -> list[Span]:
    """One span per node, in ring order.

    `method` is `auto` (the published table where its maximum load is within 5% of the best split's,
    else the balanced split), `table`, or layer counts such as `6,8,8`.
    Raises `ConfigError` where no such split exists.
    """
    n_layer, n_nodes = len(load.layers), len(load.shares)
    if not 1 <= n_nodes <= n_layer:
        raise ConfigError(f"a model of {n_layer} layers can be split over 1 to {n_layer} nodes, not {n_nodes}")
    if method == "auto":
        best = balanced(load)
        table = published(n_layer, n_nodes)
        if table and load.max_load(table) <= TABLE_TOLERANCE * load.max_load(best):
            return table
        return best
    if method == "table":
        table = published(n_layer, n_nodes)
        if table is None:
            raise ConfigError(
                f"the published table has no split of {n_layer} layers over {count(n_nodes, 'node')}; use --split auto"
            )
        return table
    return explicit(method, n_layer, n_nodes)


def published(n_layer: int, n_nodes: int) -> list[Span] | None:
    """The split of the published table, or None where it has no entry."""
    if n_nodes == 1:
        return spans_of([n_layer])
    counts = PUBLISHED.get(n_layer, {}).get(n_nodes)
    return None if counts is None else spans_of([counts[0]] + [counts[1]] * (n_nodes - 1))


def explicit(text: str, n_layer: int, n_nodes: int) -> list[Span]:
    """The split written as layer counts, `6,8,8`."""
    try:
        counts = [int(part) for part in text.split(",")]
    except ValueError as exc:
        raise ConfigError(f"--split {text!r}: expected auto, table, or layers per node such as 6,8,8") from exc
    if len(counts) != n_nodes or min(counts) < 1 or sum(counts) != n_layer:
        raise ConfigError(
            f"--split {text}: {count(len(counts), 'count')} with the sum {sum(counts)}; this run needs"
            f" {count(n_nodes, 'count')},"
            f" each at least 1, with the sum {n_layer}"
        )
    return spans_of(counts)


def balanced(load: Load) -> list[Span]:
    """The split with the smallest maximum load (weight per share); among those, the most even one.

    First the smallest reachable maximum is found, then the sum of squared node loads is minimised
    under that maximum. Both are exact, by dynamic programming over (nodes, layers).
    """
    prefix = [0.0, *accumulate(load.layers)]
    n_layer, n_nodes = len(load.layers), len(load.shares)

    def cost(node: int, start: int, stop: int) -> float:
        return (prefix[stop] - prefix[start] + (load.head if node == 0 else 0.0)) / load.shares[node]

    limit = _smallest_maximum(n_layer, n_nodes, cost)
    # best[j]: (sum of squares, starts) of covering layers 0..j with the nodes so far
    best: dict[int, tuple[float, list[int]]] = {0: (0.0, [])}
    for node in range(n_nodes):
        reached: dict[int, tuple[float, list[int]]] = {}
        for start, (squares, starts) in best.items():
            for stop in range(start + 1, n_layer - (n_nodes - node - 1) + 1):
                load_of_node = cost(node, start, stop)
                if load_of_node > limit:
                    break
                total = squares + load_of_node**2
                if stop not in reached or total < reached[stop][0]:
                    reached[stop] = (total, [*starts, start])
        best = reached
    starts = best[n_layer][1]
    return [Span(start, stop) for start, stop in pairwise([*starts, n_layer])]


def _smallest_maximum(n_layer: int, n_nodes: int, cost: Callable[[int, int, int], float]) -> float:
    # reach[j]: the smallest maximum load when the nodes so far cover the layers before j
    infinite = float("inf")
    reach = [infinite] + [cost(0, 0, stop) for stop in range(1, n_layer + 1)]
    for node in range(1, n_nodes):
        reach = [
            min((max(reach[start], cost(node, start, stop)) for start in range(node, stop)), default=infinite)
            for stop in range(n_layer + 1)
        ]
    return reach[n_layer]
