"""What each node has done and holds, and how fast their ring is, for Prometheus: asked when the counters are."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from mdi.cluster.ring_view import NodeView, RingView
from mdi.control.status import NodeStatus
from mdi.serve.served_ring import ServedRing
from mdi.work import Work

LABELS = ("node",)


@dataclass(frozen=True)
class _Family:
    name: str
    help: str
    value: Callable[[NodeStatus], float | None]
    kind: type[CounterMetricFamily | GaugeMetricFamily] = GaugeMetricFamily


def _of_work(value: Callable[[Work], float]) -> Callable[[NodeStatus], float | None]:
    return lambda status: None if status.work is None else value(status.work)


_FAMILIES = (
    _Family("mdi_node_compute_seconds", "Time computing", _of_work(lambda work: work.compute_s), CounterMetricFamily),
    _Family(
        "mdi_node_transfer_seconds",
        "Time in which frames passed the node's links, also while it computed",
        _of_work(lambda work: work.transfer_s),
        CounterMetricFamily,
    ),
    _Family("mdi_node_idle_seconds", "Time without work", _of_work(lambda work: work.idle_s), CounterMetricFamily),
    _Family("mdi_node_rows", "Rows computed", _of_work(lambda work: work.rows), CounterMetricFamily),
    _Family("mdi_node_waiting_messages", "Messages that wait at the node", lambda status: status.waiting),
    _Family("mdi_node_memory_bytes", "Resident memory", lambda status: status.memory_bytes),
    _Family("mdi_node_peak_memory_bytes", "The most it has been", lambda status: status.peak_memory_bytes),
    _Family("mdi_node_weights_bytes", "What the loaded weights hold", lambda status: status.weights_bytes),
    _Family("mdi_node_cache_bytes", "What the slots take, filled or not", lambda status: status.cache_bytes),
)


class NodeMetrics(Collector):
    """The metrics of all nodes, labelled with their names. A node that does not answer has `mdi_node_up` alone."""

    def __init__(self, ring: ServedRing) -> None:
        self._ring = ring

    def collect(self) -> Iterator[Metric]:
        view = self._ring.view()
        nodes = view.nodes
        up = GaugeMetricFamily("mdi_node_up", "Whether the node answers", labels=LABELS)
        for node in nodes:
            up.add_metric([node.name], float(node.is_up))
        yield up
        yield from (_collected(family, nodes) for family in _FAMILIES)
        yield from _speed_of(view)


def _speed_of(view: RingView) -> Iterator[Metric]:
    """What was predicted, and what came of it, where there is a prediction."""
    slowness = GaugeMetricFamily(
        "mdi_node_slowness", "Time that it computed in the last minute, in times of what was measured", labels=LABELS
    )
    for node in view.nodes:
        if node.slowness is not None:
            slowness.add_metric([node.name], node.slowness)
    yield slowness
    predicted = GaugeMetricFamily(
        "mdi_predicted_tokens_per_second", "Next tokens, as predicted for the last minute of generation"
    )
    reached = GaugeMetricFamily("mdi_reached_tokens_per_second", "Next tokens, in the last minute of generation")
    if view.speed is not None:
        predicted.add_metric([], view.speed.predicted)
        reached.add_metric([], view.speed.reached)
    yield from (predicted, reached)


def _collected(family: _Family, nodes: Sequence[NodeView]) -> Metric:
    metric = family.kind(family.name, family.help, labels=LABELS)
    for node in nodes:
        if node.is_up and node.status is not None and (value := family.value(node.status)) is not None:
            metric.add_metric([node.name], value)
    return metric
