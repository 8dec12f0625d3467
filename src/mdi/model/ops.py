"""Element-wise ops between the matrix products of a block, and their compilation.

N rows in the message, C = n_embd, H heads (of queries and keys together), D head size.
"""

import torch
import torch.nn.functional as F


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: torch.Tensor, share: float) -> torch.Tensor:
    """Root mean square layer normalization (arXiv 1910.07467) of rows (N, C); `share` is 1 / C."""
    length = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32)
    scale = torch.addcmul(eps, length, length, value=share).rsqrt_()
    return (x * scale).mul_(weight).to(x.dtype)


def swiglu(gate_value: torch.Tensor) -> torch.Tensor:
    """SiLU of the left half of the columns times the right half (arXiv 2002.05202)."""
    gate, value = gate_value.chunk(2, dim=-1)
    return F.silu(gate).mul_(value)


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotary embedding (arXiv 2104.09864) of heads (N, H, D) by rows of `shapes.rotary_tables`, (N, 1, D)."""
    return (x * cos).addcmul_(x.roll(-(x.size(-1) // 2), -1), sin).to(x.dtype)


class PointwiseOps:
    """The element-wise ops of one node, eager or compiled."""

    def __init__(self) -> None:
        self.use_eager()

    def use_eager(self) -> None:
        """Use the eager functions."""
        self.rms_norm, self.swiglu, self.rotate = rms_norm, swiglu, rotate

    def compile(self) -> None:
        """Compile them, for any number of rows; torch does so when they are called next."""
        from torch._inductor import config as inductor  # slow to import, and only needed here

        inductor.compile_threads = 1  # no pool of processes that outlives the compilation
        self.rms_norm = torch.compile(rms_norm, dynamic=True)
        self.swiglu = torch.compile(swiglu, dynamic=True)
        self.rotate = torch.compile(rotate, dynamic=True)
