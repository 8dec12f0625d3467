"""How much memory a command and its children hold, over time."""

import contextlib
import os
import queue
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import psutil

from mdi.cli.plots import Mark, plot_curves
from mdi.documents import parse_integer, parse_number, read_text
from mdi.errors import ConfigError
from mdi.files import storage_error
from mdi.inbox import Inbox
from mdi.strings import format_bytes, format_seconds, one_line, quoted

MEMORY_CSV_HEADER = "seconds,rss_bytes"
MAX_FILE_BYTES = 256 << 20


def sample_memory(pid: int) -> int:
    """Resident bytes of process `pid` and all its descendants now; 0 once it is gone.

    Pages that several of them share are counted for each.
    """
    return sum(map(_resident_bytes, _family(pid)))


def _family(pid: int) -> list[psutil.Process]:
    try:
        root = psutil.Process(pid)
        return [root, *root.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def _resident_bytes(process: psutil.Process) -> int:
    try:
        return int(process.memory_info().rss)
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return 0


def watch_command(
    command: str, csv_path: Path, interval_s: float, *, grace_s: float = 5.0, inbox: Inbox | None = None
) -> int:
    """Run a shell command line, write its memory over time to `csv_path`, return its exit status.

    The file has a header and lines `seconds,rss_bytes`, each flushed as it comes. The status is 128 + n
    where signal n ended the command. Where `inbox` is interrupted, the command and all it started are ended first.
    Raises `StorageError` for a file that cannot be written.
    """
    try:
        with csv_path.open("w", encoding="utf-8", newline="\n") as file:
            file.write(f"{MEMORY_CSV_HEADER}\n")
            process = subprocess.Popen(command, shell=True, start_new_session=True)
            try:
                _record(process, file, interval_s, inbox or Inbox())
            except BaseException:
                stop_group(process, grace_s)
                raise
    except OSError as exc:
        raise storage_error(csv_path, exc) from exc
    status = process.wait()
    return status if status >= 0 else 128 - status


def _record(process: "subprocess.Popen[bytes]", file: TextIO, interval_s: float, inbox: Inbox) -> None:
    for seconds, rss_bytes in watch_memory(process, interval_s, inbox):
        file.write(f"{format_seconds(seconds)},{rss_bytes}\n")
        file.flush()


@dataclass(frozen=True)
class _Ended:
    """The command has ended."""


def watch_memory(process: "subprocess.Popen[bytes]", interval_s: float, inbox: Inbox) -> Iterator[tuple[float, int]]:
    """Yield (seconds since now, resident bytes) at once and then every `interval_s`, until it ends."""

    def report_end() -> None:
        process.wait()
        inbox.post(_Ended())

    threading.Thread(target=report_end, name="command", daemon=True).start()
    began = time.monotonic()
    n_samples = 0
    while True:
        elapsed_s = time.monotonic() - began
        if rss_bytes := sample_memory(process.pid):
            yield elapsed_s, rss_bytes
        # The next tick of a fixed clock, whatever sampling took; ticks already missed are left out.
        n_samples = max(n_samples, int(elapsed_s / interval_s)) + 1
        with contextlib.suppress(queue.Empty):
            inbox.wait_for(_Ended, timeout_s=max(0.0, began + n_samples * interval_s - time.monotonic()))
            return


def stop_group(process: "subprocess.Popen[bytes]", grace_s: float) -> None:
    """End the group that `process` leads: SIGTERM, and SIGKILL for what is left after `grace_s`."""
    family = _family(process.pid)
    _signal_group(process.pid, signal.SIGTERM)
    psutil.wait_procs(family, timeout=grace_s)
    _signal_group(process.pid, signal.SIGKILL)
    process.wait()


def _signal_group(group_id: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group_id, number)


def read_memory_csv(path: Path) -> list[tuple[float, int]]:
    """The (seconds, bytes) of a file that `watch_command` wrote. Raises `ConfigError`."""
    header, *lines = read_text(path, MAX_FILE_BYTES, ConfigError).split("\n")
    if header != MEMORY_CSV_HEADER:
        raise ConfigError(f"{path}: begins with {quoted(header)}, not {MEMORY_CSV_HEADER!r}")
    try:
        rows = [line.split(",") for line in lines if line]
        return [(parse_number(seconds), parse_integer(rss_bytes)) for seconds, rss_bytes in rows]
    except ValueError as exc:
        raise ConfigError(f"{path}: not a memory record ({one_line(exc)})") from exc


@dataclass(frozen=True)
class Peak:
    """The most memory that a command and its children held, and when, in seconds since it began."""

    seconds: float
    rss_bytes: int

    def __str__(self) -> str:
        return f"{format_bytes(self.rss_bytes)} at most, after {self.seconds:.2f} s"


def find_peak(csv_path: Path) -> Peak | None:
    """The peak of a record of `watch_command`; None where the command ended too soon to be measured."""
    rows = read_memory_csv(csv_path)
    return Peak(*max(rows, key=lambda row: row[1])) if rows else None


def plot_memory(csv_path: Path, png_path: Path, command: str) -> None:
    """Draw a record of `watch_command` as PNG, its peak marked. Raises `StorageError` where it cannot be written."""
    points = [(seconds, rss_bytes / 1e6) for seconds, rss_bytes in read_memory_csv(csv_path)]
    peak = find_peak(csv_path)
    marks = [Mark(peak.seconds, str(peak))] if peak is not None else []
    curves = {"resident": points} if points else {}
    labels = {"x_label": "time (s)", "y_label": "resident memory (MB)"}
    plot_curves(png_path, curves, title=one_line(command, 80), marks=marks, **labels)
