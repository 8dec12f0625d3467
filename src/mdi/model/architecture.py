"""What is particular to one family of model definitions: configurations, tensor names, modules, positions.

Everything else in this package, and everybody outside it, goes through the `Architecture` of a configuration.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from types import SimpleNamespace
from typing import Any, Protocol, TypeAlias

import torch
from litgpt.config import Config
from litgpt.model import GPT, Block
from torch import nn

from mdi.documents import has_type, misfit
from mdi.model.attention import SegmentAttention
from mdi.model.ops import PointwiseOps

ModelConfig: TypeAlias = Config  # the one configuration type: other architectures translate theirs into it


_RATIOS = ("rope_base", "rope_condense_ratio")  # declared as whole numbers by litgpt, which computes with any number


class Architecture(Protocol):
    """One family of model definitions. All modules that it builds have no memory behind their parameters."""

    block_path: str  # of the tensors of layer `{}`, in the names of a file
    embedding: str  # name of the embedding's weight
    norm_path: str  # of the final norm's tensors
    head_path: str  # of the head's tensors

    def config_from_dict(self, values: Mapping[str, Any]) -> ModelConfig:
        """The configuration with these fields. Raises whatever a bad value leads to."""

    def config_to_dict(self, config: ModelConfig) -> dict[str, Any]:
        """The fields of a configuration as plain values."""

    def kind_of_layer(self, config: ModelConfig, layer: int) -> object:
        """Layers of one kind have tensors of the same names and shapes."""

    def build_block(self, config: ModelConfig, layer: int, ops: PointwiseOps) -> Any:
        """The block of one layer, with attention over KV slots."""

    def build_ends(self, config: ModelConfig) -> nn.ModuleDict:
        """`embedding`, `norm` and `head`: what comes before the first block and after the last."""

    def embed(self, rows: torch.Tensor, positions: Sequence[int], config: ModelConfig) -> torch.Tensor:
        """Rows (N, C) of the embedding's weight -> hidden states (N, C) at these positions, before the first block."""

    def rotary_tables(
        self, config: ModelConfig, context: int, device: torch.device
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosines and sines of each position (context, D[, 2]), for `ops.rotate`."""


class LitgptArchitecture:
    """Every decoder family of litgpt."""

    block_path = "transformer.h.{}."
    embedding = "transformer.wte.weight"
    norm_path = "transformer.ln_f."
    head_path = "lm_head."

    def config_from_dict(self, values: Mapping[str, Any]) -> ModelConfig:
        # litgpt looks at no type, and computes with what it got.
        whole = {name: value for name, value in values.items() if not (name in _RATIOS and has_type(value, float))}
        if problem := misfit(whole, ModelConfig):
            raise ValueError(problem)
        return ModelConfig(**values)

    def config_to_dict(self, config: ModelConfig) -> dict[str, Any]:
        return asdict(config)

    def kind_of_layer(self, config: ModelConfig, layer: int) -> object:
        """A model may be a mixture of experts from some layer on, and dense before it."""
        return layer < (config.first_k_dense_replace or 0)

    def build_block(self, config: ModelConfig, layer: int, ops: PointwiseOps) -> Any:
        with torch.device("meta"):
            block = Block(config, layer)
            block.attn = SegmentAttention(config, layer, ops)
        return block.requires_grad_(False)

    def build_ends(self, config: ModelConfig) -> nn.ModuleDict:
        with torch.device("meta"):
            return nn.ModuleDict(
                {
                    "embedding": nn.Embedding(config.padded_vocab_size, config.n_embd),
                    "norm": config.norm_class(config.n_embd, eps=config.norm_eps),
                    "head": nn.Linear(config.n_embd, config.padded_vocab_size, bias=config.lm_head_bias),
                }
            )

    def embed(self, rows: torch.Tensor, positions: Sequence[int], config: ModelConfig) -> torch.Tensor:
        """Positions are the business of each block's rotary embedding; they do not count here."""
        if not config.scale_embeddings:
            return rows
        return rows * torch.tensor(config.n_embd**0.5, dtype=rows.dtype)

    def rotary_tables(
        self, config: ModelConfig, context: int, device: torch.device
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """litgpt's own tables in float32, without a whole `GPT` to ask for them.

        The sines of the first half of the elements are negated, because the rotate-half step swaps the
        halves without negating.
        """
        cos, sin = GPT.rope_cache(SimpleNamespace(config=config, max_seq_length=context), device)
        sin[:, : sin.size(1) - sin.size(1) // 2].neg_()
        return cos, sin


LITGPT = LitgptArchitecture()


def architecture_of(config: ModelConfig) -> Architecture:
    """The architecture that a configuration belongs to."""
    return LITGPT
