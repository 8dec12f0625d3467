"""Links on real sockets of loopback, and raw neighbours for them."""

import contextlib
import dataclasses
import functools
import json
import queue
import socket
import struct
import threading
from dataclasses import dataclass

from mdi.net.access import THIS_MACHINE, Access
from mdi.net.sockets import Peer, listen
from mdi.net.timeouts import Timeouts
from mdi.ring.config import LinkConfig
from mdi.ring.link import Link, LinkDown, LinkEvent, PredecessorConnected, Received
from mdi.ring.messages import Activation, Message
from mdi.ring.wire import Session
from mdi.segments import Segment
from mdi.trace import Timeline
from support.wire import GOODBYE, HEADER_BYTES, PROOF, SESSION, frame, rows

HOST = "127.0.0.1"
FACTS = {"n_slots": 3}
HELLO = frame(1, json.dumps(FACTS).encode())
WELCOME = frame(2)
PATIENCE_S = 60.0  # of a test that waits for what must happen, and of its links unless it says otherwise
PATIENT = Timeouts(handshake_s=PATIENCE_S)
SHORT_HANDSHAKE = Timeouts(handshake_s=0.3)


@dataclass
class End:
    """One node of a test: its link, and what the link posted."""

    link: Link
    inbox: "queue.Queue[LinkEvent]"
    port: int

    def event(self) -> LinkEvent:
        return self.inbox.get(timeout=PATIENCE_S)

    def message(self) -> Message:
        event = self.event()
        assert isinstance(event, Received)
        assert event.link is self.link
        return event.message

    def down(self) -> LinkDown:
        event = self.event()
        assert isinstance(event, LinkDown)
        assert event.link is self.link
        return event


class Bench:
    """Makes links and raw sockets, and closes them all."""

    def __init__(self) -> None:
        self._stack = contextlib.ExitStack()

    def listener(self, port: int = 0, host: str = HOST) -> socket.socket:
        return self._stack.enter_context(listen(host, port))

    def end(
        self,
        successor_port: int,
        *,
        listener: socket.socket | None = None,
        source_port: int = 0,
        session: Session = SESSION,
        expected: dict[str, object] | None = None,
        returning: bool = False,
        peer_timeout_s: float = PATIENCE_S,
        host: str = HOST,
        successor_host: str | None = None,
        predecessor_addr: str | None = None,
        access: Access = THIS_MACHINE,
        timeouts: Timeouts = PATIENT,
        timeline: Timeline | None = None,
        inbox: "queue.Queue[LinkEvent] | None" = None,
    ) -> End:
        """`inbox` may have room for few events: then the link waits until they are taken."""
        listener, inbox = listener or self.listener(host=host), inbox or queue.Queue()
        config = LinkConfig(
            session=session,
            predecessor=Peer("the node before", predecessor_addr or host, 1),
            successor=Peer("the node behind", successor_host or host, successor_port),
            expected=FACTS if expected is None else expected,
            hello=FACTS,
            returning=returning,
            capacity=10,
            peer_timeout_s=peer_timeout_s,
            source_port=source_port,
            timeouts=timeouts,
        )
        post = functools.partial(inbox.put, timeout=PATIENCE_S)
        link = Link(config, listener=listener, post=post, access=access, timeline=timeline)
        self._stack.callback(link.close)
        return End(link, inbox, listener.getsockname()[1])

    def dial(self, port: int) -> socket.socket:
        """A raw connection to a listener."""
        return self._stack.enter_context(socket.create_connection((HOST, port), timeout=PATIENCE_S))

    def predecessor(self, end: End) -> socket.socket:
        """A raw predecessor, past its handshake."""
        sock = self.dial(end.port)
        sock.sendall(HELLO)
        assert read(sock, HEADER_BYTES) == WELCOME
        sock.sendall(PROOF)
        assert isinstance(end.event(), PredecessorConnected)
        return sock

    def successor(self, listener: socket.socket) -> socket.socket:
        """A raw successor, past the handshake of the link that connects."""
        listener.settimeout(PATIENCE_S)
        sock, _ = listener.accept()
        self._stack.enter_context(sock)
        sock.settimeout(PATIENCE_S)
        assert read(sock, len(HELLO)) == HELLO
        sock.sendall(WELCOME)
        assert read(sock, len(PROOF)) == PROOF
        return sock

    def ring(self, source_ports: tuple[int, int] = (0, 0)) -> tuple[End, End]:
        """A starter and a secondary that are connected both ways."""
        listener = self.listener()
        a = self.end(listener.getsockname()[1], source_port=source_ports[0], returning=True)
        b = self.end(a.port, listener=listener, source_port=source_ports[1])
        for end in (a, b):
            end.link.accept()
        a.link.connect()
        assert b.event() == PredecessorConnected(b.link)
        b.link.connect()
        assert a.event() == PredecessorConnected(a.link)
        return a, b

    def black_hole(self) -> int:
        """A port whose queue of connections is full, so that a further one gets no answer."""
        full = self._stack.enter_context(socket.create_server((HOST, 0), backlog=0))
        for _ in range(8):
            sock = self._stack.enter_context(socket.socket())
            sock.setblocking(False)
            sock.connect_ex(full.getsockname())
        return int(full.getsockname()[1])

    def close(self) -> None:
        self._stack.close()


def read(sock: socket.socket, n_bytes: int) -> bytes:
    data = b""
    while len(data) < n_bytes and (more := sock.recv(n_bytes - len(data))):
        data += more
    return data


FOREIGN = {
    "http": b"GET / HTTP/1.1\r\nHost: localhost:5088\r\n\r\n",
    "too little": b"MDIR",
    "nothing": b"",
    "not hello": GOODBYE,
    "other epoch": frame(1, b"{}", epoch=1),
    "other facts": frame(1, b"{}"),
    "no json": frame(1, b"hello"),
    "ones": b"\xff" * 5000,
}

LARGE = dataclasses.replace(SESSION, n_embd=4096, context=4096, max_rows=4096)
FLOOD = Activation((Segment(0, 0, 4000, 1),), memoryview(bytes(4000 * 4096 * 4)))  # more than sockets hold
ONE_ROW = Activation((Segment(0, 0, 1, 1),), memoryview(rows(1)))


def ring_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("ring-")]


def reset(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def free_port() -> int:
    with socket.create_server((HOST, 0)) as sock:
        return int(sock.getsockname()[1])
