"""Where the members of a ring meet: as the nodes configuration says, or else as each of them tells when it is asked."""

from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass

from mdi import __version__
from mdi.config.network import NetworkConfig, NodeConfig, node_name
from mdi.control.client import ControlClient
from mdi.control.protocol import NotANode, Refused, WrongVersion
from mdi.control.status import NodeStatus, SecondaryStatus
from mdi.ids import NodeId
from mdi.net.sockets import Peer

STARTER = NodeId(0)


@dataclass(frozen=True)
class Location:
    """One member, as its neighbours have to know it."""

    addr: str
    ring_port: int
    starter_addr: str  # by which the member reaches the starter


class Locations:
    """Of one network, for one attempt at a ring: a node that was restarted may listen on another port.

    Each member's own thread calls `locate`; whoever needs to know where a member is waits for that.
    """

    def __init__(self, network: NetworkConfig) -> None:
        self._starter = network.nodes[STARTER]  # as the others see it
        self._found: Mapping[NodeId, Future[Location]] = {
            NodeId(node): self._known(config) for node, config in enumerate(network.nodes)
        }

    def _known(self, config: NodeConfig) -> "Future[Location]":
        """What the configuration says; still to come where the node is to be asked."""
        found: Future[Location] = Future()
        if not config.tells_ring_port:
            found.set_result(Location(config.addr, config.port_in, self._starter.addr))
        return found

    def locate(self, node: NodeId, ask: Callable[[], Location]) -> None:
        """Have a node asked, unless its place is known. Raises what `ask` raises, also where it is waited for."""
        found = self._found[node]
        if found.done():
            return
        try:
            found.set_result(ask())
        except BaseException as exc:
            found.set_exception(exc)
            raise

    def ring_peer(self, node: NodeId, *, seen_from: NodeId) -> Peer:
        """Where a node listens for its predecessor. Waits until that is known; raises why it will not be."""
        if node == STARTER:
            return Peer(node_name(node), self._found[seen_from].result().starter_addr, self._starter.port_in)
        location = self._found[node].result()
        return Peer(node_name(node), location.addr, location.ring_port)

    def starter(self, *, seen_from: NodeId) -> Peer:
        """Where the starter answers HTTP; otherwise as `ring_peer`."""
        return Peer(node_name(STARTER), self._found[seen_from].result().starter_addr, self._starter.http_port)


def ask_location(network: NetworkConfig, node: NodeId, client: ControlClient) -> Location:
    """What a secondary says of its place. Raises `ControlError`."""
    return location_in(client.status(), client, network.nodes[node], network.starter.addr)


def location_in(status: NodeStatus, client: ControlClient, config: NodeConfig, starter_addr: str) -> Location:
    """What a node's status says of its place. Raises `ControlError` where it is no secondary of this version."""
    if not isinstance(status, SecondaryStatus):
        raise Refused(f"{client.name} at {client.url} is a starter; a secondary is expected there")
    if status.version != __version__:
        raise WrongVersion(f"{client.name} at {client.url} runs version {status.version}, this node {__version__}")
    if status.ring_port is None:
        raise NotANode(f"{client.name} at {client.url} does not tell its ring port")
    if not config.is_called_by_address:
        return Location(config.addr, status.ring_port, starter_addr)
    return Location(status.called or config.addr, status.ring_port, status.caller or starter_addr)
