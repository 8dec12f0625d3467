"""The measures: which configurations alternate, and what is made of them."""

import contextlib
import dataclasses
import functools
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch

from benchmarks import hops, serving
from benchmarks.distributed_llama import DistributedLlama
from benchmarks.machine import int8_units
from benchmarks.peers import LlamaCpp, RpcServer, litgpt
from benchmarks.report import Series, ratio
from benchmarks.rings import (
    ON_CPU,
    STANDALONE,
    NodeSettings,
    Request,
    Ring,
    Run,
    free_ports,
    ring,
    run_together,
    without_chunks,
    write_seen_as,
)
from benchmarks.servers import LlamaServer, Served, served_ring
from benchmarks.workers import ROOT, BenchError, Worker, end, python_module, start
from mdi.checkpoint.config import load_config
from mdi.config.network import load_network
from mdi.config.prepare_options import PrepareOptions
from mdi.model.span import Span

T = TypeVar("T")
Action = Callable[[], Run]
Opener = contextlib.AbstractContextManager[Action]

PROMPT_TOKENS = 104  # with the 48 tokens of a sample that is alone, a step is at position 128 in the middle
MAX_ROWS = 128  # of a message, as a starter has it by default
HOP_KEY = "a key for the benchmark"
LARGE_SHAPE = "TinyLlama/TinyLlama-1.1B-Chat-v1.0"


@dataclass(frozen=True)
class Bench:
    """What the measures share."""

    ckpt: Path
    large: Path  # of the TinyLlama shape; made if it is not there
    cores: Sequence[int]
    scratch: Path
    llama: LlamaCpp
    rounds: int = 5
    steps: int = 48  # tokens of a sample that is alone
    quick: bool = False
    gguf: Path | None = None  # that `ckpt` was made from: llama-server takes the vocabulary and the template from it
    llama_server: LlamaServer = field(default_factory=lambda: LlamaServer("llama-server", Path()))
    rpc_server: RpcServer = field(default_factory=lambda: RpcServer("ggml-rpc-server", Path()))
    dllama: DistributedLlama = field(default_factory=lambda: DistributedLlama("dllama", Path()))

    def request(
        self, n_samples: int, *, prompt_tokens: int = PROMPT_TOKENS, sequence_length: int | None = None
    ) -> Request:
        """The more samples, the fewer tokens of each, so that all runs take about as long."""
        n_tokens = max(min(16, self.steps), self.steps // (1 + n_samples // 8))
        return Request(prompt_of(prompt_tokens), n_samples, n_tokens, sequence_length)

    def ring(self, n_nodes: int, settings: NodeSettings = ON_CPU) -> contextlib.AbstractContextManager[Ring]:
        """A ring with a node on each of the first cores."""
        return ring(self.ckpt, self.cores[:n_nodes], self.scratch, settings)


def prompt_of(n_tokens: int) -> list[int]:
    """Token ids that any vocabulary of bytes has."""
    return [(37 * i + 11) % 250 + 3 for i in range(n_tokens)]


def alternate(
    rounds: int, actions: Mapping[str, Callable[[], T]], notes: dict[str, str] | None = None
) -> dict[str, list[T]]:
    """Run every action once a round, every other round from the last to the first.

    An action that fails is left out from then on, and `notes` tells why.
    """
    notes = {} if notes is None else notes
    results: dict[str, list[T]] = {label: [] for label in actions}
    for number in range(rounds):
        for label in list(actions) if number % 2 == 0 else list(actions)[::-1]:
            if label in notes:
                continue
            begin = time.monotonic()
            try:
                results[label].append(actions[label]())
            except BenchError as exc:
                notes[label] = str(exc)
            told = notes.get(label) or f"{time.monotonic() - begin:.1f} s"
            print(f"  round {number + 1}: {label}: {told}", file=sys.stderr, flush=True)
    return results


def contest(bench: Bench, measure: str, openers: Mapping[str, Opener], *, warms_up: bool = False) -> dict[str, Series]:
    """Tokens/s of each contestant; those that cannot run here say why.

    Args:
        warms_up: each of them runs once before the first round, which is not counted.
    """
    notes: dict[str, str] = {}
    actions: dict[str, Action] = {}
    with contextlib.ExitStack() as stack:
        for label, opener in openers.items():
            try:
                actions[label] = stack.enter_context(opener)
            except BenchError as exc:
                notes[label] = str(exc)
        if warms_up:
            print("  not counted:", file=sys.stderr, flush=True)
            alternate(1, actions, notes)
        runs = alternate(bench.rounds, actions, notes)
    return {label: _speeds(measure, label, runs.get(label, []), notes.get(label, "")) for label in openers}


def _speeds(measure: str, label: str, runs: Sequence[Run], note: str = "") -> Series:
    return Series(measure, label, "tokens/s", tuple(run.tokens_per_s for run in runs), note)


@contextlib.contextmanager
def _ours(bench: Bench, n_nodes: int, n_samples: int, settings: NodeSettings = ON_CPU) -> Iterator[Action]:
    with bench.ring(n_nodes, settings) as nodes:
        yield lambda: nodes.run(bench.request(n_samples))


@contextlib.contextmanager
def _litgpt(bench: Bench, settings: NodeSettings = ON_CPU) -> Iterator[Action]:
    request = bench.request(1)
    with litgpt(bench.ckpt, bench.cores[:1], bench.scratch, settings) as peer:
        yield lambda: peer.run(request.prompt, 1, request.n_tokens)


@contextlib.contextmanager
def _llama(bench: Bench, kind: str, n_cores: int, n_samples: int) -> Iterator[Action]:
    request = bench.request(n_samples)
    bench.llama.require()
    with bench.llama.serving(bench.ckpt, kind, bench.cores[:n_cores]) as peer:
        yield lambda: peer.run(request.prompt, n_samples, request.n_tokens)


@contextlib.contextmanager
def _llama_rpc(bench: Bench, n_samples: int, shares: list[float]) -> Iterator[Action]:
    """`shares` gets what the server took of the processor time of each run, in percent."""
    request = bench.request(n_samples)
    with bench.llama.serving_with(bench.rpc_server, bench.ckpt, "Q8_0", bench.cores) as peer:

        def run() -> Run:
            result = peer.run(request.prompt, n_samples, request.n_tokens)
            shares.append(100 * peer.server_share)
            return result

        yield run


@contextlib.contextmanager
def _dllama(bench: Bench, n_nodes: int) -> Iterator[Action]:
    request = bench.request(1)
    with bench.dllama.nodes(bench.ckpt, "Q40", bench.cores[:n_nodes]) as nodes:
        yield lambda: nodes.run(request.prompt, request.n_tokens)


# ---- the measures


def measure_ring(bench: Bench) -> list[Series]:
    """A ring of two over two standalone nodes at the same time, with groups of the same size."""
    sizes = (2, 16) if bench.quick else (2, 4, 8, 16, 32)
    with contextlib.ExitStack() as stack:
        alone = [stack.enter_context(ring(bench.ckpt, [core], bench.scratch)) for core in bench.cores[:2]]
        both = stack.enter_context(bench.ring(2))
        actions: dict[str, Action] = {f"1 node, {_samples(n)}": _run(alone[0], bench.request(n)) for n in (1, 16)}
        actions["1 node again, 1 sample"] = _run(alone[0], bench.request(1))
        for n in sizes:
            request = bench.request(n)
            actions[f"2 nodes, {_samples(n)}"] = _run(both, request)
            actions[f"2 standalone nodes, {_samples(n)}"] = _run_alone(alone, request)
        notes: dict[str, str] = {}
        runs = alternate(bench.rounds, actions, notes)
    series = {label: _speeds("ring", label, runs[label], notes.get(label, "")) for label in actions}
    noise = ratio("ring", "1 node over itself: the noise", series["1 node again, 1 sample"], series["1 node, 1 sample"])
    efficiencies = [
        ratio(
            "ring",
            f"2 nodes over 2 standalone nodes, {_samples(n)}",
            series[f"2 nodes, {_samples(n)}"],
            series[f"2 standalone nodes, {_samples(n)}"],
            "ring" if n == 2 else "",
        )
        for n in sizes
    ]
    return [*series.values(), noise, *efficiencies]


def _samples(n: int) -> str:
    return f"{n} sample{'s' * (n > 1)}"


def _run(nodes: Ring, request: Request) -> Action:
    return lambda: nodes.run(request)


def _run_alone(alone: Sequence[Ring], request: Request) -> Action:
    """The samples of `request` shared out over the standalone nodes, as many tokens of each."""
    share = Request(request.prompt, request.n_samples // len(alone), request.n_tokens)
    return lambda: run_together(alone, share)


def measure_litgpt(bench: Bench) -> list[Series]:
    """One node with one sample beside litgpt on the same core."""
    speeds = contest(bench, "litgpt", {"litgpt, 1 thread": _litgpt(bench), "1 node, 1 sample": _ours(bench, 1, 1)})
    theirs, ours = speeds.values()
    return [theirs, ours, ratio("litgpt", "1 node over litgpt", ours, theirs, "litgpt")]


Contestant = tuple[str, str, int, int]  # our quantization, llama.cpp's kind, nodes or threads, samples or sequences


def measure_llama(bench: Bench) -> list[Series]:
    """Both sides from the same weights: float32, 8 and 4 bits; one sample and 16 on one core, 16 on two."""
    units = int8_units()
    targets: dict[Contestant, str] = {
        ("none", "F32", 1, 1): "",
        ("none", "F32", 2, 16): "",
        ("int8", "Q8_0", 1, 1): "int8 one",
        ("int8", "Q8_0", 1, 16): f"int8 node {units}",
        ("int8", "Q8_0", 2, 16): f"int8 ring {units}",
    }
    if not bench.quick:
        targets |= {("int4", "Q4_0", 1, 1): "int4 one", ("int4", "Q4_0", 2, 16): ""}
    same = compare_tokens(bench)
    few_label, many_label = _our_label("int8", 2, 2), _our_label("int8", 2, 16)
    speeds, ratios = _beside_llama(bench, "llama", targets, {few_label: _ours(bench, 2, 2, NodeSettings("int8"))})
    group = ratio("llama", "int8, 2 nodes: 16 samples over 2", speeds[many_label], speeds[few_label], "int8 group")
    return [same, *speeds.values(), group, *ratios]


def _beside_llama(
    bench: Bench, measure: str, targets: Mapping[Contestant, str], others: Mapping[str, Opener]
) -> tuple[dict[str, Series], list[Series]]:
    """Tokens/s of all, `others` too, and ours over llama.cpp's with the target that each ratio is held against."""
    openers: dict[str, Opener] = {}
    for mode, kind, n, n_samples in targets:
        openers[_our_label(mode, n, n_samples)] = _ours(bench, n, n_samples, NodeSettings(mode))
        openers[_llama_label(kind, n, n_samples)] = _llama(bench, kind, n, n_samples)
    speeds = contest(bench, measure, {**openers, **others})
    ratios = []
    for (mode, kind, n, n_samples), target in targets.items():
        ours, theirs = _our_label(mode, n, n_samples), _llama_label(kind, n, n_samples)
        label = f"{ours} over llama.cpp {kind}"
        ratios.append(ratio(measure, label, speeds[ours], speeds[theirs], target))
    return speeds, ratios


def compare_tokens(bench: Bench) -> Series:
    """How many greedy tokens llama.cpp's float32 and ours have in common before they part, of 24.

    Raises `BenchError` where they part early: the two would not run the same model.
    """
    label = "first greedy tokens equal to llama.cpp F32"
    request = Request(prompt_of(8), n_samples=2, n_tokens=24)
    try:
        bench.llama.require()
    except BenchError as exc:
        return Series("llama", label, "of 24", note=str(exc))
    with bench.ring(1) as node, bench.llama.serving(bench.ckpt, "F32", bench.cores[:1]) as peer:
        (ours, _), (theirs, again) = node.run(request).tokens, peer.run(request.prompt, 2, 24, exact=True).tokens
    if theirs != again:
        raise BenchError(f"two sequences of llama.cpp with the same prompt differ: {theirs[:8]} and {again[:8]}")
    return Series("llama", label, "of 24", (_n_equal(ours, theirs, "llama.cpp"),))


def _n_equal(ours: Sequence[int], theirs: Sequence[int], peer: str) -> float:
    """How many tokens the two begin with alike. Raises `BenchError` where these are few."""
    n_equal = next((i for i, (a, b) in enumerate(zip(ours, theirs, strict=True)) if a != b), len(ours))
    if n_equal < 8:
        raise BenchError(f"{peer} runs another model: its tokens are {theirs[:8]}, ours {ours[:8]}")
    return float(n_equal)


def measure_rpc(bench: Bench) -> list[Series]:
    """Our ring of two in int8 beside llama.cpp over two processes, a client and an RPC server with half the layers."""
    bench.rpc_server.require()
    bench.llama.require_rpc()
    sizes = (1, 16)
    shares: dict[int, list[float]] = {n: [] for n in sizes}
    openers: dict[str, Opener] = {}
    for n in sizes:
        openers[_our_label("int8", 2, n)] = _ours(bench, 2, n, NodeSettings("int8"))
        openers[_rpc_label(n)] = _llama_rpc(bench, n, shares[n])
    speeds = contest(bench, "rpc", openers)
    found = list(speeds.values())
    for n in sizes:
        ours, theirs = speeds[_our_label("int8", 2, n)], speeds[_rpc_label(n)]
        label = f"{theirs.label}: the server's part of the processor time"
        found.append(Series("rpc", label, "%", tuple(shares[n]), theirs.note))
        found.append(ratio("rpc", f"{ours.label} over llama.cpp Q8_0 by RPC", ours, theirs))
    return found


def measure_large(bench: Bench) -> list[Series]:
    """The same for a larger model: random weights of the TinyLlama-1.1B shape."""
    bench.llama.require()
    bench = _with_large(bench)
    targets: dict[Contestant, str] = {
        ("int8", "Q8_0", 1, 1): "int8 one large",
        ("int8", "Q8_0", 1, 16): f"int8 node large {int8_units()}",
        ("int8", "Q8_0", 2, 16): "",
        ("int4", "Q4_0", 1, 1): "int4 one large",
    }
    speeds, ratios = _beside_llama(bench, "large", targets, {})
    bench.llama.forget(bench.ckpt, "F32")
    return [*speeds.values(), *ratios]


def measure_dllama(bench: Bench) -> list[Series]:
    """One and two nodes in int4 beside as many of distributed-llama in Q40: one sample of the TinyLlama-1.1B shape."""
    bench.dllama.require()
    same = _compare_dllama_tokens(bench)
    bench, int4 = _with_large(bench), NodeSettings("int4")
    openers: dict[str, Opener] = {}
    for n in (1, 2):
        openers |= {_our_label("int4", n, 1): _ours(bench, n, 1, int4), _dllama_label(n): _dllama(bench, n)}
    few, many = _our_label("int4", 2, 1), _our_label("int4", 2, 2)
    speeds = contest(bench, "dllama", {**openers, many: _ours(bench, 2, 2, int4)})
    pairs = [(_our_label("int4", n, 1), _dllama_label(n)) for n in (1, 2)]
    pairs += [(many, _dllama_label(2)), (_dllama_label(2), _dllama_label(1)), (few, _our_label("int4", 1, 1))]
    return [same, *speeds.values(), *(ratio("dllama", f"{a} over {b}", speeds[a], speeds[b]) for a, b in pairs)]


def _dllama_label(n_nodes: int) -> str:
    return f"distributed-llama Q40, {n_nodes} node{'s' * (n_nodes > 1)}, 1 sequence"


def _compare_dllama_tokens(bench: Bench) -> Series:
    """The same as `compare_tokens` of one node of distributed-llama; raises `BenchError` where they part early."""
    request = Request([*prompt_of(7), 0], n_tokens=24)  # it takes 0 for the last token of any prompt
    with bench.ring(1) as node, bench.dllama.nodes(bench.ckpt, "F32", bench.cores[:1]) as peer:
        (ours,), (theirs,) = node.run(request).tokens, peer.run(request.prompt, request.n_tokens).tokens
    equal = _n_equal(ours, theirs, "distributed-llama")
    return Series("dllama", "first greedy tokens equal to distributed-llama F32", "of 24", (equal,))


def measure_cuda(bench: Bench) -> list[Series]:
    """One GPU: one node and two that share it beside litgpt, a model of the TinyLlama-1.1B shape in bfloat16."""
    if not torch.cuda.is_available():
        raise BenchError("no CUDA device is there")
    bench = dataclasses.replace(_with_large(bench), steps=bench.steps)
    plain, int8 = (NodeSettings(quantize, "bfloat16", "cuda") for quantize in ("none", "int8"))
    openers: dict[str, Opener] = {"litgpt": _litgpt(bench, plain)}
    for n_nodes, n_samples in ((1, 1), (1, 4), (1, 16), (1, 64), (2, 2), (2, 64)):
        openers[_our_label("bfloat16", n_nodes, n_samples)] = _ours(bench, n_nodes, n_samples, plain)
    openers |= {_our_label("int8", 1, n): _ours(bench, 1, n, int8) for n in (1, 16)}
    # litgpt leaves cuDNN's attention on, which plans for each length of a sequence when a process first meets it: its
    # first run had 19 tokens/s, the next ones 58.
    speeds = contest(bench, "cuda", openers, warms_up=True)
    name = torch.cuda.get_device_name()
    peer = speeds["litgpt"]
    ratios = [ratio("cuda", f"{label} over litgpt", ours, peer) for label, ours in speeds.items() if ours is not peer]
    return [*speeds.values(), *(dataclasses.replace(found, label=f"{found.label}, {name}") for found in ratios)]


def _with_large(bench: Bench) -> Bench:
    """Fewer tokens of the random model, which is eight times as large. It is made where it is not there."""
    from mdi.cli.prepare import prepare

    if not (bench.large / "lit_model.pth").is_file():
        made, _ = prepare(PrepareOptions(random=LARGE_SHAPE, ckpt_folder=bench.large.parent.parent))
        if made != bench.large:
            raise BenchError(f"{bench.large} is not there; {made} was made")
    return dataclasses.replace(bench, ckpt=without_chunks(bench.large, bench.scratch), steps=max(16, bench.steps // 2))


def _our_label(mode: str, n_nodes: int, n_samples: int) -> str:
    name = "float32" if mode == "none" else mode
    return f"{name}, {n_nodes} node{'s' * (n_nodes > 1)}, {_samples(n_samples)}"


def _llama_label(kind: str, n_cores: int, n_samples: int) -> str:
    return f"llama.cpp {kind}, {n_cores} thread{'s' * (n_cores > 1)}, {n_samples} sequence{'s' * (n_samples > 1)}"


def _rpc_label(n_samples: int) -> str:
    return f"llama.cpp Q8_0, 2 processes by RPC, {n_samples} sequence{'s' * (n_samples > 1)}"


def measure_hops(bench: Bench) -> list[Series]:
    """What a hop costs outside the stages, by the rows of the message, and what a key adds."""
    n_embd = load_config(bench.ckpt).n_embd
    n_trips = 100 if bench.quick else 400
    with contextlib.ExitStack() as stack:
        bare, keyed = (stack.enter_context(hops.pair(bench.cores, bench.scratch, n_embd, key)) for key in ("", HOP_KEY))
        actions = {(n, ""): _ask_hops(bare, n, n_trips) for n in (1, 16, 128, 512)}
        actions |= {(n, ", with a key"): _ask_hops(keyed, n, n_trips) for n in (1, 16)}
        found = alternate(bench.rounds, {f"{n} rows{key}": action for (n, key), action in actions.items()})
    series = []
    for (n, key), stats in zip(actions, found.values(), strict=True):
        name = f"{n} row{'s' * (n > 1)} of {n_embd}, {4 * n * n_embd / 1000:.0f} kB{key}"
        target = "hop" if n == 16 and not key else ""
        series.append(Series("hops", f"{name}: median", "ms", tuple(s["median"] / 1e3 for s in stats), target=target))
        series.append(Series("hops", f"{name}: 95th percentile", "ms", tuple(s["p95"] / 1e3 for s in stats)))
        series.append(Series("hops", f"{name}: processor time of both ends", "µs", tuple(s["cpu"] for s in stats)))
        series.append(Series("hops", f"{name}: waits of their threads", "", tuple(s["waits"] for s in stats)))
    return series + _measure_frames(bench.rounds, n_embd, n_trips)


def _measure_frames(rounds: int, n_embd: int, n_frames: int) -> list[Series]:
    """The part of a hop that encodes and decodes, with a checksum or a MAC."""
    kinds = {"with a checksum": None, "with a MAC": bytes(32)}
    actions = {
        f"a frame of {n} row{'s' * (n > 1)}, {kind}": functools.partial(
            hops.microseconds_per_frame, n, n_embd, session_key, n_frames
        )
        for n in (1, 16)
        for kind, session_key in kinds.items()
    }
    found = alternate(rounds, actions)
    return [Series("hops", f"{name}: encoded and decoded", "µs", tuple(values)) for name, values in found.items()]


def _ask_hops(near: Worker, n_rows: int, n_trips: int) -> Callable[[], dict[str, float]]:
    request = {"n_rows": n_rows, "n_trips": max(50, n_trips * 16 // max(16, n_rows))}
    return lambda: near.ask(request)


def measure_prompt(bench: Bench) -> list[Series]:
    """Time to the first token of a prompt, and tokens/s behind it: the cost of a context that is used."""
    most = load_config(bench.ckpt).block_size - bench.steps
    lengths = [n for n in ((32, 512) if bench.quick else (32, 128, 512, 2048)) if n <= most]
    with contextlib.ExitStack() as stack:
        rings = {n: stack.enter_context(bench.ring(n)) for n in (1, 2)}
        actions = {
            f"{n} node{'s' * (n > 1)}, {length} prompt tokens": _run(nodes, bench.request(1, prompt_tokens=length))
            for n, nodes in rings.items()
            for length in lengths
        }
        runs = alternate(bench.rounds, actions)
    firsts = [Series("prompt", f"{at}: first token", "s", tuple(r.first_token_s for r in runs[at])) for at in actions]
    return firsts + [_speeds("prompt", f"{at}: decoding", runs[at]) for at in actions]


def measure_context(bench: Bench) -> list[Series]:
    """Tokens/s of the same short run with more and more context allocated."""
    most = load_config(bench.ckpt).block_size
    with bench.ring(1) as nodes:
        actions = {
            f"1 node, 1 sample, {n} positions allocated": _run(nodes, bench.request(1, sequence_length=n))
            for n in (256, 2048, 8192)
            if n <= most
        }
        runs = alternate(bench.rounds, actions)
    series = [_speeds("context", label, found) for label, found in runs.items()]
    return [*series, ratio("context", "the most over the least allocated", series[-1], series[0])]


def measure_memory(bench: Bench) -> list[Series]:
    """Peak resident memory of each node, and the time from the command line to the first token: fresh processes."""
    most = load_config(bench.ckpt).block_size
    shapes = [(1, 1, 32, 256), (2, 2, 32, 256), (2, 16, 32, 256), (2, 2, 32, most), (2, 2, min(2048, most - 4), most)]
    actions = {
        f"{nodes} node{'s' * (nodes > 1)}, {_samples(samples)}, {used} of {positions} positions": _fresh(
            bench, nodes, Request(prompt_of(used), samples, 4, positions)
        )
        for nodes, samples, used, positions in shapes
    }
    found = alternate(min(2, bench.rounds), actions)
    series = []
    for label, runs in found.items():
        for node, peaks in enumerate(zip(*(run.peak_bytes for run in runs), strict=True)):
            name = "starter" if node == 0 else f"secondary {node - 1}"
            series.append(Series("memory", f"{label}: {name}", "MB", tuple(peak / 1e6 for peak in peaks)))
        series.append(Series("memory", f"{label}: first token", "s", tuple(run.first_token_s for run in runs)))
    return series


@dataclass(frozen=True)
class FreshRun:
    """A run of processes that were started for it alone."""

    peak_bytes: list[int]
    first_token_s: float  # from the command line, all nodes started at the same time


def _fresh(bench: Bench, n_nodes: int, request: Request, settings: NodeSettings = ON_CPU) -> Callable[[], FreshRun]:
    def run() -> FreshRun:
        begin = time.monotonic()
        with bench.ring(n_nodes, settings) as nodes:
            times = nodes.run(request).times
            return FreshRun(nodes.peak_bytes(), min(sample[0] for sample in times) - begin)

    return run


def measure_start(bench: Bench) -> list[Series]:
    """A quantized node that has run before: the time to its first token, and its memory beside what it must hold."""
    n_layer, n_samples, context = load_config(bench.ckpt).n_layer, 2, 256
    half = Request(prompt_of(PROMPT_TOKENS), n_samples, 4, context, split=f"{n_layer - n_layer // 2},{n_layer // 2}")
    alone, with_another = _command(bench, "--quantize", "int8"), _fresh(bench, 2, half, NodeSettings("int8"))
    alone(), with_another()
    rounds = min(3, bench.rounds)
    (seconds,) = alternate(rounds, {"1 node, second start": alone}).values()
    (runs,) = alternate(rounds, {"2 nodes, second start": with_another}).values()
    needed = _needed_bytes(bench, n_layer // 2, n_samples, context)
    peaks = [run.peak_bytes[1] for run in runs]
    return [
        Series("start", "second start to the first token, int8, 1 node", "s", tuple(seconds), target="start"),
        Series("start", "the secondary of 2 nodes, int8: peak", "MB", tuple(peak / 1e6 for peak in peaks)),
        Series(
            "start",
            "the same beside weights, slots and a message of 128 rows",
            "MB",
            tuple((peak - needed) / 1e6 for peak in peaks),
            target="memory",
        ),
    ]


def _command(bench: Bench, *flags: str) -> Callable[[], float]:
    """`starter.py` as a user has it, for one token: seconds from the command to its end."""
    command = [sys.executable, str(ROOT / "src" / "starter.py"), "--quiet", "--ckpt", str(bench.ckpt), *flags]
    command += ["--nodes-config", str(STANDALONE), "--prompt", "a", "--n-samples", "1", "--n-tokens", "1"]
    log = bench.scratch / "logs" / "starter.log"

    def run() -> float:
        began_s = time.monotonic()
        if start(command, bench.cores[:1], log).wait():
            raise BenchError(log.read_text(errors="replace").strip().rpartition("\n")[2])
        return time.monotonic() - began_s

    return run


def _needed_bytes(bench: Bench, n_layers: int, n_samples: int, context: int) -> int:
    """What the last layers of the model take in int8, as the budget counts them."""
    from mdi.checkpoint.folder import open_folder
    from mdi.cluster.budget import NodeFacts, need_of
    from mdi.model.backends.select import prepare

    model, cpu = open_folder(bench.ckpt, 2), torch.device("cpu")
    facts = NodeFacts("", "", "cpu", torch.float32, "int8", None, has_kernels=prepare(cpu, "auto"))
    span = Span(model.config.n_layer - n_layers, model.config.n_layer)
    need = need_of(
        facts, model.config, span, has_ends=False, context=context, max_rows=MAX_ROWS, stored=model.stored(2)
    )
    return need.weights + n_samples * need.slot + need.message


def measure_link(bench: Bench) -> list[Series]:
    """Two nodes and four samples, with a relay that delays on every hop."""
    return _over_relays(bench, "link", (1, 5), {})


def measure_large_link(bench: Bench) -> list[Series]:
    """The same for the larger model, which computes for so long that a delay of 5 ms need not show."""
    return _over_relays(_with_large(bench), "large-link", (5,), {5: "link"})


def _over_relays(bench: Bench, measure: str, delays_ms: Sequence[int], targets: Mapping[int, str]) -> list[Series]:
    request = bench.request(4)
    with contextlib.ExitStack() as stack:
        nodes = stack.enter_context(bench.ring(2))
        actions: dict[str, Action] = {"without relays": _run(nodes, request)}
        for delay_ms in (0, *delays_ms):
            seen_as = stack.enter_context(relays(bench, nodes.nodes_config, delay_ms))
            actions[_relays(delay_ms)] = _run(nodes, dataclasses.replace(request, seen_as=str(seen_as)))
        runs = alternate(bench.rounds, actions)
    series = {label: _speeds(measure, f"2 nodes, 4 samples, {label}", found) for label, found in runs.items()}
    plain = series[_relays(0)]
    ratios = [
        ratio(measure, f"{n} ms one way over no delay", series[_relays(n)], plain, targets.get(n, ""))
        for n in delays_ms
    ]
    return [*series.values(), *ratios]


def _relays(delay_ms: int) -> str:
    return f"relays, {delay_ms} ms one way"


@contextlib.contextmanager
def relays(bench: Bench, nodes_config: Path, delay_ms: float) -> Iterator[Path]:
    """A relay before every node; yields the network file in which the nodes see them."""
    nodes = load_network(nodes_config).nodes
    ports = free_ports(len(nodes))
    with contextlib.ExitStack() as stack:
        for index, (node, port) in enumerate(zip(nodes, ports, strict=True)):
            command = python_module("relay", str(port), node.addr, str(node.port_in), "--delay-ms", str(delay_ms))
            log = bench.scratch / "logs" / f"relay{index}_{delay_ms}ms.log"
            stack.callback(end, start(command, bench.cores, log))
        yield write_seen_as(nodes_config, ports)


def measure_serve(bench: Bench) -> list[Series]:
    """Users of a ring of two that serves, int8, beside users of llama-server with the same weights in Q8_0."""
    load, cores = serving.QUICK if bench.quick else serving.Load(), bench.cores
    ours, theirs = "ring of 2, int8", "llama-server, Q8_0"
    notes: dict[str, str] = {}
    with contextlib.ExitStack() as stack:
        users = stack.enter_context(serving.users_on(cores, bench.scratch, load))
        loads = serving.loads_of(users, load)
        rows = {name: [serving.row_of(each, name) for each in (*loads, serving.TURN)] for name in (ours, theirs)}
        servers: dict[str, Served] = {}
        for name, opener in {ours: _serving, theirs: _llama_serving}.items():
            try:
                servers[name] = stack.enter_context(opener(bench))
                loads[serving.users_text(1)](servers[name], 0)  # what is made at the first use is made
            except BenchError as exc:
                notes |= dict.fromkeys(rows[name], str(exc))
        actions: dict[str, Callable[[], Any]] = {}
        for number, (load_name, play) in enumerate(loads.items(), 1):
            actions |= {
                serving.row_of(load_name, name): serving.seeded(play, server, number)
                for name, server in servers.items()
            }
        for name, server in servers.items():
            actions[serving.row_of(serving.TURN, name)] = serving.seeded(users.tenth_turn, server, 10_000)
        runs = alternate(bench.rounds, actions, notes)
    return serving.tables(list(loads), ours, theirs, runs, notes)


@contextlib.contextmanager
def _serving(bench: Bench) -> Iterator[Served]:
    with served_ring(bench.ckpt, bench.cores, bench.scratch, NodeSettings("int8")) as served:
        yield served


@contextlib.contextmanager
def _llama_serving(bench: Bench) -> Iterator[Served]:
    bench.llama_server.require()
    bench.llama.require()
    if bench.gguf is None:
        raise BenchError("--gguf names no file of the model for llama-server")
    with bench.llama_server.serving(bench.llama.requantized(bench.gguf, "Q8_0"), bench.cores) as served:
        yield served


MEASURES: dict[str, Callable[[Bench], list[Series]]] = {
    "ring": measure_ring,
    "litgpt": measure_litgpt,
    "llama": measure_llama,
    "rpc": measure_rpc,
    "large": measure_large,
    "dllama": measure_dllama,
    "hops": measure_hops,
    "prompt": measure_prompt,
    "context": measure_context,
    "memory": measure_memory,
    "start": measure_start,
    "link": measure_link,
    "large-link": measure_large_link,
    "cuda": measure_cuda,
    "serve": measure_serve,
}
USUAL = tuple(name for name in MEASURES if name != "serve")  # which takes as long as all of these
_NOT_QUICK = ("large", "dllama", "large-link", "context", "memory", "start", "cuda")
QUICK = tuple(name for name in USUAL if name not in _NOT_QUICK)
