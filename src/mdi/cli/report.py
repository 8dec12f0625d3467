"""What a run leaves behind: tokens over time, run statistics, samples as JSON, plots, progress bars."""

import datetime
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TextIO

from mdi.errors import ConfigError
from mdi.files import atomic_path, storage_error, write_text

Points = Sequence[tuple[float, int]]

RUN_CSV_HEADER = "timestamp,n_samples,n_layers,context_size,gen_time"

# --- tokens over time ---


@dataclass
class TokenTimes:
    """When each token of a run came: (seconds since the loop began, tokens so far), from (0, 0) on."""

    points: list[tuple[float, int]] = field(default_factory=lambda: [(0.0, 0)])

    def add(self, seconds: float, n_tokens: int = 1) -> None:
        """Record `n_tokens` that arrived `seconds` after the loop began, a point for each."""
        total = self.points[-1][1]
        self.points += [(seconds, total + i) for i in range(1, n_tokens + 1)]


def run_names(logs_dir: Path, img_dir: Path, n_nodes: int, model: str, n_samples: int) -> tuple[Path, Path]:
    """The tokens-over-time CSV and PNG of a run. `model` may be `org/name`; the name counts."""
    run = f"{n_nodes}nodes_{model.rpartition('/')[2]}_{n_samples}samples"
    return logs_dir / f"tokens_time_samples_{run}.csv", img_dir / f"tokens_time_{run}.png"


def comparison_image(img_dir: Path, model: str, n_samples: int) -> Path:
    """The plot that compares the runs of a model on different numbers of nodes."""
    return img_dir / f"tokens_time_comparison_{model.rpartition('/')[2]}_{n_samples}samples.png"


def write_token_csv(path: Path, points: Points) -> None:
    """Write lines `seconds,tokens` without a header, microseconds kept. Raises `StorageError`."""
    write_text(path, "".join(f"{format_seconds(seconds)},{tokens}\n" for seconds, tokens in points))


def read_token_csv(path: Path) -> list[tuple[float, int]]:
    """Read back what `write_token_csv` wrote. Raises `ConfigError` naming file and line."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as exc:
        raise ConfigError(f"{path}: cannot be read ({exc})") from exc
    if not lines:
        raise ConfigError(f"{path}: the file is empty")
    return [_parse_point(path, number, line) for number, line in enumerate(lines, 1)]


def _parse_point(path: Path, number: int, line: str) -> tuple[float, int]:
    try:
        seconds, tokens = line.split(",")
        return float(seconds), int(tokens)
    except ValueError as exc:
        raise ConfigError(f"{path}: line {number} is {line!r}, not `seconds,tokens`") from exc


def format_seconds(seconds: float) -> str:
    """Seconds to the microsecond without trailing zeros: `0`, `0.25`, `3661.000004`."""
    return f"{seconds:.6f}".rstrip("0").rstrip(".")


# --- plots ---


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


# --- run statistics ---


@dataclass(frozen=True)
class RunStats:
    """One line of the `--time-run` file."""

    n_samples: int
    n_layers: int
    context_size: int
    gen_time_s: float
    timestamp: datetime.datetime = field(default_factory=datetime.datetime.now)

    def csv_line(self) -> str:
        numbers = f"{self.n_samples},{self.n_layers},{self.context_size},{format_seconds(self.gen_time_s)}"
        return f"{self.timestamp:%Y-%m-%d %H:%M:%S},{numbers}"


def check_run_csv(path: Path) -> bool:
    """Whether `path` already has the header of run statistics; False where it is empty. It is created if new.

    Raises `ConfigError` if it holds something else, so that a run need not end to find out.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        with path.open(encoding="utf-8") as file:
            header = file.readline(200)
    except UnicodeDecodeError as exc:
        raise ConfigError(f"{path}: not a text file; choose another for --time-run") from exc
    except OSError as exc:
        raise storage_error(path, exc) from exc
    if header and header.removesuffix("\n") != RUN_CSV_HEADER:
        raise ConfigError(f"{path}: begins with {header!r}, not {RUN_CSV_HEADER!r}; choose another file")
    return bool(header)


def append_run_csv(path: Path, row: RunStats) -> None:
    """Append `row`, after the header where the file is new. Errors are those of `check_run_csv`."""
    has_header = check_run_csv(path)
    lines = [row.csv_line(), ""] if has_header else [RUN_CSV_HEADER, row.csv_line(), ""]
    try:
        if has_header and not _ends_with_newline(path):
            lines.insert(0, "")
        with path.open("a", encoding="utf-8", newline="\n") as file:
            file.write("\n".join(lines))
    except OSError as exc:
        raise storage_error(path, exc) from exc


def _ends_with_newline(path: Path) -> bool:
    """Whether the last line is complete: an editor, or a power cut, may have left it open."""
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1) == b"\n"


# --- samples as JSON ---


@dataclass(frozen=True)
class SampleRecord:
    """One sample of `--output`. `prompt_tokens` is a count; `tokens` are the ids that were generated."""

    sample: int
    prompt: str
    completion: str
    prompt_tokens: int
    tokens: Sequence[int]
    finish_reason: str
    seconds: float


@dataclass(frozen=True)
class RunSummary:
    """The last line of `--output`: `n_tokens` generated by all samples in `gen_time` seconds."""

    n_nodes: int
    n_samples: int
    n_tokens: int
    gen_time: float
    tokens_per_s: float
    seed: int
    recoveries: int


class SampleWriter:
    """A JSON Lines file that grows by one flushed line as each sample ends. Use it as a context.

    The file is created at once, so a folder that cannot be written is known before the run.
    Every method raises `StorageError` naming the file where the disk refuses.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file: TextIO = path.open("w", encoding="utf-8", newline="\n")
        except OSError as exc:
            raise storage_error(path, exc) from exc

    def __enter__(self) -> "SampleWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def write_sample(self, record: SampleRecord) -> None:
        self._write_line(asdict(record))

    def write_summary(self, summary: RunSummary) -> None:
        self._write_line({"summary": asdict(summary)})

    def close(self) -> None:
        """Close the file; again does nothing."""
        try:
            self._file.close()
        except OSError as exc:
            raise storage_error(self._path, exc) from exc

    def _write_line(self, value: Mapping[str, object]) -> None:
        try:
            self._file.write(json.dumps(value, ensure_ascii=False) + "\n")
            self._file.flush()
        except OSError as exc:
            raise storage_error(self._path, exc) from exc
