"""The next ring, made ready beside the one that works: with nodes that it runs without, or on a better split."""

import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from mdi.checkpoint.folder import ModelFolder
from mdi.cluster.plan import Plan
from mdi.cluster.rendezvous import Statuses
from mdi.config.network import node_name
from mdi.control.status import NodeState, NodeStatus
from mdi.errors import MdiError
from mdi.ids import NodeId
from mdi.net.timeouts import Timeouts

log = logging.getLogger(__name__)


QUIET_WAIT_S = 60.0  # that a better split waits for a moment without samples; then those that run are replayed


@dataclass(frozen=True)
class NextRing:
    """The plan of a ring that can be formed at once: what its nodes are to load has been sent to them."""

    nodes: tuple[NodeId, ...]  # that take part again, or for the first time; none: it is on a better split
    plan: Plan
    model: ModelFolder  # with the chunks of the plan
    found_s: float = 0.0  # when it was ready, by the clock of the timeouts

    def is_due(self, now_s: float, n_running: int) -> bool:
        """Whether it is to be formed now, where so many samples run."""
        return bool(self.nodes) or n_running == 0 or now_s - self.found_s >= QUIET_WAIT_S


class ReturnWatch:
    """Watches for the return of nodes while one ring runs, and for a better split, in a thread of its own.

    The first `NextRing` ends the watch. The ring that is formed next has another one.
    """

    def __init__(
        self,
        absent: Callable[[], Sequence[NodeId]],
        ask: Callable[[Sequence[NodeId]], Statuses],
        prepare: Callable[[Sequence[NodeId], Callable[[], None]], NextRing | None],
        on_found: Callable[[], None],
        timeouts: Timeouts,
    ) -> None:
        """All of these are called from the thread.

        Args:
            absent: the nodes that would be taken back if they were there.
            ask: what they say of themselves.
            prepare: makes a ring with these nodes possible; where there are none, one on a better split, or None. It
                calls the function that it is given again and again; what that raises ends it. Raises `MdiError` where
                there can be no such ring.
            on_found: called once `found` is set.
        """
        self.found: NextRing | None = None
        self._absent, self._ask, self._prepare, self._on_found = absent, ask, prepare, on_found
        self._timeouts, self._told = timeouts, ""
        self._closing = threading.Event()
        threading.Thread(target=self._watch, name="return-watch", daemon=True).start()

    def close(self) -> None:
        """Watch no more. What is under way ends soon, and is not waited for."""
        self._closing.set()

    def _watch(self) -> None:
        while not self._closing.wait(self._timeouts.return_check_s):
            nodes = [node for node, status in self._ask(self._absent()).items() if _is_free(status)]
            try:
                found = self._prepare(nodes, self._check)
            except _Closed:
                return
            except MdiError as exc:
                self._tell(nodes, str(exc))
                continue
            if found is not None:
                self.found = found
                self._on_found()
                return

    def _check(self) -> None:
        if self._closing.is_set():
            raise _Closed

    def _tell(self, nodes: Sequence[NodeId], problem: str) -> None:
        if problem != self._told:  # once
            self._told = problem
            what = f"{' and '.join(map(node_name, nodes))} cannot take part" if nodes else "the split stays as it is"
            log.warning("%s: %s", what, problem)


class _Closed(Exception):
    """Nobody waits for a return any more."""


def _is_free(status: NodeStatus | None) -> bool:
    return status is not None and status.state is NodeState.IDLE
