"""The memory of a command over time, as a function and as a script."""

import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from mdi.cli.memory_monitor import (
    MEMORY_CSV_HEADER,
    Peak,
    find_peak,
    plot_memory,
    read_memory_csv,
    sample_memory,
    watch_command,
)
from mdi.errors import ConfigError, StorageError
from support.paths import SRC

SCRIPT = SRC / "mem_monitor.py"
MIB = 1 << 20


def python(code: str) -> str:
    """A shell command line that runs `code`."""
    return shlex.join([sys.executable, "-c", code])


def script(*arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([sys.executable, SCRIPT, *arguments], capture_output=True, text=True, timeout=60, check=False)


def waiting_child(code: str = "") -> "subprocess.Popen[str]":
    """A process that has run `code`, said so on a line of its own, and waits for the end of its input."""
    whole = f"{code}\nprint('ready', flush=True); input()"
    process = subprocess.Popen([sys.executable, "-c", whole], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def test_memory_counts_the_process_and_its_children() -> None:
    small = waiting_child()
    # The child that allocates is a grandchild of ours.
    inner = "x = bytearray(b'1') * (64 << 20); print('ready', flush=True); input()"
    large = waiting_child(
        f"import subprocess, sys; p = subprocess.Popen([sys.executable, '-c', {inner!r}], stdin=0, stdout=-1)\n"
        "p.stdout.readline()"
    )
    try:
        assert sample_memory(small.pid) > MIB
        assert sample_memory(large.pid) > sample_memory(small.pid) + 64 * MIB
    finally:
        for process in (small, large):
            process.communicate("\n" * 2)
    assert sample_memory(small.pid) == 0


def test_a_record_has_a_header_and_lines_that_grow(tmp_path: Path) -> None:
    path = tmp_path / "memory.csv"
    code = f"x = bytearray(b'1') * (32 << 20)\nwhile open({str(path)!r}).read().count('\\n') < n + 5: pass"
    code = f"n = open({str(path)!r}).read().count('\\n'); {code}"
    assert watch_command(python(code), path, 0.01) == 0
    assert path.read_text(encoding="utf-8").startswith(f"{MEMORY_CSV_HEADER}\n0")
    points = read_memory_csv(path)
    seconds = [point[0] for point in points]
    assert len(points) >= 4
    assert seconds == sorted(set(seconds))
    assert max(rss_bytes for _, rss_bytes in points) > 32 * MIB


@pytest.mark.parametrize(("command", "status"), [("exit 0", 0), ("exit 7", 7), ("kill -9 $$", 137)])
def test_the_status_is_that_of_the_command(command: str, status: int, tmp_path: Path) -> None:
    assert watch_command(command, tmp_path / "memory.csv", 0.01) == status


def test_a_record_that_cannot_be_written_is_known_before_the_command_runs(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match=r"memory\.csv"):
        watch_command(f"touch {tmp_path / 'ran'}", tmp_path / "file" / "memory.csv", 0.01)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("content", [b"", b"0,1\n", b"seconds,rss_bytes\n1\n", b"\xff"])
def test_a_damaged_record_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "memory.csv").write_bytes(content)
    with pytest.raises(ConfigError, match=r"memory\.csv"):
        plot_memory(tmp_path / "memory.csv", tmp_path / "memory.png", "a command")


def test_the_peak_of_a_record_is_found_and_told(tmp_path: Path) -> None:
    csv = tmp_path / "memory.csv"
    csv.write_text("seconds,rss_bytes\n0,1000000\n1.5,512000000\n2,3000000\n")
    peak = find_peak(csv)
    assert peak == Peak(1.5, 512_000_000)
    assert str(peak) == "512.00 MB at most, after 1.50 s"
    plot_memory(csv, tmp_path / "memory.png", "a command\nof two lines")
    csv.write_text("seconds,rss_bytes\n")
    assert find_peak(csv) is None
    plot_memory(csv, tmp_path / "memory.png", "a command")


@pytest.mark.slow
def test_the_script_records_plots_and_passes_the_status_on(tmp_path: Path) -> None:
    csv, png = tmp_path / "m.csv", tmp_path / "m.png"
    wait_for_a_sample = f"while [ $(wc -l < {shlex.quote(str(csv))}) -lt 2 ]; do :; done"
    done = script(f"{wait_for_a_sample}; echo hello && exit 3", "-o", str(csv), "-i", "0.01", "--img", str(png))
    assert (done.returncode, done.stdout) == (3, "hello\n")
    assert done.stderr == f"memory: {find_peak(csv)}\n"
    assert read_memory_csv(csv)
    assert png.read_bytes().startswith(b"\x89PNG")


def test_the_script_refuses_what_makes_no_sense(tmp_path: Path) -> None:
    for interval in ("0", "-1", "nan", "inf", "x"):
        done = script("true", "-i", interval)
        assert done.returncode == 2
        assert "--interval" in done.stderr
    assert script().returncode == 2
    (tmp_path / "file").touch()
    done = script("true", "-o", str(tmp_path / "file" / "m.csv"))
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1


def test_the_script_is_executable() -> None:
    assert os.access(SCRIPT, os.X_OK)


def is_running(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "status", "said"),
    [(signal.SIGINT, 130, "interrupted\n"), (signal.SIGTERM, 143, ""), (signal.SIGHUP, 129, "")],
)
def test_an_interrupted_script_ends_the_command_and_keeps_the_record(
    number: signal.Signals, status: int, said: str, tmp_path: Path
) -> None:
    # The command is a shell with a child in the background: both have to go.
    child = python("import os, signal; print(os.getpid(), flush=True); signal.pause()")
    csv, png = tmp_path / "m.csv", tmp_path / "m.png"
    process = subprocess.Popen(
        [sys.executable, SCRIPT, f"{child} & wait", "-o", csv, "-i", "0.01", "--img", png],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    child_pid = int(process.stdout.readline())
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (status, f"memory: {find_peak(csv)}\n{said}")
    assert not is_running(child_pid)
    assert csv.read_text(encoding="utf-8").startswith(MEMORY_CSV_HEADER)
    assert png.exists()
