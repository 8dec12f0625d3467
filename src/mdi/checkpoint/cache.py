"""Chunks that a node has received, each under its digest: resumable, size-limited, never half-written."""

import contextlib
import fcntl
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from mdi.checkpoint.tensor_file import Advance, no_progress
from mdi.errors import CheckpointError, ControlError, StorageError
from mdi.files import storage_error
from mdi.formats import DIGEST
from mdi.strings import format_bytes

DEFAULT_LIMIT_BYTES = 64 * 2**30
_BLOCK_BYTES = 1 << 20


class ChunkCache:
    """A folder of chunk files. Called from HTTP threads and the compute thread; a file lock keeps
    two writers of one chunk apart, also across processes that share the folder.
    """

    def __init__(
        self, folder: Path, digest_of: Callable[[Path, Advance], str], limit_bytes: int = DEFAULT_LIMIT_BYTES
    ) -> None:
        """
        Args:
            digest_of: computes the digest of a finished file's content; calls what it is given with the bytes it read.
            limit_bytes: the least recently used chunks are removed to stay below this.
        """
        self._folder, self._digest_of, self._limit_bytes = folder, digest_of, limit_bytes

    def find(self, digest: str, advance: Advance = no_progress) -> Path | None:
        """The file that holds the chunk `digest`, or None. What was read when it arrived may have been damaged since.

        What was received since the last call is verified first, which reads all of it; `advance` gets the bytes.
        Raises `CheckpointError` where it is not the chunk it was sent as; it is discarded.
        """
        path = self._path(digest)
        try:
            if not path.is_file() and not self._verify(digest, advance):
                return None
        except OSError as exc:
            raise storage_error(self._folder, exc) from exc
        with contextlib.suppress(OSError):
            os.utime(path)  # recently used
        return path

    def holds(self, digest: str) -> bool:
        """Whether the chunk is here under its name, so that `find` does not have to verify it."""
        return self._path(digest).is_file()

    def discard(self, digest: str) -> None:
        """Remove a chunk that turned out to be damaged. Raises `StorageError` where it cannot be removed."""
        try:
            self._path(digest).unlink(missing_ok=True)
        except OSError as exc:
            raise storage_error(self._path(digest), exc) from exc

    def held_bytes(self, digest: str) -> int:
        """How many bytes of the chunk are here, whole or partial."""
        for path in (self._path(digest), self._received(digest), self._partial(digest)):
            with contextlib.suppress(OSError):
                return path.stat().st_size
        return 0

    def append(self, digest: str, start: int, stop: int, total_bytes: int, source: BinaryIO) -> int:
        """Append bytes `start` to `stop` of a chunk of `total_bytes`, read from `source`.

        Returns the bytes held afterwards; fewer than `stop` where `source` ended early. A chunk that is
        complete gets its name once `find` has verified it.

        Raises:
            ControlError: the range does not begin where the held part ends.
            StorageError: there is no room.
        """
        if not 0 <= start < stop <= total_bytes:
            raise ControlError(f"bytes {start}-{stop} of {total_bytes} are not a range")
        try:
            with self._locked(digest):
                if start == 0 and self.held_bytes(digest) > total_bytes:  # of another file with the same content
                    self._partial(digest).unlink(missing_ok=True)
                if start != (held := self.held_bytes(digest)):
                    raise ControlError(
                        f"the chunk has {held} bytes here, so the next part begins there, not at {start}"
                    )
                if start == 0:
                    self._make_room(total_bytes)
                held = self._write(digest, start, stop, source)
                if held == total_bytes:
                    self._partial(digest).rename(self._received(digest))
                return held
        except OSError as exc:
            raise storage_error(self._folder, exc) from exc

    def _write(self, digest: str, start: int, stop: int, source: BinaryIO) -> int:
        held = start
        with self._partial(digest).open("ab") as file:
            while held < stop and (block := source.read(min(_BLOCK_BYTES, stop - held))):
                file.write(block)
                held += len(block)
            file.flush()
            os.fsync(file.fileno())
        return held

    def _verify(self, digest: str, advance: Advance) -> bool:
        """Give a chunk that was received its name. False where none is complete."""
        received = self._received(digest)
        if not received.is_file():
            return self._adopt_partial(digest, advance)
        try:
            actual = self._digest_of(received, advance)
        except CheckpointError:  # not for a `StorageError`: what cannot be read now may be whole
            received.unlink()
            raise
        if actual != digest:
            received.unlink()
            raise CheckpointError(f"the chunk received as {digest[:12]} has the digest {actual[:12]}: it was discarded")
        received.rename(self._path(digest))
        return True

    def _adopt_partial(self, digest: str, advance: Advance) -> bool:
        """A node that was killed before it could rename a complete file has it still as a partial one."""
        partial = self._partial(digest)
        with contextlib.suppress(CheckpointError, StorageError):
            if partial.is_file() and self._digest_of(partial, advance) == digest:
                partial.rename(self._path(digest))
                return True
        return False

    def _make_room(self, n_bytes: int) -> None:
        files = self._files()
        held_bytes = sum(n for _, n, _ in files)
        free_bytes = shutil.disk_usage(self._folder).free
        if n_bytes > self._limit_bytes:
            raise StorageError(
                f"{self._folder}: the chunk takes {format_bytes(n_bytes)} and the cache may hold"
                f" {format_bytes(self._limit_bytes)}"
            )
        excess = min(max(held_bytes + n_bytes - self._limit_bytes, n_bytes - free_bytes), held_bytes)
        if n_bytes <= free_bytes + held_bytes:
            for _, n_held, path in files:
                if excess <= 0:
                    break
                excess -= n_held
                path.unlink(missing_ok=True)  # a stage that maps it keeps its memory
            free_bytes = shutil.disk_usage(self._folder).free
        if n_bytes > free_bytes:
            raise StorageError(
                f"{self._folder}: the chunk takes {format_bytes(n_bytes)} and {format_bytes(free_bytes)} are free: free"
                " some space or choose another folder with --cache-dir"
            )

    def _files(self) -> list[tuple[float, int, Path]]:
        """(time of last use, bytes, path) of all chunks, whole or not, the least recently used first.

        Another node may share the folder, so a file can be renamed or gone at any moment.
        """
        found = []
        for path in self._folder.iterdir():
            if path.suffix in (".pth", ".received", ".partial"):
                with contextlib.suppress(FileNotFoundError):
                    stat = path.stat()
                    found.append((stat.st_mtime, stat.st_size, path))
        return sorted(found)

    @contextlib.contextmanager
    def _locked(self, digest: str) -> Iterator[None]:
        self._folder.mkdir(parents=True, exist_ok=True)
        with self._path(digest).with_suffix(".lock").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as exc:
                raise ControlError("another starter is sending this chunk right now") from exc
            yield

    def _path(self, digest: str) -> Path:
        if not DIGEST.fullmatch(digest):
            raise ControlError(f"{digest!r} is not a digest: 64 hexadecimal digits are")
        return self._folder / f"{digest}.pth"

    def _partial(self, digest: str) -> Path:
        return self._path(digest).with_suffix(".partial")

    def _received(self, digest: str) -> Path:
        return self._path(digest).with_suffix(".received")
