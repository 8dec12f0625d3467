"""The names and shapes of a model's tensors."""

import torch

from mdi.model.architecture import ModelConfig, architecture_of
from mdi.model.ops import PointwiseOps
from mdi.model.span import Span


def layer_shapes(config: ModelConfig, span: Span | None = None) -> list[dict[str, torch.Size]]:
    """Global name -> shape of every tensor, for each layer of `span`, or of the model.

    Each kind of layer is built once.
    """
    architecture = architecture_of(config)
    kinds: dict[object, dict[str, torch.Size]] = {}
    layers = []
    for layer in range(*(Span(0, config.n_layer) if span is None else span)):  # a span without layers is false
        if (kind := architecture.kind_of_layer(config, layer)) not in kinds:
            state = architecture.build_block(config, layer, PointwiseOps()).state_dict()
            kinds[kind] = {name: tensor.shape for name, tensor in state.items()}
        path = architecture.block_path.format(layer)
        layers.append({path + name: shape for name, shape in kinds[kind].items()})
    return layers


def stage_shapes(config: ModelConfig, span: Span) -> dict[str, torch.Size]:
    """Global name -> shape of every tensor that a stage over `span` holds."""
    return {name: shape for shapes in layer_shapes(config, span) for name, shape in shapes.items()}


def kv_bytes(config: ModelConfig, n_layers: int, context: int, dtype: torch.dtype) -> int:
    """What the keys and values of one slot take in so many layers, as tensors of this dtype."""
    return int(n_layers * 2 * config.n_query_groups * config.head_size * context * dtype.itemsize)


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
