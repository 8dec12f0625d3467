"""What every input is held to, whatever the target: time, memory, nothing executed, nothing written elsewhere."""

import ctypes
import os
import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import psutil

from fuzz.target import Target

INPUT_LIMIT_S = 5.0  # of CPU time
INPUT_LIMIT_BYTES = 512 << 20  # by which one input may raise the peak of resident memory
_TRIM = getattr(ctypes.CDLL(None), "malloc_trim", None)  # of glibc
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_EXECUTING = {"os.system", "os.exec", "os.posix_spawn", "os.fork", "os.forkpty", "subprocess.Popen", "pty.spawn",
              "ctypes.dlopen", "socket.connect", "socket.bind"}  # fmt: skip
_CHANGING = {"os.remove", "os.rename", "os.rmdir", "os.truncate", "os.link", "os.symlink"}


class Guard:
    """An audit hook that sees programs, connections and files. It stays for the life of the process, mostly asleep."""

    def __init__(self, scratch: Path) -> None:
        self._scratch = os.path.realpath(scratch) + os.sep
        self._armed = False
        self._seen: list[str] = []
        sys.addaudithook(self._hook)

    @contextmanager
    def armed(self) -> Iterator[None]:
        """Nothing forbidden may happen within; it is refused, and told at the end if somebody caught the refusal."""
        self._armed = True
        try:
            yield
        finally:
            self._armed = False
            seen, self._seen = self._seen, []
        assert not seen, f"forbidden: {seen}"

    def _hook(self, event: str, args: tuple[Any, ...]) -> None:
        if self._armed and self._is_forbidden(event, args):
            self._armed = False
            self._seen.append(f"{event} {args!r}"[:300])
            self._armed = True
            raise PermissionError(f"a fuzzed input led to {event}")

    def _is_forbidden(self, event: str, args: tuple[Any, ...]) -> bool:
        if event == "open":
            return bool(isinstance(args[2], int) and args[2] & _WRITING and self._is_outside(args[0]))
        if event == "exec":
            has_no_file = isinstance(args[0], CodeType) and args[0].co_filename.startswith("<string")
            return has_no_file and not _is_importing()
        return event in _EXECUTING or (event in _CHANGING and self._is_outside(args[0], args[-1]))

    def _is_outside(self, path: Any, folder: Any = None) -> bool:
        if not isinstance(path, str | bytes | os.PathLike):
            return False  # a descriptor was opened before
        base = f"/proc/self/fd/{folder}" if isinstance(folder, int) and folder >= 0 else ""
        return not os.path.realpath(os.path.join(base, os.fsdecode(path))).startswith(self._scratch)


def _is_importing() -> bool:
    """Whether a module is being imported, late: its named tuples are made by `exec`."""
    frame: FrameType | None = sys._getframe()
    while frame is not None and frame.f_code.co_name != "_call_with_frames_removed":
        frame = frame.f_back
    return frame is not None and frame.f_code.co_filename.startswith("<frozen importlib")


class Watch:
    """Hands inputs to a target; raises `AssertionError` where one takes too much, or memory grew over all of them."""

    def __init__(self, target: Target, guard: Guard, seconds: float, least_units: int = 0) -> None:
        self._target, self._guard = target, guard
        self._process = psutil.Process()
        self.inputs = self.units = 0
        self.slowest_s = 0.0
        self._least_units = least_units
        self._began = time.monotonic()
        self._seconds = seconds
        self._peak_kib = _peak_kib()
        self.rss_before = self.rss_after = 0

    def __call__(self, data: bytes) -> None:
        started = time.process_time()
        with self._guard.armed():
            units = self._target.check(data)
        used_s = time.process_time() - started
        self.inputs, self.units, self.slowest_s = self.inputs + 1, self.units + units, max(self.slowest_s, used_s)
        assert used_s < INPUT_LIMIT_S, f"one input took {used_s:.1f} s"
        peak_kib = _peak_kib()
        assert peak_kib - self._peak_kib < INPUT_LIMIT_BYTES >> 10, f"one input took {peak_kib - self._peak_kib} KiB"
        self._peak_kib = peak_kib
        if not self.rss_before and self.elapsed_s >= self._seconds / 10:
            self.rss_before = self._resident_bytes()

    @property
    def elapsed_s(self) -> float:
        return time.monotonic() - self._began

    @property
    def is_over(self) -> bool:
        return self.elapsed_s >= self._seconds and self.units >= self._least_units

    def finish(self) -> dict[str, Any]:
        """The figures; raises `AssertionError` where memory grew since the first tenth of the time."""
        self.rss_after = self._resident_bytes()
        growth = self.rss_after - (self.rss_before or self.rss_after)
        assert growth < self._target.growth_limit_bytes, f"memory grew by {growth >> 20} MiB"
        return {
            "inputs": self.inputs,
            "units": self.units,
            "unit": self._target.unit,
            "accepted": self._target.accepted,
            "seconds": self.elapsed_s,
            "slowest_s": self.slowest_s,
            "rss_before": self.rss_before,
            "rss_after": self.rss_after,
        }

    def _resident_bytes(self) -> int:
        """What the process holds, without what its allocator keeps for later.

        Inputs of all sizes leave holes that are too small for the next: 50 MB in a hundred thousand manifests, while
        what is in use did not change by 10 kB.
        """
        if _TRIM is not None:
            _TRIM(0)
        return int(self._process.memory_info().rss)


def _peak_kib() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
