"""Curves as PNG files."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from mdi.cli.token_times import Points
from mdi.files import atomic_path


def plot_token_times(path: Path, curves: Mapping[str, Points]) -> None:
    """Draw tokens over time as PNG, one curve for each label. Raises `StorageError`."""
    plot_curves(path, curves, x_label="time (s)", y_label="generated tokens")


def plot_curves(path: Path, curves: Mapping[str, Sequence[tuple[float, float]]], *, x_label: str, y_label: str) -> None:
    """Draw `curves` as a PNG of 1200 x 750 pixels; needs no display. Raises `StorageError`."""
    # 1 s. The figure is used without pyplot, which would keep global state and ask for a display.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), dpi=150, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for label, points in curves.items():
        axes.plot([x for x, _ in points], [y for _, y in points], label=label)
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    axes.grid(alpha=0.3)
    if curves:
        axes.legend()
    with atomic_path(path) as partial:
        canvas.print_png(partial)
