"""Model folder -> chunk files and their manifest; both are written whole or not at all."""

import contextlib
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch

from mdi.checkpoint.config import load_config
from mdi.checkpoint.digests import Check, checked, digest_of_lines, expect_lines, lines_of, read_digests, tensor_line
from mdi.checkpoint.disk_space import require_space
from mdi.checkpoint.manifest import (
    MANIFEST_FILE,
    ChunkFile,
    Manifest,
    Source,
    chunk_name,
    chunks_folder,
    write_manifest,
)
from mdi.checkpoint.tensor_file import open_weights
from mdi.checkpoint.tensor_writer import Stored, TensorWriter
from mdi.checkpoint.weights import MODEL_FILE, select, source_of, whole_model, write_errors
from mdi.errors import CheckpointError, StorageError
from mdi.files import atomic_path, storage_error
from mdi.formats import Mode
from mdi.liveness import no_tick
from mdi.model.architecture import ModelConfig, architecture_of
from mdi.model.quant import is_quantized_part, mode_for, mode_of, quantize, resolve, weight_bytes
from mdi.model.span import Span
from mdi.model.tensors import TORCH_DTYPES, dtype_name, mapped_empty
from mdi.model.weights import Weights
from mdi.progress import progress_bar
from mdi.strings import count, one_line

log = logging.getLogger(__name__)


class StoredForm(NamedTuple):
    """How a model's weights lie in a file, where they are not quantized."""

    dtype: str | None = None  # None: unknown
    is_tied: bool = False  # the embedding is the head's weight


UNKNOWN_FORM = StoredForm()


def split_model(
    folder: Path,
    spans: Sequence[Span],
    dtype: str | None = None,
    advance: Callable[[int], object] = lambda n_bytes: None,
    *,
    quantization: Mode = "none",
) -> Manifest:
    """Write one chunk per span into the folder of their kind (`chunks_folder`), and the manifest last.

    Tensors are copied, cast or quantized one at a time; one that the model ties is stored once. Where the model is
    quantized already, its weights are copied, and `quantization` is its own or `none`. What is read is
    compared with the model's digests, where it has them. An interrupted split leaves no manifest. `advance` is called
    with the bytes that were read.
    """
    config = load_config(folder)
    model = whole_model(folder, quantization)
    stat, weights, known = model.stat(), open_weights(model, advance), expect_lines(model, read_digests(model))
    quantization = _resolved(weights, quantization, model)
    parts = [select(weights, config, node, span) for node, span in enumerate(spans)]
    own_dtype = _dtype_of(weights)
    target = chunks_folder(folder, len(spans), quantization, None if dtype == own_dtype else dtype)
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
            known.compare(read)

    files = []
    for node, part in enumerate(parts):
        path = target / chunk_name(node)
        own_lines = _write_chunk(path, checked(part, Check(check)), dtype, quantization)
        files.append(ChunkFile(path.name, path.stat().st_size, digest_of_lines(own_lines)))
        lines |= own_lines
    source = Source(digest_of_lines(source_lines), stat.st_size, stat.st_mtime_ns)
    digest = digest_of_lines(lines)
    manifest = Manifest(target, digest, tuple(spans), dtype or own_dtype, quantization, tuple(files), source)
    write_manifest(manifest)
    return manifest


def _write_chunk(
    path: Path, weights: Weights, dtype: str | None, quantization: Mode, expected: str = ""
) -> dict[str, str]:
    """Write one file, if its digest is the `expected` one; returns what a digest says of each tensor, by name."""
    lines: dict[str, str] = {}
    tensors: dict[str, Stored] = {}
    stored: dict[tuple[int, Mode], dict[str, tuple[Stored, str]]] = {}
    with atomic_path(path) as partial_path, write_errors(path), TensorWriter(partial_path) as writer:
        for name in weights:
            is_stored = is_quantized_part(name, weights.meta)
            mode = "none" if is_stored else mode_for(name, weights.meta[name].shape, quantization)
            key = (id(weights.meta[name]), mode)
            if key not in stored:
                tensor = weights[name]
                parts = _parts(tensor, None if is_stored else dtype, mode)
                stored[key] = {suffix: (writer.store(part), tensor_line(part)) for suffix, part in parts.items()}
            for suffix, (part, line) in stored[key].items():
                tensors[name + suffix], lines[name + suffix] = part, line
        weights.verify()
        if expected not in ("", digest_of_lines(lines)):
            raise CheckpointError(f"{path}: not what {MODEL_FILE} gives by now; remove {path.parent} to split it again")
        writer.finish(tensors)
    return lines


def _parts(tensor: torch.Tensor, dtype: str | None, mode: Mode) -> dict[str, torch.Tensor]:
    """What is stored of a tensor, by the suffix of its name."""
    return {"": _cast(tensor, dtype)} if mode == "none" else quantize(tensor, mode).parts


def _cast(tensor: torch.Tensor, dtype: str | None) -> torch.Tensor:
    if dtype is None or not tensor.is_floating_point() or tensor.dtype == TORCH_DTYPES[dtype]:
        return tensor
    return mapped_empty(tensor.shape, TORCH_DTYPES[dtype]).copy_(tensor)


def _check_space(target: Path, parts: Sequence[Weights], dtype: str | None, quantization: Mode) -> None:
    try:
        target.mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        raise storage_error(target, exc) from exc
    require_space(target, _bytes_of(parts, dtype, quantization), "the chunks")


def _resolved(weights: Weights, quantization: Mode, model: Path) -> Mode:
    """What chunks of a model will be. Raises `ConfigError` where that is quantized already, and otherwise."""
    return resolve(mode_of(weights.meta), None if quantization == "none" else quantization, str(model))


def chunks_bytes(folder: Path, spans: Sequence[Span], dtype: str | None = None, quantization: Mode = "none") -> int:
    """How much the chunks of a split will take."""
    weights, config = open_weights(whole_model(folder, quantization)), load_config(folder)
    return _bytes_of([select(weights, config, node, span) for node, span in enumerate(spans)], dtype, quantization)


def _bytes_of(parts: Sequence[Weights], dtype: str | None, quantization: Mode) -> int:
    return sum(
        tensor.nbytes
        if is_quantized_part(name, part.meta)
        else weight_bytes(name, tensor.shape, TORCH_DTYPES[dtype] if dtype else tensor.dtype, quantization)
        for part in parts
        for name, tensor in part.meta.items()
    )


def remake_chunk(folder: Path, manifest: Manifest, node: int, tick: Callable[[], None] = no_tick) -> None:
    """Write the chunk of one node anew from the whole model, as `manifest` describes it. `tick` may end it by raising.

    Raises `CheckpointError` where the model is damaged too, or not the one that the chunks were made from.
    """
    model, path = source_of(folder, manifest.quantization), manifest.folder / manifest.files[node].name
    source = open_weights(model, lambda n_bytes: tick())
    weights = select(source, load_config(folder), node, manifest.spans[node])
    checked_weights = checked(weights, expect_lines(model, read_digests(model)))
    _write_chunk(path, checked_weights, _cast_of(manifest, weights), manifest.quantization, manifest.files[node].digest)


def cast_of(folder: Path, manifest: Manifest) -> str | None:
    """What the weights in `folder` are cast to for chunks of the kind of `manifest`; None: their own dtype.

    Raises `CheckpointError` where the manifest has an unknown dtype.
    """
    return _cast_of(manifest, open_weights(whole_model(folder, manifest.quantization)))


def _cast_of(manifest: Manifest, weights: Weights) -> str | None:
    own_dtype = _dtype_of(weights)
    if manifest.dtype not in (own_dtype, *TORCH_DTYPES):
        known = one_line(manifest.dtype, 40)
        raise CheckpointError(f"{manifest.folder}: its manifest has the dtype {known}, which is unknown")
    return None if own_dtype == manifest.dtype else manifest.dtype


def dtype_of(path: Path) -> str:
    """The dtype of the model in a file: that of its first tensor which is not quantized. Raises `CheckpointError`."""
    return _dtype_of(open_weights(path))


def stored_as(path: Path, config: ModelConfig) -> StoredForm:
    """How the model in a file, which has its ends, lies there. Raises `CheckpointError`."""
    weights, architecture = open_weights(path), architecture_of(config)
    embedding, head = (weights.meta.get(name) for name in (architecture.embedding, f"{architecture.head_path}weight"))
    return StoredForm(_dtype_of(weights), is_tied=embedding is not None and embedding is head)


def _dtype_of(weights: Weights) -> str:
    return dtype_name(next(t.dtype for name, t in weights.meta.items() if not is_quantized_part(name, weights.meta)))


def write_chunks(
    folder: Path,
    spans: Sequence[Span],
    dtype: str | None = None,
    quantization: Mode = "none",
    tick: Callable[[], None] = no_tick,
) -> Manifest:
    """Split the model of a folder, with a progress bar. `tick` is called after each tensor, and may raise."""
    model = whole_model(folder, quantization)
    if not model.is_file():
        raise CheckpointError(f"{folder}: no {MODEL_FILE} here, so nothing to split; prepare the model again")
    with progress_bar(model.stat().st_size, f"splitting over {count(len(spans), 'node')}", "B") as advance:

        def copied(n_bytes: int) -> None:
            advance(n_bytes)
            tick()

        return split_model(folder, spans, dtype, copied, quantization=quantization)


def is_fresh(folder: Path, manifest: Manifest, tick: Callable[[], None] = no_tick) -> bool:
    """Whether all chunks of the manifest are there, and made from the whole model that is there, if one is.

    A model whose file has changed since then, by a copy, perhaps, is read to find out; `tick` may end that by raising.
    """
    model = source_of(folder, manifest.quantization)
    if not all((manifest.folder / file.name).is_file() for file in manifest.files):
        return False
    if not model.is_file():
        return True
    stat, source = model.stat(), manifest.source
    if (stat.st_size, stat.st_mtime_ns) == (source.n_bytes, source.mtime_ns):
        return True
    log.info("%s was written or copied after its chunks were made: comparing", model)
    if _source_digest(model, tick) != source.digest:
        return False
    now = Source(source.digest, stat.st_size, stat.st_mtime_ns)
    with contextlib.suppress(StorageError):  # a read-only folder: it is compared again next time
        write_manifest(replace(manifest, source=now))
    return True


def _source_digest(model: Path, tick: Callable[[], None]) -> str:
    """The digest of a whole model, as `Source` has it; empty for a damaged one."""
    try:
        config = load_config(model.parent)
        weights = open_weights(model, lambda n_bytes: tick())
        return digest_of_lines(lines_of(select(weights, config, 0, Span(0, config.n_layer))))
    except CheckpointError:
        return ""
