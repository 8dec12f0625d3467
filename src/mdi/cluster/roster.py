"""The nodes of one run: those of its network, and those that joined it since."""

import threading
from collections.abc import Collection, Mapping
from dataclasses import replace

from mdi.config.network import NetworkConfig, NodeConfig, node_name
from mdi.control.client import ControlClient
from mdi.ids import NodeId
from mdi.net.timeouts import DEFAULT_TIMEOUTS, Timeouts


class Roster:
    """Nodes are added at the end and never removed, so a node keeps its number. Any thread may call it.

    What it holds is replaced and never changed: whoever has read `network` or `clients` has a consistent whole.
    """

    def __init__(self, network: NetworkConfig, timeouts: Timeouts = DEFAULT_TIMEOUTS) -> None:
        self.network, self.clients = network, clients_of(network, timeouts)
        self._timeouts = timeouts
        self._initial = frozenset(self.nodes)
        self._left_out: frozenset[NodeId] = frozenset()
        self._adding = threading.Lock()

    @property
    def nodes(self) -> tuple[NodeId, ...]:
        """All of them, the starter (0) first."""
        return tuple(map(NodeId, range(len(self.network.nodes))))

    @property
    def joined(self) -> tuple[NodeId, ...]:
        """Those that were not in the network at the start."""
        return tuple(node for node in self.nodes if node not in self._initial)

    def are_initial(self, members: Collection[NodeId]) -> bool:
        """Whether these are all nodes that were there at the start, and no others."""
        return self._initial == frozenset(members)

    def leave_out(self, nodes: Collection[NodeId]) -> None:
        """A plan does without these."""
        self._left_out = frozenset(nodes)

    def n_on_host(self, node: NodeId) -> int:
        """Nodes that share the cores of this one's machine: those that a plan does without leave theirs to it."""
        nodes = self.network.nodes
        return nodes_on_host(self.network, node) - sum(nodes[n].host == nodes[node].host for n in self._left_out)

    def network_with(self, config: NodeConfig) -> NetworkConfig:
        """What the network would be with a node more."""
        return replace(self.network, secondaries=(*self.network.secondaries, config))

    def add(self, config: NodeConfig) -> NodeId:
        """A node more, and a client for it."""
        with self._adding:
            node = NodeId(len(self.network.nodes))
            client = client_of(node, config, self.network, self._timeouts)
            self.clients = {**self.clients, node: client}
            self.network = self.network_with(config)
            return node


def nodes_on_host(network: NetworkConfig, node: NodeId) -> int:
    """Nodes of a network on the machine of one of them."""
    return sum(other.host == network.nodes[node].host for other in network.nodes)


def clients_of(network: NetworkConfig, timeouts: Timeouts = DEFAULT_TIMEOUTS) -> Mapping[NodeId, ControlClient]:
    """Of all secondaries, as the starter calls them."""
    secondaries = enumerate(network.secondaries, start=1)
    return {NodeId(node): client_of(NodeId(node), config, network, timeouts) for node, config in secondaries}


def client_of(
    node: NodeId, config: NodeConfig, network: NetworkConfig, timeouts: Timeouts = DEFAULT_TIMEOUTS
) -> ControlClient:
    """Of one secondary, as the starter of `network` calls it."""
    return ControlClient(
        node_name(node),
        config.addr,
        config.http_port,
        network.starter.access,
        timeouts,
        by_address=config.is_called_by_address,
    )
