"""The open connections of a node's HTTP server, and the one thread that waits for all of them.

cheroot gives a connection to a thread of its pool as soon as a byte has come from it, and that thread makes the TLS
handshake and reads the head of the request. So whoever sends one byte takes a thread. Here the loop does both, for all
connections at once and without waiting for any, and hands a connection over with its whole head.
"""

import contextlib
import logging
import selectors
import socket
import ssl
import threading
from collections.abc import Callable, Generator
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from selectors import EVENT_READ, EVENT_WRITE
from typing import Any

from cheroot import server

from mdi.control.streams import RequestStream, ResponseStream
from mdi.net.accepting import Accepting, descriptor_limit
from mdi.net.eviction import EvictionOrder
from mdi.net.refusals import RefusalLog
from mdi.net.sockets import configure, reset, wake
from mdi.net.tls import Tls, complete_handshake, wrap_accepted
from mdi.net.tls_errors import failed_answer

log = logging.getLogger(__name__)

MAX_CONNECTIONS = 2048
N_RANKS = 4
TICK_S = 0.25  # between two looks at the deadlines

# What a client gets that begins a TLS handshake with a node that has none: a fatal alert, "protocol version". Without
# it the client would wait as long as for a node that hangs.
NO_TLS_ALERT = bytes((21, 3, 1, 0, 2, 2, 70))

_Steps = Generator[int, None, None]  # yields the event of the selector that it waits for


def max_connections() -> int:
    """Half of the process's descriptors: the ring, files and calls to other nodes need the others."""
    return min(MAX_CONNECTIONS, descriptor_limit() // 2)


class Connection(server.HTTPConnection):
    """One client's connection. It is the loop's, and a pool thread's while that answers a request."""

    def __init__(self, web: Any, sock: socket.socket, address: str) -> None:
        """`web` is the server."""
        super().__init__(web, sock, self._stream)
        self.RequestHandlerClass = web.request_class
        self.remote_addr = address
        self.n_requests = 0
        self.is_authenticated = False

    def _stream(self, sock: socket.socket, mode: str, _: int) -> RequestStream | ResponseStream:
        return (RequestStream if "r" in mode else ResponseStream)(sock, self.server.timeouts)

    def authenticate(self) -> None:
        """A request was let through: from now on this connection does not have to make room for others."""
        self.is_authenticated = self.wfile.may_wait = True

    def close(self) -> None:
        """Close the socket, and nothing is left open by another reference to it. Called by whoever has it."""
        self.rfile.close()
        self.wfile.close()
        wake(self.socket)
        self.socket.close()
        self.server.connections.take_back(self)


@dataclass(eq=False)
class _Held:
    """A connection from which a request is awaited, or whose request waits for a thread."""

    steps: _Steps
    deadline_s: float
    event: int = 0  # what the selector watches for


class _SpeaksTls(Exception):
    """The client begins a TLS handshake, and this node has no TLS."""


class ConnectionLoop:
    """Accepts connections and holds them until a request is complete; it takes the place of cheroot's manager.

    `run` is one thread's. The methods that say so are called from others.
    """

    can_add_keepalive_connection = True  # asked by cheroot

    def __init__(
        self, web: Any, listener: socket.socket, tls: Tls | None, is_known: Callable[[str], bool], refusals: RefusalLog
    ) -> None:
        """`is_known` says whether an address is one of the configuration: those are the last that have to go."""
        self._web, self._timeouts, self._tls = web, web.timeouts, tls
        self._is_known, self._refusals = is_known, refusals
        self._limit = max_connections()
        self._open: set[Connection] = set()
        self._held: dict[Connection, _Held] = {}
        self._evictable: EvictionOrder[Connection] = EvictionOrder(N_RANKS)
        self._ready: list[dict[Connection, None]] = [{} for _ in range(N_RANKS)]  # by rank: they wait for a thread
        self._busy: set[Connection] = set()  # with the pool
        self._returned: SimpleQueue[Connection] = SimpleQueue()  # by the pool
        self._newest_address = ""
        self._expiry_s = self._timeouts.clock()  # of whatever is overdue then
        self._selector = selectors.DefaultSelector()
        self._listener = listener
        self._accepting = Accepting(listener, self._selector, self._timeouts.clock)
        self._wake, self._woken = socket.socketpair()
        for sock in (self._wake, self._woken):
            sock.setblocking(False)
        self._selector.register(self._woken, EVENT_READ)
        self._running, self._stopping, self._closed = threading.Lock(), False, False

    # ---- called from any thread

    def put(self, connection: Connection) -> None:
        """Take a connection back whose request was answered; it is closed where the loop has ended meanwhile."""
        self.take_back(connection)
        if self._closed:
            self._close_returned()

    def take_back(self, connection: Connection) -> None:
        """Take a connection back, open or closed."""
        self._returned.put(connection)
        self._notify()

    def stop(self) -> None:
        """End `run`, or keep it from beginning."""
        self._stopping = True
        self._notify()
        with self._running:
            pass

    def close(self) -> None:
        """Close all connections but those that the pool has. After `stop`."""
        self._closed = True  # before the queue is emptied: what `put` adds later it closes itself
        self._close_returned()
        for connection in list(self._held):
            self._close(connection)
        self._selector.close()
        self._wake.close()
        self._woken.close()

    def _close_returned(self) -> None:
        with contextlib.suppress(Empty):
            while True:
                if not (connection := self._returned.get_nowait()).rfile.closed:
                    connection.close()

    def _notify(self) -> None:
        with contextlib.suppress(OSError):  # it is full: the loop is about to look; or closed: there is no loop
            self._wake.send(b"\0")

    # ---- the loop

    def run(self, _: float) -> None:
        """Serve until `stop`. cheroot passes the interval at which its own manager looks for deadlines."""
        with self._running:
            while not self._stopping:
                self._turn()

    def _turn(self) -> None:
        """Wait for events and handle them. What frees descriptors comes before what takes them."""
        events = self._selector.select(0.0 if self._has_too_many else TICK_S)
        ready = {key.fileobj for key, _ in events}
        if self._woken in ready:
            self._woken.recv(4096)
        self._take_returned()
        for key, _ in events:
            if (held := self._held.get(key.data)) is not None:
                self._advance(key.data, held)
        self._expire()
        self._make_room()
        self._accepting.resume()
        if self._listener in ready:
            self._accept()
        self._hand_over()
        self._refusals.summarize()

    def _accept(self) -> None:
        for sock, address in self._accepting.accept():
            self._admit(sock, address)
            if len(self._open) > self._limit:
                return
        if self._accepting.is_resting and len(self._evictable):  # descriptors have run out below our limit
            self._evict("")

    def _admit(self, sock: socket.socket, address: str) -> None:
        try:
            configure(sock, timeout_s=0.0)
            sock = sock if self._tls is None else wrap_accepted(sock, self._tls)
        except OSError:  # closed by its peer meanwhile
            sock.close()
            return
        connection = Connection(self._web, sock, address)
        self._open.add(connection)
        self._newest_address = address
        self._hold(connection, self._first_request(connection))

    def _make_room(self) -> None:
        """Close one connection, if one too many was accepted: not sooner than what came from the others was read."""
        if self._has_too_many:
            self._evict(self._newest_address)

    @property
    def _has_too_many(self) -> bool:
        return len(self._open) > self._limit and len(self._evictable) > 0

    def _take_returned(self) -> None:
        while True:
            try:
                connection = self._returned.get_nowait()
            except Empty:
                return
            if connection not in self._busy:  # the loop closed it itself
                continue
            self._busy.remove(connection)
            if connection.rfile.closed:
                self._open.remove(connection)
            else:
                self._hold(connection, self._next_request(connection))

    def _hand_over(self) -> None:
        """Give the pool as many requests as it has threads; the others wait here, where they can still be dropped."""
        for waiting in reversed(self._ready):
            while waiting and len(self._busy) < self._web.numthreads:
                connection = next(iter(waiting))
                self._drop(connection)
                connection.n_requests += 1
                self._busy.add(connection)
                self._web.process_conn(connection)

    # ---- connections that are held

    def _hold(self, connection: Connection, steps: _Steps) -> None:
        is_authenticated = connection.is_authenticated
        wait_s = self._timeouts.request_read_s if is_authenticated else self._timeouts.request_head_s
        connection.socket.setblocking(False)
        self._held[connection] = held = _Held(steps, self._timeouts.deadline_s(wait_s))
        if not is_authenticated:
            self._evictable.add(connection, connection.remote_addr, self._rank(connection))
        self._advance(connection, held)

    def _rank(self, connection: Connection) -> int:
        """The higher, the sooner it is answered, and the later it has to make room for others.

        Besides the address it counts whether a connection repeats itself. Whoever has the key authenticates by the
        second request, the one after the nonce; one that goes on without it is a flood on connections that stay open.
        """
        if connection.is_authenticated:
            return N_RANKS - 1
        return 2 * self._is_known(connection.remote_addr) + (connection.n_requests < 2)

    def _advance(self, connection: Connection, held: _Held) -> None:
        """Read from a connection as far as that goes without waiting."""
        try:
            self._watch(connection, held, next(held.steps))
        except StopIteration:
            self._watch(connection, held, 0)
            self._ready[self._rank(connection)][connection] = None
        except ssl.SSLError as exc:
            self._refuse(connection, f"it does not agree on TLS: {failed_answer(exc, self._tls)}")
        except _SpeaksTls:
            self._refusals.add(
                log, "refused a connection from %s: it speaks TLS, and this node has none", connection.remote_addr
            )
            with contextlib.suppress(OSError):
                connection.socket.send(NO_TLS_ALERT)
            self._close(connection)  # a reset could overtake the alert
        except (OSError, EOFError):
            self._close(connection)

    def _watch(self, connection: Connection, held: _Held, event: int) -> None:
        if held.event == event:
            return
        if held.event == 0:
            self._selector.register(connection.socket, event, connection)
        elif event == 0:
            self._selector.unregister(connection.socket)
        else:
            self._selector.modify(connection.socket, event, connection)
        held.event = event

    def _first_request(self, connection: Connection) -> _Steps:
        if self._tls is not None:
            yield from complete_handshake(connection.socket)
        yield from self._next_request(connection)

    def _next_request(self, connection: Connection) -> _Steps:
        """Ends once a whole head has come. Raises `EOFError`, `OSError` or `_SpeaksTls` where none will."""
        while not connection.rfile.has_head():
            if self._tls is None and connection.rfile.is_tls():
                raise _SpeaksTls
            try:
                if not connection.rfile.receive():
                    raise EOFError
            except (BlockingIOError, ssl.SSLWantReadError):
                yield EVENT_READ
            except ssl.SSLWantWriteError:
                yield EVENT_WRITE

    def _expire(self) -> None:
        now_s = self._timeouts.clock()
        if now_s < self._expiry_s:
            return
        self._expiry_s = now_s + TICK_S
        for connection in [late for late, held in self._held.items() if held.deadline_s <= now_s]:
            if connection.n_requests:
                self._close(connection)
            else:
                self._refuse(connection, f"it sent no request within {self._timeouts.request_head_s:g} s")

    def _evict(self, address: str) -> None:
        victim = self._evictable.next_out(address)
        self._refuse(victim, f"more than {self._limit} connections are open")

    def _refuse(self, connection: Connection, reason: str) -> None:
        self._refusals.add(log, "refused a connection from %s: %s", connection.remote_addr, reason)
        self._drop(connection)
        reset(connection.socket)  # nothing was answered that it could still have to read
        self._finish(connection)

    def _close(self, connection: Connection) -> None:
        self._drop(connection)
        self._finish(connection)

    def _finish(self, connection: Connection) -> None:
        self._open.remove(connection)
        connection.close()

    def _drop(self, connection: Connection) -> None:
        """Hold a connection no longer."""
        self._watch(connection, self._held.pop(connection), 0)
        self._evictable.discard(connection)
        for waiting in self._ready:
            waiting.pop(connection, None)
