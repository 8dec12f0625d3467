"""Nodes that ask for a place in a ring whose network does not have them."""

import logging
import threading
from collections.abc import Callable

from mdi import __version__
from mdi.cluster.roster import Roster, client_of
from mdi.config.network import NodeConfig, node_name
from mdi.control.join import JoinRequest
from mdi.control.protocol import NodeBusy, Refused
from mdi.control.status import NodeState, SecondaryStatus
from mdi.errors import ControlError
from mdi.ids import NodeId
from mdi.net.access import is_loopback, resolved
from mdi.net.timeouts import DEFAULT_TIMEOUTS, Timeouts

log = logging.getLogger(__name__)

MAX_NODES = 1000  # of a run, those included that have gone for good


class Newcomers:
    """Decides who is added to the roster. Called from HTTP threads. An answer takes seconds: the node is called back.

    What is added is asked now and then whether it is free, like a node that was left out, and then takes part.
    """

    def __init__(
        self,
        roster: Roster,
        state: Callable[[], NodeState],
        on_added: Callable[[NodeId], None],
        timeouts: Timeouts = DEFAULT_TIMEOUTS,
    ) -> None:
        """
        Args:
            state: of the run.
            on_added: told of each node that is added.
        """
        self._roster, self._state, self._on_added, self._timeouts = roster, state, on_added, timeouts
        self._adding = threading.Lock()

    def admit(self, request: JoinRequest, addr: str) -> NodeId:
        """The number of the node that asks from `addr`; nothing changes where it has one. Raises `ControlError`."""
        access = self._roster.network.starter.access
        if access.keys is None:
            raise Refused("a ring without a key takes no nodes but those of its configuration")
        if (known := self._known(addr, request.port)) is not None:
            return known
        if self._state() in (NodeState.STARTING, NodeState.FAILED):
            raise NodeBusy("the first ring is being formed: ask again later")
        if len(self._roster.nodes) >= MAX_NODES:
            raise Refused(f"this run has had {MAX_NODES} nodes, and takes no others")
        self._refuse_loopback(addr)
        config = NodeConfig(addr, request.port, 0, 0, access=access)
        self._check_reachable(config)
        with self._adding:  # the same node may have asked twice
            known = self._known(addr, request.port)
            return self._add(config) if known is None else known

    def _add(self, config: NodeConfig) -> NodeId:
        node = self._roster.add(config)
        self._on_added(node)
        log.warning("%s is new, at %s: it takes part when it is ready", node_name(node), self._roster.clients[node].url)
        return node

    def _known(self, addr: str, port: int) -> NodeId | None:
        same = (n for n in self._roster.nodes[1:] if self._roster.network.nodes[n].http_port == port)
        return next((n for n in same if addr in resolved(self._roster.network.nodes[n].addr)), None)

    def _refuse_loopback(self, addr: str) -> None:
        """To its neighbours on other machines, a loopback address would be their own."""
        others = [node.addr for node in self._roster.network.secondaries]
        if is_loopback(addr) and not all(map(is_loopback, others)):
            raise Refused(f"{addr} means this machine alone: ask by the address that the other nodes know")

    def _check_reachable(self, config: NodeConfig) -> None:
        """Raise `Refused` unless the node answers this starter as it will have to."""
        client = client_of(NodeId(len(self._roster.nodes)), config, self._roster.network, self._timeouts)
        try:
            status = client.status()
        except ControlError as exc:
            raise Refused(f"this starter cannot ask the node back: {exc}") from exc
        if not isinstance(status, SecondaryStatus) or status.version != __version__:
            raise Refused(f"at {client.url} is no secondary of version {__version__}")
