"""The ring as those see it who watch it: a pure function of its plan and of what its nodes say of themselves."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from mdi.cluster.node_watch import NodeNews, Sighting
from mdi.cluster.plan import Plan
from mdi.config.network import NetworkConfig, node_name
from mdi.control.status import NodeStatus, StarterStatus
from mdi.engine.speed import Comparison
from mdi.engine.trips import Travelling
from mdi.ids import NodeId, Rank
from mdi.model.span import Span


@dataclass(frozen=True)
class Rates:
    """How a node spent its last seconds. Shares of the time: they add up to 1.

    A frame that passes a link while the node computes counts as computing.
    """

    compute: float
    transfer: float
    idle: float
    rows_per_s: float


@dataclass(frozen=True)
class NodeView:
    """A node of the network."""

    name: str
    rank: Rank | None  # None: it was left out of the ring
    span: Span | None
    address: str  # where it answers HTTP
    status: NodeStatus | None  # the last that it gave; None: it has never answered
    missing_s: float | None  # None: it answered when it was asked last, or has not been asked
    rates: Rates | None  # None: not known
    slowness: float | None = None  # time that it computed in the last minute, in times of what was measured

    @property
    def is_up(self) -> bool:
        """Whether it answered when it was asked last."""
        return self.status is not None and self.missing_s is None


@dataclass(frozen=True)
class RingView:
    """The ring at a moment."""

    epoch: int
    n_layers: int
    tokens_per_s: float  # of all samples, in the last seconds
    messages: Sequence[Travelling]
    nodes: Sequence[NodeView]  # by rank, then those that were left out
    speed: Comparison | None = None  # of the last minute of generation; None: nothing was predicted


def ring_view(
    network: NetworkConfig,
    plan: Plan,
    epoch: int,
    messages: Sequence[Travelling],
    news: Mapping[NodeId, NodeNews],
    now_s: float,
    speed: Comparison | None = None,
    slowness: Mapping[NodeId, float] | None = None,
) -> RingView:
    """Put together what is known; `news` are of every node of the network."""
    slowness = slowness or {}
    left_out = [node for node in news if node not in plan.members]
    return RingView(
        epoch,
        plan.spans[-1].stop,
        _tokens_per_s(news[NodeId(0)]),
        messages,
        [
            replace(_node_view(network, plan, node, news[node], now_s), slowness=slowness.get(node))
            for node in (*plan.members, *left_out)
        ],
        speed,
    )


def _node_view(network: NetworkConfig, plan: Plan, node: NodeId, news: NodeNews, now_s: float) -> NodeView:
    rank = Rank(plan.members.index(node)) if node in plan.members else None
    config, latest, since_s = network.nodes[node], news.latest, news.missing_since_s
    return NodeView(
        name=node_name(node),
        rank=rank,
        span=None if rank is None else plan.spans[rank],
        address=f"{config.addr}:{config.http_port}",
        status=None if latest is None else latest.status,
        missing_s=None if since_s is None else max(0.0, now_s - since_s),
        rates=None if news.earlier is None or latest is None else rates_between(news.earlier, latest),
    )


def rates_between(earlier: Sighting, later: Sighting) -> Rates | None:
    """What a node did between two moments; None where it does not say."""
    before, after, passed_s = earlier.status.work, later.status.work, later.at_s - earlier.at_s
    if before is None or after is None or passed_s <= 0:
        return None
    # The moments are those at which the answers arrived: what they told may be of a little more time than lies between.
    compute = min(1.0, (after.compute_s - before.compute_s) / passed_s)
    transfer = min(1.0 - compute, (after.transfer_s - before.transfer_s) / passed_s)
    return Rates(compute, transfer, 1.0 - compute - transfer, (after.rows - before.rows) / passed_s)


def _tokens_per_s(starter: NodeNews) -> float:
    if starter.earlier is None or starter.latest is None:
        return 0.0
    before, after = starter.earlier.status, starter.latest.status
    passed_s = starter.latest.at_s - starter.earlier.at_s
    if not isinstance(before, StarterStatus) or not isinstance(after, StarterStatus) or passed_s <= 0:
        return 0.0
    return (after.tokens - before.tokens) / passed_s
