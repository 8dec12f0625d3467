"""Nodes that ask for a place in a ring whose network does not have them."""

import logging
import threading
from collections.abc import Callable

from mdi import __version__
from mdi.cluster.measured_split import MeasuredSplit
from mdi.cluster.roster import Roster, client_of
from mdi.config.network import NodeConfig, node_name
from mdi.control.client import ControlClient
from mdi.control.join import JoinRequest
from mdi.control.measurement import StageTimes
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

    Where the nodes of the ring were measured, a new one is too, in a thread of its own, and is added after that: it
    asks again meanwhile. What is added is asked now and then whether it is free, like a node that was left out, and
    then takes part.
    """

    def __init__(
        self,
        roster: Roster,
        state: Callable[[], NodeState],
        measured: MeasuredSplit,
        may_take_part: Callable[[NodeId], bool],
        on_added: Callable[[NodeId], None],
        timeouts: Timeouts = DEFAULT_TIMEOUTS,
    ) -> None:
        """
        Args:
            state: of the run.
            measured: what is known of the nodes in the roster; of each that is added, if anything is.
            may_take_part: of a node in the roster; not one that the plan leaves out.
            on_added: told of each node that is added.
        """
        self._roster, self._state, self._measured = roster, state, measured
        self._may_take_part, self._on_added, self._timeouts = may_take_part, on_added, timeouts
        self._changing = threading.Lock()  # held for moments, also by the thread that measures
        self._timed: NodeConfig | None = None  # that is being measured: one at a time, so that they keep their order
        self._failed: tuple[NodeConfig, ControlError] | None = None  # the latest that could not, until it asks again
        self._is_closed = False

    def close(self) -> None:
        """Add no more nodes. One that is being measured is not waited for."""
        with self._changing:
            self._is_closed = True

    def admit(self, request: JoinRequest, addr: str) -> NodeId:
        """The number of the node that asks from `addr`; nothing changes where it has one. Raises `ControlError`."""
        access = self._roster.network.starter.access
        if access.keys is None:
            raise Refused("a ring without a key takes no nodes but those of its configuration")
        if (known := self._known(addr, request.port)) is not None:
            if not self._may_take_part(known):
                raise Refused(f"this starter has planned its ring without {node_name(known)}, which is faster")
            return known
        if self._state() in (NodeState.STARTING, NodeState.FAILED):
            raise NodeBusy("the first ring is being formed: ask again later")
        if len(self._roster.nodes) >= MAX_NODES:
            raise Refused(f"this run has had {MAX_NODES} nodes, and takes no others")
        self._refuse_loopback(addr)
        config = NodeConfig(addr, request.port, 0, 0, access=access)
        self._check_reachable(config)
        with self._changing:
            if (known := self._known(addr, request.port)) is not None:  # it may have asked twice
                return known
            if self._measured.costs is None:
                return self._add(config, None)
            self._raise_failure_of(config)
            self._begin_timing(config)
        raise NodeBusy("it is measured first: ask again later")

    def _raise_failure_of(self, config: NodeConfig) -> None:
        """Once: when the node asks again, it is measured again."""
        if self._failed is not None and self._failed[0] == config:
            (_, error), self._failed = self._failed, None
            raise error

    def _begin_timing(self, config: NodeConfig) -> None:
        if self._timed not in (None, config):
            raise NodeBusy("another new node is being measured: ask again later")
        if self._timed is None:
            self._timed = config
            threading.Thread(target=self._time, args=(config,), name="newcomer", daemon=True).start()

    def _time(self, config: NodeConfig) -> None:
        network = self._roster.network_with(config)
        client = self._client(config)
        log.warning("measuring %s, which asks for a place in the ring", client.url)
        try:
            times = self._measured.time_newcomer(network, client)
            with self._changing:
                if not self._is_closed:
                    self._add(config, times)
        except ControlError as exc:
            with self._changing:
                self._failed = (config, Refused(f"it cannot be measured: {exc}"))
        finally:  # another one may ask
            with self._changing:
                self._timed = None

    def _add(self, config: NodeConfig, times: StageTimes | None) -> NodeId:
        node = self._roster.add(config)
        if times is not None:
            self._measured.add(self._roster.network, times)
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
        client = self._client(config)
        try:
            status = client.status()
        except ControlError as exc:
            raise Refused(f"this starter cannot ask the node back: {exc}") from exc
        if not isinstance(status, SecondaryStatus) or status.version != __version__:
            raise Refused(f"at {client.url} is no secondary of version {__version__}")

    def _client(self, config: NodeConfig) -> ControlClient:
        return client_of(NodeId(len(self._roster.nodes)), config, self._roster.network, self._timeouts)
