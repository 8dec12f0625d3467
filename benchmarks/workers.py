"""Child processes that are pinned to cores and answer JSON lines: every figure is measured inside one of them.

They live for as many rounds as a measure has, so that no run is measured while another one loads.
"""

import contextlib
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
ANSWER_TIMEOUT_S = 900.0
END_TIMEOUT_S = 5.0


class BenchError(Exception):
    """A measure that could not be taken, and why."""


def child_environment(n_threads: int | None = 1) -> dict[str, str]:
    """The environment of a child: our modules are found, and torch has `n_threads` (None: as it likes)."""
    ours, others = [str(ROOT), str(ROOT / "src")], os.environ.get("PYTHONPATH")  # which may have what we depend on
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(ours + ([others] if others else []))}
    environment.pop("OMP_NUM_THREADS", None)
    return environment if n_threads is None else environment | {"OMP_NUM_THREADS": str(n_threads)}


def start(command: Sequence[str], cores: Sequence[int], log: Path, **options: Any) -> "subprocess.Popen[bytes]":
    """Run `command` on `cores` alone; what it says on stderr goes to `log`."""
    log.parent.mkdir(parents=True, exist_ok=True)
    defaults: dict[str, Any] = {"env": child_environment(), "stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL}
    with log.open("wb") as file:
        process: subprocess.Popen[bytes] = subprocess.Popen(command, stderr=file, **defaults | options)
    if hasattr(os, "sched_setaffinity"):  # not on a Mac; the child has no second thread yet
        os.sched_setaffinity(process.pid, cores)
    return process


def own_cores() -> list[int]:
    """The cores that this process may use."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))


def end(process: "subprocess.Popen[bytes]") -> None:
    """Ask the process to end, and end it if it does not."""
    process.terminate()
    try:
        process.wait(END_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


class Program:
    """A program of somebody else, which may not be installed."""

    def __init__(self, name: str) -> None:
        self._name, self.path = name, shutil.which(name)

    def require(self) -> str:
        """Where it is. Raises `BenchError` where it is not there."""
        if self.path is None:
            raise BenchError(f"there is no program {self._name}")
        return self.path


def await_server(
    process: "subprocess.Popen[bytes]", is_ready: Callable[[], bool], timeout_s: float, log: Path, failing: str
) -> None:
    """Wait until a server that was started is ready.

    Raises `BenchError` that begins with `failing`, with the last line of `log`, where it ends or takes too long.
    """
    deadline_s = time.monotonic() + timeout_s
    while not is_ready():
        if process.poll() is not None or time.monotonic() > deadline_s:
            lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
            raise BenchError(f"{failing}: {lines[-1] if lines else 'no message'} (see {log})")
        time.sleep(0.1)


class Worker:
    """One child process. Use it as a context; it is ended on exit."""

    def __init__(
        self, command: Sequence[str], cores: Sequence[int], log: Path, environment: Mapping[str, str] | None = None
    ) -> None:
        self._log = log
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        self._process = start(command, cores, log, env=environment or child_environment(), **pipes)

    def __enter__(self) -> "Worker":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            with contextlib.suppress(BrokenPipeError):
                pipe.close()
        end(self._process)

    @property
    def pid(self) -> int:
        return self._process.pid

    def tell(self, request: Mapping[str, Any]) -> None:
        """Send one request."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError as exc:
            raise self._failure() from exc

    def hear(self) -> Any:
        """Wait for one answer. Raises `BenchError` with the child's last words where it ends instead."""
        assert self._process.stdout is not None
        watchdog = threading.Timer(ANSWER_TIMEOUT_S, self._process.kill)
        watchdog.start()
        try:
            line = self._process.stdout.readline()
        finally:
            watchdog.cancel()
        if not line:
            raise self._failure()
        return json.loads(line)

    def ask(self, request: Mapping[str, Any]) -> Any:
        """Send one request and wait for its answer."""
        self.tell(request)
        return self.hear()

    def _failure(self) -> BenchError:
        self._process.wait()
        lines = self._log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return BenchError(f"{lines[-1] if lines else 'no message'} (exit {self._process.returncode}, see {self._log})")


def python_module(name: str, *arguments: str) -> list[str]:
    """The command line of one of the benchmark's modules."""
    return [sys.executable, "-m", f"benchmarks.{name}", *arguments]


# ---- the child's side


def requests() -> Iterator[Any]:
    """What the parent asks, until it closes the pipe."""
    for line in sys.stdin:
        yield json.loads(line)


def answer(value: Any) -> None:
    """Answer the parent."""
    sys.stdout.write(json.dumps(value) + "\n")
    sys.stdout.flush()
