"""Who is added to the nodes of a run, and who is not."""

import contextlib
from collections.abc import Iterator
from dataclasses import replace

import pytest

from mdi import __version__
from mdi.cluster.newcomers import Newcomers
from mdi.cluster.roster import Roster
from mdi.config.network import NetworkConfig, NodeConfig
from mdi.control.join import JoinRequest
from mdi.control.protocol import NodeBusy, Refused
from mdi.control.routes import ControlServer
from mdi.control.status import NodeState, NodeStatus
from mdi.ids import NodeId
from mdi.net.access import THIS_MACHINE, Access
from mdi.net.keys import Key, Keys
from support.control import HOST, FakeNode
from support.scripts import free_ports
from support.statuses import IDLE

KEYED = Access(Keys(Key("a key of more than sixteen characters", "test")), addrs=None)


class Node(FakeNode):
    """A secondary of this version."""

    def status(self) -> NodeStatus:
        return replace(IDLE, version=__version__)


class Starter:
    """A run with one secondary, at port 8090."""

    def __init__(self, access: Access = KEYED, addr: str = HOST) -> None:
        nodes = (NodeConfig(HOST, 8088, 5000, 0, access=access), NodeConfig(addr, 8090, 0, 0, access=access))
        self.roster = Roster(NetworkConfig(nodes[0], nodes[1:]))
        self.state, self.added = NodeState.RUNNING, list[NodeId]()
        self.newcomers = Newcomers(self.roster, lambda: self.state, self.added.append)

    def admit(self, port: int, addr: str = HOST) -> int:
        return self.newcomers.admit(JoinRequest(port), addr)


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    """Of a node that has the key."""
    server = ControlServer(HOST, 0, Node(), KEYED)
    with contextlib.closing(server):
        server.start()
        yield server.port


def test_a_node_is_added_once(port: int) -> None:
    starter = Starter()
    assert starter.admit(port) == starter.admit(port) == 2
    assert starter.added == [2]
    assert starter.roster.nodes == (0, 1, 2) and starter.roster.joined == (2,)
    assert starter.roster.network.nodes[2] == replace(starter.roster.network.nodes[1], http_port=port)
    assert starter.roster.clients[NodeId(2)].status() is not None


def test_a_node_of_the_network_keeps_its_number() -> None:
    starter = Starter(addr="localhost")
    assert starter.admit(8090) == 1
    assert starter.added == [] and starter.roster.joined == ()


def test_the_first_ring_is_of_the_nodes_that_the_user_named(port: int) -> None:
    starter = Starter()
    starter.state = NodeState.STARTING
    with pytest.raises(NodeBusy, match="the first ring is being formed: ask again later"):
        starter.admit(port)


def test_without_a_key_nobody_is_added(port: int) -> None:
    with pytest.raises(Refused, match="a ring without a key takes no nodes but those of its configuration"):
        Starter(THIS_MACHINE).admit(port)


def test_a_node_that_cannot_be_asked_back_is_refused() -> None:
    (nobody,) = free_ports(1)
    starter = Starter()
    with pytest.raises(Refused, match=f"cannot ask the node back: secondary 1 at http://{HOST}:{nobody} cannot be"):
        starter.admit(nobody)
    assert starter.added == [] and len(starter.roster.nodes) == 2


def test_a_loopback_address_is_of_no_use_to_other_machines(port: int) -> None:
    with pytest.raises(Refused, match=r"127\.0\.0\.1 means this machine alone"):
        Starter(addr="192.0.2.7").admit(port)


def test_the_number_of_nodes_has_a_bound(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mdi.cluster.newcomers.MAX_NODES", 2)
    with pytest.raises(Refused, match="this run has had 2 nodes, and takes no others"):
        Starter().admit(port)
