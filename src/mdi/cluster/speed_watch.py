"""Asks the nodes of a ring that was measured how long they have computed, now and then, and names slow ones."""

import logging
import threading
from collections.abc import Callable, Mapping

from mdi.cluster.rendezvous import Statuses
from mdi.cluster.slow_nodes import SlowNodes
from mdi.ids import NodeId
from mdi.net.timeouts import DEFAULT_TIMEOUTS, Timeouts

log = logging.getLogger(__name__)


class SpeedWatch:
    """A thread of its own while a run lasts, from `start` to `close`."""

    def __init__(
        self,
        ask: Callable[[], Statuses],
        expected_s: Callable[[], Mapping[NodeId, float]],
        timeouts: Timeouts = DEFAULT_TIMEOUTS,
    ) -> None:
        """Both are called from the thread.

        Args:
            ask: what the members say of themselves, within seconds.
            expected_s: for how long each should have computed, had it been as fast as measured.
        """
        self._ask, self._expected_s, self._timeouts = ask, expected_s, timeouts
        self._nodes = SlowNodes()
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def slowness(self) -> Mapping[NodeId, float]:
        """Of the nodes of which that is known: see `SlowNodes`. Any thread may ask."""
        return self._nodes.slowness

    def start(self) -> None:
        """Watch from now on. Nothing happens where it does already."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._watch, name="speed-watch", daemon=True)
            self._thread.start()

    def close(self) -> None:
        """Watch no more. A question that is under way ends soon, and is not waited for."""
        self._closing.set()

    def look(self) -> None:
        """Ask once, and tell the user what has changed."""
        expected_s = self._expected_s()  # before: what is asked for may be of a little more
        statuses = self._ask()
        computed_s = {n: s.work.compute_s for n, s in statuses.items() if s is not None and s.work is not None}
        for line in self._nodes.update(self._timeouts.clock(), computed_s, expected_s):
            log.warning("%s", line)

    def _watch(self) -> None:
        while not self._closing.wait(self._timeouts.speed_check_s):
            self.look()
