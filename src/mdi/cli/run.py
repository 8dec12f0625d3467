"""What the scripts do once their options are known: compose the parts, run, print."""

import contextlib
import gc
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from mdi.checkpoint.cache import ChunkCache
from mdi.checkpoint.digests import content_digest
from mdi.checkpoint.folder import find_folder, open_folder
from mdi.checkpoint.packed_cache import packed_files
from mdi.cli.networks import advice_for_starter, save_nodes
from mdi.cli.plots import Mark, plot_token_times
from mdi.cli.requests import load_requests
from mdi.cli.run_statistics import RunStats, append_run_csv
from mdi.cli.sample_records import RunSummary, SampleWriter
from mdi.cli.signals import Signals
from mdi.cli.speed_report import tell_speed
from mdi.cli.token_times import run_names, write_token_csv
from mdi.cli.transcript import Transcript
from mdi.cluster.condition import Incident
from mdi.config.addresses import NodeAddress
from mdi.config.network import NetworkConfig, NodeConfig
from mdi.config.options import SecondaryOptions, StarterOptions
from mdi.config.paths import IMAGES_DIR, LOGS_DIR
from mdi.control.client import ControlClient
from mdi.control.status import NodeState, StarterStatus
from mdi.errors import MdiError
from mdi.inbox import Stopped
from mdi.net.discovery import Announcement
from mdi.nodes.joiner import Joiner
from mdi.nodes.secondary import Secondary
from mdi.nodes.sources import WeightSources
from mdi.nodes.starter import Starter
from mdi.strings import count
from mdi.terminal import screen
from mdi.text.worker_process import TextWorker

log = logging.getLogger(__name__)


def run_starter(options: StarterOptions, network: NetworkConfig, signals: Signals, worker: TextWorker) -> None:
    """Generate the samples of `options` on `network` and print them. `worker` reads the model's vocabulary."""
    gc.freeze()  # what torch and litgpt have imported is never collected, at exit neither
    folder = find_folder(options.ckpt, options.chunk)
    model = open_folder(folder, len(network.nodes), options.quantize, options.dtype)
    requests = load_requests(options, model, worker)
    worker.close()  # every prompt is encoded
    stream = sys.stdout.isatty() if options.stream is None else options.stream
    with contextlib.ExitStack() as stack:
        writer = stack.enter_context(SampleWriter(options.output)) if options.output else None
        transcript = Transcript(requests, stream=stream, bare=options.quiet, writer=writer)
        n_slots = len(requests.samples)
        files = packed_files(options.cache_dir)
        starter = Starter(network, model, options, context=requests.context, n_slots=n_slots, packed_files=files)
        stack.enter_context(signals.passed_to(starter.interrupt))  # the node's own end included
        stack.enter_context(starter)
        for sample in requests.samples:
            sample.sink = transcript.update
            starter.add(sample)
        starter.prepare()
        save_nodes(options, network)
        transcript.start()
        try:
            starter.run()
        except (MdiError, Stopped):
            transcript.give_up()
            raise
        finally:
            _summarize(options, network, transcript, writer, starter.n_recoveries)
            tell_speed(starter.speed)
        if options.timeline is not None:
            busy = starter.write_timeline(options.timeline)
            if not options.quiet:
                screen.write_line(f"Timeline: {options.timeline}; {busy}")
        status = starter.status()  # while its weights are loaded
    if options.time_run is not None:
        stats = RunStats(options.n_samples, model.config.n_layer, requests.context, transcript.gen_time_s)
        append_run_csv(options.time_run, stats)
    if options.plots:
        _plot(options, len(network.nodes), status, transcript, starter.incidents)


def _summarize(
    options: StarterOptions,
    network: NetworkConfig,
    transcript: Transcript,
    writer: SampleWriter | None,
    n_recoveries: int,
) -> None:
    """Say how much was generated in which time, also of a run that broke."""
    n_nodes, n_samples = len(network.nodes), options.n_samples
    n_tokens, gen_time_s, tokens_per_s = transcript.n_tokens, transcript.gen_time_s, transcript.tokens_per_s
    if writer is not None:
        writer.write_summary(
            RunSummary(n_nodes, n_samples, n_tokens, gen_time_s, tokens_per_s, options.seed, n_recoveries)
        )
    if not options.quiet:
        rate = f"Generated {n_tokens} tokens in {gen_time_s:.2f} s: {tokens_per_s:.2f} tokens/s\n"
        screen.write_text(rate, sys.stdout)


def _plot(
    options: StarterOptions,
    n_nodes: int,
    status: StarterStatus,
    transcript: Transcript,
    incidents: Sequence[Incident],
) -> None:
    """Write the tokens over time of a run that finished, as CSV and PNG."""
    model, points = status.model or "", transcript.times.points
    csv, png = run_names(LOGS_DIR, IMAGES_DIR, n_nodes, model, options.n_samples)
    write_token_csv(csv, points)
    nodes = count(n_nodes, "node")
    title = f"{model}, {status.precision}, {nodes}: {transcript.tokens_per_s:.2f} tokens/s"
    marks = [Mark(incident.at_s - transcript.start_s, incident.text) for incident in incidents]
    plot_token_times(png, {nodes: points}, title, [mark for mark in marks if mark.x >= 0])
    if not options.quiet:
        screen.write_line(f"Tokens over time: {csv} and {png}")


def run_secondary(
    options: SecondaryOptions, config: NodeConfig, starter: NodeAddress | None, cache_folder: Path, signals: Signals
) -> None:
    """Serve starters until one of them, or the user, says stop. Received chunks are kept in `cache_folder`.

    Args:
        starter: who is asked for a place in its ring.
    """
    gc.freeze()
    cache = ChunkCache(cache_folder, content_digest)
    sources = WeightSources(cache, options.chunk, options.ckpt)
    secondary = Secondary(
        config,
        sources,
        device=options.device,
        dtype=options.dtype,
        quantize=options.quantize,
        kv_dtype=options.kv_dtype,
        backend=options.backend,
        compile_stage=options.compile,
        memory_limit_bytes=options.memory_limit_bytes,
        packed_files=packed_files(cache_folder),
    )
    with signals.passed_to(secondary.interrupt), secondary:
        if options.nodes_config is None:
            log.warning("waiting for a starter, %s --ckpt MODEL", advice_for_starter(secondary.http_port))
        else:
            where = f" at {config.starter_addr}" if config.starter_addr else ""
            log.warning("waiting for a starter%s, on http://%s:%d", where, config.addr, secondary.http_port)
        with announcement(options, secondary), joining(starter, secondary):
            secondary.serve()


def announcement(options: SecondaryOptions, secondary: Secondary) -> contextlib.AbstractContextManager[object]:
    """The entry of a node without a file for `--discover`, if there is to be one."""
    keys, status = secondary.config.access.keys, secondary.status()
    if options.nodes_config is not None or not options.announce or keys is None:
        return contextlib.nullcontext()
    name, process = status.name or "node", status.process or ""
    return Announcement(name, process, secondary.http_port, status.version, keys.current.fingerprint)


def joining(starter: NodeAddress | None, secondary: Secondary) -> contextlib.AbstractContextManager[object]:
    """What asks the starter of `--join` for a place in its ring, if there is one."""
    if starter is None:
        return contextlib.nullcontext()
    access = secondary.config.access
    client = ControlClient("the starter", starter.addr, starter.port, access, by_address=access.tls is None)
    return Joiner(client, secondary.http_port, lambda: secondary.status().state is NodeState.IDLE)
