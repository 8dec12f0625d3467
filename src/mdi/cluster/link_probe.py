"""What a frame takes between two nodes: a ring of the two, over the sockets, MACs and TLS of any other.

The node of rank 0 sends rows, the one of rank 1 returns those that are to be kept: one of many, or all of them. So each
direction is timed without a clock that both have.
"""

import queue
import socket
import statistics
from collections.abc import Callable
from typing import NoReturn

from mdi.control.measurement import LinkRequest, LinkTimes
from mdi.errors import LinkTimeout
from mdi.inbox import Inbox
from mdi.net.access import Access
from mdi.net.refusals import RefusalLog
from mdi.net.timeouts import Timeouts
from mdi.ring.link import Link, LinkDown, PredecessorConnected, Received
from mdi.ring.messages import Activation, Goodbye, Message
from mdi.segments import Segment, kept_rows_of

TIMING_S = 0.2  # that frames of one size are sent for
MIN_FRAMES, MAX_FRAMES = 3, 100  # of one size
FIRST_BYTES = 16 << 10  # of rows in the first frame that is more than a row
TELLING_S = 0.02  # a frame that takes so much longer than a row says how fast the link is


class LinkProbe:
    """One end of a link that is timed. Use it as a context: it listens on entry, and is closed on exit.

    Called from the node's main thread, and takes what belongs to its link from the inbox; other events stay there.
    """

    def __init__(
        self,
        request: LinkRequest,
        *,
        listener: socket.socket,
        inbox: Inbox,
        access: Access,
        source_port: int,
        refusals: RefusalLog,
        timeouts: Timeouts,
    ) -> None:
        self._request, self._inbox, self._timeouts = request, inbox, timeouts
        config = request.link_config(source_port, timeouts)
        self._link = Link(config, listener=listener, post=inbox.post, access=access, refusals=refusals)

    def __enter__(self) -> "LinkProbe":
        self._link.accept()
        return self

    def __exit__(self, *_: object) -> None:
        self._link.close(self._timeouts.fault_drain_s)

    def echo(self) -> None:
        """As rank 1: return what comes, until the other end says goodbye. Raises `MdiError`."""
        self._await_predecessor()
        self._link.connect()
        row_bytes = self._request.row_bytes
        while isinstance(message := self._receive(), Activation):
            kept = message.data[len(message.data) - kept_rows_of(message.segments) * row_bytes :]
            self._link.send(Activation(message.segments, kept))
        self._link.send(message)

    def times(self) -> LinkTimes:
        """As rank 0: connect, and time frames. Raises `MdiError` that names the other node."""
        self._link.connect()
        self._await_predecessor()
        round_trip_s = self._usual_s(1, 1)
        rows = self._telling_rows(round_trip_s)
        there_s, both_s = self._usual_s(rows, 1), self._usual_s(rows, rows)
        self._link.send(Goodbye())
        while not isinstance(self._receive(), Goodbye):
            pass
        n_bytes = (rows - 1) * self._request.row_bytes
        return LinkTimes(round_trip_s, _rate(n_bytes, there_s - round_trip_s), _rate(n_bytes, both_s - there_s))

    def _telling_rows(self, round_trip_s: float) -> int:
        """Rows of a frame that is large enough for this link, or as large as it may be."""
        rows, most = max(2, FIRST_BYTES // self._request.row_bytes), self._request.max_rows
        while rows < most and self._trip_s(rows, 1) - round_trip_s < TELLING_S:
            rows *= 2
        return min(rows, most)

    def _usual_s(self, rows: int, keep: int) -> float:
        """The median of the trips of such frames: a busy machine delays some of them."""
        trips_s: list[float] = []
        deadline_s = self._timeouts.deadline_s(TIMING_S)
        while len(trips_s) < MIN_FRAMES or (len(trips_s) < MAX_FRAMES and self._timeouts.left_s(deadline_s)):
            trips_s.append(self._trip_s(rows, keep))
        return statistics.median(trips_s)

    def _trip_s(self, rows: int, keep: int) -> float:
        """Seconds until the kept rows of a frame are back."""
        began_s = self._timeouts.clock()
        data = memoryview(bytearray(rows * self._request.row_bytes))
        self._link.send(Activation((Segment(0, 0, rows, keep),), data))
        self._receive()
        return self._timeouts.clock() - began_s

    def _await_predecessor(self) -> None:
        self._next(lambda event: isinstance(event, PredecessorConnected), self._timeouts.handshake_s)

    def _receive(self) -> Message:
        event = self._next(lambda event: isinstance(event, Received), self._link.config.peer_timeout_s)
        assert isinstance(event, Received)
        return event.message

    def _next(self, is_awaited: Callable[[object], bool], within_s: float) -> object:
        """The next event of this link. Raises what broke it, or `LinkTimeout`."""
        deadline_s = self._timeouts.deadline_s(within_s)
        while True:
            try:
                left_s = self._timeouts.left_s(deadline_s)
                event = self._inbox.wait_for(PredecessorConnected, Received, LinkDown, timeout_s=left_s)
            except queue.Empty:
                self._raise_silent(within_s)
            if getattr(event, "link", None) is not self._link:
                continue  # of an earlier link
            if isinstance(event, LinkDown):
                raise event.error
            if is_awaited(event):
                return event

    def _raise_silent(self, within_s: float) -> NoReturn:
        peer = self._request.peer
        raise LinkTimeout(f"{peer.name} ({peer.addr}:{peer.port}) sent nothing for {within_s:g} s while being measured")


def _rate(n_bytes: int, seconds: float) -> float:
    """Bytes a second; a link that is too fast to be timed gets a large number."""
    return n_bytes / max(seconds, 1e-6)
