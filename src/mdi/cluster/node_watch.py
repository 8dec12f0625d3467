"""What the nodes of a ring say of themselves, asked again and again as long as somebody wants to know."""

import operator
import threading
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from mdi.control.status import NodeStatus
from mdi.errors import ControlError
from mdi.ids import NodeId
from mdi.net.timeouts import DEFAULT_TIMEOUTS, Timeouts

EVERY_S = 1.0  # between two questions to a node
LINGER_S = 60.0  # after somebody wanted to know: as long as Prometheus waits between two scrapes by default
FIRST_ANSWERS_S = 1.0  # that whoever asks after a pause waits for
WINDOW_S = 5.0  # that rates are computed over


@dataclass(frozen=True)
class Sighting:
    """What a node said at a moment, by our clock."""

    at_s: float
    status: NodeStatus


@dataclass(frozen=True)
class NodeNews:
    """What is known of a node. `earlier` and `latest` are of one process, and less than `WINDOW_S` apart."""

    latest: Sighting | None = None  # None: it has never answered
    earlier: Sighting | None = None
    missing_since_s: float | None = None  # None: it answered when it was asked last, or was never asked


class NodeWatch:
    """Asks each node about once a second, in a thread for each, while `news` is called now and then.

    A node that takes its time, or is gone, holds up neither the others nor whoever calls `news`.
    """

    def __init__(self, asks: Mapping[NodeId, Callable[[], NodeStatus]], timeouts: Timeouts = DEFAULT_TIMEOUTS) -> None:
        """`asks` have deadlines of their own, and raise `ControlError` where a node does not answer."""
        self._clock = timeouts.clock
        self._closing = threading.Event()
        self._changed = threading.Condition()  # guards all below
        self._asks = dict(asks)
        self._wanted_until_s = 0.0
        self._threads: dict[NodeId, threading.Thread] = {}
        self._unanswered: set[NodeId] = set()  # whose thread has not had an answer or an error yet
        self._news = dict.fromkeys(asks, NodeNews())
        self._sightings: dict[NodeId, deque[Sighting]] = {node: deque() for node in asks}

    def news(self) -> Mapping[NodeId, NodeNews]:
        """What is known now. After a pause the first answers are waited for, up to `FIRST_ANSWERS_S`."""
        with self._changed:
            self._wanted_until_s = self._clock() + LINGER_S
            asked = self._asks.keys() - self._threads.keys()
            for node in asked:
                self._begin(node)
            self._changed.wait_for(lambda: not asked & self._unanswered, FIRST_ANSWERS_S)
            return dict(self._news)

    def add(self, node: NodeId, ask: Callable[[], NodeStatus]) -> None:
        """Ask one more node from now on."""
        with self._changed:
            self._asks[node], self._news[node], self._sightings[node] = ask, NodeNews(), deque()

    def close(self) -> None:
        """Ask no more. A question that is under way is waited for, up to `FIRST_ANSWERS_S`."""
        self._closing.set()
        with self._changed:
            threads = list(self._threads.values())
        for thread in threads:
            thread.join(FIRST_ANSWERS_S)

    def _begin(self, node: NodeId) -> None:
        if not self._closing.is_set():
            self._unanswered.add(node)
            self._threads[node] = threading.Thread(target=self._ask_on, args=(node,), name="node-watch", daemon=True)
            self._threads[node].start()

    # ---- a thread for each node

    def _ask_on(self, node: NodeId) -> None:
        while self._is_wanted(node):
            try:
                status = self._asks[node]()
            except ControlError:
                status = None
            with self._changed:
                self._note(node, status)
                self._unanswered.discard(node)
                self._changed.notify_all()
            self._closing.wait(EVERY_S)

    def _is_wanted(self, node: NodeId) -> bool:
        with self._changed:
            if not self._closing.is_set() and self._clock() < self._wanted_until_s:
                return True
            del self._threads[node]  # with the lock held: whoever wants to know from now on begins another one
            return False

    def _note(self, node: NodeId, status: NodeStatus | None) -> None:
        now_s, before = self._clock(), self._news[node]
        if status is None:
            since_s = now_s if before.missing_since_s is None else before.missing_since_s
            self._sightings[node].clear()
            self._news[node] = replace(before, earlier=None, missing_since_s=since_s)
            return
        sightings = self._sightings[node]
        while sightings and (now_s - sightings[0].at_s > WINDOW_S or _is_younger(status, sightings[0].status)):
            sightings.popleft()
        earlier, latest = sightings[0] if sightings else None, Sighting(now_s, status)
        sightings.append(latest)
        self._news[node] = NodeNews(latest, earlier)


def _is_younger(status: NodeStatus, before: NodeStatus) -> bool:
    """Whether a status is of a process that was started after the one of an earlier status."""
    return status.work is not None and before.work is not None and any(map(operator.lt, status.work, before.work))
