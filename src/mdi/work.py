"""How a node spends its time, and how much it has computed: counters that only grow, from its start to its end."""

import threading
import time
from collections.abc import Callable
from typing import Literal, NamedTuple


class Work(NamedTuple):
    """What a node has done since it was started. Messages pass its links while it computes too."""

    compute_s: float
    transfer_s: float  # frames on their way in or out, from their first byte to their last
    idle_s: float  # waiting for something to do
    rows: int  # of hidden states, computed


class _MainThread(NamedTuple):
    """What the main thread has done, and what it does: replaced as a whole, so that a reader sees both or neither."""

    compute_s: float = 0.0
    idle_s: float = 0.0
    rows: int = 0
    activity: Literal["compute", "idle"] | None = None
    since_s: float = 0.0


class WorkMeter:
    """Counts the work of one node. Any thread may read it.

    Each counter is written by one thread at a time, the main thread or one of the link, so those need no lock.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._main = _MainThread()
        self._sent_s = self._received_s = 0.0
        self._reading = threading.Lock()
        self._told = Work(0.0, 0.0, 0.0, 0)

    @property
    def total(self) -> Work:
        """All so far, with what goes on now.

        What was going on may end at a moment that lies before the one up to which it was told. A counter that goes back
        is taken for that of another process, so it stays where it was.
        """
        with self._reading:
            told, main = self._told, self._after(self._clock())
            self._told = Work(
                max(told.compute_s, main.compute_s),
                self._sent_s + self._received_s,
                max(told.idle_s, main.idle_s),
                main.rows,
            )
            return self._told

    # ---- main thread

    def begin(self, activity: Literal["compute", "idle"]) -> None:
        """The main thread computes from now on, or waits."""
        self._main = self._main._replace(activity=activity, since_s=self._clock())

    def end(self, rows: int = 0) -> None:
        """It has computed so many rows, or waited no longer."""
        main = self._after(self._clock())
        self._main = main._replace(rows=main.rows + rows, activity=None)

    def _after(self, now_s: float) -> _MainThread:
        main = self._main
        passed_s = max(0.0, now_s - main.since_s)
        if main.activity == "compute":
            return main._replace(compute_s=main.compute_s + passed_s)
        return main if main.activity is None else main._replace(idle_s=main.idle_s + passed_s)

    # ---- whoever sends or receives

    def sent(self, took_s: float) -> None:
        """A frame went out."""
        self._sent_s += took_s

    def received(self, took_s: float) -> None:
        """A frame came in."""
        self._received_s += took_s
