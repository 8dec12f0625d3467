"""Keeps a ring formed for as long as a run lasts: forms it anew where it breaks, with the same nodes or with fewer.

Here `recovery`, which decides, and `rendezvous`, which acts, meet; and the user is told.
"""

import contextlib
import logging
import queue
import secrets
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from mdi.checkpoint.folder import ModelFolder
from mdi.checkpoint.weights import MODEL_FILE
from mdi.cluster.condition import Incident, RingCondition
from mdi.cluster.expectation import RingExpectation
from mdi.cluster.identities import refuse_shared_names, refuse_twins
from mdi.cluster.measured_split import MeasuredSplit
from mdi.cluster.member_setup import Patience, PeersTimedOut
from mdi.cluster.next_rings import NextRings
from mdi.cluster.numerics import differing_numerics
from mdi.cluster.plan import (
    MEASURED,
    Member,
    Plan,
    PlanOptions,
    is_worth_measuring,
    overridden_split,
    plan,
    ring_planner,
)
from mdi.cluster.recovery import Decision, GiveUp, GoOnWithout, Recovery, RunState
from mdi.cluster.rendezvous import Call, Rendezvous, Statuses, describe
from mdi.cluster.roster import Roster
from mdi.cluster.stall import Traffic, locate
from mdi.config.network import node_name
from mdi.config.options import RingOptions
from mdi.control.client import ControlClient
from mdi.control.protocol import NoAnswer, NodeBusy, is_silent
from mdi.control.session import FIRST_EPOCH
from mdi.control.status import NodeState, NodeStatus, SecondaryStatus
from mdi.engine.engine import Wake
from mdi.engine.ring import LocalRing, Ring
from mdi.errors import (
    CheckpointError,
    ConfigError,
    ControlError,
    LinkError,
    MdiError,
    RemoteProtocolError,
    RingBroken,
    RingError,
    RingStalled,
    StorageError,
)
from mdi.ids import NodeId
from mdi.inbox import Inbox
from mdi.net.refusals import RefusalLog
from mdi.net.timeouts import Timeouts
from mdi.strings import count
from mdi.trace import NodeTimeline, Timeline

log = logging.getLogger(__name__)

RECOVERABLE = (LinkError, RemoteProtocolError, PeersTimedOut)  # by another ring; anything else ends the run


@dataclass(frozen=True)
class Attempt:
    """A ring that is being formed: the secondaries get ready meanwhile, each in a thread of its own."""

    plan: Plan
    model: ModelFolder  # with the chunks of the plan
    epoch: int
    calls: Sequence[Call[SecondaryStatus]]  # by rank, without the starter


@dataclass(frozen=True)
class Failure:
    """Why there is no ring now, and whether a token was generated since it had been formed."""

    error: MdiError
    progressed: bool


class RingSupervisor:
    """The ring of one run. Called from the main thread."""

    def __init__(
        self,
        roster: Roster,
        model: ModelFolder,
        options: RingOptions,
        plan_options: PlanOptions,
        inbox: Inbox,
        timeline: Timeline,
        *,
        measured: MeasuredSplit,
        slowness: Callable[[], Mapping[NodeId, float]],
        wire_dtype: str,
        listener: socket.socket | None,
        refusals: RefusalLog,
        timeouts: Timeouts,
    ) -> None:
        """
        Args:
            measured: times all nodes and links, if the split depends on that, and knows them.
            slowness: of nodes that have been measured, see `SlowNodes`. May be called from any thread.
            listener: for the last node; None on a network of one.

        Raises `ConfigError` or `CheckpointError` where the split that was asked for cannot be had.
        """
        self.ring: Ring = LocalRing(inbox)
        self.run, self.epoch = secrets.randbits(63), FIRST_EPOCH - 1
        self._roster, self._options, self._plan_options = roster, options, plan_options
        self._inbox, self._listener, self._measured = inbox, listener, measured
        self._refusals = refusals
        self._rendezvous = Rendezvous(
            roster, options, inbox, timeline, run=self.run, wire_dtype=wire_dtype, refusals=refusals, timeouts=timeouts
        )
        self._recovery = Recovery(len(roster.nodes), options.node_timeout_s)
        self._failure: Failure | None = None
        self._next = NextRings(
            roster,
            self._recovery,
            self._rendezvous,
            self._measured,
            plan_options,
            members_of=self._members,
            slowness=slowness if options.rebalance else None,
            wake=lambda: inbox.post(Wake()),
            timeouts=timeouts,
        )
        self._own_status: NodeStatus | None = None  # what this node said of itself before the latest attempt
        self._timeouts = timeouts
        self._changed_s = timeouts.clock()  # when the ring began to be as it is
        self.incidents: list[Incident] = []
        # Secondaries that the user knows to be missing, and whether he knows that something else answers there.
        self._reported_missing: dict[NodeId, bool] = {}
        self._reported_difference: str | None = None
        self.model = model
        # Nothing is known of anybody's memory yet.
        self.plan = plan(model, self._members(self._recovery.members, {}), plan_options)

    @property
    def state(self) -> NodeState:
        """How far the run is."""
        return NodeState[self._recovery.state.name]

    @property
    def condition(self) -> RingCondition:
        """How the ring is. May be asked from any thread."""
        missing = tuple(map(node_name, sorted(self._reported_missing.copy())))
        return RingCondition(self.state, self._timeouts.clock() - self._changed_s, missing, self.n_recoveries)

    @property
    def n_recoveries(self) -> int:
        """How often the ring was formed anew."""
        return self._recovery.n_recoveries

    def statuses(self) -> Statuses:
        """What each secondary of the ring says of itself. May be asked from any thread."""
        return self._rendezvous.statuses(self.plan.members[1:])

    @property
    def expectation(self) -> RingExpectation | None:
        """What the ring should do, if its nodes were measured."""
        return self._measured.expectation(self.plan)

    def timelines(self) -> list[NodeTimeline]:
        """What all nodes did when."""
        return self._rendezvous.timelines(self.plan)

    @contextlib.contextmanager
    def attempt(self, own_status: NodeStatus, n_to_replay: int = 0) -> Iterator[Attempt]:
        """Begin to form a ring, with a new epoch. The block loads this node's part of the plan, then closes the ring.

        A failure in the block that another ring may recover from ends the block, not the run: it counts when the
        next attempt begins. Raises what ends the run where no ring can be formed any more.

        Args:
            own_status: what this node says of itself.
            n_to_replay: samples that are sent anew, for the user.
        """
        self._own_status = own_status
        if self._failure is not None:
            self._recover(self._failure)
        elif self.epoch < FIRST_EPOCH:
            self._survey()
        self.epoch += 1
        calls = self._rendezvous.initialize(self.plan, self.model, self.epoch, self._patience())
        try:
            yield Attempt(self.plan, self.model, self.epoch, calls)
        except RECOVERABLE as exc:
            self.report_failure(exc, progressed=False)
            self._pause()
        else:
            for node in sorted(self._reported_missing) if n_to_replay else ():
                log.warning("%s is back: replaying %s", node_name(node), count(n_to_replay, "sample"))
                self._note(f"{node_name(node)} back")
            self._reported_missing.clear()

    def close_ring(self, attempt: Attempt, own_numerics: str | None) -> Ring:
        """Wait until all members are ready, then connect them. Raises `RECOVERABLE` errors and others."""
        self._rendezvous.await_all(attempt.calls)
        self._compare(attempt, own_numerics)
        self.ring = self._rendezvous.close_ring(attempt.plan, attempt.model, attempt.epoch, self._listener)
        self._recovery.formed()
        self._failure, self._changed_s = None, self._timeouts.clock()
        has_key = self._roster.network.starter.access.keys is not None
        self._next.begin(self.plan, self.model, is_open=has_key and self._listener is not None)
        return self.ring

    def may_take_part(self, node: NodeId) -> bool:
        """Whether a node of the roster may be in this ring or a later one. Called from any thread."""
        return self._recovery.may_take_part(node)

    def expect(self, node: NodeId) -> None:
        """A node was added to the roster: it is asked now and then whether it can take part. Called from any thread."""
        self._recovery.add(node)

    @property
    def has_next(self) -> bool:
        """Whether another ring is ready to be formed: see `take_over`."""
        return self._next.found is not None

    def is_change_due(self, n_running: int) -> bool:
        """Whether that is to be done now, where so many samples run."""
        return self._next.is_due(n_running)

    def take_over(self) -> None:
        """Give up the ring for the one that is ready. To be followed by an `attempt`."""
        found = self._next.stop()
        if found is None:
            return
        self.ring.close()
        self.plan, self.model, self._changed_s = found.plan, found.model, self._timeouts.clock()
        if not found.nodes:
            self._recovery.rebalanced(found.plan.members)
            self._next.rebalanced()
            self._note("split anew")
            log.warning("forming the ring anew on a better split: %s", self.plan)
            return
        self._recovery.returned(found.nodes, found.plan.members)
        names = " and ".join(map(node_name, found.nodes))
        is_new = not any(map(self._rendezvous.has_asked, found.nodes))
        self._note(f"{names} {'new' if is_new else 'back'}")
        again = "" if is_new else " again"
        log.warning("%s can take part%s: %s%s", names, again, self.plan, self._measured.rate(self.plan))

    def _compare(self, attempt: Attempt, own_numerics: str | None) -> None:
        """Tell the user, once, of members that compute differently."""
        told = [own_numerics, *(call.future.result().numerics for call in attempt.calls)]
        difference = differing_numerics(dict(zip(attempt.plan.names, told, strict=True)))
        if difference not in (None, self._reported_difference):
            log.warning("%s", difference)
            self._reported_difference = difference

    def report_failure(self, error: MdiError, *, progressed: bool) -> None:
        """The ring broke, or could not be formed. `progressed`: a token was generated since it had been formed."""
        if isinstance(error, RingStalled):
            error = self._located(error)  # while the nodes are still in the session, and know what they counted in it
        self._next.stop()
        self.ring.close()
        if self._failure is None:
            self._changed_s = self._timeouts.clock()
        self._failure = Failure(error, progressed)

    def dismiss(self, *, stop: bool) -> None:
        """Tell all secondaries that the run is over: they are to stop, or to wait for the next starter."""
        self._rendezvous.dismiss(ControlClient.stop if stop else ControlClient.release, self._timeouts.dismiss_s)

    def close(self) -> None:
        """Give up the ring."""
        self._next.stop()
        self.ring.close()

    # ---- planning

    def _survey(self) -> None:
        """Plan with what the nodes say of themselves. A node that is missing is an error: which nodes there are is
        the user's to say.
        """
        if overridden := overridden_split(self.model, self._roster.network.shares, self._plan_options):
            log.warning("%s", overridden)
        if self._roster.network.secondaries and not self._can_resplit():
            advice = "a node that is lost for good ends the run: no other can take over its layers"
            log.warning("%s has no %s: %s", self.model.path, MODEL_FILE, advice)
        try:
            statuses = self._rendezvous.wait_until_up(self.plan.members[1:], self._patience())
        except PeersTimedOut as exc:
            self._recovery.expired(self._timeouts.clock(), exc.nodes)
            raise
        refuse_twins(self._rendezvous.clients, statuses)
        refuse_shared_names(self._roster.network, self._timeouts)
        members, options = self._members(self._recovery.members, statuses), self._plan_options
        if options.split == MEASURED:
            members, options = self._chosen(members, options)
        elif is_worth_measuring(self.model, members, options):
            members, options = self._chosen_if_measured(members, options)
        self._adopt(plan(self.model, members, options), options.n_slots)
        if self._plan_options.split != MEASURED:
            self._measured.compare(self.plan)

    def _chosen_if_measured(self, members: list[Member], options: PlanOptions) -> tuple[list[Member], PlanOptions]:
        """The order and the layers of all members as they were measured; where that fails, what they were before."""
        try:
            return self._chosen(members, options, use_all=True)
        except (ConfigError, ControlError, RingError) as exc:
            log.warning("splitting by the sizes of the layers, not as measured: %s", exc)
            return members, options

    def _chosen(
        self, members: Sequence[Member], options: PlanOptions, *, use_all: bool = False
    ) -> tuple[list[Member], PlanOptions]:
        """Measure, and choose who takes part, in which order and with how many layers."""
        rendezvous = self._rendezvous
        found = self._measured.choose(
            lambda: self._measured.network.measure(
                rendezvous.clients, self._listener, self._inbox, self._refusals, self._timeouts
            ),
            use_all=use_all,
        )
        self._recovery.choose([NodeId(node) for node in found.ring.order])
        rendezvous.leave_out([node.node for node in members if node.node not in found.ring.order])
        chosen = [replace(members[node], quantize=self._measured.modes.get(NodeId(node))) for node in found.ring.order]
        return chosen, replace(options, split=found.ring.split)

    def _can_resplit(self) -> bool:
        """Whether the layers can be spread over one node less: from the whole model, or as chunks that lie ready."""
        return self.model.has_weights or len(self.plan.members) - 1 in self.model.manifests

    def _members(self, members: Sequence[NodeId], statuses: Statuses) -> list[Member]:
        """These nodes, and what they say of themselves; `statuses` has those of the secondaries."""
        nodes, own, modes = self._roster.network.nodes, self._own_status, self._measured.modes
        return [Member(i, nodes[i], statuses.get(i) if i else own, modes.get(i)) for i in members]

    def _adopt(self, new_plan: Plan, n_slots: int) -> None:
        """Write the chunks that a plan needs, which was to have so many slots, and take it."""
        model = self.model.with_chunks(list(new_plan.spans), self._plan_options.quantize, self._inbox.check)
        if new_plan.n_slots < n_slots:
            log.warning("memory allows %s in the ring at once; the others wait", count(new_plan.n_slots, "sample"))
        self.plan, self.model = new_plan, model

    def _patience(self) -> Patience:
        recovery, now_s = self._recovery, self._timeouts.clock()
        return Patience(
            node_timeout_s=self._options.node_timeout_s,
            deadline_s=lambda node: recovery.deadline_s(node, now_s),
            waits_for=recovery.waits_for,
            on_missing=self._report_missing,
        )

    # ---- recovery

    def _recover(self, failure: Failure) -> None:
        """Decide how to go on after a failure, and plan for it. Raises what ends the run."""
        match self._decide(failure):
            case GoOnWithout(nodes, why):
                self._plan_without(nodes, why)
            case GiveUp() if isinstance(failure.error, PeersTimedOut):
                raise failure.error
            case GiveUp(why):
                states = describe(self.statuses())
                raise RingBroken(f"{failure.error}; {why}; {states}") from failure.error

    def _decide(self, failure: Failure) -> Decision:
        error = failure.error
        if isinstance(error, PeersTimedOut):
            return self._recovery.expired(self._timeouts.clock(), error.nodes)
        statuses = self.statuses()
        silent = [node for node, status in statuses.items() if status is None]
        decision = self._recovery.broke(
            self._timeouts.clock(), silent=silent, suspect=self._suspect(error, statuses), progressed=failure.progressed
        )
        for node in set(silent).intersection(self._recovery.members):  # the others are left out
            self._report_missing(node, error)
        if not silent:
            log.warning("the ring broke: %s; forming it anew", error)
            self._note("ring broke")
        return decision

    def _suspect(self, error: MdiError, statuses: Statuses) -> NodeId | None:
        """Where a ring did not close, the first node that its predecessor did not reach; else whom the others lost.

        A secondary stays "ready" until its predecessor has connected to it. So the first one that still is marks the
        gap, whatever error travelled back from behind it.
        """
        for node, status in statuses.items():
            if status is not None and status.state is NodeState.READY:
                return node
        rank = error.rank if isinstance(error, RingBroken) else None
        return None if rank is None else self.plan.members[rank]

    def _located(self, stalled: RingStalled) -> RingBroken:
        """The error with the node to blame, if the nodes' counts tell which one that is."""
        statuses = self.statuses()
        own = Traffic(stalled.received, stalled.received, stalled.sent)
        stall = locate(self.plan.names, [own, *(self._traffic_of(status) for status in statuses.values())])
        return stalled if stall is None else RingBroken(f"{stalled}: {stall.reason}", stall.rank)

    def _traffic_of(self, status: NodeStatus | None) -> Traffic | None:
        if not isinstance(status, SecondaryStatus) or (status.run, status.epoch) != (self.run, self.epoch):
            return None
        return Traffic(status.received, status.computed, status.sent)

    def _plan_without(self, nodes: Sequence[NodeId], why: str) -> None:
        """Adopt a plan in which the remaining nodes take over."""
        names = ", ".join(map(node_name, nodes))
        try:
            self._adopt(self._plan_of_rest(), self.plan.n_slots)
            self._recovery.arrange(self.plan.members)
            self._check_chunks()
        except (CheckpointError, ConfigError, StorageError) as impossible:
            self._recovery.give_up()
            raise RingBroken(f"{names} {why}, and no other node can take over: {impossible}") from impossible
        for node in nodes:
            self._reported_missing.pop(node, None)
        self._rendezvous.drop_members(nodes)
        self._note(f"without {names}")
        log.warning("going on without %s, which %s: %s%s", names, why, self.plan, self._measured.rate(self.plan))

    def _plan_of_rest(self) -> Plan:
        """Of the members that are left, with as many slots as there are now at most. Raises as `plan` does."""
        members, options = self._recovery.members, replace(self._plan_options, n_slots=self.plan.n_slots)
        statuses = self._rendezvous.statuses(members[1:])
        plan_with = ring_planner(self.model, lambda order: self._members(order, statuses), options)
        return self._measured.plan(self.model, members, plan_with)

    def _check_chunks(self) -> None:
        """Raise `CheckpointError` unless all that the plan's nodes load can be had here: none of them was given it."""
        spans, model = self.plan.spans, self.model
        if len(spans) > 1 and model.ring_manifest(len(spans)) is None:
            raise CheckpointError(f"{model.path}: without {MODEL_FILE} its layers cannot be spread anew")
        model.starter_weights(spans, self._plan_options.quantize)

    def _note(self, text: str) -> None:
        self.incidents.append(Incident(self._timeouts.clock(), text))

    def _pause(self) -> None:
        """Between two attempts, so that a ring which fails at once is not formed in a busy loop."""
        with contextlib.suppress(queue.Empty):
            self._inbox.wait_for(timeout_s=self._timeouts.retry_s)

    def _report_missing(self, node: NodeId, error: MdiError) -> None:
        """Tell the user once that a node is missing, and once that something else answers in its place.

        Also called from the threads that call the nodes.
        """
        answers = not isinstance(error, NoAnswer | NodeBusy | RingError)
        if self._reported_missing.get(node, -1) >= answers:
            return
        self._reported_missing[node] = answers
        config, name = self._roster.network.nodes[node], node_name(node)
        who = f"{name} ({config.addr}:{config.port_in or config.http_port})"
        if self._recovery.state is RunState.STARTING:
            reason = "" if is_silent(error) else f": {error}"
            log.warning("waiting for %s at %s%s", name, self._rendezvous.clients[node].url, reason)
        else:
            reason = error.reason if isinstance(error, RingError) and error.peer == name else str(error)
            self._note(f"{name} lost")
            log.warning("%s is lost: %s; waiting up to %g s for it", who, reason, self._options.node_timeout_s)
