"""Mapped files: what they hold, and that one which cannot be read any more costs no process its life."""

import ctypes
import gc
import itertools
import mmap
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mdi.model.backends.native.mapping import FileMapper, FileMapping
from mdi.model.backends.native.packing import layout_of, pack
from mdi.model.quant import quantize

PAGE = mmap.PAGESIZE
CONTENT = bytes(range(251)) * (4 * PAGE // 251)


@pytest.fixture
def mapper(libraries: dict[str, ctypes.CDLL]) -> FileMapper:
    return FileMapper(next(iter(libraries.values())))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "file"
    path.write_bytes(CONTENT)
    return path


def mapped(mapper: FileMapper, path: Path, start: int, n_bytes: int) -> FileMapping:
    with path.open("rb") as file:
        return mapper.map(file.fileno(), start, n_bytes)


@pytest.mark.parametrize(("start", "n_bytes"), [(0, len(CONTENT)), (64, 100), (PAGE, 1), (PAGE + 192, 2 * PAGE)])
def test_any_bytes_of_a_file_are_memory(start: int, n_bytes: int, mapper: FileMapper, path: Path) -> None:
    data = mapped(mapper, path, start, n_bytes).data  # the tensor alone holds it
    path.unlink()
    assert bytes(data.numpy()) == CONTENT[start : start + n_bytes]
    assert data.data_ptr() % 64 == 0


def test_what_cannot_be_mapped_is_an_error(mapper: FileMapper, tmp_path: Path) -> None:
    read, write = os.pipe()
    try:
        with pytest.raises(OSError, match="memory"):
            mapper.map(read, 0, 100)
    finally:
        os.close(read)
        os.close(write)


@pytest.mark.skipif(sys.platform != "linux", reason="/proc/self/maps is Linux's")
def test_nothing_stays_mapped_or_open_that_nobody_holds(mapper: FileMapper, path: Path) -> None:
    n_open = len(os.listdir("/proc/self/fd"))
    views = [mapped(mapper, path, 0, len(CONTENT)).data[100:200] for _ in range(3)]
    assert Path("/proc/self/maps").read_text().count(str(path)) == 3
    assert len(os.listdir("/proc/self/fd")) == n_open
    views.clear()
    gc.collect()
    assert str(path) not in Path("/proc/self/maps").read_text()


def test_zeros_take_the_place_of_a_file_that_was_cut_short(mapper: FileMapper, path: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.write_bytes(CONTENT)
    mapping, whole = (mapped(mapper, one, 0, len(CONTENT)) for one in (path, other))
    n_lost = mapper.n_lost
    os.truncate(path, 10)
    assert (mapping.is_lost, mapper.n_lost) == (False, n_lost)
    assert int(mapping.data[2 * PAGE]) == 0
    assert (mapping.is_lost, mapper.n_lost) == (True, n_lost + 1)
    assert not mapping.data.any()
    assert not whole.is_lost and bytes(whole.data.numpy()) == CONTENT
    assert mapper.n_lost == n_lost + 1


CUT_ANOTHER = """
import ctypes, mmap, os, sys
library, path = ctypes.CDLL(sys.argv[1]), sys.argv[2]
library.mdi_map.restype = ctypes.c_void_p
with open(path, "r+b") as file:
    assert library.mdi_map(file.fileno(), ctypes.c_int64(0), ctypes.c_int64(1000))
    other = mmap.mmap(file.fileno(), 0)
os.truncate(path, 0)
print(other[0])
"""


def test_another_ones_bus_error_still_ends_the_process(mapper: FileMapper, path: Path) -> None:
    command = [sys.executable, "-c", CUT_ANOTHER, mapper._library._name, str(path)]
    assert subprocess.run(command, stdout=subprocess.DEVNULL, check=False).returncode == -signal.SIGBUS


def test_a_layout_has_another_name_where_tiles_are_other_ones(libraries: dict[str, ctypes.CDLL]) -> None:
    weights = torch.randn(48, 96, generator=torch.Generator().manual_seed(0))
    forms = [quantize(weights, mode) for mode in ("none", "int8", "int4")]
    for one, other in itertools.product(libraries.values(), repeat=2):
        alike = all(torch.equal(pack(one, form, torch.float32), pack(other, form, torch.float32)) for form in forms)
        assert (layout_of(one) == layout_of(other)) == alike
