"""The HTTP server starts, and closes whatever its connections do."""

import contextlib
import http.client
import json
import socket
import threading
import time

import pytest

from mdi.control.client import ControlClient
from mdi.control.routes import ControlServer
from mdi.errors import ConfigError
from mdi.net.sockets import listen
from mdi.net.timeouts import DEFAULT_TIMEOUTS
from support.control import DIGEST, HOST, SPEC, FakeNode, raw_head, type_of
from support.leftovers import own_threads
from support.statuses import IDLE, READY


def server_threads() -> list[str]:
    return sorted(thread.name for thread in own_threads() - {threading.main_thread()})


def assert_closes(server: ControlServer) -> None:
    within_s = 10 * DEFAULT_TIMEOUTS.server_stop_s
    closing = threading.Thread(target=server.close, daemon=True)
    began = time.monotonic()
    closing.start()
    closing.join(within_s)
    assert not closing.is_alive(), "close() hangs"
    assert time.monotonic() - began < within_s
    assert server_threads() == []
    server.close()  # again


def test_a_server_that_never_started_closes(node: FakeNode) -> None:
    server = ControlServer(HOST, 0, node)
    assert_closes(server)
    listen(HOST, server.port).close()


def test_a_server_closes_and_its_port_is_free_at_once(node: FakeNode) -> None:
    port = 0
    for _ in range(3):
        server = ControlServer(HOST, port, node)
        server.start()
        port = server.port
        assert ControlClient("n", HOST, port).status() == IDLE
        assert_closes(server)


def test_a_server_closes_beside_an_idle_connection(node: FakeNode) -> None:
    server = ControlServer(HOST, 0, node)
    server.start()
    with contextlib.closing(http.client.HTTPConnection(HOST, server.port, timeout=10)) as connection:
        connection.request("GET", "/")
        connection.getresponse().read()
        assert_closes(server)


def test_a_server_closes_while_an_upload_has_stopped(node: FakeNode) -> None:
    server = ControlServer(HOST, 0, node)
    server.start()
    request = f"{raw_head(server, f'PUT /chunks/{DIGEST}')}Content-Length: 10\r\nContent-Range: bytes 0-9/10\r\n\r\n"
    with socket.create_connection((HOST, server.port), timeout=10) as sock:
        sock.sendall(request.encode() + b"12345")
        assert_closes(server)


def test_a_server_closes_while_an_init_is_never_answered(lively: ControlServer, node: FakeNode) -> None:
    server = lively
    with contextlib.closing(http.client.HTTPConnection(HOST, server.port, timeout=10)) as connection:
        connection.request("POST", "/init", json.dumps(SPEC.to_json()), type_of("POST", "/init"))
        response = connection.getresponse()
        assert response.read(3) == b"   "
        try:
            assert_closes(server)
        finally:
            node.answer.set_result(READY)  # so that a server that waits for it ends with the test


def test_a_port_in_use_is_refused_with_advice(node: FakeNode) -> None:
    before = server_threads()
    with listen(HOST, 0) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError) as caught:
            ControlServer(HOST, port, node)
    assert str(caught.value) == (
        f"cannot listen on {HOST} port {port}: another program uses this port; stop it or choose another port in the"
        " nodes configuration"
    )
    assert server_threads() == before


@pytest.mark.parametrize(
    ("addr", "reason"),
    [
        ("192.0.2.1", "this is not an address of this machine"),
        ("10.7..48.46", "no machine is known by this name"),
    ],
)
def test_an_address_of_another_machine_is_refused_with_advice(node: FakeNode, addr: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=f"cannot listen on {addr} port 0: {reason}"):
        ControlServer(addr, 0, node)
