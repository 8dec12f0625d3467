"""Weights as the kernels read them: packed in tiles of outputs and inputs.

O outputs, I inputs of a linear layer. `FILL` is the multiple that both are filled up to, with zeros.
"""

import ctypes
import hashlib

import torch

from mdi.errors import CheckpointError
from mdi.model.backends.native import library as native
from mdi.model.quant import Weight
from mdi.model.tensors import mapped_empty

FILL = 32
# Tiles are bytes; the dtype of the tensor that holds them tells which kind they are.
_KINDS = {
    torch.float32: native.FLOAT32,
    torch.bfloat16: native.BFLOAT16,
    torch.float16: native.FLOAT16,
    torch.int8: native.INT8,
    torch.uint8: native.INT4,
}


class PackedLinear:
    """One linear layer, and the structure that describes it; its tensors live as long as this object."""

    def __init__(self, library: ctypes.CDLL, tiles: torch.Tensor, bias: torch.Tensor | None, shape: torch.Size) -> None:
        """
        Args:
            tiles: of `pack`.
            bias: float32, filled up; None: there is none.
            shape: (O, I).

        Raises `CheckpointError` where the tiles are of another shape: the kernels read what they are told to.
        """
        kind, (n_outputs, n_inputs) = _KINDS[tiles.dtype], shape
        n_filled = n_outputs + -n_outputs % FILL
        if tiles.nbytes != library.mdi_packed_bytes(kind, n_outputs, n_inputs):
            raise CheckpointError(f"packed weights of {tiles.nbytes} bytes are not those of {n_outputs} x {n_inputs}")
        if bias is not None and (bias.dtype, bias.numel()) != (torch.float32, n_filled):
            raise CheckpointError(f"a bias of {bias.numel()} elements for {n_outputs} outputs")
        self.tiles, self.bias = tiles, bias
        pointer = None if bias is None else bias.data_ptr()
        self.structure = native.Linear(tiles.data_ptr(), pointer, kind, n_outputs, n_inputs)

    @property
    def is_quantized(self) -> bool:
        return self.structure.type in (native.INT8, native.INT4)

    @property
    def n_bytes(self) -> int:
        """What it holds."""
        return self.tiles.nbytes + (0 if self.bias is None else self.bias.nbytes)


def pack(library: ctypes.CDLL, weight: Weight, dtype: torch.dtype) -> torch.Tensor:
    """The tiles of a weight (O, I).

    Args:
        weight: as it is stored. Floating point that fits in `dtype` keeps its own: the kernels compute in float32
            either way, so bfloat16 weights give the very results of the same weights in float32.
    """
    n_outputs, n_inputs = weight.shape
    data, scale = _as_packed(weight, dtype)
    kind = _KINDS[data.dtype]
    n_bytes = library.mdi_packed_bytes(kind, n_outputs, n_inputs)
    tiles = mapped_empty(torch.Size([n_bytes // data.itemsize]), data.dtype)
    scales = None if scale is None else scale.data_ptr()
    library.mdi_pack(kind, data.data_ptr(), scales, n_outputs, n_inputs, tiles.data_ptr())
    return tiles


def _as_packed(weight: Weight, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Data and scales, in the memory layout that `mdi_pack` takes."""
    if weight.scale is None:
        data = weight.data if weight.data.dtype.itemsize <= dtype.itemsize else weight.data.to(dtype)
        return data.contiguous(), None
    n_outputs, n_inputs = weight.shape
    pairs = (n_outputs, -(-n_inputs // FILL), *([2] if weight.mode == "int4" else []))
    if weight.scale.dtype != torch.float16 or weight.scale.shape != pairs:
        raise CheckpointError(f"the scales of a quantized weight are {tuple(weight.scale.shape)}, not {pairs}")
    return weight.data.contiguous(), weight.scale.contiguous()


def layout_of(library: ctypes.CDLL) -> str:
    """Equal for libraries that pack alike, whatever they were compiled for and from: a hash of what they make of a
    pattern.
    """
    n_outputs, n_inputs = 40, 72
    pattern = ((torch.arange(n_outputs * n_inputs * 4) * 7) % 251).to(torch.uint8)  # no two neighbours are equal
    digest = hashlib.blake2b(digest_size=16)
    for kind in _KINDS.values():
        tiles = torch.zeros(library.mdi_packed_bytes(kind, n_outputs, n_inputs), dtype=torch.uint8)
        pointer = pattern.data_ptr()
        library.mdi_pack(kind, pointer, pointer, n_outputs, n_inputs, tiles.data_ptr())
        digest.update(tiles.numpy().data)
    return digest.hexdigest()
