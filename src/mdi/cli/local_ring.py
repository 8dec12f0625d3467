"""The nodes of a network that are on this machine, as child processes: found, started, watched, ended."""

import codecs
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from pathlib import Path
from typing import IO

from mdi.cli.lifeline import Lifeline
from mdi.cli.node_log import MergedLog, Watcher
from mdi.cli.signals import Signals
from mdi.config.network import NetworkConfig, NodeConfig, node_name
from mdi.config.paths import SOURCE_DIR
from mdi.files import storage_error
from mdi.installation import IS_INSTALLED
from mdi.net.access import parse_ip, resolved
from mdi.net.interfaces import all_addresses
from mdi.net.sockets import listen

STOP_TIMEOUT_S = 10.0  # for a node to end in order; a node that is asked ends by itself within 8 s
LAST_WORDS_S = 5.0  # to read what a node said last; a child of it may hold the pipe for longer
_UNSPECIFIED = ("0.0.0.0", "::")


def command(name: str, *options: str) -> list[str]:
    """The command line of a module of `mdi.cli.commands` under this Python."""
    # In a checkout through its script: a new Python would not find the package by `-m`.
    program = ["-m", f"mdi.cli.commands.{name}"] if IS_INSTALLED else [str(SOURCE_DIR / f"{name}.py")]
    return [sys.executable, *program, *options]


# ---- which nodes


def local_nodes(network: NetworkConfig) -> list[int]:
    """The nodes of a network whose address is one of this machine's, by their index: 0 is the starter."""
    own = {parse_ip(address) for address in all_addresses()}
    return [index for index, node in enumerate(network.nodes) if _is_local(node, own)]


def _is_local(node: NodeConfig, own: Container[object]) -> bool:
    addr = node.addr if node.listen in _UNSPECIFIED else node.listen_addr
    ips = [ip for text in resolved(addr) if (ip := parse_ip(text)) is not None]
    return any(ip.is_loopback or ip in own for ip in ips)


def check_ports(network: NetworkConfig, nodes: Iterable[int]) -> None:
    """Raise `ConfigError` where another program has a port of these nodes.

    It may be a node, which a starter would use as if it were of this ring, and end.
    """
    if not network.secondaries:  # a ring of one node opens no port
        return
    for index in nodes:
        node = network.nodes[index]
        for port in (node.http_port, node.port_in):
            listen(node.listen_addr, port).close()


# ---- their processes

NodeFlags = Callable[[int], Sequence[str]]  # the options that say which node of which network one is, by its index


def flags_of_file(nodes_config: Path) -> NodeFlags:
    """For the nodes of a file."""
    where = ["--nodes-config", str(nodes_config)]
    return lambda index: where if index == 0 else [*where, str(index - 1)]


def flags_of_addresses(nodes: str, network: NetworkConfig) -> NodeFlags:
    """For nodes without a file: `network` is the one of `--nodes`."""
    return lambda index: ["--nodes", nodes] if index == 0 else ["--port", str(network.nodes[index].http_port)]


class LocalRing:
    """Nodes as child processes. Use it as a context: none is left on exit.

    Each has a session of its own, so that Ctrl-C in a terminal is for this program alone: the starter ends first, in
    order, and then the others. They end with this program whatever ends it.
    """

    def __init__(self, flags: NodeFlags, watcher: Watcher) -> None:
        self._flags, self._watcher = flags, watcher
        self._lifeline = Lifeline()
        self._starter: _Node | None = None
        self._secondaries: list[_Node] = []
        self._is_ending = threading.Event()

    def __enter__(self) -> "LocalRing":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def start(self, index: int, options: Sequence[str], environment: Mapping[str, str] | None = None) -> None:
        """Start a node: with `options` besides its flags, and variables besides this process's."""
        program = command("secondary" if index else "starter", *options, *self._flags(index))
        if index == 0:
            self._starter = self._node(0, program, environment or {})
        else:
            self._secondaries.append(self._node(index, program, environment or {}))

    def _node(self, index: int, program: Sequence[str], environment: Mapping[str, str]) -> "_Node":
        try:
            popen = subprocess.Popen(
                program,
                env={**self._lifeline.environment, **environment},
                stdin=self._lifeline.stdin,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                start_new_session=True,
            )
        except OSError as exc:
            raise storage_error(Path(sys.executable), exc) from exc
        return _Node(node_name(index), popen, self._watcher, self._is_ending)

    @property
    def _leaders(self) -> list["_Node"]:
        """Those whose end is that of the ring: the starter, or all secondaries where it is elsewhere."""
        return self._secondaries if self._starter is None else [self._starter]

    def wait(self) -> int:
        """Wait until the starter has ended, or all nodes where it is elsewhere; its exit status, 128 + n for signal n.

        Raises the `OSError` that was met when the starter's output was written.
        """
        for node in self._leaders:
            node.join()
        for node in self._leaders:
            if node.output_error is not None:
                raise node.output_error
        statuses = [node.status for node in self._leaders]
        status = next((status for status in statuses if status), 0)
        return status if status >= 0 else 128 - status

    def interrupt(self, number: signal.Signals) -> None:
        """Ask the ring to end, as its starter knows how. Called from any thread."""
        self._is_ending.set()
        for node in self._leaders:
            node.send(number)

    def close(self) -> None:
        """Ask what still runs to end: the starter, then the secondaries. What does not end in time is killed."""
        self._is_ending.set()
        for nodes in ([self._starter] if self._starter else [], self._secondaries):
            for node in nodes:
                node.send(signal.SIGTERM)
            deadline_s = time.monotonic() + STOP_TIMEOUT_S
            for node in nodes:
                node.end(deadline_s)
        self._lifeline.close()


class _Node:
    """One process, and the threads that read what it says."""

    def __init__(
        self, name: str, popen: "subprocess.Popen[bytes]", watcher: Watcher, is_ending: threading.Event
    ) -> None:
        self._name, self._popen, self._watcher, self._is_ending = name, popen, watcher, is_ending
        self.output_error: OSError | None = None
        assert popen.stdout is not None and popen.stderr is not None
        self._threads = [
            threading.Thread(target=self._copy_output, args=(popen.stdout,), name=f"output of {name}", daemon=True),
            threading.Thread(target=self._follow, args=(popen.stderr,), name=f"log of {name}", daemon=True),
        ]
        for thread in self._threads:
            thread.start()

    @property
    def status(self) -> int:
        """Of a process that has ended: its exit status, -n after signal n."""
        return self._popen.returncode

    def join(self) -> None:
        """Wait for its end, and until what it said is passed on."""
        self._popen.wait()
        for thread in self._threads:
            thread.join(LAST_WORDS_S)

    def send(self, number: signal.Signals) -> None:
        self._popen.send_signal(number)

    def end(self, deadline_s: float) -> None:
        """Wait for its end until `deadline_s`, then kill it."""
        try:
            self._popen.wait(max(0.0, deadline_s - time.monotonic()))
        except subprocess.TimeoutExpired:
            self._popen.kill()
        self.join()

    def _copy_output(self, out: IO[bytes]) -> None:
        decoder = codecs.getincrementaldecoder(sys.stdout.encoding)("surrogateescape")  # it has our locale
        with out:
            while piece := os.read(out.fileno(), 1 << 16):
                try:
                    self._watcher.write(decoder.decode(piece))
                except OSError as exc:
                    self.output_error = exc
                    return  # the process meets a pipe without a reader, as it would meet ours

    def _follow(self, log: IO[bytes]) -> None:
        with log:
            for line in log:
                self._watcher.say(self._name, line.decode(sys.stderr.encoding, "replace").rstrip("\n"))
        status = self._popen.wait()
        if not self._is_ending.is_set():
            self._watcher.end(self._name, status)


# ---- whole programs


def stream_as_here() -> list[str]:
    """The option for a starter whose output goes through this program to a terminal, which it cannot see."""
    return ["--stream"] if sys.stdout.isatty() else []


def run_nodes(
    signals: Signals, flags: NodeFlags, starter: Sequence[str], secondary: Sequence[str], nodes: Sequence[int]
) -> int:
    """Run `nodes` of a network to the end of the starter, with one log; its exit status.

    `starter` and `secondary` are the options of these nodes, besides their `flags`. Each signal to this program is
    passed on to the starter.
    """
    ring = LocalRing(flags, MergedLog([node_name(index) for index in nodes]))
    is_complete, n_passed_on = False, 0

    def pass_on(number: signal.Signals) -> None:  # called again and again
        nonlocal n_passed_on
        if is_complete and n_passed_on < signals.n_came:
            n_passed_on = signals.n_came
            ring.interrupt(number)

    with signals.passed_to(pass_on), ring:
        for index in nodes:
            ring.start(index, starter if index == 0 else secondary)
        is_complete = True
        return ring.wait()


def run_to_end(program: Sequence[str], signals: Signals) -> int:
    """Run a program and return its exit status, 128 + n after signal n. A signal to this program is passed on to it."""
    untold: list[subprocess.Popen[bytes]] = []

    def pass_on(number: signal.Signals) -> None:
        while untold:  # once: this is called again and again
            untold.pop().send_signal(number)

    with signals.passed_to(pass_on):
        process = subprocess.Popen(program)
        untold.append(process)
        status = process.wait()
    return status if status >= 0 else 128 - status
