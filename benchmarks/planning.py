#!/usr/bin/env python3
"""Predicted against measured: what `plan.py` foretells of rings that are uneven on purpose, and what they reach.

    python benchmarks/planning.py --output benchmarks/results/planning.json

Nodes are pinned to a core each; time that is stolen from a core (Linux, root) or a busy loop on it makes its node
slower, weights in 8 bits make it faster, and relays delay and limit the links. Every configuration is measured anew and
then run, with the split that it was measured for, in every round: the speed of a shared machine drifts. Of some, all
splits are tried. Then it is planned anew in every turn, and the planned, the even and the best split and the first
node alone run right after that, which is what counts: is the planner's choice among the best, and is its advice right?
Writes the figures as JSON, a table as Markdown, and a plot. For a machine that is otherwise idle; about an hour.
"""

import argparse
import contextlib
import json
import operator
import signal
import statistics
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "src")]

from benchmarks.relay import Relay  # noqa: E402
from benchmarks.report import spread  # noqa: E402
from benchmarks.rings import NodeSettings, Request, Ring, secondaries, without_chunks, write_seen_as  # noqa: E402
from benchmarks.workers import BenchError, Worker, end, own_cores, python_module, start  # noqa: E402
from mdi.checkpoint.config import load_config  # noqa: E402
from mdi.config.network import load_network  # noqa: E402
from mdi.config.paths import CHECKPOINTS_DIR  # noqa: E402
from mdi.formats import Mode  # noqa: E402

PROMPT_TOKENS, STEPS = 96, 48  # every sample decodes around position 128
BURN = "while True: pass"
MEDIAN_GOAL, WORST_GOAL = 0.10, 0.25  # of the relative error of tokens/s
CHOICE_GOAL = 0.05  # by how much the planner's split may be slower than the best one


@dataclass(frozen=True)
class Configuration:
    """A ring on at most two cores. `split` is in percent of the layers, of each node."""

    name: str
    split: tuple[int, ...]
    n_samples: int
    burners: tuple[int, ...] = ()  # nodes whose core a busy loop shares
    shares: tuple[float, ...] = ()  # of its core, that each node has; empty: all of it
    delay_ms: float = 0.0  # one way, of every link
    mbit: float | None = None  # of every link
    mode: Mode = "none"  # how all nodes hold their weights
    second_mode: Mode | None = None  # of the second node, where it is another: in int8 it is some four times as fast
    memory_limit: str | None = None  # of the second node


CONFIGURATIONS = (
    Configuration("one node, 1 sample", (100,), 1),
    Configuration("one node, 4 samples", (100,), 4),
    Configuration("one node beside a busy loop", (100,), 4, burners=(0,)),
    Configuration("even, 1 sample", (50, 50), 1),
    Configuration("even, 2 samples", (50, 50), 2),
    Configuration("even, 8 samples", (50, 50), 8),
    Configuration("uneven split, 4 samples", (75, 25), 4),
    Configuration("uneven split the other way, 4 samples", (25, 75), 4),
    Configuration("second node beside a busy loop, even split", (50, 50), 4, burners=(1,)),
    Configuration("second node beside a busy loop, better split", (67, 33), 4, burners=(1,)),
    Configuration("second node half as fast, even split", (50, 50), 16, shares=(1, 0.5), mode="int4"),
    Configuration("second node half as fast, better split", (67, 33), 16, shares=(1, 0.5), mode="int4"),
    Configuration("first node half as fast, even split", (50, 50), 16, shares=(0.5, 1), mode="int4"),
    Configuration("first node half as fast, better split", (33, 67), 16, shares=(0.5, 1), mode="int4"),
    Configuration("second node a quarter as fast, even split", (50, 50), 16, shares=(1, 0.25), mode="int4"),
    Configuration("second node a quarter as fast, better split", (80, 20), 16, shares=(1, 0.25), mode="int4"),
    Configuration("a quarter as fast in float32, 4 samples, even split", (50, 50), 4, shares=(1, 0.25)),
    Configuration("a quarter as fast in float32, 4 samples, better split", (80, 20), 4, shares=(1, 0.25)),
    Configuration("second node four times as fast, even split", (50, 50), 4, second_mode="int8"),
    Configuration("second node four times as fast, better split", (20, 80), 4, second_mode="int8"),
    Configuration("5 ms on every link, 1 sample", (50, 50), 1, delay_ms=5),
    Configuration("5 ms on every link, 8 samples", (50, 50), 8, delay_ms=5),
    Configuration("20 ms on every link, 2 samples", (50, 50), 2, delay_ms=20),
    Configuration("4 Mbit/s on every link, 8 samples", (50, 50), 8, mbit=4),
    Configuration("half as fast, 5 ms and 20 Mbit/s on every link", (67, 33), 4, shares=(1, 0.5), delay_ms=5, mbit=20),
)

# The nodes of one machine share its memory, those of several machines do not. So most of these read little of it for
# what they compute: 4 bits for a weight, once for every eight samples.
SWEPT = (
    Configuration("nodes alike", (50, 50), 16, mode="int4"),
    Configuration("second node half as fast", (50, 50), 16, shares=(1, 0.5), mode="int4"),
    Configuration("second node a quarter as fast", (50, 50), 16, shares=(1, 0.25), mode="int4"),
    Configuration("second node beside a busy loop", (50, 50), 16, burners=(1,), mode="int4"),
    Configuration("a quarter as fast, 20 ms on every link", (50, 50), 16, shares=(1, 0.25), delay_ms=20, mode="int4"),
    Configuration("second node four times as fast, 4 samples", (50, 50), 4, second_mode="int8"),
    Configuration("the same with 80 MB of memory", (50, 50), 4, second_mode="int8", memory_limit="80MB"),
    Configuration("nodes alike in float32, 4 samples", (50, 50), 4),
    Configuration("second node a quarter as fast in float32, 4 samples", (50, 50), 4, shares=(1, 0.25)),
)
SWEPT_PERCENTS = tuple(range(10, 100, 10))  # of the layers, on the first node


@dataclass(frozen=True)
class Outcome:
    """One configuration: what was predicted, and what was reached right afterwards, in each round."""

    configuration: Configuration
    layers: tuple[int, ...]
    predicted: tuple[float, ...]
    reached: tuple[float, ...]

    @property
    def error(self) -> float:
        """Of the prediction, relative to what was reached: the median."""
        return float(statistics.median(map(operator.truediv, self.predicted, self.reached)) - 1)


def layers_of(split: Sequence[int], n_layer: int) -> tuple[int, ...]:
    """Percents -> layers, at least one for each node."""
    layers = [max(1, round(n_layer * percent / 100)) for percent in split[:-1]]
    return (*layers, n_layer - sum(layers))


@contextlib.contextmanager
def disturbed(configuration: Configuration, cores: Sequence[int], scratch: Path) -> Iterator[None]:
    """Busy loops on these cores, and time that is stolen from them."""
    logs = scratch / "logs"
    with contextlib.ExitStack() as stack:
        for core in (cores[index] for index in configuration.burners):
            stack.callback(end, start([sys.executable, "-c", BURN], [core], logs / f"burner{core}.log"))
        for core, share in zip(cores, configuration.shares, strict=False):
            if share < 1:
                thief = Worker(python_module("steal_time", str(share)), [core], logs / f"thief{core}.log")
                stack.enter_context(thief).hear()
        yield


@contextlib.contextmanager
def relayed(configuration: Configuration, nodes_config: Path) -> Iterator[Path | None]:
    """A network file with a relay before each node; None where the links are as they are."""
    nodes = load_network(nodes_config).nodes
    if len(nodes) == 1 or not (configuration.delay_ms or configuration.mbit):
        yield None
        return
    bytes_per_s = None if configuration.mbit is None else configuration.mbit * 1e6 / 8
    with contextlib.ExitStack() as stack:
        relays = [
            stack.enter_context(Relay(0, ("127.0.0.1", node.port_in), configuration.delay_ms / 1e3, bytes_per_s))
            for node in nodes
        ]
        yield write_seen_as(nodes_config, [relay.port for relay in relays])


@dataclass(frozen=True)
class Layout:
    """The processes of a configuration: a ring that runs, and whoever predicts it."""

    configuration: Configuration
    ckpt: Path
    ring: Ring
    planner: Worker
    seen_as: str | None

    def predict(self, *splits: Sequence[int]) -> dict[str, Any]:
        """The answer of `plan_driver`."""
        answer: dict[str, Any] = self.planner.ask(
            {
                "ckpt": str(self.ckpt),
                "nodes_config": str(self.ring.nodes_config),
                "seen_as": self.seen_as,
                "context": PROMPT_TOKENS + STEPS,
                "n_samples": self.configuration.n_samples,
                "quantize": self.configuration.mode,
                "splits": splits,
            }
        )
        return answer

    def reach(self, split: Sequence[int]) -> float:
        """Tokens/s with so many layers on each node."""
        request = Request(
            prompt=[i % 1000 for i in range(7, 7 + PROMPT_TOKENS)],
            n_samples=self.configuration.n_samples,
            n_tokens=STEPS,
            seen_as=self.seen_as,
            split=",".join(map(str, split)),
        )
        return self.ring.run(request).tokens_per_s


@contextlib.contextmanager
def laid_out(configuration: Configuration, ckpt: Path, cores: Sequence[int], scratch: Path) -> Iterator[Layout]:
    """All processes of a configuration, ready."""
    own = cores[: len(configuration.split)]
    logs, settings = scratch / "logs", NodeSettings(configuration.mode)
    second = NodeSettings(configuration.second_mode or configuration.mode, memory_limit=configuration.memory_limit)
    with contextlib.ExitStack() as stack:
        nodes_config = stack.enter_context(secondaries(own[1:], scratch, second))
        planner = stack.enter_context(Worker(python_module("plan_driver"), own[:1], logs / "plan_driver.log"))
        driver = stack.enter_context(Worker(python_module("ring_driver"), own[:1], logs / "ring_driver.log"))
        ring = Ring(driver, nodes_config, ckpt, settings)
        ring.wait_until_ready()
        planner.hear()
        seen_as = stack.enter_context(relayed(configuration, nodes_config))
        stack.enter_context(disturbed(configuration, own, scratch))
        yield Layout(configuration, ckpt, ring, planner, None if seen_as is None else str(seen_as))


def take(configuration: Configuration, ckpt: Path, cores: Sequence[int], scratch: Path, rounds: int) -> Outcome:
    """Predict, then run."""
    layers = layers_of(configuration.split, load_config(ckpt).n_layer)
    with laid_out(configuration, ckpt, cores, scratch) as layout:
        pairs = [(layout.predict(layers)["tokens_s"][0], layout.reach(layers)) for _ in range(rounds)]
    predicted, reached = zip(*pairs, strict=True)
    return Outcome(configuration, layers, predicted, reached)


@dataclass(frozen=True)
class Turn:
    """A plan, and what was reached right afterwards, by the layers of the first node."""

    planned: int  # layers of the first node, in the planner's ring of both
    is_dropped: bool  # whether the planner leaves the second node out
    reached: dict[int, float]
    alone: float  # the first node

    def planned_over(self, first: int) -> float:
        """The planner's split over another one."""
        return self.reached[self.planned] / self.reached[first]


@dataclass(frozen=True)
class Sweep:
    """One configuration with every split: tokens/s by the layers of the first node."""

    configuration: Configuration
    n_layer: int
    reached: dict[int, float]
    turns: tuple[Turn, ...]  # with the planned split, the even one and the best one

    @property
    def best(self) -> int:
        return best_of(self.reached)

    @property
    def planned(self) -> int:
        """What most turns planned, or nearly."""
        return statistics.median_low(turn.planned for turn in self.turns)

    @property
    def planned_speed(self) -> float:
        return statistics.median(turn.reached[turn.planned] for turn in self.turns)

    @property
    def best_speed(self) -> float:
        """When it ran again: the best of many was lucky, too, in the run that made it the best."""
        return statistics.median(turn.reached[self.best] for turn in self.turns)

    @property
    def alone(self) -> float:
        return statistics.median(turn.alone for turn in self.turns)

    def planned_over(self, first: int) -> float:
        """The planner's split over another one, turn by turn."""
        return statistics.median(turn.planned_over(first) for turn in self.turns)

    @property
    def n_dropped(self) -> int:
        """In how many turns the planner leaves the second node out."""
        return sum(turn.is_dropped for turn in self.turns)

    @property
    def is_advice_right(self) -> bool:
        """That of most turns; also where both are as fast as each other, within the error of such a measurement."""
        gain = statistics.median(turn.alone / max(turn.reached.values()) for turn in self.turns)
        return (gain > 1) == (2 * self.n_dropped > len(self.turns)) or abs(gain - 1) < CHOICE_GOAL


def best_of(reached: Mapping[int, float]) -> int:
    """The layers of the first node that made most."""
    return max(reached, key=lambda first: reached[first])


def sweep(configuration: Configuration, ckpt: Path, cores: Sequence[int], scratch: Path, rounds: int) -> Sweep:
    """Try all splits in turn, then twice as often plan and try those that count."""
    n_layer = load_config(ckpt).n_layer
    even = n_layer // 2
    one = Configuration(configuration.name, (100,), configuration.n_samples, mode=configuration.mode)
    with (
        laid_out(configuration, ckpt, cores, scratch) as layout,
        laid_out(one, ckpt, cores, scratch / "alone") as alone,
    ):
        answer = layout.predict()
        tried = {answer["planned"][0], *(layers_of((percent, 0), n_layer)[0] for percent in SWEPT_PERCENTS)}
        fitting = sorted(first for first in tried if n_layer - first <= answer["max_layers"][1])
        if n_layer - even > answer["max_layers"][1]:
            raise BenchError(f"{configuration.name}: the even split does not fit, with which others are compared")

        def run(firsts: Iterable[int]) -> dict[int, float]:
            return {first: layout.reach((first, n_layer - first)) for first in firsts}

        def take_turn(best: int) -> Turn:
            answer = layout.predict()
            planned = answer["planned"][0]
            reached = run(sorted({planned, even, best}))
            return Turn(planned, answer["n_nodes"] == 1, reached, alone.reach((n_layer,)))

        passes = [run(fitting) for _ in range(max(1, rounds - 1))]
        reached = {first: statistics.median(each[first] for each in passes) for first in fitting}
        turns = tuple(take_turn(best_of(reached)) for _ in range(2 * rounds))
    return Sweep(configuration, n_layer, reached, turns)


# ---- results


def table(outcomes: Sequence[Outcome]) -> str:
    """Markdown, with the errors that count."""
    lines = ["| ring | layers | predicted | reached | error |", "|---|---|---|---|---|"]
    for outcome in outcomes:
        layers = ",".join(map(str, outcome.layers))
        predicted, reached = spread(outcome.predicted), spread(outcome.reached)
        lines.append(f"| {outcome.configuration.name} | {layers} | {predicted} | {reached} | {outcome.error:+.0%} |")
    errors = [abs(outcome.error) for outcome in outcomes]
    return "\n".join(
        [
            *lines,
            "",
            f"Tokens/s. Median error {statistics.median(errors):.1%} (goal {MEDIAN_GOAL:.0%}), worst {max(errors):.1%}"
            f" (goal {WORST_GOAL:.0%}), of {len(errors)} configurations.",
        ]
    )


def sweep_table(sweeps: Sequence[Sweep]) -> str:
    """Markdown: what the planner chose, against the best of all splits and against the even one."""
    lines = [
        "| nodes | planned | reached | best of all | of the best | over even | first node alone | advice |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for found in sweeps:
        n_layer, planned, best, n_turns = found.n_layer, found.planned, found.best, len(found.turns)
        advice = f"without it in {found.n_dropped} of {n_turns}: {'right' if found.is_advice_right else 'wrong'}"
        lines.append(
            f"| {found.configuration.name} | {planned},{n_layer - planned} | {found.planned_speed:.1f}"
            f" | {found.best_speed:.1f} ({best},{n_layer - best}) | {found.planned_over(best):.0%}"
            f" | {found.planned_over(n_layer // 2):.2f}x | {found.alone:.1f} | {advice} |"
        )
    return "\n".join(lines)


def plot(outcomes: Sequence[Outcome], path: Path) -> None:
    """Predicted against measured, with the goal around the diagonal."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 6), layout="constrained")
    axes = figure.subplots()
    predicted = [statistics.median(outcome.predicted) for outcome in outcomes]
    reached = [statistics.median(outcome.reached) for outcome in outcomes]
    lowest, highest = 0.9 * min(predicted + reached), 1.1 * max(predicted + reached)
    ends = [lowest, highest]
    axes.plot(ends, ends, color="gray", linewidth=1)
    for goal, style in ((MEDIAN_GOAL, "--"), (WORST_GOAL, ":")):
        for factor in (1 - goal, 1 + goal):
            axes.plot(ends, [factor * end for end in ends], style, color="gray", linewidth=0.8)
    axes.scatter(reached, predicted, zorder=3)
    axes.set(xscale="log", yscale="log", xlim=ends, ylim=ends, xlabel="reached tokens/s", ylabel="predicted tokens/s")
    axes.set_title("Predicted against reached; dashed 10%, dotted 25%")
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--ckpt", type=Path, default=CHECKPOINTS_DIR / "local" / "SmolLM2-135M-Instruct")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--scratch", type=Path, default=ROOT / ".cache" / "bench")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results" / "planning.json")
    parser.add_argument("--only", metavar="TEXT", default="", help="configurations whose name holds this")
    parser.add_argument("--kind", choices=("rings", "sweeps"), help="single splits, or all of them; default: both")
    options = parser.parse_args()
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # in good order: no child is left behind
    try:
        cores, ckpt = own_cores(), without_chunks(options.ckpt, options.scratch)
    except BenchError as exc:
        parser.error(str(exc))

    def chosen(kind: str, configurations: Sequence[Configuration]) -> list[Configuration]:
        if options.kind not in (None, kind):
            return []
        return [one for one in configurations if options.only in one.name and len(one.split) <= len(cores)]

    rings, swept = chosen("rings", CONFIGURATIONS), chosen("sweeps", SWEPT)
    if not rings and not swept:
        parser.error(f"--only {options.only}: no such configuration, or fewer cores than nodes")
    outcomes, sweeps = list[Outcome](), list[Sweep]()
    try:
        for configuration in rings:
            outcomes.append(take(configuration, ckpt, cores, options.scratch, options.rounds))
            print(f"{configuration.name}: {outcomes[-1].error:+.0%}")
        for configuration in swept:
            sweeps.append(found := sweep(configuration, ckpt, cores, options.scratch, options.rounds))
            print(f"{configuration.name}: {found.reached}, {found.turns}")
    except BenchError as exc:
        sys.exit(f"planning.py: {exc}")
    finally:  # what was measured before an interruption is kept, and earlier results where there is nothing
        if outcomes or sweeps:
            write(outcomes, sweeps, options.output)


def write(outcomes: Sequence[Outcome], sweeps: Sequence[Sweep], output: Path) -> None:
    """The figures, the tables, and the plot."""
    output.parent.mkdir(parents=True, exist_ok=True)
    figures = {"rings": list(map(asdict, outcomes)), "sweeps": list(map(asdict, sweeps))}
    output.write_text(json.dumps(figures, indent=1) + "\n")
    tables = [table(outcomes)] if outcomes else []
    tables += [sweep_table(sweeps)] if sweeps else []
    output.with_suffix(".md").write_text("\n\n".join(tables) + "\n")
    print(*tables, sep="\n\n")
    if outcomes:
        plot(outcomes, output.with_suffix(".png"))


if __name__ == "__main__":
    main()
