"""What the starter has besides its stage: the embedding and the head.

Shapes: N rows in the message, C = n_embd.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from litgpt.config import Config
from litgpt.model import do_softcapping

from mdi.model.build import ModuleBuilder, Placement
from mdi.model.devices import memory_errors
from mdi.model.quant import held_bytes
from mdi.model.shapes import build_ends, ends_shapes


class EmbeddingAndHead:
    """What the starter has besides its stage: the embedding before the first block, the head after the last."""

    def __init__(
        self,
        config: Config,
        weights: Mapping[str, torch.Tensor],
        placement: Placement,
    ) -> None:
        """Raises `CheckpointError` where a tensor is missing or of another shape, `ConfigError` as `TorchSpan` does.

        Embeddings are looked up where they lie in the file, row by row, so a head that is tied to them is held once.
        """
        self.config, self.device, self.dtype = config, placement.device, placement.dtype
        self.weights_bytes = held_bytes(ends_shapes(config), placement.dtype, placement.quantize)
        own = {name.removeprefix("transformer."): weights[name] for name in weights if ".h." not in name}
        empty: Any = build_ends(config)
        with memory_errors("the weights of the head"):
            builder = ModuleBuilder(own, "the embedding and the head", placement)
            self._embedding = builder.find("wte.weight", empty["wte"].weight.shape)
            self._norm = builder.build(empty["ln_f"], "ln_f.")
            self._head = builder.build(empty["lm_head"], "lm_head.")

    @torch.inference_mode()
    def embed(self, ids: Sequence[int]) -> torch.Tensor:
        """Token ids (N) -> hidden states (N, C)."""
        x = self._embedding[torch.tensor(ids)].to(self.device, self.dtype)
        if self.config.scale_embeddings:
            x = x * torch.tensor(self.config.n_embd**0.5, dtype=x.dtype)
        return x

    @torch.inference_mode()
    def logits(self, x: torch.Tensor) -> torch.Tensor:
        """Hidden states (N, C) after the last block -> logits (N, vocabulary), float32 on the CPU."""
        with memory_errors(f"the logits of {len(x)} rows"):
            x = self._head(self._norm(x.to(self.device, self.dtype)))
            if (cap := self.config.final_logit_softcapping) is not None:
                x = do_softcapping(x, cap)
            return x.to("cpu", torch.float32)
