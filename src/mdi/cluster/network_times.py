"""Measures the nodes of a network for a model, and the links between them."""

import functools
import itertools
import logging
import secrets
import socket
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TypeVar

from mdi.checkpoint.chunks import dtype_of
from mdi.checkpoint.config import config_to_dict
from mdi.checkpoint.folder import ModelFolder
from mdi.checkpoint.weights import whole_model
from mdi.cluster.link_probe import LinkProbe
from mdi.cluster.locations import Locations, ask_location
from mdi.cluster.node_meter import NodeMeter
from mdi.cluster.planner import LinkCosts, Links
from mdi.cluster.rendezvous import Call, await_calls, begin_call
from mdi.cluster.roster import nodes_on_host
from mdi.config.network import NetworkConfig, node_name
from mdi.control.client import ControlClient
from mdi.control.measurement import LinkRequest, LinkTimes, Measured, MeasureRequest, StageRequest, StageTimes
from mdi.control.protocol import NodeBusy, Refused
from mdi.errors import ConfigError, ControlError
from mdi.formats import KvDtype, Mode
from mdi.ids import NodeId, Rank
from mdi.inbox import Inbox
from mdi.net.refusals import RefusalLog
from mdi.net.timeouts import DEFAULT_TIMEOUTS, Timeouts
from mdi.strings import count

log = logging.getLogger(__name__)
T = TypeVar("T")

_NO_LINK = LinkCosts(0.0, 1e12)  # from a node to itself
_NO_RUN = 0  # that a node can be asked to give up


@dataclass(frozen=True)
class NetworkTimes:
    """What was measured of each node, by its id, and of each link, [from][to]."""

    nodes: tuple[StageTimes, ...]
    links: Links
    alone: StageTimes | None = None  # of the starter without the others of its machine, where there are some

    def of_starter(self) -> "NetworkTimes":
        """Of a ring of the starter alone."""
        starter, alone = self.nodes[0], self.alone
        if alone is not None:
            starter = replace(starter, layers=alone.layers, head=alone.head, message_s=alone.message_s)
        return NetworkTimes((replace(starter, frame_s=0.0),), [[_NO_LINK]])

    def held_as(self, mode: Mode) -> "NetworkTimes":
        """The same with weights in another mode: for arithmetic on memory, not on time."""
        return replace(self, nodes=tuple(replace(node, mode=mode) for node in self.nodes))

    def slowed(self, slowness: Mapping[NodeId, float]) -> "NetworkTimes":
        """The same with nodes that take so many times as long."""
        factors = [slowness.get(NodeId(i), 1.0) for i in range(len(self.nodes))]
        nodes = tuple(times.slowed(factor) for times, factor in zip(self.nodes, factors, strict=True))
        return replace(self, nodes=nodes, alone=self.alone and self.alone.slowed(factors[0]))

    def with_node(self, times: StageTimes) -> "NetworkTimes":
        """The same with a node more, whose links are like the slowest of the others."""
        known = [link for i, row in enumerate(self.links) for j, link in enumerate(row) if i != j]
        link = LinkCosts(max(each.latency_s for each in known), min(each.bytes_s for each in known))
        links = [[*row, link] for row in self.links]
        return replace(self, nodes=(*self.nodes, times), links=[*links, [link] * len(self.nodes) + [_NO_LINK]])

    def with_limit(self, node: int, limit_bytes: int | None) -> "NetworkTimes":
        """The same with another limit of the memory that a node may take."""
        limited = replace(self.nodes[node], memory_limit_bytes=limit_bytes)
        return replace(self, nodes=(*self.nodes[:node], limited, *self.nodes[node + 1 :]))

    def without_limits(self) -> "NetworkTimes":
        """The same, where nodes may take all of their free memory."""
        return replace(self, nodes=tuple(replace(node, memory_limit_bytes=None) for node in self.nodes))


def request_for(
    model: ModelFolder,
    n_nodes: int,
    dtype: str | None,
    quantize: Mode | None,
    kv_dtype: KvDtype | None,
    *,
    again: bool = False,
) -> StageRequest:
    """What a secondary of a ring of so many nodes is asked to time, if it has its machine for itself."""
    return StageRequest(
        config=config_to_dict(model.config),
        stored_dtype=model.stored(n_nodes).dtype or dtype_of(whole_model(model.path, quantize)),
        stored=model.stored_mode(n_nodes, quantize),
        dtype=dtype,
        quantize=quantize,
        kv_dtype=kv_dtype,
        has_head=False,
        nodes_on_host=1,
        again=again,
    )


def measure_alone(network: NetworkConfig, node: NodeId, client: ControlClient, request: StageRequest) -> StageTimes:
    """Time one secondary while the others of `network` do what they do. Any thread may call it.

    Args:
        request: of a secondary that has its machine for itself.

    Raises `ControlError` where it does not answer, refuses or fails.
    """
    times = _times_of(network, node, client.measure(_request_on(network, node, request)))
    if nodes_on_host(network, node) > 1:
        client.release(_NO_RUN)
    return times


class NetworkMeter:
    """Measures a network from its starter. Called from one thread, which owns the inbox."""

    def __init__(
        self,
        network: NetworkConfig,
        clients: Mapping[NodeId, ControlClient],
        meter: NodeMeter,
        listener: socket.socket | None,
        inbox: Inbox,
        refusals: RefusalLog | None = None,
        timeouts: Timeouts = DEFAULT_TIMEOUTS,
    ) -> None:
        """
        Args:
            clients: of all secondaries.
            meter: of the starter.
            listener: where the starter waits for its predecessor; None on a network of one.
        """
        self._network, self._clients, self._meter = network, clients, meter
        self._listener, self._inbox, self._timeouts = listener, inbox, timeouts
        self._refusals = refusals or RefusalLog()
        self._locations = Locations(network)

    def measure(self, request: StageRequest, wire_dtype: str) -> NetworkTimes:
        """Time all nodes at once, as they will compute, and then one link after the other.

        Where others share the starter's machine, it is timed alone as well: perhaps it is faster without them.

        Args:
            request: of a secondary that has its machine for itself.

        Raises `ControlError` that names a node which does not answer, refuses or fails, `RingError` one which cannot
        be reached over the ring, `ConfigError` where the starter has too little memory.
        """
        n_nodes = len(self._network.nodes)
        log.warning("measuring %s and the links between them, some ten seconds", count(n_nodes, "node"))
        nodes, alone = self._nodes(request), self._alone(request)
        self._locate()
        links = [[_NO_LINK] * n_nodes for _ in range(n_nodes)]
        for one, other in itertools.combinations(range(n_nodes), 2):
            times = self._link(NodeId(one), NodeId(other), request.config["n_embd"], wire_dtype)
            # Both nodes have received and sent in that time, which counts as theirs.
            latency_s = max(0.0, times.round_trip_s - nodes[one].frame_s - nodes[other].frame_s) / 2
            links[one][other] = LinkCosts(latency_s, times.bytes_s)
            links[other][one] = LinkCosts(latency_s, times.back_bytes_s)
        return NetworkTimes(nodes, links, alone)

    def held_as(self, mode: Mode, request: StageRequest, times: NetworkTimes) -> NetworkTimes:
        """The network that `times` are of, with quantized weights. A node that cannot hold them so keeps its times.

        Raises as `measure` does.
        """
        log.warning("measuring the same with %s weights", mode)
        nodes = self._nodes(replace(request, quantize=mode), otherwise=times)
        # What was free before: a node of the same machine may not have freed yet what it was timed with last.
        free = [node.free_memory_bytes for node in times.nodes]
        return replace(
            times, nodes=tuple(replace(node, free_memory_bytes=n) for node, n in zip(nodes, free, strict=True))
        )

    def _nodes(self, request: StageRequest, *, otherwise: NetworkTimes | None = None) -> tuple[StageTimes, ...]:
        """The times of all nodes, by id; `otherwise` has those of nodes that refuse."""
        calls = {
            node: begin_call(self._inbox, self._timed, node, _request_on(self._network, node, request), otherwise)
            for node in self._clients
        }
        own = self._timed(NodeId(0), _request_on(self._network, NodeId(0), request), otherwise)
        beside = [call.future for node, call in calls.items() if _is_beside_starter(self._network, node)]
        self._meter.keep_busy(lambda: not all(future.done() for future in beside))
        await_calls(list(calls.values()), self._inbox)
        self._let_rest(calls)
        return (own, *(calls[node].future.result() for node in sorted(calls)))

    def _alone(self, request: StageRequest) -> StageTimes | None:
        """The times of the starter while the others rest; None where it has its machine for itself anyway."""
        if not any(_is_beside_starter(self._network, node) for node in self._clients):
            return None
        return self._meter.measure(replace(request, has_head=True, nodes_on_host=1))

    def _let_rest(self, nodes: Iterable[NodeId]) -> None:
        """All have their times: those that share a machine no longer have to compute beside each other.

        Any event ends that. This one means nothing else to a node that is idle.
        """
        sharing = [node for node in nodes if nodes_on_host(self._network, node) > 1]
        calls = [begin_call(self._inbox, self._clients[node].release, _NO_RUN) for node in sharing]
        await_calls(calls, self._inbox)

    def _timed(self, node: NodeId, request: StageRequest, otherwise: NetworkTimes | None) -> StageTimes:
        """The times of one node, of a secondary in a thread of its own."""
        try:
            measure = self._clients[node].measure if node else self._meter.measure
            return _times_of(self._network, node, measure(request))
        except (ConfigError, Refused) as exc:
            if otherwise is None or isinstance(exc, NodeBusy):
                raise
            log.warning("%s keeps its weights as they are: %s", node_name(node), exc)
            return otherwise.nodes[node]

    def _locate(self) -> None:
        """Ask those nodes for their ring ports that have not been given one."""
        for node in self._clients:
            self._locations.locate(node, functools.partial(ask_location, self._network, node, self._clients[node]))

    def _link(self, one: NodeId, other: NodeId, n_embd: int, wire_dtype: str) -> LinkTimes:
        """Of a link that `one` times and `other` echoes on."""
        request = LinkRequest(
            secrets.randbits(63), Rank(0), self._locations.ring_peer(other, seen_from=one), n_embd, wire_dtype
        )
        back = self._locations.ring_peer(one, seen_from=other)
        self._ask(other, replace(request, rank=Rank(1), peer=back))
        if one:
            return _expected(LinkTimes, one, self._ask(one, request))
        with self._probe(request) as probe:
            return probe.times()

    def _ask(self, node: NodeId, request: LinkRequest) -> Measured:
        call = self._call(node, request)
        await_calls([call], self._inbox)
        return call.future.result()

    def _call(self, node: NodeId, request: MeasureRequest) -> Call[Measured]:
        return begin_call(self._inbox, self._clients[node].measure, request)

    def _probe(self, request: LinkRequest) -> LinkProbe:
        assert self._listener is not None, "a network of several nodes has links"
        starter = self._network.starter
        return LinkProbe(
            request,
            listener=self._listener,
            inbox=self._inbox,
            access=starter.access,
            source_port=starter.port_out,
            refusals=self._refusals,
            timeouts=self._timeouts,
        )


def _request_on(network: NetworkConfig, node: NodeId, request: StageRequest) -> StageRequest:
    """What this node is asked to time; `request` is of a secondary that has its machine for itself."""
    sharing = nodes_on_host(network, node)
    # Nodes beside the starter time a head as well: they would leave it the memory of their machine meanwhile, which
    # they do not do in a ring.
    return replace(request, has_head=_is_beside_starter(network, node), nodes_on_host=sharing)


def _is_beside_starter(network: NetworkConfig, node: NodeId) -> bool:
    """Also of the starter itself."""
    return network.nodes[node].host == network.starter.host


def _times_of(network: NetworkConfig, node: NodeId, answer: Measured) -> StageTimes:
    times = _expected(StageTimes, node, answer)
    # A limit that the node was not started with may be in the starter's configuration.
    return replace(times, memory_limit_bytes=times.memory_limit_bytes or network.nodes[node].memory_limit_bytes)


def _expected(kind: type[T], node: NodeId, answer: Measured) -> T:
    if not isinstance(answer, kind):
        raise ControlError(f"{node_name(node)} did not answer what it was asked to measure")
    return answer
