"""The tensors of a model or chunk file -> those of one node, under their global names, checked."""

import contextlib
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import torch

from mdi.checkpoint.tensor_file import open_weights
from mdi.errors import CheckpointError, StorageError
from mdi.files import storage_error
from mdi.formats import MODES, Mode
from mdi.model.architecture import ModelConfig
from mdi.model.litgpt_modules import qkv_reassemble
from mdi.model.quant import SCALE_SUFFIX, load_weight
from mdi.model.shapes import head_shapes, stage_shapes
from mdi.model.span import Span
from mdi.model.tensors import dtype_name
from mdi.model.weights import Weights
from mdi.strings import one_line

MODEL_FILE = "lit_model.pth"  # the whole model in floating point, as litGPT and other programs read it

_LAYER = re.compile(r"transformer\.h\.(\d+)\.(.+)")


def model_file(mode: Mode) -> str:
    """What the file of a whole model is called whose weights are in a mode: `lit_model.pth`, `lit_model.int8.pth`."""
    return MODEL_FILE if mode == "none" else f"lit_model.{mode}.pth"


def mode_of_file(path: Path) -> Mode:
    """The mode that the name of a whole model's file tells."""
    return next((mode for mode in MODES if path.name == model_file(mode)), "none")


def whole_models(folder: Path) -> list[Path]:
    """The files of the whole model in a folder, that in floating point first."""
    return [path for path in (folder / model_file(mode) for mode in MODES) if path.is_file()]


def source_of(folder: Path, mode: Mode) -> Path:
    """The file that chunks of a mode are made from: the whole model in that mode, or else that in floating point.

    Neither need be there.
    """
    own = folder / model_file(mode)
    return own if own.is_file() else folder / MODEL_FILE


def whole_model(folder: Path, mode: Mode | None = None) -> Path:
    """The file that a node alone loads which is to compute in a mode; `MODEL_FILE` where there is none."""
    source = source_of(folder, mode or "none")
    return source if source.is_file() else next(iter(whole_models(folder)), source)


def open_whole_model(folder: Path, config: ModelConfig) -> Weights:
    """The tensors of a folder's whole model in floating point, checked against `config`; none is read yet.

    Raises `CheckpointError` where it has no such model.
    """
    path = whole_model(folder)
    if not path.is_file():
        raise CheckpointError(f"{folder}: no {MODEL_FILE} here: prepare the model again, without --chunks-only")
    if (mode := mode_of_file(path)) != "none":
        raise CheckpointError(f"{path}: holds {mode} weights: prepare the model again, without --quantize")
    return select(open_weights(path), config, 0, Span(0, config.n_layer))


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


def select(weights: Mapping[str, torch.Tensor], config: ModelConfig, node: int, span: Span) -> Weights:
    """The tensors of node `node` under their global names, checked against `config`; none is read yet.

    Published secondary chunks number their layers from 0 and may hold fused, interleaved `attn.attn.*`;
    both are translated. Layers outside `span` are left out, so a whole model serves as well as a chunk.
    Raises `CheckpointError` that names the first tensor which is missing or of another shape.
    """
    source = Weights.of(weights)
    offset = _published_offset(source, node, span)
    stored = {_canonical(name, offset): name for name in source}
    meta = {name: source.meta[stored[name]] for name in stored}
    wanted = stage_shapes(config, span) | (head_shapes(config) if node == 0 else {})
    for name, shape in wanted.items():
        if name not in meta:
            raise CheckpointError(f"{name} is missing: this file holds {_describe(meta)}, not layers {_range(span)}")
        if (found := _shape(meta, name)) != shape:
            raise CheckpointError(
                f"{name} has the shape {tuple(found)} where this model has {tuple(shape)}: another model's file"
            )
    scales = [scale for name in wanted if (scale := name + SCALE_SUFFIX) in meta]

    def read(name: str) -> torch.Tensor:
        tensor = source[stored[name]]
        return qkv_reassemble(tensor, config) if ".attn.attn." in stored[name] else tensor

    return Weights({name: meta[name] for name in (*wanted, *scales)}, read, source.identity)


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


def _published_offset(weights: Weights, node: int, span: Span) -> int:
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
