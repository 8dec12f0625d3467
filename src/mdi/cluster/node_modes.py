"""How each node holds its weights, where a plan may choose: as makes the ring fastest, and as exactly as that allows.

Branch and bound over the planner. A node for which nothing is decided yet counts as the best of its choices in
everything, so no real ring is faster than the one that is planned then.
"""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass

from mdi.cluster.planner import (
    MAX_EXACT_NODES,
    Cost,
    Links,
    NodeCosts,
    RingPlan,
    Workload,
    plan_ring,
    predict,
    stage_s,
)
from mdi.errors import ConfigError

WORTH = 0.02  # of the ring's tokens/s, for which a node's weights are held less exactly

Choices = Sequence[Sequence[NodeCosts]]  # of each node, from the most exact on


def choose_modes(choices: Choices, links: Links, work: Workload, *, worth: float = WORTH) -> tuple[int, ...]:
    """Which of its choices each node takes; the first one where it takes no part.

    Exact up to `MAX_EXACT_NODES` nodes. Beyond, each node takes what is best for the layers that it would have if it
    were the best of its choices in everything. A node takes a less exact choice only for `worth` of the tokens/s.

    Raises `ConfigError` where the nodes cannot hold the model, whatever they take.
    """
    search = _Search(choices, links, work)
    search.explore([tuple(range(len(own))) for own in choices])
    assert search.best is not None, "what can be planned with all choices has one that is real"
    return search.most_exact(search.best, worth)


@dataclass(frozen=True)
class _Least:
    """The least of several costs."""

    costs: tuple[Cost, ...]

    def at(self, rows: int) -> float:
        return min(cost.at(rows) for cost in self.costs)


def _best_of(own: Sequence[NodeCosts]) -> NodeCosts:
    """A node that is no worse than any of its choices."""
    return NodeCosts(
        own[0].name,
        _Least(tuple(choice.layer for choice in own)),
        _Least(tuple(choice.head for choice in own)),
        min(choice.message_s for choice in own),
        max(choice.max_layers for choice in own),
    )


@dataclass(frozen=True)
class _Found:
    """A ring, and what its nodes take."""

    order: tuple[int, ...]
    layers: tuple[int, ...]
    taken: tuple[int, ...]  # by node
    tokens_s: float


class _Search:
    def __init__(self, choices: Choices, links: Links, work: Workload) -> None:
        self._choices, self._links, self._work = choices, links, work
        self.best: _Found | None = None

    def explore(self, allowed: Sequence[tuple[int, ...]]) -> None:
        """Find the best ring in which each node takes one of its `allowed` choices, where that is better than `best`.

        Raises `ConfigError` where there is none.
        """
        nodes = [_best_of([own[k] for k in ks]) for own, ks in zip(self._choices, allowed, strict=True)]
        bound = plan_ring(nodes, self._links, self._work)
        least_s = bound.prediction.tokens_s * (1 - 1e-9)
        if self.best is not None and self.best.tokens_s >= least_s:
            return
        found = self._found(bound.order, bound.layers, self._nearest(bound, allowed))
        if self.best is None or found.tokens_s > self.best.tokens_s:
            self.best = found
        if found.tokens_s >= least_s or len(self._choices) > MAX_EXACT_NODES:
            return
        undecided = [rank for rank, node in enumerate(bound.order) if len(allowed[node]) > 1]
        node = bound.order[max(undecided, key=lambda rank: bound.layers[rank])]
        for k in allowed[node]:
            with contextlib.suppress(ConfigError):
                self.explore([*allowed[:node], (k,), *allowed[node + 1 :]])

    def most_exact(self, found: _Found, worth: float) -> tuple[int, ...]:
        """What the nodes take, where each takes the first choice with which the ring is nearly as fast."""
        taken = list(found.taken)
        for node, n_layers in zip(found.order, found.layers, strict=True):
            for k in range(taken[node]):
                others = (*taken[:node], k, *taken[node + 1 :])
                holds_them = self._choices[node][k].max_layers >= n_layers
                if holds_them and self._tokens_s(found.order, found.layers, others) >= (1 - worth) * found.tokens_s:
                    taken[node] = k
                    break
        return tuple(taken)

    def _nearest(self, bound: RingPlan, allowed: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
        """What each node takes to hold its layers of a ring, and to compute them as fast as it can."""
        taken = [ks[0] for ks in allowed]
        rows = self._work.messages(len(bound.order))[0]
        for rank, (node, n_layers) in enumerate(zip(bound.order, bound.layers, strict=True)):
            own = self._choices[node]
            able = [k for k in allowed[node] if own[k].max_layers >= n_layers]
            taken[node] = min((stage_s(own[k], n_layers, rows, is_starter=rank == 0), k) for k in able)[1]
        return tuple(taken)

    def _found(self, order: tuple[int, ...], layers: tuple[int, ...], taken: tuple[int, ...]) -> _Found:
        return _Found(order, layers, taken, self._tokens_s(order, layers, taken))

    def _tokens_s(self, order: Sequence[int], layers: Sequence[int], taken: Sequence[int]) -> float:
        nodes = [own[k] for own, k in zip(self._choices, taken, strict=True)]
        return predict(nodes, self._links, self._work, order, layers).tokens_s
