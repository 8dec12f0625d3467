"""The reference backend: litgpt's own blocks in torch, on any device.

The blocks are built with their global layer index; only their attention is replaced.
Shapes: N rows in the message, C = n_embd, D head size.
"""

import logging
from collections.abc import Mapping, Sequence

import torch

from mdi.model.architecture import ModelConfig, architecture_of
from mdi.model.attention import make_plan
from mdi.model.backends.torch_compile import compile_ops
from mdi.model.build import ModuleBuilder, Placement
from mdi.model.devices import avoid_cudnn_attention, memory_errors
from mdi.model.litgpt_modules import Block
from mdi.model.quant import held_bytes
from mdi.model.shapes import kv_bytes, stage_shapes
from mdi.model.span import Span
from mdi.model.tensors import dtype_name
from mdi.model.weights import Weights
from mdi.segments import Segment

log = logging.getLogger(__name__)


class TorchSpan:
    """A `SpanEngine` of litgpt blocks whose attention keeps the slots."""

    mapped_bytes = 0

    def __init__(
        self, config: ModelConfig, span: Span, weights: Mapping[str, torch.Tensor], placement: Placement
    ) -> None:
        """
        Raises:
            CheckpointError: a tensor is missing, or of another shape than `config` says.
            ConfigError: out of memory, or the device has no kernel for quantized weights.
        """
        self.config, self.span = config, span
        self.device, self.dtype = placement.device, placement.dtype
        self.weights_bytes = held_bytes(
            stage_shapes(config, span), placement.dtype, placement.quantize, self.device.type
        )
        if placement.quantize == "int8":
            log.info("int8: torch's kernels know one scale a row, to which the blocks of 32 weights are rounded again")
        self.cache_bytes = 0
        if placement.kv_dtype not in (None, kept := dtype_name(self.dtype)):
            log.warning("--kv-dtype %s: torch keeps keys and values in %s all the same", placement.kv_dtype, kept)
        if self.device.type == "cuda":
            avoid_cudnn_attention()
        source = Weights.of(weights)
        self.blocks = {layer: _load_block(config, layer, source, placement) for layer in range(*span)}
        if placement.compile_ops:
            compile_ops(placement.ops, self, config.n_embd, placement.device, placement.tick)

    @staticmethod
    def supports(config: ModelConfig, placement: Placement) -> str | None:
        """Why the model cannot be computed there; None if it can."""
        return None if config.latent_attention is None else "latent attention is not supported"

    @property
    def numerics(self) -> str:
        """`torch-2.13`, or `torch-2.13-cuda`: another version may add in another order."""
        version = ".".join(torch.__version__.split(".")[:2])
        return f"torch-{version}" if self.device.type == "cpu" else f"torch-{version}-{self.device.type}"

    def allocate(self, n_slots: int, context: int) -> None:
        """Make `n_slots` slots of `context` positions each. Earlier slots are forgotten."""
        for block in self.blocks.values():
            block.attn.allocate(n_slots, context, self.device, self.dtype)
        self.cache_bytes = n_slots * kv_bytes(self.config, len(self.blocks), context, self.dtype)
        self._cos, self._sin = architecture_of(self.config).rotary_tables(
            self.config, context, self.device
        )  # (context, D[, 2])

    @torch.inference_mode()
    def forward(self, x: torch.Tensor, segments: Sequence[Segment]) -> torch.Tensor:
        """Hidden states (N, C) of a message's rows -> (N, C) after this span; fills the slots."""
        plan = make_plan(segments, self.config, self.device, self.dtype)
        cos, sin = self._cos[plan.positions][:, None], self._sin[plan.positions][:, None]  # (N, 1, D[, 2])
        x = x.to(self.device, self.dtype)
        for layer, block in self.blocks.items():
            if (indices := self.config.rope_indices) is not None:
                x = block.forward(x, cos[..., indices[layer]], sin[..., indices[layer]], plan)
            else:
                x = block.forward(x, cos, sin, plan)
        return x

    @torch.inference_mode()
    def fork(self, source: int, target: int, n: int) -> None:
        """Copy the first `n` positions of slot `source` to slot `target`."""
        for block in self.blocks.values():
            block.attn.fork(source, target, n)


def _load_block(config: ModelConfig, layer: int, weights: Weights, placement: Placement) -> Block:
    architecture = architecture_of(config)
    own = weights.below(architecture.block_path.format(layer))
    with memory_errors(f"the weights of layer {layer}"):
        return ModuleBuilder(own, f"layer {layer}", placement).build(
            architecture.build_block(config, layer, placement.ops)
        )
