"""What a prepared model was made from, so that it is made again where that has changed, and only there."""

import contextlib
import enum
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from mdi.checkpoint.digests import file_digest
from mdi.documents import Fields, is_text, misfit, read_json
from mdi.errors import CheckpointError, MdiError, StorageError
from mdi.files import storage_error, write_text
from mdi.progress import progress_bar
from mdi.strings import one_line

ORIGIN_FILE = "source.json"
_MAX_ORIGIN_BYTES = 1 << 20


class Match(enum.Enum):
    """How a source compares with the one that a folder was made from."""

    SAME = enum.auto()
    CHANGED = enum.auto()  # the same place with other content
    OTHER = enum.auto()


@dataclass(frozen=True)
class Origin:
    """A source: what it is called, and the files whose content decides; none where the name says it all."""

    name: str  # such as hub:org/name or folder:/home/me/model
    files: Sequence[Path] = ()
    former_name: str = ""  # as version 0.2 wrote it


@dataclass(frozen=True)
class _File:
    """A file of a source, as it was. While size and time stay, its content counts as the same."""

    n_bytes: int
    mtime_ns: int
    digest: str


def record_origin(folder: Path, origin: Origin) -> None:
    """Write what the model in `folder` was made from. All files of the source are read."""
    files = {}
    if origin.files:
        with progress_bar(_total_bytes(origin), "recording the source", "B") as advance:
            for path in origin.files:
                files[path.name] = _File(*_size_and_time(path), file_digest(path, advance))
    _write(folder, origin.name, files)


def compare_origin(folder: Path, origin: Origin) -> tuple[Match, str]:
    """How `origin` compares with what `folder` was made from, and what that is called.

    Files are read only where their size is the same and their time is not. A folder without a record was put there by
    hand, and counts as the same. Raises `CheckpointError` for a damaged record.
    """
    if not (folder / ORIGIN_FILE).is_file():
        return Match.SAME, ""
    name, files = _read(folder)
    is_same_place = name in (origin.name, origin.former_name)
    if not files or not origin.files:
        return (Match.SAME if is_same_place else Match.OTHER), name
    if _has_content(origin, files, lambda now: _write(folder, name, now)):
        return Match.SAME, name
    return (Match.CHANGED if is_same_place else Match.OTHER), name


def name_of_origin(folder: Path) -> str:
    """What the model in `folder` was made from; empty where that is not known."""
    try:
        return one_line(_read(folder)[0])
    except MdiError:
        return ""


def _read(folder: Path) -> tuple[str, dict[str, _File]]:
    """What `record_origin` wrote. Raises `CheckpointError`."""
    path = folder / ORIGIN_FILE
    try:
        record = Fields(read_json(path, _MAX_ORIGIN_BYTES, CheckpointError), str(path), CheckpointError)
        name = record.get("source", is_text, "a text")
        files = record.get("files", _are_files, "sizes, times and digests of files", {})
    except CheckpointError as exc:
        raise CheckpointError(f"{exc}; remove it") from exc
    return name, {file_name: _File(**values) for file_name, values in files.items()}


def _has_content(origin: Origin, known: dict[str, _File], on_new_times: Callable[[dict[str, _File]], None]) -> bool:
    """Whether the files of `origin` are the known ones; `on_new_times` records them where only their times differ."""
    if {path.name for path in origin.files} != set(known):
        return False
    now: dict[str, _File] = {}
    for path in origin.files:
        before = known[path.name]
        n_bytes, mtime_ns = _size_and_time(path)
        if n_bytes != before.n_bytes or (mtime_ns != before.mtime_ns and file_digest(path) != before.digest):
            return False
        now[path.name] = _File(n_bytes, mtime_ns, before.digest)
    if now != known:
        with contextlib.suppress(StorageError):  # a read-only folder: they are read again next time
            on_new_times(now)
    return True


def _size_and_time(path: Path) -> tuple[int, int]:
    try:
        stat = path.stat()
    except OSError as exc:
        raise storage_error(path, exc) from exc
    return stat.st_size, stat.st_mtime_ns


def _total_bytes(origin: Origin) -> int:
    return sum(_size_and_time(path)[0] for path in origin.files)


def _write(folder: Path, name: str, files: dict[str, _File]) -> None:
    values = {"source": name, "files": {file_name: asdict(file) for file_name, file in files.items()}}
    write_text(folder / ORIGIN_FILE, json.dumps(values, indent=1))


def _are_files(value: object) -> bool:
    return isinstance(value, dict) and all(map(_is_file, value.values()))


def _is_file(value: object) -> bool:
    names = {field.name for field in fields(_File)}
    return isinstance(value, dict) and value.keys() == names and misfit(value, _File) is None
