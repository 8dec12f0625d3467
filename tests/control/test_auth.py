"""Who is let in over HTTP: signed requests, one nonce each; without a key, the addresses of the configuration."""

import contextlib
import hashlib
import http.client
import json
import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mdi import __version__
from mdi.checkpoint.cache import ChunkCache
from mdi.control.auth import AuthMiddleware
from mdi.control.calls import Request
from mdi.control.client import ControlClient
from mdi.control.exchange import Bounds
from mdi.control.hosts import LOCAL_ADDRESS, OwnHosts, host_of
from mdi.control.protocol import MAX_JSON_BYTES, UPLOAD_BYTES
from mdi.control.routes import ControlServer
from mdi.control.signatures import SCHEME, Challenge
from mdi.errors import ControlError
from mdi.net.access import Access
from mdi.net.keys import Key, Keys, Nonces
from mdi.net.sockets import listen
from mdi.net.timeouts import DEFAULT_TIMEOUTS, Timeouts
from support.control import CHUNK, DIGEST, HOST, SPEC, FakeNode, answer_of, raw_head, sha256_of, type_of
from support.statuses import IDLE, READY

SECRET = "correct horse battery staple"
KEY, OTHER = Keys(Key(SECRET, "test")), Keys(Key("another horse, another staple", "test"))
Answer = tuple[int, dict[str, str], bytes]
BOUNDS = Bounds(silence_s=60.0, deadline_s=float("inf"), max_bytes=1 << 16)
JSON_TYPE = {"Content-Type": "application/json"}


@pytest.fixture
def node(tmp_path: Path) -> FakeNode:
    return FakeNode(ChunkCache(tmp_path / "cache", sha256_of))


@contextlib.contextmanager
def serving(node: FakeNode, access: Access, timeouts: Timeouts = DEFAULT_TIMEOUTS) -> Iterator[ControlServer]:
    server = ControlServer(HOST, 0, node, access, timeouts)
    server.start()
    try:
        yield server
    finally:
        server.close()


@pytest.fixture
def server(node: FakeNode) -> Iterator[ControlServer]:
    with serving(node, Access(KEY)) as server:
        yield server


def client_of(server: ControlServer, key: Keys | None = KEY) -> ControlClient:
    return ControlClient("secondary 0", HOST, server.port, Access(key))


def ask(
    server: ControlServer, method: str, path: str, body: bytes = b"", headers: dict[str, str] | None = None
) -> Answer:
    with contextlib.closing(http.client.HTTPConnection(HOST, server.port, timeout=10)) as connection:
        connection.request(method, path, body or None, type_of(method, path) | (headers or {}))
        response = connection.getresponse()
        return response.status, dict(response.headers), response.read()


def challenge_of(server: ControlServer) -> Challenge:
    status, headers, body = ask(server, "HEAD", "/", headers={"Authorization": SCHEME})
    assert (status, body) == (401, b"")
    challenge = Challenge.of(headers["WWW-Authenticate"])
    assert challenge is not None
    return challenge


# ---- with a key


def test_a_client_with_the_key_is_let_in_everywhere(server: ControlServer, node: FakeNode, tmp_path: Path) -> None:
    client, chunk = client_of(server), tmp_path / "chunk.pth"
    chunk.write_bytes(CHUNK)
    assert client.status() == node.status()
    node.answer.set_result(READY)
    assert client.init(SPEC) == READY
    client.send_chunk(chunk, DIGEST)
    assert node.cache is not None
    assert node.cache.find(DIGEST) is not None
    client.release(5)
    client.stop()
    assert node.asked == [SPEC, 5, "stop"]


def test_a_slow_init_gives_signs_of_life_to_a_client_with_the_key(node: FakeNode) -> None:
    with serving(node, Access(KEY), Timeouts(heartbeat_s=0.02)) as server:
        client = ControlClient("secondary 0", HOST, server.port, Access(KEY), Timeouts(answer_s=1.0))  # of a silence
        timer = threading.Timer(2.0, node.answer.set_result, [READY])
        timer.start()
        assert client.init(SPEC) == READY
        timer.join()


def test_errors_of_a_node_reach_a_client_with_the_key(server: ControlServer, tmp_path: Path) -> None:
    with pytest.raises(ControlError, match="refused: the body is not JSON"):
        client_of(server)._caller.call(Request("POST", "/init", b"{", JSON_TYPE), BOUNDS)
    with pytest.raises(ControlError, match="is not a node of this version: HTTP 404"):
        client_of(server)._caller.call(Request("GET", "/nothing"), BOUNDS)


@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", "/"), ("GET", "/nothing"), ("POST", "/init"), ("PUT", "/stop"), ("PUT", "/release"), ("DELETE", "/"),
     ("HEAD", f"/chunks/{DIGEST}"), ("PUT", f"/chunks/{DIGEST}"), ("GET", "/?epoch=1"), ("OPTIONS", "*")],
)  # fmt: skip
@pytest.mark.parametrize("authorization", [None, "", "Basic YTpi", SCHEME, f'{SCHEME} nonce=""', "x" * 1000])
def test_whoever_has_no_key_learns_nothing_but_the_version(
    server: ControlServer, node: FakeNode, method: str, path: str, authorization: str | None
) -> None:
    headers = {} if authorization is None else {"Authorization": authorization}
    status, headers, body = ask(server, method, path, b'{"epoch": 1}' if method in ("PUT", "POST") else b"", headers)
    assert status == 401
    assert {name for name in headers if name not in ("Date", "Content-Length", "Content-Type")} <= {
        "WWW-Authenticate", "Server", "Connection"
    }  # fmt: skip
    assert headers.get("Server") == f"mdi-llm/{__version__}"
    if method != "HEAD":
        assert set(json.loads(body)) == {"error", "version"}
    assert node.asked == []


def test_a_client_without_a_key_is_refused_on_both_sides(
    server: ControlServer, caplog: pytest.LogCaptureFixture
) -> None:
    reason = "this ring has a key and the caller has none"
    with pytest.raises(ControlError, match=f"refused: {reason}"):
        client_of(server, None).status()
    assert [record.getMessage() for record in caplog.records] == [f"refused GET / from {HOST}: {reason}"]


def test_a_client_with_another_key_is_refused_on_both_sides(
    server: ControlServer, node: FakeNode, caplog: pytest.LogCaptureFixture
) -> None:
    reason = "the caller and this node have different keys"
    with pytest.raises(ControlError, match=f"secondary 0 at .* did not show that it has this ring's key: {reason}"):
        client_of(server, OTHER).stop()
    assert [record.getMessage() for record in caplog.records] == [f"refused PUT /stop from {HOST}: {reason}"]
    assert node.asked == []


def test_a_client_with_a_key_does_not_use_a_node_without_one(node: FakeNode, caplog: pytest.LogCaptureFixture) -> None:
    with serving(node, Access()) as server, pytest.raises(ControlError, match="has no key, and this node has one"):
        client_of(server).stop()
    assert node.asked == []
    reason = "the caller has a key and this node has none"
    assert [record.getMessage() for record in caplog.records] == [f"refused HEAD / from {HOST}: {reason}"]


CHANGES: dict[str, tuple[str, str, bytes]] = {
    "method": ("POST", "/release", b'{"epoch": 1}'),
    "path": ("PUT", "/stop", b'{"epoch": 1}'),
    "query": ("PUT", "/release?x=1", b'{"epoch": 1}'),
    "escape": ("PUT", "/%72elease", b'{"epoch": 1}'),
    "body": ("PUT", "/release", b'{"epoch": 2}'),
    "longer body": ("PUT", "/release", b'{"epoch": 1} '),
    "no body": ("PUT", "/release", b""),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_signature_is_of_one_method_path_and_body(
    server: ControlServer, node: FakeNode, change: tuple[str, str, bytes]
) -> None:
    signature = challenge_of(server).sign(KEY, host_of(HOST, server.port), "PUT", "/release", b'{"epoch": 1}')
    method, path, body = change
    assert ask(server, method, path, body, {"Authorization": signature})[0] == 401
    assert node.asked == []


def test_a_request_that_was_heard_is_not_taken_again(server: ControlServer, node: FakeNode) -> None:
    signature = challenge_of(server).sign(KEY, host_of(HOST, server.port), "PUT", "/stop", b"")
    assert ask(server, "PUT", "/stop", headers={"Authorization": signature})[0] == 200
    status, headers, _ = ask(server, "PUT", "/stop", headers={"Authorization": signature})
    assert status == 401
    assert 'stale="true"' in headers["WWW-Authenticate"]
    assert node.asked == ["stop"]


def test_a_failed_attempt_uses_the_nonce_up(server: ControlServer, node: FakeNode) -> None:
    challenge = challenge_of(server)
    wrong = challenge.sign(OTHER, host_of(HOST, server.port), "PUT", "/stop", b"")
    assert ask(server, "PUT", "/stop", headers={"Authorization": wrong})[0] == 401
    right = challenge.sign(KEY, host_of(HOST, server.port), "PUT", "/stop", b"")
    assert ask(server, "PUT", "/stop", headers={"Authorization": right})[0] == 401
    assert node.asked == []


def test_a_nonce_of_another_node_is_not_taken(server: ControlServer, node: FakeNode) -> None:
    with serving(FakeNode(), Access(KEY)) as other:
        signature = challenge_of(other).sign(KEY, host_of(HOST, server.port), "PUT", "/stop", b"")
    assert ask(server, "PUT", "/stop", headers={"Authorization": signature})[0] == 401
    assert node.asked == []


def test_a_nonce_that_was_forgotten_is_asked_for_again(
    server: ControlServer, node: FakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    redeem, forgotten = Nonces.redeem, [True, True, False]

    def forgetful(self: Nonces, nonce: bytes) -> bool:
        return redeem(self, nonce) and not forgotten.pop(0)

    monkeypatch.setattr(Nonces, "redeem", forgetful)
    client_of(server).stop()
    assert node.asked == ["stop"]
    forgotten[:] = [True] * 10
    with pytest.raises(ControlError, match="not known any more"):
        client_of(server).stop()
    assert len(forgotten) == 7


def test_a_body_is_not_read_before_the_signature_is_right(server: ControlServer) -> None:
    """The answer comes although the body never does, and the connection ends."""
    wrong = challenge_of(server).sign(OTHER, host_of(HOST, server.port), "PUT", "/stop", b"")
    for authorization in ("", f"Authorization: {wrong}\r\n"):
        request = f"{raw_head(server, f'PUT /chunks/{DIGEST}')}Content-Length: 10000000\r\n{authorization}\r\n"
        with socket.create_connection((HOST, server.port), timeout=3) as sock:
            sock.sendall(request.encode())
            with sock.makefile("rb") as file:
                answer = file.read()
        assert answer.startswith(b"HTTP/1.1 401 ")


@pytest.mark.parametrize("length", [UPLOAD_BYTES + 1, None])
def test_a_signed_body_that_is_too_long_or_has_no_length_is_refused(server: ControlServer, length: int | None) -> None:
    signature = challenge_of(server).sign(KEY, host_of(HOST, server.port), "PUT", "/stop", b"")
    how = "Transfer-Encoding: chunked" if length is None else f"Content-Length: {length}"
    with socket.create_connection((HOST, server.port), timeout=3) as sock:
        sock.sendall(f"{raw_head(server, 'PUT /stop')}{how}\r\nAuthorization: {signature}\r\n\r\n".encode())
        assert sock.recv(1000).startswith(b"HTTP/1.1 400 ")


def test_bytes_that_were_changed_on_their_way_are_not_held(server: ControlServer, node: FakeNode) -> None:
    path, content_range = f"/chunks/{DIGEST}", f"bytes 0-{len(CHUNK) - 1}/{len(CHUNK)}"
    assert node.cache is not None
    for body, sent_range in [(CHUNK[:-1] + b"!", content_range), (CHUNK, content_range + "0")]:
        host = host_of(HOST, server.port)
        signature = challenge_of(server).sign(KEY, host, "PUT", path, CHUNK, content_range)
        headers = {"Authorization": signature, "Content-Range": sent_range}
        assert ask(server, "PUT", path, body, headers)[0] == 401
        assert node.cache.held_bytes(DIGEST) == 0


def test_a_large_init_is_let_in(server: ControlServer) -> None:
    with pytest.raises(ControlError, match=f"refused: a body of .* {MAX_JSON_BYTES} are allowed"):
        client_of(server)._caller.call(Request("POST", "/init", b" " * (MAX_JSON_BYTES + 1), JSON_TYPE), BOUNDS)


# ---- the node has to show the key too


@contextlib.contextmanager
def imposter(*answers: Callable[[str], bytes]) -> Iterator[ControlClient]:
    """A client with a key, of a server that gives these answers; they are told what the client calls it."""
    with listen(HOST, 0) as listener:
        listener.settimeout(10)

        def serve() -> None:
            for answer in answers:
                sock, _ = listener.accept()
                with sock:
                    sock.recv(100_000)
                    sock.sendall(answer(host_of(HOST, listener.getsockname()[1])))

        thread = threading.Thread(target=serve)
        thread.start()
        yield ControlClient("secondary 0", HOST, listener.getsockname()[1], Access(KEY))
        thread.join()


NONCE = "00" * 16
Header = Callable[[str], str]


def unauthorized(host: str) -> bytes:
    challenge = f'WWW-Authenticate: {SCHEME} nonce="{NONCE}", stale="false"'
    return answer_of(b"", challenge, status="401 Unauthorized")


def signed_answer(
    key: Keys, body: bytes, nonce: str = NONCE, status: int = 200, role: bytes = b"mdi http answer"
) -> Header:
    """The header of an answer of a host, made as the document says."""
    digest = hashlib.sha256(body).hexdigest()

    def header(host: str) -> str:
        mac = key.prove(role, nonce.encode(), host.encode(), str(status).encode(), b"", digest.encode()).hex()
        return f'Authentication-Info: body="{digest}", mac="{mac}"'

    return header


def _with_another_digit(header: str) -> str:
    return header[:-2] + ("1" if header[-2] == "0" else "0") + '"'


def test_an_answer_with_the_key_is_taken() -> None:
    body = json.dumps(IDLE.to_json()).encode()
    header = signed_answer(KEY, body)
    with imposter(unauthorized, lambda host: answer_of(body, header(host))) as client:
        assert client.status() == IDLE


@pytest.mark.parametrize(
    "header",
    [
        lambda host: "X: y",
        lambda host: "Authentication-Info: ",
        signed_answer(OTHER, b"{}"),
        signed_answer(KEY, b"[]"),
        signed_answer(KEY, b"{}", nonce="11" * 16),
        signed_answer(KEY, b"{}", status=201),
        signed_answer(KEY, b"{}", role=b"mdi http request"),
        lambda host: _with_another_digit(signed_answer(KEY, b"{}")(host)),
        lambda host: signed_answer(KEY, b"{}")(host + "0"),
    ],
)
def test_an_answer_without_the_key_is_not_taken(header: Header) -> None:
    answers = (unauthorized, lambda host: answer_of(b"{}", header(host)))
    with imposter(*answers) as client, pytest.raises(ControlError) as caught:
        client.status()
    words = "did not show that it has this ring's key", "what came is not what a node with this ring's key sent"
    assert any(text in str(caught.value) for text in words)


def test_a_redirection_is_not_followed(node: FakeNode) -> None:
    with serving(node, Access()) as server:
        elsewhere = answer_of(b"", f"Location: http://{HOST}:{server.port}/stop", status="307 Temporary Redirect")
        with imposter(lambda host: elsewhere) as client, pytest.raises(ControlError):
            client.stop()
    assert node.asked == []


# ---- without a key


def through(access: Access, caller: str, local: str = "10.0.0.2") -> tuple[str, bytes]:
    """Status and body of what a caller gets from the gate of a node that listens on `local`."""
    statuses: list[str] = []
    gate = AuthMiddleware(lambda environ, start: start("200 OK", []) or [b"in"], access, local, 100, OwnHosts(local))
    environ = {
        "REMOTE_ADDR": caller, "REQUEST_METHOD": "GET", "REQUEST_URI": "/", "PATH_INFO": "/",
        "HTTP_HOST": f"{local}:8088", "wsgi.url_scheme": "http", LOCAL_ADDRESS: (local, 8088),
    }  # fmt: skip
    body = b"".join(gate(environ, lambda status, headers, exc_info=None: statuses.append(status)))
    return statuses[0], body


@pytest.mark.parametrize(
    ("addrs", "caller", "allowed"),
    [
        ((), "127.0.0.1", True),
        ((), "::1", True),
        ((), "10.0.0.2", True),  # this machine
        ((), "10.0.0.1", False),
        (("10.0.0.1",), "10.0.0.1", True),
        (("10.0.0.1",), "::ffff:10.0.0.1", True),
        (("10.0.0.1",), "10.0.0.11", False),
        (None, "10.0.0.1", True),
    ],
)
def test_without_a_key_the_addresses_count(
    addrs: tuple[str, ...] | None, caller: str, allowed: bool, caplog: pytest.LogCaptureFixture
) -> None:
    status, body = through(Access(addrs=addrs), caller)
    assert (status, body == b"in") == (("200 OK", True) if allowed else ("403 Forbidden", False))
    assert len(caplog.records) == (0 if allowed else 1)
    if not allowed:
        assert f"refused GET / from {caller}" in caplog.text
        assert set(json.loads(body)) == {"error", "version"}


def test_with_a_key_addresses_do_not_count() -> None:
    assert through(Access(KEY, addrs=("10.0.0.1",)), "10.0.0.1")[0] == "401 Unauthorized"
    assert through(Access(KEY), "127.0.0.1")[0] == "401 Unauthorized"


@pytest.mark.parametrize(
    ("addr", "access", "words"),
    [
        ("127.0.0.1", Access(), None),
        ("localhost", Access(addrs=None), None),
        ("0.0.0.0", Access(KEY), None),
        ("0.0.0.0", Access(addrs=("10.0.0.1", "10.0.0.2")), "whoever calls from 10.0.0.1, 10.0.0.2"),
        ("0.0.0.0", Access(addrs=None), "everyone"),
    ],
)
def test_a_node_warns_once_that_it_has_no_key(
    addr: str, access: Access, words: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    ControlServer(addr, 0, FakeNode(), access).close()
    messages = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    expected = f"this ring has no key: {words} may use this node, see docs/running.md"
    assert messages == ([] if words is None else [expected])


# ---- connections that are held open


def test_silent_connections_do_not_keep_the_right_client_out(node: FakeNode) -> None:
    with serving(node, Access(KEY), Timeouts(request_head_s=60.0)) as server, contextlib.ExitStack() as stack:
        for _ in range(40):
            stack.enter_context(socket.create_connection((HOST, server.port), timeout=10))
        began = time.monotonic()
        assert client_of(server).status() == IDLE
        assert time.monotonic() - began < 30


def test_a_request_that_drips_is_cut_off(node: FakeNode) -> None:
    with serving(node, Access(KEY), Timeouts(request_head_s=1.0)) as server, contextlib.ExitStack() as stack:
        socks = [stack.enter_context(socket.create_connection((HOST, server.port), timeout=10)) for _ in range(20)]
        for sock in socks:
            sock.sendall(b"GET / HT")
        began = time.monotonic()
        for sock in socks:
            with contextlib.suppress(ConnectionError):
                while sock.recv(1000):
                    pass
        assert time.monotonic() - began < 10  # one after the other they would take 20 s
        assert client_of(server).status() == IDLE


# ---- the key is nowhere to be seen


def failure_of(client: ControlClient) -> str:
    """All that an error says. Not by `pytest.raises`, which keeps the connection that it came from."""
    try:
        client.status()
    except ControlError as exc:
        return f"{exc!r} {exc.__cause__!r}"
    raise AssertionError("it was let in")


def test_the_key_is_in_no_log_error_or_answer(
    server: ControlServer, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG)
    seen = [repr(server), repr(client_of(server).__dict__)]
    client_of(server).status()
    nowhere = ControlClient("n", HOST, 1, Access(KEY))
    seen += [failure_of(client) for client in (client_of(server, OTHER), client_of(server, None), nowhere)]
    for headers in ({}, {"Authorization": SCHEME}, {"Authorization": SECRET}):
        seen.append(repr(ask(server, "GET", "/", headers=headers)))
    seen += [caplog.text, *capfd.readouterr()]
    text = "\n".join(seen)
    assert "refused" in text
    for form in (SECRET, SECRET.encode().hex()):
        assert form not in text
