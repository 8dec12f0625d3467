"""The CSV that `--time-run` appends a line to."""

import datetime
import os
from dataclasses import dataclass, field
from pathlib import Path

from mdi.documents import decode_text
from mdi.errors import ConfigError
from mdi.files import storage_error
from mdi.strings import format_seconds, quoted

RUN_CSV_HEADER = "timestamp,n_samples,n_layers,context_size,gen_time"


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
        path.touch()
        with path.open("rb") as file:
            first_line = file.readline(200)
    except OSError as exc:
        raise storage_error(path, exc) from exc
    header = decode_text(first_line, f"{path} (--time-run)", ConfigError)
    if header and header.rstrip("\r\n") != RUN_CSV_HEADER:
        found = quoted(header)
        raise ConfigError(f"{path}: begins with {found}, not {RUN_CSV_HEADER!r}; choose another file")
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
