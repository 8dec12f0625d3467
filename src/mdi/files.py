"""Files and folders that appear whole or not at all."""

import contextlib
import errno
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from mdi.errors import StorageError
from mdi.partial_files import partial_beside, remove_stale

_ADVICE = {
    errno.ENOSPC: "no space left on the disk: free some, or choose another folder",
    errno.EDQUOT: "the disk quota is used up",
    errno.EROFS: "the file system is read-only",
    errno.EACCES: "permission denied",
    errno.EPERM: "permission denied",
}


def storage_error(path: Path, exc: OSError) -> StorageError:
    """The one-line error for an `OSError` met while reading or writing `path`."""
    return StorageError(f"{path}: {_ADVICE.get(exc.errno or 0, exc.strerror or str(exc))}")


def native_path(path: Path) -> str:
    """`path` as a library outside of Python takes it: that encodes it in UTF-8, whatever the locale has.

    Raises `StorageError` for a name that is not UTF-8.
    """
    try:
        return os.fsencode(path).decode()
    except UnicodeDecodeError as exc:
        raise StorageError(f"{path}: torch cannot write to it, because its name is not UTF-8: choose another") from exc


def read_bytes(path: Path) -> bytes:
    """The content of a file; raises `StorageError`."""
    try:
        return path.read_bytes()
    except OSError as exc:
        raise storage_error(path, exc) from exc


@contextlib.contextmanager
def atomic_path(target: Path) -> Iterator[Path]:
    """Yield a temporary path beside `target`; on success flush it and rename it to `target`.

    On failure the temporary file is removed and `target` is left as it was. Those that killed programs have left of it
    are removed first. Raises `StorageError` for disk full, read-only folders and the like.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        remove_stale(target)
        with partial_beside(target) as partial:
            partial.touch(exist_ok=False)
            yield partial
            flush(partial)
            partial.replace(target)
    except OSError as exc:
        raise storage_error(target, exc) from exc


def check_replaceable(target: Path) -> None:
    """Raise the `StorageError` of `atomic_path`, before there is anything to write. The folder is created."""
    try:
        if target.is_dir():
            raise IsADirectoryError(errno.EISDIR, "is a folder")
        target.parent.mkdir(parents=True, exist_ok=True)
        with partial_beside(target) as probe:
            probe.touch(exist_ok=False)
    except OSError as exc:
        raise storage_error(target, exc) from exc


def check_appendable(path: Path) -> None:
    """Raise `StorageError` unless lines can be written to `path`. What it holds is kept; a new file is created."""
    try:
        path.open("ab").close()
    except OSError as exc:
        raise storage_error(path, exc) from exc


def write_text(target: Path, text: str) -> None:
    """Write `text` to `target` through `atomic_path`."""
    with atomic_path(target) as partial:
        partial.write_text(text, encoding="utf-8")


@contextlib.contextmanager
def partial_folder(target: Path, *, keep_on_error: bool = False, kept: Sequence[str] = ()) -> Iterator[Path]:
    """Yield the folder `<target>.partial`; on success rename it to `target`.

    What an interrupted attempt left in `<target>.partial` is removed first, unless `keep_on_error`
    (downloads are resumed). A folder `target` that is there already is replaced, except for what is named in `kept`.
    """
    partial = target.with_name(target.name + ".partial")
    try:
        if not keep_on_error:
            shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True, exist_ok=True)
        yield partial
        for path in sorted(partial.rglob("*")):
            if path.is_file():
                flush(path)
        _replace(target, partial, kept)
    except BaseException as exc:
        if not keep_on_error:
            shutil.rmtree(partial, ignore_errors=True)
        with contextlib.suppress(OSError):  # it holds what an interrupted attempt can go on with
            partial.rmdir()
        if isinstance(exc, OSError):
            raise storage_error(target, exc) from exc
        raise


def _replace(target: Path, partial: Path, kept: Sequence[str]) -> None:
    former = target.with_name(target.name + ".former")
    shutil.rmtree(former, ignore_errors=True)
    if target.is_dir():
        target.rename(former)
    partial.rename(target)
    for name in kept:
        if (former / name).exists() and not (target / name).exists():
            (former / name).rename(target / name)
    shutil.rmtree(former, ignore_errors=True)


def flush(path: Path) -> None:
    """Make the content of `path` durable."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())
