"""Weights that were made up, in the shapes of a model: what its layers take can be timed before the model is there."""

from collections.abc import Mapping

import torch

from mdi.formats import Mode
from mdi.model.architecture import ModelConfig, architecture_of
from mdi.model.quant import Weight, mode_for, part_shapes, quantize
from mdi.model.shapes import head_shapes, stage_shapes
from mdi.model.span import Span
from mdi.model.weights import Weights

_N_NUMBERS = 1 << 16  # that are drawn; a weight repeats them
_LARGEST = 0.05  # as in a trained model: nothing that is computed becomes infinite, or so small that a CPU slows down


def synthetic_layers(config: ModelConfig, span: Span, dtype: torch.dtype, mode: Mode) -> Weights:
    """The tensors of the layers in `span`, each in memory of its own, as a chunk in `mode` holds them."""
    return _filled(stage_shapes(config, span), dtype, mode)


def synthetic_ends(config: ModelConfig, dtype: torch.dtype) -> Weights:
    """The tensors of the embedding and the head, which are tied."""
    weights = _filled(head_shapes(config), dtype, "none")
    architecture = architecture_of(config)
    tied = weights.meta[f"{architecture.head_path}weight"]
    return Weights({**weights.meta, architecture.embedding: tied}, weights.__getitem__)


def _filled(shapes: Mapping[str, torch.Size], dtype: torch.dtype, mode: Mode) -> Weights:
    numbers = torch.empty(_N_NUMBERS).uniform_(-_LARGEST, _LARGEST, generator=torch.Generator().manual_seed(1))
    patterns: dict[Mode, Weight] = {}
    parts: dict[str, tuple[torch.Size, torch.Tensor]] = {}  # the shape, and what fills it
    for name, shape in shapes.items():
        own_mode = mode_for(name, shape, mode)
        if own_mode not in patterns:
            # Rounded once: to round each weight took longer than to time the layers.
            patterns[own_mode] = quantize(numbers.to(dtype)[None], own_mode)
        for suffix, part_shape in part_shapes(shape, own_mode).items():
            parts[name + suffix] = (part_shape, patterns[own_mode].parts[suffix].flatten())
    meta = {name: torch.empty(shape, dtype=part.dtype, device="meta") for name, (shape, part) in parts.items()}
    return Weights(meta, lambda name: _repeated(*parts[name]))


def _repeated(shape: torch.Size, pattern: torch.Tensor) -> torch.Tensor:
    tensor = torch.empty(shape, dtype=pattern.dtype)
    flat, n = tensor.view(-1), len(pattern)
    n_whole = len(flat) // n * n
    flat[:n_whole].view(-1, n).copy_(pattern)
    flat[n_whole:] = pattern[: len(flat) - n_whole]
    return tensor
