"""How much of this machine's processor time other programs take."""

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass

import psutil

from mdi.machine import own_cpus

MAX_SHARE = 0.1  # of the cores; more, and a measurement says little


@dataclass(frozen=True)
class Reading:
    """Processor time so far, in seconds."""

    at_s: float
    busy_s: float  # of all programs, on the cores that we may use
    own_s: float  # of this process, and of its children


@dataclass(frozen=True)
class OtherLoad:
    """What others took between two readings."""

    cores: float
    n_cores: int

    @property
    def is_heavy(self) -> bool:
        """Whether that spoils a measurement."""
        return self.cores > MAX_SHARE * self.n_cores

    def __str__(self) -> str:
        return f"{self.cores:.2f} of {self.n_cores} cores"


class LoadMeter:
    """Measures from its creation on."""

    def __init__(self, read: Callable[[], Reading] | None = None) -> None:
        self._read = read or read_load
        self._began = self._read()

    def stop(self, n_cores: int) -> OtherLoad:
        """What others took until now of `n_cores`, those that this process may use."""
        ended, began = self._read(), self._began
        passed_s = max(ended.at_s - began.at_s, 1e-9)
        others_s = (ended.busy_s - began.busy_s) - (ended.own_s - began.own_s)
        return OtherLoad(min(max(others_s / passed_s, 0.0), float(n_cores)), n_cores)


def read_load() -> Reading:
    """The processor time that the system tells now."""
    times, own = psutil.cpu_times(percpu=True), own_cpus()
    times = [each for cpu, each in enumerate(times) if cpu in own] or times
    busy_s = sum(sum(each) - each.idle - getattr(each, "iowait", 0.0) - _guest_s(each) for each in times)
    this = psutil.Process()
    return Reading(time.monotonic(), busy_s, sum(map(_own_s, [this, *this.children(recursive=True)])))


def _own_s(process: psutil.Process) -> float:
    """What a process has used, with its children that have ended."""
    with contextlib.suppress(psutil.Error):  # it has ended meanwhile
        times = process.cpu_times()
        children_s = getattr(times, "children_user", 0.0) + getattr(times, "children_system", 0.0)
        return float(times.user + times.system + children_s)
    return 0.0


def _guest_s(times: object) -> float:
    """What Linux counts twice: the time of virtual machines is in that of their processes too."""
    return float(getattr(times, "guest", 0.0)) + float(getattr(times, "guest_nice", 0.0))
