"""The routes of a node and the client that a starter uses, over real HTTP on the loopback."""

import contextlib
import dataclasses
import http.client
import json
import logging
import logging.handlers
import os
import queue
import re
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import mdi.control.client
import mdi.control.routes
from mdi.checkpoint.cache import ChunkCache
from mdi.control.client import ControlClient, NoAnswer, Unreachable
from mdi.control.protocol import MAX_JSON_BYTES, NodeBusy
from mdi.control.routes import ControlServer
from mdi.errors import CheckpointError, ConfigError, ControlError, StorageError
from mdi.net.sockets import listen
from mdi.net.timeouts import DEFAULT_TIMEOUTS, Timeouts
from support.control import CHUNK, DIGEST, HOST, SPEC, FakeNode, answer_of, sha256_of
from support.scripts import wait_until
from support.statuses import IDLE, READY


@pytest.fixture
def node(tmp_path: Path) -> FakeNode:
    return FakeNode(ChunkCache(tmp_path / "cache", sha256_of))


@pytest.fixture
def server(node: FakeNode) -> Iterator[ControlServer]:
    server = ControlServer(HOST, 0, node)
    server.start()
    yield server
    server.close()


@pytest.fixture
def lively(node: FakeNode) -> Iterator[ControlServer]:
    """A server that gives many signs of life."""
    server = ControlServer(HOST, 0, node, timeouts=Timeouts(heartbeat_s=0.02))
    server.start()
    yield server
    server.close()


@pytest.fixture
def client(server: ControlServer) -> ControlClient:
    return ControlClient("secondary 0", HOST, server.port)


Answer = tuple[int, str, bytes]


def ask(
    server: ControlServer, method: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None
) -> Answer:
    """Status, content type and body of the answer to one request."""
    with contextlib.closing(http.client.HTTPConnection(HOST, server.port, timeout=10)) as connection:
        connection.request(method, path, body, headers or {})
        response = connection.getresponse()
        return response.status, response.headers.get("Content-Type", ""), response.read()


def ask_raw(server: ControlServer, request: bytes) -> bytes:
    """What the server sends before it waits for more, or closes."""
    with socket.create_connection((HOST, server.port), timeout=10) as sock:
        sock.sendall(request)
        return sock.recv(10_000)


def reason_of(answer: Answer, status: int) -> str:
    """The reason in an error's body: JSON, and one line."""
    assert answer[0] == status
    assert answer[1].startswith("application/json")
    error = json.loads(answer[2])
    assert set(error) == {"error"}
    assert "\n" not in error["error"]
    return str(error["error"])


# ---- status, release, stop


def test_the_status_is_what_the_node_says(server: ControlServer, client: ControlClient, node: FakeNode) -> None:
    assert client.status() == node.status()
    status, content_type, body = ask(server, "GET", "/")
    assert (status, content_type) == (200, "application/json")
    assert json.loads(body) == IDLE.to_json()


def test_release_and_stop_reach_the_node(client: ControlClient, node: FakeNode) -> None:
    client.release(2**63 + 1)
    client.stop()
    assert node.asked == [2**63 + 1, "stop"]


@pytest.mark.parametrize("body", [b"", b"7", b"{}", b"[]", b'{"run": "7"}', b'{"run": true}', b'{"run": 1.5}'])
def test_a_release_without_a_run_is_refused(server: ControlServer, node: FakeNode, body: bytes) -> None:
    reason_of(ask(server, "PUT", "/release", body), 400)
    assert node.asked == []


def test_one_connection_serves_many_requests_also_after_errors(server: ControlServer, node: FakeNode) -> None:
    with contextlib.closing(http.client.HTTPConnection(HOST, server.port, timeout=10)) as connection:
        for method, path, body, expected in [
            ("GET", "/", None, 200),
            ("PUT", "/release", b'{"run": 1}', 200),
            ("PUT", "/release", b"x" * 5000, 400),
            ("GET", "/nothing", None, 404),
            ("PUT", f"/chunks/{DIGEST}", b"x" * 100_000, 400),
            ("GET", "/", None, 200),
        ]:
            connection.request(method, path, body)
            response = connection.getresponse()
            assert response.status == expected
            response.read()
    assert node.asked == [1]


def test_several_servers_live_in_one_process(tmp_path: Path) -> None:
    with contextlib.ExitStack() as stack:
        clients = []
        for number in range(3):
            node = FakeNode()
            node.status = lambda number=number: dataclasses.replace(IDLE, messages=number)  # type: ignore[method-assign]
            server = ControlServer(HOST, 0, node)
            stack.callback(server.close)
            server.start()
            clients.append(ControlClient("node", HOST, server.port))
        assert [client.status() for client in clients] == [dataclasses.replace(IDLE, messages=i) for i in range(3)]


# ---- init


def test_an_init_that_is_ready_at_once_is_answered(client: ControlClient, node: FakeNode) -> None:
    node.answer.set_result(READY)
    assert client.init(SPEC) == READY
    assert node.asked == [SPEC]


def test_a_slow_init_gives_signs_of_life(lively: ControlServer, node: FakeNode) -> None:
    server = lively
    with contextlib.closing(http.client.HTTPConnection(HOST, server.port, timeout=10)) as connection:
        connection.request("POST", "/init", json.dumps(SPEC.to_json()))
        response = connection.getresponse()
        assert response.status == 200
        assert response.read(5) == b" " * 5
        node.answer.set_result(READY)
        assert json.loads(response.read()) == {"ready": READY.status.to_json()}


def test_the_client_waits_for_a_slow_init(lively: ControlServer, node: FakeNode) -> None:
    client = ControlClient("secondary 0", HOST, lively.port, timeouts=Timeouts(answer_s=1.0))  # of a silence
    timer = threading.Timer(2.0, node.answer.set_result, [READY])
    timer.start()
    assert client.init(SPEC) == READY
    timer.join()


def test_an_init_that_fails_later_gives_its_reason(client: ControlClient, node: FakeNode) -> None:
    node.answer.set_exception(CheckpointError("layer 3 is missing"))
    with pytest.raises(ControlError, match=r"secondary 0 at http://127.0.0.1:\d+: layer 3 is missing"):
        client.init(SPEC)


def test_a_busy_node_says_whom_it_serves(server: ControlServer, client: ControlClient, node: FakeNode) -> None:
    node.refusal = NodeBusy("already serves the starter at <b> & 'c' with \"tiny\"")
    answer = ask(server, "POST", "/init", json.dumps(SPEC.to_json()).encode())
    assert reason_of(answer, 409) == str(node.refusal)
    with pytest.raises(ControlError, match=re.escape(f"secondary 0 at {client.url} refused: {node.refusal}")):
        client.init(SPEC)


def test_a_node_that_turns_out_to_be_busy_may_be_asked_again(client: ControlClient, node: FakeNode) -> None:
    node.answer.set_exception(NodeBusy("already serves another run"))
    with pytest.raises(NodeBusy, match=r"secondary 0 at .*: already serves another run"):
        client.init(SPEC)


def test_a_node_that_ends_while_it_loads_may_be_asked_again(
    server: ControlServer, client: ControlClient, node: FakeNode
) -> None:
    def close_while_it_loads() -> None:
        wait_until(lambda: node.asked, 60, "the node is asked to load")
        server.close()

    closing = threading.Thread(target=close_while_it_loads)
    closing.start()
    with pytest.raises((NodeBusy, NoAnswer)):
        client.init(SPEC)
    closing.join()


def test_a_bad_session_is_refused_with_the_field(server: ControlServer, node: FakeNode) -> None:
    body = json.dumps(SPEC.to_json() | {"n_slots": 0}).encode()
    assert reason_of(ask(server, "POST", "/init", body), 400) == "the session's n_slots is not acceptable: 0"
    assert node.asked == []


@pytest.mark.parametrize("path", ["/init", "/release"])
@pytest.mark.parametrize(
    "body", [b"", b"{", b"{'a': 1}", b"\xff\xfe", b"[" * 100_000], ids=["empty", "cut", "quotes", "binary", "deep"]
)
def test_a_body_that_is_not_json_is_refused(server: ControlServer, node: FakeNode, path: str, body: bytes) -> None:
    method = "POST" if path == "/init" else "PUT"
    assert reason_of(ask(server, method, path, body), 400) == "the body is not JSON"
    assert node.asked == []


def test_a_body_without_a_length_is_refused(server: ControlServer) -> None:
    request = b"POST /init HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n"
    assert ask_raw(server, request).startswith(b"HTTP/1.1 400 ")


@pytest.mark.parametrize("path", ["POST /init", "PUT /release", "PUT /stop", f"PUT /chunks/{DIGEST}"])
def test_damaged_chunks_beside_a_length_are_refused(
    server: ControlServer, node: FakeNode, path: str, caplog: pytest.LogCaptureFixture
) -> None:
    headers = "Transfer-Encoding: chunked\r\nContent-Length: 10\r\nContent-Range: bytes 0-9/5120"
    request = f"{path} HTTP/1.1\r\nHost: x\r\n{headers}\r\n\r\nno number\r\n"
    assert ask_raw(server, request.encode()).startswith(b"HTTP/1.1 400 ")
    assert not caplog.records and node.asked == []


def test_a_body_that_is_too_large_is_refused(server: ControlServer, client: ControlClient) -> None:
    answer = ask(server, "POST", "/init", b" " * (MAX_JSON_BYTES + 1))
    assert reason_of(answer, 413) == f"a body of {MAX_JSON_BYTES + 1} bytes; {MAX_JSON_BYTES} are allowed"
    with pytest.raises(ControlError, match="refused: a body of"):
        client.init(dataclasses.replace(SPEC, config=SPEC.config | {"x": "x" * MAX_JSON_BYTES}))


@pytest.mark.parametrize("path", ["POST /init", "PUT /release", "PUT /stop", f"PUT /chunks/{DIGEST}", "GET /"])
def test_a_body_without_end_is_refused_before_it_comes(server: ControlServer, path: str) -> None:
    request = f"{path} HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000000000\r\n\r\n"
    assert ask_raw(server, request.encode()).startswith(b"HTTP/1.1 413 ")


@pytest.mark.parametrize("length", ["-1", "-1000", "x", "1e3"])
def test_a_length_that_is_none_is_refused(server: ControlServer, length: str) -> None:
    for path in ("POST /init", "PUT /release"):
        request = f"{path} HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n"
        assert ask_raw(server, request.encode()).startswith(b"HTTP/1.1 400 ")


@pytest.mark.parametrize("version", ["1.-1", "1.+1", "1. 1", "1.", "x"])
def test_a_version_that_is_none_is_refused(
    server: ControlServer, version: str, caplog: pytest.LogCaptureFixture
) -> None:
    assert ask_raw(server, f"GET / HTTP/{version}\r\nHost: x\r\n\r\n".encode()).startswith(b"HTTP/1.1 400 ")
    assert not caplog.records


def test_a_header_that_continues_no_other_is_refused(server: ControlServer, caplog: pytest.LogCaptureFixture) -> None:
    assert ask_raw(server, b"GET / HTTP/1.1\r\n folded: x\r\n\r\n").startswith(b"HTTP/1.1 400 ")
    assert not caplog.records


# ---- what is not there


@pytest.mark.parametrize(
    "path",
    [
        "/__class__", "/__class__/index", "/__class__/chunks/x", "/.-class.-", "/_node", "/.node", "/_node/cache",
        "/_closing", "/_cache", "/_append/x", "/_wait_for/x", "/_cp_config", "/default", "/node",
    ],
)  # fmt: skip
def test_the_inside_of_the_routes_is_not_there(
    server: ControlServer, path: str, caplog: pytest.LogCaptureFixture
) -> None:
    for method in ("GET", "PUT", "POST"):
        reason_of(ask(server, method, path), 404)
    assert not caplog.records


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("POST", "/init/__class__", 404),
        ("PUT", "/stop/__init__", 404),
        ("PUT", "/stop/__self__/init", 404),
        ("PUT", "/stop/__func__", 404),
        ("PUT", "/chunks/_cache", 400),
        ("GET", "/index", 404),
        ("GET", "/index/", 404),
        ("GET", "/nothing", 404),
        ("GET", "/../../etc/passwd", 404),
        ("PUT", "/stop/now", 404),
        ("PUT", "/stop?now=1", 404),
        ("POST", "/init/1", 404),
        ("GET", "/_node", 404),
        ("PUT", "/chunks", 404),
        ("PUT", "/chunks/a/b", 404),
        ("POST", "/", 405),
        ("DELETE", "/", 405),
        ("GET", "/init", 405),
        ("PUT", "/init", 405),
        ("GET", "/stop", 405),
        ("POST", "/stop", 405),
        ("GET", f"/chunks/{DIGEST}", 405),
    ],
)
def test_what_is_not_there_is_an_error_in_json(
    server: ControlServer, node: FakeNode, method: str, path: str, status: int
) -> None:
    assert reason_of(ask(server, method, path, b"" if method != "GET" else None), status)
    assert node.asked == []


def test_a_bug_of_the_node_is_an_error_without_its_traceback(
    server: ControlServer, client: ControlClient, node: FakeNode
) -> None:
    node.refusal = ZeroDivisionError("secret")
    assert "secret" not in reason_of(ask(server, "GET", "/"), 500)
    with pytest.raises(ControlError, match=r"secondary 0 at .* refused"):
        client.status()


def test_a_bug_of_the_node_goes_to_our_log(server: ControlServer, node: FakeNode) -> None:
    records: queue.Queue[logging.LogRecord] = queue.Queue()
    handler = logging.handlers.QueueHandler(records)
    mdi.control.routes.log.addHandler(handler)
    try:
        node.refusal = ZeroDivisionError("the bug")
        ask(server, "GET", "/")
    finally:
        mdi.control.routes.log.removeHandler(handler)
    assert "ZeroDivisionError: the bug" in records.get(timeout=10).getMessage()


def test_nothing_is_printed(server: ControlServer, node: FakeNode, capfd: pytest.CaptureFixture[str]) -> None:
    ask(server, "GET", "/")
    ask(server, "GET", "/nothing")
    ask(server, "POST", "/init", b"{")
    ask_raw(server, b"nonsense\r\n\r\n")
    node.refusal = ZeroDivisionError()
    ask(server, "GET", "/")
    assert capfd.readouterr() == ("", "")


def test_the_client_reads_the_timeline(client: ControlClient) -> None:
    assert client.timeline() == {"now_s": 1.5, "spans": []}


# ---- chunks


@pytest.fixture
def chunk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A chunk that takes six uploads."""
    for module in (mdi.control.routes, mdi.control.client):
        monkeypatch.setattr(module, "UPLOAD_BYTES", 1000)
    path = tmp_path / "chunk.pth"
    path.write_bytes(CHUNK)
    return path


def put_chunk(
    server: ControlServer, content_range: str | None, body: bytes = b"x" * 10, digest: str = DIGEST
) -> Answer:
    headers = {} if content_range is None else {"Content-Range": content_range}
    return ask(server, "PUT", f"/chunks/{digest}", body, headers)


def test_a_chunk_is_sent_in_pieces(client: ControlClient, node: FakeNode, chunk: Path) -> None:
    steps: list[int] = []
    client.send_chunk(chunk, DIGEST, steps.append)
    assert steps == [0, *[1000] * 5, 120]
    assert node.cache is not None
    path = node.cache.find(DIGEST)
    assert path is not None
    assert path.read_bytes() == CHUNK


def test_a_chunk_is_resumed_where_it_broke_and_never_sent_twice(
    client: ControlClient, server: ControlServer, node: FakeNode, chunk: Path
) -> None:
    assert put_chunk(server, f"bytes 0-699/{len(CHUNK)}", CHUNK[:700])[2] == b'{"held_bytes": 700}'
    steps: list[int] = []
    client.send_chunk(chunk, DIGEST, steps.append)
    assert steps == [700, *[1000] * 4, 420]
    again: list[int] = []
    client.send_chunk(chunk, DIGEST, again.append)
    assert again == [len(CHUNK)]
    assert node.cache is not None
    assert node.cache.find(DIGEST) is not None


def test_a_piece_that_breaks_off_is_kept_and_resumed(
    server: ControlServer, client: ControlClient, node: FakeNode, chunk: Path
) -> None:
    request = f"PUT /chunks/{DIGEST} HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n"
    request += f"Content-Range: bytes 0-999/{len(CHUNK)}\r\n\r\n"
    with socket.create_connection((HOST, server.port), timeout=10) as sock:
        sock.sendall(request.encode() + CHUNK[:300])
        sock.shutdown(socket.SHUT_WR)
        assert sock.recv(1000).startswith(b"HTTP/1.1 200 ")
    steps: list[int] = []
    client.send_chunk(chunk, DIGEST, steps.append)
    assert steps[0] == 300
    assert node.cache is not None
    assert node.cache.find(DIGEST) is not None


@pytest.mark.parametrize(
    "content_range",
    [None, "", "bytes", "bytes 0-9", "bytes 0-9/*", "bytes */100", "bytes -9/100", "bytes 0-8/100", "bytes 0-10/100",
     "bytes 9-0/100",
     "0-9/100", "bytes 0-9/100 ", "bytes  0-9/100", "bytes 0-9/" + "9" * 30, "bytes 0-9/100, 10-19/100"],
)  # fmt: skip
def test_a_range_that_is_malformed_or_does_not_fit_the_body_is_refused(
    server: ControlServer, node: FakeNode, content_range: str | None
) -> None:
    stripped = content_range and content_range.strip()
    status = 200 if stripped == "bytes 0-9/100" else 400  # blanks around a header's value are not part of it
    answer = put_chunk(server, content_range)
    if status == 400:
        assert "expected Content-Range: bytes first-last/total" in reason_of(answer, 400)
        assert node.cache is not None
        assert node.cache.held_bytes(DIGEST) == 0


@pytest.mark.parametrize("content_range", ["bytes 5-14/100", "bytes 0-9/9"])
def test_a_range_that_does_not_continue_the_chunk_is_refused(server: ControlServer, content_range: str) -> None:
    reason_of(put_chunk(server, content_range), 409)


def test_an_upload_beyond_its_limit_is_refused(server: ControlServer, chunk: Path) -> None:
    reason_of(put_chunk(server, "bytes 0-1000/5000", bytes(1001)), 400)


def test_what_is_no_digest_is_refused(server: ControlServer, tmp_path: Path) -> None:
    for digest in ("a" * 63, "..%2F..%2Fetc", "A" * 64, "%00" * 64):
        answer = put_chunk(server, "bytes 0-9/10", digest=digest)
        assert 400 <= answer[0] < 500
        reason_of(answer, answer[0])
        assert 400 <= ask(server, "HEAD", f"/chunks/{digest}")[0] < 500
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_a_full_disk_is_told_to_the_starter(
    client: ControlClient, chunk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(100, 99, 1))
    with pytest.raises(ControlError, match=r"secondary 0 at .* refused: .*free some space or choose another folder"):
        client.send_chunk(chunk, DIGEST)


def test_a_node_without_a_cache_takes_no_chunks(
    server: ControlServer, client: ControlClient, node: FakeNode, chunk: Path
) -> None:
    node.cache = None
    assert reason_of(put_chunk(server, "bytes 0-9/10"), 409) == "this node takes no chunks"
    with pytest.raises(ControlError, match="secondary 0"):
        client.send_chunk(chunk, DIGEST)


# ---- answers that are none of a node's


@contextlib.contextmanager
def answering(*answers: bytes) -> Iterator[ControlClient]:
    """A client of a server that gives these answers, one a connection, whatever it is asked."""
    with listen(HOST, 0) as listener:
        listener.settimeout(10)

        def serve() -> None:
            for answer in answers:
                sock, _ = listener.accept()
                with sock, sock.makefile("rb") as file:
                    length = 0
                    while (line := file.readline()) not in (b"\r\n", b""):
                        if line.lower().startswith(b"content-length:"):
                            length = int(line.split(b":")[1])
                    file.read(length)
                    sock.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        yield ControlClient("secondary 0", HOST, listener.getsockname()[1])
        thread.join()


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (b"", "cannot be reached"),
        (b"SSH-2.0-OpenSSH_9.6\r\n", "secondary 0"),
        (answer_of(b"<html>hello</html>"), "answered something that is not JSON"),
        (answer_of(b""), "answered something that is not JSON"),
        (answer_of(b"[1, 2]"), r"\[1, 2\]"),
        (answer_of(b'{"error": "out of memory"}'), "out of memory"),
        (answer_of(b"<h1>teapot</h1>", status="418 Teapot"), "refused: HTTP 418"),
        (answer_of(b'"error"', status="500 Oops"), "refused: HTTP 500"),
        (answer_of(b'{"error": "it is me"}', status="500 Oops"), "refused: it is me"),
        (answer_of(b"{}")[:-1], "secondary 0"),
        (answer_of(b"[" * 100_000), "answered something that is not JSON"),
        (answer_of(b"9" * 5000), "answered something that is not JSON"),
        (answer_of(b"[" * 100_000, status="500 Oops"), "refused: HTTP 500"),
        (answer_of(json.dumps({"error": "two\nlines " + "x" * 5000}).encode()), "two lines"),
        (answer_of(json.dumps({"error": "two\nlines " + "x" * 5000}).encode(), status="400 No"), "two lines"),
        (answer_of(json.dumps(["two\nlines" * 1000]).encode()), r"\['two"),
        (answer_of(b"{}"), "not the status of a node"),
        (answer_of(json.dumps(IDLE.to_json() | {"state": 5}).encode()), "the status's state is not acceptable: 5"),
    ],
)
def test_every_strange_answer_is_a_control_error(answer: bytes, words: str) -> None:
    with answering(answer) as client, pytest.raises(ControlError, match=words) as caught:
        client.status()
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 1200
    assert "secondary 0" in str(caught.value)


@pytest.mark.parametrize(
    "answers",
    [
        [answer_of(b"", "X-Held-Bytes: many")],
        [answer_of(b"", "X-Held-Bytes: -5")],
        [answer_of(b"", "X-Held-Bytes: " + "9" * 5000)],
        [answer_of(b""), answer_of(b'{"held_bytes": 999999999999999999999}')],
        [answer_of(b""), answer_of(b'{"held_bytes": true}')],
        [answer_of(b""), answer_of(b"{}")],
        [answer_of(b""), answer_of(b'{"held_bytes": null}')],
        [answer_of(b""), answer_of(b'{"held_bytes": 0}')],
        [answer_of(b""), answer_of(b'{"held_bytes": "x"}')],
    ],
)
def test_strange_answers_to_a_chunk_are_control_errors(answers: list[bytes], chunk: Path) -> None:
    with answering(*answers) as client, pytest.raises(ControlError, match="secondary 0"):
        client.send_chunk(chunk, DIGEST)


def test_nobody_at_the_address_is_unreachable() -> None:
    with listen(HOST, 0) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(Unreachable) as caught:
        ControlClient("secondary 2", HOST, port).status()
    assert str(caught.value) == f"secondary 2 at http://{HOST}:{port} cannot be reached"


@pytest.mark.parametrize("addr", ["10.7..48.46", "a" * 64, "a b"])
def test_an_address_that_is_none_is_a_control_error(addr: str) -> None:
    with pytest.raises(ControlError, match="secondary 0"):
        ControlClient("secondary 0", addr, 8088).status()


def test_a_node_that_does_not_answer_is_a_control_error() -> None:
    with listen(HOST, 0) as listener, pytest.raises(ControlError, match=r"secondary 0 at .* did not answer"):
        ControlClient("secondary 0", HOST, listener.getsockname()[1], timeouts=Timeouts(status_s=0.1)).status()


def test_a_chunk_that_is_not_there_is_an_mdi_error(client: ControlClient, tmp_path: Path) -> None:
    with pytest.raises((StorageError, ControlError), match=r"missing\.pth"):
        client.send_chunk(tmp_path / "missing.pth", DIGEST)


def test_proxies_of_the_environment_are_not_asked(client: ControlClient, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    assert "http_proxy" in os.environ
    assert client.status() == IDLE


def test_ipv6_addresses_are_put_in_brackets() -> None:
    assert ControlClient("n", "::1", 8088).url == "http://[::1]:8088"
    assert ControlClient("n", "box.local", 8088).url == "http://box.local:8088"


# ---- start and stop


def server_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread is not threading.main_thread()]


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
    request = f"PUT /chunks/{DIGEST} HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\nContent-Range: bytes 0-9/10\r\n\r\n"
    with socket.create_connection((HOST, server.port), timeout=10) as sock:
        sock.sendall(request.encode() + b"12345")
        assert_closes(server)


def test_a_server_closes_while_an_init_is_never_answered(lively: ControlServer, node: FakeNode) -> None:
    server = lively
    with contextlib.closing(http.client.HTTPConnection(HOST, server.port, timeout=10)) as connection:
        connection.request("POST", "/init", json.dumps(SPEC.to_json()))
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


@pytest.mark.parametrize("addr", ["192.0.2.1", "10.7..48.46"])
def test_an_address_of_another_machine_is_refused_with_advice(node: FakeNode, addr: str) -> None:
    with pytest.raises(ConfigError, match=f"cannot listen on {addr} port 0: this is not an address of this machine"):
        ControlServer(addr, 0, node)
