"""Plans a ring for a model: by measuring the nodes of a network, or by what is published of machines."""

import contextlib
import logging
import threading
from collections.abc import Mapping

from mdi.checkpoint.chunks import StoredForm
from mdi.checkpoint.config import load_config
from mdi.checkpoint.folder import find_folder, open_folder
from mdi.cli.plan_report import Report
from mdi.cluster.device_classes import STORED_DTYPE, estimate, network_of, parse_devices
from mdi.cluster.forecast import Costs, Objective, advise, forecast_of
from mdi.cluster.identities import refuse_shared_names, refuse_twins
from mdi.cluster.measured_network import MeasuredNetwork
from mdi.cluster.member_setup import MemberSetup, Patience
from mdi.cluster.network_times import NetworkTimes
from mdi.cluster.rendezvous import Statuses, wait_until_up
from mdi.cluster.ring_costs import Job
from mdi.cluster.roster import clients_of
from mdi.config.network import NetworkConfig
from mdi.config.options import PlannerOptions
from mdi.config.paths import measurements_dir
from mdi.control.client import ControlClient
from mdi.convert.hf_configs import config_by_name
from mdi.convert.known_models import KNOWN_MODELS
from mdi.errors import ControlError
from mdi.formats import Mode, allowed_modes
from mdi.ids import NodeId
from mdi.inbox import Inbox
from mdi.model.architecture import ModelConfig
from mdi.model.backends.select import prepare
from mdi.model.devices import pick_device
from mdi.net.sockets import listen
from mdi.net.timeouts import DEFAULT_TIMEOUTS

log = logging.getLogger(__name__)

DEFAULT_CONTEXT = 2048  # positions, as in the tables of docs/sizing.md


def run_plan(options: PlannerOptions, network: NetworkConfig | None) -> str:
    """The plan as it is to be printed; `network` is None where machines are estimated. Raises `MdiError`."""
    objective: Objective = "latency" if options.objective == "latency" else "throughput"
    name, costs = _estimated(options) if network is None else _measured(options, network)
    costs = costs.with_best_modes(objective)
    found = forecast_of(costs, costs.plan(objective))
    report = Report(name, costs, found, advise(costs, found), options.what_if)
    return report.json() if options.json else report.text()


def _context(options: PlannerOptions, config: ModelConfig) -> int:
    return min(options.sequence_length or DEFAULT_CONTEXT, int(config.block_size))


# ---- machines that are not here


def _estimated(options: PlannerOptions) -> tuple[str, Costs]:
    names = parse_devices(options.what_if or "")
    model, config, mode = _known_model(options)

    def times_in(mode: Mode) -> NetworkTimes:
        times = estimate(names, options.link, config, mode, options.dtype, options.kv_dtype)
        return times.with_limit(0, options.memory_limit_bytes)

    times, alternatives = times_in(mode), tuple(map(times_in, allowed_modes(options.allow_quantize)))
    context, wire_dtype = _context(options, config), times.nodes[0].dtype
    job = Job(config, context, options.n_samples, options.max_batch_tokens, wire_dtype, StoredForm(STORED_DTYPE))
    return model, Costs(network_of(names), times, job, alternatives)


def _known_model(options: PlannerOptions) -> tuple[str, ModelConfig, Mode]:
    """A model by its short name, or in a folder; and how its weights are held."""
    mode: Mode = options.quantize or "none"
    if (known := KNOWN_MODELS.get(str(options.ckpt).lower())) is not None:
        return known.repo_id, config_by_name(known.repo_id), mode
    folder = find_folder(options.ckpt)
    return folder.name, load_config(folder), mode


# ---- machines that are


def _measured(options: PlannerOptions, network: NetworkConfig) -> tuple[str, Costs]:
    """Measure from this machine, which is the starter's. Raises `MdiError`."""
    model = open_folder(find_folder(options.ckpt), len(network.nodes), options.quantize, options.dtype)
    device = pick_device(options.device or network.starter.device)
    prepare(device, options.backend)
    starter = network.starter
    with contextlib.ExitStack() as stack:
        listener = None
        if network.secondaries:
            listener = stack.enter_context(listen(starter.listen_addr, starter.port_in))
            network = network.with_starter_ports(0, listener.getsockname()[1])
        clients = clients_of(network)
        inbox = Inbox()
        refuse_twins(clients, _statuses_once_up(clients, options.node_timeout_s, inbox))
        refuse_shared_names(network)
        measured = MeasuredNetwork(
            network=network,
            model=model,
            device=device,
            context=_context(options, model.config),
            n_samples=options.n_samples,
            max_rows=options.max_batch_tokens,
            dtype=options.dtype,
            quantize=options.quantize,
            allow_quantize=options.allow_quantize,
            kv_dtype=options.kv_dtype,
            backend=options.backend,
            memory_limit_bytes=options.memory_limit_bytes or starter.memory_limit_bytes,
            folder=measurements_dir(),
        )
        return model.name, measured.measure(clients, listener, inbox, again=options.measure)


def _statuses_once_up(clients: Mapping[NodeId, ControlClient], node_timeout_s: float, inbox: Inbox) -> Statuses:
    """What each secondary says of itself; which of them are not there yet is said. Raises `PeersTimedOut`."""
    timeouts, closing = DEFAULT_TIMEOUTS, threading.Event()
    deadline_s = timeouts.deadline_s(node_timeout_s)
    told = set[NodeId]()

    def say_missing(node: NodeId, error: ControlError) -> None:
        if node not in told:
            told.add(node)
            log.warning("waiting for %s at %s", clients[node].name, clients[node].url)

    patience = Patience(node_timeout_s, lambda node: deadline_s, lambda error: True, say_missing)
    setups = {node: MemberSetup(node, client, patience, timeouts, closing) for node, client in clients.items()}
    return wait_until_up(setups, inbox)
