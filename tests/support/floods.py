"""Clients without a key by the hundred, as a process of its own: they hold what they get, and come again at once.

On each port there are clients of every kind. Together they make up to `PER_S` connections in a second.
"""

import contextlib
import heapq
import itertools
import json
import selectors
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

HOST = "127.0.0.1"
PER_S = 400.0
DRIP_S = 0.5
GONE_S = 0.3  # before a port where nobody listens is tried again
ESCAPES = b"\x1b[2J\x1b]0;owned\x07\r\nforged line\r\n"


@dataclass(frozen=True)
class Kind:
    """What a client sends: at once, then byte by byte; and whether it closes instead of waiting."""

    at_once: bytes = b""
    dripped: bytes = b""
    closes: bool = False


def _client_hello() -> bytes:
    """The first flight of a TLS handshake."""
    context, incoming, outgoing = ssl.create_default_context(), ssl.MemoryBIO(), ssl.MemoryBIO()
    with contextlib.suppress(ssl.SSLWantReadError):
        context.wrap_bio(incoming, outgoing, server_hostname="localhost").do_handshake()
    return outgoing.read()


def kinds(tls: bool) -> dict[str, Kind]:
    """The kinds of clients; those of a ring with TLS attack its handshake too."""
    found = {
        "silent": Kind(),
        "one byte each": Kind(dripped=b"G"),
        "slow head": Kind(b"GET / HTTP/1.1\r\nX: ", b"x" * 10_000),
        "garbage": Kind(ESCAPES, closes=True),
        "unsigned request": Kind(b"GET /\x1b2J HTTP/1.1\r\nHost: x\r\n\r\n"),
    }
    if tls:
        hello = _client_hello()
        found |= {"half a TLS handshake": Kind(hello), "slow TLS handshake": Kind(hello[:5], hello[5:])}
    return found


@dataclass
class _Client:
    port: int
    kind: Kind
    sock: socket.socket | None = None
    turn: int = 0  # its last one that is due; earlier ones are void
    to_drip: Iterator[bytes] = field(default_factory=lambda: iter(()))


class _Crowd:
    def __init__(self, clients: Sequence[_Client]) -> None:
        self._selector = selectors.DefaultSelector()
        self._order = itertools.count()
        self._due: list[tuple[float, int, _Client]] = []  # when each client is to do something
        for client in clients:
            self._later(client, 0.0)
        self._may_connect_at_s = time.monotonic()

    def _later(self, client: _Client, delay_s: float) -> None:
        client.turn = next(self._order)
        heapq.heappush(self._due, (time.monotonic() + delay_s, client.turn, client))

    def turn(self) -> None:
        for key, _ in self._selector.select(0.02):
            self._read(key.data)
        while self._due and self._due[0][0] <= time.monotonic():
            _, turn, client = heapq.heappop(self._due)
            if turn != client.turn:
                continue
            try:
                if client.sock is None:
                    self._connect(client)
                else:
                    self._drip(client, client.sock)
            except OSError:
                self._close(client, GONE_S)

    def _connect(self, client: _Client) -> None:
        wait_s = self._may_connect_at_s - time.monotonic()
        if wait_s > 0:
            self._later(client, wait_s)
            return
        client.sock = sock = socket.create_connection((HOST, client.port), timeout=1.0)
        self._may_connect_at_s = max(self._may_connect_at_s, time.monotonic() - 0.1) + 1 / PER_S
        sock.setblocking(False)
        sock.send(client.kind.at_once)
        if client.kind.closes:
            self._close(client, 0.0)
            return
        client.to_drip = (bytes((byte,)) for byte in client.kind.dripped)
        self._selector.register(sock, selectors.EVENT_READ, client)
        self._drip(client, sock)

    def _drip(self, client: _Client, sock: socket.socket) -> None:
        for byte in client.to_drip:
            sock.send(byte)
            self._later(client, DRIP_S)
            return

    def _read(self, client: _Client) -> None:
        assert client.sock is not None
        try:
            if client.sock.recv(4096):
                client.sock.send(client.kind.at_once)  # it was answered: once more
                return
        except BlockingIOError:
            return
        except OSError:
            pass
        self._close(client, 0.0)

    def _close(self, client: _Client, delay_s: float) -> None:
        if client.sock is not None:
            with contextlib.suppress(KeyError):
                self._selector.unregister(client.sock)
            client.sock.close()
            client.sock = None
        self._later(client, delay_s)


@contextlib.contextmanager
def flooded(ports: Sequence[int], per_kind: int, tls: bool = False) -> Iterator[None]:
    """Hold `per_kind` clients of each kind on every port; at the end all are gone."""
    request = json.dumps({"ports": list(ports), "per_kind": per_kind, "tls": tls})
    with subprocess.Popen([sys.executable, __file__, request], stdin=subprocess.PIPE) as process:
        try:
            yield
            assert process.poll() is None, "the flood ended by itself"
        finally:
            process.kill()


def main() -> None:
    request = json.loads(sys.argv[1])
    each = [
        _Client(port, kind)
        for _ in range(request["per_kind"])
        for port in request["ports"]
        for kind in kinds(request["tls"]).values()
    ]
    crowd = _Crowd(each)
    while True:
        crowd.turn()


if __name__ == "__main__":
    main()
