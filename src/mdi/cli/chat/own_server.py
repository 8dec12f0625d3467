"""A server for one chat alone: a starter on a free port of this machine, and the nodes of its network that are here."""

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mdi.cli.local_ring import LocalRing, NodeFlags, check_ports, flags_of_addresses, flags_of_file, local_nodes
from mdi.cli.networks import network_of
from mdi.cli.node_log import MergedLog, ending
from mdi.cli.serve_options import KEY_VARIABLE, served_url
from mdi.config.keyed_network import keyed_access
from mdi.config.network import load_network, node_name
from mdi.config.options import ChatOptions, NetworkOptions
from mdi.config.paths import SETTINGS_DIR
from mdi.errors import ConfigError, ControlError
from mdi.inbox import Inbox
from mdi.terminal import screen

N_SLOTS = 2  # one for an answer that was stopped, and is not yet out of the ring


@dataclass(frozen=True)
class Serving:
    """The server is ready."""

    url: str


@dataclass(frozen=True)
class StarterEnded:
    """There will be no server any more; `reason` is what the starter said last."""

    reason: str


class OwnServer:
    """The nodes, from `start` to `close`. Use it as a context."""

    def __init__(self, options: ChatOptions, inbox: Inbox) -> None:
        """Raises `ConfigError` where the network has no starter on this machine, or its ports are taken."""
        self._options, self._inbox = options, inbox
        self._nodes, flags = _nodes_of(options)
        self.key = secrets.token_urlsafe()
        self._ring = LocalRing(flags, _Log(inbox, self._nodes, is_shown=options.verbose))

    def __enter__(self) -> "OwnServer":
        return self

    def __exit__(self, *_: object) -> None:
        self._ring.close()

    def start(self) -> str:
        """Start the nodes, wait until they serve, and return their URL. Raises `ControlError`."""
        screen.write_line("starting the model; this takes some seconds")
        for node in self._nodes:
            self._ring.start(node, self._starter_flags() if node == 0 else self._flags(), {KEY_VARIABLE: self.key})
        match self._inbox.wait_for(Serving, StarterEnded):
            case Serving(url):
                return url
            case StarterEnded(reason):
                raise ControlError(reason)
        raise AssertionError("another event than those that were waited for")

    def _starter_flags(self) -> list[str]:
        options = self._options
        values = {
            "--ckpt": options.ckpt,
            "--dtype": options.dtype,
            "--quantize": options.quantize,
            "--kv-dtype": options.kv_dtype,
        }
        given = [part for flag, value in values.items() if value is not None for part in (flag, str(value))]
        return ["--serve", "127.0.0.1:0", "--max-slots", str(N_SLOTS), *given, *self._flags()]

    def _flags(self) -> list[str]:
        """What holds for every node."""
        options = self._options
        device = [] if options.device is None else ["--device", options.device]
        return ["-v"] * options.verbose + ["-c"] * options.compile + device


def _nodes_of(options: ChatOptions) -> tuple[list[int], NodeFlags]:
    if options.nodes is not None:
        return _nodes_beside(options.nodes)
    if options.discover is not None:
        return _nodes_found(options.discover)
    return _nodes_here(options.nodes_config)


def _nodes_here(nodes_config: Path | None) -> tuple[list[int], NodeFlags]:
    """The nodes to start of a file's, and how."""
    path = nodes_config or SETTINGS_DIR / "standalone.json"
    network = load_network(path)
    nodes = local_nodes(network)
    if 0 not in nodes:
        raise ConfigError(f"{path}: its starter is on {network.starter.addr}: chat there, or by --url")
    check_ports(network, nodes)
    return nodes, flags_of_file(path)


def _nodes_beside(nodes: str) -> tuple[list[int], NodeFlags]:
    """The starter alone: the others run already, and go on for the next chat."""
    network = network_of(NetworkOptions(nodes=nodes))
    flags = flags_of_addresses(nodes, network)
    return [0], lambda index: [*flags(index), "--keep-nodes"]


def _nodes_found(seconds: float) -> tuple[list[int], NodeFlags]:
    """As `_nodes_beside`; the starter looks for them."""
    keyed_access("--discover")
    return [0], lambda index: ["--discover", f"{seconds:g}", "--keep-nodes"]


class _Log:
    """What the nodes say, shown or not, and what of it counts for the chat."""

    def __init__(self, inbox: Inbox, nodes: Sequence[int], *, is_shown: bool) -> None:
        self._inbox = inbox
        self._shown = MergedLog([node_name(index) for index in nodes]) if is_shown else None
        self._last = ""  # line of the starter

    def say(self, node: str, line: str) -> None:
        if self._shown is not None:
            self._shown.say(node, line)
        if node == node_name(0):
            self._last = line
            if (url := served_url(line)) is not None:
                self._inbox.post(Serving(url))

    def write(self, text: str) -> None:
        """A server has no output."""

    def end(self, node: str, status: int) -> None:
        screen.write_line(f"{node} {ending(status)}")
        if node == node_name(0):
            self._inbox.post(StarterEnded(self._last.removeprefix("error: ") or f"{node} {ending(status)}"))
