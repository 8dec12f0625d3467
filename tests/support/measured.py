"""Networks of nodes that were measured, with times that are easy to calculate with."""

from litgpt.config import Config

from mdi.cluster.network_times import NetworkTimes
from mdi.cluster.planner import LinkCosts
from mdi.cluster.ring_costs import Job
from mdi.config.network import NetworkConfig, NodeConfig
from mdi.control.measurement import HeadTime, LayerTime, StageTimes
from support.models import BASE

CONFIG = Config(**{**BASE, "n_layer": 12, "block_size": 2048})
JOB = Job(CONFIG, context=512, n_samples=2, max_rows=128, wire_dtype="float32")
NEAR, THIN = LinkCosts(1e-4, 1e9), LinkCosts(1e-4, 5e3)


def times_of(slowness: float, *, has_head: bool = False, free_bytes: int | None = None) -> StageTimes:
    """A node whose layers take a millisecond for each row, times `slowness`."""
    layers = tuple(LayerTime(rows, 128, slowness * rows * 1e-3) for rows in (1, 16))
    head = (HeadTime(1, 1e-3), HeadTime(16, 16e-3)) if has_head else ()
    return StageTimes("cpu", "float32", "none", None, 1, False, layers, head, 0.0, 0.0, None, None, free_bytes)


def network_with(*slowness: float, link: LinkCosts = NEAR) -> tuple[NetworkConfig, NetworkTimes]:
    nodes = tuple(NodeConfig(f"10.0.0.{i}", 1, 2, 3) for i in range(len(slowness)))
    times = tuple(times_of(s, has_head=i == 0) for i, s in enumerate(slowness))
    return NetworkConfig(nodes[0], nodes[1:]), NetworkTimes(times, [[link] * len(nodes)] * len(nodes))
