"""The one place where everything that happens to a node arrives: messages, requests, faults, finished calls.

Any thread may post; the node's main thread takes. So there is nothing else to wait on, and nothing polls.
"""

import queue
import signal
import time
from collections import deque
from dataclasses import dataclass


@dataclass(frozen=True)
class StopRequested:
    """The node is to end, unless it serves another run than `run` by now."""

    run: int | None


class Stopped(SystemExit):
    """The node was asked to end. The program ends as it does on SIGTERM."""

    def __init__(self) -> None:
        super().__init__(128 + signal.SIGTERM)


class Inbox:
    """A queue of events, with selective receive: what is not waited for stays, in its order.

    It has no bound of its own. What can arrive is bounded by what the scheduler lets travel; a full inbox would
    block the very threads that have to report a fault.
    """

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[object] = queue.SimpleQueue()
        self._passed_over: deque[object] = deque()

    def post(self, event: object) -> None:
        """Add an event; never blocks."""
        self._queue.put(event)

    def get(self, timeout_s: float | None = None) -> object:
        """The oldest event; None waits for ever. Raises `queue.Empty` after `timeout_s`."""
        if self._passed_over:
            return self._passed_over.popleft()
        return self._queue.get(timeout=timeout_s)

    def wait_for(self, *kinds: type, timeout_s: float | None = None) -> object:
        """The oldest event of one of `kinds`. Raises `queue.Empty` after `timeout_s`, `Stopped` on `StopRequested`."""
        for event in self._passed_over:
            if isinstance(event, kinds):
                self._passed_over.remove(event)
                return event
        deadline_s = None if timeout_s is None else time.monotonic() + timeout_s
        while True:
            left_s = None if deadline_s is None else max(0.0, deadline_s - time.monotonic())
            event = self._queue.get(timeout=left_s)
            if isinstance(event, kinds):
                return event
            if isinstance(event, StopRequested):
                raise Stopped
            self._passed_over.append(event)
