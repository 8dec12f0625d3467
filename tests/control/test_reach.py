"""`POST /reach`: what a node tries for others, what it does not, and what it says of it."""

import contextlib
import socket
import threading
from collections.abc import Iterator
from dataclasses import replace

import pytest

from mdi.control.attempts import MAX_ATTEMPTS, attempt, check_target
from mdi.control.client import ControlClient
from mdi.control.protocol import NodeBusy, Refused
from mdi.control.reach import Outcome, Reach, Target
from mdi.control.routes import ControlServer
from mdi.control.status import NodeStatus
from mdi.errors import ControlError
from mdi.net.access import THIS_MACHINE, Access
from mdi.net.keys import Key, Keys
from mdi.net.sockets import listen
from mdi.net.timeouts import Timeouts
from support.control import HOST, FakeNode
from support.scripts import free_ports
from support.statuses import IDLE

KEY, OTHER = Keys(Key("a key of more than sixteen characters", "test")), Keys(Key("another key of that length", "test"))
KEYED = Access(KEY, addrs=None)
TIMEOUTS = Timeouts(connect_s=10.0)


class Neighbour(FakeNode):
    """A node that listens for its predecessor."""

    def __init__(self, ring_port: int) -> None:
        super().__init__()
        self._status = replace(IDLE, ring_port=ring_port)

    def status(self) -> NodeStatus:
        return self._status


@contextlib.contextmanager
def served(node: FakeNode, access: Access, timeouts: Timeouts = TIMEOUTS) -> Iterator[int]:
    """The HTTP port of a node."""
    server = ControlServer(HOST, 0, node, access, timeouts)
    server.start()
    try:
        yield server.port
    finally:
        server.close()


def client_of(port: int, access: Access = KEYED) -> ControlClient:
    return ControlClient("secondary 0", HOST, port, access, TIMEOUTS)


def test_a_node_tries_both_ports_of_another_one() -> None:
    with listen(HOST, 0) as ring, served(Neighbour(ring.getsockname()[1]), KEYED) as port:
        with served(FakeNode(), KEYED) as asked:
            assert client_of(asked).reach(Target(HOST, port)) == Reach(Outcome.REACHED, Outcome.REACHED)
        ring.accept()[0].close()  # a connection, and nothing was sent
    (nobody,) = free_ports(1)
    with served(Neighbour(nobody), KEYED) as port:
        assert attempt(Target(HOST, port), KEYED, TIMEOUTS) == Reach(Outcome.REACHED, Outcome.REFUSED)
    assert attempt(Target(HOST, nobody), KEYED, TIMEOUTS) == Reach(Outcome.REFUSED)


def test_a_status_tells_both_ends_of_the_call() -> None:
    with served(FakeNode(), KEYED) as port:
        status = client_of(port).status()
    assert (status.caller, status.called) == (HOST, HOST)


def test_a_ring_port_is_tried_only_where_a_node_of_the_ring_tells_it() -> None:
    with listen(HOST, 0) as ring:
        ring.setblocking(False)
        with served(Neighbour(ring.getsockname()[1]), Access(OTHER, addrs=None)) as port:
            assert attempt(Target(HOST, port), KEYED, TIMEOUTS) == Reach(Outcome.OTHER_KEY)
        with pytest.raises(BlockingIOError):
            ring.accept()


def test_another_program_is_no_node() -> None:
    with socket.create_server((HOST, 0)) as listener:

        def answer() -> None:
            sock, _ = listener.accept()
            with sock:
                sock.recv(1000)
                sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")

        thread = threading.Thread(target=answer)
        thread.start()
        assert attempt(Target(HOST, listener.getsockname()[1]), KEYED, TIMEOUTS).http is Outcome.NOT_A_NODE
        thread.join()


@pytest.mark.parametrize(
    ("addr", "caller", "access", "told"),
    [
        ("pi4.local", "10.0.0.4", KEYED, "not names"),
        ("127.0.0.1", "10.0.0.4", KEYED, "this node's own machine"),
        ("::1", "10.0.0.4", KEYED, "this node's own machine"),
        ("::ffff:127.0.0.1", "10.0.0.4", KEYED, "this node's own machine"),
        ("169.254.169.254", "10.0.0.4", KEYED, "no address that a node"),
        ("fe80::1%eth0", "10.0.0.4", KEYED, "no address that a node"),
        ("0.0.0.0", "10.0.0.4", KEYED, "no address that a node"),
        ("224.0.0.251", "10.0.0.4", KEYED, "no address that a node"),
        ("255.255.255.255", "10.0.0.4", KEYED, "no address that a node"),
        ("10.0.0.7", "10.0.0.4", Access(KEY, addrs=("10.0.0.5",)), "not in this node's configuration"),
        ("10.0.0.7", "10.0.0.4", Access(addrs=("10.0.0.5",)), "not in this node's configuration"),
        ("10.0.0.7", "10.0.0.4", Access(addrs=None), "has no key"),
    ],
)
def test_what_could_be_no_node_of_the_ring_is_not_tried(addr: str, caller: str, access: Access, told: str) -> None:
    with pytest.raises(ControlError, match=told):
        check_target(Target(addr, 80), caller, access)


@pytest.mark.parametrize(
    ("addr", "caller", "access"),
    [
        ("10.0.0.7", "10.0.0.4", KEYED),
        ("fd00::7", "10.0.0.4", KEYED),
        ("127.0.0.1", "127.0.0.1", THIS_MACHINE),
        ("10.0.0.5", "10.0.0.4", Access(KEY, addrs=("10.0.0.5",))),
        ("10.0.0.4", "::ffff:10.0.0.4", Access(KEY, addrs=("10.0.0.5",))),
        ("10.0.0.5", "10.0.0.4", Access(addrs=("10.0.0.5",))),
    ],
)
def test_who_asks_and_the_nodes_of_the_ring_are_tried(addr: str, caller: str, access: Access) -> None:
    check_target(Target(addr, 8088), caller, access)


@pytest.mark.parametrize(
    "body", [{}, [], {"addr": 5, "port": 80}, {"addr": "a", "port": 0}, {"addr": "a", "port": 65536}]
)
def test_what_names_no_target_is_refused(body: object) -> None:
    with pytest.raises(ControlError, match="expected"):
        Target.from_json(body)


@pytest.mark.parametrize(
    "answer", [None, {}, {"http": "reached"}, {"http": "reached", "ring": "x"}, {"http": [], "ring": 1}]
)
def test_an_answer_of_another_form_is_none(answer: object) -> None:
    with pytest.raises(ControlError):
        Reach.from_json(answer)


def test_without_the_key_nothing_is_tried() -> None:
    with listen(HOST, 0) as target, served(FakeNode(), KEYED) as asked:
        target.setblocking(False)
        with pytest.raises(ControlError, match="different keys"):
            client_of(asked, Access(OTHER)).reach(Target(HOST, target.getsockname()[1]))
        with pytest.raises(BlockingIOError):
            target.accept()


def test_a_node_makes_few_attempts_at_once() -> None:
    """Whoever asks for more is told to come again, so threads are left for the starter's requests."""
    timeouts = Timeouts(status_s=30.0)
    with contextlib.ExitStack() as stack:
        silent = stack.enter_context(listen(HOST, 0))
        port = stack.enter_context(served(FakeNode(), KEYED, timeouts))
        target = Target(HOST, silent.getsockname()[1])
        threads = [threading.Thread(target=_ignored, args=(port, target)) for _ in range(MAX_ATTEMPTS)]
        for thread in threads:
            thread.start()
        tried = [silent.accept()[0] for _ in threads]
        with pytest.raises(NodeBusy, match=f"{MAX_ATTEMPTS} attempts are under way"):
            client_of(port).reach(target)
        assert client_of(port).status() == IDLE
        for sock in tried:
            sock.close()
        for thread in threads:
            thread.join()


def _ignored(port: int, target: Target) -> None:
    with contextlib.suppress(Refused):
        client_of(port).reach(target)
