"""Model folder -> chunk files and the manifest that names them; both are written whole or not at all."""

import contextlib
import json
import logging
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from litgpt.utils import incremental_save

from mdi.checkpoint.config import MAX_VALUES, load_config
from mdi.checkpoint.digests import checked, digest_of_lines, expect_lines, lines_of, read_digests, tensor_line
from mdi.checkpoint.tensor_file import open_weights
from mdi.checkpoint.weights import MODEL_FILE, select, write_errors
from mdi.documents import misfit, read_json
from mdi.errors import CheckpointError, StorageError
from mdi.files import atomic_path, storage_error, write_text
from mdi.formats import DIGEST, MODES, Mode
from mdi.liveness import no_tick
from mdi.model.quant import mode_for, quantize, weight_bytes
from mdi.model.span import Span, spans_of
from mdi.model.tensors import TORCH_DTYPES, dtype_name, mapped_empty
from mdi.model.weights import Weights
from mdi.progress import progress_bar
from mdi.strings import format_bytes, one_line, quoted

log = logging.getLogger(__name__)

FORMAT_VERSION = 2
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
    """What `chunks/<N>nodes/` holds, in ring order."""

    model_digest: str
    spans: tuple[Span, ...]
    dtype: str
    quantization: Mode
    files: tuple[ChunkFile, ...]
    source: Source
    format_version: int = FORMAT_VERSION


def chunks_folder(folder: Path, n_nodes: int) -> Path:
    """Where the chunks of a model for `n_nodes` nodes lie."""
    return folder / "chunks" / f"{n_nodes}nodes"


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
        if version != FORMAT_VERSION:
            raise CheckpointError(
                f"{path}: format {quoted(version, 40)}, this version reads {FORMAT_VERSION}; split again"
            )
        spans = tuple(Span(*span) for span in data.pop("spans"))
        files = tuple(_checked(file, ChunkFile) for file in data.pop("files"))
        source = _checked(data.pop("source"), Source)
        manifest = Manifest(spans=spans, files=files, source=source, **data)
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


def split_model(
    folder: Path,
    spans: Sequence[Span],
    dtype: str | None = None,
    advance: Callable[[int], object] = lambda n_bytes: None,
    *,
    quantization: Mode = "none",
) -> Manifest:
    """Write one chunk per span into `chunks/<N>nodes/`, and the manifest last.

    Tensors are copied, cast or quantized one at a time; one that the model ties is stored once. What is read is
    compared with the model's digests, where it has them. An interrupted split leaves no manifest. `advance` is called
    with the bytes that were read.
    """
    config = load_config(folder)
    model = folder / MODEL_FILE
    stat, weights, known = model.stat(), open_weights(model, advance), expect_lines(model, read_digests(folder))
    parts = [select(weights, config, node, span) for node, span in enumerate(spans)]
    target = chunks_folder(folder, len(spans))
    _check_space(target, parts, dtype, quantization)
    try:
        (target / MANIFEST_FILE).unlink(missing_ok=True)
    except OSError as exc:
        raise storage_error(target, exc) from exc
    lines: dict[str, str] = {}
    source_lines: dict[str, str] = {}

    def check(read: Mapping[str, str]) -> None:
        source_lines.update(read)
        if known is not None:
            known(read)

    files = []
    for node, part in enumerate(parts):
        path = target / chunk_name(node)
        own_lines = _write_chunk(path, checked(part, check), dtype, quantization)
        files.append(ChunkFile(path.name, path.stat().st_size, digest_of_lines(own_lines)))
        lines |= own_lines
    used_dtype = dtype or dtype_name(next(iter(weights.meta.values())).dtype)
    source = Source(digest_of_lines(source_lines), stat.st_size, stat.st_mtime_ns)
    manifest = Manifest(digest_of_lines(lines), tuple(spans), used_dtype, quantization, tuple(files), source)
    _write_manifest(target, manifest)
    return manifest


def _write_manifest(target: Path, manifest: Manifest) -> None:
    write_text(target / MANIFEST_FILE, json.dumps(asdict(manifest), indent=1))


def _write_chunk(
    path: Path, weights: Weights, dtype: str | None, quantization: Mode, expected: str = ""
) -> dict[str, str]:
    """Write one file, if its digest is the `expected` one; returns what a digest says of each tensor, by name."""
    lines: dict[str, str] = {}
    proxies: dict[str, Any] = {}
    stored: dict[tuple[int, Mode], dict[str, tuple[Any, str]]] = {}
    with atomic_path(path) as partial_path, write_errors(path), incremental_save(partial_path) as saver:
        for name in weights:
            mode = mode_for(name, quantization)
            key = (id(weights.meta[name]), mode)
            if key not in stored:
                tensor = weights[name]
                parts = quantize(tensor, mode).parts if mode != "none" else {"": _cast(tensor, dtype)}
                stored[key] = {
                    suffix: (saver.store_early(_own_storage(part)), tensor_line(part)) for suffix, part in parts.items()
                }
            for suffix, (proxy, line) in stored[key].items():
                proxies[name + suffix], lines[name + suffix] = proxy, line
        weights.verify()
        if expected not in ("", digest_of_lines(lines)):
            raise CheckpointError(f"{path}: not what {MODEL_FILE} gives by now; remove {path.parent} to split it again")
        saver.save(proxies)
    return lines


def _cast(tensor: torch.Tensor, dtype: str | None) -> torch.Tensor:
    if dtype is None or not tensor.is_floating_point() or tensor.dtype == TORCH_DTYPES[dtype]:
        return tensor
    return mapped_empty(tensor.shape, TORCH_DTYPES[dtype]).copy_(tensor)


def _own_storage(tensor: torch.Tensor) -> torch.Tensor:
    """`tensor` itself, or a copy where it is a view of something larger, which would be saved whole."""
    return tensor if tensor.untyped_storage().nbytes() == tensor.nbytes else tensor.clone()


def _check_space(target: Path, parts: Sequence[Weights], dtype: str | None, quantization: Mode) -> None:
    try:
        target.mkdir(parents=True, exist_ok=True)
        free_bytes = shutil.disk_usage(target).free
    except OSError as exc:
        raise storage_error(target, exc) from exc
    needed = sum(
        weight_bytes(name, tensor.numel(), TORCH_DTYPES[dtype] if dtype else tensor.dtype, quantization)
        for part in parts
        for name, tensor in part.meta.items()
    )
    if needed > free_bytes:
        raise StorageError(f"{target}: the chunks take {format_bytes(needed)} and {format_bytes(free_bytes)} are free")


def remake_chunk(folder: Path, manifest: Manifest, node: int, tick: Callable[[], None] = no_tick) -> None:
    """Write the chunk of one node anew from the whole model, as `manifest` describes it. `tick` may end it by raising.

    Raises `CheckpointError` where the model is damaged too, or not the one that the chunks were made from.
    """
    model, path = folder / MODEL_FILE, chunks_folder(folder, len(manifest.spans)) / manifest.files[node].name
    source = open_weights(model, lambda n_bytes: tick())
    weights = select(source, load_config(folder), node, manifest.spans[node])
    stored_dtype = dtype_name(next(iter(weights.meta.values())).dtype)
    if manifest.dtype not in (stored_dtype, *TORCH_DTYPES):
        raise CheckpointError(f"{path}: its manifest has the dtype {one_line(manifest.dtype, 40)}, which is unknown")
    dtype, expected = None if stored_dtype == manifest.dtype else manifest.dtype, manifest.files[node].digest
    checked_weights = checked(weights, expect_lines(model, read_digests(folder)))
    _write_chunk(path, checked_weights, dtype, manifest.quantization, expected)


def write_chunks(
    folder: Path,
    spans: Sequence[Span],
    dtype: str | None = None,
    quantization: Mode = "none",
    tick: Callable[[], None] = no_tick,
) -> Manifest:
    """Split the model of a folder, with a progress bar. `tick` is called after each tensor, and may raise."""
    if not (folder / MODEL_FILE).is_file():
        raise CheckpointError(f"{folder}: no {MODEL_FILE} here, so nothing to split; prepare the model again")
    with progress_bar((folder / MODEL_FILE).stat().st_size, f"splitting over {len(spans)} nodes", "B") as advance:

        def copied(n_bytes: int) -> None:
            advance(n_bytes)
            tick()

        return split_model(folder, spans, dtype, copied, quantization=quantization)


def is_fresh(folder: Path, manifest: Manifest, tick: Callable[[], None] = no_tick) -> bool:
    """Whether all chunks of the manifest are there, and made from the whole model that is there, if one is.

    A model whose file has changed since then, by a copy, perhaps, is read to find out; `tick` may end that by raising.
    """
    files, model = chunks_folder(folder, len(manifest.spans)), folder / MODEL_FILE
    if not all((files / file.name).is_file() for file in manifest.files):
        return False
    if not model.is_file():
        return True
    stat, source = model.stat(), manifest.source
    if (stat.st_size, stat.st_mtime_ns) == (source.n_bytes, source.mtime_ns):
        return True
    log.info("%s was written or copied after its chunks were made: comparing", model)
    if _source_digest(folder, tick) != source.digest:
        return False
    now = Source(source.digest, stat.st_size, stat.st_mtime_ns)
    with contextlib.suppress(StorageError):  # a read-only folder: it is compared again next time
        _write_manifest(files, replace(manifest, source=now))
    return True


def _source_digest(folder: Path, tick: Callable[[], None]) -> str:
    """The digest of the whole model, as `Source` has it; empty for a damaged one."""
    try:
        config = load_config(folder)
        weights = open_weights(folder / MODEL_FILE, lambda n_bytes: tick())
        return digest_of_lines(lines_of(select(weights, config, 0, Span(0, config.n_layer))))
    except CheckpointError:
        return ""
