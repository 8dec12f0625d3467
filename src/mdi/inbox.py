"""The one place where everything that happens to a node arrives: messages, requests, faults, finished calls.

Any thread may post; the node's main thread takes. So there is nothing else to wait on, and nothing polls.
"""

import queue
import signal
import time
from collections import deque


class Stopped(SystemExit):
    """The program was asked to end, by a signal or as by one. Uncaught, it ends with the exit code of that signal."""

    def __init__(self, number: signal.Signals) -> None:
        super().__init__(128 + number)


class Inbox:
    """A queue of events, with selective receive: what is not waited for stays, in its order.

    It has no bound of its own. What can arrive is bounded by what the scheduler lets travel; a full inbox would
    block the very threads that have to report a fault.
    """

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[object] = queue.SimpleQueue()
        self._passed_over: deque[object] = deque()
        self._interruption: signal.Signals | None = None

    def post(self, event: object) -> None:
        """Add an event; never blocks."""
        self._queue.put(event)

    def interrupt(self, number: signal.Signals) -> None:
        """Have the main thread end as signal `number` asks: from now on `get`, `wait_for` and `check` raise `Stopped`.

        Called from any thread. Nothing can lose it: it stays, and is ahead of all events.
        """
        self._interruption = self._interruption or number
        self._queue.put(None)  # wakes a thread that waits

    def check(self) -> None:
        """Raise `Stopped` after `interrupt`. For work that takes seconds and waits for no event."""
        if self._interruption is not None:
            raise Stopped(self._interruption)

    @property
    def is_empty(self) -> bool:
        """Whether nothing waits to be taken. For work that is to end as soon as there is something else to do."""
        return not self._passed_over and self._queue.empty()

    def get(self, timeout_s: float | None = None) -> object:
        """The oldest event; None waits for ever. Raises `queue.Empty` after `timeout_s`, `Stopped` as `check` does."""
        self.check()
        if self._passed_over:
            return self._passed_over.popleft()
        return self._take(timeout_s)

    def wait_for(self, *kinds: type, timeout_s: float | None = None) -> object:
        """The oldest event of one of `kinds`. Raises `queue.Empty` after `timeout_s`, `Stopped` as `check` does."""
        self.check()
        for event in self._passed_over:
            if isinstance(event, kinds):
                self._passed_over.remove(event)
                return event
        deadline_s = None if timeout_s is None else time.monotonic() + timeout_s
        while True:
            left_s = None if deadline_s is None else max(0.0, deadline_s - time.monotonic())
            event = self._take(left_s)
            if isinstance(event, kinds):
                return event
            self._passed_over.append(event)

    def _take(self, timeout_s: float | None) -> object:
        event = self._queue.get(timeout=timeout_s)
        self.check()
        return event
