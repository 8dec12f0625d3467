"""What is particular to one family of model definitions: configurations, tensor names, modules, positions.

Everything else in this package, and everybody outside it, goes through the `Architecture` of a configuration.
"""

from collections.abc import Mapping
from typing import Any, Protocol, TypeAlias

import torch
from torch import nn

from mdi.model.gpt2 import Gpt2Architecture, Gpt2Config
from mdi.model.litgpt_architecture import LitgptArchitecture
from mdi.model.litgpt_modules import Config
from mdi.model.ops import PointwiseOps

ModelConfig: TypeAlias = Config  # the one configuration type: other architectures translate theirs into it


class Architecture(Protocol):
    """One family of model definitions. All modules that it builds have no memory behind their parameters."""

    block_path: str  # of the tensors of layer `{}`, in the names of a file
    embedding: str  # name of the embedding's weight
    positions: str | None  # name of the weight of learned positions, one row for each; None: there is none
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
        """`embedding`, `norm` and `head`, and `positions` where they are learned: what is outside the blocks."""

    def embed(self, rows: torch.Tensor, config: ModelConfig) -> torch.Tensor:
        """Rows (N, C) of the embedding's weight -> hidden states (N, C) before the first block, without positions."""

    def rotary_tables(
        self, config: ModelConfig, context: int, device: torch.device
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosines and sines of each position (context, D[, 2]), for `ops.rotate`.

        Some methods compute other frequencies for a longer context; `context` is then that of the session.
        """


LITGPT: Architecture = LitgptArchitecture()
GPT2: Architecture = Gpt2Architecture()


def architecture_of(config: ModelConfig) -> Architecture:
    """The architecture that a configuration belongs to."""
    return GPT2 if isinstance(config, Gpt2Config) else LITGPT


def config_from_dict(values: Mapping[str, Any]) -> ModelConfig:
    """The configuration with these fields: litgpt's, unless `architecture` is another one's name.

    Raises whatever a bad value leads to.
    """
    architecture = GPT2 if values.get("architecture") == "gpt2" else LITGPT
    return architecture.config_from_dict(values)
