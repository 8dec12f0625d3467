"""A request is for the node that its Host names, and comes from a node: not from a relay, and not from a web page."""

import contextlib
import http.client
import json
import re
import select
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mdi.checkpoint.cache import ChunkCache
from mdi.control.client import ControlClient
from mdi.control.hosts import OwnHosts, host_of
from mdi.control.protocol import NoAnswer, NotAuthorized, Refused
from mdi.control.routes import ControlServer
from mdi.control.signatures import SCHEME, Challenge
from mdi.net.access import THIS_MACHINE, Access
from mdi.net.keys import Key, Keys
from support.control import CHUNK, DIGEST, ENDS, HOST, SPEC, FakeNode, sha256_of, type_of
from support.relay import Relay
from support.statuses import IDLE, READY

KEY = Keys(Key("a key of more than sixteen characters", "test"))
ACCESSES = [pytest.param(THIS_MACHINE, id="no key"), pytest.param(Access(KEY), id="key")]
ROUTES = [("GET", "/"), ("GET", "/timeline"), ("POST", "/reach"), ("POST", "/join"), ("POST", "/init"),
          ("POST", "/measure"), ("PUT", "/release"), ("PUT", "/stop"), ("HEAD", f"/chunks/{DIGEST}"),
          ("PUT", f"/chunks/{DIGEST}"), ("GET", "/nothing")]  # fmt: skip


# ---- names


@pytest.mark.parametrize(
    ("addr", "local", "host", "expected"),
    [
        ("10.0.0.5", "10.0.0.5", "10.0.0.5:8088", True),
        ("10.0.0.5", "10.0.0.5", "10.0.0.5", False),  # port 80
        ("10.0.0.5", "10.0.0.5", "10.0.0.5:8089", False),
        ("10.0.0.5", "10.0.0.5", "10.0.0.6:8088", False),
        ("10.0.0.5", "10.0.0.5", "localhost:8088", False),
        ("10.0.0.5", "10.0.0.5", "evil.example:8088", False),
        ("10.0.0.5", "10.0.0.5", "10.0.0.5.evil.example:8088", False),
        ("10.0.0.5", "10.0.0.5", "x@10.0.0.5:8088", False),
        ("10.0.0.5", "10.0.0.5", "10.0.0.5:8088:8088", False),
        ("10.0.0.5", "10.0.0.5", "10.0.0.5:08088", True),
        ("10.0.0.5", "10.0.0.5", "10.0.0.5:", False),
        ("10.0.0.5", "10.0.0.5", "", False),
        ("box.local", "10.0.0.5", "box.local:8088", True),
        ("box.local", "10.0.0.5", "BOX.local.:8088", True),
        ("box.local", "10.0.0.5", "10.0.0.5:8088", True),  # where the connection arrived
        ("box.local", "10.0.0.5", "box:8088", False),
        ("büro.local", "10.0.0.5", "xn--bro-hoa.local:8088", True),
        ("0.0.0.0", "10.0.0.5", "10.0.0.5:8088", True),
        ("0.0.0.0", "10.0.0.5", "10.0.0.6:8088", False),
        ("::", "::ffff:10.0.0.5", "10.0.0.5:8088", True),
        ("::", "fe80::1%eth0", "[fe80::1]:8088", True),
        ("fe80::1%eth0", "fe80::1", "[fe80:0:0:0::1]:8088", True),
        ("2001:db8::1", "2001:db8::1", "[2001:DB8:0::1]:8088", True),
        ("2001:db8::1", "2001:db8::1", "2001:db8::1", False),
        ("127.0.0.1", "127.0.0.1", "localhost:8088", True),
        ("127.0.0.1", "127.0.0.1", "[::1]:8088", True),
        ("127.0.0.1", "127.0.0.1", "127.0.1.1:8088", True),
        ("127.0.0.1", "127.0.0.1", "localhost.evil.example:8088", False),
        ("127.0.0.1", "127.0.0.1", "2130706433:8088", False),
    ],
)
def test_a_node_knows_its_own_names(addr: str, local: str, host: str, expected: bool) -> None:
    assert OwnHosts(addr).include(host, (local, 8088)) is expected


def test_a_port_that_is_the_schemes_may_be_left_out() -> None:
    assert OwnHosts("10.0.0.5").include("10.0.0.5", ("10.0.0.5", 80))
    assert OwnHosts("10.0.0.5").include("10.0.0.5", ("10.0.0.5", 443), "https")
    assert not OwnHosts("10.0.0.5").include("10.0.0.5", ("10.0.0.5", 80), "https")


def test_a_node_that_something_forwards_to_has_further_names() -> None:
    hosts = OwnHosts("172.17.0.2", ["192.168.1.5:9000", "box.local:9000"])
    assert hosts.include("192.168.1.5:9000", ("172.17.0.2", 8088))
    assert hosts.include("Box.local:9000", ("172.17.0.2", 8088))
    assert not hosts.include("192.168.1.5:8088", ("172.17.0.2", 8088))


# ---- requests


def test_a_further_name_may_be_for_whichever_port_it_listens_on() -> None:
    hosts = OwnHosts("10.0.0.1", ["box.local:0"])
    assert hosts.include("box.local:8088", ("10.0.0.1", 8088))
    assert not hosts.include("box.local:8089", ("10.0.0.1", 8088))


@contextlib.contextmanager
def serving(node: FakeNode, access: Access, *known_as: str) -> Iterator[ControlServer]:
    server = ControlServer(HOST, 0, node, access, known_as=known_as)
    server.start()
    try:
        yield server
    finally:
        server.close()


def ask(server: ControlServer, method: str, path: str, headers: dict[str, str]) -> tuple[int, dict[str, str], bytes]:
    """The answer to a request with these headers, signed where the node has a key."""
    host = headers.get("Host", host_of(HOST, server.port))
    with contextlib.closing(http.client.HTTPConnection(HOST, server.port, timeout=60)) as connection:
        connection.request("HEAD", "/", headers={"Host": host, "Authorization": SCHEME})
        response = connection.getresponse()
        response.read()
        challenge = Challenge.of(response.headers.get("WWW-Authenticate", ""))
        signed = {} if challenge is None else {"Authorization": challenge.sign(KEY, host, method, path, b"")}
        connection.request(method, path, None, {"Host": host} | type_of(method, path) | signed | headers)
        response = connection.getresponse()
        return response.status, dict(response.headers), response.read()


@pytest.mark.parametrize("access", ACCESSES)
@pytest.mark.parametrize(("method", "path"), ROUTES)
def test_a_request_for_another_host_is_refused(node: FakeNode, access: Access, method: str, path: str) -> None:
    """A page of evil.example whose name was made to resolve to this machine sends its own name."""
    with serving(node, access) as server:
        for host in ("evil.example", f"evil.example:{server.port}", f"10.0.0.1:{server.port}", f"{HOST}:1"):
            status, _, body = ask(server, method, path, {"Host": host})
            assert status == 421
            if method != "HEAD":
                words = f"this request is for {host}, and this node is {HOST}:{server.port}: spell its addr alike"
                assert words in json.loads(body)["error"]
    assert node.asked == []


@pytest.mark.parametrize("access", ACCESSES)
@pytest.mark.parametrize(("method", "path"), ROUTES)
def test_a_request_of_a_web_page_is_refused(node: FakeNode, access: Access, method: str, path: str) -> None:
    with serving(node, access) as server:
        pages = [{"Origin": origin} for origin in ("http://evil.example", "null", "", f"https://{HOST}:{server.port}")]
        pages += [{"Sec-Fetch-Site": site} for site in ("cross-site", "same-site", "x")]
        assert [ask(server, method, path, headers)[0] for headers in pages] == [403] * len(pages)
    assert node.asked == []


@pytest.mark.parametrize("access", ACCESSES)
@pytest.mark.parametrize(
    "kind", ["", "text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "text/json"]
)
def test_a_body_that_a_form_can_send_is_refused(node: FakeNode, access: Access, kind: str) -> None:
    """A browser sends these types to anybody, without asking first."""
    with serving(node, access) as server:
        for method, path in ROUTES:
            if method in ("PUT", "POST"):
                assert ask(server, method, path, {"Content-Type": kind})[0] == 415
    assert node.asked == []


@pytest.mark.parametrize("access", ACCESSES)
def test_nobody_is_permitted_to_send_other_bodies(node: FakeNode, access: Access) -> None:
    with serving(node, access) as server:
        for _, path in ROUTES:
            status, headers, _ = ask(server, "OPTIONS", path, {"Access-Control-Request-Method": "PUT"})
            assert status == 405
            assert not [name for name in headers if name.lower().startswith("access-control")]


def test_a_web_page_gets_nothing_without_the_body_being_read(node: FakeNode) -> None:
    with serving(node, THIS_MACHINE) as server, socket.create_connection((HOST, server.port), timeout=60) as sock:
        sock.sendall(b"PUT /stop HTTP/1.1\r\nHost: evil.example\r\nContent-Length: 5000000\r\n\r\n")
        assert sock.recv(1000).startswith(b"HTTP/1.1 421 ")
    assert node.asked == []


def test_a_person_may_look_at_the_status(node: FakeNode) -> None:
    """By the address bar of a browser, or by curl on this machine."""
    with serving(node, THIS_MACHINE) as server:
        for headers in ({"Sec-Fetch-Site": "none"}, {"Host": f"localhost:{server.port}"}):
            assert json.loads(ask(server, "GET", "/", headers)[2]) == IDLE.to_json() | ENDS
        stopped = ask(server, "PUT", "/stop", {"Content-Type": "Application/JSON; charset=utf-8"})
        assert json.loads(stopped[2]) == {"stopping": True}
    assert node.asked == ["stop"]


# ---- relays


class ChangingRelay:
    """Passes on one connection after another to the port `target`, and changes what it passes."""

    target = 0

    def __init__(self, change: Callable[[bytes], bytes]) -> None:
        self._change = change
        self._listener = socket.create_server((HOST, 0))
        self.port = int(self._listener.getsockname()[1])
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._serve)

    def __enter__(self) -> "ChangingRelay":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.set()
        socket.create_connection((HOST, self.port)).close()
        self._thread.join()
        self._listener.close()

    def _serve(self) -> None:
        while True:
            source, _ = self._listener.accept()
            if self._closing.is_set():
                source.close()
                return
            with source, socket.create_connection((HOST, self.target), timeout=60) as target:
                ends = {source: target, target: source}
                while all(self._pass_on(sock, ends[sock]) for sock in select.select([*ends], [], [])[0]):
                    pass

    def _pass_on(self, source: socket.socket, target: socket.socket) -> bool:
        data = source.recv(1 << 20)
        with contextlib.suppress(OSError):
            target.sendall(self._change(data))
        return data != b""


@pytest.mark.parametrize("access", ACCESSES)
def test_a_request_that_is_relayed_to_another_node_is_refused(node: FakeNode, access: Access) -> None:
    """The client means the node at the relay's address; the one that it reaches would take the request for its own."""
    with serving(node, access) as server, Relay(server.port) as relay:
        client = ControlClient("secondary 0", HOST, relay.port, access)
        for call in (client.status, client.stop, lambda: client.release(5), lambda: client.init(SPEC)):
            with pytest.raises(Refused) as caught:
                call()
            theirs, ours = f"{HOST}:{relay.port}", f"{HOST}:{server.port}"
            assert str(caught.value) == (
                f"secondary 0 at http://{theirs} refused: this request is for {theirs}, and this node is {ours}: "
                f"spell its addr alike in all nodes files, or add {theirs} to its known_as"
            )
    assert node.asked == []


def test_a_relay_that_changes_the_host_breaks_the_signature(node: FakeNode) -> None:
    with serving(node, Access(KEY)) as server:

        def rename(data: bytes) -> bytes:
            return data.replace(f"Host: {HOST}:{relay.port}".encode(), f"Host: {HOST}:{server.port}".encode())

        with ChangingRelay(rename) as relay:
            relay.target = server.port
            client = ControlClient("secondary 0", HOST, relay.port, Access(KEY))
            for call in (client.status, client.stop):
                with pytest.raises(NotAuthorized, match="the caller and this node have different keys"):
                    call()
    assert node.asked == []


@pytest.mark.parametrize("access", ACCESSES)
def test_a_node_behind_a_relay_that_it_knows_of_is_reached(node: FakeNode, access: Access) -> None:
    with ChangingRelay(lambda data: data) as relay, serving(node, access, f"{HOST}:{relay.port}") as server:
        relay.target = server.port
        assert ControlClient("secondary 0", HOST, relay.port, access).status() == IDLE
        assert ask(server, "GET", "/", {"Host": f"{HOST}:1"})[0] == 421


def test_what_a_node_holds_cannot_be_changed_on_its_way(node: FakeNode, tmp_path: Path) -> None:
    node.cache = ChunkCache(tmp_path / "cache", sha256_of)
    (tmp_path / "chunk.pth").write_bytes(CHUNK)
    relay = ChangingRelay(lambda data: data.replace(b"X-Held-Bytes: 0", b"X-Held-Bytes: 9"))
    with relay, serving(node, Access(KEY), f"{HOST}:{relay.port}") as server:
        relay.target = server.port
        with pytest.raises(NotAuthorized, match="did not show that it has this ring's key"):
            ControlClient("secondary 0", HOST, relay.port, Access(KEY)).send_chunk(tmp_path / "chunk.pth", DIGEST)
    assert node.cache.held_bytes(DIGEST) == 0


# ---- the streamed answer to /init

PROOF = re.compile(rb"\n[0-9a-f]{64}")
CHANGES: dict[str, Callable[[bytes], bytes]] = {
    "a value": lambda data: data.replace(b'"messages": 5', b'"messages": 6'),
    "a key": lambda data: data.replace(b'"ready"', b'"raedy"'),
    "a digit of the proof": lambda data: PROOF.sub(lambda match: _with_another_digit(match[0]), data),
    "the proof": lambda data: PROOF.sub(b" " * 65, data),
}


def _with_another_digit(proof: bytes) -> bytes:
    return proof[:-1] + (b"1" if proof.endswith(b"0") else b"0")


@pytest.mark.parametrize("what", ["nothing", *CHANGES])
def test_a_streamed_answer_that_was_changed_on_its_way_is_not_used(node: FakeNode, what: str) -> None:
    """Its head was signed before there was a body, so the body is signed at its end."""
    node.answer.set_result(READY)
    relay = ChangingRelay(CHANGES.get(what, lambda data: data))
    with relay, serving(node, Access(KEY), f"{HOST}:{relay.port}") as server:
        relay.target = server.port
        client = ControlClient("secondary 0", HOST, relay.port, Access(KEY))
        if what == "nothing":
            assert client.init(SPEC) == READY
            return
        with pytest.raises(NoAnswer, match="what came is not what a node with this ring's key sent"):
            client.init(SPEC)
