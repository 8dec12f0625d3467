"""The memory that a node needs for its part of a session, and whether it has it. Arithmetic only."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from litgpt.config import Config

from mdi.config import Mode
from mdi.errors import ConfigError
from mdi.partition import Span
from mdi.quant import weight_bytes
from mdi.stage import ends_shapes, stage_shapes

SPARE = 0.1  # of the free memory, left to everything else on the machine


@dataclass(frozen=True)
class Need:
    """What a node's part takes, in bytes."""

    weights: int
    slot: int  # each
    message: int  # the largest, while it is computed


@dataclass(frozen=True)
class NodeBudget:
    """A node's need beside what it has."""

    name: str
    need: Need
    free_bytes: int | None  # None: the node cannot tell

    @property
    def usable_bytes(self) -> float:
        return math.inf if self.free_bytes is None else self.free_bytes * (1 - SPARE)

    @property
    def most_slots(self) -> float:
        """Slots that fit beside the weights; below 0 where not even those fit."""
        if self.free_bytes is None:
            return math.inf
        return (self.usable_bytes - self.need.weights - self.need.message) // self.need.slot


def need_of(
    config: Config, span: Span, *, has_ends: bool, dtype: torch.dtype, mode: Mode, context: int, max_rows: int
) -> Need:
    """What the layers of `span` take on one node, with the head where `has_ends`.

    The embedding does not count: its rows are looked up in the mapped file.
    """
    shapes = stage_shapes(config, span) | (ends_shapes(config) if has_ends else {})
    weights = sum(weight_bytes(name, shape.numel(), dtype, mode) for name, shape in shapes.items() if "wte" not in name)
    slot = len(span) * 2 * config.n_query_groups * config.head_size * context * dtype.itemsize
    widest = max(
        config.n_embd, 2 * config.intermediate_size, (config.n_head + 2 * config.n_query_groups) * config.head_size
    )
    return Need(weights, slot, 4 * max_rows * widest * dtype.itemsize)


def fit_slots(budgets: Sequence[NodeBudget], wanted: int, *, fixed: bool) -> int:
    """How many samples can be in the ring at once, at most `wanted`; exactly that if it is `fixed`.

    Raises `ConfigError` with the numbers of the node that has too little memory.
    """
    tightest = min(budgets, key=lambda budget: budget.most_slots)
    n_slots = min(wanted, tightest.most_slots)
    if n_slots < (wanted if fixed else 1):
        raise ConfigError(_shortage(tightest, wanted if fixed else 1))
    return int(n_slots)


def _shortage(budget: NodeBudget, n_slots: int) -> str:
    need = budget.need
    slots = f"{n_slots} slot{'s' * (n_slots > 1)} of {_size(need.slot)}"
    advice = "fewer slots (--max-slots), " if n_slots > 1 and budget.most_slots >= 1 else ""
    return (
        f"{budget.name}: its weights take {_size(need.weights)}, {slots} {_size(n_slots * need.slot)} and a message"
        f" {_size(need.message)}, but of its free memory of {_size(budget.free_bytes or 0)} only"
        f" {_size(budget.usable_bytes)} may be used: try {advice}a shorter --sequence-length, --quantize int8, another"
        " --split or more nodes"
    )


def _size(n_bytes: float) -> str:
    return f"{n_bytes / 1e9:.2f} GB" if n_bytes >= 1e8 else f"{n_bytes / 1e6:.1f} MB"
