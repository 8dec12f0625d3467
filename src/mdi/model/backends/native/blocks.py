"""litgpt's blocks as the kernels take them: which are supported, and what describes them."""

import ctypes
import functools
import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from mdi.errors import CheckpointError
from mdi.model.architecture import ModelConfig, architecture_of
from mdi.model.backends.native import library as native
from mdi.model.backends.native.packing import FILL, PackedLinear, pack
from mdi.model.build import ModuleBuilder, Placement
from mdi.model.gpt2 import ReluMLP
from mdi.model.litgpt_modules import GemmaMLP, GptNeoxMLP, LLaMAMLP, LLaMAMoE, RMSNorm
from mdi.model.ops import PointwiseOps
from mdi.model.packed import Make, PackedPart
from mdi.model.weights import Weights

_GELUS = {"none": native.GELU, "tanh": native.GELU_TANH}
_ACTIVATIONS: dict[type, int | None] = {
    LLaMAMLP: native.SILU,
    LLaMAMoE: native.SILU,
    ReluMLP: native.RELU,
    GptNeoxMLP: None,
    GemmaMLP: None,
}


def unsupported(config: ModelConfig, placement: Placement) -> str | None:
    """What of this the kernels do not compute; None if they compute all of it."""
    if placement.device.type != "cpu":
        return f"{placement.device} is not a CPU"
    if config.latent_attention is not None:
        return "latent attention"
    if config.mlp_class not in _ACTIVATIONS:
        return f"{config.mlp_class_name}"
    if config.rope_n_elem % 2:
        return "an odd number of rotary elements"
    if _activation(config) is None:
        return f"gelu_approximate {config.gelu_approximate}"
    return None


def _activation(config: ModelConfig) -> int | None:
    """Of the MLP; None for one that the kernels do not have."""
    own = _ACTIVATIONS[config.mlp_class]
    return _GELUS.get(config.gelu_approximate) if own is None else own


def shape_of(config: ModelConfig, cache_type: int) -> native.Shape:
    """What the blocks of a model have in common.

    Args:
        cache_type: what keys and values are kept as.
    """
    attention = architecture_of(config).build_block(config, 0, PointwiseOps()).attn
    return native.Shape(
        n_embd=config.n_embd,
        n_head=config.n_head,
        n_groups=config.n_query_groups,
        head_size=config.head_size,
        n_rotary=config.rope_n_elem,
        parallel_residual=config.parallel_residual,
        shared_norm=config.shared_attention_norm,
        rotates_neighbours=config.rope_interleave,
        norms_all_heads=config.norm_qk_type == "olmo2",
        cache_type=cache_type,
        activation=_activation(config),
        scale=attention.mscale**2 / math.sqrt(config.attention_scores_scalar or config.head_size),
        cap=config.attention_logit_softcapping or 0.0,
        routing=_routing_of(config),
    )


def _routing_of(config: ModelConfig) -> native.Routing:
    """How a row's experts are chosen. litgpt looks at some of it only where they are in groups."""
    return native.Routing(
        n_experts=config.n_expert,
        n_chosen=config.n_expert_per_token,
        n_groups=config.n_expert_groups or 0,
        n_chosen_groups=config.n_topk_groups or 0,
        n_group_scores=config.n_topk_scores_per_group or 0,
        normalizes=config.norm_topk_prob,
        scale=config.routed_scaling_factor,
    )


class PackedNorm:
    """One normalization, and the structure that describes it."""

    def __init__(self, norm: nn.Module | None, parameters: Mapping[str, torch.Tensor]) -> None:
        """
        Args:
            norm: litgpt's module, without memory; None, or `nn.Identity`: there is none.
            parameters: by name, in float32, as they are multiplied with and added.
        """
        self.weight, self.bias = parameters.get("weight"), parameters.get("bias")
        pointers = [None if tensor is None else tensor.data_ptr() for tensor in (self.weight, self.bias)]
        self.structure = native.Norm(_kind_of(norm), getattr(norm, "eps", 0.0), *pointers)


def _kind_of(norm: nn.Module | None) -> int:
    if norm is None or isinstance(norm, nn.Identity):
        return native.NO_NORM
    return native.RMS_NORM if isinstance(norm, RMSNorm) else native.LAYER_NORM


class PackedBlock:
    """The weights of one block, and the structure that describes it."""

    def __init__(
        self,
        library: ctypes.CDLL,
        config: ModelConfig,
        layer: int,
        weights: Weights,
        placement: Placement,
        kept: PackedPart,
    ) -> None:
        """Raises `CheckpointError` where a tensor is missing or of another shape."""
        architecture = architecture_of(config)
        block: Any = architecture.build_block(config, layer, PointwiseOps())
        own = architecture.block_path.format(layer)
        # Local: who keeps it keeps the file of the weights open.
        builder = ModuleBuilder(weights.below(own), f"layer {layer}", placement)
        parts = _Parts(Packer(library, builder, placement, kept, own))
        attention = block.attn
        self.structure = native.Block(
            norm_1=parts.norm("norm_1.", block.norm_1),
            norm_2=parts.norm("norm_2.", block.norm_2),
            post_attention_norm=parts.norm("post_attention_norm.", block.post_attention_norm),
            post_mlp_norm=parts.norm("post_mlp_norm.", block.post_mlp_norm),
            norm_q=parts.norm("attn.norm_q.", attention.norm_q),
            norm_k=parts.norm("attn.norm_k.", attention.norm_k),
            qkv=parts.linear("attn.qkv.", attention.qkv),
            attention_proj=parts.linear("attn.proj.", attention.proj),
            window=config.sliding_window_size if attention.apply_sliding_window_attention else 0,
            rotary_table=0 if config.rope_indices is None else config.rope_indices[layer],
        )
        if isinstance(block.mlp, LLaMAMoE):
            self.structure.experts = parts.experts("mlp.", block.mlp)
            if config.n_shared_expert:
                self.structure.mlp = parts.mlp("mlp.shared_experts.", block.mlp.shared_experts)
        else:
            self.structure.mlp = parts.mlp("mlp.", block.mlp)
        self._linears, self._others = parts.linears, parts.others

    @property
    def n_bytes(self) -> int:
        """What its linear layers hold."""
        return sum(part.n_bytes for part in self._linears)

    @property
    def is_quantized(self) -> bool:
        """Whether any of its weights is."""
        return any(part.is_quantized for part in self._linears)


class _Parts:
    """The structures of a block's parts, and what they point at."""

    def __init__(self, packer: "Packer") -> None:
        self._packer = packer
        self.linears: list[PackedLinear] = []
        self.others: list[object] = []

    def linear(self, path: str, module: Any) -> native.Linear:
        """Of an `nn.Linear`, or a module with a weight like one."""
        packed = self._packer.linear(path, module)
        self.linears.append(packed)
        return packed.structure

    def norm(self, path: str, module: nn.Module | None) -> native.Norm:
        packed = self._packer.norm(path, module)
        self.others.append(packed)
        return packed.structure

    def mlp(self, path: str, module: Any) -> native.Mlp:
        if not hasattr(module, "fc_2"):
            return native.Mlp(fc_1=self.linear(f"{path}fc.", module.fc), proj=self.linear(f"{path}proj.", module.proj))
        return native.Mlp(*(self.linear(f"{path}{name}.", getattr(module, name)) for name in ("fc_1", "fc_2", "proj")))

    def experts(self, path: str, module: Any) -> native.Experts:
        """Of a `LLaMAMoE`, without the MLP that all rows share."""
        mlps = [self.mlp(f"{path}experts.{i}.", expert) for i, expert in enumerate(module.experts)]
        array = (native.Mlp * len(mlps))(*mlps)
        correction = self._packer.correction(f"{path}gate.", module.gate)
        self.others += [array, correction]
        return native.Experts(
            router=self.linear(f"{path}gate.", module.gate),
            correction=None if correction is None else correction.data_ptr(),
            mlps=array,
        )


class Packer:
    """Lays out the layers of one module, or finds them where they were laid out before."""

    def __init__(
        self, library: ctypes.CDLL, builder: ModuleBuilder, placement: Placement, kept: PackedPart, prefix: str = ""
    ) -> None:
        """
        Args:
            builder: knows the weights of the module.
            prefix: of the names in `kept`.
        """
        self._library, self._builder, self._placement, self._kept = library, builder, placement, kept
        self._prefix = prefix

    def linear(self, path: str, linear: Any) -> PackedLinear:
        """The layer `linear`, whose tensors have names below `path`. Raises `CheckpointError` as `PackedBlock` does."""
        shape, bias = linear.weight.shape, None
        weight = self.tensor(f"{path}weight", lambda: self._tiles(f"{path}weight", linear))
        if getattr(linear, "bias", None) is not None:  # a `GroupedTopkRouter` has no such attribute
            bias = self.tensor(f"{path}bias", lambda: self._filled(f"{path}bias", linear.bias.shape))
        self._placement.tick()
        return PackedLinear(self._library, weight, bias, shape)

    def norm(self, path: str, norm: nn.Module | None) -> PackedNorm:
        """The normalization `norm`, whose tensors have names below `path`."""
        parameters = {} if norm is None else dict(norm.named_parameters())
        offset = 1 if isinstance(norm, RMSNorm) and norm.add_unit_offset else 0

        def parameter(name: str, shape: torch.Size) -> torch.Tensor:
            own = self._builder.find(path + name, shape).float()
            return offset + own if offset and name == "weight" else own

        return PackedNorm(
            norm,
            {
                name: self.tensor(path + name, functools.partial(parameter, name, empty.shape))
                for name, empty in parameters.items()
            },
        )

    def correction(self, path: str, gate: nn.Module) -> torch.Tensor | None:
        """What litgpt's `GroupedTopkRouter` adds to the scores that experts are chosen by; other routers have none."""
        name, buffers = "e_score_correction_bias", dict(gate.named_buffers())
        if name not in buffers:
            return None
        shape = buffers[name].shape
        correction = self.tensor(path + name, lambda: self._filled(path + name, shape))
        if correction.dtype != torch.float32 or correction.numel() < shape.numel():
            raise CheckpointError(f"{path}{name} has {correction.numel()} elements for {shape.numel()} experts")
        return correction

    def tensor(self, name: str, make: Make) -> torch.Tensor:
        """A tensor of the module: kept under that name, or made."""
        return self._kept.tensor(self._prefix + name, make)

    def _tiles(self, name: str, linear: nn.Linear) -> torch.Tensor:
        return pack(self._library, self._builder.weight(name, linear), self._placement.dtype)

    def _filled(self, name: str, shape: torch.Size) -> torch.Tensor:
        return F.pad(self._builder.find(name, shape).float(), (0, -shape.numel() % FILL))
