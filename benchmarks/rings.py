"""Rings of pinned nodes: the secondaries as their own script, the starter as a driver that stamps every token."""

import contextlib
import json
import random
import shutil
import socket
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.workers import ROOT, BenchError, Worker, end, python_module, start
from mdi.config.network import load_network
from mdi.config.paths import SETTINGS_DIR
from mdi.control.client import ControlClient
from mdi.errors import ControlError

READY_TIMEOUT_S = 60.0
STANDALONE = SETTINGS_DIR / "standalone.json"


@dataclass(frozen=True)
class Request:
    """What a ring is to generate."""

    prompt: list[int]
    n_samples: int = 1
    n_tokens: int = 48
    sequence_length: int | None = None
    seen_as: str | None = None  # a network file with the ports of relays
    split: str = "auto"


@dataclass(frozen=True)
class Run:
    """When each sample's tokens were known, on the clock that all processes share."""

    start: float
    times: list[list[float]]
    tokens: list[list[int]]

    @property
    def first_token_s(self) -> float:
        """From the start of the run, all nodes ready, to the first token of any sample."""
        return min(sample[0] for sample in self.times) - self.start

    @property
    def tokens_per_s(self) -> float:
        return decode_rate(self.times)


def decode_rate(times: Sequence[Sequence[float]]) -> float:
    """Tokens/s of all samples while all of them decode.

    The window opens when every sample has its first token and closes when the first one ends. A sample counts with
    its steps inside the window over the time that these took, so that where the window cuts does not matter.
    """
    opens, closes = max(sample[0] for sample in times), min(sample[-1] for sample in times)
    inside = [[t for t in sample if opens <= t <= closes] for sample in times]
    if any(len(steps) < 2 for steps in inside):
        raise BenchError("too few tokens: some sample ended before all had begun to decode")
    return sum((len(steps) - 1) / (steps[-1] - steps[0]) for steps in inside)


@dataclass(frozen=True)
class NodeSettings:
    """Where the nodes of a ring compute, and in what."""

    quantize: str = "none"
    dtype: str = "float32"
    device: str = "cpu"
    memory_limit: str | None = None

    @property
    def flags(self) -> list[str]:
        """Of a secondary."""
        flags = ["--dtype", self.dtype, "--device", self.device]
        flags += ["--quantize", self.quantize] if self.quantize != "none" else []
        return flags + (["--memory-limit", self.memory_limit] if self.memory_limit else [])


ON_CPU = NodeSettings()


def without_chunks(ckpt: Path, scratch: Path) -> Path:
    """A folder with the files of a model, as links, and no chunks.

    A starter keeps the split of chunks that are there: one run is to leave none to another, or to its user.
    Raises `BenchError` where no model is.
    """
    if not (ckpt / "lit_model.pth").is_file():
        raise BenchError(f"{ckpt}: no prepared model there; `make model` prepares the default one")
    folder = scratch / "models" / ckpt.name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for file in ckpt.iterdir():
        if file.is_file():
            (folder / file.name).symlink_to(file.resolve())
    return folder


class Ring:
    """A running ring, ready for one request after another."""

    def __init__(self, driver: Worker, nodes_config: Path, ckpt: Path, settings: NodeSettings) -> None:
        self._driver, self._ckpt, self._settings = driver, ckpt, settings
        self.nodes_config = nodes_config
        self._peak_bytes = 0

    def prepare(self, request: Request) -> None:
        """Load what is to be loaded and close the ring."""
        common = {"nodes_config": str(self.nodes_config), "ckpt": str(self._ckpt)}
        self._driver.ask(asdict(request) | common | asdict(self._settings))

    def go(self) -> None:
        """Start the run that was prepared."""
        self._driver.tell({})

    def result(self) -> Run:
        answer = self._driver.hear()
        self._peak_bytes = answer.pop("peak_bytes")
        return Run(**answer)

    def run(self, request: Request) -> Run:
        """Prepare, start, wait."""
        self.prepare(request)
        self.go()
        return self.result()

    def peak_bytes(self) -> list[int]:
        """The largest resident set so far of each node."""
        return [self._peak_bytes, *(client.status().peak_memory_bytes for client in _clients(self.nodes_config))]

    def wait_until_ready(self) -> None:
        """Wait until every process has imported what it needs, so that no other run is disturbed by it."""
        self._driver.hear()
        deadline_s = time.monotonic() + READY_TIMEOUT_S
        for client in _clients(self.nodes_config):
            while not _answers(client):
                if time.monotonic() > deadline_s:
                    raise BenchError(f"{client.name} does not answer")
                time.sleep(0.1)


def _clients(nodes_config: Path) -> list[ControlClient]:
    nodes = load_network(nodes_config).secondaries
    return [ControlClient(f"secondary {i}", node.addr, node.http_port, node.access) for i, node in enumerate(nodes)]


def _answers(client: ControlClient) -> bool:
    try:
        return bool(client.status())
    except ControlError:
        return False


def run_together(rings: Sequence[Ring], request: Request) -> Run:
    """The same request on several rings at the same time; the samples of all in one `Run`."""
    for ring in rings:
        ring.prepare(request)
    for ring in rings:
        ring.go()
    runs = [ring.result() for ring in rings]
    times = [sample for run in runs for sample in run.times]
    return Run(min(run.start for run in runs), times, [tokens for run in runs for tokens in run.tokens])


@contextlib.contextmanager
def ring(ckpt: Path, cores: Sequence[int], scratch: Path, settings: NodeSettings = ON_CPU) -> Iterator[Ring]:
    """A ring with one node on each of `cores`."""
    log = scratch / "logs" / f"starter_on_{cores[0]}.log"
    with (
        secondaries(cores[1:], scratch, settings) as nodes_config,
        Worker(python_module("ring_driver"), cores[:1], log) as driver,
    ):
        nodes = Ring(driver, nodes_config, ckpt, settings)
        nodes.wait_until_ready()
        yield nodes


@contextlib.contextmanager
def secondaries(cores: Sequence[int], scratch: Path, settings: NodeSettings) -> Iterator[Path]:
    """A secondary on each of `cores`; yields the network file of a ring with them."""
    nodes_config = write_network(scratch / "networks", 1 + len(cores)) if cores else STANDALONE
    with contextlib.ExitStack() as stack:
        for index, core in enumerate(cores):
            command = [sys.executable, str(ROOT / "src" / "secondary.py"), *settings.flags]
            command += ["--cache-dir", str(scratch / "chunks"), "--nodes-config", str(nodes_config), str(index)]
            stack.callback(end, start(command, [core], scratch / "logs" / f"secondary{index}.log"))
        yield nodes_config


# ---- network files


def write_network(folder: Path, n_nodes: int) -> Path:
    """A network of `n_nodes` nodes on free ports of loopback."""
    return _write(folder, [_node(*free_ports(2)) for _ in range(n_nodes)])


def write_seen_as(nodes_config: Path, relay_ports: Sequence[int]) -> Path:
    """The same network with the port of a relay before each node."""
    nodes = load_network(nodes_config).nodes
    seen = [_node(node.http_port, port) for node, port in zip(nodes, relay_ports, strict=True)]
    return _write(nodes_config.parent, seen)


def _node(http_port: int, port_in: int) -> dict[str, Any]:
    return {
        "addr": "127.0.0.1",
        "communication": {"port": http_port},
        "inference": {"port_in": port_in, "port_out": 0},
    }


def _write(folder: Path, nodes: list[dict[str, Any]]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"network_{time.monotonic_ns()}.json"
    path.write_text(json.dumps({"nodes": {"starter": nodes[0], "secondary": nodes[1:]}}))
    return path


def free_ports(n: int) -> list[int]:
    """Ports of loopback that nothing uses, below those that the kernel gives to outgoing connections."""
    ports: list[int] = []
    while len(ports) < n:
        port = random.SystemRandom().randrange(10_000, 30_000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            if port not in ports:
                ports.append(port)
    return ports
