"""The published experiments: what was published of them, and our runs as tables and plots beside it.

Nothing is measured here, and nothing is drawn that is not known: models of which no figures were published are alone.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.report import table
from mdi import documents
from mdi.cli.token_times import Points, rate_of
from mdi.errors import ConfigError
from mdi.files import atomic_path, write_text
from mdi.strings import count

BEGIN, END = "<!-- the published experiments -->", "<!-- their end -->"  # of what `--docs` writes
MAX_FILE_BYTES = 64 << 20
MAX_POINTS = 240  # of a curve that is kept and drawn


@dataclass(frozen=True)
class Experiment:
    """What a ring generates."""

    n_samples: int
    n_tokens: int  # of each sample

    def __str__(self) -> str:
        return f"{count(self.n_samples, 'sample')} of {count(self.n_tokens, 'token')}"


# ---- what was published


@dataclass(frozen=True)
class Published:
    """What is known of a model's published runs: by number of nodes, (seconds, tokens) from (0, 0) on."""

    experiment: Experiment  # ours that it stands beside
    curves: Mapping[int, Points]
    what: str  # was generated
    note: str


PUBLISHED_MACHINE = "Jetson TX2, gigabit Ethernet"


def _steady(n_tokens: int, rates: Mapping[int, float]) -> dict[int, Points]:
    """The straight lines of runs whose tokens/s are known."""
    return {n_nodes: ((0.0, 0), (n_tokens / rate, n_tokens)) for n_nodes, rate in rates.items()}


_LLAMA = Experiment(3, 800)
_GPT2 = Experiment(3, 400)
_GPT2_WHAT = "samples of 400 tokens, the first 800 of all"
_RATES = "tokens/s of whole runs"
_READ_OFF = "read off the published plot, to about 2 s; no KV cache"
# The curves of GPT-2 are those of the plots in the README of github.com/davmacario/MDI-LLM, which end at 800 tokens.
PUBLISHED: Mapping[str, Published] = {
    "NanoLlama": Published(_LLAMA, _steady(2400, {1: 17.9, 2: 25.9, 3: 30.4}), str(_LLAMA), _RATES),
    "TinyLlama-1.1B-Chat-v1.0": Published(
        _LLAMA, _steady(2400, {2: 13.4, 3: 17.9}), str(_LLAMA), f"{_RATES}; the model does not fit on 1 node"
    ),
    "gpt2-large": Published(
        _GPT2,
        {
            1: ((0, 0), (21, 64), (50, 128), (98, 192), (151, 256), (228, 320), (309, 384), (334, 400), (342, 432),
                (374, 512), (430, 592), (482, 656), (559, 720), (641, 784), (667, 800)),
            2: ((0, 0), (14, 64), (25, 128), (59, 256), (115, 384), (175, 512), (230, 592), (276, 656), (322, 720),
                (358, 768), (388, 800)),
            3: ((0, 0), (11, 64), (19, 128), (38, 256), (62, 384), (100, 512), (145, 656), (182, 768), (197, 800)),
        },
        _GPT2_WHAT,
        _READ_OFF,
    ),
    "gpt2-xl": Published(
        _GPT2,
        {3: ((0, 0), (17, 64), (30, 128), (67, 256), (113, 384), (187, 512), (273, 656), (344, 768), (372, 800))},
        _GPT2_WHAT,
        f"{_READ_OFF}; the model does not fit on fewer nodes",
    ),
}  # fmt: skip

# ---- what was measured


@dataclass(frozen=True)
class Measured:
    """One run of ours. Without points, `note` tells why; with them, what has to be known of the figures."""

    model: str
    n_nodes: int
    experiment: Experiment
    points: tuple[tuple[float, int], ...] = ()  # (seconds since all nodes were ready, tokens of all samples)
    note: str = ""

    @property
    def tokens_per_s(self) -> float:
        return rate_of(self.points)


def points_of(start: float, times: Iterable[Sequence[float]]) -> tuple[tuple[float, int], ...]:
    """The tokens of all samples over time, from (0, 0) on: `MAX_POINTS` of them at most, the last one included."""
    seconds = sorted(at - start for sample in times for at in sample)
    stride = -(-len(seconds) // MAX_POINTS)
    kept = {*range(stride, len(seconds), stride), len(seconds)}
    return ((0.0, 0), *((round(seconds[n - 1], 4), n) for n in sorted(kept)))


def write_json(path: Path, machine: Mapping[str, Any], runs: Sequence[Measured]) -> None:
    """Everything that was measured."""
    content = {"machine": dict(machine), "runs": [asdict(run) for run in runs]}
    write_text(path, json.dumps(content, ensure_ascii=False) + "\n")


def read_json(path: Path) -> tuple[dict[str, Any], list[Measured]]:
    """What `write_json` wrote. Raises `ConfigError` where there is no such file, or it is damaged."""
    content = documents.read_json(path, MAX_FILE_BYTES, ConfigError)
    return content["machine"], [_measured(run) for run in content["runs"]]


def _measured(run: Mapping[str, Any]) -> Measured:
    points = tuple((seconds, n_tokens) for seconds, n_tokens in run["points"])
    return Measured(**{**run, "experiment": Experiment(**run["experiment"]), "points": points})


# ---- tables


def markdown(machine: Mapping[str, Any], runs: Sequence[Measured]) -> str:
    """A table for each model and experiment, the published figures in it where the experiment is the same."""
    parts = [", ".join(f"{key} {value}" for key, value in machine.items())]
    for model, experiment in dict.fromkeys((run.model, run.experiment) for run in runs):
        own = [run for run in runs if (run.model, run.experiment) == (model, experiment)]
        parts += [f"**{model}, {experiment}**", _experiment_table(own, published_of(model, experiment))]
    for model in dict.fromkeys(run.model for run in runs):
        parts.append(f"{model}: {_told(model)}")
    return "\n\n".join(parts) + "\n"


def filled(page: str, section: str) -> str:
    """A page with `section` between its two marks, in place of what was there."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not end:
        raise ConfigError(f"the page has no place for the published experiments: {BEGIN} and {END}")
    return f"{before}{begin}\n\n{section}\n\n{end}{after}"


def published_of(model: str, experiment: Experiment) -> Published | None:
    """What was published of this experiment."""
    published = PUBLISHED.get(model)
    return published if published is not None and published.experiment == experiment else None


def _experiment_table(runs: Sequence[Measured], published: Published | None) -> str:
    ours = {run.n_nodes: run.tokens_per_s for run in runs if run.points}
    theirs = {} if published is None else {n: rate_of(points) for n, points in published.curves.items()}
    notes = {run.n_nodes: run.note for run in runs}
    head = ["nodes", "tokens/s", "over 1 node"] + (["published", "over 1 node"] if theirs else []) + ["note"]
    rows = [
        [str(n), *_cells(n, ours), *(_cells(n, theirs) if theirs else []), notes.get(n, "")]
        for n in sorted({*notes, *theirs})
    ]
    return table(head, rows)


def _cells(n_nodes: int, rates: Mapping[int, float]) -> list[str]:
    """Tokens/s, and how many times those of one node."""
    if n_nodes not in rates:
        return ["", ""]
    return [f"{rates[n_nodes]:.1f}", f"{rates[n_nodes] / rates[1]:.2f}x" if 1 in rates else ""]


def _told(model: str) -> str:
    if model not in PUBLISHED:
        return "no figures were published"
    published = PUBLISHED[model]
    return f"published on {PUBLISHED_MACHINE}, {published.what}: {published.note}"


# ---- plots

_COLORS = {1: "red", 2: "green", 3: "blue"}  # as published


@dataclass(frozen=True)
class _Panel:
    title: str
    curves: Mapping[int, Points]


def plot(path: Path, machine: str, runs: Sequence[Measured]) -> None:
    """Draw the runs of one model as PNG, a panel for each experiment and one for what was published.

    As in the published plots, time is over tokens. Raises `StorageError`.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    panels = _panels(machine, runs)
    figure = Figure(figsize=(5.5 * len(panels), 4.8), dpi=120, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    for axes, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        _draw(axes, panel)
    figure.suptitle(runs[0].model)
    with atomic_path(path) as partial:
        canvas.print_png(partial)


def _panels(machine: str, runs: Sequence[Measured]) -> list[_Panel]:
    panels = []
    for experiment in dict.fromkeys(run.experiment for run in runs):
        curves = {run.n_nodes: run.points for run in runs if run.experiment == experiment and run.points}
        panels.append(_Panel(f"{experiment}\n{machine}", curves))
    if (published := PUBLISHED.get(runs[0].model)) is not None:
        panels.append(_Panel(f"published: {published.what}\n{PUBLISHED_MACHINE}", published.curves))
    return panels


def _draw(axes: Any, panel: _Panel) -> None:
    for n_nodes, points in panel.curves.items():
        label = f"{count(n_nodes, 'node')}, {rate_of(points):.1f} tokens/s"
        axes.plot([n for _, n in points], [s for s, _ in points], color=_COLORS.get(n_nodes), label=label)
    axes.set_title(panel.title, fontsize="medium")
    axes.set_xlabel("generated tokens")
    axes.set_ylabel("time (s)")
    axes.grid(alpha=0.3)
    if panel.curves:
        axes.legend()
