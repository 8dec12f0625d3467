"""Weights that were made up, in the shapes of a model: what its layers take can be timed before the model is there."""

from collections.abc import Mapping

import torch

from mdi.model.architecture import ModelConfig, architecture_of
from mdi.model.shapes import head_shapes, stage_shapes
from mdi.model.span import Span
from mdi.model.weights import Weights

_N_NUMBERS = 1 << 16  # that are drawn; a weight repeats them
_LARGEST = 0.05  # as in a trained model: nothing that is computed becomes infinite, or so small that a CPU slows down


def synthetic_layers(config: ModelConfig, span: Span, dtype: torch.dtype) -> Weights:
    """The tensors of the layers in `span`, each in memory of its own."""
    return _filled(stage_shapes(config, span), dtype)


def synthetic_ends(config: ModelConfig, dtype: torch.dtype) -> Weights:
    """The tensors of the embedding and the head, which are tied."""
    weights = _filled(head_shapes(config), dtype)
    architecture = architecture_of(config)
    tied = weights.meta[f"{architecture.head_path}weight"]
    return Weights({**weights.meta, architecture.embedding: tied}, weights.__getitem__)


def _filled(shapes: Mapping[str, torch.Size], dtype: torch.dtype) -> Weights:
    numbers = torch.empty(_N_NUMBERS).uniform_(-_LARGEST, _LARGEST, generator=torch.Generator().manual_seed(1))
    pattern = numbers.to(dtype)

    def read(name: str) -> torch.Tensor:
        tensor = torch.empty(shapes[name], dtype=dtype)
        flat = tensor.view(-1)
        n_whole = len(flat) // _N_NUMBERS * _N_NUMBERS
        flat[:n_whole].view(-1, _N_NUMBERS).copy_(pattern)
        flat[n_whole:] = pattern[: len(flat) - n_whole]
        return tensor

    return Weights({name: torch.empty(shape, dtype=dtype, device="meta") for name, shape in shapes.items()}, read)
