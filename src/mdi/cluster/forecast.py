"""What a planned ring will do, and what its user should know about it. Arithmetic only."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

from mdi.cluster.budget import SPARE
from mdi.cluster.network_times import NetworkTimes
from mdi.cluster.node_modes import choose_modes
from mdi.cluster.planner import (
    Limit,
    Links,
    NodeCosts,
    RingPlan,
    Workload,
    first_token_s,
    hops_of,
    plan_ring,
    predict,
)
from mdi.cluster.ring_costs import Job, costs_of, memory_bytes, message_bytes, missing_bytes
from mdi.config.network import NetworkConfig, node_name
from mdi.control.measurement import StageTimes
from mdi.errors import ConfigError
from mdi.formats import MODES
from mdi.model.span import Span, spans_of
from mdi.strings import count, format_bytes, format_rate

Objective = Literal["throughput", "latency"]
PROMPT_TOKENS = 512  # of the prompt whose first token is foretold
NOTABLE = 1.05  # times as fast, from which on advice is given
FAR_BEHIND = 1.15  # times as fast, from which on a plan is held against the split in use


@dataclass(frozen=True)
class Part:
    """What one node of a ring does."""

    node: int  # its id
    name: str
    span: Span
    memory_bytes: int  # with all slots
    free_bytes: int | None  # of its memory, as far as its limit lets it have that
    busy: float  # share of the time, between 0 and 1


@dataclass(frozen=True)
class Forecast:
    """A ring, and what it will do."""

    ring: RingPlan
    parts: tuple[Part, ...]  # in ring order
    tokens_s: dict[int, float]  # of all samples together, by how many are generated at once
    first_token_s: float  # of a prompt of `PROMPT_TOKENS`

    @property
    def rates(self) -> str:
        """`11.2 tokens/s with 1 sample, 29 tokens/s with 3 samples`"""
        return ", ".join(f"{format_rate(rate)} tokens/s with {count(n, 'sample')}" for n, rate in self.tokens_s.items())


@dataclass(frozen=True)
class Costs:
    """What a plan is made from: a network as it was measured, and what it is for."""

    network: NetworkConfig
    times: NetworkTimes
    job: Job
    alternatives: tuple[NetworkTimes, ...] = ()  # with weights held less and less exactly, where a plan may choose

    @cached_property
    def nodes(self) -> Sequence[NodeCosts]:
        """By id."""
        return costs_of(self.network, self.times, self.job)

    @property
    def links(self) -> Links:
        """[from][to]."""
        return self.times.links

    def plan(self, objective: Objective = "throughput", *, use_all: bool = False) -> RingPlan:
        """The best ring; for latency the one with the shortest trip of a single sample, with slots for all of them.

        Raises `ConfigError` where there is none, with what is missing and what would make the model fit.
        """
        work = self._work_for(objective)
        try:
            ring = plan_ring(self.nodes, self.links, work, use_all=use_all)
        except ConfigError as exc:
            raise ConfigError(f"{exc}: {shortage(self)}") from exc
        return ring if use_all else self._or_starter_alone(ring, work)

    def _or_starter_alone(self, ring: RingPlan, work: Workload) -> RingPlan:
        """The starter alone, where that is faster: it was timed beside the other nodes of its machine."""
        alone = self.of_starter
        if alone.nodes[0].max_layers < work.n_layers:
            return ring
        single = plan_ring(alone.nodes, alone.links, work)
        is_better = single.prediction.tokens_s > ring.prediction.tokens_s
        return single if is_better or ring.order == single.order else ring

    @cached_property
    def of_starter(self) -> "Costs":
        """Of a ring of the starter alone, which is faster without the other nodes of its machine."""
        network = NetworkConfig(self.network.starter, ())
        return replace(self, network=network, times=self.times.of_starter(), alternatives=())

    def in_ring(self, order: Sequence[int]) -> "Costs":
        """What the nodes take in a ring of this order."""
        return self.of_starter if tuple(order) == (0,) else self

    def ring_of(self, members: Sequence[int]) -> RingPlan:
        """The best ring of all of these nodes, the starter (0) first. Raises `ConfigError` where there is none."""
        nodes = [self.nodes[node] for node in members]
        links = [[self.links[one][other] for other in members] for one in members]
        ring = plan_ring(nodes, links, self.job.workload, use_all=True)
        return replace(ring, order=tuple(members[index] for index in ring.order))

    def has(self, members: Iterable[int]) -> bool:
        """Whether all of these nodes were measured."""
        return max(members) < len(self.nodes)

    def with_node(self, network: NetworkConfig, times: StageTimes) -> "Costs":
        """The same with the last node of `network` too, which was measured alone.

        Its links are taken to be like the slowest ones that are known: those who would time them serve a ring.
        """
        return replace(self, network=network, times=self.times.with_node(times), alternatives=())

    def with_best_modes(self, objective: Objective = "throughput") -> "Costs":
        """The same, with the weights of each node held as makes the ring fastest, where a plan may choose.

        Raises as `plan`.
        """
        if not self.alternatives:
            return self
        ways = [replace(self, times=times, alternatives=()) for times in (self.times, *self.alternatives)]
        choices = list(zip(*(way.nodes for way in ways), strict=True))
        try:
            taken = choose_modes(choices, self.links, self._work_for(objective))
        except ConfigError as exc:
            raise ConfigError(f"{exc}: {shortage(ways[-1])}") from exc
        nodes = tuple(ways[k].times.nodes[node] for node, k in enumerate(taken))
        alone = None if taken[0] else self.times.alone  # it was timed as stored
        return replace(ways[0], times=replace(self.times, nodes=nodes, alone=alone))

    def tokens_s(self, order: Sequence[int], layers: Sequence[int], n_samples: int) -> float:
        """Of all samples together."""
        costs = self.in_ring(order)
        return predict(costs.nodes, costs.links, self._workload(n_samples), order, layers).tokens_s

    def _work_for(self, objective: Objective) -> Workload:
        return self._workload(1 if objective == "latency" else self.job.n_samples)

    def _workload(self, n_samples: int) -> Workload:
        return replace(self.job.workload, n_samples=n_samples)


def forecast_of(costs: Costs, ring: RingPlan) -> Forecast:
    """What a ring will do."""
    times, job, order, layers = costs.times, costs.job, ring.order, ring.layers
    in_ring = costs.in_ring(order)
    prediction = predict(in_ring.nodes, in_ring.links, job.workload, order, layers)
    parts = tuple(
        Part(
            node=node,
            name=costs.nodes[node].name,
            span=span,
            memory_bytes=memory_bytes(times.nodes[node], job, len(span), has_ends=node == 0),
            free_bytes=_room_bytes(times.nodes[node]),
            busy=busy_s / prediction.round_s,
        )
        for node, span, busy_s in zip(order, spans_of(layers), prediction.busy_s, strict=True)
    )
    numbers = sorted({1, len(order), job.n_samples})
    first_s = first_token_s(
        in_ring.nodes,
        in_ring.links,
        job.workload,
        order,
        layers,
        prompt_rows=min(PROMPT_TOKENS, job.context),
        piece_rows=job.max_rows,
    )
    tokens_s = {n: costs.tokens_s(order, layers, n) for n in numbers}
    return Forecast(RingPlan(order, layers, prediction), parts, tokens_s, first_s)


def _room_bytes(times: StageTimes) -> int | None:
    known = [n_bytes for n_bytes in (times.free_memory_bytes, times.memory_limit_bytes) if n_bytes is not None]
    return min(known, default=None)


# ---- advice


def advise(costs: Costs, found: Forecast) -> list[str]:
    """Sentences that are true of this network and this job, and worth knowing."""
    return [*_on_left_out(costs, found), *_on_a_single_chat(costs, found), *_on_links(costs, found)]


def _on_left_out(costs: Costs, found: Forecast) -> list[str]:
    """Nodes that the best ring does without."""
    left_out = [node.name for index, node in enumerate(costs.nodes) if index not in found.ring.order]
    if not left_out:
        return []
    names = " and ".join(left_out)
    try:
        everyone = costs.plan(use_all=True)
    except ConfigError:
        return [f"{names} cannot take part: there is no memory for a layer"]
    n_samples = costs.job.n_samples
    with_all = costs.tokens_s(everyone.order, everyone.layers, n_samples)
    gain = found.tokens_s[n_samples] / with_all
    if gain < NOTABLE:
        return [f"{names} would add nothing"]
    return [f"without {names} it is {gain:.1f} times as fast ({_rates(found.tokens_s[n_samples], with_all)})"]


def _on_a_single_chat(costs: Costs, found: Forecast) -> list[str]:
    """A ring adds up the times of its nodes, for a single sample."""
    job = costs.job
    if len(found.ring.order) == 1 or costs.nodes[0].max_layers < job.config.n_layer:
        return []
    alone, ring = costs.tokens_s((0,), (job.config.n_layer,), 1), found.tokens_s[1]
    if alone < NOTABLE * ring:
        return []
    gain = f"{alone / ring:.1f} times as fast for a single chat ({_rates(alone, ring)})"
    return [f"{costs.nodes[0].name} alone holds the model, and is {gain}"]


def _on_links(costs: Costs, found: Forecast) -> list[str]:
    order, prediction = found.ring.order, found.ring.prediction
    if len(order) == 1:
        return []
    row_bytes = costs.job.workload.row_bytes
    rows = -(-costs.job.n_samples // len(order))
    hop_s = {hop: costs.links[hop[0]][hop[1]].hop_s(rows * row_bytes) for hop in hops_of(order)}
    slowest = max(hop_s, key=lambda hop: hop_s[hop])
    source, target = (costs.nodes[node].name for node in slowest)
    link = costs.links[slowest[0]][slowest[1]]
    speed = f"{format_bytes(link.bytes_s)}/s, {2000 * link.latency_s:.1f} ms there and back"
    if prediction.limit is Limit.LINK:
        return [f"{prediction.bottleneck} ({speed}) is the bottleneck: use a cable, or a faster network"]
    if prediction.limit is Limit.TRIP and sum(hop_s.values()) > prediction.trip_s / 2:
        part = f"{1000 * sum(hop_s.values()):.1f} of {1000 * prediction.trip_s:.1f} ms"
        return [f"{part} of a trip pass on the links, most on that from {source} to {target} ({speed}): use a cable"]
    return []


def _rates(faster: float, slower: float) -> str:
    return f"{format_rate(faster)} instead of {format_rate(slower)} tokens/s"


def behind_plan(costs: Costs, order: Sequence[int], layers: Sequence[int], in_use: str) -> str | None:
    """What to say of a split that is far behind the best one; None where it is not."""
    best = costs.plan()
    n_samples = costs.job.n_samples
    now, then = costs.tokens_s(order, layers, n_samples), best.prediction.tokens_s
    if then < FAR_BEHIND * now:
        return None
    return f"{in_use} makes {format_rate(now)} tokens/s as measured, and --split measured {format_rate(then)}"


# ---- not enough memory


def shortage(costs: Costs) -> str:
    """What is missing where the nodes cannot hold the model, and what would make it fit."""
    times, job = costs.times.nodes, costs.job
    n_missing = max(1, job.config.n_layer - sum(node.max_layers for node in costs.nodes))
    n_bytes = missing_bytes(times, job, n_missing)
    if costs.nodes[0].max_layers < 1:
        least = memory_bytes(times[0], job, 1, has_ends=True) / (1 - SPARE)
        return f"it would fit with {', or '.join([*_fitting(costs), f'a starter with {format_bytes(least)} free'])}"
    node = f"another node with {format_bytes((n_bytes + message_bytes(job, times)) / (1 - SPARE))} free"
    return f"about {format_bytes(n_bytes)} are missing; it would fit with {', or '.join([*_fitting(costs), node])}"


def _fitting(costs: Costs) -> list[str]:
    """What can be changed so that the model fits on the same nodes."""
    return [*_fitting_limits(costs), *_fitting_modes(costs), *_fitting_jobs(costs)]


def _fitting_limits(costs: Costs) -> list[str]:
    """The nodes that could hold it if they were allowed to."""
    limited = [node_name(i) for i, node in enumerate(costs.times.nodes) if node.memory_limit_bytes is not None]
    if limited and _fits(replace(costs, times=costs.times.without_limits())):
        return [f"a larger memory limit of {' and '.join(limited)}"]
    return []


def _fitting_modes(costs: Costs) -> list[str]:
    """The first quantization with which it fits."""
    held = min(MODES.index(node.mode) for node in costs.times.nodes)
    for mode in MODES[held + 1 :]:
        if _fits(replace(costs, times=costs.times.held_as(mode))):
            return [f"--quantize {mode}"]
    return []


def _fitting_jobs(costs: Costs) -> list[str]:
    job, ways = costs.job, []
    fitting = [n for n in range(1, job.n_samples) if _fits(replace(costs, job=replace(job, n_samples=n)))]
    if fitting:
        ways.append(f"{count(fitting[-1], 'sample')} at a time (--n-samples)")
    if job.context > PROMPT_TOKENS and _fits(replace(costs, job=replace(job, context=PROMPT_TOKENS))):
        ways.append(f"--sequence-length {PROMPT_TOKENS}")
    return ways


def _fits(costs: Costs) -> bool:
    layers = [node.max_layers for node in costs.nodes]
    return layers[0] > 0 and sum(layers) >= costs.job.config.n_layer
