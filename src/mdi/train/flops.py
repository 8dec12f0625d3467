"""How much of what a device can compute training uses: model FLOPs utilisation.

Chowdhery et al., "PaLM", 2022, appendix B: what the model needs, not what was computed, over what the device can do. A
matrix product has two operations for each of its weights and tokens, and twice as many again for the gradients of its
inputs and of its weights. A frozen weight has no gradient.
"""

import contextlib
import time
import warnings
from dataclasses import dataclass

import torch
from lightning.fabric.utilities.throughput import get_available_flops

from mdi.model.architecture import ModelConfig, architecture_of
from mdi.model.shapes import model_shapes

_TRIALS = 5
_SIDES = {"cpu": 512}  # of the matrices that a device is measured with
_SIDE = 4096  # on other devices, which a smaller product keeps waiting


@dataclass(frozen=True)
class Peak:
    """The most operations that a device computes in a second."""

    flops: float
    is_measured: bool  # by a product of matrices, where its maker's figure is not known

    def __str__(self) -> str:
        scale, unit = (1e12, "TFLOP/s") if self.flops >= 1e12 else (1e9, "GFLOP/s")
        return f"{'measured ' if self.is_measured else ''}peak of {self.flops / scale:.3g} {unit}"


def flops_per_token(config: ModelConfig, context: int, *, is_frozen: bool = False) -> float:
    """Operations of a token in a step of training, with its part of the attention over `context` positions.

    `is_frozen` if adapters are trained in place of the weights; their own products, some per cent, are left out.
    """
    n_weights = sum(
        shape.numel() * _used(name, config) for name, shape in model_shapes(config).items() if len(shape) >= 2
    )
    passes = 4 if is_frozen else 6
    return float(passes * n_weights + 12 * config.n_layer * config.n_head * config.head_size * context)


def _used(name: str, config: ModelConfig) -> float:
    """The part of a weight that a token is multiplied with: embeddings are looked up, and few experts are asked."""
    architecture = architecture_of(config)
    if name in (architecture.embedding, architecture.positions):
        return 0
    return float(config.n_expert_per_token / config.n_expert) if ".experts." in name else 1


def peak_of(device: torch.device, dtype: torch.dtype) -> Peak:
    """What the maker says of a known GPU; any other device multiplies matrices for a moment."""
    with warnings.catch_warnings(), contextlib.suppress(LookupError):  # of names that it cannot read
        warnings.simplefilter("ignore")
        if known := get_available_flops(device, dtype):
            return Peak(known, is_measured=False)
    return Peak(_measure(device, dtype), is_measured=True)


def _measure(device: torch.device, dtype: torch.dtype) -> float:
    side = _SIDES.get(device.type, _SIDE)
    matrix = torch.randn(side, side, generator=torch.Generator().manual_seed(0)).to(device, dtype)
    return 2 * side**3 / min(_seconds(matrix) for _ in range(_TRIALS))


def _seconds(matrix: torch.Tensor) -> float:
    began_s = time.perf_counter()
    (matrix @ matrix)[0, 0].item()  # waits for the device
    return time.perf_counter() - began_s
