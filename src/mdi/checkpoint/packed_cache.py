"""Weights in the layout of a backend, kept in a cache folder and mapped: they are packed once for a machine.

`<key>.packed` is a file of `mdi.checkpoint.packed_file`. `<key>.packing` is one that is written now, and the lock that
keeps two nodes from making the same. What is kept can be made again, so no received chunk makes room for it.
"""

import contextlib
import errno
import fcntl
import hashlib
import json
import logging
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from mdi.checkpoint.cache_folder import DEFAULT_LIMIT_BYTES, PACKED_SUFFIXES, CacheFolder, is_file, open_own
from mdi.checkpoint.packed_file import PackedWriter, Tick, read_packed
from mdi.checkpoint.pickles import Damaged
from mdi.config.paths import chunk_cache_dir
from mdi.errors import ConfigError, StorageError
from mdi.files import storage_error
from mdi.model.packed import (
    IN_MEMORY,
    CannotKeepError,
    Make,
    MappedBytes,
    Mapper,
    PackedFiles,
    PackedPart,
    PackedWeights,
)

log = logging.getLogger(__name__)

FORMAT_VERSION = 1  # of what the names stand for, besides the layout that a backend tells
LOCK_WAIT_S = 120.0  # for a node that packs the same weights
_LOCK_POLL_S = 0.1


def packed_files(cache_dir: Path | None) -> PackedFiles:
    """Where a node keeps packed weights: in the folder for received chunks, or nowhere for a user without a home."""
    try:
        return PackedCache(cache_dir or chunk_cache_dir())
    except ConfigError:
        return IN_MEMORY


class PackedCache:
    """A folder of packed weights, which may be that of a chunk cache. Called from the compute thread."""

    def __init__(self, folder: Path, limit_bytes: int = DEFAULT_LIMIT_BYTES, lock_wait_s: float = LOCK_WAIT_S) -> None:
        """
        Args:
            limit_bytes: of all files of the folder.
            lock_wait_s: how long to wait for a node that packs the same; then they are packed in memory.
        """
        self._folder, self._lock_wait_s = CacheFolder(folder, limit_bytes), lock_wait_s

    @contextlib.contextmanager
    def opened(self, key: str, tick: Tick) -> Iterator[PackedWeights]:
        """As `mdi.model.packed.PackedFiles` says. Raises `CannotKeepError`."""
        stage = _Stage(self, key, tick)
        try:
            yield stage
            for part in stage.new_parts:
                part.keep()
        finally:
            for part in stage.new_parts:
                part.close()

    def part(self, key: str, mapper: Mapper, tick: Tick) -> "_KeptPart | _NewPart":
        """What is kept under a key, or else what can be filled. Raises `CannotKeepError`."""
        path = self._folder.path / f"{key}.packed"
        try:
            self._folder.make()
            if (kept := _kept(path, mapper, tick)) is not None:
                return kept
            file = self._lock(path.with_suffix(".packing"), tick)
            try:
                if (kept := _kept(path, mapper, tick)) is None:  # another node may have made it meanwhile
                    return _NewPart(self._folder, path, file, mapper, tick)
            except BaseException:
                os.close(file)
                raise
            path.with_suffix(".packing").unlink(missing_ok=True)
            os.close(file)
            return kept
        except OSError as exc:
            raise CannotKeepError(str(storage_error(self._folder.path, exc))) from exc
        except StorageError as exc:
            raise CannotKeepError(str(exc)) from exc

    def _lock(self, path: Path, tick: Tick) -> int:
        """A descriptor of the file `path`, empty and ours alone. Raises `CannotKeepError`, also as `open_own`."""
        deadline_s = time.monotonic() + self._lock_wait_s
        while True:
            file = open_own(path, os.O_RDWR | os.O_CREAT)
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.path.samestat(os.fstat(file), path.lstat()):  # and not renamed before it was ours
                    os.ftruncate(file, 0)  # by a node that was killed
                    return file
            except (BlockingIOError, FileNotFoundError):
                pass
            except BaseException:
                os.close(file)
                raise
            os.close(file)
            tick()
            if time.monotonic() > deadline_s:
                raise CannotKeepError(
                    f"{path}: another node has been packing these weights for {self._lock_wait_s:g} s"
                )
            time.sleep(_LOCK_POLL_S)


class _Stage:
    """The parts of a stage that is being loaded."""

    def __init__(self, cache: PackedCache, key: str, tick: Tick) -> None:
        self._cache, self._key, self._tick = cache, key, tick
        self._n_parts = 0
        self.new_parts: list[_NewPart] = []

    def part(self, name: str, layout: str, mapper: Mapper) -> PackedPart:
        text = json.dumps([FORMAT_VERSION, self._key, name, layout])
        part = self._cache.part(hashlib.sha256(text.encode()).hexdigest(), mapper, self._tick)
        self._n_parts += 1
        if isinstance(part, _NewPart):
            self.new_parts.append(part)
        return part

    @property
    def is_kept(self) -> bool:
        return self._n_parts > 0 and not self.new_parts


class _Mapped:
    """Mapped bytes of one file, and whether they can still be read."""

    def __init__(self, path: Path, mapper: Mapper, mapped: Sequence[MappedBytes]) -> None:
        self._path, self._mapper, self._mapped = path, mapper, mapped
        self._n_lost = mapper.n_lost

    @property
    def mapped_bytes(self) -> int:
        return sum(one.data.nbytes for one in self._mapped)

    def check(self) -> None:
        """Raise `StorageError` where tensors have been lost since they were asked for."""
        if self._n_lost != (n_lost := self._mapper.n_lost):  # by this node, or by another of this process
            self._n_lost = n_lost
            if any(one.is_lost for one in self._mapped):
                raise StorageError(f"{self._path}: it was cut short, or its disk failed, while a node computed with it")


class _KeptPart(_Mapped):
    """Tensors of a file that was there."""

    def __init__(
        self, path: Path, mapper: Mapper, bytes_of_file: MappedBytes, tensors: dict[str, torch.Tensor]
    ) -> None:
        super().__init__(path, mapper, [bytes_of_file])
        self._tensors = tensors

    def tensor(self, name: str, make: Make) -> torch.Tensor:
        return self._tensors[name]


class _NewPart(_Mapped):
    """Tensors that are made, and written to a file that is kept in the end."""

    def __init__(self, folder: CacheFolder, path: Path, file: int, mapper: Mapper, tick: Tick) -> None:
        self._writer = PackedWriter(file, mapper, tick)
        super().__init__(path, mapper, self._writer.mapped)
        self._folder, self._partial, self._file = folder, path.with_suffix(".packing"), file

    def tensor(self, name: str, make: Make) -> torch.Tensor:
        made = make()
        with self._storage_errors():
            if not self._folder.make_room(made.nbytes, self._partial, PACKED_SUFFIXES):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return self._writer.add(name, made)

    def keep(self) -> None:
        """Give the file its name. Raises `CannotKeepError`."""
        with self._storage_errors(), contextlib.suppress(FileNotFoundError):  # that made room for a chunk
            self._writer.finish()
            self._partial.rename(self._path)

    def close(self) -> None:
        """Remove the file, unless it has its name. What is mapped stays."""
        if self._file >= 0:
            with contextlib.suppress(OSError):
                if os.path.samestat(os.fstat(self._file), self._partial.lstat()):
                    self._partial.unlink()
            os.close(self._file)
            self._file = -1

    @contextlib.contextmanager
    def _storage_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as exc:
            raise CannotKeepError(str(storage_error(self._folder.path, exc))) from exc


def _kept(path: Path, mapper: Mapper, tick: Tick) -> _KeptPart | None:
    """The part in a file; None where there is none, or a damaged one, which is removed. Raises as `open_own`."""
    if not is_file(path):
        return None
    file = open_own(path, os.O_RDONLY)
    try:
        bytes_of_file, tensors = read_packed(file, mapper, tick)
    except Damaged as exc:
        log.warning("%s: damaged: %s; it was removed, and is made again", path, exc)
        path.unlink(missing_ok=True)
        return None
    finally:
        os.close(file)
    log.info("packed weights from %s", path)
    with contextlib.suppress(OSError):
        os.utime(path, follow_symlinks=False)  # recently used
    return _KeptPart(path, mapper, bytes_of_file, tensors)
