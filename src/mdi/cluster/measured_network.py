"""A network measured for one model and one use of it: at once, or as it was measured before."""

import json
import logging
import socket
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from mdi import __version__
from mdi.checkpoint.config import config_to_dict
from mdi.checkpoint.folder import ModelFolder
from mdi.cluster.forecast import Costs
from mdi.cluster.network_times import NetworkMeter, NetworkTimes, measure_alone, request_for
from mdi.cluster.node_meter import NodeMeter
from mdi.cluster.planner import LinkCosts
from mdi.cluster.ring_costs import Job
from mdi.config.network import NetworkConfig
from mdi.control.client import ControlClient
from mdi.control.measurement import StageRequest, StageTimes
from mdi.documents import read_json
from mdi.errors import ControlError, StorageError
from mdi.files import write_text
from mdi.formats import BackendChoice, KvDtype, Mode, allowed_modes
from mdi.ids import NodeId
from mdi.inbox import Inbox
from mdi.model.devices import pick_dtype
from mdi.model.tensors import dtype_name
from mdi.net.refusals import RefusalLog
from mdi.net.timeouts import DEFAULT_TIMEOUTS, Timeouts
from mdi.strings import digest_of

log = logging.getLogger(__name__)

_MAX_FILE_BYTES = 16 << 20  # a hundred nodes have ten thousand links


@dataclass(frozen=True)
class MeasuredNetwork:
    """What is known of a network from its starter. `measure` is called from one thread, which owns the inbox."""

    network: NetworkConfig
    model: ModelFolder
    device: torch.device  # of the starter
    context: int
    n_samples: int
    max_rows: int
    dtype: str | None = None
    quantize: Mode | None = None
    kv_dtype: KvDtype | None = None
    allow_quantize: Mode | None = None  # the least exact mode that a plan may choose for a node
    backend: BackendChoice = "auto"
    memory_limit_bytes: int | None = None  # of the starter
    folder: Path | None = None  # where measurements are kept; None: nowhere

    def measure(
        self,
        clients: Mapping[NodeId, ControlClient],
        listener: socket.socket | None,
        inbox: Inbox,
        refusals: RefusalLog | None = None,
        timeouts: Timeouts = DEFAULT_TIMEOUTS,
        *,
        again: bool = False,
    ) -> Costs:
        """Time all nodes and links. Raises as `NetworkMeter.measure` does, and `Stopped` as the inbox."""
        meter = NodeMeter(
            self.device,
            self.dtype,
            self.quantize,
            self.kv_dtype,
            self.backend,
            folder=self.folder,
            memory_limit_bytes=self.memory_limit_bytes,
            tick=inbox.check,
        )
        network_meter = NetworkMeter(self.network, clients, meter, listener, inbox, refusals, timeouts)
        request = self._request(again=again)
        times = network_meter.measure(request, self._wire_dtype)
        self._keep(times)
        alternatives = [network_meter.held_as(mode, request, times) for mode in self._modes(request.stored)]
        return replace(self._costs(times), alternatives=tuple(alternatives))

    def measure_newcomer(self, network: NetworkConfig, client: ControlClient) -> StageTimes:
        """Time the last node of `network`, beside a ring that works. Any thread may call it. Raises `ControlError`."""
        return measure_alone(network, NodeId(len(network.nodes) - 1), client, self._request())

    def _modes(self, stored: Mode) -> Sequence[Mode]:
        """How nodes may hold weights otherwise than as they are stored."""
        if self.allow_quantize is None:
            return ()
        if stored != "none":
            log.warning("--allow-quantize changes nothing: the weights of %s are %s already", self.model.name, stored)
            return ()
        return allowed_modes(self.allow_quantize)

    def known(self) -> Costs | None:
        """What was measured before, from here; None where nothing was, or nothing that can be used."""
        path = self._path()
        if path is None or not path.is_file():
            return None
        try:
            return self._costs(_times_from(read_json(path, _MAX_FILE_BYTES, StorageError)))
        except (StorageError, ControlError) as exc:
            log.info("what was measured of this network cannot be used: %s", exc)
            return None

    def _request(self, *, again: bool = False) -> StageRequest:
        n_nodes = len(self.network.nodes)
        return request_for(self.model, n_nodes, self.dtype, self.quantize, self.kv_dtype, again=again)

    @property
    def _wire_dtype(self) -> str:
        return dtype_name(pick_dtype(self.dtype, self.device))

    def _costs(self, times: NetworkTimes) -> Costs:
        stored = self.model.stored(len(self.network.nodes))
        job = Job(self.model.config, self.context, self.n_samples, self.max_rows, self._wire_dtype, stored)
        return Costs(self.network, times, job)

    def _keep(self, times: NetworkTimes) -> None:
        if (path := self._path()) is None:
            return
        links = [[[link.latency_s, link.bytes_s] for link in row] for row in times.links]
        try:
            nodes, alone = [asdict(node) for node in times.nodes], times.alone and asdict(times.alone)
            write_text(path, json.dumps({"nodes": nodes, "links": links, "alone": alone}))
        except StorageError as exc:
            log.info("the measurement is not kept: %s", exc)

    def _path(self) -> Path | None:
        if self.folder is None:
            return None
        network = replace(self.network, starter=replace(self.network.starter, http_port=0))  # it may be any free one
        nodes = [[node.addr, node.http_port, node.device, node.memory_limit_bytes] for node in network.nodes]
        model = [config_to_dict(self.model.config), self.dtype, self.quantize, self.kv_dtype]
        known: dict[str, Any] = {"nodes": nodes, "device": str(self.device), "model": model, "version": __version__}
        known["memory_limit_bytes"] = self.memory_limit_bytes
        return self.folder / f"network-{digest_of(known)}.json"


def _times_from(data: object) -> NetworkTimes:
    """Raises `ControlError` for anything else than what `_keep` wrote."""
    match data:
        case {"nodes": list(nodes), "links": list(links), "alone": alone}:
            times = tuple(map(StageTimes.from_json, nodes))
            known_alone = None if alone is None else StageTimes.from_json(alone)
            return NetworkTimes(times, [[_link_from(link) for link in row] for row in links], known_alone)
    raise ControlError("not the times of a network")


def _link_from(data: object) -> LinkCosts:
    match data:
        case [float(latency_s), float(bytes_s)]:
            return LinkCosts(latency_s, bytes_s)
    raise ControlError("not the times of a link")
