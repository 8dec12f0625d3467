"""How long a frame may take on its way over one link.

Bytes that come one by one are signs of life, but no progress: so a frame that has begun is bounded as a whole, by its
size and by how fast the link has been.
"""

import contextlib
import socket
from collections import deque
from collections.abc import Iterator

from mdi.errors import LinkTimeout
from mdi.net.timeouts import Timeouts
from mdi.strings import format_bytes

MIN_MEASURED_BYTES = 64 << 10  # of a frame that tells of the link: smaller ones only pass between buffers
N_MEASURED = 8
SILENT = 0.9  # of the silence that a peer may keep: who has not said anything for longer is silent, rather than slow


class Pace:
    """One direction of a link. Called from the thread that reads it, or the one that writes it."""

    def __init__(self, timeouts: Timeouts, peer_timeout_s: float, fastest_bytes_s: float) -> None:
        """`fastest_bytes_s`: no link is taken to be faster, whatever was measured."""
        self.timeouts, self.peer_timeout_s = timeouts, peer_timeout_s
        self._fastest_bytes_s = fastest_bytes_s
        self._bytes_s: deque[float] = deque(maxlen=N_MEASURED)

    def begin(self) -> "Transfer":
        """A frame begins to pass."""
        return Transfer(self, self.timeouts.clock())

    def passed(self, n_bytes: int, took_s: float) -> None:
        """Take note of a frame that has passed."""
        if n_bytes >= MIN_MEASURED_BYTES and took_s > 0:
            self._bytes_s.append(n_bytes / took_s)

    def limit_s(self, n_bytes: int) -> float:
        """How long a frame of that size may take. The slowest of the last large ones says what is usual."""
        usual_bytes_s = min(self._bytes_s, default=self.timeouts.link_bytes_s)
        expected_s = n_bytes / min(usual_bytes_s, self._fastest_bytes_s)
        return self.timeouts.patience_s(expected_s, self.peer_timeout_s)


class Transfer:
    """One frame on its way."""

    def __init__(self, pace: Pace, began_s: float) -> None:
        self._pace, self._began_s = pace, began_s

    @contextlib.contextmanager
    def step(self, sock: socket.socket, n_bytes: int) -> Iterator[None]:
        """Bound one read or write of a frame of that size, as far as it is known.

        Raises `LinkTimeout` where the frame as a whole takes too long, and leaves a silence to the timeout of `sock`.
        """
        limit_s, silence_s = self._pace.limit_s(n_bytes), self._pace.peer_timeout_s
        left_s = self._pace.timeouts.left_s(self._began_s + limit_s)
        if left_s <= 0:
            raise _too_slow(n_bytes, limit_s)
        sock.settimeout(min(left_s, silence_s))
        try:
            yield
        except TimeoutError as exc:
            if left_s < SILENT * silence_s:
                raise _too_slow(n_bytes, limit_s) from exc
            raise

    def end(self, n_bytes: int) -> None:
        """The frame is through."""
        self._pace.passed(n_bytes, self._pace.timeouts.clock() - self._began_s)


def _too_slow(n_bytes: int, limit_s: float) -> LinkTimeout:
    return LinkTimeout(f"is too slow: {format_bytes(n_bytes)} were not through after {limit_s:.3g} s")
