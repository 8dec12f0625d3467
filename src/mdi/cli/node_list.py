"""The nodes that there are, as a table for people, and what is wrong with them in sentences."""

import contextlib
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence

from mdi import __version__
from mdi.cli.networks import network_of
from mdi.cluster.discovered import discover
from mdi.cluster.node_survey import HERE, Answered, NodeSurvey, NodeToAsk
from mdi.cluster.reachability import Pair, problems
from mdi.cluster.visitor import Visitor
from mdi.config.addresses import NodeAddress
from mdi.config.keyed_network import keyed_access, network_at
from mdi.config.network import NodeConfig, node_name
from mdi.config.options import NetworkOptions
from mdi.control.attempts import outcome_of
from mdi.control.protocol import Unreachable
from mdi.control.reach import Reach
from mdi.control.status import NodeStatus
from mdi.errors import ConfigError, ControlError
from mdi.strings import count, table_lines

HEADING = ("node", "address", "device", "memory", "version", "state", "model")
THIS_MACHINE = "this machine"
MAX_CLOCK_ERROR_S = 60.0  # what certificates and logs can do with


def list_nodes(options: NetworkOptions) -> tuple[str, bool]:
    """What to print of the nodes that the options name, and whether nothing is in the way of a ring of them."""
    nodes, starter = _nodes_to_ask(options)
    starter.access.check()
    survey = NodeSurvey(starter.access)
    answered = survey.ask(nodes)
    with contextlib.ExitStack() as stack:
        here: Visitor | None = None
        with contextlib.suppress(ConfigError):  # the starter runs, or this machine is another one
            here = Visitor(starter.listen_addr, starter.http_port, starter.port_in, starter.access)
            stack.enter_context(here)
        wrong = troubles(answered, survey.try_ways(answered, here))
    return "\n".join([table(answered), *wrong]), bool(nodes) and not wrong


def _nodes_to_ask(options: NetworkOptions) -> tuple[list[NodeToAsk], NodeConfig]:
    """The nodes, and what is known of a starter on this machine. Those that announce themselves may be of any ring."""
    if options.discover is not None:
        access = keyed_access("--discover")
        starter = network_at((), "", access, port=options.port, ring_port=options.ring_port).starter
        found = [(node.entry.name, node.where) for node in discover(options.discover)]
        return [NodeToAsk(name, where.addr, where.port, by_address=True) for name, where in found], starter
    network = network_of(options)
    named = [(node_name(index), node) for index, node in enumerate(network.nodes)]
    nodes = [NodeToAsk(name, node.addr, node.http_port, node.is_called_by_address) for name, node in named]
    return nodes if options.is_of_file else nodes[1:], network.starter


def table(answered: Sequence[Answered]) -> str:
    """A line for each node."""
    return "\n".join(table_lines([HEADING, *map(_row, answered)]))


def troubles(answered: Sequence[Answered], found: Mapping[Pair, Reach], now_s: float | None = None) -> list[str]:
    """A line for each thing that is wrong; none where a ring can be formed of these nodes.

    Args:
        found: what each node, and this machine as number 0, found when it tried the others.
        now_s: this machine's clock, since 1970.
    """
    known = {pair: reach for pair, reach in found.items() if pair[0] != HERE or _is_there(answered[pair[1] - 1])}
    return [
        *(str(node.answer) for node in answered if node.status is None and not _is_idle_starter(node)),
        *_of_versions(answered),
        *_of_clocks(answered, time.time() if now_s is None else now_s),
        *_of_names(answered),
        *_of_processes(answered),
        *problems([THIS_MACHINE, *map(label, answered)], known),
    ]


def label(node: Answered) -> str:
    """What a node is called in sentences."""
    where = str(NodeAddress(node.node.addr, node.node.port))
    return where if node.status is None or node.status.name is None else f"{node.status.name} ({where})"


def _row(node: Answered) -> tuple[str, ...]:
    where = f"{NodeAddress(node.node.addr, node.node.port)}"
    if isinstance(node.answer, ControlError):
        state = "not running" if _is_idle_starter(node) else outcome_of(node.answer).value
        return node.node.name, where, "-", "-", "-", state, "-"
    status = node.answer
    return status.name or "-", where, status.device, status.room, status.version, status.state.value, _model(status)


def _model(status: NodeStatus) -> str:
    if status.model is None:
        return "-"
    return status.model if status.span is None else f"{status.model}, {status.span}"


def _is_there(node: Answered) -> bool:
    return node.status is not None


def _is_idle_starter(node: Answered) -> bool:
    """A starter runs only as long as a run."""
    return node.node.name == "starter" and isinstance(node.answer, Unreachable)


def _of_versions(answered: Sequence[Answered]) -> list[str]:
    return [
        f"{label(node)} runs version {node.status.version}, {THIS_MACHINE} {__version__}: a ring needs one version"
        for node in answered
        if node.status is not None and node.status.version != __version__
    ]


def _of_clocks(answered: Sequence[Answered], now_s: float) -> list[str]:
    lines = []
    for node in answered:
        if node.status is None or node.status.time_s is None:
            continue
        error_s = node.status.time_s - now_s
        if abs(error_s) > MAX_CLOCK_ERROR_S:
            which = "ahead" if error_s > 0 else "behind"
            lines.append(f"the clock of {label(node)} is {_duration(abs(error_s))} {which}: set it, or TLS will fail")
    return lines


def _duration(seconds: float) -> str:
    if seconds < 3600:
        return count(round(seconds / 60), "minute")
    return count(round(seconds / 3600), "hour") if seconds < 2 * 86400 else count(round(seconds / 86400), "day")


def _of_names(answered: Sequence[Answered]) -> list[str]:
    """Machines that were made from one image have one name, and are told apart by their addresses alone."""
    places: dict[str, dict[str, str]] = defaultdict(dict)  # where machines are, by their name and what tells them apart
    for node in answered:
        if node.status is not None and node.status.name is not None and node.status.boot is not None:
            places[node.status.name][node.status.boot] = node.node.addr
    return [
        f"{count(len(found), 'machine')} are called {name}: {', '.join(found.values())}; give each a name of its own"
        for name, found in places.items()
        if len(found) > 1
    ]


def _of_processes(answered: Sequence[Answered]) -> list[str]:
    places: dict[str, list[str]] = defaultdict(list)
    for node in answered:
        if node.status is not None and node.status.process is not None:
            places[node.status.process].append(str(NodeAddress(node.node.addr, node.node.port)))
    return [f"{' and '.join(found)} are one node: give it once" for found in places.values() if len(found) > 1]
