"""The cores and the memory that this process may use: of the machine, or of the container that it is in.

A container's limits are those of its control group and of every group above it. Version 2 has one tree with all limits
(https://docs.kernel.org/admin-guide/cgroup-v2.html), version 1 one tree for each kind of limit.
"""

import ctypes
import os
import re
from collections.abc import Iterator
from pathlib import Path

import psutil

ROOT = Path("/")  # of the file system in which the system describes itself
_UNLIMITED = 1 << 60  # version 1 writes such a number where there is no limit


def n_cores(root: Path = ROOT) -> int:
    """Cores that this process may use, at least 1: without hyper-threads, and within the limit of its container.

    Two threads of one core share the units that products of matrices need.
    """
    return max(1, min([_physical_cores(root), *map(int, _cpu_limits(root))]))


def own_cpus() -> set[int]:
    """The processors, hyper-threads included, that this process may use; empty where the system does not tell."""
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()  # not on macOS


def cache_bytes(root: Path = ROOT) -> int | None:
    """All last-level caches of the cores that this process may use; None where the system does not tell."""
    # Cores that share a cache name it alike.
    caches = dict(_last_cache(root / f"sys/devices/system/cpu/cpu{cpu}/cache") for cpu in own_cpus())
    return sum(caches.values()) or None


def available_memory_bytes(root: Path = ROOT) -> int:
    """Memory that can be taken without swapping, within the limit of this process's container."""
    return max(0, min([int(psutil.virtual_memory().available), *_memory_limits(root)]))


def memory_bytes() -> int:
    """The resident set of this process."""
    return int(psutil.Process().memory_info().rss)


def return_freed_memory() -> None:
    """Give back to the system what this process has freed: glibc keeps it where something behind it is in use."""
    if psutil.LINUX:
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # other C libraries have none
        if trim is not None:
            trim(0)


def peak_memory_bytes() -> int:
    """The largest resident set that this process has had; where the system keeps no record, the present one."""
    status = _read(ROOT / "proc/self/status")
    if (peak := re.search(r"^VmHWM:\s+(\d+) kB", status, re.MULTILINE)) is not None:
        return int(peak[1]) * 1024
    try:
        import resource  # not on Windows
    except ImportError:
        return int(getattr(psutil.Process().memory_info(), "peak_wset", memory_bytes()))
    # Not on Linux, where it begins with that of whoever started the process.
    unit_bytes = 1 if psutil.MACOS else 1024
    return max(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit_bytes, memory_bytes())


def _physical_cores(root: Path) -> int:
    """Cores of which this process may use at least one thread."""
    cpus = own_cpus()
    if not cpus:
        return psutil.cpu_count(logical=False) or os.cpu_count() or 1
    siblings = {_read(root / f"sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list") for cpu in cpus}
    return len(cpus) if "" in siblings else len(siblings)


def _last_cache(folder: Path) -> tuple[str, int]:
    """The processors that share the last cache of one of them, and its bytes; 0 where the system does not tell."""
    last = max(folder.glob("index*"), key=lambda index: _read(index / "level"), default=folder)
    size = re.fullmatch(r"(\d+)K", _read(last / "size"))
    return _read(last / "shared_cpu_list"), int(size[1]) << 10 if size else 0


# ---- control groups


def _cpu_limits(root: Path) -> Iterator[float]:
    """The limits of processor time, in cores."""
    for group in _groups(root, ""):
        quota, _, period = _read(group / "cpu.max").partition(" ")
        yield from _ratio(quota, period)
    for group in _groups(root, "cpu"):
        yield from _ratio(_read(group / "cpu.cfs_quota_us"), _read(group / "cpu.cfs_period_us"))


def _ratio(quota_us: str, period_us: str) -> Iterator[float]:
    """One limit, or none where the quota is `max` (version 2), `-1` (version 1) or not there."""
    if quota_us.isdecimal() and period_us.isdecimal() and int(period_us) > 0:
        yield int(quota_us) / int(period_us)


def _memory_limits(root: Path) -> Iterator[int]:
    """What is left of each limit of memory, in bytes. Cached files count as used, and are given up when memory is.

    The active ones, such as weights that are mapped, count as available in the whole system too.
    """
    for controller, limit, usage, cached in (
        ("", "memory.max", "memory.current", ("inactive_file", "active_file")),
        (
            "memory",
            "memory.limit_in_bytes",
            "memory.usage_in_bytes",
            ("total_inactive_file", "total_active_file"),
        ),
    ):
        for group in _groups(root, controller):
            limit_bytes, used_bytes = _read(group / limit), _read(group / usage)
            if limit_bytes.isdecimal() and used_bytes.isdecimal() and int(limit_bytes) < _UNLIMITED:
                statistics = group / "memory.stat"
                yield int(limit_bytes) - int(used_bytes) + sum(_statistic(statistics, name) for name in cached)


def _groups(root: Path, controller: str) -> Iterator[Path]:
    """The folders of this process's control group and of those above it; version 2 has the controller ''.

    Inside a container the path may be one of the host's, which is not there: then the top of what is mounted counts.
    """
    mounted = root / "sys/fs/cgroup" / controller
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        group = mounted / path.lstrip("/")
        while controller in controllers.split(",") and mounted in group.parents:
            yield group
            group = group.parent
    yield mounted


def _statistic(path: Path, name: str) -> int:
    for line in _read(path).splitlines():
        key, _, value = line.partition(" ")
        if key == name and value.isdecimal():
            return int(value)
    return 0


def _read(path: Path) -> str:
    """What a small file says; empty where it cannot be read."""
    try:
        return path.read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        return ""
