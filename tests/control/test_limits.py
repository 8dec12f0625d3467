"""Requests that are malformed or too large are refused."""

import dataclasses

import pytest

from mdi.control.client import ControlClient
from mdi.control.protocol import MAX_JSON_BYTES
from mdi.control.routes import ControlServer
from mdi.errors import ControlError
from support.control import DIGEST, SPEC, FakeNode, ask, ask_raw, raw_head, reason_of


@pytest.mark.parametrize("path", ["/init", "/release"])
@pytest.mark.parametrize(
    "body", [b"", b"{", b"{'a': 1}", b"\xff\xfe", b"[" * 100_000], ids=["empty", "cut", "quotes", "binary", "deep"]
)
def test_a_body_that_is_not_json_is_refused(server: ControlServer, node: FakeNode, path: str, body: bytes) -> None:
    method = "POST" if path == "/init" else "PUT"
    assert reason_of(ask(server, method, path, body), 400) == "the body is not JSON"
    assert node.asked == []


def test_a_body_without_a_length_is_refused(server: ControlServer) -> None:
    head = f"{raw_head(server, 'POST /init')}Transfer-Encoding: chunked\r\n\r\n"
    assert ask_raw(server, f"{head}2\r\n{{}}\r\n0\r\n\r\n".encode()).startswith(b"HTTP/1.1 400 ")


@pytest.mark.parametrize("path", ["POST /init", "PUT /release", "PUT /stop", f"PUT /chunks/{DIGEST}"])
def test_damaged_chunks_beside_a_length_are_refused(
    server: ControlServer, node: FakeNode, path: str, caplog: pytest.LogCaptureFixture
) -> None:
    headers = "Transfer-Encoding: chunked\r\nContent-Length: 10\r\nContent-Range: bytes 0-9/5120"
    request = f"{raw_head(server, path)}{headers}\r\n\r\nno number\r\n"
    assert ask_raw(server, request.encode()).startswith(b"HTTP/1.1 400 ")
    assert not caplog.records and node.asked == []


def test_a_body_that_is_too_large_is_refused(server: ControlServer, client: ControlClient) -> None:
    answer = ask(server, "POST", "/init", b" " * (MAX_JSON_BYTES + 1))
    assert reason_of(answer, 413) == f"a body of {MAX_JSON_BYTES + 1} bytes; {MAX_JSON_BYTES} are allowed"
    with pytest.raises(ControlError, match="refused: a body of"):
        client.init(dataclasses.replace(SPEC, config=SPEC.config | {"x": "x" * MAX_JSON_BYTES}))


@pytest.mark.parametrize("path", ["POST /init", "PUT /release", "PUT /stop", f"PUT /chunks/{DIGEST}", "GET /"])
def test_a_body_without_end_is_refused_before_it_comes(server: ControlServer, path: str) -> None:
    request = f"{raw_head(server, path)}Content-Length: 1000000000000\r\n\r\n"
    assert ask_raw(server, request.encode()).startswith(b"HTTP/1.1 413 ")


@pytest.mark.parametrize("length", ["-1", "-1000", "x", "1e3"])
def test_a_length_that_is_none_is_refused(server: ControlServer, length: str) -> None:
    for path in ("POST /init", "PUT /release"):
        request = f"{raw_head(server, path)}Content-Length: {length}\r\n\r\n"
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
