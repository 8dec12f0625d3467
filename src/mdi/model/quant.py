"""Weights of linear layers in fewer bits: the formats, as they lie in chunk files.

O outputs, I inputs of a linear layer. The weight keeps its name; what its integers mean stands beside
it under `<name>_scale`.

    int8  weight int8 (O, I), scale float32 (O): value = integer * scale of its row
    int4  weight uint8 (O, I / 2), two integers a byte, the first in the low bits; scale bfloat16 (I / 32, O, 2):
          value = (integer - 8) * scale + zero, with a pair (scale, zero) for each 32 inputs

The embedding, norms, biases and the routers of mixtures of experts keep their precision. The head, which is where
int4 loses most, and a layer whose width is no multiple of 32 take int8 where int4 is asked for.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from mdi.errors import ConfigError
from mdi.formats import MODES, Mode
from mdi.installation import program_name

GROUP = 32  # inputs that share an int4 scale
BLOCK_ELEMENTS = 1 << 20  # quantized at a time: what is in between stays in the cache, which is twice as fast
SCALE_SUFFIX = "_scale"
_TINY = 1e-30


@dataclass(frozen=True)
class Weight:
    """A linear layer's weight as it is stored: floating point, or integers with their scale."""

    data: torch.Tensor
    scale: torch.Tensor | None = None

    @property
    def mode(self) -> Mode:
        if self.scale is None:
            return "none"
        return "int4" if self.data.dtype == torch.uint8 else "int8"

    @property
    def parts(self) -> dict[str, torch.Tensor]:
        """What is stored, by the suffix of its name."""
        return {"": self.data} if self.scale is None else {"": self.data, SCALE_SUFFIX: self.scale}

    @property
    def shape(self) -> torch.Size:
        """(O, I), however it is stored."""
        rows, columns = self.data.shape
        return torch.Size((rows, columns * 2 if self.mode == "int4" else columns))


def is_quantized_name(name: str) -> bool:
    """Whether quantization applies to the tensor: the weight of a linear layer that is no router."""
    parts = name.split(".")
    linear = parts[-1] == "weight" and (parts[0] == "lm_head" or {"attn", "mlp"} & set(parts))
    return bool(linear) and "gate" not in parts and not any(part.startswith("norm") for part in parts)


def mode_for(name: str, mode: Mode) -> Mode:
    """How a tensor of the model is stored where `mode` is asked for."""
    if not is_quantized_name(name):
        return "none"
    return "int8" if mode == "int4" and name.startswith("lm_head.") else mode


def weight_bytes(name: str, n_elements: int, dtype: torch.dtype, mode: Mode) -> int:
    """What a tensor of the model takes in a mode, or else in `dtype`, scales included."""
    mode = mode_for(name, mode)
    if mode == "none":
        return n_elements * dtype.itemsize
    return n_elements + n_elements // 64 if mode == "int8" else n_elements // 2 + n_elements // (GROUP // 4)


def held_bytes(shapes: Mapping[str, torch.Size], dtype: torch.dtype, mode: Mode, device_type: str) -> int:
    """What tensors of these shapes take of a device's memory, at most; the embedding is always in the CPU's."""
    on_device = [name for name in shapes if device_type != "cuda" or "wte" not in name]
    return sum(weight_bytes(name, shapes[name].numel(), dtype, mode) for name in on_device)


def resolve(stored: Mode, wanted: Mode | None, what: str) -> Mode:
    """The mode to load a chunk with. Raises `ConfigError` where its weights have fewer bits than were asked for."""
    if stored == "none" or wanted in (None, stored):
        return wanted or stored
    raise ConfigError(
        f"--quantize {wanted}: {what} holds {stored} weights already; split the model with"
        f" {program_name('prepare_model')} --quantize {wanted}"
    )


def load_weight(weights: Mapping[str, torch.Tensor], name: str) -> Weight:
    """The weight `name` of a chunk. Raises `KeyError` where it is missing, `ValueError` for a shape of no format."""
    weight = Weight(weights[name], weights.get(name + SCALE_SUFFIX))
    if not _is_well_formed(weight):
        raise ValueError(f"{name} is not in one of the formats {', '.join(MODES)}")
    return weight


def mode_of(weights: Mapping[str, torch.Tensor]) -> Mode:
    """How the weights of a chunk are stored: the mode with the fewest bits among them."""
    modes = {
        load_weight(weights, name).mode for name in weights if is_quantized_name(name) and weights[name].dim() == 2
    }
    return max(modes, key=MODES.index, default="none")


def quantize(weight: torch.Tensor, mode: Mode) -> Weight:
    """Round a weight (O, I) to the nearest values of a format; `none` leaves it as it is."""
    if mode == "none":
        return Weight(weight)
    to_format = _to_int4 if mode == "int4" and weight.size(1) % GROUP == 0 else _to_int8
    step = max(1, BLOCK_ELEMENTS // weight.size(1))
    return join([to_format(weight[first : first + step]) for first in range(0, len(weight), step)])


def join(weights: Sequence[Weight]) -> Weight:
    """One weight with the outputs of several of the same format, side by side."""
    data, scales = torch.cat([weight.data for weight in weights]), [w.scale for w in weights if w.scale is not None]
    return Weight(data, torch.cat(scales, dim=int(weights[0].mode == "int4")) if scales else None)


def dequantize(weight: Weight) -> torch.Tensor:
    """The values (O, I) that a stored weight stands for; float32 where it is quantized."""
    if weight.scale is None:
        return weight.data
    if weight.mode == "int8":
        return weight.data.float() * weight.scale[:, None]
    n_rows, n_columns = weight.shape
    scale, zero = weight.scale.float().transpose(0, 1).unbind(-1)  # (O, I / 32)
    integers = unpack_int4(weight.data).view(n_rows, -1, GROUP) - 8
    return (integers * scale[..., None] + zero[..., None]).view(n_rows, n_columns)


def unpack_int4(data: torch.Tensor) -> torch.Tensor:
    """uint8 (O, I / 2) -> int32 (O, I)."""
    return torch.stack((data & 15, data >> 4), dim=-1).flatten(1).to(torch.int32)


def _to_int8(weight: torch.Tensor) -> Weight:
    weight = weight.float()
    scale = weight.abs().amax(dim=1).clamp_min_(_TINY) / 127
    return Weight((weight / scale[:, None]).round_().to(torch.int8), scale)


def _to_int4(weight: torch.Tensor) -> Weight:
    groups = weight.float().view(len(weight), -1, GROUP)  # (O, I / 32, 32)
    low, high = groups.aminmax(dim=-1, keepdim=True)
    scale = ((high - low) / 15).bfloat16()
    zero = (low + 8 * scale.float()).bfloat16()
    integers = (groups - zero.float()).div_(scale.float().clamp_min_(_TINY)).round_().add_(8).clamp_(0, 15)
    packed = integers.to(torch.uint8).flatten(1)
    pairs = torch.cat((scale, zero), dim=-1).transpose(0, 1).contiguous()
    return Weight(packed[:, ::2] | packed[:, 1::2] << 4, pairs)


def _is_well_formed(weight: Weight) -> bool:
    data, scale = weight.data, weight.scale
    if data.dim() != 2:
        return False
    if scale is None:
        return data.is_floating_point()
    n_rows, n_bytes = data.shape
    if data.dtype == torch.int8:
        return scale.dtype == torch.float32 and scale.shape == (n_rows,)
    pairs = (n_bytes * 2 // GROUP, n_rows, 2)
    return data.dtype == torch.uint8 and scale.dtype == torch.bfloat16 and scale.shape == pairs
