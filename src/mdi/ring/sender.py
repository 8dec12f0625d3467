"""The way to the successor: two threads send, in one order.

The compute thread sends a message itself where nothing is ahead of it and the system takes it at once: to wake another
thread takes longer than that. The writer thread sends the rest: large messages, what the system did not take, what
comes while it waits for that or for the connection, the last frame of a session, and pings.
"""

import queue
import socket
import ssl
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

from mdi.ring.messages import Activation, Message, Ping
from mdi.ring.pace import Pace
from mdi.ring.transport import OutgoingFrame
from mdi.ring.wire import Encoder, State
from mdi.segments import Fork

# Of rows. To leave a message to the writer thread costs some 30 µs; the checksum and the copying of 128 KiB cost as
# much. What is larger goes out while the compute thread goes on.
MAX_AT_ONCE_BYTES = 128 << 10

OnSent = Callable[[Message, float], None]


class _Connection(NamedTuple):
    sock: socket.socket
    encoder: Encoder


class _Sending(NamedTuple):
    """A message whose frame has begun to pass."""

    message: Message
    frame: OutgoingFrame
    began_s: float


class Sender:
    """Sends messages to the successor.

    Socket, encoder and pace have one user at a time: the compute thread, with the lock held, while the writer thread
    waits for something to do; and the writer thread otherwise, without it, since its calls may block.
    """

    def __init__(self, capacity: int, ping_every_s: float, pace: Pace, on_sent: OnSent) -> None:
        """
        Args:
            capacity: messages that may wait; more is a bug.
            on_sent: called from the thread that has sent a message, with the moment at which it began by
                `time.perf_counter`. It must not block.
        """
        self._capacity, self._ping_every_s, self._pace, self._on_sent = capacity, ping_every_s, pace, on_sent
        self._changed = threading.Condition(threading.Lock())
        # Read and changed only with `_changed` held.
        self._waiting: deque[Message] = deque()
        self._begun: _Sending | None = None  # by the compute thread, and not finished
        self._failure: Exception | None = None  # of the compute thread's sending
        self._is_ending = False
        self._idle: _Connection | None = None  # for the compute thread: nothing is to be sent before its message
        # Like the connection, of the thread whose turn it is.
        self._sent_s = 0.0  # when the last frame had been sent

    def send(self, message: Message) -> None:
        """Send `message`, or leave it to the writer thread; never blocks. Called only from the compute thread.

        Raises `queue.Full` where more wait than may travel: a bug. What else goes wrong is raised by `serve`.
        """
        with self._changed:
            if len(self._waiting) >= self._capacity:
                raise queue.Full
            if self._idle is not None and _goes_at_once(message):
                self._send_at_once(self._idle, message)
            else:
                self._waiting.append(message)
                self._wake_writer()

    def finish(self) -> None:
        """Let `serve` return once nothing is left to be sent. Called from any thread."""
        with self._changed:
            self._is_ending = True
            self._wake_writer()

    def serve(self, sock: socket.socket, encoder: Encoder) -> None:
        """Send until the session ends or `finish` was called. For the writer thread, on an open connection.

        Raises what goes wrong with the connection, whichever thread has found it.
        """
        connection, self._sent_s = _Connection(sock, encoder), time.perf_counter()
        while encoder.state is not State.CLOSED and (sending := self._next(connection)) is not None:
            sending.frame.send(sock)
            self._finish_sending(sending)

    # ---- with `_changed` held

    def _send_at_once(self, connection: _Connection, message: Message) -> None:
        """Send what the system takes of `message`, and leave the rest to the writer thread."""
        try:
            sending = self._begin(connection, message)
            if sending.frame.send_at_once(connection.sock):
                self._finish_sending(sending)
                return
            self._begun = sending
        except Exception as exc:  # noqa: BLE001  the writer thread raises it, which reports what befalls the connection
            self._failure = exc
        self._wake_writer()

    def _wake_writer(self) -> None:
        """It has something to do, and is the next to send."""
        self._idle = None
        self._changed.notify()

    def _wait(self, connection: _Connection) -> None:
        """Let the compute thread send, until it leaves something to the writer thread or a ping is due."""
        # TLS has no call that takes a part and never blocks: there the writer thread sends everything.
        self._idle = None if isinstance(connection.sock, ssl.SSLSocket) else connection
        while not (self._waiting or self._begun or self._failure or self._is_ending):
            silent_s = time.perf_counter() - self._sent_s
            if silent_s >= self._ping_every_s:
                break
            self._changed.wait(self._ping_every_s - silent_s)
        self._idle = None

    # ---- by the thread whose turn it is

    def _next(self, connection: _Connection) -> _Sending | None:
        """What the writer thread is to send: as soon as there is anything, or None where nothing is left."""
        with self._changed:
            self._wait(connection)
            if self._failure is not None:
                raise self._failure
            if self._begun is not None:
                sending, self._begun = self._begun, None
                return sending
            if self._is_ending and not self._waiting:
                return None
            message = self._waiting.popleft() if self._waiting else Ping()
        return self._begin(connection, message)

    def _begin(self, connection: _Connection, message: Message) -> _Sending:
        began_s = time.perf_counter()
        frame = OutgoingFrame(connection.encoder.encode(message), self._pace.begin())
        return _Sending(message, frame, began_s)

    def _finish_sending(self, sending: _Sending) -> None:
        self._on_sent(sending.message, sending.began_s)
        self._sent_s = time.perf_counter()


def _goes_at_once(message: Message) -> bool:
    """The last frame of a session does not: the writer thread has to wait until it was read."""
    match message:
        case Activation(_, data):
            return len(data) <= MAX_AT_ONCE_BYTES
        case Fork():
            return True
    return False
