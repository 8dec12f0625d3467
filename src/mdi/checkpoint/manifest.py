"""Which chunks of a model there are, and the manifest that names the files of each set."""

import json
import logging
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

from mdi.checkpoint.config import MAX_VALUES
from mdi.documents import misfit, read_json
from mdi.errors import CheckpointError
from mdi.files import write_text
from mdi.formats import DIGEST, MODES, Mode
from mdi.model.span import Span, spans_of
from mdi.strings import one_line, quoted

log = logging.getLogger(__name__)

FORMAT_VERSION = 3
SAME_UNQUANTIZED_VERSION = 2  # its int8 and int4 are other formats; all else is the same
MANIFEST_FILE = "manifest.json"
MAX_MANIFEST_BYTES = 4 << 20

T = TypeVar("T")


@dataclass(frozen=True)
class ChunkFile:
    """One line of a manifest."""

    name: str
    n_bytes: int
    digest: str


@dataclass(frozen=True)
class Source:
    """The whole model that chunks were made from: its digest, and how its file was then."""

    digest: str
    n_bytes: int
    mtime_ns: int


@dataclass(frozen=True)
class Manifest:
    """What a set of chunks holds, in ring order."""

    folder: Path  # where the files lie; not a part of the file
    model_digest: str
    spans: tuple[Span, ...]
    dtype: str
    quantization: Mode
    files: tuple[ChunkFile, ...]
    source: Source
    format_version: int = FORMAT_VERSION

    @property
    def is_readable(self) -> bool:
        """Whether the chunks are in a format of this version. Others only tell what to make in their place."""
        return self.format_version == FORMAT_VERSION or self.quantization == "none"


def kind_of(dtype: str, quantization: Mode) -> str:
    """What chunks hold, for people: `bfloat16`, or `bfloat16, int8`."""
    return dtype if quantization == "none" else f"{dtype}, {quantization}"


def chunks_folder(folder: Path, n_nodes: int, quantization: Mode = "none", cast: str | None = None) -> Path:
    """Where the chunks of a model for `n_nodes` nodes lie: `3nodes`, `3nodes-int8`, `3nodes-bfloat16-int8`.

    `cast` is their dtype, where that is not the model's own.
    """
    mode = None if quantization == "none" else quantization
    return folder / "chunks" / "-".join(filter(None, [f"{n_nodes}nodes", cast, mode]))


def chunks_folders(folder: Path, n_nodes: int) -> list[Path]:
    """All sets of chunks for `n_nodes` nodes that lie in a model folder, the plain one first."""
    plain = chunks_folder(folder, n_nodes)
    return [path for path in (plain, *sorted(plain.parent.glob(f"{plain.name}-*"))) if path.is_dir()]


def chunk_name(node: int) -> str:
    """The file name of the chunk of node `node` of the ring."""
    return "model_starter.pth" if node == 0 else f"model_secondary{node - 1}.pth"


def read_manifest(folder: Path) -> Manifest | None:
    """The manifest in a chunks folder; None where there is none, or one of version 0.2 and before, whose digests this
    one cannot compare. Raises `CheckpointError` if it is damaged.
    """
    path = folder / MANIFEST_FILE
    if not path.is_file():
        return None
    data = read_json(path, MAX_MANIFEST_BYTES, CheckpointError)
    try:
        if (version := data["format_version"]) == 1:
            log.info("%s was written by an earlier version, with other digests: it is not used", path)
            return None
        if version not in (SAME_UNQUANTIZED_VERSION, FORMAT_VERSION):
            raise CheckpointError(
                f"{path}: format {quoted(version, 40)}, this version reads {FORMAT_VERSION}; split again"
            )
        spans = tuple(Span(*span) for span in data.pop("spans"))
        files = tuple(_checked(file, ChunkFile) for file in data.pop("files"))
        source = _checked(data.pop("source"), Source)
        manifest = Manifest(folder=folder, spans=spans, files=files, source=source, **data)
        _check_manifest(manifest)
        return manifest
    except (ValueError, KeyError, TypeError, AttributeError) as exc:
        raise CheckpointError(f"{path}: damaged ({one_line(exc)}); delete it and split the model again") from exc


def _checked(values: dict[str, Any], kind: type[T]) -> T:
    if problem := misfit(values, kind):
        raise ValueError(problem)
    return kind(**values)


def _check_manifest(manifest: Manifest) -> None:
    if len(manifest.files) != len(manifest.spans) or not manifest.spans:
        raise ValueError(f"{len(manifest.files)} files for {len(manifest.spans)} spans")
    if [file.name for file in manifest.files] != [chunk_name(node) for node in range(len(manifest.files))]:
        raise ValueError("its files do not have the names of chunks, in their order")
    if not all(type(file.n_bytes) is int and file.n_bytes >= 0 for file in manifest.files):
        raise ValueError("invalid byte count")
    if type(manifest.dtype) is not str:
        raise ValueError("its dtype is no text")
    if manifest.quantization not in MODES:
        raise ValueError(f"unknown quantization {manifest.quantization!r}: expected one of {', '.join(MODES)}")
    if not all(type(place) is int and 0 <= place <= MAX_VALUES["n_layer"] for span in manifest.spans for place in span):
        raise ValueError("invalid span")
    if manifest.spans != tuple(spans_of([len(span) for span in manifest.spans])):
        raise ValueError(f"its spans do not follow each other: {[list(span) for span in manifest.spans]}")
    digests = [manifest.model_digest, manifest.source.digest, *(file.digest for file in manifest.files)]
    if not all(map(DIGEST.fullmatch, digests)):
        raise ValueError("invalid digest")


def write_manifest(manifest: Manifest) -> None:
    """Write the manifest into its folder. Raises `StorageError`."""
    values = asdict(manifest)
    del values["folder"]
    write_text(manifest.folder / MANIFEST_FILE, json.dumps(values, indent=1))
