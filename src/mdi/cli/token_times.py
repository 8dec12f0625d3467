"""Tokens over time: recorded during a run, and as the CSV that the plots are drawn from."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mdi.documents import parse_integer, parse_number, read_text
from mdi.errors import ConfigError
from mdi.files import write_text
from mdi.strings import format_seconds, quoted

Points = Sequence[tuple[float, int]]

MAX_FILE_BYTES = 256 << 20  # some ten million tokens


@dataclass
class TokenTimes:
    """When each token of a run came: (seconds since the loop began, tokens so far), from (0, 0) on."""

    points: list[tuple[float, int]] = field(default_factory=lambda: [(0.0, 0)])

    def add(self, seconds: float, n_tokens: int = 1) -> None:
        """Record `n_tokens` that arrived `seconds` after the loop began, a point for each."""
        total = self.points[-1][1]
        self.points += [(seconds, total + i) for i in range(1, n_tokens + 1)]


def rate_of(points: Points) -> float:
    """Tokens per second over all of `points`; 0 where no time has passed."""
    seconds, tokens = points[-1]
    return tokens / seconds if seconds else 0.0


def run_names(logs_dir: Path, img_dir: Path, n_nodes: int, model: str, n_samples: int) -> tuple[Path, Path]:
    """The tokens-over-time CSV and PNG of a run. `model` may be `org/name`; the name counts."""
    run = f"{n_nodes}nodes_{model.rpartition('/')[2]}_{n_samples}samples"
    return logs_dir / f"tokens_time_samples_{run}.csv", img_dir / f"tokens_time_{run}.png"


def comparison_image(img_dir: Path, model: str, n_samples: int, *, has_note: bool = False) -> Path:
    """The plot that compares the runs of a model on different numbers of nodes.

    One with a note has a name of its own, so that one without does not replace it, and the note with it.
    """
    noted = "_noted" if has_note else ""
    return img_dir / f"tokens_time_comparison_{model.rpartition('/')[2]}_{n_samples}samples{noted}.png"


def write_token_csv(path: Path, points: Points) -> None:
    """Write lines `seconds,tokens` without a header, microseconds kept. Raises `StorageError`."""
    write_text(path, "".join(f"{format_seconds(seconds)},{tokens}\n" for seconds, tokens in points))


def read_token_csv(path: Path) -> list[tuple[float, int]]:
    """Read back what `write_token_csv` wrote. Raises `ConfigError` naming file and line."""
    lines = read_text(path, MAX_FILE_BYTES, ConfigError).splitlines()
    if not lines:
        raise ConfigError(f"{path}: the file is empty")
    return [_parse_point(path, number, line) for number, line in enumerate(lines, 1)]


def _parse_point(path: Path, number: int, line: str) -> tuple[float, int]:
    try:
        seconds, tokens = line.split(",")
        return parse_number(seconds), parse_integer(tokens)
    except ValueError as exc:
        raise ConfigError(f"{path}: line {number} is {quoted(line)}, not `seconds,tokens`") from exc
