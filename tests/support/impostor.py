"""A server that answers as a script tells it, for clients that must not trust it."""

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator

from mdi.control.client import ControlClient
from mdi.net.access import THIS_MACHINE, Access
from mdi.net.sockets import listen
from mdi.net.timeouts import DEFAULT_TIMEOUTS, Timeouts
from mdi.net.tls import Tls
from support.control import HOST

PATIENCE_S = 30.0  # for a client that is to hang up
PIECE = 1 << 16


class Impostor:
    """Answers every request by a script that gets the connection; counts what it could send."""

    def __init__(self, script: Callable[["Impostor", socket.socket], None], tls: Tls | None = None) -> None:
        """With `tls` it shows a certificate that its clients accept."""
        self._script, self._tls, self._listener = script, tls, listen(HOST, 0)
        self.port = int(self._listener.getsockname()[1])
        self.n_sent = 0
        self.closing = threading.Event()
        self._thread = threading.Thread(target=self._serve)

    def __enter__(self) -> "Impostor":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.closing.set()
        socket.create_connection((HOST, self.port)).close()
        self._thread.join()
        self._listener.close()

    def send(self, sock: socket.socket, data: bytes) -> None:
        sock.sendall(data)
        self.n_sent += len(data)

    def drip(self, sock: socket.socket, data: bytes) -> None:
        """For ever, a byte at a time, more often than any silence that is allowed."""
        while not self.closing.wait(0.02):
            for byte in data:
                self.send(sock, bytes([byte]))

    def flood(self, sock: socket.socket, data: bytes) -> None:
        while not self.closing.is_set():
            self.send(sock, data)

    def _serve(self) -> None:
        while not self.closing.is_set():
            sock, _ = self._listener.accept()
            sock.settimeout(PATIENCE_S)
            with sock, contextlib.suppress(OSError):
                if self._tls is None or self.closing.is_set():
                    self._answer(sock)
                else:
                    with self._tls.server.wrap_socket(sock, server_side=True) as secured:
                        self._answer(secured)

    def _answer(self, sock: socket.socket) -> None:
        sock.recv(PIECE)
        self._script(self, sock)


@contextlib.contextmanager
def client_of(
    script: Callable[[Impostor, socket.socket], None],
    access: Access = THIS_MACHINE,
    timeouts: Timeouts = DEFAULT_TIMEOUTS,
) -> Iterator[tuple[ControlClient, Impostor]]:
    with Impostor(script) as impostor:
        yield ControlClient("secondary 0", HOST, impostor.port, access, timeouts), impostor
