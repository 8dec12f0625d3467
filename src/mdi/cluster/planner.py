"""Which nodes take part, in which order and with how many layers: what generates most tokens a second, and how many.

A pure function of measured costs, for layers that cost the same. No tensors.

A ring of n nodes has up to n messages in flight, over which the samples are spread. A message visits every node and
every link, and the next tokens of its samples leave with it again. So one round, in which each sample gets a token,
takes as long as the slowest of three: a message's whole trip; the busiest node, which computes all messages; and the
busiest link, which carries all of them.
"""

import enum
import itertools
import math
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

from mdi.errors import ConfigError
from mdi.strings import count

MAX_EXACT_NODES = 8  # up to here every choice of nodes and every order is looked at
_N_PAIRS = 6  # that a larger search begins with
_N_HALVINGS = 8  # of the seconds among which the best limit is looked for, before single ones are
_ALIKE = 0.02  # in a larger search: nodes whose costs differ by no more are taken to be of one kind
_N_TRIED = 12  # nodes that a larger search tries to add or to exchange at a time


class Cost(Protocol):
    """Seconds by number of rows."""

    def at(self, rows: int) -> float:
        """Seconds for a message of `rows` rows."""


@dataclass(frozen=True)
class Curve:
    """Seconds by number of rows, as measured for some numbers: linear in between and beyond."""

    points: tuple[tuple[int, float], ...]  # by number of rows

    @classmethod
    def measured(cls, points: Iterable[tuple[int, float]]) -> "Curve":
        """Through measured points, but it never falls: more rows take as long, at least.

        Where a device waits for its launches, all take as long and only noise tells them apart, so that a line through
        two of them could fall below zero beyond. By isotonic regression: neighbours that fall become their mean (pool
        adjacent violators; Ayer et al. 1955).
        """
        pools: list[tuple[list[int], float]] = []  # of neighbours, and their mean
        for n, seconds in sorted(points):
            rows, mean_s = [n], seconds
            while pools and pools[-1][1] > mean_s:
                fewer, more_s = pools.pop()
                mean_s = (len(fewer) * more_s + len(rows) * mean_s) / (len(fewer) + len(rows))
                rows = fewer + rows
            pools.append((rows, mean_s))
        return cls(tuple((n, mean_s) for rows, mean_s in pools for n in rows))

    def at(self, rows: int) -> float:
        """Seconds for a message of `rows` rows."""
        if len(self.points) == 1 or rows <= self.points[0][0]:
            return self.points[0][1]
        i = min(bisect_left(self.points, (rows, 0.0)), len(self.points) - 1)
        (left, left_s), (right, right_s) = self.points[i - 1 : i + 1]
        return left_s + (right_s - left_s) * (rows - left) / (right - left)


@dataclass(frozen=True)
class NodeCosts:
    """What a node takes for a message, and how much of the model it can hold."""

    name: str
    layer: Cost  # for each of its layers
    head: Cost  # for head and sampling, where it is the starter
    message_s: float = 0.0  # besides, however few layers it has
    max_layers: int = 1_000_000


@dataclass(frozen=True)
class LinkCosts:
    """What it takes to bring a message from one node to another."""

    latency_s: float
    bytes_s: float

    def transfer_s(self, n_bytes: int) -> float:
        """For how long a message keeps the link busy."""
        return n_bytes / self.bytes_s

    def hop_s(self, n_bytes: int) -> float:
        """From when a message is sent to when all of it has arrived."""
        return self.latency_s + self.transfer_s(n_bytes)


@dataclass(frozen=True)
class Workload:
    """What the ring is for."""

    n_layers: int
    row_bytes: int  # of a row on the wire
    n_samples: int  # that are generated at once

    def messages(self, n_nodes: int) -> list[int]:
        """The rows of each message in flight, the largest first."""
        n = min(n_nodes, self.n_samples)
        return [self.n_samples // n + (i < self.n_samples % n) for i in range(n)]


class Limit(enum.Enum):
    """What a round takes as long as."""

    NODE = enum.auto()  # the busiest one
    LINK = enum.auto()  # the busiest one
    TRIP = enum.auto()  # of a message


@dataclass(frozen=True)
class Prediction:
    """How fast a ring is."""

    tokens_s: float  # of all samples together
    trip_s: float  # of the largest message
    busy_s: tuple[float, ...]  # of each node in a round
    round_s: float
    limit: Limit
    bottleneck: str  # the limit in words, with names


@dataclass(frozen=True)
class RingPlan:
    """A ring, and how fast it will be."""

    order: tuple[int, ...]  # indices of the nodes, the starter (0) first
    layers: tuple[int, ...]  # of each node in that order
    prediction: Prediction

    @property
    def split(self) -> str:
        """As --split takes it."""
        return ",".join(map(str, self.layers))


Links = Sequence[Sequence[LinkCosts]]  # [from][to], by index of the node


def plan_ring(nodes: Sequence[NodeCosts], links: Links, work: Workload, *, use_all: bool = False) -> RingPlan:
    """The fastest ring among all choices of nodes, orders and splits; the first node is the starter.

    Exact up to `MAX_EXACT_NODES` nodes. Beyond, the choice is improved step by step from several beginnings.

    Args:
        use_all: choose among the rings of all nodes only.

    Raises `ConfigError` where the nodes cannot hold the model.
    """
    _check_room(nodes, work.n_layers)
    search = _Search(nodes, links, work)
    if use_all:
        best = search.with_all()
    elif len(nodes) <= MAX_EXACT_NODES:
        rings = filter(None, map(search.exact, _subsets(search.others)))
        best = min(rings, key=lambda found: found[0])
    else:
        best = search.heuristic()
    if best is None:
        raise ConfigError(f"{work.n_layers} layers cannot be spread over all of {count(len(nodes), 'node')}")
    _, order, layers = best
    return RingPlan(order, layers, predict(nodes, links, work, order, layers))


def _check_room(nodes: Sequence[NodeCosts], n_layers: int) -> None:
    if nodes[0].max_layers < 1:
        raise ConfigError(f"{nodes[0].name} has no memory for a single layer beside the embedding and the head")
    room = sum(max(0, node.max_layers) for node in nodes)
    if room < n_layers:
        raise ConfigError(
            f"there is memory for {count(room, 'layer')} of {n_layers} on {count(len(nodes), 'node')}:"
            f" {n_layers - room} too few"
        )


def predict(
    nodes: Sequence[NodeCosts], links: Links, work: Workload, order: Sequence[int], layers: Sequence[int]
) -> Prediction:
    """How fast the ring of `nodes` in this order is, with so many layers on each."""
    rows = work.messages(len(order))
    trip_s, busy_s = 0.0, []
    for rank, (index, n_layers) in enumerate(zip(order, layers, strict=True)):
        trip_s += stage_s(nodes[index], n_layers, rows[0], is_starter=rank == 0)
        busy_s.append(sum(stage_s(nodes[index], n_layers, n, is_starter=rank == 0) for n in rows))
    waits = [(busy_s[rank], f"the computing of {nodes[index].name}", Limit.NODE) for rank, index in enumerate(order)]
    for source, target in hops_of(order):
        link = links[source][target]
        trip_s += link.hop_s(rows[0] * work.row_bytes)
        name = f"the link from {nodes[source].name} to {nodes[target].name}"
        waits.append((link.transfer_s(work.n_samples * work.row_bytes), name, Limit.LINK))
    waits.append((trip_s, "the trip of a message", Limit.TRIP))
    round_s, bottleneck, limit = max(waits, key=lambda wait: wait[:2])
    return Prediction(work.n_samples / round_s, trip_s, tuple(busy_s), round_s, limit, bottleneck)


def first_token_s(
    nodes: Sequence[NodeCosts],
    links: Links,
    work: Workload,
    order: Sequence[int],
    layers: Sequence[int],
    *,
    prompt_rows: int,
    piece_rows: int,
) -> float:
    """Seconds from a prompt to its first token on a ring that does nothing else.

    The prompt goes in pieces, which follow each other through the nodes and the links between them; each of these
    takes one at a time. Only the last row returns.
    """
    pieces = [min(piece_rows, prompt_rows - start) for start in range(0, prompt_rows, piece_rows)]
    hops = list(hops_of(order))
    free_s = [0.0] * 2 * len(order)  # when each node, and the link behind it, is through with the piece before
    for rows in pieces:
        at_s = 0.0
        for rank, (index, n_layers) in enumerate(zip(order, layers, strict=True)):
            at_s = max(at_s, free_s[2 * rank]) + stage_s(nodes[index], n_layers, rows, is_starter=False)
            free_s[2 * rank] = at_s
            if rank < len(order) - 1:
                link = links[hops[rank][0]][hops[rank][1]]
                at_s = free_s[2 * rank + 1] = max(at_s, free_s[2 * rank + 1]) + link.transfer_s(rows * work.row_bytes)
                at_s += link.latency_s
    back_s = sum(links[source][target].latency_s for source, target in hops[-1:])
    return at_s + back_s + nodes[order[0]].head.at(1)


def stage_s(node: NodeCosts, n_layers: int, rows: int, *, is_starter: bool) -> float:
    """Seconds that a node with so many layers takes for a message, head and sampling of all its rows included."""
    return node.message_s + n_layers * node.layer.at(rows) + (node.head.at(rows) if is_starter else 0.0)


def hops_of(order: Sequence[int]) -> Iterator[tuple[int, int]]:
    """The links of a ring; a node alone has none."""
    if len(order) > 1:
        yield from zip(order, (*order[1:], order[0]), strict=True)


def _subsets(items: Sequence[int]) -> Iterator[tuple[int, ...]]:
    return itertools.chain.from_iterable(itertools.combinations(items, n) for n in range(len(items) + 1))


_Found = tuple[float, tuple[int, ...], tuple[int, ...]]  # seconds of a round, order, layers


@dataclass(frozen=True)
class _Stage:
    """The linear costs of one node in a ring of a given size: a + b for each layer."""

    trip_s: float
    trip_layer_s: float
    busy_s: float
    busy_layer_s: float
    max_layers: int

    def busy_until(self, limit_s: float) -> int:
        """How many layers it can have and be busy for no longer than that."""
        return min(int((limit_s - self.busy_s) / self.busy_layer_s + 1e-9), self.max_layers)


class _Search:
    def __init__(self, nodes: Sequence[NodeCosts], links: Links, work: Workload) -> None:
        self._nodes, self._links, self._work = nodes, links, work
        self.others = [index for index, node in enumerate(nodes) if index and node.max_layers > 0]
        self._known: dict[tuple[int, int], _Stage] = {}  # by node and size of the ring

    # ---- a choice of nodes

    def with_all(self) -> _Found | None:
        """The best ring of all nodes; None where there is none."""
        if len(self.others) < len(self._nodes) - 1:
            return None
        if len(self._nodes) <= MAX_EXACT_NODES:
            return self.exact(tuple(self.others))
        order: tuple[int, ...] = (0,)
        for index in self.others:
            order = self._with(order, index)
        return self._ring(order)

    def exact(self, chosen: tuple[int, ...]) -> _Found | None:
        """The best ring of the starter and the nodes `chosen`; None where they cannot hold the model."""
        orders = self._best_orders((0, *order) for order in itertools.permutations(chosen))
        return self._best_of(orders)

    def _best_of(self, orders: Iterable[tuple[float, float, tuple[int, ...]]]) -> _Found | None:
        """The best split for the best of some orders of the same nodes, each with its links' trip and busy time."""
        best: _Found | None = None
        split: _Split | None = None
        for trip_s, busy_s, order in orders:
            split = split or _Split(self._stages(sorted(order)), self._work.n_layers)
            if not split.is_possible:
                return None
            round_s, layers = split.best(trip_s, busy_s)
            if best is None or round_s < best[0]:
                by_node = dict(zip(sorted(order), layers, strict=True))
                best = round_s, order, tuple(by_node[index] for index in order)
        return best

    def _best_orders(self, orders: Iterable[tuple[int, ...]]) -> list[tuple[float, float, tuple[int, ...]]]:
        """Those orders of which no other has both a shorter trip and a less busy link."""
        found: list[tuple[float, float, tuple[int, ...]]] = []
        for trip_s, busy_s, order in sorted((*self._link_costs(order), order) for order in orders):
            if not found or busy_s < found[-1][1]:
                found.append((trip_s, busy_s, order))
        return found

    def _link_costs(self, order: tuple[int, ...]) -> tuple[float, float]:
        """What the links add to a trip, and for how long the busiest one is busy in a round."""
        work, largest = self._work, self._work.messages(len(order))[0]
        links = [self._links[source][target] for source, target in hops_of(order)]
        trip_s = sum(link.hop_s(largest * work.row_bytes) for link in links)
        return trip_s, max((link.transfer_s(work.n_samples * work.row_bytes) for link in links), default=0.0)

    def _stages(self, chosen: Sequence[int]) -> list[_Stage]:
        return [self._stage(index, len(chosen)) for index in chosen]

    def _stage(self, index: int, n_nodes: int) -> _Stage:
        """The costs of one node in a ring of so many."""
        if (known := self._known.get((index, n_nodes))) is not None:
            return known
        node, rows = self._nodes[index], self._work.messages(n_nodes)
        empty = [stage_s(node, 0, n, is_starter=index == 0) for n in rows]
        layer = [node.layer.at(n) for n in rows]
        stage = _Stage(empty[0], layer[0], sum(empty), sum(layer), node.max_layers)
        self._known[index, n_nodes] = stage
        return stage

    # ---- many nodes

    def heuristic(self) -> _Found:
        """The best ring that adding, removing, exchanging and moving single nodes leads to, from several beginnings."""
        rings = (self._climb(beginning) for beginning in dict.fromkeys(self._beginnings()))
        return min(filter(None, rings), key=lambda found: found[0])

    def _beginnings(self) -> Iterator[tuple[int, ...]]:
        """Some pairs; and for each way of ranking the nodes, the best of the rings with the first few of them."""
        yield from ((0, index) for index in self._others((0,))[:_N_PAIRS])
        for ranking in self._rankings:
            order: tuple[int, ...] = (0,)
            rings = [ring for ring in [self._ring(order)] if ring is not None]
            for index in ranking[: self._work.n_layers - 1]:
                order = self._with(order, index)
                if (ring := self._ring(order)) is not None:
                    rings.append(ring)
            if rings:
                yield min(rings)[1]

    @cached_property
    def _rankings(self) -> list[tuple[int, ...]]:
        """By speed; by speed and the links from and to the starter; by room."""
        nodes, links = self._nodes, self._links

        def speed(index: int) -> float:
            return nodes[index].layer.at(1)

        def reach(index: int) -> float:
            near = links[0][index].latency_s + links[index][0].latency_s
            return near + nodes[index].message_s + speed(index) * self._work.n_layers / len(nodes)

        def room(index: int) -> float:
            return -nodes[index].max_layers

        return [tuple(sorted(self.others, key=key)) for key in (speed, reach, room)]

    def _ring(self, order: tuple[int, ...]) -> _Found | None:
        """The best split for this order."""
        return self._best_of([(*self._link_costs(order), order)])

    def _with(self, order: tuple[int, ...], index: int) -> tuple[int, ...]:
        """With a node more, where it lengthens the trip least."""
        places = range(1, len(order) + 1)
        place = min(places, key=lambda at: self._detour_s(order[at - 1], index, order[at % len(order)]))
        return (*order[:place], index, *order[place:])

    def _detour_s(self, source: int, via: int, target: int) -> float:
        def hop_s(a: int, b: int) -> float:
            return 0.0 if a == b else self._links[a][b].hop_s(self._work.row_bytes)

        return hop_s(source, via) + hop_s(via, target) - hop_s(source, target)

    def _climb(self, order: tuple[int, ...]) -> _Found | None:
        """Until neither a step nor two at once lead to a better ring."""
        if (best := self._ring(order)) is None:
            return None
        while (better := self._better(best, self._neighbours) or self._better(best, self._further)) is not None:
            best = better
        return best

    def _better(
        self, best: _Found, neighbours: Callable[[tuple[int, ...]], Iterable[tuple[int, ...]]]
    ) -> _Found | None:
        """The best of a ring's neighbours, where that is better than the ring itself."""
        found = [ring for order in neighbours(best[1]) if (ring := self._ring(order)) is not None]
        better = min(found, default=best)
        return better if better[0] < best[0] * (1 - 1e-9) else None

    def _neighbours(self, order: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
        """With a node more or less, with another one in place of it, and with a node at another place."""
        others = self._others(order)
        if len(order) < self._work.n_layers:
            yield from (self._with(order, index) for index in others[:_N_TRIED])
        for removed in order[1:]:
            rest = tuple(index for index in order if index != removed)
            yield rest
            yield self._with(rest, removed)
            yield from (self._with(rest, index) for index in others[: _N_TRIED // 2])

    def _further(self, order: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
        """With two nodes more, and with one for another at another place."""
        others = self._others(order)[:_N_TRIED]
        if len(order) + 1 < self._work.n_layers:
            for one, other in itertools.permutations(others, 2):
                yield self._with(self._with(order, one), other)
        for removed in self._of_each_kind(order[1:]):
            rest = tuple(index for index in order if index != removed)
            for index in others:
                yield from ((*rest[:place], index, *rest[place:]) for place in range(1, len(rest) + 1))

    def _others(self, order: tuple[int, ...]) -> list[int]:
        """Of the nodes that take no part one of each kind, those that promise most first."""
        return self._of_each_kind(i for i in dict.fromkeys(itertools.chain(*self._interleaved)) if i not in order)

    def _of_each_kind(self, nodes: Iterable[int]) -> list[int]:
        """The first node of each kind."""
        found: dict[tuple[int, ...], int] = {}
        for index in nodes:
            found.setdefault(self._kinds[index], index)
        return list(found.values())

    @cached_property
    def _kinds(self) -> dict[int, tuple[int, ...]]:
        """Nodes that cost nearly the same, and are as far from the starter."""
        nodes, links, most = self._nodes, self._links, self._work.messages(1)[0]

        def kind(index: int) -> tuple[int, ...]:
            node, there, back = nodes[index], links[0][index], links[index][0]
            costs_s = [node.layer.at(1), node.layer.at(most), node.message_s, there.latency_s, back.latency_s]
            sizes = [*costs_s, there.bytes_s, back.bytes_s]
            return (
                *(round(math.log(max(size, 1e-9)) / _ALIKE) for size in sizes),
                min(node.max_layers, self._work.n_layers),
            )

        return {index: kind(index) for index in self.others}

    @cached_property
    def _interleaved(self) -> list[tuple[int, ...]]:
        """The first of each ranking, then the second of each."""
        return list(zip(*self._rankings, strict=True))


class _Split:
    """The best numbers of layers for stages whose order does not matter."""

    def __init__(self, stages: Sequence[_Stage], n_layers: int) -> None:
        self._stages, self._n_layers = stages, n_layers
        self.is_possible = len(stages) <= n_layers <= sum(stage.max_layers for stage in stages)
        self._quickest = sorted(range(len(stages)), key=lambda k: stages[k].trip_layer_s)

    def best(self, link_trip_s: float, link_busy_s: float) -> tuple[float, tuple[int, ...]]:
        """Seconds of a round, and the layers of each stage.

        The more the busiest node may be busy, the more layers the quickest nodes can have, and the shorter is the trip.
        So the best limit is where the two meet, or the one before.
        """
        limits = self._limits(*self._around(link_trip_s))
        low, high = 0, len(limits) - 1
        while low < high:
            middle = (low + high) // 2
            if self._meet(limits[middle], link_trip_s):
                high = middle
            else:
                low = middle + 1
        results = []
        for limit in limits[max(low - 1, 0) : low + 1]:
            if (found := self._within(limit, link_trip_s)) is not None:
                trip_s, layers = found
                busy_s = max(s.busy_s + n * s.busy_layer_s for s, n in zip(self._stages, layers, strict=True))
                results.append((max(trip_s, busy_s, link_busy_s), layers))
        return min(results)

    def _around(self, link_trip_s: float) -> tuple[float, float]:
        """Seconds between which the two meet, with room for a layer more or less on every node."""
        low, high = 0.0, max(s.busy_s + n * s.busy_layer_s for s, n in zip(self._stages, self._most, strict=True))
        for _ in range(_N_HALVINGS):
            middle = (low + high) / 2
            if self._meet(middle, link_trip_s):
                high = middle
            else:
                low = middle
        step_s = max(stage.busy_layer_s for stage in self._stages)
        return low - step_s, high + step_s

    def _limits(self, from_s: float, to_s: float) -> list[float]:
        """All that a node can be busy for, of what lies between."""
        limits: set[float] = set()
        for stage, most in zip(self._stages, self._most, strict=True):
            first = max(1, math.ceil((from_s - stage.busy_s) / stage.busy_layer_s))
            last = min(most, math.floor((to_s - stage.busy_s) / stage.busy_layer_s))
            limits.update(stage.busy_s + n * stage.busy_layer_s for n in range(first, last + 1))
        return sorted(limits)

    @cached_property
    def _most(self) -> list[int]:
        """Layers that each stage can have."""
        return [min(stage.max_layers, self._n_layers) for stage in self._stages]

    def _meet(self, limit_s: float, link_trip_s: float) -> bool:
        """Whether a trip is no longer than a node may be busy."""
        found = self._within(limit_s, link_trip_s)
        return found is not None and found[0] <= limit_s

    def _within(self, limit_s: float, link_trip_s: float) -> tuple[float, tuple[int, ...]] | None:
        """The shortest trip where no node is busy for longer, and its layers; None where they cannot have them all."""
        most = [stage.busy_until(limit_s) for stage in self._stages]
        left = self._n_layers - len(most)
        if min(most) < 1 or sum(most) < self._n_layers:
            return None
        layers = [1] * len(most)
        for k in self._quickest:
            added = min(most[k] - 1, left)
            layers[k] += added
            left -= added
        trip_s = link_trip_s + sum(s.trip_s + n * s.trip_layer_s for s, n in zip(self._stages, layers, strict=True))
        return trip_s, tuple(layers)
