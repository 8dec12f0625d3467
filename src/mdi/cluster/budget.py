"""The memory that a node needs for its part of a session, and whether it has it. Arithmetic only."""

import functools
import math
import operator
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from mdi.checkpoint.chunks import UNKNOWN_FORM, StoredForm
from mdi.cluster.partition import Load, balanced
from mdi.control.status import NodeStatus
from mdi.errors import ConfigError
from mdi.formats import KvDtype, Mode
from mdi.model.architecture import ModelConfig
from mdi.model.backends.native import memory as native
from mdi.model.backends.native.blocks import unsupported
from mdi.model.build import Placement
from mdi.model.quant import held_bytes
from mdi.model.shapes import head_shapes, kv_bytes, layer_shapes, stage_shapes
from mdi.model.span import Span
from mdi.model.tensors import TORCH_DTYPES
from mdi.strings import format_bytes

SPARE = 0.1  # of the free memory, left to everything else on the machine


def usable_bytes(free_bytes: float | None, limit_bytes: int | None = None) -> float:
    """What a node may take for a model, of its free memory and within its limit; None: unknown, and no limit."""
    free = math.inf if free_bytes is None else free_bytes * (1 - SPARE)
    return min(free, math.inf if limit_bytes is None else limit_bytes)


@dataclass(frozen=True)
class Need:
    """What a node's part takes, in bytes."""

    weights: int
    slot: int  # each
    message: int  # the largest, while it is computed

    def __add__(self, other: "Need") -> "Need":
        """The need of two nodes that share a memory."""
        return Need(self.weights + other.weights, self.slot + other.slot, self.message + other.message)


@dataclass(frozen=True)
class NodeFacts:
    """What a node says of itself before a session."""

    name: str
    place: str  # the memory it draws on: nodes of one machine share it
    device: str
    dtype: torch.dtype
    mode: Mode
    free_bytes: int | None  # None: it cannot tell
    has_kernels: bool = False  # native ones, for what they support
    kv_dtype: KvDtype | None = None  # that kernels are asked for; None: as exact as the weights
    limit_bytes: int | None = None  # that it may take; None: what is free

    def computes_natively(self, config: ModelConfig) -> bool:
        """Whether its kernels compute the model."""
        if not (self.has_kernels and self.device == "cpu"):
            return False
        return unsupported(config, Placement(torch.device("cpu"), self.dtype, self.mode)) is None

    def weights_bytes(self, config: ModelConfig, shapes: Mapping[str, torch.Size], stored: StoredForm) -> int:
        """What tensors of the model with these shapes take."""
        if not self.computes_natively(config):
            return held_bytes(shapes, self.dtype, self.mode, self.device.partition(":")[0])
        own_dtype = TORCH_DTYPES.get(stored.dtype or "", self.dtype)
        smaller = min(own_dtype, self.dtype, key=lambda dtype: dtype.itemsize)
        return native.weights_bytes(config, shapes, smaller, self.mode, is_tied=stored.is_tied)

    def slot_bytes(self, config: ModelConfig, n_layers: int, context: int) -> int:
        """What the keys and values of one sample take."""
        if self.computes_natively(config):
            kv_dtype = self.kv_dtype or native.default_kv_dtype(self.dtype, is_quantized=self.mode != "none")
            return n_layers * sum(native.cache_bytes(config, context, kv_dtype))
        return kv_bytes(config, n_layers, context, self.dtype)

    def message_bytes(self, config: ModelConfig, n_rows: int) -> int:
        """What lies between the steps of a message, at most: in float32 where kernels compute."""
        qkv = (config.n_head + 2 * config.n_query_groups) * config.head_size
        item_bytes = 4 if self.computes_natively(config) else self.dtype.itemsize
        return int(4 * n_rows * max(config.n_embd, 2 * config.intermediate_size, qkv) * item_bytes)


def facts_of(
    name: str,
    host: str,
    status: NodeStatus | None,
    stored: Mode,
    wanted: Mode | None,
    wanted_dtype: str | None = None,
    wanted_kv: KvDtype | None = None,
    limit_bytes: int | None = None,
) -> NodeFacts:
    """The facts in a node's status; guesses where it gave none.

    Args:
        stored: the quantization of the chunks; `wanted`: what the starter asks for, None if it does not say.
        wanted_dtype: the dtype that the starter asks for, None if it does not say.
        wanted_kv: the dtype of keys and values that it asks for.
        limit_bytes: that the node may take, where it tells no limit itself.
    """
    mode = (status and status.quantize) or wanted or "none"
    dtype = (status and status.own_dtype) or wanted_dtype or (status and status.dtype) or "float32"
    return NodeFacts(
        name=name,
        place=f"{host} {status and status.device}",
        device=status.device if status else "cpu",
        dtype=TORCH_DTYPES[dtype],
        mode=stored if stored != "none" else mode,
        free_bytes=status.free_memory_bytes if status else None,
        has_kernels=status is not None and status.has_kernels,
        kv_dtype=(status and status.kv_dtype) or wanted_kv,
        limit_bytes=(status and status.memory_limit_bytes) or limit_bytes,
    )


def budgets_of(
    nodes: Sequence[NodeFacts],
    config: ModelConfig,
    spans: Sequence[Span],
    *,
    context: int,
    max_rows: int,
    stored: StoredForm = UNKNOWN_FORM,
) -> list["Budget"]:
    """The budget of each memory that the nodes of a ring draw on, and of each node that has a limit of its own.

    The first node is the starter.
    """
    shared: dict[str, list[tuple[NodeFacts, Need]]] = {}
    for number, (node, span) in enumerate(zip(nodes, spans, strict=True)):
        need = need_of(node, config, span, has_ends=number == 0, context=context, max_rows=max_rows, stored=stored)
        shared.setdefault(node.place, []).append((node, need))
    limits = [
        Budget(node.name, need, None, node.limit_bytes)
        for group in shared.values()
        for node, need in group
        if node.limit_bytes is not None
    ]
    memories = [
        Budget(
            " and ".join(node.name for node, _ in group),
            functools.reduce(operator.add, (need for _, need in group)),
            min((node.free_bytes for node, _ in group if node.free_bytes is not None), default=None),
        )
        for group in shared.values()
    ]
    return memories + limits


@dataclass(frozen=True)
class Budget:
    """The need of the nodes that share a memory, beside what is free of it; or of one node, beside its limit."""

    name: str
    need: Need
    free_bytes: int | None  # None: the node cannot tell
    limit_bytes: int | None = None  # None: there is none

    @property
    def usable_bytes(self) -> float:
        return usable_bytes(self.free_bytes, self.limit_bytes)

    @property
    def max_slots(self) -> float:
        """Slots that fit beside the weights; below 0 where not even those fit."""
        if self.usable_bytes == math.inf:
            return math.inf
        return (self.usable_bytes - self.need.weights - self.need.message) // self.need.slot


def need_of(
    node: NodeFacts,
    config: ModelConfig,
    span: Span,
    *,
    has_ends: bool,
    context: int,
    max_rows: int,
    stored: StoredForm = UNKNOWN_FORM,
) -> Need:
    """What the layers of `span` take on one node, with the head where `has_ends`."""
    shapes = stage_shapes(config, span) | (head_shapes(config) if has_ends else {})
    weights, slot = node.weights_bytes(config, shapes, stored), node.slot_bytes(config, len(span), context)
    return Need(weights, slot, node.message_bytes(config, max_rows))


def roomiest_split(
    nodes: Sequence[NodeFacts], config: ModelConfig, *, context: int, n_slots: int, stored: StoredForm = UNKNOWN_FORM
) -> list[Span]:
    """The split that takes least of the memory of the node that has least left."""
    starter, n_at = nodes[0], Counter(node.place for node in nodes)
    slots = n_slots * starter.slot_bytes(config, 1, context)
    layers = [starter.weights_bytes(config, shapes, stored) + slots for shapes in layer_shapes(config)]
    ends = starter.weights_bytes(config, head_shapes(config), stored)
    free = [node.free_bytes and node.free_bytes / n_at[node.place] for node in nodes]
    room = [usable_bytes(n_bytes, node.limit_bytes) for n_bytes, node in zip(free, nodes, strict=True)]
    can_tell = all(0 < n_bytes < math.inf for n_bytes in room)
    return balanced(Load(layers, ends, room if can_tell else [1.0] * len(nodes)))


def slots_of(budgets: Sequence[Budget]) -> float:
    """How many samples all nodes have room for; below 0 where not even the weights fit."""
    return min(budget.max_slots for budget in budgets)


def fit_slots(budgets: Sequence[Budget], wanted: int, *, fixed: bool) -> int:
    """How many samples can be in the ring at once, at most `wanted`; exactly that if it is `fixed`.

    Raises `ConfigError` with the numbers of the nodes that have too little memory.
    """
    n_slots = min(wanted, slots_of(budgets))
    if n_slots < (wanted if fixed else 1):
        tightest = min(budgets, key=lambda budget: budget.max_slots)
        raise ConfigError(_shortage(tightest, wanted if fixed else 1))
    return int(n_slots)


def _shortage(budget: Budget, n_slots: int) -> str:
    need = budget.need
    slots = f"{n_slots} slot{'s' * (n_slots > 1)} of {format_bytes(need.slot)}"
    advice = "fewer slots (--max-slots), " if n_slots > 1 and budget.max_slots >= 1 else ""
    return (
        f"{budget.name}: the weights take {format_bytes(need.weights)}, {slots} {format_bytes(n_slots * need.slot)}"
        f" and a message {format_bytes(need.message)}, {_bound(budget)}{advice}a shorter --sequence-length,"
        " --quantize int8, another --split or more nodes"
    )


def _bound(budget: Budget) -> str:
    usable = format_bytes(budget.usable_bytes)
    if budget.limit_bytes is not None:
        return f"but its memory limit is {usable} (--memory-limit): try "
    return f"but of its free memory of {format_bytes(budget.free_bytes or 0)} only {usable} may be used: try "
