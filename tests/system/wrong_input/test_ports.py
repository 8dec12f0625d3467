"""Ports in use, foreign addresses, and whatever else answers there."""

import json
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from support.runs import NO_WAITING
from support.scripts import (
    Network,
    Scripts,
    node_object,
    one_line_error,
    write_network,
)

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("kind", ["communication", "inference"])
@pytest.mark.parametrize("script", ["starter.py", "secondary.py"])
def test_a_port_in_use_is_named(script: str, kind: str, scripts: Scripts, split: Path, tmp_path: Path) -> None:
    network = write_network(tmp_path / "net.json", 3)
    node, more = (0, NO_WAITING) if script == "starter.py" else (1, (0,))
    port = network.http_port(node) if kind == "communication" else network.ring_port(node)
    with socket.create_server(("127.0.0.1", port)):
        result = scripts.run(script, "--ckpt", split, "--nodes-config", network.path, *more)
    one_line_error(result, 2, rf"cannot listen on 127\.0\.0\.1 port {port}: .*(stop it|[Aa]ddress already in use)")


@pytest.mark.parametrize(
    ("addr", "problem"),
    [
        ("203.0.113.7", "this is not an address of this machine"),
        ("no-such-host.invalid", "no machine is known by this name"),
    ],
)
@pytest.mark.parametrize("script", ["starter.py", "secondary.py"])
def test_an_address_of_another_machine_is_named(
    script: str, addr: str, problem: str, scripts: Scripts, split: Path, tmp_path: Path
) -> None:
    nodes = {"starter": node_object(addr=addr), "secondary": [node_object(addr=addr)]}
    (tmp_path / "net.json").write_text(json.dumps({"nodes": nodes}))
    more = NO_WAITING if script == "starter.py" else (0,)
    result = scripts.run(script, "--ckpt", split, "--nodes-config", tmp_path / "net.json", *more)
    one_line_error(result, 2, rf"cannot listen on {addr} port \d+: {problem}")


def test_an_unreachable_secondary_is_named(scripts: Scripts, split: Path, tmp_path: Path) -> None:
    network = write_network(tmp_path / "net.json", 2)
    result = scripts.run("starter.py", "--ckpt", split, "--nodes-config", network.path, *NO_WAITING)
    url = rf"secondary 0 at http://127\.0\.0\.1:{network.http_port(1)}"
    one_line_error(result, 1, rf"{url} cannot be reached: is secondary\.py running", after=rf"waiting for {url}")
    assert result.seconds < 30  # --node-timeout is 1 s here, and 60 s where nobody says so


@pytest.fixture
def web_page(tmp_path: Path) -> Iterator[Network]:
    """A network of two nodes where something else answers HTTP in place of the secondary."""
    network = write_network(tmp_path / "net.json", 2)

    class Page(BaseHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            """Say nothing."""

        def do_POST(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"<html>hello</html>")

    server = ThreadingHTTPServer(("127.0.0.1", network.http_port(1)), Page)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield network
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def test_something_else_at_the_address_of_a_secondary_is_named(
    scripts: Scripts, split: Path, web_page: Network
) -> None:
    result = scripts.run("starter.py", "--ckpt", split, "--nodes-config", web_page.path, *NO_WAITING)
    one_line_error(result, 1, rf"secondary 0 at http://127\.0\.0\.1:{web_page.http_port(1)} .*not JSON")
