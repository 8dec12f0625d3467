"""Two sockets and two threads that move messages from the previous node and to the next.

The reader thread accepts the previous node and posts what it sends to the node's inbox. The writer
thread connects to the next node and sends what `Link.send` was given. A thread that fails posts
`LinkDown` and ends. Every blocking call has a deadline; an idle writer pings, so that silence means trouble.
"""

import contextlib
import errno
import logging
import queue
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from mdi.errors import LinkClosed, LinkTimeout, MdiError, RemoteAbort
from mdi.net.access import THIS_MACHINE, Access
from mdi.net.sockets import Peer, abandon, await_close, configure, wake
from mdi.net.tls import host_name
from mdi.ring.acceptor import Reception
from mdi.ring.handshake import Caller, KeyMismatch
from mdi.ring.messages import Message, Ping, Refuse, Welcome, carried_rows
from mdi.ring.transport import send
from mdi.ring.wire import Decoder, Encoder, Session, State
from mdi.strings import one_line
from mdi.trace import Timeline

log = logging.getLogger(__name__)

PING_INTERVAL_S = 1.0
HANDSHAKE_TIMEOUT_S = 5.0

_EPHEMERAL_INSTEAD = (errno.EADDRINUSE, errno.EADDRNOTAVAIL, errno.EACCES)


@dataclass(frozen=True)
class Received:
    """The previous node sent `message`."""

    link: "Link"
    message: Message


@dataclass(frozen=True)
class PreviousConnected:
    """The previous node connected and agreed on the session."""

    link: "Link"


@dataclass(frozen=True)
class LinkDown:
    """One side of the link failed; `peer` is the node on that side."""

    link: "Link"
    peer: Peer
    error: Exception  # an `MdiError`, or else a bug


LinkEvent = Received | PreviousConnected | LinkDown


class Link:
    """This node's two edges of the ring, for one session.

    `accept()` starts waiting for the previous node, `connect()` starts calling the next one; both
    return at once and report through `post`. `send()` never blocks. `close()` ends both threads.
    The listener belongs to the caller and outlives the link.
    """

    def __init__(
        self,
        session: Session,
        *,
        listener: socket.socket,
        source_port: int,
        previous: Peer,
        following: Peer,
        expected: dict[str, Any],
        hello: dict[str, Any],
        returning: bool,
        post: Callable[[LinkEvent], None],
        capacity: int,
        peer_timeout_s: float,
        access: Access = THIS_MACHINE,
        timeline: Timeline | None = None,
    ) -> None:
        """
        Args:
            source_port: our port of the connection to the next node; 0 for any.
            expected: the facts that the previous node's handshake must hold; `hello`: ours.
            returning: whether we are the starter, to whom the last node sends the kept rows only.
            capacity: messages that may wait to be sent; more is a bug.
        """
        self.session = session
        self.previous, self.following = previous, following
        self._listener, self._source_port = listener, source_port
        self._expected, self._hello = expected, hello
        self._returning, self._post, self._peer_timeout_s = returning, post, peer_timeout_s
        self._access = access
        self._timeline = timeline or Timeline()
        self._outbox: queue.Queue[Message | None] = queue.Queue()
        self._capacity = capacity
        self._reader = threading.Thread(target=self._run, args=(self._read, previous), name="ring-reader", daemon=True)
        self._writer = threading.Thread(
            target=self._run, args=(self._write, following), name="ring-writer", daemon=True
        )
        self._wake, self._woken = socket.socketpair()
        self._sockets: list[socket.socket] = []
        self._lock = threading.Lock()
        self._closing = False

    def accept(self) -> None:
        """Start waiting for the previous node; `PreviousConnected` or `LinkDown` is posted."""
        self._reader.start()

    def connect(self) -> None:
        """Start calling the next node; only a failure is posted."""
        self._writer.start()

    def send(self, message: Message) -> None:
        """Queue `message` for the next node. Raises `queue.Full` where more wait than may travel: a bug."""
        if self._outbox.qsize() >= self._capacity:
            raise queue.Full
        self._outbox.put_nowait(message)

    def close(self, drain_s: float = 0.0) -> None:
        """Let the writer send what is queued for up to `drain_s` seconds, then end both threads.

        Afterwards no thread of this link runs, its connections are closed and nothing more is posted.
        """
        if self._closing:
            return
        self._closing = True
        self._outbox.put_nowait(None)
        if drain_s and self._writer.ident is not None:
            self._writer.join(drain_s)
        with self._lock:
            for sock in self._sockets:
                wake(sock)
        self._wake.close()
        for thread in (self._reader, self._writer):
            if thread.ident is not None:
                thread.join()
        self._woken.close()

    def _run(self, loop: Callable[[], None], peer: Peer) -> None:
        try:
            loop()
        except MdiError as exc:
            self._report(peer, type(exc)(f"{peer.name} ({peer.addr}:{peer.port}) {exc}"))
        except TimeoutError:
            silence = f"gave no sign of life for {self._peer_timeout_s:g} s"
            self._report(peer, LinkTimeout(f"{peer.name} ({peer.addr}:{peer.port}) {silence}"))
        except OSError as exc:
            reason = exc.strerror or str(exc)
            self._report(peer, LinkClosed(f"{peer.name} ({peer.addr}:{peer.port}): connection lost: {reason}"))
        except Exception as exc:  # noqa: BLE001  a bug: it goes where it is seen
            self._report(peer, exc)

    def _report(self, peer: Peer, error: Exception) -> None:
        if not self._closing:
            log.debug("link to %s is down: %s", peer.name, error)
            self._post(LinkDown(self, peer, error))

    # ---- reader thread

    def _read(self) -> None:
        sock, decoder = self._accept_previous()
        with self._owned(sock):
            self._post(PreviousConnected(self))
            while decoder.state is not State.CLOSED:
                message = self._receive(sock, decoder)
                if not isinstance(message, Ping):
                    self._post(Received(self, message))

    def _accept_previous(self) -> tuple[socket.socket, Decoder]:
        with Reception(
            self.session,
            self._expected,
            listener=self._listener,
            woken=self._woken,
            previous_addr=self.previous.addr,
            returning=self._returning,
            access=self._access,
        ) as reception:
            sock, decoder = reception.admit()
        sock.settimeout(self._peer_timeout_s)
        return sock, decoder

    def _receive(self, sock: socket.socket, decoder: Decoder, deadline_s: float | None = None) -> Message:
        """The next message. The timeout of `sock` bounds a silence, `deadline_s` the whole message."""
        began_s = None
        while True:
            if deadline_s is not None:
                sock.settimeout(max(deadline_s - time.monotonic(), 0.001))
            n_bytes = sock.recv_into(decoder.buffer())
            if n_bytes == 0:
                decoder.end_of_file()
            began_s = began_s or time.perf_counter()
            if (message := decoder.received(n_bytes)) is not None:
                self._timeline.add("receive", began_s, carried_rows(message))
                return message

    # ---- writer thread

    def _write(self) -> None:
        with self._owned(self._call_next()) as sock:
            encoder = self._introduce(sock)
            while encoder.state is not State.CLOSED:
                try:
                    message = self._outbox.get(timeout=min(PING_INTERVAL_S, self._peer_timeout_s / 3))
                except queue.Empty:
                    message = Ping()
                if message is None:
                    return
                with self._timeline.during("send", carried_rows(message)):
                    send(sock, encoder, message)
            await_close(sock)

    def _call_next(self) -> socket.socket:
        """Connect from our port, or from any port where that one cannot be had."""
        try:
            try:
                return self._connect(self._source_port)
            except OSError as exc:
                if not self._source_port or exc.errno not in _EPHEMERAL_INSTEAD:
                    raise
                log.info("port %d for outgoing data is not free (%s): using another", self._source_port, exc.strerror)
                return self._connect(0)
        except (OSError, UnicodeError) as exc:
            reason = exc.strerror if isinstance(exc, OSError) and exc.strerror else one_line(exc)
            what = "does not agree on TLS" if isinstance(exc, ssl.SSLError) else "cannot be reached"
            raise LinkClosed(f"{what}: {reason}") from exc

    def _connect(self, source_port: int) -> socket.socket:
        peer, failure = self.following, OSError("the name has no address")
        for family, kind, protocol, _, address in socket.getaddrinfo(peer.addr, peer.port, type=socket.SOCK_STREAM):
            try:
                return self._connect_to(self._new_socket(family, kind, protocol), address, source_port)
            except OSError as exc:
                failure = exc
        raise failure

    def _new_socket(self, family: int, kind: int, protocol: int) -> socket.socket:
        sock = socket.socket(family, kind, protocol)
        if self._access.tls is None:
            return sock
        name = host_name(self.following.addr)
        return self._access.tls.client.wrap_socket(sock, server_hostname=name)  # shakes hands when it connects

    def _connect_to(self, sock: socket.socket, address: Any, source_port: int) -> socket.socket:
        try:
            with self._closable(sock):
                configure(sock, HANDSHAKE_TIMEOUT_S)
                if source_port:
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                    sock.bind(("", source_port))
                sock.connect(address)
        except (OSError, LinkClosed):
            abandon(sock)
            raise
        return sock

    def _introduce(self, sock: socket.socket) -> Encoder:
        encoder, caller = Encoder(self.session), Caller(self.session, self._hello, self._access.key)
        deadline_s = time.monotonic() + HANDSHAKE_TIMEOUT_S
        try:
            send(sock, encoder, caller.hello())
            answer = self._receive(sock, Decoder(self.session, backward=True), deadline_s)
        except LinkClosed as exc:
            raise LinkClosed("closed the connection during the handshake") from exc
        except TimeoutError as exc:
            raise LinkTimeout(f"did not answer the handshake within {HANDSHAKE_TIMEOUT_S:g} s") from exc
        if isinstance(answer, Refuse):
            raise RemoteAbort(f"refused the connection: {one_line(answer.reason)}")
        assert isinstance(answer, Welcome)
        try:
            send(sock, encoder, caller.prove(answer))
        except KeyMismatch as exc:
            send(sock, encoder, Refuse(str(exc)))
            await_close(sock)
            raise KeyMismatch(f"is not let in: {exc}") from exc
        sock.settimeout(self._peer_timeout_s)
        return encoder

    @contextlib.contextmanager
    def _owned(self, sock: socket.socket) -> Iterator[socket.socket]:
        """Hold `sock` where `close()` finds it; abandon it at the end."""
        try:
            with self._closable(sock):
                yield sock
        finally:
            abandon(sock)

    @contextlib.contextmanager
    def _closable(self, sock: socket.socket) -> Iterator[None]:
        """`close()` wakes whatever waits on `sock` meanwhile."""
        with self._lock:
            if self._closing:
                raise LinkClosed("is no longer needed")
            self._sockets.append(sock)
        try:
            yield
        finally:
            with self._lock:
                self._sockets.remove(sock)
