"""A share of a core for those of our processes that are pinned to it: by the quota of a control group (Linux, root)."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import psutil

from benchmarks.workers import BenchError

PERIOD_US = 5000  # within which the share is given; the kernel takes no quota below 1 ms
VERSION_1, VERSION_2 = Path("/sys/fs/cgroup/cpu"), Path("/sys/fs/cgroup")


@contextlib.contextmanager
def limited(core: int, share: float) -> Iterator[None]:
    """Children of this process that run on `core` alone get `share` of it. Raises `BenchError` where that cannot be."""
    if share >= 1:
        yield
        return
    parent, quota_us = VERSION_1 if VERSION_1.is_dir() else VERSION_2, int(share * PERIOD_US)
    group = parent / f"mdi-bench-{os.getpid()}-{core}"
    pids = [child.pid for child in psutil.Process().children(recursive=True) if child.cpu_affinity() == [core]]
    try:
        group.mkdir()
        if parent == VERSION_1:
            (group / "cpu.cfs_period_us").write_text(f"{PERIOD_US}")
            (group / "cpu.cfs_quota_us").write_text(f"{quota_us}")
        else:
            (group / "cpu.max").write_text(f"{quota_us} {PERIOD_US}")
        _move(pids, group)
    except OSError as exc:
        raise BenchError(f"no control group with a quota can be made: {exc}") from exc
    try:
        yield
    finally:
        _move(pids, parent)
        group.rmdir()


def _move(pids: list[int], group: Path) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            (group / "cgroup.procs").write_text(f"{pid}")
