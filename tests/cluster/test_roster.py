"""The nodes of one run."""

from mdi.cluster.roster import Roster
from mdi.config.network import NetworkConfig, NodeConfig
from mdi.ids import NodeId


def test_a_node_that_a_plan_does_without_leaves_its_cores_to_the_others_of_its_machine() -> None:
    here, there = NodeConfig("127.0.0.1", 1, 2, 3), NodeConfig("10.0.0.9", 1, 2, 3)
    roster = Roster(NetworkConfig(here, (here, there, here)))
    assert [roster.n_on_host(node) for node in roster.nodes] == [3, 3, 1, 3]
    roster.leave_out([NodeId(2), NodeId(3)])
    assert [roster.n_on_host(NodeId(node)) for node in (0, 1)] == [2, 2]
    roster.add(here)
    assert roster.n_on_host(NodeId(4)) == 3
