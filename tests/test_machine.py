"""Cores and memory, of the machine and of the container; the control groups are folders as the kernel shows them."""

import ctypes
import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from mdi import machine
from mdi.machine import available_memory_bytes, cache_bytes, memory_bytes, n_cores, return_freed_memory
from support.paths import SRC

GB = 1 << 30


def write(root: Path, files: dict[str, object]) -> Path:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{content}\n")
    return root


@pytest.fixture
def sixteen_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(16)), raising=False)


@pytest.fixture
def free_memory(monkeypatch: pytest.MonkeyPatch) -> int:
    class Memory:
        available = 64 * GB

    monkeypatch.setattr(psutil, "virtual_memory", Memory)
    return Memory.available


def topology(threads_per_core: int) -> dict[str, object]:
    def siblings(cpu: int) -> str:
        first = cpu - cpu % threads_per_core
        return ",".join(map(str, range(first, first + threads_per_core)))

    return {f"sys/devices/system/cpu/cpu{n}/topology/thread_siblings_list": siblings(n) for n in range(16)}


@pytest.mark.usefixtures("sixteen_cpus")
def test_threads_of_one_core_count_once(tmp_path: Path) -> None:
    assert n_cores(write(tmp_path, topology(2))) == 8
    assert n_cores(write(tmp_path, topology(1))) == 16


@pytest.mark.usefixtures("sixteen_cpus")
def test_processors_count_where_the_system_knows_nothing_of_cores(tmp_path: Path) -> None:
    assert n_cores(tmp_path) == 16


def caches(n_sharing: int, size: str) -> dict[str, object]:
    """Of 16 processors, of which so many share the last one."""
    files = dict[str, object]()
    for cpu in range(16):
        first = cpu - cpu % n_sharing
        for index, level, shared, bytes_ in ((0, 1, str(cpu), "48K"), (1, 2, f"{first}-{first + n_sharing - 1}", size)):
            folder = f"sys/devices/system/cpu/cpu{cpu}/cache/index{index}"
            files |= {f"{folder}/level": level, f"{folder}/shared_cpu_list": shared, f"{folder}/size": bytes_}
    return files


@pytest.mark.usefixtures("sixteen_cpus")
def test_the_last_caches_of_all_cores_count_once_each(tmp_path: Path) -> None:
    assert cache_bytes(write(tmp_path, caches(16, "2048K"))) == 2 << 20
    assert cache_bytes(write(tmp_path, caches(8, "32768K"))) == 64 << 20


@pytest.mark.usefixtures("sixteen_cpus")
def test_a_system_may_not_tell_of_its_caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cache_bytes(tmp_path) is None
    assert cache_bytes(write(tmp_path, caches(8, "many"))) is None
    monkeypatch.delattr(os, "sched_getaffinity")
    assert cache_bytes(write(tmp_path, caches(8, "32768K"))) is None


VERSION_2 = {"proc/self/cgroup": "0::/system.slice/docker-1.scope", "sys/fs/cgroup/cpu.max": "max 100000"}
VERSION_1 = {"proc/self/cgroup": "4:memory:/docker/1\n3:cpuset:/docker/1\n1:cpu,cpuacct:/docker/1\n0::/"}


@pytest.mark.usefixtures("sixteen_cpus")
@pytest.mark.parametrize(
    ("files", "cores"),
    [
        (VERSION_2, 16),
        (VERSION_2 | {"sys/fs/cgroup/system.slice/docker-1.scope/cpu.max": "200000 100000"}, 2),
        (VERSION_2 | {"sys/fs/cgroup/system.slice/docker-1.scope/cpu.max": "150000 100000"}, 1),
        (VERSION_2 | {"sys/fs/cgroup/system.slice/docker-1.scope/cpu.max": "50000 100000"}, 1),
        (VERSION_2 | {"sys/fs/cgroup/system.slice/cpu.max": "300000 100000"}, 3),  # of a group above
        ({"proc/self/cgroup": "0::/", "sys/fs/cgroup/cpu.max": "400000 100000"}, 4),  # as a container sees it
        ({"proc/self/cgroup": "0::/../elsewhere", "sys/fs/cgroup/cpu.max": "400000 100000"}, 4),
        ({"proc/self/cgroup": "damaged", "sys/fs/cgroup/cpu.max": "many 0"}, 16),
        (VERSION_1, 16),
        (
            VERSION_1
            | {
                "sys/fs/cgroup/cpu/docker/1/cpu.cfs_quota_us": "200000",
                "sys/fs/cgroup/cpu/docker/1/cpu.cfs_period_us": "100000",
            },
            2,
        ),
        (
            VERSION_1 | {"sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1", "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000"},
            16,
        ),
    ],
)
def test_the_limit_of_cores_is_the_containers(files: dict[str, object], cores: int, tmp_path: Path) -> None:
    assert n_cores(write(tmp_path, files)) == cores


V2 = "sys/fs/cgroup/system.slice/docker-1.scope"
V1 = "sys/fs/cgroup/memory/docker/1"


@pytest.mark.parametrize(
    ("files", "free_bytes"),
    [
        ({}, 64 * GB),
        (VERSION_2 | {f"{V2}/memory.max": "max", f"{V2}/memory.current": GB}, 64 * GB),
        (VERSION_2 | {f"{V2}/memory.max": 2 * GB, f"{V2}/memory.current": GB // 2}, 3 * GB // 2),
        (
            VERSION_2
            | {
                f"{V2}/memory.max": 2 * GB,
                f"{V2}/memory.current": 2 * GB,
                f"{V2}/memory.stat": f"anon 5\ninactive_file {GB // 2}\nactive_file {GB // 2}\nslab 7",
            },
            GB,
        ),
        (VERSION_2 | {f"{V2}/memory.max": 2 * GB, f"{V2}/memory.current": 3 * GB}, 0),
        (VERSION_1 | {f"{V1}/memory.limit_in_bytes": 2 * GB, f"{V1}/memory.usage_in_bytes": GB}, GB),
        (VERSION_1 | {f"{V1}/memory.limit_in_bytes": 2**63 - 4096, f"{V1}/memory.usage_in_bytes": GB}, 64 * GB),
    ],
)
def test_the_limit_of_memory_is_the_containers(
    files: dict[str, object], free_bytes: int, tmp_path: Path, free_memory: int
) -> None:
    assert available_memory_bytes(write(tmp_path, files)) == free_bytes


def test_this_machine_has_cores_and_memory() -> None:
    assert 1 <= n_cores() <= (os.cpu_count() or 1)
    assert 0 < available_memory_bytes() <= psutil.virtual_memory().total
    assert 1 << 20 < machine.peak_memory_bytes() < 1 << 44


def test_the_peak_of_a_process_is_not_that_of_whoever_started_it() -> None:
    ballast = bytearray(200 << 20)
    code = "from mdi import machine; print(machine.peak_memory_bytes())"
    environment = os.environ | {"PYTHONPATH": str(SRC)}
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert 1 << 20 < int(result.stdout) < len(ballast) < machine.peak_memory_bytes()


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="glibc alone is asked")
def test_memory_that_was_freed_goes_back_to_the_system() -> None:
    libc, n_bytes = ctypes.CDLL(None), 64 << 10  # so few are taken from the heap
    libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
    *blocks, last = [libc.malloc(n_bytes) for _ in range(1000)]
    for block in blocks:
        ctypes.memset(block, 1, n_bytes)
    for block in blocks:
        libc.free(block)
    kept_bytes = memory_bytes()
    return_freed_memory()
    assert memory_bytes() < kept_bytes - len(blocks) * n_bytes // 2
    libc.free(last)
