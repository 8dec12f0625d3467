"""Weights as the kernels read them: packed in tiles of outputs and inputs, in memory of their own.

O outputs, I inputs of a linear layer. `fill` is the multiple that both are filled up to, with zeros.
"""

import ctypes

import torch
import torch.nn.functional as F

from mdi.errors import CheckpointError
from mdi.model.backends.native import library as native
from mdi.model.quant import Weight
from mdi.model.tensors import mapped_empty

FILL = 32
_TYPES = {torch.float32: native.FLOAT32, torch.bfloat16: native.BFLOAT16, torch.float16: native.FLOAT16}


class PackedLinear:
    """One linear layer, and the structure that describes it; its memory lives as long as this object."""

    def __init__(self, library: ctypes.CDLL, weight: Weight, bias: torch.Tensor | None, dtype: torch.dtype) -> None:
        """
        Args:
            weight: as it is stored. Floating point that fits in `dtype` keeps its own: the kernels compute in float32
                either way, so bfloat16 weights give the very results of the same weights in float32.
        """
        n_outputs, n_inputs = weight.shape
        data, scale, kind = _as_packed(weight, dtype)
        self.tiles = mapped_empty(torch.Size([library.mdi_packed_bytes(kind, n_outputs, n_inputs)]), torch.uint8)
        scales = None if scale is None else scale.data_ptr()
        library.mdi_pack(kind, data.data_ptr(), scales, n_outputs, n_inputs, self.tiles.data_ptr())
        self.bias = None if bias is None else F.pad(bias.float(), (0, -n_outputs % FILL))
        pointer = None if self.bias is None else self.bias.data_ptr()
        self.structure = native.Linear(self.tiles.data_ptr(), pointer, kind, n_outputs, n_inputs)

    @property
    def is_quantized(self) -> bool:
        return self.structure.type in (native.INT8, native.INT4)

    @property
    def n_bytes(self) -> int:
        """What it holds."""
        return self.tiles.nbytes + (0 if self.bias is None else self.bias.nbytes)


def _as_packed(weight: Weight, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor | None, int]:
    """Data, scales and type, in the memory layout that `mdi_pack` takes."""
    if weight.scale is None:
        data = weight.data if weight.data.dtype.itemsize <= dtype.itemsize else weight.data.to(dtype)
        return data.contiguous(), None, _TYPES[data.dtype]
    n_outputs, n_inputs = weight.shape
    pairs = (n_outputs, -(-n_inputs // FILL), *([2] if weight.mode == "int4" else []))
    if weight.scale.dtype != torch.float16 or weight.scale.shape != pairs:
        raise CheckpointError(f"the scales of a quantized weight are {tuple(weight.scale.shape)}, not {pairs}")
    return weight.data.contiguous(), weight.scale.contiguous(), native.INT4 if weight.mode == "int4" else native.INT8
