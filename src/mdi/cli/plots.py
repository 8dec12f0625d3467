"""Curves as PNG files."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mdi.cli.environment import forget_foreign_variables
from mdi.cli.token_times import Points
from mdi.files import atomic_path


@dataclass(frozen=True)
class Mark:
    """Something that happened at a moment: a line across the plot, with its text."""

    x: float
    text: str


def plot_token_times(path: Path, curves: Mapping[str, Points], title: str, marks: Sequence[Mark] = ()) -> None:
    """Draw tokens over time as PNG, one curve for each label. Raises `StorageError`."""
    plot_curves(path, curves, title=title, x_label="time (s)", y_label="generated tokens", marks=marks)


def plot_curves(
    path: Path,
    curves: Mapping[str, Sequence[tuple[float, float]]],
    *,
    title: str,
    x_label: str,
    y_label: str,
    marks: Sequence[Mark] = (),
) -> None:
    """Draw `curves` as a PNG of 1200 x 750 pixels; needs no display. Raises `StorageError`.

    The label of a curve stands beside it, that of the next one higher up: all of them may end at the same height.
    """
    forget_foreign_variables()
    # 1 s. The figure is used without pyplot, which would keep global state and ask for a display.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), dpi=150, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for i, (label, points) in enumerate(curves.items()):
        (line,) = axes.plot([x for x, _ in points], [y for _, y in points])
        beside = points[int((len(points) - 1) * (0.5 + 0.4 * i / len(curves)))]
        # On the side with more room, where no label reaches the edge: below a curve that rises, or above it.
        is_late = beside[0] > max(x for curve in curves.values() for x, _ in curve) / 2
        look = {
            "color": line.get_color(),
            "ha": "right" if is_late else "left",
            "va": "center",
            "bbox": {"fc": "white", "ec": "none", "alpha": 0.8, "pad": 1},
        }
        offset = (-8, 4) if is_late else (8, -4)
        axes.annotate(label, beside, offset, textcoords="offset points", parse_math=False, **look)
    for mark in marks:
        axes.axvline(mark.x, color="gray", linestyle="dotted")
        at, look = axes.get_xaxis_transform(), {"color": "gray", "fontsize": "small", "rotation": 90}
        axes.text(mark.x, 0.98, mark.text, look, va="top", ha="right", transform=at, parse_math=False)
    axes.set_title(title, wrap=True, parse_math=False)
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    axes.grid(alpha=0.3)
    with atomic_path(path) as partial:
        canvas.print_png(partial)
