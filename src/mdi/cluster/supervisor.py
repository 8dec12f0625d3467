"""Keeps a ring formed for as long as a run lasts: mends it where it breaks, with the same nodes or with fewer.

Here `recovery`, which decides, and `formation`, which acts, meet; and the user is told.
"""

import logging
import secrets
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

from mdi.checkpoint.weights import MODEL_FILE
from mdi.cluster.budget import budgets_of, facts_of, fit_slots
from mdi.cluster.plan import Job, Plan, can_resplit, resplit
from mdi.cluster.recovery import Decision, GiveUp, GoOnWithout, Recovery, RunState
from mdi.cluster.rendezvous import Formation, Missing, Statuses, await_members, describe
from mdi.config.network import NetworkConfig, node_name
from mdi.config.options import StarterOptions
from mdi.control.client import ControlClient, Unreachable
from mdi.control.session import FIRST_EPOCH
from mdi.control.status import NodeState, NodeStatus
from mdi.engine.ring import LocalRing, Ring
from mdi.errors import (
    CheckpointError,
    ConfigError,
    LinkError,
    MdiError,
    RemoteProtocolError,
    RingBroken,
    RingError,
    StorageError,
)
from mdi.ids import NodeId
from mdi.net.timeouts import DEFAULT_TIMEOUTS, Timeouts
from mdi.trace import NodeTimeline, Timeline

log = logging.getLogger(__name__)

MENDABLE = (LinkError, RemoteProtocolError, Missing)  # by another ring; anything else ends the run


class RingKeeper:
    """The ring of one run. Called from the main thread."""

    def __init__(
        self,
        network: NetworkConfig,
        job: Job,
        options: StarterOptions,
        *,
        wire_dtype: str,
        listener: socket.socket | None,
        ready_stage: Callable[[Plan], None],
        own_status: Callable[[], NodeStatus],
        timeouts: Timeouts = DEFAULT_TIMEOUTS,
    ) -> None:
        """
        Args:
            listener: for the last node; None on a network of one.
            ready_stage: has this node hold its own span of a plan, with empty slots.
            own_status: what this node says of itself.
        """
        self.ring: Ring = LocalRing()
        self.plan = Plan(
            tuple(map(NodeId, range(len(network.nodes)))),
            job,
            min(len(job.prompts), options.max_slots or len(job.prompts)),
        )
        self.run, self.epoch = secrets.randbits(63), FIRST_EPOCH - 1
        self._network, self._options, self._listener = network, options, listener
        self._ready_stage, self._own_status = ready_stage, own_status
        self._formation = Formation(network, options, run=self.run, wire_dtype=wire_dtype, timeouts=timeouts)
        self._timeouts = timeouts
        self._recovery = Recovery(len(network.nodes), options.node_timeout_s)
        self._told: set[NodeId] = set()  # secondaries of whose silence the user knows

    @property
    def state(self) -> NodeState:
        """How far the run is."""
        return NodeState[self._recovery.state.name]

    @property
    def n_recoveries(self) -> int:
        """How often the ring was mended."""
        return self._recovery.n_recoveries

    def form(self) -> None:
        """Form the first ring. A node that is missing is an error: which nodes there are is the user's to say."""
        if self._network.secondaries and not can_resplit(self.plan.job):
            advice = "a node that is lost for good ends the run: no other can take over its layers"
            log.warning("%s has no %s: %s", self.plan.job.folder, MODEL_FILE, advice)
        try:
            self.plan = self._fitted(
                self.plan, self._formation.survey(self.plan, self._deadlines_s(), self._tell_silence)
            )
            self._form()
        except MENDABLE as exc:
            self.mend(exc, progressed=False, n_samples=0)
        self._told.clear()

    def mend(self, exc: MdiError, *, progressed: bool, n_samples: int) -> None:
        """Form a ring that holds, in place of one that broke. Raises what ends the run where there is none.

        Args:
            progressed: whether a token has been generated since the ring was formed.
            n_samples: how many are to be replayed, for the user.
        """
        while True:
            self.ring.close()
            self._follow(self._decide(exc, progressed), exc)
            try:
                self._form()
            except MENDABLE as another:
                exc, progressed = another, False
                time.sleep(self._timeouts.retry_s)
                continue
            if n_samples:
                for number in sorted(self._told):
                    log.warning("%s is back: replaying %d samples", node_name(number), n_samples)
            self._told.clear()
            return

    def dismiss(self, *, stop: bool) -> None:
        """Tell all secondaries that the run is over: they are to stop, or to wait for the next starter."""
        self._formation.dismiss(ControlClient.stop if stop else ControlClient.release, self._timeouts.dismiss_s)

    @property
    def timeline(self) -> Timeline:
        """What this node did when."""
        return self._formation.timeline

    def timelines(self) -> list[NodeTimeline]:
        """What all nodes did when."""
        return self._formation.timelines(self.plan)

    def close(self) -> None:
        """Give up the ring."""
        self.ring.close()

    def _form(self) -> None:
        """Begin a new epoch: all members get ready side by side, then the ring is closed."""
        plan = self.plan
        self.epoch += 1
        pending = self._formation.initialize(plan, self.epoch, self._deadlines_s(), self._tell_silence)
        self._ready_stage(plan)
        await_members(pending)
        self.ring = self._formation.close_ring(plan, self.epoch, self._listener)
        self._recovery.formed()

    def _deadlines_s(self) -> dict[NodeId, float]:
        now_s = self._timeouts.clock()
        return {number: self._recovery.deadline_s(number, now_s) for number in self.plan.members}

    def _fitted(self, plan: Plan, statuses: Statuses) -> Plan:
        """The plan with as many slots as the members have memory for.

        Raises `ConfigError` with the numbers where not even one fits, or not as many as the user asked for.
        """
        options, job = self._options, plan.job
        stored = job.manifest.quantization if job.manifest else "none"
        nodes = [
            facts_of(
                node_name(number),
                self._network.nodes[number].host,
                statuses.get(number) if number else self._own_status(),
                stored,
                options.quantize,
            )
            for number in plan.members
        ]
        budgets = budgets_of(nodes, job.config, job.spans, context=job.context, max_rows=options.max_batch_tokens)
        n_slots = fit_slots(budgets, plan.n_slots, fixed=options.max_slots is not None)
        if n_slots < plan.n_slots:
            log.warning("memory allows %d samples in the ring at once; the others wait", n_slots)
        return replace(plan, n_slots=n_slots)

    def _decide(self, exc: MdiError, progressed: bool) -> Decision:
        if isinstance(exc, Missing):
            return self._recovery.expired(exc.nodes)
        statuses = self._formation.statuses(self.plan)
        silent = [number for number, status in statuses.items() if status is None]
        decision = self._recovery.broke(
            self._timeouts.clock(), silent=silent, suspect=self._suspect(exc, statuses), progressed=progressed
        )
        for number in set(silent).intersection(self._recovery.members):  # the others are left out
            self._tell_silence(number, exc)
        if not silent:
            log.warning("the ring broke: %s; forming it anew", exc)
        return decision

    def _suspect(self, exc: MdiError, statuses: Statuses) -> NodeId | None:
        """Where a ring did not close, the first node that its predecessor did not reach; else whom the others lost."""
        for number, status in statuses.items():
            if status is not None and status.state is NodeState.READY:
                return number
        rank = exc.rank if isinstance(exc, RingBroken) else None
        return None if rank is None else self.plan.members[rank]

    def _follow(self, decision: Decision, exc: MdiError) -> None:
        match decision:
            case GoOnWithout(nodes, why):
                self._plan_without(nodes, why)
            case GiveUp() if isinstance(exc, Missing):
                raise exc
            case GiveUp(why):
                raise RingBroken(f"{exc}; {why}; {describe(self._formation.statuses(self.plan))}") from exc

    def _plan_without(self, nodes: Sequence[NodeId], why: str) -> None:
        """Adopt a plan in which the remaining nodes take over."""
        names, members = ", ".join(map(node_name, nodes)), self._recovery.members
        rest = NetworkConfig(self._network.starter, tuple(self._network.nodes[number] for number in members[1:]))
        try:
            plan = Plan(members, resplit(self.plan.job, rest, self._options), self.plan.n_slots)
            self.plan = self._fitted(plan, self._formation.statuses(plan))
        except (CheckpointError, StorageError, ConfigError) as impossible:
            self._recovery.give_up()
            raise RingBroken(f"{names} {why}, and no other node can take over: {impossible}") from impossible
        self._told.difference_update(nodes)
        self._formation.let_go(nodes)
        log.warning("going on without %s, which %s: layers %s", names, why, plan)

    def _tell_silence(self, number: NodeId, exc: MdiError) -> None:
        """Say once that a node does not answer. Also called from the threads that call the nodes."""
        if number in self._told:
            return
        self._told.add(number)
        node, name = self._network.nodes[number], node_name(number)
        who = f"{name} ({node.addr}:{node.port_in})"
        if self._recovery.state is RunState.STARTING:
            reason = "" if isinstance(exc, Unreachable) else f": {exc}"
            log.warning("waiting for %s at %s%s", name, self._formation.clients[number].url, reason)
        else:
            reason = exc.reason if isinstance(exc, RingError) and exc.peer == name else str(exc)
            log.warning("%s is lost: %s; waiting up to %g s for it", who, reason, self._options.node_timeout_s)
