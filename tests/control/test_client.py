"""The client that a starter uses, with answers that no node gives."""

import json
import os
import threading

import pytest

from mdi.control.client import ControlClient
from mdi.control.protocol import (
    DamagedFiles,
    NoAnswer,
    NodeBusy,
    NoStorage,
    NotANode,
    NotAuthorized,
    Refused,
    UnknownName,
    Unreachable,
    WrongVersion,
)
from mdi.control.routes import ControlServer
from mdi.errors import ControlError
from mdi.net.sockets import listen
from mdi.net.timeouts import Timeouts
from support.control import HOST, SPEC, FakeNode, answer_of, answering
from support.statuses import IDLE, READY


def test_the_client_waits_for_a_slow_init(lively: ControlServer, node: FakeNode) -> None:
    client = ControlClient("secondary 0", HOST, lively.port, timeouts=Timeouts(answer_s=1.0))  # of a silence
    timer = threading.Timer(2.0, node.answer.set_result, [READY])
    timer.start()
    assert client.init(SPEC) == READY
    timer.join()


def test_the_client_reads_the_timeline(client: ControlClient) -> None:
    assert client.timeline() == {"now_s": 1.5, "spans": []}


def test_a_name_that_nobody_knows_is_said_to_be_that() -> None:
    client = ControlClient("secondary 2", "no-such-host.invalid", 8088)
    with pytest.raises(UnknownName, match="cannot be reached: no machine is known by that name"):
        client.status()


# ---- answers that are none of a node's


TWO_LINES = json.dumps({"error": "two\nlines " + "x" * 5000}).encode()
STRANGE: list[tuple[bytes, type[ControlError], str]] = [
    (b"", NoAnswer, "did not answer: the connection ended"),
    (b"SSH-2.0-OpenSSH_9.6\r\n", NotANode, "answers, but not in HTTP"),
    (answer_of(b"<html>hello</html>"), NotANode, "answered something that is not JSON"),
    (answer_of(b""), NotANode, "answered something that is not JSON"),
    (answer_of(b"[1, 2]"), NotANode, r"\[1, 2\]"),
    (answer_of(b'{"error": "out of memory"}'), Refused, "out of memory"),
    (answer_of(b"<h1>teapot</h1>", status="418 Teapot"), NotANode, "is not a node of this version: HTTP 418"),
    (answer_of(b"", status="501 Unsupported method ('POST')"), NotANode, "HTTP 501"),
    (answer_of(b'{"error": "no such page"}', status="404 Not Found"), NotANode, "HTTP 404"),
    (answer_of(b'"error"', status="500 Oops"), NotANode, "HTTP 500"),
    (answer_of(b'{"error": {"code": 500}}', status="500 Oops"), NotANode, "HTTP 500"),
    (answer_of(b"", "Location: http://127.0.0.1:1/", status="307 There"), NotANode, "HTTP 307"),
    (answer_of(b"busy", status="503 Service Unavailable"), NoAnswer, "did not answer: HTTP 503"),
    (answer_of(b'{"error": "it is me"}', status="500 Oops"), Refused, "refused: it is me"),
    (answer_of(b'{"error": "x", "code": 5}', status="500 Oops"), Refused, "refused: x"),
    (answer_of(b'{"error": "x", "code": "busy"}', status="400 No"), NodeBusy, "refused: x"),
    (answer_of(b'{"error": "x", "code": "storage"}'), NoStorage, "x"),
    (answer_of(b'{"error": "x", "code": "files"}'), DamagedFiles, "x"),
    (answer_of(b'{"error": "x", "code": "version"}', status="400 No"), WrongVersion, "refused: x"),
    (answer_of(b'{"error": "x"}', status="409 Conflict"), NodeBusy, "refused: x"),
    (answer_of(b'{"error": "x"}', status="507 Full"), NoStorage, "refused: x"),
    (answer_of(b'{"error": "x"}', status="403 Forbidden"), NotAuthorized, "refused: x"),
    (answer_of(b"{}")[:-1], NoAnswer, "did not answer: the connection ended"),
    (answer_of(b"[" * 60_000), NotANode, "answered something that is not JSON"),
    (answer_of(b"9" * 5000), NotANode, "answered something that is not JSON"),
    (answer_of(b"\x1f\x8b\x08", "Content-Encoding: gzip"), NotANode, "answered something that is not JSON"),
    (answer_of(b"[" * 60_000, status="500 Oops"), NotANode, "HTTP 500"),
    (answer_of(TWO_LINES), Refused, "two lines"),
    (answer_of(TWO_LINES, status="400 No"), Refused, "two lines"),
    (answer_of(json.dumps(["two\nlines" * 1000]).encode()), NotANode, r"\['two"),
    (answer_of(b"{}"), NotANode, "not the status of a node"),
    (answer_of(json.dumps(IDLE.to_json() | {"state": 5}).encode()), NotANode, "state is not acceptable: 5"),
]


@pytest.mark.parametrize(("answer", "kind", "words"), STRANGE)
def test_every_strange_answer_is_a_control_error(answer: bytes, kind: type[ControlError], words: str) -> None:
    with answering(answer) as client, pytest.raises(ControlError, match=words) as caught:
        client.status()
    assert type(caught.value) is kind
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 1200
    assert "secondary 0" in str(caught.value)


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
