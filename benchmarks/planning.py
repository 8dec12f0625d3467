#!/usr/bin/env python3
"""Predicted against measured: what `plan.py` foretells of rings that are uneven on purpose, and what they reach.

    python benchmarks/planning.py --output benchmarks/results/planning.json

Nodes are pinned to a core each; a busy loop on a core makes its node slower, and relays delay and limit the links.
Every configuration is measured anew for its prediction, then runs with the split that it was predicted for.
Writes the figures as JSON, a table as Markdown, and a plot. For a machine that is otherwise idle; about 10 minutes.
"""

import argparse
import contextlib
import json
import statistics
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "src")]

from benchmarks.relay import Relay  # noqa: E402
from benchmarks.rings import NodeSettings, Request, Ring, secondaries, write_seen_as  # noqa: E402
from benchmarks.workers import Worker, end, own_cores, python_module, start  # noqa: E402
from mdi.checkpoint.config import load_config  # noqa: E402
from mdi.config.network import load_network  # noqa: E402
from mdi.config.paths import CHECKPOINTS_DIR  # noqa: E402

PROMPT_TOKENS, STEPS = 96, 48  # every sample decodes around position 128
BURN = "while True: pass"
MEDIAN_GOAL, WORST_GOAL = 0.10, 0.25  # of the relative error of tokens/s


@dataclass(frozen=True)
class Configuration:
    """A ring on at most two cores. `split` is in percent of the layers, of each node."""

    name: str
    split: tuple[int, ...]
    n_samples: int
    burners: tuple[int, ...] = ()  # nodes whose core a busy loop shares
    delay_ms: float = 0.0  # one way, of every link
    mbit: float | None = None  # of every link


CONFIGURATIONS = (
    Configuration("one node, 1 sample", (100,), 1),
    Configuration("one node, 4 samples", (100,), 4),
    Configuration("one node beside a busy loop", (100,), 4, burners=(0,)),
    Configuration("even, 1 sample", (50, 50), 1),
    Configuration("even, 2 samples", (50, 50), 2),
    Configuration("even, 8 samples", (50, 50), 8),
    Configuration("uneven split, 4 samples", (75, 25), 4),
    Configuration("uneven split the other way, 4 samples", (25, 75), 4),
    Configuration("second node half as fast, even split", (50, 50), 4, burners=(1,)),
    Configuration("second node half as fast, better split", (67, 33), 4, burners=(1,)),
    Configuration("first node half as fast, even split", (50, 50), 4, burners=(0,)),
    Configuration("first node half as fast, better split", (33, 67), 4, burners=(0,)),
    Configuration("5 ms on every link, 1 sample", (50, 50), 1, delay_ms=5),
    Configuration("5 ms on every link, 8 samples", (50, 50), 8, delay_ms=5),
    Configuration("20 ms on every link, 2 samples", (50, 50), 2, delay_ms=20),
    Configuration("4 Mbit/s on every link, 8 samples", (50, 50), 8, mbit=4),
    Configuration("slow second node, 5 ms and 20 Mbit/s", (67, 33), 4, burners=(1,), delay_ms=5, mbit=20),
)


@dataclass(frozen=True)
class Outcome:
    """One configuration: what was predicted, and what was reached in each round."""

    configuration: Configuration
    layers: tuple[int, ...]
    planned: tuple[int, ...]  # what the planner would have chosen
    predicted: float
    measured: tuple[float, ...]

    @property
    def reached(self) -> float:
        """The median."""
        return statistics.median(self.measured)

    @property
    def error(self) -> float:
        """Of the prediction, relative to what was reached."""
        return self.predicted / self.reached - 1


def layers_of(split: Sequence[int], n_layer: int) -> tuple[int, ...]:
    """Percents -> layers, at least one for each node."""
    layers = [max(1, round(n_layer * percent / 100)) for percent in split[:-1]]
    return (*layers, n_layer - sum(layers))


@contextlib.contextmanager
def burning(cores: Sequence[int], scratch: Path) -> Iterator[None]:
    """Busy loops on these cores."""
    with contextlib.ExitStack() as stack:
        for core in cores:
            stack.callback(end, start([sys.executable, "-c", BURN], [core], scratch / "logs" / f"burner{core}.log"))
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


def take(configuration: Configuration, ckpt: Path, cores: Sequence[int], scratch: Path, rounds: int) -> Outcome:
    """Predict, then run."""
    layers = layers_of(configuration.split, load_config(ckpt).n_layer)
    own = [cores[i] for i in range(len(layers))]
    logs, settings = scratch / "logs", NodeSettings()
    with contextlib.ExitStack() as stack:
        nodes_config = stack.enter_context(secondaries(own[1:], scratch, settings))
        planner = stack.enter_context(Worker(python_module("plan_driver"), own[:1], logs / "plan_driver.log"))
        driver = stack.enter_context(Worker(python_module("ring_driver"), own[:1], logs / "ring_driver.log"))
        ring = Ring(driver, nodes_config, ckpt, settings)
        ring.wait_until_ready()
        planner.hear()
        seen_as = stack.enter_context(relayed(configuration, nodes_config))
        seen = None if seen_as is None else str(seen_as)
        stack.enter_context(burning([own[i] for i in configuration.burners], scratch))
        answer = planner.ask(
            {
                "ckpt": str(ckpt),
                "nodes_config": str(nodes_config),
                "seen_as": seen,
                "context": PROMPT_TOKENS + STEPS,
                "n_samples": configuration.n_samples,
                "splits": [layers],
            }
        )
        request = Request(
            prompt=[i % 1000 for i in range(7, 7 + PROMPT_TOKENS)],
            n_samples=configuration.n_samples,
            n_tokens=STEPS,
            seen_as=seen,
            split=",".join(map(str, layers)),
        )
        measured = tuple(ring.run(request).tokens_per_s for _ in range(rounds))
    return Outcome(configuration, layers, tuple(answer["planned"]), answer["tokens_s"][0], measured)


# ---- results


def table(outcomes: Sequence[Outcome]) -> str:
    """Markdown, with the errors that count."""
    lines = ["| ring | layers | predicted | measured | error |", "|---|---|---|---|---|"]
    for outcome in outcomes:
        layers = ",".join(map(str, outcome.layers))
        spread = f"{outcome.reached:.1f} ({min(outcome.measured):.1f} to {max(outcome.measured):.1f})"
        lines.append(
            f"| {outcome.configuration.name} | {layers} | {outcome.predicted:.1f} | {spread} | {outcome.error:+.0%} |"
        )
    errors = [abs(outcome.error) for outcome in outcomes]
    return "\n".join(
        [
            *lines,
            "",
            f"Tokens/s. Median error {statistics.median(errors):.1%} (goal {MEDIAN_GOAL:.0%}), worst {max(errors):.1%}"
            f" (goal {WORST_GOAL:.0%}), of {len(errors)} configurations.",
        ]
    )


def plot(outcomes: Sequence[Outcome], path: Path) -> None:
    """Predicted against measured, with the goal around the diagonal."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 6), layout="constrained")
    axes = figure.subplots()
    highest = 1.1 * max(max(outcome.predicted, outcome.reached) for outcome in outcomes)
    lowest = 0.9 * min(min(outcome.predicted, outcome.reached) for outcome in outcomes)
    ends = [lowest, highest]
    axes.plot(ends, ends, color="gray", linewidth=1)
    for goal, style in ((MEDIAN_GOAL, "--"), (WORST_GOAL, ":")):
        for factor in (1 - goal, 1 + goal):
            axes.plot(ends, [factor * end for end in ends], style, color="gray", linewidth=0.8)
    axes.scatter([outcome.reached for outcome in outcomes], [outcome.predicted for outcome in outcomes], zorder=3)
    axes.set(xscale="log", yscale="log", xlim=ends, ylim=ends, xlabel="measured tokens/s", ylabel="predicted tokens/s")
    axes.set_title("Predicted against measured; dashed 10%, dotted 25%")
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--ckpt", type=Path, default=CHECKPOINTS_DIR / "local" / "SmolLM2-135M-Instruct")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--scratch", type=Path, default=ROOT / ".cache" / "bench")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results" / "planning.json")
    parser.add_argument("--only", metavar="TEXT", default="", help="configurations whose name holds this")
    options = parser.parse_args()
    cores, outcomes = own_cores(), []
    for configuration in CONFIGURATIONS:
        if options.only not in configuration.name or len(configuration.split) > len(cores):
            continue
        outcomes.append(take(configuration, options.ckpt, cores, options.scratch, options.rounds))
        print(f"{configuration.name}: {outcomes[-1].predicted:.1f} predicted, {outcomes[-1].reached:.1f} measured", flush=True)
    if not outcomes:
        parser.error(f"--only {options.only}: no such configuration, or fewer cores than nodes")
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps([asdict(outcome) for outcome in outcomes], indent=1) + "\n")
    options.output.with_suffix(".md").write_text(table(outcomes) + "\n")
    plot(outcomes, options.output.with_suffix(".png"))
    print(table(outcomes))


if __name__ == "__main__":
    main()
