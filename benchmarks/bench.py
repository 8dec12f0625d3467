#!/usr/bin/env python3
"""Measure this machine: rings of pinned nodes beside standalone nodes, litgpt, llama.cpp and others, in the same run.

    python benchmarks/bench.py                      everything: about 25 minutes on two cores
    python benchmarks/bench.py --quick              two rounds of most of it, the small model only
    python benchmarks/bench.py --only ring --rounds 9
    python benchmarks/bench.py --only serve         users of a server; not among "everything"

Writes a JSON file, a Markdown table and a plot; benchmarks/README.md tells how to read them.
"""

import argparse
import datetime
import platform
import signal
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "src")]

from benchmarks.distributed_llama import DistributedLlama  # noqa: E402
from benchmarks.machine import busy, commit, processor  # noqa: E402
from benchmarks.measures import LARGE_SHAPE, MEASURES, QUICK, USUAL, Bench  # noqa: E402
from benchmarks.peers import LlamaCpp, RpcServer  # noqa: E402
from benchmarks.report import Series, markdown, plot, slug, write_json  # noqa: E402
from benchmarks.rings import without_chunks  # noqa: E402
from benchmarks.servers import LlamaServer  # noqa: E402
from benchmarks.workers import BenchError, own_cores  # noqa: E402
from mdi.config.paths import CHECKPOINTS_DIR  # noqa: E402
from mdi.errors import MdiError  # noqa: E402
from mdi.files import write_text  # noqa: E402


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    option = parser.add_argument
    option("--ckpt", type=Path, metavar="DIR", default=CHECKPOINTS_DIR / "local" / "SmolLM2-135M-Instruct")
    large = CHECKPOINTS_DIR / "random" / LARGE_SHAPE.rpartition("/")[2]
    option("--large-ckpt", type=Path, metavar="DIR", default=large, help="made with random weights if not there")
    option(
        "--only", action="append", choices=MEASURES, metavar="NAME", help=f"one of {', '.join(MEASURES)}; may repeat"
    )
    option("--rounds", type=int, metavar="N", help="default: 5, with --quick 2")
    option("--quick", action="store_true", help="two rounds, fewer sizes, the small model only")
    option("--steps", type=int, default=48, metavar="N", help="tokens of a sample that is alone (default: 48)")
    option("--cores", metavar="A,B", help="the two cores to use (default: the first two that this process may use)")
    option("--llama-python", default=sys.executable, metavar="PATH", help="a Python that has llama-cpp-python")
    option("--llama-server", default="llama-server", metavar="PATH", help="llama.cpp's server, for --only serve")
    option(
        "--llama-rpc-server", default="ggml-rpc-server", metavar="PATH", help="llama.cpp's RPC server, for --only rpc"
    )
    option("--dllama", default="dllama", metavar="PATH", help="the program of distributed-llama")
    option("--gguf", type=Path, metavar="FILE", help="what --ckpt was made from, for llama-server")
    option("--scratch", type=Path, metavar="DIR", default=ROOT / ".cache" / "bench", help="converted models and logs")
    option(
        "--output",
        type=Path,
        metavar="FILE",
        help="the JSON file (default: in benchmarks/results, by date and machine)",
    )
    option("--machine", metavar="NAME", help="what the machine is called in the results (default: its processor)")
    return parser


def describe(bench: Bench, machine: str) -> dict[str, Any]:
    """What the figures were taken on, and with which versions."""
    return {
        "date": f"{datetime.date.today()}",
        "machine": machine,
        "cores": f"{len(bench.cores)} of {len(own_cores())}",
        "busy before": busy(bench.cores),
        "commit": commit(),
        "python": platform.python_version(),
        "torch": version("torch"),
        "litgpt": version("litgpt"),
        "llama-cpp-python": bench.llama.version() or "not there",
        "llama-server": bench.llama_server.version() or "not there",
        "distributed-llama": bench.dllama.version() or "not there",
        "model": bench.ckpt.resolve().name,
        "rounds": bench.rounds,
    }


def measure(bench: Bench, names: list[str]) -> list[Series]:
    """All series of the measures; one that fails as a whole is a series without values."""
    series: list[Series] = []
    for name in names:
        print(f"{name}: {MEASURES[name].__doc__}", file=sys.stderr, flush=True)
        try:
            series += MEASURES[name](bench)
        except (BenchError, MdiError) as exc:
            series.append(Series(name, "all of it", "", note=str(exc)))
    return series


def main() -> None:
    parser = build_parser()
    options = parser.parse_args()
    try:
        ckpt = without_chunks(options.ckpt, options.scratch)
    except BenchError as exc:
        parser.error(str(exc))
    cores = [int(core) for core in options.cores.split(",")] if options.cores else own_cores()[:2]
    if len(cores) != 2:
        parser.error("two cores are needed, one for each node")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # in good order: no child is left behind
    rounds = options.rounds or (2 if options.quick else 5)
    llama = LlamaCpp(options.llama_python, options.scratch)
    bench = Bench(
        ckpt,
        options.large_ckpt,
        cores,
        options.scratch,
        llama,
        rounds,
        options.steps,
        options.quick,
        options.gguf,
        LlamaServer(options.llama_server, options.scratch),
        RpcServer(options.llama_rpc_server, options.scratch),
        DistributedLlama(options.dllama, options.scratch),
    )
    machine = describe(bench, options.machine or processor())
    series = measure(bench, options.only or list(QUICK if options.quick else USUAL))
    name = "-".join([machine["date"], slug(machine["machine"]), *(options.only or [])]) + ".json"
    path = options.output or ROOT / "benchmarks" / "results" / name
    text = markdown(machine, series)
    write_json(path, machine, series)
    write_text(path.with_suffix(".md"), text)
    plot(path.with_suffix(".png"), series)
    print(f"{text}\n{path}, .md and .png", flush=True)


if __name__ == "__main__":
    main()
