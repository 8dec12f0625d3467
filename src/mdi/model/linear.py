"""Linear layers as the device computes them fastest: plain, packed for oneDNN, int8 or int4.

A step of decoding reads every weight once, for one row or for several, so the layout of the weights
decides how fast it is. O outputs, I inputs, N rows.
"""

import functools
import platform
import warnings
from collections.abc import Callable

import torch
import torch.nn.functional as F

from mdi.errors import ConfigError
from mdi.model.quant import GROUP, Weight, dequantize, rows_of, unpack_int4
from mdi.model.tensors import mapped_empty
from mdi.strings import one_line

PACKED_MAX_INPUTS = 1024  # from here on the packed layout is slower for a single row
# oneDNN keeps 0.6 MB of code for each layer shape and number of rows that it has met, 300 MB for messages of 1 to 128
# rows. So larger messages, which are pieces of prompts, are filled up to a multiple.
PAD_ABOVE_ROWS, ROW_STEP = 16, 8
_LEVELS = 127  # of int8 activations, on either side of zero
_STEP_ROWS = 64  # of weights, rounded at a time: larger ones left 90 MB of holes in the heap
_TINY = 1e-30


def make_linear(
    weight: Weight, bias: torch.Tensor | None, *, device: torch.device, dtype: torch.dtype, rows: int
) -> Callable[[torch.Tensor], torch.Tensor]:
    """What maps rows (N, I) to (N, O) in `dtype` on `device`.

    Args:
        rows: what a message usually carries; decides between layouts.

    Raises `ConfigError` where torch has no kernel for the format on this device.
    """
    bias = None if bias is None else bias.to(device, dtype)
    if weight.mode == "none":
        if (
            device.type == "cpu"
            and dtype == torch.float32
            and _packs()
            and (rows > 1 or weight.data.size(1) < PACKED_MAX_INPUTS)
        ):
            return PackedLinear(weight.data, bias)
        return PlainLinear(weight.data.to(device, dtype), bias)
    try:
        if weight.mode == "int8":
            return Int8Linear(weight, bias) if device.type == "cpu" else DeviceInt8Linear(weight, bias, device, dtype)
        return Int4Linear(weight, bias) if device.type == "cpu" else DeviceInt4Linear(weight, bias, device)
    except (RuntimeError, AttributeError) as exc:
        if "memory" in str(exc):
            raise
        raise ConfigError(
            f"--quantize {weight.mode}: torch {torch.__version__} has no kernel for it on {device}"
            f" ({one_line(exc)}); use another mode or device"
        ) from exc


class PlainLinear:
    """What `torch.nn.Linear` computes."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        self.weight, self._bias = weight, bias

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, self.weight, self._bias)


class PackedLinear:
    """float32 in oneDNN's own layout: two to eight rows take 1.3 to 3.5 times less time than in torch's."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        if weight.dtype != torch.float32:  # beside the heap, where what is freed leaves holes
            weight = mapped_empty(weight.shape, torch.float32).copy_(weight)
        self._weight = torch.ops.mkldnn._reorder_linear_weight(weight)
        self._bias = bias

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        n_rows, n_more = len(x), -len(x) % ROW_STEP
        if n_rows > PAD_ABOVE_ROWS and n_more:
            x = F.pad(x, (0, 0, 0, n_more))
        y: torch.Tensor = torch.ops.mkldnn._linear_pointwise(x, self._weight, self._bias, "none", [], "")
        return y[:n_rows]


class Int8Linear:
    """int8 weights and activations on the CPU, by torch's quantized engine (FBGEMM; QNNPACK on ARM).

    The engine knows one scale an output, so the blocks of its weight are rounded once more, to that one.

    Each row is divided by its own maximum before it is rounded, so what comes out of it does not depend
    on the rows that travel with it. Rows keep 8 bits, of which few are left for most values beside an outlier;
    the weights of an output pay for that, with half a bit on average: see `_largest_pairs`.
    """

    def __init__(self, weight: Weight, bias: torch.Tensor | None) -> None:
        self._packed, self._bias = _prepack(*_one_scale_an_output(weight, _largest_pairs)), bias
        self._multiply = _int8_kernel()

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        largest = x.abs().amax(-1, keepdim=True).float().clamp_min_(_TINY)
        y = self._multiply(x / largest, self._packed).mul_(largest)
        if self._bias is not None:
            y += self._bias
        return y.to(x.dtype)


class Int4Linear:
    """int4 weights on the CPU, multiplied in bfloat16: a quarter of bfloat16's memory, slower than int8."""

    def __init__(self, weight: Weight, bias: torch.Tensor | None) -> None:
        self._pairs, self._bias = _int4_pairs(weight), bias
        self._packed = torch.empty_like(weight.data)
        step = 64 * max(1, (1 << 16) // weight.data.size(1))  # rows of whole 64-row blocks, unpacked a few MB at a time
        for first in range(0, len(weight.data), step):
            integers = unpack_int4(weight.data[first : first + step])
            self._packed[first : first + step] = torch.ops.aten._convert_weight_to_int4pack_for_cpu(integers, 1)
        self(torch.zeros(1, weight.shape[1]))  # whether there is a kernel for this shape

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        multiply = torch.ops.aten._weight_int4pack_mm_for_cpu
        y: torch.Tensor = multiply(x.bfloat16(), self._packed, GROUP, self._pairs).to(x.dtype)
        return y if self._bias is None else y.add_(self._bias)


class DeviceInt8Linear:
    """int8 weights on a GPU, multiplied in the compute dtype by torch's kernel, which knows one scale an output."""

    def __init__(self, weight: Weight, bias: torch.Tensor | None, device: torch.device, dtype: torch.dtype) -> None:
        data, scale = _one_scale_an_output(weight, _largest)
        self._weight, self._scale, self._bias = data.to(device), scale.to(device, dtype), bias
        self(torch.zeros(1, weight.shape[1], device=device, dtype=dtype))  # whether there is a kernel

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = torch.ops.aten._weight_int8pack_mm(x, self._weight, self._scale)
        return y if self._bias is None else y + self._bias


class DeviceInt4Linear:
    """int4 weights on a GPU, multiplied in bfloat16 by torch's kernel."""

    def __init__(self, weight: Weight, bias: torch.Tensor | None, device: torch.device) -> None:
        self._pairs, self._bias = _int4_pairs(weight).to(device), bias
        data = weight.data.to(device)
        swapped = data << 4 | data >> 4  # this kernel wants the first integer in the high bits
        self._packed = torch.ops.aten._convert_weight_to_int4pack(swapped, 8)
        self(torch.zeros(1, weight.shape[1], device=device))  # whether there is a kernel

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        multiply = torch.ops.aten._weight_int4pack_mm
        y: torch.Tensor = multiply(x.bfloat16(), self._packed, GROUP, self._pairs).to(x.dtype)
        return y if self._bias is None else y + self._bias


@functools.cache
def _packs() -> bool:
    """Whether oneDNN's packed layout is to be had, and known to be faster: it was measured on x86 only."""
    return platform.machine() in ("x86_64", "AMD64") and bool(torch._C._has_mkldnn)


@functools.cache
def _int8_kernel() -> Callable[[torch.Tensor, object], torch.Tensor]:
    """The quantized engine's product of rows (N, I) within -1 and 1 and packed weights -> float32 (N, O).

    Both forms round the rows with a scale that is fixed beforehand.
    """
    try:
        _multiply_fixed(torch.ones(1, 8), _prepack(torch.ones(8, 8, dtype=torch.int8), torch.ones(8)))
    except (RuntimeError, NotImplementedError, AttributeError):  # QNNPACK and oneDNN do not have it
        return _multiply_dynamic
    return _multiply_fixed


def _one_scale_an_output(
    weight: Weight, largest: Callable[[torch.Tensor], torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor]:
    """An int8 weight (O, I) rounded again: integers (O, I) and one float32 scale for each of its outputs (O).

    `largest` is what becomes 127, of each output: rows (N, I) -> (N).
    """
    integers, scales = mapped_empty(weight.shape, torch.int8), []
    for first in range(0, len(integers), _STEP_ROWS):
        rows = dequantize(rows_of(weight, first, first + _STEP_ROWS))
        scales.append(largest(rows).clamp_min_(_TINY) / _LEVELS)
        integers[first : first + _STEP_ROWS] = (rows / scales[-1][:, None]).round_()
    return integers, torch.cat(scales)


def _largest(rows: torch.Tensor) -> torch.Tensor:
    return rows.abs().amax(dim=1)


def _largest_pairs(rows: torch.Tensor) -> torch.Tensor:
    """The largest sum of the absolute values of two neighbours in each row, so that products of pairs fit 16 bits.

    Without VNNI the engine adds the products of two neighbouring inputs in 16 bits, which saturate.
    """
    # FBGEMM's AVX2 kernel multiplies by vpmaddubsw: x0 * w0 + x1 * w1 with x unsigned, up to 255, in int16, clipped
    # silently at 2^15 - 1. 255 * (|w0| + |w1|) stays below that for a sum of at most 128: 127, and one for rounding
    # both. VNNI adds in 32 bits. Done on every CPU, so that the nodes of a ring compute with the same weights whatever
    # they have.
    return F.pad(rows.abs(), (0, rows.size(1) % 2)).view(len(rows), -1, 2).sum(dim=-1).amax(dim=1)


def _int4_pairs(weight: Weight) -> torch.Tensor:
    """What torch's int4 kernels want beside integers: bfloat16 (B, O, 2), value = (integer - 8) * scale + middle."""
    assert weight.scale is not None
    scale, minimum = weight.scale.float().unbind(-1)  # (O, B)
    return torch.stack((scale, minimum + 8 * scale), dim=-1).transpose(0, 1).bfloat16().contiguous()


def _prepack(data: torch.Tensor, scale: torch.Tensor) -> object:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # quantized tensors are called deprecated
        zero_points = torch.zeros(len(data), dtype=torch.long)
        return torch.ops.quantized.linear_prepack(
            torch._make_per_channel_quantized_tensor(data, scale, zero_points, 0), None
        )


def _multiply_fixed(x: torch.Tensor, packed: object) -> torch.Tensor:
    multiply = torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32
    y: torch.Tensor = multiply(x, 1 / _LEVELS, _LEVELS + 1, packed)
    return y


def _multiply_dynamic(x: torch.Tensor, packed: object) -> torch.Tensor:
    """The scale is taken from the largest and the smallest value: a last row holds both 1 and -1."""
    bounds = torch.ones(1, x.size(1))
    bounds[0, 0] = -1
    y: torch.Tensor = torch.ops.quantized.linear_dynamic(torch.cat((x, bounds)), packed, False)
    return y[:-1]
