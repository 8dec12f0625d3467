"""The folder of a cache: nobody but its owner writes there, and the least recently used files make room for others."""

import contextlib
import os
import shutil
import stat
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import BinaryIO

from mdi.errors import StorageError
from mdi.files import storage_error

DEFAULT_LIMIT_BYTES = 64 * 2**30
# A chunk that is received, complete and verified; packed weights that are written, and whole.
CHUNK_SUFFIXES = (".partial", ".received", ".pth")
PACKED_SUFFIXES = (".packing", ".packed")
_NO_LINK = os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK  # nor does a pipe of that name block


class CacheFolder:
    """A folder that several processes may share. They may write, rename and remove files at any moment."""

    def __init__(self, path: Path, limit_bytes: int = DEFAULT_LIMIT_BYTES) -> None:
        self.path, self.limit_bytes = path, limit_bytes

    def make(self) -> None:
        """Make it where it is not there. Raises as `check`."""
        self.path.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.check()

    def check(self) -> None:
        """Raise `StorageError` where other users could put files into the folder, or have put it there."""
        status = self.path.stat()
        if not stat.S_ISDIR(status.st_mode):
            raise StorageError(f"{self.path}: not a folder: choose another one with --cache-dir")
        if status.st_uid != os.geteuid():
            raise StorageError(f"{self.path} belongs to another user: choose another folder with --cache-dir")
        writers = stat.S_IWOTH | (stat.S_IWGRP if self.path.is_symlink() else 0)
        if status.st_mode & writers:
            raise StorageError(
                f"{self.path} can be written to by other users: choose another folder with --cache-dir, or"
                f" chmod go-w {self.path.resolve()}"
            )

    @property
    def free_bytes(self) -> int:
        """What is free on its disk."""
        return shutil.disk_usage(self.path).free

    def files(self) -> list[tuple[float, int, Path]]:
        """(time of last use, bytes, path) of all files, whole or not, the least recently used first."""
        found = []
        for path in self.path.iterdir():
            if path.suffix in CHUNK_SUFFIXES + PACKED_SUFFIXES:
                with contextlib.suppress(FileNotFoundError):
                    status = path.lstat()
                    found.append((status.st_mtime, status.st_size, path))
        return sorted(found)

    def make_room(
        self, n_bytes: int, growing: Path, suffixes: Collection[str] = CHUNK_SUFFIXES + PACKED_SUFFIXES
    ) -> bool:
        """Remove the least recently used files until the file `growing` can take `n_bytes` more, if that is to be had.

        Args:
            suffixes: of the files that may be removed.
        """
        files = self.files()
        excess = sum(n for _, n, _ in files) + n_bytes - self.limit_bytes
        excess = max(excess, n_bytes - self.free_bytes)
        for _, n_held, path in files:
            if excess <= 0:
                break
            if path != growing and path.suffix in suffixes:
                excess -= n_held
                path.unlink(missing_ok=True)  # whoever loads it has it open, or mapped
        return excess <= 0


def is_file(path: Path) -> bool:
    """Whether there is a file, not a link to one."""
    try:
        return stat.S_ISREG(path.lstat().st_mode)
    except FileNotFoundError:
        return False


def open_own(path: Path, flags: int) -> int:
    """A descriptor of a file that is none but ours. Raises `StorageError` for a link or a pipe of that name."""
    try:
        file = os.open(path, flags | _NO_LINK, 0o600)
    except OSError as exc:
        raise storage_error(path, exc) from exc
    if not stat.S_ISREG(os.fstat(file).st_mode):
        os.close(file)
        raise StorageError(f"{path}: not a file")
    return file


@contextlib.contextmanager
def opened(path: Path, flags: int) -> Iterator[BinaryIO]:
    """Open a file to write to it, or create it. Raises as `open_own`."""
    with open(open_own(path, flags | os.O_CREAT), "ab" if flags & os.O_APPEND else "r+b") as file:
        yield file
