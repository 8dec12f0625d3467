"""Series of measured values -> ratios, verdicts, Markdown, JSON and a plot."""

import json
import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mdi.files import atomic_path, write_text

MOST_SPREAD = 0.2  # of the median, from the least to the most


@dataclass(frozen=True)
class Series:
    """One thing that was measured, one value for each round. Without values, `note` tells why.

    With a `row` it is a cell of a table: its label is the column.
    """

    measure: str
    label: str
    unit: str
    values: tuple[float, ...] = ()
    note: str = ""
    target: str = ""  # the key of the target that it is held against
    row: str = ""


@dataclass(frozen=True)
class Target:
    """What a series is held against: the floor must be reached, the stretch is the aim."""

    key: str
    text: str
    floor: float
    stretch: float
    unit: str = "x"
    less: bool = False  # whether less is better

    def verdict(self, value: float) -> str:
        """`below the floor`, `floor` or `stretch`."""
        sign = -1 if self.less else 1
        if sign * value >= sign * self.stretch:
            return "stretch"
        return "floor" if sign * value >= sign * self.floor else "below the floor"

    def judge(self, values: Sequence[float]) -> str:
        """The verdict of the median, marked where the rounds disagree too much to trust it."""
        middle = statistics.median(values)
        return self.verdict(middle) + (", noisy" if max(values) - min(values) > MOST_SPREAD * middle else "")

    def score(self, value: float) -> float:
        """How often the floor fits into the value: from 1 on it is reached."""
        return self.floor / value if self.less else value / self.floor


TARGETS = (
    Target("ring", "2 nodes, 2 samples, float32 / 2 standalone nodes at the same time", 0.95, 0.98),
    Target("int8 group", "int8, 2 nodes: 16 samples / 2 samples", 4.0, 6.0),
    Target("int8 one", "int8, 1 node, 1 sample / llama.cpp Q8_0, 1 thread", 1.25, 1.5),
    Target("int8 one large", "the same, TinyLlama-1.1B shape", 1.1, 1.2),
    Target("int4 one", "int4, 1 node, 1 sample / llama.cpp Q4_0, 1 thread", 1.0, 1.3),
    Target("int4 one large", "the same, TinyLlama-1.1B shape", 1.0, 1.3),
    Target("int8 node AVX2", "int8, 1 node, 16 samples / llama.cpp Q8_0, 1 thread, 16 sequences, AVX2", 2.2, 3.0),
    Target("int8 node VNNI", "the same, VNNI", 3.5, 4.5),
    Target("int8 node large AVX2", "the same, TinyLlama-1.1B shape, AVX2", 1.7, 2.5),
    Target("int8 node large VNNI", "the same, TinyLlama-1.1B shape, VNNI", 3.7, 4.5),
    Target("int8 ring AVX2", "int8, 2 nodes, 16 samples / llama.cpp Q8_0, 2 threads, 16 sequences, AVX2", 1.9, 3.0),
    Target("int8 ring VNNI", "the same, VNNI", 3.0, 4.5),
    Target("litgpt", "float32, 1 node, 1 sample / litgpt", 1.4, 1.6),
    Target("hop", "a hop outside the stages, 16 rows, loopback", 0.2, 0.1, unit="ms", less=True),
    Target("link", "2 nodes, 4 samples, float32, TinyLlama-1.1B shape: links of 5 ms / no delay", 0.95, 0.99),
    Target("start", "second start to the first token, int8, 1 node", 3.0, 1.5, unit="s", less=True),
    Target("memory", "memory of a node beside weights, slots and messages, int8", 260.0, 180.0, unit="MB", less=True),
    Target("serve tokens", "serving 16 users, int8, 2 nodes: tokens/s / llama-server Q8_0", 1.0, 1.5),
    Target("serve gap", "the same: 95th percentile of the time between tokens", 1.2, 1.0, less=True),
    Target("serve turn", "first token of a chat's tenth turn / of its last message alone", 1.5, 1.2, less=True),
)

# ---- arithmetic


def ratio(measure: str, label: str, over: Series, under: Series, target: str = "") -> Series:
    """`over` by `under`, round by round."""
    note = over.note or under.note
    if not over.values or not under.values:
        return Series(measure, label, "x", note=note, target=target)
    pairs = zip(over.values, under.values, strict=False)
    return Series(measure, label, "x", tuple(a / b for a, b in pairs), note, target)


def spread(values: Sequence[float]) -> str:
    """`median (min-max)`, with the digits that a figure of its size deserves."""
    middle = statistics.median(values)
    digits = 3 if middle < 1 else 2 if middle < 10 else 1 if middle < 100 else 0
    return f"{middle:.{digits}f} ({min(values):.{digits}f}-{max(values):.{digits}f})"


# ---- text


def markdown(machine: Mapping[str, Any], series: Sequence[Series]) -> str:
    """All tables: what it ran on, each measure, the verdicts."""
    parts = [", ".join(f"{key} {value}" for key, value in machine.items())]
    for measure in dict.fromkeys(item.measure for item in series):
        items = [item for item in series if item.measure == measure]
        if cells := [item for item in items if item.row]:
            parts.append(_cross_table(measure, cells))
        rows = [_row(item) for item in items if not item.row]
        parts.append(table([f"{measure}", "unit", "median (min-max)"], rows))
    parts.append(verdict_table(series))
    return "\n\n".join(parts) + "\n"


def verdict_table(series: Iterable[Series]) -> str:
    """Every target, and what became of it."""
    reached = {item.target: item for item in series if item.target}
    rows = []
    for target in TARGETS:
        unit = "" if target.unit == "x" else f" {target.unit}"
        item = reached.get(target.key)
        if item is None or not item.values:
            why = f" ({item.note})" if item is not None and item.note else ""
            result, verdict = "", f"not measured{why}"
        else:
            result, verdict = spread(item.values) + unit, target.judge(item.values)
        rows.append([target.text, f"{target.floor:g}{unit}", f"{target.stretch:g}{unit}", result, verdict])
    return table(["measure", "floor", "stretch", "reached, median (min-max)", "verdict"], rows)


def _row(item: Series) -> list[str]:
    if not item.values:
        return [item.label, item.unit, f"not measured: {item.note}"]
    return [item.label, item.unit, spread(item.values) + (f", {item.note}" if item.note else "")]


def _cross_table(measure: str, cells: Sequence[Series]) -> str:
    columns = dict.fromkeys((cell.label, cell.unit) for cell in cells)
    texts = {(cell.row, cell.label): spread(cell.values) if cell.values else "not measured" for cell in cells}
    rows = [
        [row, *(texts.get((row, label), "") for label, _ in columns)]
        for row in dict.fromkeys(cell.row for cell in cells)
    ]
    return table([measure, *(f"{label}, {unit}" for label, unit in columns)], rows)


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


# ---- files


def write_json(path: Path, machine: Mapping[str, Any], series: Sequence[Series]) -> None:
    """Everything that was measured."""
    verdicts = [
        {"target": asdict(target), "reached": statistics.median(item.values), "verdict": target.judge(item.values)}
        for target in TARGETS
        for item in series
        if item.target == target.key and item.values
    ]
    content = {"machine": dict(machine), "series": [asdict(item) for item in series], "verdicts": verdicts}
    write_text(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def read_json(path: Path) -> tuple[dict[str, Any], list[Series]]:
    """What `write_json` wrote."""
    content = json.loads(path.read_text(encoding="utf-8"))
    series = [Series(**{**item, "values": tuple(item["values"])}) for item in content["series"]]
    return content["machine"], series


def slug(text: str) -> str:
    """`text` as a part of a file name."""
    return re.sub("[^a-z0-9]+", "-", text.lower()).strip("-")


def plot(path: Path, series: Sequence[Series]) -> None:
    """Draw tokens/s over samples, and how far each target is reached, as PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(14, 5), dpi=120, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2, width_ratios=[1, 1.3])
    _plot_samples(left, series)
    _plot_verdicts(right, series)
    with atomic_path(path) as partial:
        canvas.print_png(partial)


_SAMPLES = re.compile(r"(.+?), (\d+) samples?")


def _plot_samples(axes: Any, series: Iterable[Series]) -> None:
    curves: dict[str, list[tuple[int, Sequence[float]]]] = {}
    for item in series:
        match = _SAMPLES.fullmatch(item.label)
        if item.measure == "ring" and item.unit == "tokens/s" and item.values and match and "again" not in match[1]:
            curves.setdefault(match[1], []).append((int(match[2]), item.values))
    for label, points in curves.items():
        middles = [statistics.median(values) for _, values in points]
        below = [middle - min(values) for middle, (_, values) in zip(middles, points, strict=True)]
        above = [max(values) - middle for middle, (_, values) in zip(middles, points, strict=True)]
        axes.errorbar([n for n, _ in points], middles, yerr=[below, above], marker="o", capsize=3, label=label)
    ticks = sorted({n for points in curves.values() for n, _ in points})
    axes.set_xscale("log", base=2)
    axes.set_xticks(ticks, [str(n) for n in ticks])
    axes.set_xlabel("samples in all")
    axes.set_ylabel("tokens/s, float32")
    axes.grid(alpha=0.3)
    if curves:
        axes.legend()


def _plot_verdicts(axes: Any, series: Iterable[Series]) -> None:
    reached = {item.target: statistics.median(item.values) for item in series if item.target and item.values}
    targets = [target for target in TARGETS if target.key in reached][::-1]
    places = range(len(targets))
    axes.barh(places, [target.score(reached[target.key]) for target in targets], color="tab:blue", alpha=0.7)
    axes.plot([target.score(target.stretch) for target in targets], places, "k|", markersize=18, label="stretch")
    axes.axvline(1.0, color="tab:red", label="floor")
    axes.set_yticks(places, [target.text.replace(" / ", "\n/ ") for target in targets], fontsize=8)
    axes.set_xlabel("reached over floor")
    axes.legend()
