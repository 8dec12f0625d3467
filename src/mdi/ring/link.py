"""Two sockets and two threads that move messages from the predecessor and to the successor.

The reader thread accepts the predecessor and posts what it sends to the node's inbox. The writer thread connects to
the successor and sends what the compute thread does not send itself (`mdi.ring.sender`). A thread that fails posts
`LinkDown` and ends. Every blocking call has a deadline; an idle writer pings, so that silence means trouble.
"""

import contextlib
import errno
import logging
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from mdi.errors import LinkClosed, LinkTimeout, MdiError, RemoteAbort, RingError
from mdi.net.access import THIS_MACHINE, Access
from mdi.net.refusals import RefusalLog
from mdi.net.sockets import Peer, await_close, configure, reset, wake
from mdi.net.tls import host_name
from mdi.net.tls_errors import failed_call
from mdi.ring.acceptor import HandshakeAcceptor
from mdi.ring.config import LinkConfig
from mdi.ring.handshake import Initiator, KeyMismatch
from mdi.ring.messages import Activation, Message, Ping, Refuse, Welcome, carried_rows
from mdi.ring.pace import Pace
from mdi.ring.sender import Sender
from mdi.ring.transport import ReadAhead, send
from mdi.ring.wire import Decoder, Encoder, Session, State
from mdi.strings import one_line
from mdi.trace import Timeline

log = logging.getLogger(__name__)

_EPHEMERAL_INSTEAD = (errno.EADDRINUSE, errno.EADDRNOTAVAIL, errno.EACCES)


@dataclass(frozen=True)
class Received:
    """The predecessor sent `message`."""

    link: "Link"
    message: Message
    at_s: float = 0.0  # when it was complete, by the clock of `Timeouts`


@dataclass(frozen=True)
class PredecessorConnected:
    """The predecessor connected and agreed on the session."""

    link: "Link"


@dataclass(frozen=True)
class LinkDown:
    """One side of the link failed; `peer` is the node on that side."""

    link: "Link"
    peer: Peer
    error: Exception  # an `MdiError`, or else a bug


LinkEvent = Received | PredecessorConnected | LinkDown


class Link:
    """This node's two edges of the ring, for one session.

    `accept()` starts waiting for the predecessor, `connect()` starts connecting to the successor; both
    return at once and report through `post`. `send()` never blocks. `close()` ends both threads.
    The listener belongs to the caller and outlives the link.
    """

    def __init__(
        self,
        config: LinkConfig,
        *,
        listener: socket.socket,
        post: Callable[[LinkEvent], None],
        access: Access = THIS_MACHINE,
        timeline: Timeline | None = None,
        refusals: RefusalLog | None = None,
    ) -> None:
        """`post` takes what happens, and is called from both threads. `refusals` outlives the link."""
        self.config = config
        self._listener, self._post, self._access = listener, post, access
        self._timeline, self._refusals = timeline or Timeline(), refusals or RefusalLog()
        self._reader = self._thread("ring-reader", self._read, config.predecessor)
        self._writer = self._thread("ring-writer", self._write, config.successor)
        timeouts = config.timeouts
        self._reading = Pace(timeouts, config.peer_timeout_s, timeouts.fast_link_bytes_s)
        # What is sent is only in the system's buffers by then, so that it went fast says nothing of the link.
        writing = Pace(timeouts, config.peer_timeout_s, timeouts.link_bytes_s)
        ping_every_s = timeouts.ping_every_s(config.peer_timeout_s)
        self._sender = Sender(config.capacity, ping_every_s, writing, self._count_sent)
        self.n_received = self.n_sent = 0  # messages with rows
        self._wake, self._woken = socket.socketpair()
        self._sockets: list[socket.socket] = []
        self._lock = threading.Lock()
        self._closing = False

    def _thread(self, name: str, loop: Callable[[], None], peer: Peer) -> threading.Thread:
        return threading.Thread(target=self._run, args=(loop, peer), name=name, daemon=True)

    @property
    def session(self) -> Session:
        """The numbers of the session."""
        return self.config.session

    def accept(self) -> None:
        """Start waiting for the predecessor; `PredecessorConnected` or `LinkDown` is posted."""
        self._reader.start()

    def connect(self) -> None:
        """Start connecting to the successor; only a failure is posted."""
        self._writer.start()

    def send(self, message: Message) -> None:
        """Send `message` to the successor, as `Sender.send` does. Called only from the compute thread."""
        self._sender.send(message)

    def close(self, drain_s: float = 0.0) -> None:
        """Let the writer send what is queued for up to `drain_s` seconds, then end both threads.

        Afterwards no thread of this link runs, its connections are closed and nothing more is posted.
        """
        if self._closing:
            return
        self._closing = True
        self._sender.finish()
        if drain_s and self._writer.ident is not None:
            self._writer.join(drain_s)
        with self._lock:
            for sock in self._sockets:
                wake(sock)
        self._wake.close()  # the other end of the pair becomes readable: the acceptor's selector returns
        for thread in (self._reader, self._writer):
            if thread.ident is not None:
                thread.join()
        self._woken.close()

    def _run(self, loop: Callable[[], None], peer: Peer) -> None:
        try:
            loop()
        except Exception as exc:  # noqa: BLE001  what is not an `MdiError` by now is a bug, raised on the main thread
            self._report(peer, self._named(exc, peer))

    def _named(self, exc: Exception, peer: Peer) -> Exception:
        """The failure as one of the node at the other end; a bug as it is."""
        who = f"{peer.name} ({peer.addr}:{peer.port})"
        match exc:
            case RingError():
                return type(exc)(f"{who} {exc}", peer=peer.name, reason=exc.reason)
            case MdiError():
                return type(exc)(f"{who} {exc}")
            case TimeoutError():
                reason = f"gave no sign of life for {self.config.peer_timeout_s:g} s"
                return LinkTimeout(f"{who} {reason}", peer=peer.name, reason=reason)
            case OSError():
                reason = f"connection lost: {exc.strerror or exc}"
                return LinkClosed(f"{who}: {reason}", peer=peer.name, reason=reason)
        return exc

    def _report(self, peer: Peer, error: Exception) -> None:
        if not self._closing:
            log.debug("link to %s is down: %s", peer.name, error)
            self._post(LinkDown(self, peer, error))

    def _record(self, activity: str, began_s: float, message: Message, sender: Mapping[str, Any], n: int) -> None:
        """Add to the timeline that a message was sent or received; `n` messages with rows were before it.

        `sender` are the facts that its HELLO told: both ends of the edge know them, so both give it the same name.
        """
        if not self._timeline.on:
            return
        if isinstance(message, Activation):
            flow = f"{self.session.epoch}.{sender.get('rank', 0)}.{n + 1}"
            self._timeline.add(activity, began_s, carried_rows(message), len(message.segments), flow)
        else:
            self._timeline.add(activity, began_s)

    # ---- reader thread

    def _read(self) -> None:
        sock, decoder = self._accept_predecessor()
        source = ReadAhead(sock)
        with self._owned(sock):
            self._post(PredecessorConnected(self))
            while decoder.state is not State.CLOSED:
                message = self._receive(source, decoder)
                self.n_received += isinstance(message, Activation)
                if not isinstance(message, Ping):
                    self._post(Received(self, message, self.config.timeouts.clock()))

    def _accept_predecessor(self) -> tuple[socket.socket, Decoder]:
        with HandshakeAcceptor(
            self.config, listener=self._listener, woken=self._woken, access=self._access, refusals=self._refusals
        ) as acceptor:
            sock, decoder = acceptor.accept()
        sock.settimeout(self.config.peer_timeout_s)
        return sock, decoder

    def _receive(self, source: ReadAhead, decoder: Decoder) -> Message:
        """The next message. The timeout of the socket bounds a silence, and the pace of the link a message that has
        begun.
        """
        transfer, began_s = None, 0.0
        while True:
            n_bytes = source.recv_into(decoder.buffer())
            if n_bytes == 0:
                decoder.end_of_file()
            if transfer is None:
                transfer, began_s = self._reading.begin(), time.perf_counter()
            frame_bytes = decoder.frame_bytes
            if (message := decoder.received(n_bytes)) is not None:
                transfer.end(frame_bytes)
                self._timeline.meter.received(time.perf_counter() - began_s)
                self._record("receive", began_s, message, self.config.expected, self.n_received)
                return message
            transfer.check(decoder.frame_bytes)

    # ---- writer thread

    def _write(self) -> None:
        with self._owned(self._connect_to_successor()) as sock:
            encoder = self._handshake(sock)
            self._sender.serve(sock, encoder)
            if encoder.state is State.CLOSED:
                await_close(sock, self.config.timeouts.close_s)

    def _count_sent(self, message: Message, began_s: float) -> None:
        """Called from the thread that has sent it."""
        self._timeline.meter.sent(time.perf_counter() - began_s)
        self._record("send", began_s, message, self.config.hello, self.n_sent)
        self.n_sent += isinstance(message, Activation)

    def _connect_to_successor(self) -> socket.socket:
        """Connect from our port, or from any port where that one cannot be had."""
        source_port = self.config.source_port
        try:
            try:
                return self._connect(source_port)
            except OSError as exc:
                if not source_port or exc.errno not in _EPHEMERAL_INSTEAD:
                    raise
                log.info("port %d for outgoing data is not free (%s): using another", source_port, exc.strerror)
                return self._connect(0)
        except ssl.SSLError as exc:
            raise self._tls_failure(exc) from exc
        except (OSError, UnicodeError) as exc:
            reason = exc.strerror if isinstance(exc, OSError) and exc.strerror else one_line(exc)
            raise LinkClosed(f"cannot be reached: {reason}") from exc

    def _connect(self, source_port: int) -> socket.socket:
        peer, failure = self.config.successor, OSError("the name has no address")
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
        name = host_name(self.config.successor.addr)
        return self._access.tls.client.wrap_socket(sock, server_hostname=name)  # TLS handshake within connect()

    def _connect_to(self, sock: socket.socket, address: Any, source_port: int) -> socket.socket:
        try:
            with self._closable(sock):
                configure(sock, self.config.timeouts.handshake_s)
                if source_port:
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                    sock.bind(("", source_port))
                sock.connect(address)
        except (OSError, LinkClosed):
            reset(sock)
            raise
        return sock

    def _handshake(self, sock: socket.socket) -> Encoder:
        """Agree with the successor on the session and show each other the key."""
        config, timeouts = self.config, self.config.timeouts
        encoder, initiator = Encoder(config.session), Initiator(config.session, config.hello, self._access.keys)
        deadline_s = timeouts.deadline_s(timeouts.handshake_s)
        try:
            # A successor that rejects our certificate does so when our side of the handshake is over, and closes: what
            # we send may fail, and the alert that says why can still be read.
            with contextlib.suppress(BrokenPipeError, ConnectionResetError, ssl.SSLEOFError):
                send(sock, encoder, initiator.hello())
            answer = self._receive_answer(sock, deadline_s)
        except ssl.SSLError as exc:
            raise self._tls_failure(exc) from exc
        except LinkClosed as exc:
            raise LinkClosed("closed the connection during the handshake") from exc
        except TimeoutError as exc:
            raise LinkTimeout(f"did not answer the handshake within {timeouts.handshake_s:g} s") from exc
        if isinstance(answer, Refuse):
            raise RemoteAbort(f"refused the connection: {one_line(answer.reason)}")
        assert isinstance(answer, Welcome)  # the decoder lets nothing else through in this state
        try:
            proof, session_key = initiator.prove(answer)
        except KeyMismatch as exc:
            send(sock, encoder, Refuse(str(exc)))
            await_close(sock, timeouts.close_s)
            raise KeyMismatch(f"is not let in: {exc}") from exc
        send(sock, encoder, proof)
        encoder.open(session_key)
        sock.settimeout(config.peer_timeout_s)
        return encoder

    def _receive_answer(self, sock: socket.socket, deadline_s: float) -> Message:
        decoder, timeouts = Decoder(self.config.session, backward=True), self.config.timeouts
        while True:
            sock.settimeout(timeouts.left_s(deadline_s) or 0.001)  # 0 would not wait, nor time out
            n_bytes = sock.recv_into(decoder.buffer())
            if n_bytes == 0:
                decoder.end_of_file()
            if (message := decoder.received(n_bytes)) is not None:
                return message

    def _tls_failure(self, exc: ssl.SSLError) -> LinkClosed:
        peer, timeout_s = self.config.successor, self.config.timeouts.handshake_s
        return LinkClosed(
            f"does not agree on TLS: {failed_call(exc, self._access.tls, peer.addr, peer.port, timeout_s)}"
        )

    @contextlib.contextmanager
    def _owned(self, sock: socket.socket) -> Iterator[socket.socket]:
        """Hold `sock` where `close()` finds it; reset it at the end."""
        try:
            with self._closable(sock):
                yield sock
        finally:
            reset(sock)

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
