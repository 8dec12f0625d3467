"""What to do when the ring breaks: pure decisions. No I/O, no threads; the time is handed in.

Nodes are known by their places in the network; the starter is 0 and is never left out. A run that has begun
goes from *running* to *recovering* and back, as often as it takes; every way through *recovering* ends, because a
missing node has a deadline and a ring that breaks again without a new token is charged to one of its nodes.
"""

import enum
from collections.abc import Collection, Sequence
from dataclasses import dataclass

MOST_FAILURES = 3  # of one node within `WINDOW_S`: then it is left out
WINDOW_S = 600.0


class State(enum.Enum):
    """How far the run is."""

    STARTING = enum.auto()  # no ring has been formed yet
    RUNNING = enum.auto()
    RECOVERING = enum.auto()  # a ring with a new epoch is being formed
    FAILED = enum.auto()


class Event(enum.Enum):
    """What can happen to it."""

    FORMED = enum.auto()  # the ring is closed
    BROKE = enum.auto()  # the ring broke, or did not close
    LEFT_OUT = enum.auto()  # there are nodes that cannot be waited for any longer
    HOPELESS = enum.auto()


_TABLE = {
    (State.STARTING, Event.FORMED): State.RUNNING,
    (State.STARTING, Event.BROKE): State.STARTING,
    (State.STARTING, Event.LEFT_OUT): State.FAILED,  # which nodes there are is the user's to say
    (State.STARTING, Event.HOPELESS): State.FAILED,
    (State.RUNNING, Event.BROKE): State.RECOVERING,
    (State.RECOVERING, Event.FORMED): State.RUNNING,
    (State.RECOVERING, Event.BROKE): State.RECOVERING,
    (State.RECOVERING, Event.LEFT_OUT): State.RECOVERING,
    (State.RECOVERING, Event.HOPELESS): State.FAILED,
}


@dataclass(frozen=True)
class Retry:
    """Form the ring anew with the same nodes."""


@dataclass(frozen=True)
class GoOnWithout:
    """Form the ring anew without these nodes."""

    nodes: tuple[int, ...]
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
        self.state = State.STARTING
        self.members: tuple[int, ...] = tuple(range(n_nodes))
        self.n_recoveries = 0
        self._node_timeout_s = node_timeout_s
        self._missing_since_s: dict[int, float] = {}
        self._failures_s: dict[int, list[float]] = {}  # when each node failed

    def deadline_s(self, node: int, now_s: float) -> float:
        """Until when `node` is waited for."""
        return self._missing_since_s.get(node, now_s) + self._node_timeout_s

    def is_missing(self, node: int) -> bool:
        """Whether `node` gave no answer when the nodes were asked last."""
        return node in self._missing_since_s

    def formed(self) -> None:
        """All members are in a closed ring."""
        self.n_recoveries += self.state is State.RECOVERING
        self._missing_since_s.clear()
        self._move(Event.FORMED)

    def broke(self, now_s: float, *, silent: Collection[int], accused: int | None, progressed: bool) -> Decision:
        """The ring broke, or could not be closed.

        Args:
            silent: members that do not answer.
            accused: the member that the others lost, where it is known.
            progressed: whether a token has been generated since the ring was formed.
        """
        self._move(Event.BROKE)
        newly_silent = [node for node in silent if node not in self._missing_since_s]
        self._missing_since_s = {node: self._missing_since_s.get(node, now_s) for node in silent}
        charged = newly_silent
        if not silent and not progressed:  # all live: a link that breaks now and then is no reason to leave one out
            charged = [self._chargeable(accused)]
        for node in charged:
            self._failures_s.setdefault(node, []).append(now_s)
        worn = tuple(node for node in charged if self._n_recent_failures(node, now_s) >= MOST_FAILURES)
        if not worn:
            return Retry()
        return self._leave_out(worn, f"failed {MOST_FAILURES} times in {WINDOW_S / 60:g} minutes")

    def expired(self, nodes: Collection[int]) -> Decision:
        """These members are still missing at their deadlines."""
        return self._leave_out(tuple(nodes), f"did not come back within {self._node_timeout_s:g} s (--node-timeout)")

    def give_up(self) -> None:
        """What was decided cannot be done."""
        self._move(Event.HOPELESS)

    def _leave_out(self, nodes: Sequence[int], why: str) -> Decision:
        self._move(Event.LEFT_OUT)
        if self.state is State.FAILED:
            return GiveUp(why)
        self.members = tuple(node for node in self.members if node not in nodes)
        for node in nodes:
            self._missing_since_s.pop(node, None)
        return GoOnWithout(tuple(nodes), why)

    def _chargeable(self, accused: int | None) -> int:
        """Whom a broken link is charged to. The starter cannot be left out, so for its link the next node stands in;
        where nobody is accused the last node, which did not reach the starter.
        """
        if accused is None:
            return self.members[-1]
        return accused or self.members[1]

    def _n_recent_failures(self, node: int, now_s: float) -> int:
        return sum(now_s - failed_s <= WINDOW_S for failed_s in self._failures_s[node])

    def _move(self, event: Event) -> None:
        self.state = _TABLE[self.state, event]
