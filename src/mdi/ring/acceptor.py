"""Accept incoming connections concurrently until the predecessor has authenticated.

Everything here runs on the reader thread and never waits for one connection alone: each handshake is a generator that
yields what it waits for, so a silent peer costs nothing but its descriptor.
"""

import contextlib
import logging
import selectors
import socket
import ssl
from collections.abc import Generator
from selectors import EVENT_READ

from mdi.errors import LinkClosed, MdiError, RemoteAbort, RemoteProtocolError
from mdi.net.accepting import REST_S, Accepting, descriptor_limit
from mdi.net.access import Access, AllowedHosts, as_written
from mdi.net.eviction import EvictionOrder
from mdi.net.refusals import RefusalLog
from mdi.net.sockets import configure, reset
from mdi.net.tls import complete_handshake, wrap_accepted
from mdi.net.tls_errors import failed_answer
from mdi.ring.config import LinkConfig
from mdi.ring.handshake import Responder
from mdi.ring.messages import Hello, Message, Proof, Refuse
from mdi.ring.transport import send
from mdi.ring.wire import Decoder, Encoder, State

log = logging.getLogger(__name__)

MAX_PENDING = 1024
N_RANKS = 5


def max_pending() -> int:
    """Connections that may wait for their handshake: a quarter of the process's descriptors, beside those of HTTP."""
    return min(MAX_PENDING, descriptor_limit() // 4)


class _PendingConnection:
    """A connection whose peer has not authenticated yet."""

    def __init__(self, sock: socket.socket, address: str, deadline_s: float, is_from_predecessor: bool) -> None:
        self.sock, self.address, self.deadline_s = sock, address, deadline_s
        self.descriptor = sock.fileno()  # TLS puts another object around it, which takes it over
        self.is_from_predecessor = is_from_predecessor
        self.has_sent = False
        self.is_welcome = False
        self.is_refused = False

    @property
    def rank(self) -> int:
        """The higher, the later it has to make room for others.

        A HELLO that fits the session holds what only the starter's nodes know, so its sender is the predecessor or
        somebody on its path. Before that the address counts, and then whether anything came at all: the predecessor
        sends its HELLO, or begins TLS, as soon as it is connected.
        """
        if self.is_refused:
            return 0
        return N_RANKS - 1 if self.is_welcome else 2 * self.is_from_predecessor + self.has_sent


_Handshake = Generator[int, None, Decoder | None]  # yields the event it waits for


class HandshakeAcceptor:
    """The connections that are pending on a ring port. Use it as a context: at its end all of them are closed."""

    def __init__(
        self,
        config: LinkConfig,
        *,
        listener: socket.socket,
        woken: socket.socket,
        access: Access,
        refusals: RefusalLog,
    ) -> None:
        """`woken` becomes readable when the predecessor is no longer waited for."""
        self._config, self._timeouts = config, config.timeouts
        self._listener, self._woken, self._access, self._refusals = listener, woken, access, refusals
        addrs, local = [config.predecessor.addr], listener.getsockname()[0]
        self._allowed = None if access.keys else AllowedHosts(addrs, local)
        self._predecessor = AllowedHosts(addrs, local, resolve=as_written)
        self._pending: dict[int, tuple[_PendingConnection, _Handshake]] = {}  # by descriptor, the oldest first
        self._evictable: EvictionOrder[_PendingConnection] = EvictionOrder(N_RANKS)
        self._limit = max_pending()
        self._established: tuple[socket.socket, Decoder] | None = None
        self._selector = selectors.DefaultSelector()
        self._selector.register(woken, EVENT_READ)
        self._accepting = Accepting(listener, self._selector, self._timeouts.clock)

    def __enter__(self) -> "HandshakeAcceptor":
        return self

    def __exit__(self, *_: object) -> None:
        for connection, _handshake in list(self._pending.values()):
            self._close(connection)
        self._selector.close()

    def accept(self) -> tuple[socket.socket, Decoder]:
        """The connection of the predecessor, past its handshake. Raises `LinkClosed` when woken."""
        while self._established is None:
            self._turn()
        return self._established

    def _turn(self) -> None:
        """Wait for events and handle them. What frees descriptors comes before what takes them."""
        ready = {key.fd for key, _ in self._selector.select(self._timeout_s())}
        for descriptor in ready & self._pending.keys():
            self._advance(*self._pending[descriptor])
        if self._woken.fileno() in ready and self._established is None:
            raise LinkClosed("is no longer waited for")
        self._expire()
        self._make_room()
        self._accepting.resume()
        if self._listener.fileno() in ready:
            self._accept()
        self._refusals.summarize()

    def _timeout_s(self) -> float | None:
        if len(self._pending) > self._limit:
            return 0.0
        if self._accepting.is_resting:
            return REST_S
        if not self._pending:
            return None
        oldest, _ = next(iter(self._pending.values()))
        return self._timeouts.left_s(oldest.deadline_s)

    def _accept(self) -> None:
        for sock, address in self._accepting.accept():
            if self._allowed is not None and not self._allowed.include(address):
                self._log_refusal(address, "it is not the predecessor's address, and this ring has no key")
                reset(sock)
            else:
                self._admit(sock, address)
            if len(self._pending) > self._limit:
                return
        if self._accepting.is_resting and len(self._evictable):  # descriptors have run out below our limit
            self._evict("")

    def _admit(self, sock: socket.socket, address: str) -> None:
        deadline_s = self._timeouts.deadline_s(self._timeouts.authentication_s)
        connection = _PendingConnection(sock, address, deadline_s, self._predecessor.include(address))
        self._pending[connection.descriptor] = connection, self._authenticate(connection)
        self._selector.register(connection.descriptor, EVENT_READ)
        self._evictable.add(connection, address, connection.rank)
        self._advance(*self._pending[connection.descriptor])  # its HELLO is often there already

    def _make_room(self) -> None:
        """Close one connection, if one too many was accepted: not sooner than what came from the others was read."""
        if len(self._pending) > self._limit:
            newest, _ = next(reversed(self._pending.values()))
            self._evict(newest.address)

    def _evict(self, address: str) -> None:
        self._refuse(self._evictable.next_out(address), f"more than {self._limit} connections have not authenticated")

    def _advance(self, connection: _PendingConnection, handshake: _Handshake) -> None:
        """Take a handshake as far as it goes without waiting."""
        before = connection.rank
        try:
            self._selector.modify(connection.descriptor, next(handshake))
        except StopIteration as end:
            if end.value is None or self._established is not None:
                self._close(connection)
            else:
                self._forget(connection)
                self._established = connection.sock, end.value
        except ssl.SSLError as exc:
            self._refuse(connection, f"it does not agree on TLS: {failed_answer(exc, self._access.tls)}")
        except ConnectionResetError as exc:
            # Whoever goes without a byte has only looked whether the port is open, as `nodes.py` does.
            self._refuse(connection, exc, logging.WARNING if connection.has_sent else logging.INFO)
        except (OSError, MdiError) as exc:
            self._refuse(connection, exc)
        else:
            if connection.rank != before:
                self._evictable.add(connection, connection.address, connection.rank)

    def _expire(self) -> None:
        while self._pending:
            connection, _ = next(iter(self._pending.values()))
            if connection.deadline_s > self._timeouts.clock():
                return
            self._refuse(connection, f"it did not authenticate within {self._timeouts.authentication_s:g} s")

    def _refuse(self, connection: _PendingConnection, reason: object, level: int = logging.WARNING) -> None:
        if not connection.is_refused:  # else the log has the reason already
            self._log_refusal(connection.address, reason, level)
        self._close(connection)

    def _log_refusal(self, address: str, reason: object, level: int = logging.WARNING) -> None:
        self._refusals.add(log, "refused a connection from %s: %s", address, reason, level=level)

    def _close(self, connection: _PendingConnection) -> None:
        self._forget(connection)
        reset(connection.sock)

    def _forget(self, connection: _PendingConnection) -> None:
        del self._pending[connection.descriptor]
        self._evictable.discard(connection)
        self._selector.unregister(connection.descriptor)

    def _authenticate(self, connection: _PendingConnection) -> _Handshake:
        """The handshake with one peer; None where it ended in a refusal."""
        config = self._config
        configure(connection.sock, timeout_s=0.0)
        if self._access.tls is not None:
            connection.sock = secured = wrap_accepted(connection.sock, self._access.tls)
            yield from complete_handshake(secured)
        sock, responder = connection.sock, Responder(config.session, config.expected, self._access.keys)
        decoder, encoder = Decoder(config.session, returning=config.returning), Encoder(config.session, backward=True)
        try:
            hello = yield from _receive(connection, decoder)
            assert isinstance(hello, Hello)  # the decoder lets nothing else through in this state
            send(sock, encoder, responder.welcome(hello))
            connection.is_welcome = True
            proof = yield from _receive(connection, decoder)
            if isinstance(proof, Refuse):
                raise RemoteAbort(proof.reason)
            assert isinstance(proof, Proof)
            decoder.open(responder.check(proof))
        except RemoteProtocolError as exc:
            self._log_refusal(connection.address, exc)
            connection.is_refused = True
            if encoder.state is State.HANDSHAKE:
                send(sock, encoder, responder.refuse(exc))
                yield from _closed(sock)
            return None
        return decoder


def _receive(connection: _PendingConnection, decoder: Decoder) -> Generator[int, None, Message]:
    while True:
        try:
            n_bytes = connection.sock.recv_into(decoder.buffer())
        except (BlockingIOError, ssl.SSLWantReadError):
            yield EVENT_READ
            continue
        if n_bytes == 0:
            decoder.end_of_file()
        connection.has_sent = True
        if (message := decoder.received(n_bytes)) is not None:
            return message


def _closed(sock: socket.socket) -> Generator[int, None, None]:
    """Wait until the peer, having read why it is refused, closes: a reset before that could discard the REFUSE."""
    yield EVENT_READ
    with contextlib.suppress(OSError):
        sock.recv(1)
