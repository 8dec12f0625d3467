"""Which node holds which layers, and how many samples fit beside them: a pure function of what is known.

It is called when the nodes have been asked, and again after a loss. Chunks are written after it, never before.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from mdi.checkpoint.folder import ModelFolder, serves
from mdi.checkpoint.weights import MODEL_FILE
from mdi.cluster.budget import NodeFacts, budgets_of, facts_of, fit_slots, roomiest_split, slots_of
from mdi.cluster.costs import load_of
from mdi.cluster.partition import Load, split
from mdi.config.network import NodeConfig, node_name
from mdi.control.status import NodeStatus
from mdi.errors import CheckpointError
from mdi.formats import KvDtype, Mode
from mdi.ids import NodeId
from mdi.model.span import Span

MEASURED = "measured"  # a --split that is chosen when all nodes are up; until then it is as auto


@dataclass(frozen=True)
class Member:
    """A node that takes part, and what it says of itself."""

    node: NodeId
    config: NodeConfig
    status: NodeStatus | None = None  # None: it has not been asked, so nothing is known of its memory
    quantize: Mode | None = None  # what a measured plan has chosen for it; None: as the run has it

    @property
    def name(self) -> str:
        return node_name(self.node)


@dataclass(frozen=True)
class PlanOptions:
    """What the run wants of the ring."""

    context: int  # positions per slot
    n_slots: int  # samples that are to be in the ring at once
    max_batch_tokens: int
    split: str = "auto"
    dtype: str | None = None
    quantize: Mode | None = None
    kv_dtype: KvDtype | None = None
    is_fixed: bool = False  # whether exactly `n_slots` are wanted, rather than at most as many


@dataclass(frozen=True)
class Plan:
    """Who takes part, with which layers. A node's *rank* is its index in `members`."""

    members: tuple[NodeId, ...]  # in ring order; the starter (0) is the first
    spans: tuple[Span, ...]  # of each member
    n_slots: int
    context: int
    modes: tuple[Mode | None, ...] = ()  # that each member is asked to hold its weights in; None: as they are stored

    @property
    def names(self) -> list[str]:
        """What the members are called, by rank."""
        return [node_name(node) for node in self.members]

    def __str__(self) -> str:
        parts = zip(self.spans, self.names, strict=True)
        return ", ".join(f"{span} on {name}" for span, name in parts)


def plan(model: ModelFolder, members: Sequence[Member], options: PlanOptions) -> Plan:
    """Divide the layers over the members, and fit slots into the memory that they report.

    Where `auto` may choose the split, and the fastest one has no room for all slots, it is one that has room for more.
    Raises `ConfigError` for a split that does not exist, or with the numbers where the memory is too small;
    `CheckpointError` where the split needs chunks that are not there and cannot be made.
    """
    spans = choose_spans(model, [member.config.share for member in members], options)
    mode, stored = model.stored_mode(len(members), options.quantize), model.stored(len(members))
    facts = [_facts_of(member, mode, options) for member in members]
    budgets_with = functools.partial(
        budgets_of, facts, model.config, context=options.context, max_rows=options.max_batch_tokens, stored=stored
    )
    budgets = budgets_with(spans)
    if slots_of(budgets) < options.n_slots and _is_free_to_choose(model, len(members), options):
        roomiest = roomiest_split(facts, model.config, context=options.context, n_slots=options.n_slots, stored=stored)
        if slots_of(roomier := budgets_with(roomiest)) > slots_of(budgets):
            spans, budgets = roomiest, roomier
    n_slots = fit_slots(budgets, options.n_slots, fixed=options.is_fixed)
    modes = tuple(member.quantize or options.quantize for member in members)
    return Plan(tuple(member.node for member in members), tuple(spans), n_slots, options.context, modes)


PlanWith = Callable[[Sequence[NodeId], str], Plan]  # for an order of the nodes, and a --split


def ring_planner(
    model: ModelFolder, members_of: Callable[[Sequence[NodeId]], Sequence[Member]], options: PlanOptions
) -> PlanWith:
    """Plans rings that differ in order and split alone. What it returns raises as `plan` does."""
    return lambda order, split: plan(model, members_of(order), replace(options, split=split))


def _facts_of(member: Member, stored: Mode, options: PlanOptions) -> NodeFacts:
    return facts_of(
        member.name,
        member.config.host,
        member.status,
        stored,
        member.quantize or options.quantize,
        options.dtype,
        options.kv_dtype,
        member.config.memory_limit_bytes,
    )


def choose_spans(model: ModelFolder, shares: Sequence[float], options: PlanOptions) -> list[Span]:
    """The split that was asked for; `auto` takes that of the chunks where there are some."""
    load = _load(model, shares, options)
    manifest = model.ring_manifest(len(shares))
    method = "auto" if options.split == MEASURED else options.split
    if manifest is None:
        return split(method, load)
    spans = list(manifest.spans) if method == "auto" else split(method, load)
    if not model.has_weights and not serves(manifest, spans, options.quantize):
        raise CheckpointError(
            f"{model.path}: its chunks have the split {_counts(manifest.spans)} with quantization"
            f" {manifest.quantization}, not {_counts(spans)} with {options.quantize or 'any'}, and without {MODEL_FILE}"
            " none can be made; leave out --split and --quantize"
        )
    return spans


def overridden_split(model: ModelFolder, shares: Sequence[float], options: PlanOptions) -> str | None:
    """What the user should know where the split of the chunks is used, and not the one that the shares ask for."""
    manifest = model.ring_manifest(len(shares))
    if manifest is None or options.split != "auto" or len(set(shares)) == 1:
        return None
    wanted = split("auto", _load(model, shares, options))
    if list(manifest.spans) == wanted:
        return None
    return (
        f'the split {_counts(manifest.spans)} of {manifest.folder} is used, though each node\'s "share" asks for'
        f" {_counts(wanted)}: --split {_counts(wanted)} changes it"
    )


def is_worth_measuring(model: ModelFolder, members: Sequence[Member], options: PlanOptions) -> bool:
    """Whether `auto` should know what a layer takes on each of these nodes, who have been asked, before it chooses.

    Nodes of one machine that compute on one kind of device are alike. Where their shares differ, the user has said how
    fast they are. One that does not answer as a node will not let itself be measured either.
    """
    statuses = [member.status for member in members]
    if None in statuses or not model.has_weights or not _is_free_to_choose(model, len(members), options):
        return False
    kinds = {(member.config.host, member.status.device.partition(":")[0]) for member in members if member.status}
    return len(kinds) > 1 and len({member.config.share for member in members}) == 1


def _is_free_to_choose(model: ModelFolder, n_nodes: int, options: PlanOptions) -> bool:
    """Whether there are several splits, and neither the user nor the chunks that are there say which is used."""
    return n_nodes > 1 and options.split == "auto" and model.ring_manifest(n_nodes) is None


def _load(model: ModelFolder, shares: Sequence[float], options: PlanOptions) -> Load:
    stored = model.stored_mode(len(shares), options.quantize)
    return load_of(model.config, stored if stored != "none" else options.quantize or "none", shares)


def _counts(spans: Sequence[Span]) -> str:
    return ",".join(str(len(span)) for span in spans)
