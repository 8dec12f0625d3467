"""How long a frame may take on its way over one link.

Bytes that come one by one are signs of life, but no progress: so a frame that has begun is bounded as a whole, by its
size and by how fast the link has been.
"""

from collections import deque

from mdi.errors import LinkTimeout
from mdi.net.timeouts import Timeouts
from mdi.strings import format_bytes

MIN_MEASURED_BYTES = 64 << 10  # of a frame that tells of the link: smaller ones only pass between buffers
N_MEASURED = 8


class Pace:
    """One direction of a link. Called from the thread that reads it, or from the one whose turn it is to write."""

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

    def check(self, n_bytes: int) -> None:
        """Raise `LinkTimeout` where the frame takes too long, of that size as far as it is known.

        Called after each read or write that did not complete it. A deadline of the socket's own would cost a system
        call for each of them, and a wait that brings nothing is bounded as a silence.
        """
        took_s = self._pace.timeouts.clock() - self._began_s
        if took_s > self._pace.peer_timeout_s and took_s > (limit_s := self._pace.limit_s(n_bytes)):
            raise LinkTimeout(f"is too slow: {format_bytes(n_bytes)} were not through after {limit_s:.3g} s")

    def end(self, n_bytes: int) -> None:
        """The frame is through."""
        self._pace.passed(n_bytes, self._pace.timeouts.clock() - self._began_s)
