"""Greet whoever connects to a node's ring port, many at a time, until one of them is the previous node.

Everything here runs on the reader thread and never waits for one stranger alone: greeting each is a generator
that yields what it waits for, so a silent one costs nothing but its place.
"""

import contextlib
import logging
import selectors
import socket
import ssl
import time
from collections.abc import Generator
from selectors import EVENT_READ, EVENT_WRITE
from typing import Any

from mdi.errors import LinkClosed, LinkTimeout, MdiError, RemoteAbort, RemoteProtocolError
from mdi.net.access import Access, Callers
from mdi.net.sockets import abandon, configure
from mdi.ring.handshake import Answerer
from mdi.ring.messages import Hello, Message, Proof, Refuse
from mdi.ring.transport import send
from mdi.ring.wire import Decoder, Encoder, Session, State
from mdi.strings import one_line

log = logging.getLogger(__name__)

STRANGER_TIMEOUT_S = 2.0  # for whoever connects to show who it is; the right node has its say ready
MAX_STRANGERS = 16  # at a time; beyond it the one that came first has to go


class _Stranger:
    """A connection that has not shown yet whose it is."""

    def __init__(self, sock: socket.socket, address: str) -> None:
        self.sock, self.address = sock, address
        self.descriptor = sock.fileno()
        self.deadline_s = time.monotonic() + STRANGER_TIMEOUT_S
        self.refused = False
        self.steps: Generator[int, None, Decoder | None]

    def refuse(self, exc: Exception) -> None:
        """Say so in the log, once."""
        if not self.refused:
            log.warning("refused a connection from %s: %s", self.address, one_line(exc))
        self.refused = True


class Reception:
    """Where strangers wait. Use it as a context: whoever is not let in by its end is dropped."""

    def __init__(
        self,
        session: Session,
        expected: dict[str, Any],
        *,
        listener: socket.socket,
        woken: socket.socket,
        previous_addr: str,
        returning: bool,
        access: Access,
    ) -> None:
        """`woken` becomes readable when nobody is waited for any more; the rest is as `Link` has it."""
        self._session, self._expected, self._returning = session, expected, returning
        self._listener, self._woken = listener, woken
        self._access = access
        self._callers = None if access.key else Callers([previous_addr], listener.getsockname()[0])
        self._strangers: dict[int, _Stranger] = {}  # by descriptor, in the order in which they came
        self._selector = selectors.DefaultSelector()
        for sock in (listener, woken):
            self._selector.register(sock, EVENT_READ)

    def __enter__(self) -> "Reception":
        return self

    def __exit__(self, *_: object) -> None:
        for stranger in list(self._strangers.values()):
            self._drop(stranger)
        self._selector.close()

    def admit(self) -> tuple[socket.socket, Decoder]:
        """The connection of the previous node, past its handshake. Raises `LinkClosed` when woken."""
        while True:
            for ready, _ in self._selector.select(self._patience_s()):
                if ready.fileobj is self._woken:
                    raise LinkClosed("is no longer waited for")
                if ready.fileobj is self._listener:
                    self._accept()
                elif (stranger := self._strangers.get(ready.fd)) and (decoder := self._advance(stranger)):
                    self._forget(stranger)
                    return stranger.sock, decoder
            self._expire()

    def _patience_s(self) -> float | None:
        if not self._strangers:
            return None
        return max(0.0, min(stranger.deadline_s for stranger in self._strangers.values()) - time.monotonic())

    def _accept(self) -> None:
        try:
            sock, (address, *_) = self._listener.accept()
        except ConnectionError:  # gone again
            return
        stranger = _Stranger(sock, address)
        if self._callers is not None and not self._callers.include(address):
            stranger.refuse(LinkClosed("it is not the previous node's address, and this ring has no key"))
            abandon(sock)
            return
        if len(self._strangers) >= MAX_STRANGERS:
            first = next(iter(self._strangers.values()))
            first.refuse(LinkClosed("too many others wait to be greeted"))
            self._drop(first)
        stranger.steps = self._greet(stranger)
        self._strangers[stranger.descriptor] = stranger
        self._selector.register(stranger.descriptor, EVENT_READ)

    def _advance(self, stranger: _Stranger) -> Decoder | None:
        """Greet a stranger as far as it goes without waiting; its decoder once it is the previous node."""
        try:
            self._selector.modify(stranger.descriptor, next(stranger.steps))
        except StopIteration as end:
            decoder: Decoder | None = end.value
            if decoder is None:
                self._drop(stranger)
            return decoder
        except (OSError, MdiError) as exc:
            stranger.refuse(exc)
            self._drop(stranger)
        return None

    def _expire(self) -> None:
        now_s = time.monotonic()
        for stranger in [late for late in self._strangers.values() if late.deadline_s <= now_s]:
            stranger.refuse(LinkTimeout(f"it did not show who it is within {STRANGER_TIMEOUT_S:g} s"))
            self._drop(stranger)

    def _drop(self, stranger: _Stranger) -> None:
        self._forget(stranger)
        abandon(stranger.sock)

    def _forget(self, stranger: _Stranger) -> None:
        del self._strangers[stranger.descriptor]
        self._selector.unregister(stranger.descriptor)

    def _greet(self, stranger: _Stranger) -> Generator[int, None, Decoder | None]:
        """The handshake with one stranger; None where it ended in a refusal."""
        configure(stranger.sock, timeout_s=0.0)
        if self._access.tls is not None:
            context = self._access.tls.server
            stranger.sock = sock = context.wrap_socket(stranger.sock, server_side=True, do_handshake_on_connect=False)
            yield from _agree_on_tls(sock)
        decoder, encoder = Decoder(self._session, returning=self._returning), Encoder(self._session, backward=True)
        answerer = Answerer(self._session, self._expected, self._access.key)
        try:
            hello = yield from _receive(stranger.sock, decoder)
            assert isinstance(hello, Hello)
            send(stranger.sock, encoder, answerer.welcome(hello))
            proof = yield from _receive(stranger.sock, decoder)
            if isinstance(proof, Refuse):
                raise RemoteAbort(proof.reason)
            assert isinstance(proof, Proof)
            answerer.check(proof)
        except RemoteProtocolError as exc:
            stranger.refuse(exc)
            if encoder.state is State.HANDSHAKE:
                send(stranger.sock, encoder, answerer.refusal(exc))
                yield from _closed(stranger.sock)
            return None
        return decoder


def _agree_on_tls(sock: ssl.SSLSocket) -> Generator[int, None, None]:
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
    """Wait until the stranger, having read why it is refused, closes; so that resetting loses nothing."""
    yield EVENT_READ
    with contextlib.suppress(OSError):
        sock.recv(1)
