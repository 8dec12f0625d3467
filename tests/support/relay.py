"""A TCP relay that stands in a link, HTTP or ring, and breaks it: by hand, or once so many bytes have passed.

Faults strike one direction, from whoever connects to the one who listens, unless they end the connection.
"""

import contextlib
import enum
import select
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator

HOST = "127.0.0.1"
BLOCK_BYTES = 1 << 16
THROTTLE_BYTES_S = 20_000
STALL_S = 1.3
DELAY_S = 0.05
TRICKLE_S = 1.0  # for a byte
_RESET = struct.pack("ii", 1, 0)


Rewriter = Callable[[bytes], bytes]


class Fault(enum.Enum):
    """What can happen to a link."""

    CUT = "cut"  # both ends see the end of the stream
    RESET = "reset"  # both ends see a reset
    HALF_OPEN = "half-open"  # bytes vanish, and nobody is told
    STALL = "stall"  # nothing passes for a while, then everything does
    DELAY = "delay"  # every block takes a little longer
    THROTTLE = "throttle"  # few bytes per second
    TRUNCATE = "truncate"  # the stream ends within a frame
    CORRUPT = "corrupt"  # one byte is another one
    TRICKLE = "trickle"  # one byte per second from now on: signs of life, and no progress


class Relay:
    """Listens on a port of its own and passes everything on to `target`, until a fault strikes. Use it as a context."""

    def __init__(self, target: int) -> None:
        self._target = target
        self.new_rewriter: Callable[[], Rewriter] = lambda: bytes  # for each connection: what becomes of its bytes
        self._listener = socket.create_server((HOST, 0))
        self.port = int(self._listener.getsockname()[1])
        self._wake, self._woken = socket.socketpair()
        self._lock = threading.Lock()
        self._fault: Fault | None = None
        self._after_bytes = 0
        self._refusing = False
        self.refused = threading.Event()  # somebody did not get through
        self.n_bytes = 0  # that have arrived from those who connect
        self.struck = threading.Event()  # the fault has happened
        self._connections: list[threading.Thread] = []
        self._acceptor = threading.Thread(target=self._accept, name="relay")

    def __enter__(self) -> "Relay":
        self._acceptor.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._wake.close()
        self._acceptor.join()
        for thread in self._connections:
            thread.join()
        self._woken.close()
        self._listener.close()

    def strike(self, fault: Fault, after_bytes: int = 0) -> None:
        """Let `fault` happen once: when `after_bytes` more have arrived."""
        with self._lock:
            self.struck.clear()
            self._fault, self._after_bytes = fault, self.n_bytes + after_bytes

    @contextlib.contextmanager
    def refusing(self) -> Iterator[None]:
        """Nobody gets through to the target meanwhile, as if the machine were gone."""
        self._refusing = True
        try:
            yield
        finally:
            self._refusing = False

    def redirect(self, target: int) -> None:
        """From now on connections lead to another port."""
        self._target = target

    def _accept(self) -> None:
        while True:
            ready, _, _ = select.select([self._listener, self._woken], [], [])
            if self._woken in ready:
                return
            sock, _ = self._listener.accept()
            thread = threading.Thread(target=self._connect, args=(sock,), name="relay-connection")
            self._connections.append(thread)
            thread.start()

    def _connect(self, source: socket.socket) -> None:
        with source, contextlib.suppress(OSError):
            if self._refusing:
                _reset(source)
                self.refused.set()
                return
            with socket.create_connection((HOST, self._target), timeout=5) as target:
                target.settimeout(None)
                for sock in (source, target):
                    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self._pass_on(source, target, self.new_rewriter())

    def _pass_on(self, source: socket.socket, target: socket.socket, rewrite: Rewriter) -> None:
        lasting: Fault | None = None  # a fault of this connection that goes on
        while True:
            ready, _, _ = select.select([source, target, self._woken], [], [])
            if self._woken in ready:
                return
            if target in ready:
                if not (data := _receive(target, source)):
                    return
                if lasting is not Fault.HALF_OPEN:
                    source.sendall(data)
            if source in ready:
                if not (data := _receive(source, target)):
                    return
                data = rewrite(data)
                lasting = self._due(len(data)) or lasting
                if lasting is not None and not self._suffer(lasting, data, source, target):
                    return
                if lasting is None or lasting in (Fault.STALL, Fault.DELAY, Fault.THROTTLE):
                    target.sendall(data)
                if lasting in (Fault.CORRUPT, Fault.STALL):
                    lasting = None

    def _due(self, n_bytes: int) -> Fault | None:
        """The fault that happens with these bytes, if any."""
        with self._lock:
            self.n_bytes += n_bytes
            if self._fault is None or self.n_bytes < self._after_bytes:
                return None
            fault, self._fault = self._fault, None
        self.struck.set()
        return fault

    def _suffer(self, fault: Fault, data: bytes, source: socket.socket, target: socket.socket) -> bool:
        """Let `data` meet with `fault`; False where this ends the connection."""
        match fault:
            case Fault.CUT:
                return False
            case Fault.RESET:
                _reset(source)
                _reset(target)
                return False
            case Fault.TRUNCATE:
                target.sendall(data[: len(data) // 2])
                return False
            case Fault.CORRUPT:
                middle = len(data) // 2
                target.sendall(data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :])
            case Fault.STALL:
                self._pause(STALL_S)
            case Fault.DELAY:
                self._pause(DELAY_S)
            case Fault.THROTTLE:
                self._pause(len(data) / THROTTLE_BYTES_S)
            case Fault.TRICKLE:
                return self._trickle(data, source, target)
            case Fault.HALF_OPEN:
                pass
        return True

    def _trickle(self, data: bytes, source: socket.socket, target: socket.socket) -> bool:
        """Pass `data` on a byte at a time; False where one of the two has given up."""
        deadline_s = time.monotonic()
        for byte in data:
            target.sendall(bytes([byte]))
            deadline_s += TRICKLE_S
            while (left_s := deadline_s - time.monotonic()) > 0:
                ready, _, _ = select.select([self._woken, source, target], [], [], left_s)
                if self._woken in ready or any(sock.recv(1, socket.MSG_PEEK) == b"" for sock in ready):
                    return False
                if ready:  # more is to come, or the other direction speaks: it waits
                    self._pause(left_s)
        return True

    def _pause(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0 and not select.select([self._woken], [], [], left)[0]:
            pass


def _receive(sock: socket.socket, other: socket.socket) -> bytes:
    """What has arrived; a reset is passed on as one."""
    try:
        return sock.recv(BLOCK_BYTES)
    except ConnectionError:
        _reset(other)
        return b""


def _reset(sock: socket.socket) -> None:
    """Have the closing of `sock`, which is about to come, reach its other end as a reset."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
