"""Accept incoming connections concurrently until the predecessor has authenticated.

Everything here runs on the reader thread and never waits for one connection alone: each handshake is a generator that
yields what it waits for, so a silent peer costs nothing but its entry.
"""

import contextlib
import logging
import selectors
import socket
import ssl
from collections.abc import Generator
from selectors import EVENT_READ, EVENT_WRITE

from mdi.errors import LinkClosed, LinkTimeout, MdiError, RemoteAbort, RemoteProtocolError
from mdi.net.access import Access, AllowedHosts
from mdi.net.sockets import configure, reset
from mdi.net.tls import Tls
from mdi.ring.config import LinkConfig
from mdi.ring.handshake import Responder
from mdi.ring.messages import Hello, Message, Proof, Refuse
from mdi.ring.transport import send
from mdi.ring.wire import Decoder, Encoder, State
from mdi.strings import one_line

log = logging.getLogger(__name__)

MAX_PENDING = 16  # connections that have not authenticated; beyond it the oldest is evicted


class _PendingConnection:
    """A connection whose peer has not authenticated yet."""

    def __init__(self, sock: socket.socket, address: str, deadline_s: float) -> None:
        self.sock, self.address, self.deadline_s = sock, address, deadline_s
        self.descriptor = sock.fileno()  # TLS puts another object around it, which takes it over
        self._logged = False

    def log_refusal(self, exc: Exception) -> None:
        """Write to the log, once, why this connection is closed."""
        if not self._logged:
            log.warning("refused a connection from %s: %s", self.address, one_line(exc))
        self._logged = True


_Handshake = Generator[int, None, Decoder | None]  # yields the event it waits for


class HandshakeAcceptor:
    """The connections that are pending on a ring port. Use it as a context: at its end all of them are closed."""

    def __init__(self, config: LinkConfig, *, listener: socket.socket, woken: socket.socket, access: Access) -> None:
        """`woken` becomes readable when the predecessor is no longer waited for."""
        self._config, self._timeouts = config, config.timeouts
        self._listener, self._woken, self._access = listener, woken, access
        local = listener.getsockname()[0]
        self._allowed = None if access.key else AllowedHosts([config.predecessor.addr], local)
        self._pending: dict[int, tuple[_PendingConnection, _Handshake]] = {}  # by descriptor, the oldest first
        self._selector = selectors.DefaultSelector()
        for sock in (listener, woken):
            self._selector.register(sock, EVENT_READ)

    def __enter__(self) -> "HandshakeAcceptor":
        return self

    def __exit__(self, *_: object) -> None:
        for connection, _handshake in list(self._pending.values()):
            self._close(connection)
        self._selector.close()

    def accept(self) -> tuple[socket.socket, Decoder]:
        """The connection of the predecessor, past its handshake. Raises `LinkClosed` when woken."""
        while True:
            for ready, _ in self._selector.select(self._timeout_s()):
                if ready.fileobj is self._woken:
                    raise LinkClosed("is no longer waited for")
                if ready.fileobj is self._listener:
                    self._accept_one()
                # one that was evicted or refused meanwhile may still be among the events of this round
                elif (pending := self._pending.get(ready.fd)) and (decoder := self._advance(*pending)):
                    self._forget(pending[0])
                    return pending[0].sock, decoder
            self._expire()

    def _timeout_s(self) -> float | None:
        if not self._pending:
            return None
        return self._timeouts.left_s(min(connection.deadline_s for connection, _ in self._pending.values()))

    def _accept_one(self) -> None:
        try:
            sock, (address, *_) = self._listener.accept()
        except ConnectionError:  # closed by its peer while it was in the backlog
            return
        connection = _PendingConnection(sock, address, self._timeouts.deadline_s(self._timeouts.authentication_s))
        if self._allowed is not None and not self._allowed.include(address):
            connection.log_refusal(LinkClosed("it is not the predecessor's address, and this ring has no key"))
            reset(sock)
            return
        if len(self._pending) >= MAX_PENDING:
            oldest, _ = next(iter(self._pending.values()))
            oldest.log_refusal(LinkClosed(f"more than {MAX_PENDING} connections have not authenticated"))
            self._close(oldest)
        self._pending[connection.descriptor] = connection, self._authenticate(connection)
        self._selector.register(connection.descriptor, EVENT_READ)

    def _advance(self, connection: _PendingConnection, handshake: _Handshake) -> Decoder | None:
        """Take a handshake as far as it goes without waiting; its decoder once it is the predecessor's."""
        try:
            self._selector.modify(connection.descriptor, next(handshake))
        except StopIteration as end:
            decoder: Decoder | None = end.value
            if decoder is None:
                self._close(connection)
            return decoder
        except (OSError, MdiError) as exc:
            connection.log_refusal(exc)
            self._close(connection)
        return None

    def _expire(self) -> None:
        now_s = self._timeouts.clock()
        for connection in [late for late, _ in self._pending.values() if late.deadline_s <= now_s]:
            connection.log_refusal(LinkTimeout(f"it did not authenticate within {self._timeouts.authentication_s:g} s"))
            self._close(connection)

    def _close(self, connection: _PendingConnection) -> None:
        self._forget(connection)
        reset(connection.sock)

    def _forget(self, connection: _PendingConnection) -> None:
        del self._pending[connection.descriptor]
        self._selector.unregister(connection.descriptor)

    def _authenticate(self, connection: _PendingConnection) -> _Handshake:
        """The handshake with one peer; None where it ended in a refusal."""
        config = self._config
        configure(connection.sock, timeout_s=0.0)
        if self._access.tls is not None:
            yield from _start_tls(connection, self._access.tls)
        sock, responder = connection.sock, Responder(config.session, config.expected, self._access.key)
        decoder, encoder = Decoder(config.session, returning=config.returning), Encoder(config.session, backward=True)
        try:
            hello = yield from _receive(sock, decoder)
            assert isinstance(hello, Hello)  # the decoder lets nothing else through in this state
            send(sock, encoder, responder.welcome(hello))
            proof = yield from _receive(sock, decoder)
            if isinstance(proof, Refuse):
                raise RemoteAbort(proof.reason)
            assert isinstance(proof, Proof)
            responder.check(proof)
        except RemoteProtocolError as exc:
            connection.log_refusal(exc)
            if encoder.state is State.HANDSHAKE:
                send(sock, encoder, responder.refuse(exc))
                yield from _closed(sock)
            return None
        return decoder


def _start_tls(connection: _PendingConnection, tls: Tls) -> Generator[int, None, None]:
    sock = tls.server.wrap_socket(connection.sock, server_side=True, do_handshake_on_connect=False)
    connection.sock = sock
    while True:
        try:
            return sock.do_handshake()
        except ssl.SSLWantReadError:
            yield EVENT_READ
        except ssl.SSLWantWriteError:
            yield EVENT_WRITE


def _receive(sock: socket.socket, decoder: Decoder) -> Generator[int, None, Message]:
    while True:
        try:
            n_bytes = sock.recv_into(decoder.buffer())
        except (BlockingIOError, ssl.SSLWantReadError):
            yield EVENT_READ
            continue
        if n_bytes == 0:
            decoder.end_of_file()
        if (message := decoder.received(n_bytes)) is not None:
            return message


def _closed(sock: socket.socket) -> Generator[int, None, None]:
    """Wait until the peer, having read why it is refused, closes: a reset before that could discard the REFUSE."""
    yield EVENT_READ
    with contextlib.suppress(OSError):
        sock.recv(1)
