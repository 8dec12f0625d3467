"""Who is added to the nodes of a run, and who is not."""

import contextlib
import threading
from collections.abc import Iterator
from dataclasses import replace

import pytest

from mdi import __version__
from mdi.cluster.forecast import Costs
from mdi.cluster.measured_split import MeasuredSplit
from mdi.cluster.newcomers import Newcomers
from mdi.cluster.roster import Roster
from mdi.config.network import NetworkConfig, NodeConfig
from mdi.control.client import ControlClient
from mdi.control.join import JoinRequest
from mdi.control.measurement import StageTimes
from mdi.control.protocol import NodeBusy, Refused
from mdi.control.routes import ControlServer
from mdi.control.status import NodeState, NodeStatus
from mdi.errors import ControlError
from mdi.ids import NodeId
from mdi.net.access import THIS_MACHINE, Access
from mdi.net.keys import Key, Keys
from support.control import HOST, FakeNode
from support.measured import JOB, network_with, times_of
from support.scripts import free_ports, wait_until
from support.statuses import IDLE

KEYED = Access(Keys(Key("a key of more than sixteen characters", "test")), addrs=None)


class Node(FakeNode):
    """A secondary of this version."""

    def status(self) -> NodeStatus:
        return replace(IDLE, version=__version__)


class Measured(MeasuredSplit):
    """What is known of the nodes of a run; a new one has its times when a test lets it."""

    def __init__(self, costs: Costs | None = None) -> None:
        super().__init__(None)  # type: ignore[arg-type]
        self.costs, self.n_timed = costs, 0
        self.may_end, self.error = threading.Event(), ""

    def time_newcomer(self, network: NetworkConfig, client: ControlClient) -> StageTimes:
        self.n_timed += 1
        assert self.may_end.wait(60) and len(network.nodes) == 3
        if self.error:
            raise Refused(self.error)
        return times_of(2)


class Starter:
    """A run with one secondary, at port 8090."""

    def __init__(self, access: Access = KEYED, addr: str = HOST, measured: MeasuredSplit | None = None) -> None:
        nodes = (NodeConfig(HOST, 8088, 5000, 0, access=access), NodeConfig(addr, 8090, 0, 0, access=access))
        self.roster = Roster(NetworkConfig(nodes[0], nodes[1:]))
        self.state, self.added, self.left_out = NodeState.RUNNING, list[NodeId](), list[NodeId]()
        self.newcomers = Newcomers(
            self.roster,
            lambda: self.state,
            measured or Measured(),
            lambda node: node not in self.left_out,
            self.added.append,
        )

    def admit(self, port: int, addr: str = HOST) -> int:
        return self.newcomers.admit(JoinRequest(port), addr)


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    """Of a node that has the key."""
    yield from port_of_node()


@pytest.fixture(scope="module")
def another_port() -> Iterator[int]:
    yield from port_of_node()


def port_of_node() -> Iterator[int]:
    with contextlib.closing(ControlServer(HOST, 0, Node(), KEYED)) as server:
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


def test_a_node_that_the_plan_leaves_out_is_told_so() -> None:
    starter = Starter()
    starter.left_out.append(NodeId(1))
    with pytest.raises(Refused, match="this starter has planned its ring without secondary 0, which is faster"):
        starter.admit(8090)


def measured_network() -> Measured:
    return Measured(Costs(*network_with(1, 1), JOB))


def test_where_the_others_were_measured_a_new_node_is_too(port: int, another_port: int) -> None:
    starter = Starter(measured=(measured := measured_network()))
    for _ in range(2):
        with pytest.raises(NodeBusy, match="it is measured first: ask again later"):
            starter.admit(port)
    with pytest.raises(NodeBusy, match="another new node is being measured: ask again later"):
        starter.admit(another_port)
    assert (starter.added, measured.n_timed) == ([], 1)
    measured.may_end.set()
    wait_until(lambda: starter.added == [2], 60, "it is added")
    assert measured.costs is not None and measured.costs.has([0, 1, 2])
    assert measured.costs.network is starter.roster.network
    assert starter.admit(port) == 2


def test_a_node_that_cannot_be_measured_is_told_why_and_may_ask_again(port: int) -> None:
    starter = Starter(measured=(measured := measured_network()))
    measured.error = "no memory for a layer"
    measured.may_end.set()
    with pytest.raises(NodeBusy):
        starter.admit(port)
    wait_until(lambda: _refusal(starter, port) == "it cannot be measured: no memory for a layer", 60, "it is told")
    measured.error = ""
    wait_until(lambda: _refusal(starter, port) == "", 60, "it is added")
    assert starter.added == [2]


def _refusal(starter: Starter, port: int) -> str:
    try:
        starter.admit(port)
    except ControlError as exc:
        return str(exc)
    return ""


def test_a_run_that_ends_adds_no_node(port: int) -> None:
    starter = Starter(measured=(measured := measured_network()))
    with pytest.raises(NodeBusy):
        starter.admit(port)
    (thread,) = (thread for thread in threading.enumerate() if thread.name == "newcomer")
    starter.newcomers.close()
    measured.may_end.set()
    thread.join(60)
    assert not thread.is_alive() and starter.added == []


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
