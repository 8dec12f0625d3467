"""A model or chunk file -> weights, mapped and checked; digests of weights.

A digest covers names, dtypes, shapes and tensor bytes, not the zip around them. It is the SHA-256 of
one line per tensor, in the order of the names, each with the tensor's own SHA-256.
"""

import contextlib
import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import torch
from litgpt.scripts.convert_hf_checkpoint import qkv_reassemble

from mdi.errors import CheckpointError, StorageError
from mdi.files import storage_error, write_text
from mdi.model.architecture import ModelConfig
from mdi.model.quant import SCALE_SUFFIX, load_weight
from mdi.model.shapes import head_shapes, stage_shapes
from mdi.model.span import Span
from mdi.model.tensors import dtype_name, page_out
from mdi.strings import one_line

MODEL_FILE = "lit_model.pth"

Weights = dict[str, torch.Tensor]
_LAYER = re.compile(r"transformer\.h\.(\d+)\.(.+)")


@contextlib.contextmanager
def write_errors(path: Path) -> Iterator[None]:
    """Turn what torch raises where it cannot write the file `path` into a `StorageError`."""
    try:
        yield
    except OSError as exc:
        raise storage_error(path, exc) from exc
    except RuntimeError as exc:
        # torch's file writer knows no class of its own for a full disk, only these words.
        if "PytorchStreamWriter" not in str(exc) and "inline_container" not in str(exc):
            raise
        raise StorageError(f"{path} cannot be written: is the disk full? ({one_line(exc)})") from exc


def open_weights(path: Path) -> Weights:
    """The tensors of a chunk or model file, mapped; executes nothing from the file.

    Raises `CheckpointError` for a missing or damaged file, `StorageError` for one that cannot be read.
    """
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


def select(weights: Mapping[str, torch.Tensor], config: ModelConfig, node: int, span: Span) -> Weights:
    """The tensors of node `node` under their global names, checked against `config`.

    Published secondary chunks number their layers from 0 and may hold fused, interleaved `attn.attn.*`;
    both are translated. Layers outside `span` are left out, so a whole model serves as well as a chunk.
    Raises `CheckpointError` that names the first tensor which is missing or of another shape.
    """
    offset = _published_offset(weights, node, span)
    named = {_canonical(name, offset): tensor for name, tensor in weights.items()}
    wanted = stage_shapes(config, span) | (head_shapes(config) if node == 0 else {})
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
        return load_weight(named, name).shape
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
    with contextlib.suppress(StorageError):  # a read-only folder: compute it again next time
        write_text(memo, json.dumps({"version": version, "digest": digest}))
    return digest
