"""What to do when the ring breaks: pure decisions. No I/O, no threads; the time is handed in.

A node is its index in the network file; the starter is 0 and is never left out. A run that has begun
goes from *running* to *recovering* and back, as often as it takes; every way through *recovering* ends, because a
missing node has a deadline and a ring that breaks again without a new token is blamed on one of its nodes. A node that
was left out may come back, but not at once after it failed to.
"""

import enum
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from mdi.control.protocol import NoAnswer, NodeBusy
from mdi.errors import ControlError
from mdi.ids import NodeId

MAX_FAILURES = 3  # of one node within `WINDOW_S`; then it is left out
WINDOW_S = 600.0
RETURN_TIMEOUT_S = 10.0  # for a node that comes back to a ring that runs without it


class RunState(enum.Enum):
    """How far the run is."""

    STARTING = enum.auto()  # no ring has been formed yet
    RUNNING = enum.auto()
    RECOVERING = enum.auto()  # a ring with a new epoch is being formed
    FAILED = enum.auto()


class RunEvent(enum.Enum):
    """What can happen to it."""

    FORMED = enum.auto()  # the ring is closed
    BROKE = enum.auto()  # the ring broke, or did not close
    LEFT_OUT = enum.auto()  # the deadline of a node has passed, or its failure budget is used up
    RETURNED = enum.auto()  # a node that was left out is ready to take part again
    REBALANCED = enum.auto()  # the same nodes get other layers
    HOPELESS = enum.auto()


_TABLE = {
    (RunState.STARTING, RunEvent.FORMED): RunState.RUNNING,
    (RunState.STARTING, RunEvent.BROKE): RunState.STARTING,
    (RunState.STARTING, RunEvent.LEFT_OUT): RunState.FAILED,  # only the user can say which nodes there are
    (RunState.STARTING, RunEvent.HOPELESS): RunState.FAILED,
    (RunState.RUNNING, RunEvent.BROKE): RunState.RECOVERING,
    (RunState.RUNNING, RunEvent.RETURNED): RunState.RECOVERING,
    (RunState.RUNNING, RunEvent.REBALANCED): RunState.RECOVERING,
    (RunState.RECOVERING, RunEvent.FORMED): RunState.RUNNING,
    (RunState.RECOVERING, RunEvent.BROKE): RunState.RECOVERING,
    (RunState.RECOVERING, RunEvent.LEFT_OUT): RunState.RECOVERING,
    (RunState.RECOVERING, RunEvent.HOPELESS): RunState.FAILED,
}


@dataclass(frozen=True)
class Retry:
    """Form the ring anew with the same nodes."""


@dataclass(frozen=True)
class GoOnWithout:
    """Form the ring anew without these nodes."""

    nodes: tuple[NodeId, ...]
    why: str


@dataclass(frozen=True)
class GiveUp:
    """End the run."""

    why: str


Decision = Retry | GoOnWithout | GiveUp


class Recovery:
    """Who is in the ring, who failed when, and what follows from it."""

    def __init__(self, n_nodes: int, node_timeout_s: float) -> None:
        """`node_timeout_s`: how long a missing node is waited for."""
        self.state = RunState.STARTING
        self.members: tuple[NodeId, ...] = tuple(map(NodeId, range(n_nodes)))
        self.n_recoveries = 0
        self._order = self.members  # of the ring when all take part
        self._node_timeout_s = node_timeout_s
        self._missing_since_s: dict[NodeId, float] = {}
        self._returning: frozenset[NodeId] = frozenset()  # taken back, and in no ring yet
        self._barred_until_s: dict[NodeId, float] = {}  # nodes that are not taken back before
        self._failures_s: dict[NodeId, list[float]] = {}  # when each node failed

    def choose(self, members: Sequence[NodeId]) -> None:
        """Only these take part, in this order, and no others later. Called before the first ring is formed."""
        self.members = self._order = tuple(members)

    def add(self, node: NodeId) -> None:
        """A node more may take part. It is as if it had been left out. Called from any thread."""
        self._order = (*self._order, node)

    def deadline_s(self, node: NodeId, now_s: float) -> float:
        """When waiting for `node` ends."""
        waited_s = min(RETURN_TIMEOUT_S, self._node_timeout_s) if node in self._returning else self._node_timeout_s
        return self._missing_since_s.get(node, now_s) + waited_s

    def is_missing(self, node: NodeId) -> bool:
        """Whether `node` gave no answer when the nodes were asked last."""
        return node in self._missing_since_s

    def waits_for(self, error: Exception) -> bool:
        """Whether a member that fails with `error` counts as missing, and is waited for until its deadline.

        Before the first ring, only a node that is not there yet does: a wrong key, version or option would fail again
        in the same way. Afterwards whatever answers in the place of a node that took part is not that node.
        """
        return isinstance(error, (NoAnswer, NodeBusy) if self.state is RunState.STARTING else ControlError)

    def formed(self) -> None:
        """All members are in a closed ring."""
        self.n_recoveries += self.state is RunState.RECOVERING
        self._missing_since_s.clear()
        self._returning = frozenset()
        self._move(RunEvent.FORMED)

    def broke(self, now_s: float, *, silent: Collection[NodeId], suspect: NodeId | None, progressed: bool) -> Decision:
        """The ring broke, or could not be closed.

        Args:
            silent: members that do not answer.
            suspect: the member that the others lost; None if it is unknown.
            progressed: whether a token has been generated since the ring was formed.
        """
        self._move(RunEvent.BROKE)
        newly_silent = [node for node in silent if node not in self._missing_since_s]
        self._missing_since_s = {node: self._missing_since_s.get(node, now_s) for node in silent}
        blamed = newly_silent
        if not silent and not progressed:  # all live: a link that breaks now and then is no reason to leave one out
            blamed = [self._blame(suspect)]
        for node in blamed:
            self._failures_s.setdefault(node, []).append(now_s)
        exhausted = tuple(node for node in blamed if self._n_recent_failures(node, now_s) >= MAX_FAILURES)
        if not exhausted:
            return Retry()
        return self._leave_out(exhausted, f"failed {MAX_FAILURES} times in {WINDOW_S / 60:g} minutes", now_s)

    def expired(self, now_s: float, nodes: Collection[NodeId]) -> Decision:
        """These members are still missing at their deadlines."""
        if self._returning.issuperset(nodes):
            return self._leave_out(tuple(nodes), "did not get ready after all", now_s)
        why = f"did not come back within {self._node_timeout_s:g} s (--node-timeout)"
        return self._leave_out(tuple(nodes), why, now_s)

    def may_take_part(self, node: NodeId) -> bool:
        """Whether this ring or a later one may have this node: not where the plan has left it out."""
        return node in self._order

    def may_return(self, now_s: float) -> tuple[NodeId, ...]:
        """Nodes that were left out, and would be taken back if they were there."""
        left_out = (node for node in self._order if node not in self.members)
        return tuple(node for node in left_out if now_s >= self._barred_until_s.get(node, now_s))

    def with_returned(self, nodes: Collection[NodeId]) -> tuple[NodeId, ...]:
        """The members of a ring with these nodes too, in its order."""
        return tuple(node for node in self._order if node in self.members or node in nodes)

    def returned(self, nodes: Collection[NodeId], members: Sequence[NodeId]) -> None:
        """These nodes, which were left out, take part in the next ring, whose members have this order."""
        self._move(RunEvent.RETURNED)
        self._returning = frozenset(nodes)
        self.arrange(members)

    def arrange(self, members: Sequence[NodeId]) -> None:
        """The next ring is of the same members, in this order; all of them together keep theirs."""
        self.members = tuple(members)

    def rebalanced(self, members: Sequence[NodeId]) -> None:
        """The next ring is of the same members, in this order."""
        self._move(RunEvent.REBALANCED)
        self.members = tuple(members)
        self._order = (*members, *(node for node in self._order if node not in members))

    def give_up(self) -> None:
        """What was decided cannot be done."""
        self._move(RunEvent.HOPELESS)

    def _leave_out(self, nodes: Sequence[NodeId], why: str, now_s: float) -> Decision:
        self._move(RunEvent.LEFT_OUT)
        if self.state is RunState.FAILED:
            return GiveUp(why)
        self.members = tuple(node for node in self.members if node not in nodes)
        for node in nodes:
            self._missing_since_s.pop(node, None)
            has_failed = node in self._returning or self._n_recent_failures(node, now_s) >= MAX_FAILURES
            self._barred_until_s[node] = now_s + WINDOW_S if has_failed else now_s
        return GoOnWithout(tuple(nodes), why)

    def _blame(self, suspect: NodeId | None) -> NodeId:
        """The node that a broken link is blamed on.

        The starter cannot be left out, so the next node takes the blame for its link. Without a suspect it is the last
        node, which did not reach the starter.
        """
        if suspect is None:
            return self.members[-1]
        return suspect or self.members[1]

    def _n_recent_failures(self, node: NodeId, now_s: float) -> int:
        return sum(now_s - failed_s <= WINDOW_S for failed_s in self._failures_s.get(node, ()))

    def _move(self, event: RunEvent) -> None:
        self.state = _TABLE[self.state, event]
