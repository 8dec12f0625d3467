"""Blocks of GGUF tensors -> weights of linear layers, with the same integers and scales.

Every block holds 32 weights: two bytes of scale, in Q4_1 two of a minimum, then integers. Those of 4 bits lie in
halves: the first 16 of a block in the low bits of its bytes, the others in the high ones.
"""

from collections.abc import Callable

import gguf
import torch

from mdi.formats import Mode
from mdi.model.quant import Weight, pack_int4

_Type = gguf.GGMLQuantizationType


def take_over(rows: torch.Tensor, kind: gguf.GGMLQuantizationType, mode: Mode) -> Weight | None:
    """Rows (O, bytes of a row) of a tensor as a weight in `mode`; None where it has no such blocks."""
    if (read := _READERS.get((kind, mode))) is None:
        return None
    return read(rows.view(len(rows), -1, gguf.GGML_QUANT_SIZES[kind][1]))


def _int8_of_q8_0(blocks: torch.Tensor) -> Weight:
    return Weight(blocks[..., 2:].flatten(1).view(torch.int8), _floats(blocks, 1)[..., 0])


def _int8_of_q4_0(blocks: torch.Tensor) -> Weight:
    """4 bits fit into 8: its integers from 0 to 15 stand for -8 to 7."""
    return Weight((_integers(blocks[..., 2:]).to(torch.int8) - 8).flatten(1), _floats(blocks, 1)[..., 0])


def _int4_of_q4_0(blocks: torch.Tensor) -> Weight:
    scale = _floats(blocks, 1)
    return Weight(pack_int4(_integers(blocks[..., 2:]).flatten(1)), torch.cat((scale, scale * -8), dim=-1))


def _int4_of_q4_1(blocks: torch.Tensor) -> Weight:
    return Weight(pack_int4(_integers(blocks[..., 4:]).flatten(1)), _floats(blocks, 2))


def _floats(blocks: torch.Tensor, n: int) -> torch.Tensor:
    """The float16 numbers that blocks (O, B, bytes) begin with: (O, B, n)."""
    return blocks[..., : 2 * n].contiguous().view(torch.float16)


def _integers(nibbles: torch.Tensor) -> torch.Tensor:
    """uint8 (O, B, 16) -> uint8 (O, B, 32), from 0 to 15."""
    return torch.cat((nibbles & 15, nibbles >> 4), dim=-1)


_READERS: dict[tuple[gguf.GGMLQuantizationType, Mode], Callable[[torch.Tensor], Weight]] = {
    (_Type.Q8_0, "int8"): _int8_of_q8_0,
    (_Type.Q4_0, "int8"): _int8_of_q4_0,
    (_Type.Q4_0, "int4"): _int4_of_q4_0,
    (_Type.Q4_1, "int4"): _int4_of_q4_1,
}
