"""Plots that a run leaves behind."""

import struct
import subprocess
import sys
from pathlib import Path

import pytest

from mdi.cli.plots import Mark, plot_token_times
from mdi.errors import StorageError

SRC = Path(__file__).parents[2] / "src"


def png_size(path: Path) -> tuple[int, int]:
    data = path.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = struct.unpack(">II", data[16:24])
    return width, height


def test_several_runs_are_drawn_into_one_plot(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    path = tmp_path / "img" / "plot.png"
    curves = {f"{n} nodes, ${n}": [(0.0, 0), (1.0, 10 * n)] for n in (1, 2, 3)}
    plot_token_times(path, curves, "org/tiny_$model$, float32\na note", [Mark(0.5, "secondary 0 lost")])
    assert png_size(path) == (1200, 750)
    assert list(path.parent.iterdir()) == [path]
    assert not recwarn.list


def test_labels_stay_inside_the_plot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    figures = []
    print_png = FigureCanvasAgg.print_png
    monkeypatch.setattr(
        FigureCanvasAgg, "print_png", lambda canvas, path: (figures.append(canvas.figure), print_png(canvas, path))
    )
    for slowest in (0, 1, 2):
        seconds = [9.0 if i == slowest else 3.0 + i for i in range(3)]
        steps = [(0.0, 0.0), *((0.5 + i / 480, i) for i in range(241))]  # a long prompt: half of the time
        curves = {f"{i} nodes, 123.45 tokens/s": [(x * s, y) for x, y in steps] for i, s in enumerate(seconds)}
        plot_token_times(tmp_path / "plot.png", curves, "a title")
    for (axes,) in (figure.axes for figure in figures):
        inside = axes.get_window_extent()
        extents = [text.get_window_extent() for text in axes.texts]
        assert len(extents) == 3
        assert all(inside.x0 < extent.x0 and extent.x1 < inside.x1 for extent in extents)


def test_a_plot_of_nothing_is_drawn(tmp_path: Path) -> None:
    plot_token_times(tmp_path / "plot.png", {}, "nothing")
    assert png_size(tmp_path / "plot.png") == (1200, 750)


def test_only_drawing_imports_the_plotting_library() -> None:
    code = (
        "import mdi.cli.plots, mdi.progress, sys\n"
        "with mdi.progress.progress_bar(2, 'x', 'files') as advance: advance(1)\n"
        "assert not {'matplotlib', 'tqdm', 'torch'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], cwd=SRC, check=True, stderr=subprocess.DEVNULL)


def test_a_folder_that_cannot_be_written_is_one_line(no_folder: Path) -> None:
    with pytest.raises(StorageError, match="below") as caught:
        plot_token_times(no_folder / "a.png", {}, "nothing")
    assert "\n" not in str(caught.value)
