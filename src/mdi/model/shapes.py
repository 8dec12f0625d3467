"""The names and shapes of a model's tensors, and litgpt's modules without memory behind them."""

from collections.abc import Sequence
from types import SimpleNamespace

import torch
from litgpt.config import Config
from litgpt.model import GPT, Block
from torch import nn

from mdi.model.attention import SegmentAttention
from mdi.model.ops import PointwiseOps
from mdi.model.span import Span


def layer_weights(config: Config) -> list[int]:
    """The number of parameters of each layer."""
    layers = _block_shapes(config, range(config.n_layer))
    return [sum(shape.numel() for shape in shapes.values()) for shapes in layers]


def head_weight(config: Config) -> int:
    """The number of parameters of the head; the embedding is looked up, not multiplied."""
    return int(config.padded_vocab_size * config.n_embd)


def stage_shapes(config: Config, span: Span) -> dict[str, torch.Size]:
    """Global name -> shape of every tensor that a stage over `span` holds."""
    layers = range(*span)
    return {
        f"transformer.h.{layer}.{name}": shape
        for layer, shapes in zip(layers, _block_shapes(config, layers), strict=True)
        for name, shape in shapes.items()
    }


def ends_shapes(config: Config) -> dict[str, torch.Size]:
    """Global name -> shape of every tensor of the embedding and the head."""
    state = build_ends(config).state_dict()
    return {name if name.startswith("lm_head.") else f"transformer.{name}": state[name].shape for name in state}


def _block_shapes(config: Config, layers: Sequence[int]) -> list[dict[str, torch.Size]]:
    """Name -> shape of every tensor of each layer. There are two kinds of layers at most, and each is built once."""
    kinds: dict[bool, dict[str, torch.Size]] = {}
    for layer in layers:
        if (dense := _is_dense(config, layer)) not in kinds:
            state = build_block(config, layer).state_dict()
            kinds[dense] = {name: tensor.shape for name, tensor in state.items()}
    return [kinds[_is_dense(config, layer)] for layer in layers]


def _is_dense(config: Config, layer: int) -> bool:
    """Whether a model that is a mixture of experts from some layer on has not come to it yet."""
    return layer < (config.first_k_dense_replace or 0)


def build_ends(config: Config) -> nn.ModuleDict:
    """litgpt's embedding, final norm and head, without memory behind their parameters."""
    with torch.device("meta"):
        return nn.ModuleDict(
            {
                "wte": nn.Embedding(config.padded_vocab_size, config.n_embd),
                "ln_f": config.norm_class(config.n_embd, eps=config.norm_eps),
                "lm_head": nn.Linear(config.n_embd, config.padded_vocab_size, bias=config.lm_head_bias),
            }
        )


def build_block(config: Config, layer: int, ops: PointwiseOps | None = None) -> Block:
    """A litgpt block without memory behind its parameters."""
    with torch.device("meta"):
        block = Block(config, layer)
        block.attn = SegmentAttention(config, layer, ops or PointwiseOps())
    return block.requires_grad_(False)


def rotary_tables(config: Config, context: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """litgpt's own tables of cosines and sines in float32, without a whole `GPT` to ask for them.

    The sines of the first half of the elements are negated, because the rotate-half step swaps the
    halves without negating.
    """
    cos, sin = GPT.rope_cache(SimpleNamespace(config=config, max_seq_length=context), device)
    sin[:, : sin.size(1) - sin.size(1) // 2].neg_()
    return cos, sin
