"""litgpt's blocks as the kernels take them: which are supported, and what describes them."""

import ctypes
import functools
import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from mdi.model.architecture import ModelConfig, architecture_of
from mdi.model.backends.native import library as native
from mdi.model.backends.native.packing import FILL, PackedLinear, pack
from mdi.model.build import ModuleBuilder, Placement
from mdi.model.gpt2 import ReluMLP
from mdi.model.litgpt_modules import GemmaMLP, GptNeoxMLP, LLaMAMLP, RMSNorm
from mdi.model.ops import PointwiseOps
from mdi.model.packed import Make, PackedPart
from mdi.model.weights import Weights

_GELUS = {"none": native.GELU, "tanh": native.GELU_TANH}
_ACTIVATIONS: dict[type, int | None] = {LLaMAMLP: native.SILU, ReluMLP: native.RELU, GptNeoxMLP: None, GemmaMLP: None}


def unsupported(config: ModelConfig, placement: Placement) -> str | None:
    """What of this the kernels do not compute; None if they compute all of it."""
    if placement.device.type != "cpu":
        return f"{placement.device} is not a CPU"
    if config.latent_attention is not None:
        return "latent attention"
    if config.n_expert or config.mlp_class not in _ACTIVATIONS:
        return "mixture of experts" if config.n_expert else f"{config.mlp_class_name}"
    if config.rope_n_elem % 2:
        return "an odd number of rotary elements"
    if _activation(config) is None:
        return f"gelu_approximate {config.gelu_approximate}"
    return None


def _activation(config: ModelConfig) -> int | None:
    """Of the MLP; None for one that the kernels do not have."""
    own = _ACTIVATIONS[config.mlp_class]
    return _GELUS.get(config.gelu_approximate) if own is None else own


def shape_of(config: ModelConfig, has_half_cache: bool) -> native.Shape:
    """What the blocks of a model have in common.

    Args:
        has_half_cache: keys and values are kept in 16 bits.
    """
    attention = architecture_of(config).build_block(config, 0, PointwiseOps()).attn
    return native.Shape(
        n_embd=config.n_embd,
        n_head=config.n_head,
        n_groups=config.n_query_groups,
        head_size=config.head_size,
        n_rotary=config.rope_n_elem,
        n_hidden=config.intermediate_size,
        parallel_residual=config.parallel_residual,
        shared_norm=config.shared_attention_norm,
        rotates_neighbours=config.rope_interleave,
        norms_all_heads=config.norm_qk_type == "olmo2",
        half_cache=has_half_cache,
        activation=_activation(config),
        scale=attention.mscale**2 / math.sqrt(config.attention_scores_scalar or config.head_size),
        cap=config.attention_logit_softcapping or 0.0,
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
        packer = Packer(library, ModuleBuilder(weights.below(own), f"layer {layer}", placement), placement, kept, own)
        self.parts: list[PackedLinear | PackedNorm] = []

        def linear(path: str, module: nn.Linear) -> native.Linear:
            packed = packer.linear(path, module)
            self.parts.append(packed)
            return packed.structure

        def norm(path: str, module: nn.Module | None) -> native.Norm:
            packed = packer.norm(path, module)
            self.parts.append(packed)
            return packed.structure

        attention, mlp = block.attn, block.mlp
        gated = hasattr(mlp, "fc_2")
        self.structure = native.Block(
            norm_1=norm("norm_1.", block.norm_1),
            norm_2=norm("norm_2.", block.norm_2),
            post_attention_norm=norm("post_attention_norm.", block.post_attention_norm),
            post_mlp_norm=norm("post_mlp_norm.", block.post_mlp_norm),
            norm_q=norm("attn.norm_q.", attention.norm_q),
            norm_k=norm("attn.norm_k.", attention.norm_k),
            qkv=linear("attn.qkv.", attention.qkv),
            attention_proj=linear("attn.proj.", attention.proj),
            fc_1=linear("mlp.fc_1.", mlp.fc_1) if gated else linear("mlp.fc.", mlp.fc),
            fc_2=linear("mlp.fc_2.", mlp.fc_2) if gated else native.Linear(),
            mlp_proj=linear("mlp.proj.", mlp.proj),
            window=config.sliding_window_size if attention.apply_sliding_window_attention else 0,
            rotary_table=0 if config.rope_indices is None else config.rope_indices[layer],
        )

    @property
    def n_bytes(self) -> int:
        """What its linear layers hold."""
        return sum(part.n_bytes for part in self.parts if isinstance(part, PackedLinear))

    @property
    def is_quantized(self) -> bool:
        """Whether any of its weights is."""
        return any(isinstance(part, PackedLinear) and part.is_quantized for part in self.parts)


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

    def linear(self, path: str, linear: nn.Linear) -> PackedLinear:
        """The layer `linear`, whose tensors have names below `path`. Raises `CheckpointError` as `PackedBlock` does."""
        shape, bias = linear.weight.shape, None
        weight = self.tensor(f"{path}weight", lambda: self._tiles(f"{path}weight", linear))
        if linear.bias is not None:
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

    def tensor(self, name: str, make: Make) -> torch.Tensor:
        """A tensor of the module: kept under that name, or made."""
        return self._kept.tensor(self._prefix + name, make)

    def _tiles(self, name: str, linear: nn.Linear) -> torch.Tensor:
        return pack(self._library, self._builder.weight(name, linear), self._placement.dtype)

    def _filled(self, name: str, shape: torch.Size) -> torch.Tensor:
        return F.pad(self._builder.find(name, shape).float(), (0, -shape.numel() % FILL))
