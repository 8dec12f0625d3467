"""The cache of received chunks: resumed where it broke, verified before use, limited in size."""

import fcntl
import hashlib
import io
import os
import shutil
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mdi.checkpoint.cache import ChunkCache
from mdi.config.paths import chunk_cache_dir
from mdi.errors import CheckpointError, ControlError, StorageError
from support.wire import few_examples

CONTENT = bytes(range(256)) * 10


def sha256_of(path: Path, advance: object = None) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def name_of(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


DIGEST = name_of(CONTENT)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "cache" / "chunks"


@pytest.fixture
def cache(folder: Path) -> ChunkCache:
    return ChunkCache(folder, sha256_of)


def store(cache: ChunkCache, content: bytes) -> Path:
    digest = name_of(content)
    assert cache.append(digest, 0, len(content), len(content), io.BytesIO(content)) == len(content)
    path = cache.find(digest)
    assert path is not None
    return path


def append(cache: ChunkCache, start: int, stop: int, source: bytes | None = None) -> int:
    data = CONTENT[start:stop] if source is None else source
    return cache.append(DIGEST, start, stop, len(CONTENT), io.BytesIO(data))


# ---- receiving


def test_an_empty_cache_holds_nothing(cache: ChunkCache) -> None:
    assert cache.find(DIGEST) is None
    assert cache.held_bytes(DIGEST) == 0


def test_a_chunk_arrives_at_once(cache: ChunkCache, folder: Path) -> None:
    path = store(cache, CONTENT)
    assert path == folder / f"{DIGEST}.pth"
    assert path.read_bytes() == CONTENT
    assert cache.held_bytes(DIGEST) == len(CONTENT)


@pytest.mark.parametrize("is_faster", ["while it reads", "before it reads"])
def test_two_nodes_that_share_a_folder_verify_a_chunk_at_once(cache: ChunkCache, folder: Path, is_faster: str) -> None:
    def meanwhile(path: Path, advance: object) -> str:
        digest = sha256_of(path)
        assert cache.find(DIGEST) is not None
        if is_faster == "before it reads":
            raise CheckpointError(f"{path}: no such file")
        return digest

    assert append(cache, 0, len(CONTENT)) == len(CONTENT)
    assert ChunkCache(folder, meanwhile).find(DIGEST) == folder / f"{DIGEST}.pth"


def test_a_node_that_shares_the_folder_may_find_a_chunk_complete_first(
    cache: ChunkCache, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = ChunkCache(folder, sha256_of)
    monkeypatch.setattr("mdi.checkpoint.cache.os.fsync", lambda _: other.find(DIGEST))  # all of it is written
    assert append(cache, 0, len(CONTENT)) == len(CONTENT)
    assert cache.find(DIGEST) == folder / f"{DIGEST}.pth"


def test_a_chunk_that_is_received_while_it_is_read_as_a_partial_one_is_found(cache: ChunkCache, folder: Path) -> None:
    assert append(cache, 0, len(CONTENT)) == len(CONTENT)
    received, partial = folder / f"{DIGEST}.received", folder / f"{DIGEST}.partial"
    received.rename(partial)

    def meanwhile(path: Path, advance: object) -> str:
        if path == partial:
            partial.rename(received)  # by the node that is at work on it
        return sha256_of(received)

    assert ChunkCache(folder, meanwhile).find(DIGEST) == folder / f"{DIGEST}.pth"


def test_a_chunk_arrives_in_pieces_also_through_another_cache_of_the_folder(cache: ChunkCache, folder: Path) -> None:
    for start, stop in ((0, 1), (1, 1000), (1000, 2559)):
        assert append(ChunkCache(folder, sha256_of), start, stop) == stop
        assert cache.held_bytes(DIGEST) == stop
        assert cache.find(DIGEST) is None
    assert append(cache, 2559, 2560) == 2560
    path = cache.find(DIGEST)
    assert path is not None
    assert path.read_bytes() == CONTENT


def test_a_source_that_ends_early_is_resumed_where_it_broke(cache: ChunkCache) -> None:
    assert append(cache, 0, len(CONTENT), source=CONTENT[:700]) == 700
    assert cache.find(DIGEST) is None
    assert cache.held_bytes(DIGEST) == 700
    assert append(cache, 700, len(CONTENT), source=b"") == 700
    assert append(cache, 700, len(CONTENT)) == len(CONTENT)
    assert cache.find(DIGEST) is not None


def test_a_source_that_breaks_keeps_what_came(cache: ChunkCache) -> None:
    class Breaking(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            if self.tell():
                raise ConnectionResetError(104, "Connection reset by peer")
            return super().read(300)

    with pytest.raises(StorageError, match="Connection reset"):
        cache.append(DIGEST, 0, len(CONTENT), len(CONTENT), Breaking(CONTENT))
    assert cache.held_bytes(DIGEST) == 300
    assert append(cache, 300, len(CONTENT)) == len(CONTENT)
    assert cache.find(DIGEST) is not None


def test_bytes_beyond_the_range_are_left_in_the_source(cache: ChunkCache) -> None:
    source = io.BytesIO(CONTENT + b"next request")
    assert cache.append(DIGEST, 0, len(CONTENT), len(CONTENT), source) == len(CONTENT)
    assert source.read() == b"next request"


@pytest.mark.parametrize("start", [0, 50, 99, 101, 200])
def test_a_part_that_does_not_begin_where_the_held_part_ends_is_refused(cache: ChunkCache, start: int) -> None:
    append(cache, 0, 100)
    with pytest.raises(ControlError, match=f"has 100 bytes here, so the next part begins there, not at {start}"):
        append(cache, start, start + 10)
    assert cache.held_bytes(DIGEST) == 100


@pytest.mark.parametrize(("start", "stop", "total"), [(-1, 5, 9), (5, 5, 9), (6, 5, 9), (0, 10, 9), (0, 0, 0)])
def test_a_range_that_is_none_is_refused(cache: ChunkCache, start: int, stop: int, total: int) -> None:
    with pytest.raises(ControlError, match=f"bytes {start}-{stop} of {total} are not a range"):
        cache.append(DIGEST, start, stop, total, io.BytesIO(CONTENT))
    assert cache.held_bytes(DIGEST) == 0


def test_a_chunk_that_is_here_is_not_received_again(cache: ChunkCache) -> None:
    path = store(cache, CONTENT)
    with pytest.raises(ControlError, match="has 2560 bytes here"):
        append(cache, 0, 10)
    assert path.read_bytes() == CONTENT


# ---- verification


def test_a_chunk_with_another_digest_is_discarded(cache: ChunkCache) -> None:
    append(cache, 0, len(CONTENT), source=CONTENT[:-1] + b"X")
    with pytest.raises(CheckpointError, match=f"received as {DIGEST[:12]} has the digest"):
        cache.find(DIGEST)
    assert cache.find(DIGEST) is None
    assert cache.held_bytes(DIGEST) == 0
    append(cache, 0, len(CONTENT))
    assert cache.find(DIGEST) is not None


def test_a_chunk_that_cannot_be_read_is_discarded(folder: Path) -> None:
    def refuse(path: Path, advance: object) -> str:
        raise CheckpointError(f"{path.name} is no chunk")

    cache = ChunkCache(folder, refuse)
    append(cache, 0, len(CONTENT))
    with pytest.raises(CheckpointError, match="is no chunk"):
        cache.find(DIGEST)
    assert cache.held_bytes(DIGEST) == 0


def test_a_chunk_is_verified_once(folder: Path) -> None:
    seen = []
    cache = ChunkCache(folder, lambda path, advance: seen.append(path) or sha256_of(path))
    append(cache, 0, len(CONTENT))
    assert seen == []  # it answers the sender first
    for _ in range(3):
        assert cache.find(DIGEST) is not None
    assert len(seen) == 1


# ---- room


def test_the_least_recently_used_chunks_make_room(folder: Path) -> None:
    cache = ChunkCache(folder, sha256_of, limit_bytes=300)
    paths = [store(cache, bytes([i]) * 100) for i in range(3)]
    for age, path in enumerate(paths):
        os.utime(path, (1000 + age, 1000 + age))
    assert cache.find(paths[0].stem) == paths[0]  # used, so the second is now the oldest
    newest = store(cache, b"x" * 100)
    assert sorted(folder.glob("*.pth")) == sorted([paths[0], paths[2], newest])
    store(cache, b"y" * 250)
    assert sum(path.stat().st_size for path in folder.glob("*.pth")) == 250


def test_nothing_is_removed_while_all_fit(folder: Path) -> None:
    cache = ChunkCache(folder, sha256_of, limit_bytes=300)
    for i in range(3):
        store(cache, bytes([i]) * 100)
    assert len(list(folder.glob("*.pth"))) == 3


def test_a_chunk_in_use_keeps_its_bytes_when_it_is_removed(folder: Path) -> None:
    cache = ChunkCache(folder, sha256_of, limit_bytes=100)
    with store(cache, b"a" * 100).open("rb") as in_use:
        store(cache, b"b" * 100)
        assert cache.find(name_of(b"a" * 100)) is None
        assert in_use.read() == b"a" * 100


def test_a_full_disk_is_noticed_before_anything_is_written(
    cache: ChunkCache, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**12, 10**12 - 2559, 2559))
    with pytest.raises(StorageError, match="free some space or choose another folder with --cache-dir") as caught:
        append(cache, 0, len(CONTENT))
    assert str(folder) in str(caught.value)
    assert cache.held_bytes(DIGEST) == 0


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StorageError, match="file/chunks"):
        append(ChunkCache(tmp_path / "file" / "chunks", sha256_of), 0, 10)


# ---- several at once


def test_a_chunk_that_another_process_receives_is_refused(cache: ChunkCache, folder: Path) -> None:
    append(cache, 0, 100)
    (lock,) = folder.glob("*.lock")
    with lock.open("w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(ControlError, match="another starter is sending this chunk right now"):
            append(cache, 100, 200)
        assert store(cache, b"another chunk").is_file()
    assert append(cache, 100, 200) == 200


def test_two_senders_at_once_do_not_mix(cache: ChunkCache) -> None:
    refused = []

    class Meddling(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            if not self.tell():
                with pytest.raises(ControlError) as caught:
                    append(cache, 0, len(CONTENT), source=b"y" * len(CONTENT))
                refused.append(caught.value)
            return super().read(size)

    assert cache.append(DIGEST, 0, len(CONTENT), len(CONTENT), Meddling(CONTENT)) == len(CONTENT)
    assert len(refused) == 1
    assert cache.find(DIGEST) is not None


# ---- attacks


def test_what_is_only_declared_makes_no_room(folder: Path) -> None:
    cache = ChunkCache(folder, sha256_of, limit_bytes=1000)
    for i in range(9):
        store(cache, bytes([i]) * 100)
    held = sorted(folder.glob("*.pth"))
    assert cache.append(DIGEST, 0, 1, 1000, io.BytesIO(b"x")) == 1
    assert sorted(folder.glob("*.pth")) == held
    with pytest.raises(StorageError, match=r"the chunk takes 1001 B and the cache may hold 1000 B"):
        cache.append("ab" * 32, 0, 1, 1001, io.BytesIO(b"x"))
    assert sorted(folder.glob("*.pth")) == held


def test_room_is_made_as_bytes_arrive(folder: Path) -> None:
    cache = ChunkCache(folder, sha256_of, limit_bytes=3000)
    for age, i in enumerate(range(4)):
        os.utime(store(cache, bytes([i]) * 500), (1000 + age, 1000 + age))
    counts = []
    for start in range(0, 2500, 500):
        cache.append(DIGEST, start, start + 500, len(CONTENT), io.BytesIO(CONTENT[start : start + 500]))
        counts.append(len(list(folder.glob("*.pth"))))
        assert sum(path.stat().st_size for path in folder.iterdir() if path.suffix != ".lock") <= 3000
    assert counts == [4, 4, 3, 2, 1]


def test_the_total_is_what_the_first_part_declared(folder: Path) -> None:
    """Small totals at first and large ones later would get past the limit."""
    cache = ChunkCache(folder, sha256_of, limit_bytes=10_000)
    append(cache, 0, 1000)
    with pytest.raises(ControlError, match=r"the chunk had 2560 bytes at first, now 9000: send it again"):
        cache.append(DIGEST, 1000, 1001, 9000, io.BytesIO(b"x"))
    assert cache.held_bytes(DIGEST) == 0  # who is honest about another file of the same content begins anew
    content = CONTENT + bytes(10)
    assert cache.append(DIGEST, 0, len(content), len(content), io.BytesIO(content)) == len(content)


def test_no_chunk_grows_beyond_its_total(folder: Path) -> None:
    cache = ChunkCache(folder, sha256_of, limit_bytes=1000)
    with pytest.raises(ControlError, match="not a range"):
        cache.append(DIGEST, 0, 2000, 1000, io.BytesIO(CONTENT))
    assert cache.append(DIGEST, 0, 900, 1000, io.BytesIO(CONTENT)) == 900
    assert cache.held_bytes(DIGEST) == 900


@pytest.mark.parametrize("suffix", ["partial", "lock"])
@pytest.mark.parametrize("exists", [True, False])
def test_a_link_under_a_name_of_the_cache_is_not_followed(
    suffix: str, exists: bool, cache: ChunkCache, folder: Path, tmp_path: Path
) -> None:
    target = tmp_path / "target"
    if exists:
        target.write_bytes(b"precious")
    folder.mkdir(parents=True)
    (folder / f"{DIGEST}.{suffix}").symlink_to(target)
    with pytest.raises(StorageError, match=rf"{DIGEST}\.{suffix}"):
        cache.append(DIGEST, held := cache.held_bytes(DIGEST), held + 1, len(CONTENT), io.BytesIO(b"x"))
    assert target.exists() == exists and (not exists or target.read_bytes() == b"precious")


@pytest.mark.parametrize("suffix", ["partial", "lock"])
def test_a_pipe_under_a_name_of_the_cache_does_not_block(suffix: str, cache: ChunkCache, folder: Path) -> None:
    folder.mkdir(parents=True)
    os.mkfifo(folder / f"{DIGEST}.{suffix}")
    with pytest.raises(StorageError, match=rf"{DIGEST}\.{suffix}"):
        append(cache, 0, 10)


def test_a_link_to_a_chunk_is_no_chunk(cache: ChunkCache, folder: Path, tmp_path: Path) -> None:
    folder.mkdir(parents=True)
    (tmp_path / "elsewhere").write_bytes(CONTENT)
    for suffix in ("pth", "received", "partial"):
        (folder / f"{DIGEST}.{suffix}").symlink_to(tmp_path / "elsewhere")
    assert cache.find(DIGEST) is None


def test_the_folder_is_made_for_its_owner_alone(cache: ChunkCache, folder: Path) -> None:
    path = store(cache, CONTENT)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_folder_that_others_can_write_to_is_refused(cache: ChunkCache, folder: Path, tmp_path: Path) -> None:
    path = store(cache, CONTENT)
    folder.chmod(0o777)
    for action in (lambda: cache.find(DIGEST), lambda: store(cache, b"x")):
        with pytest.raises(StorageError, match=rf"{folder} can be written to by other users: .* chmod go-w {folder}"):
            action()
    folder.chmod(0o770)  # the group: on many systems its owner alone
    assert cache.find(DIGEST) == path
    (tmp_path / "link").symlink_to(folder)
    with pytest.raises(StorageError, match=rf"link can be written to by other users: .* chmod go-w {folder}"):
        ChunkCache(tmp_path / "link", sha256_of).find(DIGEST)


def test_a_folder_of_somebody_else_is_refused(cache: ChunkCache, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store(cache, CONTENT)
    monkeypatch.setattr(os, "geteuid", lambda: folder.stat().st_uid + 1)
    for action in (lambda: cache.find(DIGEST), lambda: store(cache, b"x")):
        with pytest.raises(StorageError, match=f"{folder} belongs to another user"):
            action()


# ---- names


@pytest.mark.parametrize(
    "digest",
    ["", "..", "../" * 21 + "x", "/etc/passwd", "a" * 63, "a" * 65, "A" * 64, "g" * 64, "a" * 63 + "\n",
     "a" * 64 + "\n",
     "a" * 63 + "/", "a" * 63 + "\0", "٣" * 64],
)  # fmt: skip
def test_what_is_no_digest_never_becomes_a_path(cache: ChunkCache, tmp_path: Path, digest: str) -> None:
    actions: list[Callable[[], object]] = [
        lambda: cache.find(digest),
        lambda: cache.held_bytes(digest),
        lambda: cache.append(digest, 0, 1, 1, io.BytesIO(b"x")),
    ]
    for action in actions:
        with pytest.raises(ControlError, match="is not a digest: 64 hexadecimal digits are"):
            action()
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_the_cache_lies_where_caches_lie(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("MDI_HOME", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert chunk_cache_dir() == tmp_path / "mdi-llm" / "chunks"
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert chunk_cache_dir() == tmp_path / ".cache" / "mdi-llm" / "chunks"
    monkeypatch.setenv("MDI_HOME", str(tmp_path / "home"))
    assert chunk_cache_dir() == tmp_path / "home" / "chunks"


@few_examples
@given(st.lists(st.tuples(st.integers(1, 900), st.integers(0, 900)), max_size=30))
def test_a_sender_that_asks_what_is_held_always_gets_through(
    tmp_path_factory: pytest.TempPathFactory, uploads: list[tuple[int, int]]
) -> None:
    cache = ChunkCache(tmp_path_factory.mktemp("cache"), sha256_of)
    for n_announced, n_arriving in [*uploads, *[(900, 900)] * 3]:
        held = cache.held_bytes(DIGEST)
        stop = min(held + n_announced, len(CONTENT))
        if held < len(CONTENT):
            got = append(cache, held, stop, source=CONTENT[held : held + n_arriving])
            assert got == cache.held_bytes(DIGEST) == min(stop, held + n_arriving)
    path = cache.find(DIGEST)
    assert path is not None
    assert path.read_bytes() == CONTENT


def test_a_file_that_another_node_renames_meanwhile_does_no_harm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two nodes of one machine share the folder: what one lists, the other may have renamed."""
    cache = ChunkCache(tmp_path, lambda path, advance: DIGEST)
    gone = tmp_path / f"{'b' * 64}.partial"
    monkeypatch.setattr(Path, "iterdir", lambda folder: iter([gone]))
    assert cache.append(DIGEST, 0, 3, 6, io.BytesIO(b"abc")) == 3
