"""Chunks that a node has received, each under its digest: resumable, size-limited, never half-written.

Of the chunk <digest> there is at most one of `<digest>.partial`, `.received` (complete) and `.pth` (verified). The file
`<digest>.lock` keeps two writers apart, and holds the size that the first part of the chunk declared.
"""

import contextlib
import fcntl
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from mdi.checkpoint.cache_folder import DEFAULT_LIMIT_BYTES, CacheFolder, is_file, opened
from mdi.checkpoint.tensor_file import Advance, no_progress
from mdi.config.paths import MEASUREMENTS
from mdi.errors import CheckpointError, ChunkBusy, ControlError, StorageError
from mdi.files import storage_error
from mdi.formats import DIGEST
from mdi.strings import format_bytes

_BLOCK_BYTES = 1 << 20


class ChunkCache:
    """A folder of chunk files, which other users cannot write to. Called from HTTP threads and the compute thread; a
    file lock keeps two writers of one chunk apart, also across processes that share the folder.
    """

    def __init__(
        self, folder: Path, digest_of: Callable[[Path, Advance], str], limit_bytes: int = DEFAULT_LIMIT_BYTES
    ) -> None:
        """
        Args:
            digest_of: computes the digest of a finished file's content; calls what it is given with the bytes it read.
            limit_bytes: the least recently used chunks are removed to stay below this.
        """
        self._folder, self._digest_of = CacheFolder(folder, limit_bytes), digest_of

    @property
    def measurements(self) -> Path:
        """The folder beside the chunks for what was measured on this machine."""
        return self._folder.path / MEASUREMENTS

    def find(self, digest: str, advance: Advance = no_progress) -> Path | None:
        """The file that holds the chunk `digest`, or None. What was read when it arrived may have been damaged since.

        What was received since the last call is verified first, which reads all of it; `advance` gets the bytes.
        Raises `CheckpointError` where it is not the chunk it was sent as; it is discarded.
        """
        path = self._path(digest)
        try:
            if not self._folder.path.exists():
                return None
            self._folder.check()
            if not is_file(path) and not self._verify(digest, advance):
                return None
        except OSError as exc:
            raise storage_error(self._folder.path, exc) from exc
        with contextlib.suppress(OSError):
            os.utime(path, follow_symlinks=False)  # recently used
        return path

    def holds(self, digest: str) -> bool:
        """Whether the chunk is here under its name, so that `find` does not have to verify it."""
        return is_file(self._path(digest))

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
                return path.lstat().st_size
        return 0

    def append(self, digest: str, start: int, stop: int, total_bytes: int, source: BinaryIO) -> int:
        """Append bytes `start` to `stop` of a chunk of `total_bytes`, read from `source`.

        Returns the bytes held afterwards; fewer than `stop` where `source` ended early. A chunk that is
        complete gets its name once `find` has verified it.

        Raises:
            ChunkBusy: another starter sends the chunk, or has sent more of it: the range does not begin where what is
                held ends.
            ControlError: the range is none, or the first part declared another total.
            StorageError: there is no room, or the folder is not only ours.
        """
        if not 0 <= start < stop <= total_bytes:
            raise ControlError(f"bytes {start}-{stop} of {total_bytes} are not a range")
        try:
            with self._locked(digest) as lock:
                self._check_total(digest, start, total_bytes, lock)
                if start != (held := self.held_bytes(digest)):
                    raise ChunkBusy(f"the chunk has {held} bytes here, so the next part begins there, not at {start}")
                self._check_room(total_bytes, held)
                held = self._write(digest, start, stop, source)
                if held == total_bytes:
                    self._complete(digest)
                return held
        except OSError as exc:
            raise storage_error(self._folder.path, exc) from exc

    def _check_total(self, digest: str, start: int, total_bytes: int, lock: BinaryIO) -> None:
        """Hold a part against the size that the first one declared, which the lock file keeps."""
        partial, declared = self._partial(digest), lock.read(20)
        if is_file(partial) and declared.isdigit() and int(declared) != total_bytes:
            partial.unlink()  # of another file with the same content, or of nobody who means it
            if start:
                raise ControlError(f"the chunk had {int(declared)} bytes at first, now {total_bytes}: send it again")
        lock.seek(0)
        lock.truncate()
        lock.write(str(total_bytes).encode())
        lock.flush()

    def _write(self, digest: str, start: int, stop: int, source: BinaryIO) -> int:
        held, path = start, self._partial(digest)
        with opened(path, os.O_WRONLY | os.O_APPEND) as file:
            while held < stop and (block := source.read(min(_BLOCK_BYTES, stop - held))):
                self._folder.make_room(len(block), path)
                file.write(block)
                held += len(block)
            file.flush()
            os.fsync(file.fileno())
        return held

    def _complete(self, digest: str) -> None:
        """Call a chunk received, unless another node that shares the folder has found it complete and verified it."""
        try:
            self._partial(digest).rename(self._received(digest))
        except FileNotFoundError:
            if not self.holds(digest):
                raise

    def _verify(self, digest: str, advance: Advance) -> bool:
        """Give a chunk that was received its name. False where none is complete.

        Another node that shares the folder may be about the same: the second one finds the file renamed.
        """
        while True:
            try:
                return self._verify_received(digest, advance)
            except (FileNotFoundError, CheckpointError, StorageError) as exc:
                if self.holds(digest):
                    return True
                if not (isinstance(exc, FileNotFoundError) and is_file(self._received(digest))):
                    raise

    def _verify_received(self, digest: str, advance: Advance) -> bool:
        received = self._received(digest)
        if not is_file(received):
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
            if is_file(partial) and self._digest_of(partial, advance) == digest:
                partial.rename(self._path(digest))
                return True
        return False

    def _check_room(self, total_bytes: int, held: int) -> None:
        """Refuse a chunk that would not fit if all others were removed; none is for what is only declared."""
        folder = self._folder
        if total_bytes > folder.limit_bytes:
            raise StorageError(
                f"{folder.path}: the chunk takes {format_bytes(total_bytes)} and the cache may hold"
                f" {format_bytes(folder.limit_bytes)}"
            )
        others = sum(n_bytes for _, n_bytes, _ in folder.files()) - held
        if total_bytes - held > (free_bytes := folder.free_bytes) + others:
            raise StorageError(
                f"{folder.path}: the chunk takes {format_bytes(total_bytes)} and {format_bytes(free_bytes)} are free:"
                " free some space or choose another folder with --cache-dir"
            )

    @contextlib.contextmanager
    def _locked(self, digest: str) -> Iterator[BinaryIO]:
        self._folder.make()
        with opened(self._path(digest).with_suffix(".lock"), os.O_RDWR) as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as exc:
                raise ChunkBusy("another starter is sending this chunk right now") from exc
            yield file

    def _path(self, digest: str) -> Path:
        if not DIGEST.fullmatch(digest):
            raise ControlError(f"{digest!r} is not a digest: 64 hexadecimal digits are")
        return self._folder.path / f"{digest}.pth"

    def _partial(self, digest: str) -> Path:
        return self._path(digest).with_suffix(".partial")

    def _received(self, digest: str) -> Path:
        return self._path(digest).with_suffix(".received")
