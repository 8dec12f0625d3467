"""How fast a disk is where chunks are kept."""

import contextlib
import os
import secrets
import time
from collections.abc import Callable
from pathlib import Path

_BLOCK_BYTES = 4 << 20
_MAX_BYTES = 64 << 20
_MAX_S = 0.5  # in each direction, and the last block
_MIN_FREE_BYTES = 1 << 30  # a disk that is nearly full is left alone


def disk_speed(folder: Path, tick: Callable[[], None]) -> tuple[float, float] | None:
    """Bytes a second that are written to `folder`, and read from it again; None where it cannot be used.

    What was written is read past the system's cache where the system can be asked to forget it (Linux).
    """
    path = folder / f".speed.{secrets.token_hex(4)}"
    try:
        folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)  # that of the chunks
        folder.mkdir(mode=0o700, exist_ok=True)
        status = os.statvfs(folder)
        if status.f_bavail * status.f_frsize < _MIN_FREE_BYTES:
            return None
        n_bytes, written_bytes_s = _write(path, tick)
        return written_bytes_s, _read(path, n_bytes, tick)
    except OSError:
        return None
    finally:
        with contextlib.suppress(OSError):
            path.unlink()


def _write(path: Path, tick: Callable[[], None]) -> tuple[int, float]:
    """How much was written, and how fast it reached the disk."""
    block, n_bytes, began_s = os.urandom(_BLOCK_BYTES), 0, time.perf_counter()
    with path.open("xb", buffering=0) as file:
        while not n_bytes or (n_bytes < _MAX_BYTES and time.perf_counter() - began_s < _MAX_S):
            n_bytes += file.write(block)
            os.fsync(file.fileno())
            tick()
        return n_bytes, n_bytes / (time.perf_counter() - began_s)


def _read(path: Path, n_bytes: int, tick: Callable[[], None]) -> float:
    with path.open("rb", buffering=0) as file:
        if hasattr(os, "posix_fadvise"):  # not on macOS
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        began_s = time.perf_counter()
        while file.read(_BLOCK_BYTES):
            tick()
        return n_bytes / (time.perf_counter() - began_s)
