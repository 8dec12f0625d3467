"""Temporary files beside those that they are to replace, and the removal of those that killed programs have left.

Whoever writes one holds a shared lock on its folder, which ends with the process at the latest, and puts into its name
what tells this start of the machine from others. So the writer of a file with that in its name is gone as soon as the
folder can be locked exclusively. No lock tells of the machine before it was restarted, nor of others that have the
folder over a network: their files are removed once nobody has written to them for a day.
"""

import contextlib
import hashlib
import os
import re
import secrets
import time
from collections.abc import Iterator
from pathlib import Path

from mdi.identity import boot_id

_UNKNOWN_BOOT = "0" * 8  # of a writer without a lock, too
_UNCHANGED_S = 24 * 60 * 60.0
_TAIL = re.compile(r"(?:[0-9a-f]{8}){1,2}\.partial")


@contextlib.contextmanager
def partial_beside(target: Path) -> Iterator[Path]:
    """Yield the path of a file that is not there yet, beside `target`. Nobody takes it for stale meanwhile.

    What is there at the end, and was not renamed, is removed.
    """
    with _locked(target.parent, exclusively=False) as is_locked:
        boot = _own_boot() if is_locked else _UNKNOWN_BOOT
        partial = target.with_name(f".{target.name}.{boot}{secrets.token_hex(4)}.partial")
        try:
            yield partial
        finally:
            with contextlib.suppress(OSError):  # it is not there, nor perhaps its folder
                partial.unlink()


def remove_stale(target: Path) -> None:
    """Remove the temporary files of `target` that have no living writer. Where that is not certain they stay."""
    # Looked for before the lock is taken: whoever begins to write while others are kept out is not among them.
    stale = [path for path in _partials(target) if _is_of_this_boot(path, target) or _is_old(path)]
    if not stale:
        return
    with _locked(target.parent, exclusively=True) as is_locked, contextlib.suppress(OSError):
        for path in stale if is_locked else []:
            path.unlink()


def _partials(target: Path) -> list[Path]:
    head = f".{target.name}."
    with contextlib.suppress(OSError), os.scandir(target.parent) as entries:
        names = [entry.name for entry in entries if entry.name.startswith(head)]
        return [target.with_name(name) for name in names if _TAIL.fullmatch(name.removeprefix(head))]
    return []


def _is_of_this_boot(path: Path, target: Path) -> bool:
    boot = _own_boot()
    return boot != _UNKNOWN_BOOT and path.name.startswith(f".{target.name}.{boot}")


def _is_old(path: Path) -> bool:
    try:
        return time.time() - path.lstat().st_mtime > _UNCHANGED_S
    except OSError:
        return False


def _own_boot() -> str:
    boot = boot_id()
    return _UNKNOWN_BOOT if boot is None else hashlib.blake2b(boot.encode(), digest_size=4).hexdigest()


@contextlib.contextmanager
def _locked(folder: Path, *, exclusively: bool) -> Iterator[bool]:
    """Hold a lock on a folder. Yields false where it cannot be had at once: others may hold theirs for long."""
    descriptor: int | None = None
    try:
        with contextlib.suppress(OSError):  # of a folder that may be written to, but not read
            descriptor = os.open(folder, os.O_RDONLY)
        yield descriptor is not None and _lock(descriptor, exclusively=exclusively)
    finally:
        if descriptor is not None:
            os.close(descriptor)


def _lock(descriptor: int, *, exclusively: bool) -> bool:
    try:
        import fcntl  # not on Windows

        fcntl.flock(descriptor, (fcntl.LOCK_EX if exclusively else fcntl.LOCK_SH) | fcntl.LOCK_NB)
    except (ImportError, OSError):
        return False
    return True
