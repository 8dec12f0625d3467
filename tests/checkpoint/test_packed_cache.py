"""Packed weights are made once for a machine, mapped from then on, and never trusted without their hash."""

import contextlib
import errno
import logging
import os
import re
import shutil
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from mdi.checkpoint.config import load_config
from mdi.checkpoint.packed_cache import PackedCache
from mdi.checkpoint.tensor_file import open_weights
from mdi.errors import StorageError
from mdi.formats import Mode
from mdi.liveness import no_tick
from mdi.model.backends.native.library import UnavailableError, load_library
from mdi.model.backends.select import make_head, make_span_engine
from mdi.model.packed import IN_MEMORY, PackedFiles
from mdi.model.runner import StageRunner, StageSpec
from mdi.model.span import Span
from mdi.model.weights import Weights
from mdi.segments import Segment
from support.damage import flip_signs
from support.models import make_model

CPU = torch.device("cpu")


@pytest.fixture(scope="module", autouse=True)
def kernels() -> None:
    try:
        load_library()
    except UnavailableError as exc:
        pytest.skip(str(exc))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of several pages, in every part."""
    return make_model(tmp_path_factory.mktemp("org") / "model", n_layer=2, n_embd=64, intermediate_size=160)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "cache"


class Node:
    """The stage of a node that computes all of a model, and how much of its weights was read."""

    def __init__(self, model: Path, files: PackedFiles, tick: Callable[[], None] = no_tick) -> None:
        self._model = model
        self.n_read = 0
        self.runner = StageRunner(CPU, make_span_engine, make_head, tick=tick, packed_files=files)

    def load(self, quantize: Mode = "none", dtype: str = "float32") -> "Node":
        config, weights = load_config(self._model), open_weights(self._model / "lit_model.pth")
        spec = StageSpec(config, Span(0, 2), True, self._model, dtype, quantize, rows=1)

        def read(name: str) -> torch.Tensor:
            self.n_read += 1
            return weights[name]

        self.runner.load(spec, Weights(weights.meta, read, weights.identity), str(self._model))
        self.runner.begin(2, 32)
        return self

    def logits(self) -> torch.Tensor:
        x = self.runner.embed([5, 6, 7], [0, 1, 2])
        logits = self.runner.logits(self.runner.forward(x, [Segment(0, 0, 3, 3)]))
        self.runner.begin(2, 32)  # the slots are empty again
        return logits


def packed(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.packed"))


@pytest.mark.parametrize(
    ("quantize", "dtype"), [("none", "float32"), ("none", "bfloat16"), ("int8", "bfloat16"), ("int4", "float32")]
)
def test_a_second_load_reads_no_weight_and_computes_the_same(
    quantize: Mode, dtype: str, model: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mdi.model.runner.free_memory_bytes", lambda device: 1 << 30)
    expected = Node(model, IN_MEMORY).load(quantize, dtype)
    first = Node(model, PackedCache(folder)).load(quantize, dtype)
    second = Node(model, PackedCache(folder)).load(quantize, dtype)
    assert first.n_read > 0 and second.n_read == 0
    for node in (first, second):
        assert torch.equal(node.logits(), expected.logits())
        assert node.runner.weights_bytes == expected.runner.weights_bytes
    assert expected.runner.free_memory_bytes() == (1 << 30) + expected.runner.weights_bytes
    assert second.runner.free_memory_bytes() == 1 << 30  # what is mapped counts as free already
    assert len(packed(folder)) == 2 and not list(folder.glob("*.packing"))
    assert (folder.stat().st_mode & 0o777, packed(folder)[0].stat().st_mode & 0o777) == (0o700, 0o600)


def test_what_makes_a_difference_is_packed_for_itself(model: Path, folder: Path, tmp_path: Path) -> None:
    """Of a file that is replaced, whatever its date, nothing old is used."""
    mine = Path(shutil.copytree(model, tmp_path / "mine"))
    for n, (quantize, dtype) in enumerate([("none", "float32"), ("int8", "float32"), ("none", "bfloat16")], 1):
        node = Node(mine, PackedCache(folder)).load(quantize, dtype)  # type: ignore[arg-type]
        assert node.n_read > 0 and len(packed(folder)) == 2 * n
    former = Node(mine, PackedCache(folder)).load().logits()
    flip_signs(mine / "lit_model.pth", "transformer.h.1.mlp.proj.weight")
    node = Node(mine, PackedCache(folder)).load()
    assert node.n_read > 0 and not torch.equal(node.logits(), former)


@pytest.mark.skipif(sys.platform != "linux", reason="/proc/self/smaps is Linux's")
def test_nodes_that_map_the_same_weights_share_their_pages(model: Path, folder: Path) -> None:
    Node(model, PackedCache(folder)).load()
    nodes = [Node(model, PackedCache(folder)).load() for _ in range(4)]
    for node in nodes:
        node.logits()
    for path in packed(folder):
        mappings = re.findall(rf"^\S+ (\S+) .*{path}\n((?:\w+: .*\n)+)", Path("/proc/self/smaps").read_text(), re.M)
        assert len(mappings) == 4
        for permissions, text in mappings:
            kilobytes = {name: int(value) for name, value in re.findall(r"(\w+): +(\d+) kB", text)}
            assert permissions == "r--p" and kilobytes["Private_Dirty"] == 0
            assert 0 < kilobytes["Pss"] <= kilobytes["Rss"] / 3


def damage_a_byte(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2)
        (byte,) = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 1]))


def append_a_byte(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\0")


def cut_to(n_bytes: int) -> Callable[[Path], None]:
    return lambda path: os.truncate(path, min(n_bytes, path.stat().st_size - 1))


@pytest.mark.parametrize(
    "damage", [damage_a_byte, append_a_byte, cut_to(0), cut_to(1 << 40)], ids=["bit rot", "longer", "empty", "shorter"]
)
def test_damaged_weights_are_removed_and_made_again(
    damage: Callable[[Path], None], model: Path, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    expected = Node(model, PackedCache(folder)).load().logits()
    for path in packed(folder):
        damage(path)
    node = Node(model, PackedCache(folder)).load()
    assert node.n_read > 0 and torch.equal(node.logits(), expected)
    assert {record.message.partition(":")[0] for record in caplog.records} == set(map(str, packed(folder)))
    assert "it was removed, and is made again" in caplog.text
    assert Node(model, PackedCache(folder)).load().n_read == 0


def test_weights_cut_short_under_a_node_are_one_line_and_the_next_session_has_them(model: Path, folder: Path) -> None:
    """Reading them raises SIGBUS."""
    expected = Node(model, PackedCache(folder)).load().logits()
    other = Node(model, IN_MEMORY).load()
    for path in packed(folder):  # the head and the blocks
        node = Node(model, PackedCache(folder)).load()
        os.truncate(path, 100)
        with pytest.raises(StorageError, match=f"{path}: it was cut short, or its disk failed, while a node computed"):
            node.logits()
        assert node.runner.weights_bytes == 0
        assert torch.equal(other.logits(), expected)
        assert torch.equal(node.load().logits(), expected)


@contextlib.contextmanager
def loading(node: Node, has_begun: threading.Event, may_end: threading.Event) -> Iterator[None]:
    """While a node loads, in a thread of its own."""
    thread = threading.Thread(target=node.load)
    thread.start()
    try:
        assert has_begun.wait(60)
        yield
    finally:
        may_end.set()
        thread.join()


def test_a_node_waits_for_another_that_packs_the_same(model: Path, folder: Path) -> None:
    is_packing, is_waiting = threading.Event(), threading.Event()

    def pack_slowly() -> None:
        if list(folder.glob("*.packing")):
            is_packing.set()
            assert is_waiting.wait(60)

    first, second = Node(model, PackedCache(folder), pack_slowly), Node(model, PackedCache(folder), is_waiting.set)
    with loading(first, is_packing, is_waiting):
        second.load()
    assert first.n_read > 0 and second.n_read == 0
    assert torch.equal(first.logits(), second.logits())


def test_a_node_does_not_wait_for_ever(model: Path, folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    is_packing, is_over = threading.Event(), threading.Event()

    def hang() -> None:
        is_packing.set()
        assert is_over.wait(60)

    first, second = Node(model, PackedCache(folder), hang), Node(model, PackedCache(folder, lock_wait_s=0))
    with loading(first, is_packing, is_over):
        second.load()
    assert "another node has been packing these weights" in caplog.text
    assert torch.equal(first.logits(), second.logits())


def test_what_a_killed_node_left_is_written_over(model: Path, folder: Path) -> None:
    Node(model, PackedCache(folder)).load()
    for path in packed(folder):
        path.rename(path.with_suffix(".packing"))
    assert Node(model, PackedCache(folder)).load().n_read > 0
    assert Node(model, PackedCache(folder)).load().n_read == 0
    assert not list(folder.glob("*.packing"))


# ---- where nothing can be kept


def fails(number: int) -> Callable[..., int]:
    def fail(*_: object) -> int:
        raise OSError(number, os.strerror(number))

    return fail


def assert_packed_in_memory(model: Path, folder: Path, reason: str, caplog: pytest.LogCaptureFixture) -> None:
    """Twice, and one line says why."""
    node, expected = Node(model, PackedCache(folder)), Node(model, IN_MEMORY).load().logits()
    for quantize in ("int8", "none"):
        node.load(quantize)  # type: ignore[arg-type]
        assert node.n_read > 0
    assert torch.equal(node.logits(), expected)
    (record,) = caplog.records
    assert reason in record.message and "packed in memory, at each start anew" in record.message
    assert record.levelno == logging.WARNING
    assert not list(folder.glob("*.pack*"))


@pytest.mark.parametrize("when", ["at first", "half way"])
def test_on_a_full_disk_weights_are_packed_in_memory(
    when: str, model: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    if when == "at first":
        monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**12, 10**12, 0))
    else:
        monkeypatch.setattr("mdi.checkpoint.packed_file.os.fsync", fails(errno.ENOSPC))
    folder.mkdir(mode=0o700)
    chunk = folder / f"{'0' * 64}.pth"
    chunk.write_bytes(b"received")
    assert_packed_in_memory(model, folder, f"{folder}: no space left on the disk", caplog)
    assert chunk.exists()


def test_in_a_folder_that_cannot_be_written_only_what_is_there_is_used(
    model: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    Node(model, PackedCache(folder)).load()
    os_open = os.open

    def open_to_read(path: Path, flags: int, *mode: int) -> int:
        return fails(errno.EROFS)() if flags & os.O_CREAT else os_open(path, flags, *mode)

    monkeypatch.setattr("mdi.checkpoint.cache_folder.os.open", open_to_read)
    assert Node(model, PackedCache(folder)).load().n_read == 0
    for path in packed(folder):
        path.unlink()
    assert_packed_in_memory(model, folder, "the file system is read-only", caplog)


def test_a_folder_of_others_is_not_used(model: Path, folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder.mkdir()
    folder.chmod(0o777)
    assert_packed_in_memory(model, folder, "can be written to by other users", caplog)


def test_a_link_of_that_name_is_not_followed(model: Path, folder: Path, tmp_path: Path) -> None:
    Node(model, PackedCache(folder)).load()
    target = tmp_path / "target"
    for path in packed(folder):
        target.write_bytes(path.read_bytes())
        path.unlink()
        path.with_suffix(".packing").symlink_to(target)
        path.symlink_to(target)
    before = target.read_bytes()
    node = Node(model, PackedCache(folder)).load()
    assert node.n_read > 0 and target.read_bytes() == before


def test_older_packed_weights_make_room_and_chunks_do_not(model: Path, folder: Path) -> None:
    Node(model, PackedCache(folder)).load()
    n_bytes = sum(path.stat().st_size for path in packed(folder))
    chunk = folder / f"{'0' * 64}.pth"
    chunk.write_bytes(bytes(1000))
    for path in [*packed(folder), chunk]:
        os.utime(path, (1, 1))
    former = packed(folder)
    assert Node(model, PackedCache(folder, n_bytes + 2000)).load("int8").n_read > 0
    assert chunk.exists() and not set(former) <= set(packed(folder))
    assert Node(model, PackedCache(folder, n_bytes + 2000)).load("int8").n_read == 0


def test_a_stage_that_was_not_loaded_leaves_nothing(model: Path, folder: Path) -> None:
    class InterruptedError_(Exception):
        pass

    n_ticks = 0

    def interrupt() -> None:
        nonlocal n_ticks
        n_ticks += 1
        if n_ticks == 20:
            raise InterruptedError_

    with pytest.raises(InterruptedError_):
        Node(model, PackedCache(folder), interrupt).load()
    assert not list(folder.iterdir())
