"""One picture of the ring for all who watch it, as it is now or as server-sent events."""

import json
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from mdi.net.timeouts import Clock
from mdi.serve.errors import unavailable

EVERY_S = 0.5  # between two pictures, however many watch
AT_LEAST_EVERY_S = 2.0  # an event, where nothing changes
MAX_STREAMS = 16  # each has a thread
# What changes all the time and says nothing new.
_PASSING = ("state_s", "predicted_tokens_per_s", "reached_tokens_per_s")
_PASSING_OF_SAMPLES = ("seconds",)
_PASSING_OF_NODES = ("missing_s", "memory_bytes", "free_memory_bytes", "compute", "transfer", "idle", "rows_per_s")


@dataclass(frozen=True)
class Picture:
    """The ring at a moment."""

    body: bytes  # JSON
    gist: object  # equal in two pictures that show the same; never while a message travels, which has an age

    @classmethod
    def of(cls, state: dict[str, Any]) -> "Picture":
        gist = _without(state, _PASSING)
        gist["nodes"] = [_without(node, _PASSING_OF_NODES) for node in state["nodes"]]
        gist["samples"] = [_without(sample, _PASSING_OF_SAMPLES) for sample in state["samples"]]
        return cls(json.dumps(state).encode(), gist)


def _without(values: dict[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name not in names}


class RingFeed:
    """Takes the pictures. Any thread may call it."""

    def __init__(self, state: Callable[[], dict[str, Any]], clock: Clock = time.monotonic) -> None:
        """`state` gives the answer to `GET /ring` as it is now."""
        self._state, self._clock = state, clock
        self._lock = threading.Lock()
        self._latest: Picture | None = None
        self._taken_s = 0.0
        self._n_streams = 0
        self._closed = threading.Event()

    def latest(self) -> Picture:
        """A picture that is at most `EVERY_S` old."""
        with self._lock:  # also while it is taken: the others get the same one
            if self._latest is None or self._clock() - self._taken_s >= EVERY_S:
                self._latest, self._taken_s = Picture.of(self._state()), self._clock()
            return self._latest

    def stream(self, is_gone: Callable[[], bool]) -> "RingEvents":
        """Events until `is_gone`, or until the feed is closed. Raises `ApiError` where too many watch already."""
        with self._lock:
            if self._n_streams >= MAX_STREAMS:
                raise unavailable(f"{MAX_STREAMS} streams of the ring are open already", retry_after_s=5)
            self._n_streams += 1
        return RingEvents(self, is_gone, self._clock)

    def wait(self) -> bool:
        """Wait until the next picture is due; False once the feed is closed."""
        return not self._closed.wait(EVERY_S)

    def leave(self) -> None:
        """A stream has ended."""
        with self._lock:
            self._n_streams -= 1

    def close(self) -> None:
        """End all streams."""
        self._closed.set()


class RingEvents:
    """The events of one stream. Read by the thread of its request alone.

    An object and not a generator, because one that was never begun does nothing when it is closed.
    """

    def __init__(self, feed: RingFeed, is_gone: Callable[[], bool], clock: Clock) -> None:
        self._feed, self._is_gone, self._clock = feed, is_gone, clock
        self._shown: Picture | None = None  # None: nothing yet
        self._shown_s = 0.0
        self._is_open = True

    def __iter__(self) -> "RingEvents":
        return self

    def __next__(self) -> bytes:
        """The next event: at once the first time, then when something has changed or it is time for one."""
        while self._shown is None or self._feed.wait():
            if self._is_gone():
                break
            picture, now_s = self._feed.latest(), self._clock()
            if self._shown is None or picture.gist != self._shown.gist or now_s - self._shown_s >= AT_LEAST_EVERY_S:
                self._shown, self._shown_s = picture, now_s
                return b"event: ring\ndata: " + picture.body + b"\n\n"
        raise StopIteration

    def close(self) -> None:
        """Called by the server, whether all was sent or the client is gone. Idempotent."""
        if self._is_open:
            self._is_open = False
            self._feed.leave()
