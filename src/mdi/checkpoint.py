"""Model folder -> chunk files; chunk file -> weights, mapped and checked; digests.

A digest covers names, dtypes, shapes and tensor bytes, not the zip around them. It is the SHA-256 of
one line per tensor, in the order of the names, each with the tensor's own SHA-256.
"""

import contextlib
import hashlib
import json
import re
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from litgpt.config import Config
from litgpt.scripts.convert_hf_checkpoint import qkv_reassemble
from litgpt.utils import incremental_save

from mdi.config import MODES, Mode
from mdi.errors import CheckpointError, one_line
from mdi.files import atomic_path, storage_error, write_text
from mdi.partition import Span, spans_of
from mdi.quant import SCALE_SUFFIX, mode_for, quantize, take, weight_bytes
from mdi.stage import ends_shapes, layer_weights, rotary_tables, stage_shapes
from mdi.tensors import DTYPES, dtype_name, mapped_empty, page_out

FORMAT_VERSION = 1
MODEL_FILE = "lit_model.pth"
CONFIG_FILE = "model_config.yaml"
MANIFEST_FILE = "manifest.json"

_DIGEST = re.compile(r"[0-9a-f]{64}")
_LAYER = re.compile(r"transformer\.h\.(\d+)\.(.+)")
Weights = dict[str, torch.Tensor]

# Numbers that decide how long it takes and how much memory to look at a configuration, far above any known model's.
_MOST = {"n_layer": 10_000, "n_expert": 2048, "head_size": 1 << 16}


@dataclass(frozen=True)
class ChunkFile:
    """One line of a manifest."""

    name: str
    n_bytes: int
    digest: str


@dataclass(frozen=True)
class Manifest:
    """What `chunks/<N>nodes/` holds, in ring order."""

    model_digest: str
    spans: tuple[Span, ...]
    dtype: str
    quantization: Mode
    files: tuple[ChunkFile, ...]
    format_version: int = FORMAT_VERSION


def load_config(folder: Path) -> Config:
    """The model's configuration. Refuses what no stage can run, by name, before weights are touched."""
    path = folder / CONFIG_FILE
    if not path.is_file():
        raise CheckpointError(
            f"{folder}: no {CONFIG_FILE}, so this is not a prepared model; run prepare_model.py first"
        )
    return _checked(lambda: Config.from_file(path), str(path))


def config_from_dict(values: Mapping[str, Any]) -> Config:
    """The configuration that a starter sent; raises `CheckpointError` where litgpt does not take it."""
    return _checked(lambda: Config(**values), "the starter's model")


def _checked(make: Callable[[], Config], what: str) -> Config:
    try:
        config = make()
        refuse_unsupported(config)
        _refuse_absurd(config)
        layer_weights(config), ends_shapes(config), rotary_tables(config, 1, torch.device("cpu"))
    except CheckpointError:
        raise
    except Exception as exc:  # litgpt has no error type of its own: whatever a bad number leads to
        raise CheckpointError(f"{what}: not a configuration that litgpt can run: {one_line(exc)}") from exc
    return config


def config_to_dict(config: Config) -> dict[str, Any]:
    """The fields of a configuration as plain values."""
    return asdict(config)


def _refuse_absurd(config: Config) -> None:
    for name, most in _MOST.items():
        value = getattr(config, name)
        if value is not None and not 0 <= value <= most:
            raise CheckpointError(f"{config.name}: {name} is {value}, and no more than {most} are possible")


def refuse_unsupported(config: Config) -> None:
    """Raise `CheckpointError` for the one kind of model that has no segment attention."""
    if config.latent_attention is not None:
        raise CheckpointError(f"{config.name}: models with latent attention (DeepSeek V2, V3 and R1) are not supported")


def find_models(root: Path) -> list[Path]:
    """The prepared model folders below `root`."""
    return sorted(path.parent for path in root.glob(f"*/*/{CONFIG_FILE}"))


def chunks_folder(folder: Path, n_nodes: int) -> Path:
    """Where the chunks of a model for `n_nodes` nodes lie."""
    return folder / "chunks" / f"{n_nodes}nodes"


def chunk_name(node: int) -> str:
    """The file name of the chunk of node `node` of the ring."""
    return "model_starter.pth" if node == 0 else f"model_secondary{node - 1}.pth"


def open_weights(path: Path) -> Weights:
    """The tensors of a chunk or model file, mapped. Raises `CheckpointError`; executes nothing from the file."""
    try:
        weights = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except FileNotFoundError as exc:
        raise CheckpointError(f"{path}: no such file") from exc
    except PermissionError as exc:
        raise storage_error(path, exc) from exc
    except Exception as exc:  # a damaged pickle calls torch's functions with anything, so anything comes back
        raise CheckpointError(f"{path}: damaged, or not a file of torch.save: {one_line(exc)}") from exc
    if not isinstance(weights, dict) or not all(isinstance(n, str) and _is_plain(t) for n, t in weights.items()):
        raise CheckpointError(f"{path}: holds something else than named tensors")
    return weights


def _is_plain(value: object) -> bool:
    return isinstance(value, torch.Tensor) and value.layout is torch.strided and value.device.type == "cpu"


def select(weights: Mapping[str, torch.Tensor], config: Config, node: int, span: Span) -> Weights:
    """The tensors of node `node` under their global names, checked against `config`.

    Published secondary chunks number their layers from 0 and may hold fused, interleaved `attn.attn.*`;
    both are translated. Layers outside `span` are left out, so a whole model serves as well as a chunk.
    Raises `CheckpointError` that names the first tensor which is missing or of another shape.
    """
    offset = _published_offset(weights, node, span)
    named = {_canonical(name, offset): tensor for name, tensor in weights.items()}
    wanted = stage_shapes(config, span) | (ends_shapes(config) if node == 0 else {})
    for name, shape in wanted.items():
        if name not in named:
            raise CheckpointError(f"{name} is missing: this file holds {_describe(named)}, not layers {_range(span)}")
        if (found := _shape(named, name)) != shape:
            raise CheckpointError(
                f"{name} has the shape {tuple(found)} where this model has {tuple(shape)}: another model's file"
            )
    scales = [scale for name in wanted if (scale := name + SCALE_SUFFIX) in named]
    fused = {_canonical(name, offset) for name in weights if ".attn.attn." in name}
    return {name: qkv_reassemble(named[name], config) if name in fused else named[name] for name in (*wanted, *scales)}


def _shape(named: Mapping[str, torch.Tensor], name: str) -> torch.Size:
    """The shape of a tensor, however it is stored."""
    if name + SCALE_SUFFIX not in named:
        if not named[name].is_floating_point():
            raise CheckpointError(f"damaged: {name} holds {dtype_name(named[name].dtype)} numbers without their scale")
        return named[name].shape
    try:
        return take(named, name).shape
    except ValueError as exc:
        raise CheckpointError(f"damaged: {exc}") from exc


def _canonical(name: str, offset: int) -> str:
    if (match := _LAYER.fullmatch(name)) is None:
        return name
    return f"transformer.h.{int(match[1]) + offset}.{match[2].replace('attn.attn.', 'attn.qkv.')}"


def _published_offset(weights: Mapping[str, torch.Tensor], node: int, span: Span) -> int:
    """What to add to the layer numbers of a file: they restart at 0 in a published secondary chunk."""
    layers = _layers(weights)
    if node == 0 or 0 not in layers or span.stop - 1 in layers:  # the starter's chunk, global numbers, a whole model
        return 0
    if "transformer.wte.weight" in weights:
        raise CheckpointError("this is a starter's chunk, not a secondary's")
    if len(layers) != len(span):
        raise CheckpointError(f"a chunk of {len(layers)} layers in the published numbering, not of {len(span)}")
    return span.start


def _layers(weights: Iterable[str]) -> set[int]:
    return {int(match[1]) for name in weights if (match := _LAYER.fullmatch(name))}


def _describe(weights: Iterable[str]) -> str:
    layers = _layers(weights)
    return f"layers {min(layers)} to {max(layers)}" if layers else "no layers"


def _range(span: Span) -> str:
    return f"{span.start} to {span.stop - 1}"


def digest_of(weights: Mapping[str, torch.Tensor]) -> str:
    """The digest of named tensors."""
    known: dict[tuple[int, torch.Size], str] = {}
    lines = {}
    for name, tensor in weights.items():
        key = (tensor.data_ptr(), tensor.shape)
        if key not in known:
            known[key] = tensor_line(tensor)
            page_out(tensor)
        lines[name] = known[key]
    return digest_of_lines(lines)


def tensor_line(tensor: torch.Tensor) -> str:
    """What a digest says of one tensor: dtype, shape and SHA-256 of its bytes."""
    data = tensor.detach().contiguous().view(-1).view(torch.uint8)
    return f"{dtype_name(tensor.dtype)} {list(tensor.shape)} {hashlib.sha256(data.numpy().data).hexdigest()}"


def digest_of_lines(lines: Mapping[str, str]) -> str:
    """The digest of a set of tensors, from the line of each."""
    text = "".join(f"{name} {lines[name]}\n" for name in sorted(lines))
    return hashlib.sha256(text.encode()).hexdigest()


def content_digest(path: Path) -> str:
    """The digest of a file's tensors, computed anew. Raises `CheckpointError` for a damaged file."""
    return digest_of(open_weights(path))


def file_digest(path: Path) -> str:
    """The digest of a chunk file's content, remembered beside the file until it changes."""
    stat = path.stat()
    version = [stat.st_size, stat.st_mtime_ns]
    memo = path.with_name(path.name + ".digest")
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        known = json.loads(memo.read_text())
        if known["version"] == version:
            return str(known["digest"])
    digest = content_digest(path)
    with contextlib.suppress(CheckpointError):  # a read-only folder: compute it again next time
        write_text(memo, json.dumps({"version": version, "digest": digest}))
    return digest


def read_manifest(folder: Path) -> Manifest | None:
    """The manifest in a chunks folder; None where there is none. Raises `CheckpointError` if it is damaged."""
    path = folder / MANIFEST_FILE
    if not path.is_file():
        return None
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        if data["format_version"] != FORMAT_VERSION:
            raise CheckpointError(
                f"{path}: format {data['format_version']}, this version reads {FORMAT_VERSION}; split again"
            )
        spans = tuple(Span(*span) for span in data.pop("spans"))
        files = tuple(ChunkFile(**file) for file in data.pop("files"))
        manifest = Manifest(spans=spans, files=files, **data)
        _check_manifest(manifest)
        return manifest
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as exc:
        raise CheckpointError(f"{path}: damaged ({exc}); delete it and split the model again") from exc


def _check_manifest(manifest: Manifest) -> None:
    if len(manifest.files) != len(manifest.spans) or not manifest.spans:
        raise ValueError(f"{len(manifest.files)} files for {len(manifest.spans)} spans")
    if [file.name for file in manifest.files] != [chunk_name(node) for node in range(len(manifest.files))]:
        raise ValueError("its files do not have the names of chunks, in their order")
    if not all(type(file.n_bytes) is int and file.n_bytes >= 0 for file in manifest.files):
        raise ValueError("a number of bytes that is none")
    if manifest.quantization not in MODES:
        raise ValueError(f"a quantization {manifest.quantization!r} that is none of {', '.join(MODES)}")
    if not all(type(place) is int and 0 <= place <= _MOST["n_layer"] for span in manifest.spans for place in span):
        raise ValueError("a span that is none")
    if manifest.spans != tuple(spans_of([len(span) for span in manifest.spans])):
        raise ValueError(f"its spans do not follow each other: {[list(span) for span in manifest.spans]}")
    if not all(_DIGEST.fullmatch(digest) for digest in [manifest.model_digest, *(f.digest for f in manifest.files)]):
        raise ValueError("a digest that is none")


def split_model(
    folder: Path,
    spans: Sequence[Span],
    dtype: str | None = None,
    advance: Callable[[int], object] = lambda n_bytes: None,
    *,
    quantization: Mode = "none",
) -> Manifest:
    """Write one chunk per span into `chunks/<N>nodes/`, and the manifest last.

    Tensors are copied, cast or quantized one at a time from the mapped model; one that the model ties is stored once.
    An interrupted split leaves no manifest. `advance` is told the bytes of each tensor that was copied.
    """
    config = load_config(folder)
    weights = open_weights(folder / MODEL_FILE)
    parts = [select(weights, config, node, span) for node, span in enumerate(spans)]
    target = chunks_folder(folder, len(spans))
    _check_space(target, parts, dtype, quantization)
    try:
        (target / MANIFEST_FILE).unlink(missing_ok=True)
    except OSError as exc:
        raise storage_error(target, exc) from exc
    lines: dict[str, str] = {}
    files = []
    for node, part in enumerate(parts):
        path = target / chunk_name(node)
        own_lines = _write_chunk(path, part, dtype, quantization, advance)
        files.append(ChunkFile(path.name, path.stat().st_size, digest_of_lines(own_lines)))
        lines |= own_lines
    used_dtype = dtype or dtype_name(next(iter(weights.values())).dtype)
    manifest = Manifest(digest_of_lines(lines), tuple(spans), used_dtype, quantization, tuple(files))
    write_text(target / MANIFEST_FILE, json.dumps(asdict(manifest), indent=1))
    return manifest


def _write_chunk(
    path: Path, weights: Weights, dtype: str | None, quantization: Mode, advance: Callable[[int], object]
) -> dict[str, str]:
    """Write one file; returns what a digest says of each tensor, by name."""
    lines: dict[str, str] = {}
    proxies: dict[str, Any] = {}
    stored: dict[tuple[int, torch.Size, Mode], dict[str, tuple[Any, str]]] = {}
    with atomic_path(path) as partial_path:
        try:
            with incremental_save(partial_path) as saver:
                for name, tensor in weights.items():
                    mode = mode_for(name, quantization)
                    key = (tensor.data_ptr(), tensor.shape, mode)
                    if key not in stored:
                        parts = quantize(tensor, mode).parts if mode != "none" else {"": _cast(tensor, dtype)}
                        stored[key] = {
                            suffix: (saver.store_early(_own_storage(part)), tensor_line(part))
                            for suffix, part in parts.items()
                        }
                        page_out(tensor)
                        advance(tensor.nbytes)
                    for suffix, (proxy, line) in stored[key].items():
                        proxies[name + suffix], lines[name + suffix] = proxy, line
                saver.save(proxies)
        except RuntimeError as exc:
            raise CheckpointError(f"{path}: could not be written ({one_line(exc)}); is the disk full?") from exc
    return lines


def _cast(tensor: torch.Tensor, dtype: str | None) -> torch.Tensor:
    if dtype is None or not tensor.is_floating_point() or tensor.dtype == DTYPES[dtype]:
        return tensor
    return mapped_empty(tensor.shape, DTYPES[dtype]).copy_(tensor)


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
        weight_bytes(name, tensor.numel(), DTYPES[dtype] if dtype else tensor.dtype, quantization)
        for part in parts
        for name, tensor in part.items()
    )
    if needed > free_bytes:
        raise CheckpointError(f"{target}: the chunks take {needed / 1e9:.2f} GB and {free_bytes / 1e9:.2f} GB are free")
