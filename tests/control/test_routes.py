"""The routes of a node, over real HTTP on the loopback."""

import contextlib
import dataclasses
import http.client
import json
import logging
import logging.handlers
import queue
import re
import threading
from pathlib import Path

import pytest

import mdi.control.routes
from mdi.control.client import ControlClient
from mdi.control.protocol import NoAnswer, NodeBusy
from mdi.control.routes import ControlServer
from mdi.errors import CheckpointError, ConfigError, ControlError
from mdi.net.timeouts import Timeouts
from support.control import (
    DIGEST,
    ENDS,
    HOST,
    SPEC,
    STAGE_REQUEST,
    STAGE_TIMES,
    FakeNode,
    ask,
    ask_raw,
    reason_of,
    type_of,
)
from support.scripts import wait_until
from support.statuses import IDLE, READY

# ---- status, release, stop


def test_the_status_is_what_the_node_says(server: ControlServer, client: ControlClient, node: FakeNode) -> None:
    assert client.status() == node.status()
    status, content_type, body = ask(server, "GET", "/")
    assert (status, content_type) == (200, "application/json")
    assert json.loads(body) == IDLE.to_json() | ENDS


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
            connection.request(method, path, body, type_of(method, path))
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
        connection.request("POST", "/init", json.dumps(SPEC.to_json()), type_of("POST", "/init"))
        response = connection.getresponse()
        assert response.status == 200
        assert response.read(5) == b" " * 5
        node.answer.set_result(READY)
        assert json.loads(response.read()) == {"ready": READY.status.to_json()}


def test_a_node_whose_main_thread_is_stuck_gives_no_sign_of_life(node: FakeNode) -> None:
    """Its HTTP threads live on: what they would send says nothing of the thread that loads."""
    node.gets_on = False
    server = ControlServer(HOST, 0, node, timeouts=Timeouts(heartbeat_s=0.02, stall_s=0.2))
    server.start()
    with contextlib.closing(server), contextlib.closing(http.client.HTTPConnection(HOST, server.port)) as connection:
        connection.request("POST", "/init", json.dumps(SPEC.to_json()), type_of("POST", "/init"))
        body = connection.getresponse().read()
        assert body == b'{"error": "the node has made no progress for 0.2 s", "code": "busy"}'
        assert ControlClient("secondary 0", HOST, server.port).status() == IDLE


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


# ---- measure


def test_what_was_measured_is_answered(client: ControlClient, node: FakeNode) -> None:
    node.measured.set_result(STAGE_TIMES)
    assert client.measure(STAGE_REQUEST) == STAGE_TIMES
    assert node.asked == [STAGE_REQUEST]


def test_measuring_gives_signs_of_life_and_its_reason_where_it_fails(lively: ControlServer, node: FakeNode) -> None:
    client = ControlClient("secondary 0", HOST, lively.port, timeouts=Timeouts(answer_s=5))
    thread = threading.Timer(0.2, node.measured.set_exception, [ConfigError("no memory")])
    thread.start()
    with pytest.raises(ControlError, match=r"secondary 0 at http://127.0.0.1:\d+: no memory"):
        client.measure(STAGE_REQUEST)
    thread.join()


@pytest.mark.parametrize("body", [b"", b"7", b"{}", b'{"stage": {}}', b'{"link": 7}', b'{"stage": {}, "link": {}}'])
def test_a_request_to_measure_nothing_is_refused(server: ControlServer, node: FakeNode, body: bytes) -> None:
    reason_of(ask(server, "POST", "/measure", body), 400)
    assert node.asked == []
