"""What was measured, and the memory that nodes have -> what the planner calculates with. Arithmetic only."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from mdi.checkpoint.chunks import UNKNOWN_FORM, StoredForm
from mdi.cluster.budget import Need, NodeFacts, need_of, usable_bytes
from mdi.cluster.network_times import NetworkTimes
from mdi.cluster.planner import Curve, NodeCosts, Workload
from mdi.config.network import NetworkConfig, node_name
from mdi.control.measurement import StageTimes
from mdi.model.architecture import ModelConfig
from mdi.model.span import Span
from mdi.model.tensors import TORCH_DTYPES
from mdi.ring.wire import DTYPE_BYTES


@dataclass(frozen=True)
class Job:
    """What a ring is planned for."""

    config: ModelConfig
    context: int  # positions per slot
    n_samples: int  # expected at once; each has a slot
    max_rows: int  # of a message
    wire_dtype: str
    stored: StoredForm = UNKNOWN_FORM  # of the weights in the model's file

    @property
    def workload(self) -> Workload:
        """As the planner takes it."""
        return Workload(self.config.n_layer, self.config.n_embd * DTYPE_BYTES[self.wire_dtype], self.n_samples)


def costs_of(network: NetworkConfig, times: NetworkTimes, job: Job) -> list[NodeCosts]:
    """The costs of each node, by its id. A node with share 2 counts as twice as fast as it was measured."""
    places = [(node.host, measured.device) for node, measured in zip(network.nodes, times.nodes, strict=True)]
    return [
        NodeCosts(
            name=node_name(index),
            layer=layer_curve(measured, job.context, node.share),
            head=Curve.measured(measured.head or ((1, 0.0),)),
            message_s=measured.message_s + measured.frame_s,
            max_layers=min(
                max_layers(measured, job, has_ends=index == 0, n_sharing=places.count(places[index])),
                node.max_layers or job.config.n_layer,
            ),
        )
        for index, (node, measured) in enumerate(zip(network.nodes, times.nodes, strict=True))
    ]


def layer_curve(times: StageTimes, context: int, share: float = 1.0) -> Curve:
    """Seconds of a layer for sequences of `context` positions, on a node of that share of the work."""
    return Curve.measured((rows, seconds / share) for rows, seconds in layer_points(times, context))


def layer_points(times: StageTimes, context: int) -> list[tuple[int, float]]:
    """Rows and seconds of a layer for sequences of `context` positions."""
    by_rows: dict[int, list[tuple[int, float]]] = {}
    for time in times.layers:
        by_rows.setdefault(time.rows, []).append((time.context, time.seconds))
    return [(rows, Curve.measured(by_rows[rows]).at(context)) for rows in sorted(by_rows)]


def max_layers(times: StageTimes, job: Job, *, has_ends: bool, n_sharing: int) -> int:
    """How many layers fit into a node's memory, with a slot for each sample.

    `n_sharing` nodes draw on the same memory, of which each gets as much.
    """
    free_bytes = times.free_memory_bytes
    room_bytes = usable_bytes(free_bytes and free_bytes / n_sharing, times.memory_limit_bytes)
    if room_bytes == math.inf:
        return int(job.config.n_layer)
    ends, layer = _needs(times, job, has_ends)
    fixed = ends.weights + ends.message
    return max(0, math.floor((room_bytes - fixed) / (layer.weights + job.n_samples * layer.slot)))


def memory_bytes(times: StageTimes, job: Job, n_layers: int, *, has_ends: bool) -> int:
    """What so many layers take of a node's memory, slots included."""
    ends, layer = _needs(times, job, has_ends)
    return ends.weights + ends.message + n_layers * (layer.weights + job.n_samples * layer.slot)


def _needs(times: StageTimes, job: Job, has_ends: bool) -> tuple[Need, Need]:
    """Of a node without layers, and of a layer alone. Where layers are of several kinds, of the average one."""
    n_layer = job.config.n_layer
    ends, layers = _need(times, job, Span(0, 0), has_ends), _need(times, job, Span(0, n_layer), False)
    return ends, Need(layers.weights // n_layer, layers.slot // n_layer, 0)


def _need(times: StageTimes, job: Job, span: Span, has_ends: bool) -> Need:
    dtype = TORCH_DTYPES[times.dtype]
    node = NodeFacts(
        "", "", times.device, dtype, times.mode, times.free_memory_bytes, times.has_kernels, times.kv_dtype
    )
    return need_of(
        node, job.config, span, has_ends=has_ends, context=job.context, max_rows=job.max_rows, stored=job.stored
    )


def missing_bytes(times: Sequence[StageTimes], job: Job, n_missing_layers: int) -> int:
    """The memory that so many layers take on the node that needs least for them."""
    layers = [_needs(node, job, False)[1] for node in times]
    return n_missing_layers * min(layer.weights + job.n_samples * layer.slot for layer in layers)


def message_bytes(job: Job, times: Sequence[StageTimes]) -> int:
    """What the largest message takes on a node, whichever needs most for it."""
    return max(_needs(node, job, False)[0].message for node in times)
