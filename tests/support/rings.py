"""Whole rings in one process: secondaries as objects with a thread each, on free ports of loopback."""

import contextlib
import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from mdi.checkpoint.cache import ChunkCache
from mdi.checkpoint.digests import content_digest
from mdi.checkpoint.folder import open_folder
from mdi.cli.requests import load_requests, samples_for
from mdi.config.network import NetworkConfig, NodeConfig
from mdi.config.options import StarterOptions
from mdi.engine.sample import Sample, Sink, discard
from mdi.formats import BackendChoice, KvDtype
from mdi.model.packed import IN_MEMORY, PackedFiles
from mdi.net.access import THIS_MACHINE, Access
from mdi.net.timeouts import DEFAULT_TIMEOUTS, Timeouts
from mdi.nodes.secondary import Secondary
from mdi.nodes.sources import WeightSources
from mdi.nodes.starter import Starter
from mdi.text.stops import StopSequences
from mdi.text.worker_process import TextWorker
from support.scripts import free_ports

ANY_PORT = NodeConfig("127.0.0.1", 0, 0, 0)


class Ring:
    """A network whose secondaries run; `generate` plays the starter."""

    def __init__(
        self,
        network: NetworkConfig,
        secondaries: list[Secondary],
        backend: BackendChoice = "auto",
        packed_files: PackedFiles = IN_MEMORY,
    ) -> None:
        self.network, self.secondaries, self._backend, self._packed_files = network, secondaries, backend, packed_files

    def generate(
        self,
        folder: Path,
        prompts: Sequence[Sequence[int]] | None = None,
        stops: StopSequences | None = None,
        sink: Sink = discard,
        **options: Any,
    ) -> list[list[int]]:
        """The tokens of each sample. Greedy in float32 and without stopping early, unless `options` say otherwise."""
        values = {"temperature": 0.0, "dtype": "float32", "ignore_eos": True, "keep_nodes": True, "n_tokens": 12}
        values["backend"] = self._backend
        arguments = StarterOptions(ckpt=folder, **{**values, **options})
        files = self._packed_files
        with starter_for(self.network, arguments, prompts, stops, sink, packed_files=files) as (starter, samples):
            starter.prepare()
            starter.run()
            if arguments.timeline is not None:
                starter.write_timeline(arguments.timeline)
        assert all(sample.finish_reason for sample in samples)
        return [sample.tokens for sample in samples]


@contextlib.contextmanager
def starter_for(
    network: NetworkConfig,
    options: StarterOptions,
    prompts: Sequence[Sequence[int]] | None = None,
    stops: StopSequences | None = None,
    sink: Sink = discard,
    timeouts: Timeouts = DEFAULT_TIMEOUTS,
    packed_files: PackedFiles = IN_MEMORY,
) -> Iterator[tuple[Starter, list[Sample]]]:
    """A starter with its samples queued: those of the options, or of prompts given as token ids."""
    assert options.ckpt is not None
    model = open_folder(options.ckpt, len(network.nodes), options.quantize, options.dtype)
    with TextWorker() as worker:
        requests = load_requests(options, model, worker)
    samples, context = requests.samples, requests.context
    if prompts is not None:
        own_stops = samples[0].params.stops if stops is None else stops
        samples = samples_for(options.sampling, prompts, own_stops)
        needed = max(map(len, prompts)) + options.n_tokens
        context = options.sequence_length or min(needed, model.config.block_size)
    n_slots = len(samples)
    with Starter(
        network, model, options, context=context, n_slots=n_slots, timeouts=timeouts, packed_files=packed_files
    ) as starter:
        for sample in samples:
            sample.sink = sink
            starter.add(sample)
        yield starter, samples


@contextlib.contextmanager
def ring_of(
    n_nodes: int,
    cache_dir: Path,
    shares: Sequence[float] | None = None,
    access: Access = THIS_MACHINE,
    starter_access: Access | None = None,
    dtype: str | None = "float32",
    backend: BackendChoice = "auto",
    packed_files: PackedFiles = IN_MEMORY,
    kv_dtype: KvDtype | None = None,
) -> Iterator[Ring]:
    """A ring with `n_nodes - 1` secondaries, each serving in a thread of its own, with one chunk cache.

    `dtype` and `kv_dtype` are what the secondaries are started with; a starter has its own.
    All nodes have the same access, unless the starter is given another one.
    """
    shares = shares or [1.0] * n_nodes
    any_port = replace(ANY_PORT, access=access)
    with contextlib.ExitStack() as stack:
        secondaries, nodes = [], []
        for share in shares[1:]:
            sources = WeightSources(ChunkCache(cache_dir, content_digest))
            secondary = stack.enter_context(
                Secondary(any_port, sources, dtype=dtype, kv_dtype=kv_dtype, backend=backend, packed_files=packed_files)
            )
            thread = threading.Thread(target=secondary.serve, name="secondary")
            thread.start()
            stack.callback(thread.join)
            stack.callback(secondary.request_stop, None)
            secondaries.append(secondary)
            nodes.append(NodeConfig("127.0.0.1", secondary.http_port, secondary.port_in, 0, share=share))
        http_port, port_in = free_ports(2)
        starter = replace(
            ANY_PORT, http_port=http_port, port_in=port_in, share=shares[0], access=starter_access or access
        )
        yield Ring(NetworkConfig(starter, tuple(nodes)), secondaries, backend, packed_files)


class Machine:
    """A secondary as an object that can lose its power, and come back on the same ports with the same disk."""

    def __init__(self, cache_dir: Path, timeouts: Timeouts = DEFAULT_TIMEOUTS, access: Access = THIS_MACHINE) -> None:
        self.cache_dir, self._timeouts = cache_dir, timeouts
        self._sources = WeightSources(ChunkCache(cache_dir, content_digest))
        http_port, port_in = free_ports(2)
        self.node = replace(ANY_PORT, http_port=http_port, port_in=port_in, access=access)
        self._secondary: Secondary | None = None
        self._switching = threading.Lock()  # others notice a loss while its ports are still held

    @property
    def secondary(self) -> Secondary:
        assert self._secondary is not None, "the machine is off"
        return self._secondary

    def give_chunk(self, path: Path) -> None:
        """From its next start on it has been given --chunk."""
        self._sources = replace(self._sources, chunk=path)

    def start(self) -> None:
        with self._switching:
            self._secondary = Secondary(self.node, self._sources, dtype="float32", timeouts=self._timeouts).__enter__()
            self._thread = threading.Thread(target=self._secondary.serve, name="secondary")
            self._thread.start()

    def kill(self) -> None:
        """End it without a word to anybody. Does nothing where it is off."""
        with self._switching:
            if self._secondary is None:
                return
            secondary, self._secondary = self._secondary, None
            if secondary._link is not None:
                secondary._link.send = lambda message: None  # type: ignore[method-assign]
            secondary.request_stop(None)
            self._thread.join()
            secondary.__exit__(None, None, None)
