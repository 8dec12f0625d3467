"""The names and shapes of a model's tensors, and what they weigh."""

from collections.abc import Sequence

import torch

from mdi.model.architecture import ModelConfig, architecture_of
from mdi.model.ops import PointwiseOps
from mdi.model.span import Span


def layer_weights(config: ModelConfig) -> list[int]:
    """The number of parameters of each layer."""
    layers = _block_shapes(config, range(config.n_layer))
    return [sum(shape.numel() for shape in shapes.values()) for shapes in layers]


def head_weight(config: ModelConfig) -> int:
    """The number of parameters of the head; the embedding is looked up, not multiplied."""
    return int(config.padded_vocab_size * config.n_embd)


def stage_shapes(config: ModelConfig, span: Span) -> dict[str, torch.Size]:
    """Global name -> shape of every tensor that a stage over `span` holds."""
    layers, path = range(*span), architecture_of(config).block_path
    return {
        path.format(layer) + name: shape
        for layer, shapes in zip(layers, _block_shapes(config, layers), strict=True)
        for name, shape in shapes.items()
    }


def head_shapes(config: ModelConfig) -> dict[str, torch.Size]:
    """Global name -> shape of every tensor of the embedding and the head."""
    architecture = architecture_of(config)
    paths = {"embedding": architecture.embedding.removesuffix("weight"), "norm": architecture.norm_path}
    paths |= {"head": architecture.head_path, "positions": (architecture.positions or "").removesuffix("weight")}
    return {
        paths[end] + name: tensor.shape
        for end, module in architecture.build_ends(config).items()
        for name, tensor in module.state_dict().items()
    }


def model_shapes(config: ModelConfig) -> dict[str, torch.Size]:
    """Global name -> shape of every tensor of the whole model."""
    return stage_shapes(config, Span(0, config.n_layer)) | head_shapes(config)


def _block_shapes(config: ModelConfig, layers: Sequence[int]) -> list[dict[str, torch.Size]]:
    """Name -> shape of every tensor of each layer. Each kind of layer is built once."""
    architecture = architecture_of(config)
    kinds: dict[object, dict[str, torch.Size]] = {}
    for layer in layers:
        if (kind := architecture.kind_of_layer(config, layer)) not in kinds:
            state = architecture.build_block(config, layer, PointwiseOps()).state_dict()
            kinds[kind] = {name: tensor.shape for name, tensor in state.items()}
    return [kinds[architecture.kind_of_layer(config, layer)] for layer in layers]
