"""The client that a starter uses, with answers that no node gives."""

import json
import os
import threading

import pytest

from mdi.control.client import ControlClient, Unreachable
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


# ---- answers that are none of a node's


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
