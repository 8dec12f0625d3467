"""A litgpt module without memory and its weights -> the same computation here, in fewer operations.

Each weight is read when it is built in, and goes to its device, dtype and layout by itself, so that no more than one of
them, or one and its neighbour that it is joined with, is ever held twice.

The parts that do the work are plain callables on rows (N, C) instead of modules on batches: of a decoding step of a
small model, `nn.Module`'s way of finding and calling its children took a fifth.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from mdi.errors import CheckpointError
from mdi.formats import BackendChoice, KvDtype, Mode
from mdi.liveness import no_tick
from mdi.model.linear import make_linear
from mdi.model.litgpt_modules import LLaMAMLP, LLaMAMoE, RMSNorm
from mdi.model.ops import PointwiseOps
from mdi.model.packed import IN_MEMORY, PackedWeights
from mdi.model.quant import Weight, join, load_weight, mode_for, quantize
from mdi.model.weights import Weights
from mdi.strings import one_line

Rows = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Placement:
    """Where and how a node computes."""

    device: torch.device
    dtype: torch.dtype
    quantize: Mode = "none"  # for weights that are not quantized already
    kv_dtype: KvDtype | None = None  # of keys and values; None: as exact as the weights
    rows: int = 1  # rows that a message usually carries
    compile_ops: bool = False  # where that makes a step faster
    backend: BackendChoice = "auto"
    tick: Callable[[], None] = no_tick  # called for each tensor: loading gets on
    packed: PackedWeights = IN_MEMORY  # where a backend finds what it laid out before
    ops: PointwiseOps = field(default_factory=PointwiseOps)


class FusedRMSNorm:
    """litgpt's `RMSNorm`."""

    def __init__(self, norm: RMSNorm, ops: PointwiseOps) -> None:
        self._weight = 1 + norm.weight if norm.add_unit_offset else norm.weight.data
        self._eps = torch.tensor(norm.eps, device=norm.weight.device)
        self._share, self._ops = 1 / norm.weight.numel(), ops

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return self._ops.rms_norm(x, self._weight, self._eps, self._share)


class GatedMLP:
    """litgpt's `LLaMAMLP`, with one product for gate and value."""

    def __init__(self, gate_value: Rows, proj: Rows, ops: PointwiseOps) -> None:
        self._gate_value, self._proj, self._ops = gate_value, proj, ops

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return self._proj(self._ops.swiglu(self._gate_value(x)))


class ModuleBuilder:
    """Gives modules their weights."""

    def __init__(self, weights: Mapping[str, torch.Tensor], what: str, placement: Placement) -> None:
        """`weights` are those of one module, under the names that it knows them by; `what` is for errors."""
        self._weights, self._what, self._placement = Weights.of(weights), what, placement

    def build(self, module: nn.Module, path: str = "") -> Any:
        """What computes `module` with its weights: itself with other parts, or a callable in its place.

        Raises `CheckpointError` where a weight is missing or of another shape, `ConfigError` if no kernel is available.
        """
        if isinstance(module, nn.Linear):
            return self._linear({path: module})
        if type(module) is LLaMAMLP:
            return self._gated_mlp(path, module)
        if isinstance(module, nn.ModuleList):
            return [self.build(child, f"{path}{i}.") for i, child in enumerate(module)]
        for name, child in list(module.named_children()):
            part = self.build(child, f"{path}{name}.")
            if name == "shared_experts":  # litgpt hands them the batch, not its rows
                part = _on_a_batch(part)
            delattr(module, name)
            object.__setattr__(module, name, part)  # where Python finds it at once
        for name, empty in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]:
            setattr(module, name, self._tensor(path + name, empty))
        return self._on_rows(module)

    def _gated_mlp(self, path: str, mlp: LLaMAMLP) -> GatedMLP:
        gate_value = self._linear({f"{path}fc_1.": mlp.fc_1, f"{path}fc_2.": mlp.fc_2})
        return GatedMLP(gate_value, self._linear({f"{path}proj.": mlp.proj}), self._placement.ops)

    def _linear(self, parts: Mapping[str, nn.Linear]) -> Rows:
        """One layer that yields the outputs of all `parts`, by path, side by side."""
        biases = [self.find(f"{path}bias", part.bias.shape) for path, part in parts.items() if part.bias is not None]
        place = self._placement
        layer = make_linear(
            self._joined(parts),
            torch.cat(biases) if biases else None,
            device=place.device,
            dtype=place.dtype,
            rows=place.rows,
        )
        place.tick()
        return layer

    def _joined(self, parts: Mapping[str, nn.Linear]) -> Weight:
        weights = [self.weight(f"{path}weight", part) for path, part in parts.items()]
        self._placement.tick()
        return weights[0] if len(weights) == 1 else join(weights)

    def weight(self, name: str, linear: nn.Linear) -> Weight:
        """The weight of `linear`, quantized as the placement asks. Raises `CheckpointError` as `build` does."""
        try:
            weight = load_weight(self._weights, name)
        except (KeyError, ValueError) as exc:
            raise self._mismatch_error(one_line(exc)) from exc
        if weight.shape != linear.weight.shape:
            raise self._mismatch_error(f"{name} is {tuple(weight.shape)}, not {tuple(linear.weight.shape)}")
        if weight.mode == "none":
            return quantize(weight.data, mode_for(name, weight.shape, self._placement.quantize))
        return weight

    def _tensor(self, name: str, empty: torch.Tensor) -> torch.Tensor | nn.Parameter:
        tensor = self.find(name, empty.shape)
        tensor = tensor.to(self._placement.device, self._placement.dtype if tensor.is_floating_point() else None)
        return nn.Parameter(tensor, requires_grad=False) if isinstance(empty, nn.Parameter) else tensor

    def find(self, name: str, shape: torch.Size) -> torch.Tensor:
        """The tensor `name` as it lies in the file. Raises `CheckpointError` as `build` does."""
        if (found := self._weights.meta.get(name)) is None:
            raise self._mismatch_error(f"{name} is missing")
        if found.shape != shape:
            raise self._mismatch_error(f"{name} is {tuple(found.shape)}, not {tuple(shape)}")
        self._placement.tick()
        return self._weights[name]

    def is_tied(self, name: str, other: str) -> bool:
        """Whether two names stand for one stored tensor."""
        return self._weights.meta.get(name) is self._weights.meta.get(other)

    def _mismatch_error(self, problem: str) -> CheckpointError:
        return CheckpointError(f"the weights of {self._what} do not fit this model: {problem}")

    def _on_rows(self, module: nn.Module) -> Any:
        """`module`, or what does the same with rows (N, C)."""
        if type(module) is RMSNorm:
            return FusedRMSNorm(module, self._placement.ops)
        if isinstance(module, nn.Identity):
            return _unchanged
        if isinstance(module, LLaMAMoE):
            return lambda x: module(x[None])[0]
        return module


def _on_a_batch(part: Rows) -> Rows:
    return lambda x: part(x[0])[None]


def _unchanged(x: torch.Tensor) -> torch.Tensor:
    return x
