"""A node asks for a place in a ring for as long as it has none."""

import contextlib

import pytest

from mdi.control.client import ControlClient
from mdi.control.join import JoinRequest
from mdi.control.protocol import NodeBusy
from mdi.control.routes import ControlServer
from mdi.net.timeouts import Timeouts
from mdi.nodes.joiner import Joiner
from support.control import HOST, FakeNode
from support.scripts import wait_until


def test_a_node_asks_until_it_is_taken_and_says_each_thing_once(caplog: pytest.LogCaptureFixture) -> None:
    starter, is_free = FakeNode(), [True]
    starter.refusal = NodeBusy("ask again later")
    server = ControlServer(HOST, 0, starter)
    client = ControlClient("the starter", HOST, server.port)
    with contextlib.closing(server), Joiner(client, 8090, lambda: is_free[0], Timeouts(join_check_s=0.01)):
        server.start()
        wait_until(lambda: len(starter.asked) >= 3, 60, "it asks again")
        starter.refusal = None
        wait_until(lambda: "this node is secondary 5" in caplog.text, 60, "it is told")
        is_free[0] = False
        wait_until(lambda: _is_quiet(starter), 60, "a node in a session asks no more")
    assert set(map(repr, starter.asked)) == {repr((JoinRequest(8090), HOST))}
    lines = [line for line in caplog.messages if "cannot be reached" not in line]  # before the starter is there
    assert len(lines) == 2
    assert lines[0].endswith("refused: ask again later; asking again")
    assert lines[1].endswith(f"{server.port} this node is secondary 5: it takes part when it is ready")


def _is_quiet(starter: FakeNode) -> bool:
    n_asked = len(starter.asked)
    with contextlib.suppress(AssertionError):
        wait_until(lambda: len(starter.asked) > n_asked, 0.2, "it asks")
    return len(starter.asked) == n_asked
