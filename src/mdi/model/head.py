"""What the starter has besides its stage: the embedding and the head.

Shapes: N rows in the message, C = n_embd.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from mdi.model.architecture import ModelConfig, architecture_of
from mdi.model.build import ModuleBuilder, Placement
from mdi.model.devices import memory_errors
from mdi.model.embedding import hidden_states, kept_table, position_table
from mdi.model.litgpt_modules import do_softcapping
from mdi.model.quant import held_bytes
from mdi.model.shapes import head_shapes


class EmbeddingAndHead:
    """What the starter has besides its stage: the embedding before the first block, the head after the last."""

    mapped_bytes = 0

    def __init__(
        self,
        config: ModelConfig,
        weights: Mapping[str, torch.Tensor],
        placement: Placement,
    ) -> None:
        """Raises `CheckpointError` where a tensor is missing or of another shape, `ConfigError` as `TorchSpan` does.

        The embedding stays in the CPU's memory, where its rows are looked up. A head that is tied to it is held once,
        unless its layout is another one.
        """
        self.config, self.device, self.dtype = config, placement.device, placement.dtype
        self.weights_bytes = held_bytes(head_shapes(config), placement.dtype, placement.quantize, self.device.type)
        architecture = architecture_of(config)
        empty: Any = architecture.build_ends(config)
        with memory_errors("the weights of the head"):
            builder = ModuleBuilder(weights, "the embedding and the head", placement)
            table = builder.find(architecture.embedding, empty["embedding"].weight.shape)
            self._norm = builder.build(empty["norm"], architecture.norm_path)
            self._head = builder.build(empty["head"], architecture.head_path)
            is_tied = builder.is_tied(architecture.embedding, f"{architecture.head_path}weight")
            self._embedding = self._kept(table, is_tied)
            self._positions = position_table(config, builder, empty, self.dtype)

    def _kept(self, table: torch.Tensor, is_tied: bool) -> torch.Tensor:
        """The embedding as it is kept: the head's own weight where that is the same, or else in the smaller dtype."""
        head: torch.Tensor | None = getattr(self._head, "weight", None)
        if is_tied and head is not None and head.device.type == "cpu":
            return head
        return kept_table(table, self.dtype)

    @torch.inference_mode()
    def embed(self, ids: Sequence[int], positions: Sequence[int]) -> torch.Tensor:
        """Token ids (N), each at a position of its sequence -> hidden states (N, C)."""
        x = self._embedding[torch.tensor(ids)].to(self.device, self.dtype)
        return hidden_states(x, positions, self._positions, self.config)

    @torch.inference_mode()
    def logits(self, x: torch.Tensor) -> torch.Tensor:
        """Hidden states (N, C) after the last block -> logits (N, vocabulary), float32 on the CPU."""
        with memory_errors(f"the logits of {len(x)} rows"):
            x = self._head(self._norm(x.to(self.device, self.dtype)))
            if (cap := self.config.final_logit_softcapping) is not None:
                x = do_softcapping(x, cap)
            return x.to("cpu", torch.float32)
