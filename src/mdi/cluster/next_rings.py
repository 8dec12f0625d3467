"""Which ring follows the one that works, where none is broken: planned, and its weights sent, before it is given up."""

from collections.abc import Callable, Mapping, Sequence

from mdi.checkpoint.folder import ModelFolder
from mdi.cluster.measured_split import MeasuredSplit
from mdi.cluster.plan import Member, Plan, PlanOptions, PlanWith, ring_planner
from mdi.cluster.rebalancing import BetterSplit, Rebalancing
from mdi.cluster.recovery import Recovery
from mdi.cluster.rendezvous import Rendezvous, Statuses
from mdi.cluster.returns import NextRing, ReturnWatch
from mdi.cluster.roster import Roster
from mdi.ids import NodeId
from mdi.net.timeouts import Timeouts


class NextRings:
    """Nodes come back, join, or become slow. Called from the main thread; the watch has one of its own."""

    def __init__(
        self,
        roster: Roster,
        recovery: Recovery,
        rendezvous: Rendezvous,
        measured: MeasuredSplit,
        options: PlanOptions,
        *,
        members_of: Callable[[Sequence[NodeId], Statuses], list[Member]],
        slowness: Callable[[], Mapping[NodeId, float]] | None,
        wake: Callable[[], None],
        timeouts: Timeouts,
    ) -> None:
        """
        Args:
            members_of: what is known of these nodes, beside what they say of themselves.
            slowness: of nodes that have been measured, see `SlowNodes`; None: no better split is looked for.
            wake: called when a ring is ready.
        """
        self._roster, self._recovery, self._rendezvous = roster, recovery, rendezvous
        self._measured, self._options, self._members_of = measured, options, members_of
        self._slowness, self._wake, self._timeouts = slowness, wake, timeouts
        self._rebalancing = Rebalancing()
        self._watch: ReturnWatch | None = None

    def begin(self, running: Plan, model: ModelFolder, *, is_open: bool) -> None:
        """A ring of this plan runs: look for the next one from now on, if there may be one.

        Args:
            is_open: whether nodes may join.
        """
        is_whole = len(running.members) == len(self._roster.nodes)
        if is_whole and not is_open and self._slowness is None:
            return

        def absent() -> Sequence[NodeId]:
            return self._recovery.may_return(self._timeouts.clock())

        def prepare(nodes: Sequence[NodeId], tick: Callable[[], None]) -> NextRing | None:
            return self._with(nodes, model, tick) if nodes else self._on_better_split(running, model, tick)

        self._watch = ReturnWatch(absent, self._rendezvous.statuses, prepare, self._wake, self._timeouts)

    @property
    def found(self) -> NextRing | None:
        """The ring that is ready to be formed."""
        return None if self._watch is None else self._watch.found

    def is_due(self, n_running: int) -> bool:
        """Whether it is to be formed now, where so many samples run."""
        return (found := self.found) is not None and found.is_due(self._timeouts.clock(), n_running)

    def stop(self) -> NextRing | None:
        """Look no more; returns what was found."""
        found, watch, self._watch = self.found, self._watch, None
        if watch is not None:
            watch.close()
        return found

    def rebalanced(self) -> None:
        """The ring is formed anew on a better split."""
        self._rebalancing.changed(self._timeouts.clock())

    # ---- called from the watch's thread

    def _with(self, nodes: Sequence[NodeId], model: ModelFolder, tick: Callable[[], None]) -> NextRing:
        """A ring with these nodes too: as the user asked for where it is of those that he named, else as measured."""
        members = self._recovery.with_returned(nodes)
        plan_with = self._planner(members, model)
        if self._roster.are_initial(members) and not self._measured.is_chosen:
            new_plan = plan_with(members, self._options.split)
        else:
            new_plan = self._measured.plan(model, members, plan_with)
        return self._prepared(nodes, new_plan, model, tick)

    def _on_better_split(self, running: Plan, model: ModelFolder, tick: Callable[[], None]) -> NextRing | None:
        found = self._better_split(running)
        if found is None:
            return None
        new_plan = self._planner(found.members, model)(found.members, found.ring.split)
        return self._prepared((), new_plan, model, tick)

    def _better_split(self, running: Plan) -> BetterSplit | None:
        if self._slowness is None:
            return None
        return self._rebalancing.due(self._timeouts.clock(), self._measured.costs, running, self._slowness())

    def _planner(self, members: Sequence[NodeId], model: ModelFolder) -> PlanWith:
        """Plans rings of these nodes, who are asked once."""
        statuses = self._rendezvous.statuses(members[1:])
        return ring_planner(model, lambda order: self._members_of(order, statuses), self._options)

    def _prepared(
        self, nodes: Sequence[NodeId], new_plan: Plan, model: ModelFolder, tick: Callable[[], None]
    ) -> NextRing:
        """Send ahead what a ring will load. Raises `MdiError`."""
        with_chunks = model.with_chunks(list(new_plan.spans), self._options.quantize, tick)
        self._rendezvous.send_ahead(new_plan, with_chunks)
        return NextRing(tuple(nodes), new_plan, with_chunks, self._timeouts.clock())
