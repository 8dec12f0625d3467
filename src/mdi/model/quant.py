"""Weights of linear layers in fewer bits: the formats, as they lie in chunk files.

O outputs, I inputs of a linear layer, B = ceil(I / 32) blocks of 32 inputs, the last one shorter where 32 does not
divide I. The weight keeps its name; what the integers of each block mean stands beside it under `<name>_scale`.

    int8  weight int8 (O, I), scale float16 (O, B): value = integer * scale
    int4  weight uint8 (O, I / 2), two integers from 0 to 15 a byte, the first in the low bits;
          scale float16 (O, B, 2), pairs of scale and minimum: value = integer * scale + minimum

These are the values of GGUF's Q8_0 and Q4_1, and rounding gives the integers and scales of ggml's reference quantizers,
bit for bit. A Q4_0 block is one of int4 whose minimum is -8 * scale.

The embedding, norms, biases and the routers of mixtures of experts keep their precision. The head, which is where
int4 loses most, and a layer whose width is no multiple of 32 take int8 where int4 is asked for.
"""

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from mdi.errors import CheckpointError, ConfigError
from mdi.formats import MODES, Mode
from mdi.installation import program_name

GROUP = 32  # inputs of a block
STEP_ELEMENTS = 1 << 18  # quantized at a time: what is in between stays in the cache
SCALE_SUFFIX = "_scale"
_LOOKED_UP = ("wte.weight", "wpe.weight")  # rows of them, in the CPU's memory
_BELOW_HALF = 0.5 - 2.0**-25  # the float32 before 0.5


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


def is_quantized_part(name: str, names: Container[str]) -> bool:
    """Whether the tensor is one of the parts, integers or scale, of a weight that is quantized."""
    return name + SCALE_SUFFIX in names or (name.endswith(SCALE_SUFFIX) and name.removesuffix(SCALE_SUFFIX) in names)


def mode_for(name: str, shape: Sequence[int], mode: Mode) -> Mode:
    """How a tensor of the model is stored where `mode` is asked for."""
    if not is_quantized_name(name):
        return "none"
    return "int8" if mode == "int4" and (name.startswith("lm_head.") or shape[-1] % GROUP) else mode


def part_shapes(shape: torch.Size, mode: Mode) -> dict[str, torch.Size]:
    """The shapes of the parts that a weight (..., O, I) has in a mode, by the suffix of their names."""
    if mode == "none":
        return {"": shape}
    *outer, n_inputs = shape
    blocks = (*outer, -(-n_inputs // GROUP))
    if mode == "int8":
        return {"": shape, SCALE_SUFFIX: torch.Size(blocks)}
    return {"": torch.Size((*outer, n_inputs // 2)), SCALE_SUFFIX: torch.Size((*blocks, 2))}


def weight_bytes(name: str, shape: torch.Size, dtype: torch.dtype, mode: Mode) -> int:
    """What a tensor of the model takes in a mode, or else in `dtype`, scales included."""
    parts = part_shapes(shape, mode_for(name, shape, mode))
    if SCALE_SUFFIX not in parts:
        return shape.numel() * dtype.itemsize
    return parts[""].numel() + parts[SCALE_SUFFIX].numel() * torch.float16.itemsize


def held_bytes(shapes: Mapping[str, torch.Size], dtype: torch.dtype, mode: Mode, device_type: str) -> int:
    """What tensors of these shapes take of a device's memory, at most; embeddings are always in the CPU's."""
    on_device = [name for name in shapes if device_type != "cuda" or not name.endswith(_LOOKED_UP)]
    return sum(weight_bytes(name, shapes[name], dtype, mode) for name in on_device)


def resolve(stored: Mode, wanted: Mode | None, what: str) -> Mode:
    """The mode to load a chunk with. Raises `ConfigError` where its weights have fewer bits than were asked for."""
    if stored == "none" or wanted in (None, stored):
        return wanted or stored
    raise ConfigError(
        f"--quantize {wanted}: {what} holds {stored} weights already; prepare the model with"
        f" {program_name('prepare_model')} --quantize {wanted}"
    )


def load_weight(weights: Mapping[str, torch.Tensor], name: str) -> Weight:
    """The weight `name` of a chunk.

    Raises `KeyError` where it is missing, `ValueError` for a shape of no format, `CheckpointError` for a former format.
    """
    weight = Weight(weights[name], weights.get(name + SCALE_SUFFIX))
    if _is_former(weight):
        raise CheckpointError(
            f"{name} was quantized by an earlier version of this program, in a format that this one does not read:"
            f" split the model again with {program_name('prepare_model')} --quantize {weight.mode}"
        )
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
    """Round a weight (O, I) to a format; `none` leaves it as it is. For int4, 32 has to divide I."""
    if mode == "none":
        return Weight(weight)
    to_format = _to_int4 if mode == "int4" else _to_int8
    step = max(1, STEP_ELEMENTS // weight.size(1))
    return join([to_format(weight[first : first + step]) for first in range(0, len(weight), step)])


def join(weights: Sequence[Weight]) -> Weight:
    """One weight with the outputs of several of the same format, side by side."""
    data, scales = torch.cat([weight.data for weight in weights]), [w.scale for w in weights if w.scale is not None]
    return Weight(data, torch.cat(scales) if scales else None)


def rows_of(weight: Weight, first: int, stop: int) -> Weight:
    """The outputs `first` to `stop` of a weight."""
    return Weight(weight.data[first:stop], None if weight.scale is None else weight.scale[first:stop])


def dequantize(weight: Weight) -> torch.Tensor:
    """The values (O, I) that a stored weight stands for; float32 where it is quantized."""
    if weight.scale is None:
        return weight.data
    scale = weight.scale.float()
    if weight.mode == "int8":
        blocks = _blocks(weight.data.float()) * scale[..., None]  # (O, B, 32)
    else:
        blocks = _blocks(unpack_int4(weight.data)) * scale[..., :1] + scale[..., 1:]
    return blocks.flatten(1)[:, : weight.shape[1]]


def unpack_int4(data: torch.Tensor) -> torch.Tensor:
    """uint8 (O, I / 2) -> int32 (O, I), from 0 to 15."""
    return torch.stack((data & 15, data >> 4), dim=-1).flatten(1).to(torch.int32)


def pack_int4(integers: torch.Tensor) -> torch.Tensor:
    """uint8 (O, I), from 0 to 15 -> uint8 (O, I / 2)."""
    return integers[:, ::2] | integers[:, 1::2] << 4


def _to_int8(weight: torch.Tensor) -> Weight:
    """As `quantize_row_q8_0_ref` of ggml."""
    blocks = _blocks(weight.float())
    scale = blocks.abs().amax(dim=-1, keepdim=True) / 127
    integers = _round_half_away(blocks * _inverse(scale)).flatten(1)
    return Weight(integers[:, : weight.size(1)].contiguous(), scale[..., 0].half())


def _to_int4(weight: torch.Tensor) -> Weight:
    """As `quantize_row_q4_1_ref` of ggml."""
    blocks = _blocks(weight.float())
    low, high = blocks.aminmax(dim=-1, keepdim=True)
    scale = (high - low) / 15
    integers = ((blocks - low) * _inverse(scale)).add_(0.5).clamp_(0, 15).to(torch.uint8)  # what is converted is cut
    return Weight(pack_int4(integers.flatten(1)), torch.cat((scale, low), dim=-1).half())


def _blocks(rows: torch.Tensor) -> torch.Tensor:
    """(O, I) -> (O, B, 32), the last block filled up with zeros."""
    return F.pad(rows, (0, -rows.size(1) % GROUP)).view(len(rows), -1, GROUP)


def _inverse(scale: torch.Tensor) -> torch.Tensor:
    """1 / scale, 0 for a scale of 0, or of so little that it has no inverse: float16 makes 0 of that."""
    return scale.reciprocal().nan_to_num_(nan=0, posinf=0, neginf=0)


def _round_half_away(x: torch.Tensor) -> torch.Tensor:
    """C's `roundf`, float32 -> int8. `torch.round` takes the even one of two integers that are equally near."""
    # 0.5 itself would lift the float before it to 1, in the rounding of the sum.
    return (x + torch.full_like(x, _BELOW_HALF).copysign_(x)).to(torch.int8)


def _is_well_formed(weight: Weight) -> bool:
    data, scale = weight.data, weight.scale
    if data.dim() != 2:
        return False
    if scale is None:
        return data.is_floating_point()
    if data.dtype not in (torch.int8, torch.uint8) or scale.dtype != torch.float16:
        return False
    if weight.mode == "int4" and weight.shape[-1] % GROUP:
        return False
    return scale.shape == part_shapes(weight.shape, weight.mode)[SCALE_SUFFIX]


def _is_former(weight: Weight) -> bool:
    """Whether it is in one of the formats before these: int8 with a float32 scale a row, int4 with bfloat16 pairs."""
    former = {torch.int8: torch.float32, torch.uint8: torch.bfloat16}
    return weight.scale is not None and former.get(weight.data.dtype) == weight.scale.dtype
