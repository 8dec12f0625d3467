"""Connections of a node's HTTP port: whoever has no key costs a descriptor for a few seconds, and nothing else."""

import contextlib
import errno
import json
import logging
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import mdi.control.connections
from mdi.checkpoint.cache import ChunkCache
from mdi.control.client import ControlClient
from mdi.control.connections import NO_TLS_ALERT
from mdi.control.hosts import host_of
from mdi.control.routes import ControlServer
from mdi.control.server import MAX_IGNORED_BYTES, N_THREADS
from mdi.control.signatures import SCHEME, Challenge
from mdi.control.streams import MAX_HEAD_BYTES
from mdi.net.access import Access
from mdi.net.keys import Key, Keys
from mdi.net.timeouts import Timeouts
from support.clocks import ManualClock
from support.control import CHUNK, DIGEST, HOST, FakeNode, sha256_of, type_of
from support.scripts import wait_until
from support.statuses import IDLE

KEY = Keys(Key("correct horse battery staple", "test"))
PATIENCE_S = 60.0
PATIENT = Timeouts(request_head_s=2 * PATIENCE_S, request_read_s=2 * PATIENCE_S)  # nothing ends by its deadline
HEAD = b"GET / HTTP/1.1\r\nHost: x\r\n"
Serve = Callable[..., ControlServer]


@pytest.fixture
def node(tmp_path: Path) -> FakeNode:
    return FakeNode(ChunkCache(tmp_path / "cache", sha256_of))


@pytest.fixture
def serve(node: FakeNode) -> Iterator[Serve]:
    """Starts a server of a ring with a key."""
    with contextlib.ExitStack() as stack:

        def start(timeouts: Timeouts = PATIENT) -> ControlServer:
            server = ControlServer(HOST, 0, node, Access(KEY), timeouts)
            stack.callback(server.close)
            server.start()
            return server

        yield start


class Client:
    """A raw client."""

    def __init__(self, server: ControlServer) -> None:
        self.sock = socket.create_connection((HOST, server.port), PATIENCE_S)
        self._file = self.sock.makefile("rb")

    def close(self) -> None:
        self._file.close()
        self.sock.close()

    def send(self, data: bytes) -> None:
        self.sock.sendall(data)

    def answer(self) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body of the next answer."""
        status = int(self._line().split()[1])
        headers = {}
        while line := self._line():
            name, headers[name] = line.split(": ", 1)  # type: ignore[misc]
        if "Content-Length" in headers:
            return status, headers, self._file.read(int(headers["Content-Length"]))
        body = b""
        while size := int(self._line(), 16):
            body += self._file.read(size)
            self._line()
        self._line()
        return status, headers, body

    @property
    def is_closed(self) -> bool:
        """Whether the other side closes the connection, or has."""
        try:
            return self._file.read(1) == b""
        except ConnectionError:
            return True

    def _line(self) -> str:
        line = self._file.readline()
        assert line.endswith(b"\r\n"), f"the connection ended with {line!r}"
        return line[:-2].decode()


@pytest.fixture
def dial() -> Iterator["Dial"]:
    with contextlib.ExitStack() as stack:
        yield lambda server: stack.enter_context(contextlib.closing(Client(server)))


Dial = Callable[[ControlServer], Client]


def status_of(server: ControlServer) -> object:
    timeouts = Timeouts(connect_s=PATIENCE_S, status_s=PATIENCE_S)
    return ControlClient("secondary 0", HOST, server.port, Access(KEY), timeouts).status()


def open_connections(server: ControlServer) -> int:
    return len(server._server.connections._open)


def signed(client: Client, method: str, target: str, body: bytes = b"", content_range: str = "") -> bytes:
    """A request with the key, whose nonce is asked for on `client`."""
    client.send(b"GET / HTTP/1.1\r\nHost: x\r\nAuthorization: " + SCHEME.encode() + b"\r\n\r\n")
    challenge = Challenge.of(client.answer()[1]["WWW-Authenticate"])
    assert challenge is not None
    host = host_of(*client.sock.getpeername())
    headers = {"Host": host, "Authorization": challenge.sign(KEY, host, method, target, body, content_range)}
    headers |= type_of(method, target) | {"Content-Length": str(len(body))}
    headers |= {"Content-Range": content_range} if content_range else {}
    lines = [f"{method} {target} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items()), "", ""]
    return "\r\n".join(lines).encode() + body


# ---- whoever has no key takes no thread


@pytest.mark.parametrize("data", [b"", b"G", HEAD, b"PUT / HTTP/1.1\r\nHost: x\r\nContent-Length: 9999\r\n\r\nx"])
def test_clients_that_stop_sending_take_no_thread(serve: Serve, dial: Dial, data: bytes) -> None:
    server = serve()
    for _ in range(5 * N_THREADS):
        dial(server).send(data)
    assert status_of(server) == IDLE
    assert status_of(server) == IDLE


def test_a_tls_handshake_gets_an_alert_and_the_end_of_the_connection(serve: Serve, dial: Dial) -> None:
    """Two bytes are enough, one after the other too."""
    client = dial(serve())
    client.send(b"\x16")
    client.send(b"\x03")
    assert client._file.read() == NO_TLS_ALERT


def test_hundreds_of_connections_may_be_open(serve: Serve, dial: Dial) -> None:
    server = serve()
    clients = [dial(server) for _ in range(200)]
    assert status_of(server) == IDLE
    clients[0].send(HEAD + b"\r\n")
    assert clients[0].answer()[0] == 401


def test_each_head_has_a_deadline_as_a_whole(serve: Serve, dial: Dial, caplog: pytest.LogCaptureFixture) -> None:
    clock = ManualClock()
    server = serve(Timeouts(request_head_s=5.0, clock=clock))
    silent, slow = dial(server), dial(server)
    slow.send(HEAD)
    wait_until(lambda: len(server._server.connections._held) == 2, PATIENCE_S, "both have a deadline")
    clock.now_s += 4.0
    slow.send(b"X: y\r\n")  # a byte now and then does not help
    idle = dial(server)
    idle.send(HEAD + b"\r\n")
    assert idle.answer()[0] == 401
    assert open_connections(server) == 3
    clock.now_s += 2.0
    assert silent.is_closed and slow.is_closed
    idle.send(HEAD + b"\r\n")
    assert idle.answer()[0] == 401
    wait_until(lambda: len(server._server.connections._held) == 1, PATIENCE_S, "the connection has a deadline again")
    clock.now_s += 6.0
    assert idle.is_closed
    said = [record.getMessage() for record in caplog.records if "sent no request" in record.getMessage()]
    assert said == [f"refused a connection from {HOST}: it sent no request within 5 s"] * 2


def test_a_head_that_is_too_long_is_refused(serve: Serve, dial: Dial) -> None:
    server = serve()
    for line in (b"GET /%s HTTP/1.1\r\n", b"GET / HTTP/1.1\r\nX: %s\r\n"):
        client = dial(server)
        client.send(line % (b"x" * (MAX_HEAD_BYTES + 1)))
        status, _, _ = client.answer()
        assert status in (413, 414)


# ---- requests on one connection


def test_requests_may_come_byte_by_byte_and_together(serve: Serve, dial: Dial) -> None:
    server = serve()
    client = dial(server)
    for byte in HEAD + b"\r\n":
        client.send(bytes([byte]))
    assert client.answer()[0] == 401
    client.send((HEAD + b"\r\n") * 20 + HEAD)
    assert [client.answer()[0] for _ in range(20)] == [401] * 20
    client.send(b"\r\n")
    assert client.answer()[0] == 401


def test_a_body_may_come_with_its_head_and_the_next_request(serve: Serve, dial: Dial, node: FakeNode) -> None:
    server = serve()
    client, other = dial(server), dial(server)
    requests = [signed(other, "PUT", "/release", b'{"run": %d}' % run) for run in range(3)]
    client.send(b"".join(requests))
    assert [client.answer()[0] for _ in requests] == [200] * 3
    assert node.asked == [0, 1, 2]


def test_a_body_that_comes_in_pieces_is_read_whole(serve: Serve, dial: Dial, node: FakeNode) -> None:
    server = serve()
    client = dial(server)
    content_range = f"bytes 0-{len(CHUNK) - 1}/{len(CHUNK)}"
    request = signed(client, "PUT", f"/chunks/{DIGEST}", CHUNK, content_range)
    for start in range(0, len(request), 700):
        client.send(request[start : start + 700])
    assert client.answer()[0] == 200
    assert node.cache is not None
    assert node.cache.find(DIGEST) is not None


def test_after_a_refused_body_the_connection_goes_on(serve: Serve, dial: Dial) -> None:
    server = serve()
    client = dial(server)
    body = b"x" * 100_000
    client.send(b"PUT /stop HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body))
    assert client.answer()[0] == 401  # before the body
    client.send(body + HEAD + b"\r\n")
    assert client.answer()[0] == 401
    client.send(signed(client, "GET", "/"))
    assert json.loads(client.answer()[2]) == IDLE.to_json() | {"caller": "127.0.0.1", "called": "127.0.0.1"}


@pytest.mark.parametrize("how", [f"Content-Length: {MAX_IGNORED_BYTES + 1}", "Transfer-Encoding: chunked"])
def test_a_refused_body_that_is_long_or_of_unknown_length_ends_the_connection(
    serve: Serve, dial: Dial, how: str
) -> None:
    client = dial(serve())
    client.send(b"PUT /stop HTTP/1.1\r\nHost: x\r\n" + how.encode() + b"\r\n\r\n")
    status, headers, _ = client.answer()
    assert (status, headers["Connection"]) == (401, "close")
    assert client.is_closed


# ---- more connections than may be open


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> int:
    """How many connections may be open: 3."""
    monkeypatch.setattr(mdi.control.connections, "descriptor_limit", lambda: 7)
    return 3


def test_of_too_many_connections_the_oldest_is_closed(
    serve: Serve, dial: Dial, few: int, caplog: pytest.LogCaptureFixture
) -> None:
    server = serve()
    clients = [dial(server) for _ in range(few + 1)]
    assert clients[0].is_closed
    wait_until(lambda: open_connections(server) == few, PATIENCE_S, "one is closed")
    assert status_of(server) == IDLE
    assert f"refused a connection from {HOST}: more than {few} connections are open" in caplog.text
    for client in clients[1:]:
        with contextlib.suppress(ConnectionError):
            client.send(HEAD)


def test_a_connection_with_the_key_is_never_closed_for_others(serve: Serve, dial: Dial, few: int) -> None:
    server = serve()
    right = dial(server)
    right.send(signed(right, "GET", "/"))
    assert right.answer()[0] == 200
    clients = [dial(server) for _ in range(5 * few)]
    assert all(client.is_closed for client in clients[: -few + 1])
    right.send(signed(right, "GET", "/"))
    assert right.answer()[0] == 200


def test_addresses_of_the_configuration_stay_longest(serve: Serve, dial: Dial, few: int) -> None:
    """The loopback counts as one, so here all are moved elsewhere but the first."""
    server = serve()
    loop = server._server.connections
    calls: list[str] = []

    def first_only(address: str) -> bool:
        calls.append(address)
        return len(calls) == 1

    loop._is_known = first_only
    clients = [dial(server) for _ in range(few + 2)]
    assert clients[1].is_closed and clients[2].is_closed
    clients[0].send(HEAD + b"\r\n")
    assert clients[0].answer()[0] == 401


def test_a_connection_that_repeats_itself_without_the_key_goes_first(serve: Serve, dial: Dial, few: int) -> None:
    server = serve()
    silent, repeating, right = [dial(server) for _ in range(few)]
    right.send(signed(right, "GET", "/"))
    assert right.answer()[0] == 200
    for _ in range(2):
        repeating.send(HEAD + b"\r\n")
        assert repeating.answer()[0] == 401
    connections = server._server.connections
    wait_until(lambda: len(connections._held) == few, PATIENCE_S, "all are held again")
    assert sorted(connections._rank(connection) for connection in connections._open) == [2, 3, 3]
    dial(server)
    assert repeating.is_closed
    silent.send(HEAD + b"\r\n")
    assert silent.answer()[0] == 401


def test_descriptors_are_free_as_soon_as_clients_are_gone(serve: Serve, dial: Dial) -> None:
    server = serve()
    for client in [dial(server) for _ in range(50)]:
        client.send(HEAD)
        client.close()
    assert status_of(server) == IDLE
    wait_until(lambda: open_connections(server) == 0, PATIENCE_S, "all connections are closed")


def test_a_server_whose_descriptors_ran_out_accepts_again(
    serve: Serve, dial: Dial, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = serve()
    waiting = dial(server)
    wait_until(lambda: open_connections(server) == 1, PATIENCE_S, "it is accepted")
    accept, failures = socket.socket.accept, [errno.EMFILE] * 3

    def fail(self: socket.socket) -> tuple[socket.socket, Any]:
        if failures:
            number = failures.pop()
            raise OSError(number, os.strerror(number))
        return accept(self)

    monkeypatch.setattr(socket.socket, "accept", fail)
    assert status_of(server) == IDLE
    assert not failures
    assert waiting.is_closed  # its descriptor was needed


def test_a_connection_that_comes_back_when_the_loop_has_ended_is_closed(serve: Serve, dial: Dial) -> None:
    server = serve()
    early, late = dial(server), dial(server)
    for client in (early, late):
        client.send(HEAD + b"\r\n")
        assert client.answer()[0] == 401
    connections = server._server.connections
    wait_until(lambda: len(connections._held) == 2, PATIENCE_S, "both are held")
    connections.stop()
    first, second = connections._held
    for connection in (first, second):  # as if the pool had them
        connections._drop(connection)
    connections.put(first)
    connections.close()
    connections.put(second)
    assert early.is_closed and late.is_closed


# ---- what the log says


def test_a_flood_of_refused_requests_is_a_few_printable_lines(
    serve: Serve, dial: Dial, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    server = serve()
    for _ in range(20):
        client = dial(server)
        client.send(b"GET /\x1b2J%s HTTP/1.1\r\nHost: x\r\n\r\n" % (b"\x1b" * 5000))
        assert client.answer()[0] == 401
    assert status_of(server) == IDLE
    lines = [record.getMessage() for record in caplog.records if record.name.startswith("mdi")]
    assert 1 <= len(lines) <= 10
    for line in lines:
        assert line.isprintable() and len(line) < 600
    assert r"GET /\x1b2J" in lines[0]
