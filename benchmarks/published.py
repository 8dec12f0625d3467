#!/usr/bin/env python3
"""Run the published experiments on this machine, with random weights, and draw them beside what was published.

    python benchmarks/published.py                      NanoLlama, GPT-2 and GPT-2 medium on 1, 2 and 3 nodes
    python benchmarks/published.py --model gpt2-large   another model, by a name that prepare_model.py --random takes
    python benchmarks/published.py --quick              a tenth of the tokens, to see whether it works
    python benchmarks/published.py --redraw FILE.json   tables and plots anew, from what was measured before
    python benchmarks/published.py --docs               the same tables and plots in docs/performance.md, too

Writes a JSON file, Markdown tables and a plot for each model; benchmarks/README.md tells how to read them.
"""

import argparse
import datetime
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "src")]

from benchmarks.machine import busy, commit, processor  # noqa: E402
from benchmarks.measures import PROMPT_TOKENS, prompt_of  # noqa: E402
from benchmarks.published_report import (  # noqa: E402
    PUBLISHED,
    Experiment,
    Measured,
    filled,
    markdown,
    plot,
    points_of,
    read_json,
    write_json,
)
from benchmarks.report import slug  # noqa: E402
from benchmarks.rings import Request, Ring, ring, without_chunks  # noqa: E402
from benchmarks.workers import BenchError, own_cores  # noqa: E402
from mdi.config.paths import CHECKPOINTS_DIR  # noqa: E402
from mdi.config.prepare_options import PrepareOptions  # noqa: E402
from mdi.errors import MdiError  # noqa: E402
from mdi.files import write_text  # noqa: E402
from mdi.other_load import LoadMeter  # noqa: E402
from mdi.strings import count  # noqa: E402

MODELS = ("NanoLlama", "gpt2", "gpt2-medium")
NODES = (1, 2, 3)
ONE_SAMPLE = Experiment(1, 400)
SEVERAL_SAMPLES = Experiment(3, 400)  # of models whose several samples were not published
QUICK = 10  # times fewer tokens

PAGE = ROOT / "docs" / "performance.md"

OpenRing = Callable[[int], AbstractContextManager[Ring]]  # of so many nodes


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    option = parser.add_argument
    option("--model", action="append", metavar="NAME", help=f"may repeat (default: {', '.join(MODELS)})")
    option("--quick", action="store_true", help="a tenth of the tokens")
    option("--redraw", type=Path, metavar="FILE", help="measure nothing: read this JSON file instead")
    option("--docs", action="store_true", help="put tables and plots into docs/performance.md too")
    option("--cores", metavar="A,B,...", help="cores for the nodes, taken in turn (default: all of this process)")
    option("--ckpt-folder", type=Path, metavar="DIR", default=CHECKPOINTS_DIR, help="where the models are made")
    option("--scratch", type=Path, metavar="DIR", default=ROOT / ".cache" / "bench", help="networks, chunks and logs")
    option("--output", type=Path, metavar="FILE", help="the JSON file (default: by date and machine, in results)")
    option("--machine", metavar="NAME", help="what the machine is called in the results (default: its processor)")
    return parser


def experiments_of(model: str, *, quick: bool = False) -> tuple[Experiment, Experiment]:
    """One sample; and several, as published where that is known."""
    several = PUBLISHED[model].experiment if model in PUBLISHED else SEVERAL_SAMPLES
    shorter = QUICK if quick else 1
    one, many = (Experiment(each.n_samples, each.n_tokens // shorter) for each in (ONE_SAMPLE, several))
    return one, many


def measure(model: str, experiments: Sequence[Experiment], n_cores: int, open_ring: OpenRing) -> Iterator[Measured]:
    """Every experiment on 1, 2 and 3 nodes. One that fails has no points, and a note that says why."""
    for n_nodes in NODES:
        left = list(experiments)
        try:
            with open_ring(n_nodes) as nodes:
                while left:
                    yield _run(nodes, model, n_nodes, left[0], n_cores)
                    del left[0]
        except BenchError as exc:
            for experiment in left:
                yield Measured(model, n_nodes, experiment, note=f"not measured: {exc}")


def _run(nodes: Ring, model: str, n_nodes: int, experiment: Experiment, n_cores: int) -> Measured:
    nodes.prepare(Request(prompt_of(PROMPT_TOKENS), experiment.n_samples, experiment.n_tokens))
    meter = LoadMeter()
    nodes.go()
    run = nodes.result()
    others = meter.stop(len(own_cores()))
    notes = [f"{n_nodes} nodes share {count(n_cores, 'core')}"] if n_nodes > n_cores else []
    notes += [f"other programs took {others}"] if others.is_heavy else []
    return Measured(model, n_nodes, experiment, points_of(run.start, run.times), "; ".join(notes))


def prepared(model: str, ckpt_folder: Path) -> Path:
    """The folder of the random model, made where it is not there."""
    from mdi.cli.prepare import prepare

    return prepare(PrepareOptions(random=model, ckpt_folder=ckpt_folder))[0]


def measure_all(options: argparse.Namespace, cores: Sequence[int]) -> Iterator[Measured]:
    """All runs of all models, told as they come."""
    for name in options.model or MODELS:
        folder = without_chunks(prepared(name, options.ckpt_folder), options.scratch)
        model = folder.name

        def open_ring(n_nodes: int, folder: Path = folder) -> AbstractContextManager[Ring]:
            return ring(folder, [cores[i % len(cores)] for i in range(n_nodes)], options.scratch)

        for run in measure(model, experiments_of(model, quick=options.quick), len(cores), open_ring):
            told = f"{run.tokens_per_s:.1f} tokens/s" if run.points else run.note
            print(f"{model}, {count(run.n_nodes, 'node')}, {run.experiment}: {told}", file=sys.stderr, flush=True)
            yield run


def describe(name: str | None, cores: Sequence[int]) -> dict[str, Any]:
    """What the figures were taken on, and with which versions."""
    return {
        "date": f"{datetime.date.today()}",
        "machine": name or processor(),
        "cores": f"{len(cores)} of {len(own_cores())}",
        "busy before": busy(cores),
        "commit": commit(),
        "torch": version("torch"),
        "weights": "random, computed in float32",
        "threads": "1 per node",
    }


def main() -> None:
    parser = build_parser()
    options = parser.parse_args()
    try:
        path = options.redraw or record(options)
        report(options.output or path, *read_json(path), in_docs=options.docs)
    except MdiError as exc:
        parser.exit(1, f"error: {exc}\n")


def record(options: argparse.Namespace) -> Path:
    """Measure; the JSON file with everything that was measured."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # in good order: no child is left behind
    cores = [int(core) for core in options.cores.split(",")] if options.cores else own_cores()
    machine = describe(options.machine, cores)
    name = f"{machine['date']}-{slug(machine['machine'])}-published.json"
    path: Path = options.output or ROOT / "benchmarks" / "results" / name
    runs = []
    for run in measure_all(options, cores):
        runs.append(run)
        write_json(path, machine, runs)  # what there is, should the rest be interrupted
    return path


def report(path: Path, machine: dict[str, Any], runs: Sequence[Measured], *, in_docs: bool = False) -> None:
    """Write the tables and plots beside the JSON file `path`, and print the tables."""
    text = markdown(machine, runs)
    write_text(path.with_suffix(".md"), text)
    print(text)
    for model, image in images_of(path, runs).items():
        plot(image, machine["machine"], [run for run in runs if run.model == model])
        print(image)
    if in_docs:
        write_text(PAGE, filled(PAGE.read_text(encoding="utf-8"), section(path, machine, runs)))


def section(path: Path, machine: dict[str, Any], runs: Sequence[Measured]) -> str:
    """What the page on performance has of the runs in the JSON file `path`: where they are from, tables and plots."""

    def link(file: Path) -> str:
        return Path(os.path.relpath(file, PAGE.parent)).as_posix()

    source = f"Written by `benchmarks/published.py --docs` from [{path.name}]({link(path)})."
    plots = [f"![{model}: time over tokens]({link(image)})" for model, image in images_of(path, runs).items()]
    return "\n\n".join([source, markdown(machine, runs).rstrip(), *plots])


def images_of(path: Path, runs: Sequence[Measured]) -> dict[str, Path]:
    """The plot of each model, beside the JSON file `path`."""
    models = dict.fromkeys(run.model for run in runs)
    return {model: path.with_name(f"{path.stem}-{slug(model)}.png") for model in models}


if __name__ == "__main__":
    main()
