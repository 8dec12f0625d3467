#!/usr/bin/env python3
"""Simulated rings of up to a hundred nodes: the planner's word, and what messages that wait for nodes make of it.

    python benchmarks/scaling.py --output docs/scaling.png

Nodes take what `plan.py --what-if` reckons for machines of one class, so nothing here was measured. Prints a table as
Markdown, and draws it. Arithmetic only: half a minute.
"""

import argparse
import heapq
import itertools
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "src")]

from litgpt.config import Config  # noqa: E402

from mdi.cluster.device_classes import DEVICE_CLASSES, estimate, network_of  # noqa: E402
from mdi.cluster.forecast import Costs  # noqa: E402
from mdi.cluster.planner import LinkCosts, NodeCosts, RingPlan, Workload, hops_of, stage_s  # noqa: E402
from mdi.cluster.ring_costs import Job  # noqa: E402
from mdi.formats import Mode  # noqa: E402

MODEL, MACHINE = "Llama-3-70B", "pi5-16gb"
MODE: Mode = "int8"
CONTEXT, MAX_ROWS = 512, 128
N_NODES = (7, 10, 16, 20, 27, 40, 60, 80, 100)
SAMPLES = {"1 sample": 0, "a sample for each node": 1, "4 for each node": 4}  # for each node; 0: one in all
LINKS = {
    "one room": LinkCosts(2e-4, 117e6),  # gigabit Ethernet
    "one country": LinkCosts(1e-2, 12.5e6),  # 20 ms there and back, 100 Mbit/s
    "one planet": LinkCosts(1e-1, 2.5e6),  # 200 ms, 20 Mbit/s
}
ROUNDS, WARM_UP = 12, 4  # tokens of each sample that are simulated, and the first ones that do not count


def simulate(nodes: Sequence[NodeCosts], links: Sequence[Sequence[LinkCosts]], work: Workload, ring: RingPlan) -> float:
    """Tokens/s of a ring in which every node and every link serves one message after another, as they arrive.

    The planner takes a round to be as long as its longest part; here messages wait for each other.
    """
    rows, order = work.messages(len(ring.order)), ring.order
    hops = list(hops_of(order))
    n_places = 2 * len(order) if hops else 1  # each node, and the link behind it
    free_s = [0.0] * n_places  # when each can take the next message
    done_s: list[list[float]] = [[] for _ in rows]
    number = itertools.count()  # who came first, of those that come at one time
    arrivals = [(0.0, next(number), message, 0) for message in range(len(rows))]
    while arrivals:
        at_s, _, message, place = heapq.heappop(arrivals)
        rank, is_link = divmod(place, 2)
        if is_link:
            link, n_bytes = links[hops[rank][0]][hops[rank][1]], rows[message] * work.row_bytes
            busy_s, then_s = link.transfer_s(n_bytes), link.latency_s
        else:
            node, n_layers = nodes[order[rank]], ring.layers[rank]
            busy_s, then_s = stage_s(node, n_layers, rows[message], is_starter=rank == 0), 0.0
        free_s[place] = max(at_s, free_s[place]) + busy_s
        arrival_s, after = free_s[place] + then_s, (place + 1) % n_places
        if after == 0:
            done_s[message].append(arrival_s)
        if len(done_s[message]) < ROUNDS:
            heapq.heappush(arrivals, (arrival_s, next(number), message, after))
    spans_s = [times[-1] - times[WARM_UP - 1] for times in done_s]
    return sum(n * (ROUNDS - WARM_UP) / span_s for n, span_s in zip(rows, spans_s, strict=True))


@dataclass(frozen=True)
class Point:
    """The best ring of machines, for some number of samples."""

    n_used: int  # of the machines
    predicted: float  # tokens/s
    simulated: float


def point(n_nodes: int, n_samples: int, link: LinkCosts) -> Point | None:
    """None where the machines cannot hold the model."""
    config, names = Config.from_name(MODEL), [MACHINE] * n_nodes
    times = replace(estimate(names, "gigabit", config, MODE), links=[[link] * n_nodes for _ in names])
    job = Job(config, CONTEXT, n_samples, MAX_ROWS, DEVICE_CLASSES[MACHINE].dtype)
    costs = Costs(network_of(names), times, job)
    if sum(node.max_layers for node in costs.nodes) < config.n_layer:
        return None
    ring = costs.plan()
    simulated = simulate(costs.nodes, costs.links, job.workload, ring)
    return Point(len(ring.order), ring.prediction.tokens_s, simulated)


Curves = dict[tuple[str, str], list[Point | None]]  # by link and samples, for each number of nodes


def curves() -> Curves:
    """All of them."""
    return {
        (place, samples): [point(n, max(1, n * per_node), link) for n in N_NODES]
        for place, link in LINKS.items()
        for samples, per_node in SAMPLES.items()
    }


def table(found: Curves) -> str:
    """Markdown: tokens/s, and in brackets how many of the nodes take part."""
    lines = [f"| links, samples | {' | '.join(map(str, N_NODES))} |", "|---" * (1 + len(N_NODES)) + "|"]
    for (place, samples), points in found.items():
        cells = ["does not fit" if at is None else f"{at.predicted:.3g} ({at.n_used})" for at in points]
        lines.append(f"| {place}, {samples} | {' | '.join(cells)} |")
    furthest = max(abs(at.predicted / at.simulated - 1) for points in found.values() for at in points if at is not None)
    return "\n".join([*lines, "", f"Predicted and simulated tokens/s differ by {furthest:.1%} at most."])


def plot(found: Curves, path: Path) -> None:
    """Tokens/s over nodes: lines as predicted, points as simulated."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 4), layout="constrained")
    for axes, place in zip(figure.subplots(1, len(LINKS), sharey=True), LINKS, strict=True):
        for samples in SAMPLES:
            points = [(n, at) for n, at in zip(N_NODES, found[place, samples], strict=True) if at is not None]
            (line,) = axes.plot([n for n, _ in points], [at.predicted for _, at in points], label=samples)
            axes.plot([n for n, _ in points], [at.simulated for _, at in points], "o", color=line.get_color(), ms=4)
        axes.set(title=place, xlabel=f"nodes ({MACHINE}) that are there", xscale="log", yscale="log")
        axes.set_xticks(N_NODES, map(str, N_NODES), fontsize=8)
        axes.grid(alpha=0.3)
    figure.axes[0].set_ylabel("tokens/s of all samples")
    figure.axes[0].legend(fontsize=8)
    figure.suptitle(
        f"Simulated: {MODEL}, {MODE}. Lines: as the planner predicts. Points: with messages that wait for each other"
    )
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "scaling.png", metavar="FILE")
    options = parser.parse_args()
    found = curves()
    print(table(found))
    plot(found, options.output)


if __name__ == "__main__":
    main()
