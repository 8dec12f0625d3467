#!/usr/bin/env python3
"""Measure how soon generation goes on when a secondary that was killed is back, with its weights on its disk.

    python benchmarks/recovery_time.py --ckpt src/checkpoints/local/SmolLM2-135M-Instruct --repetitions 3

The clock starts when the new process waits for a starter, and stops at the next token. Beside the time stands the
processor time of both nodes together, one thread each: what the time would be on cores that nobody else uses.
"""

import argparse
import contextlib
import itertools
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import psutil

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "src")]

from benchmarks.rings import without_chunks, write_network  # noqa: E402
from benchmarks.workers import BenchError, end, own_cores, start  # noqa: E402
from mdi.config.network import load_network  # noqa: E402
from mdi.config.paths import CHECKPOINTS_DIR  # noqa: E402
from mdi.control.client import ControlClient  # noqa: E402
from mdi.control.status import NodeState, StarterStatus  # noqa: E402
from mdi.errors import ControlError  # noqa: E402

TIMEOUT_S = 300.0
TOKENS_BEFORE = 16  # generated when the node is killed
PARTS = ("start of the process", "call by the starter", "load", "replay")  # the first is before the clock starts

Process = subprocess.Popen[bytes]


class Moment(NamedTuple):
    """A time, and the processor time that the nodes have taken by then."""

    time_s: float
    processor_s: float


def wait_until(condition: Callable[[], object], nodes: Sequence[Process] = ()) -> Moment:
    """When the condition was found to hold."""
    deadline_s = time.monotonic() + TIMEOUT_S
    while not condition():
        if time.monotonic() > deadline_s:
            raise SystemExit(f"nothing happened within {TIMEOUT_S:g} s")
        time.sleep(0.02)
    return Moment(time.monotonic(), sum(sum(psutil.Process(node.pid).cpu_times()[:2]) for node in nodes))


class Ring:
    """A ring of two as processes of their own."""

    def __init__(self, options: argparse.Namespace, scratch: Path) -> None:
        self._options, self._scratch = options, scratch
        self._network = write_network(scratch, 2)
        nodes = load_network(self._network).nodes
        self._clients = [ControlClient(f"node {i}", node.addr, node.http_port) for i, node in enumerate(nodes)]

    def measure(self) -> list[Moment]:
        """How long each part took in a run whose secondary is killed and started again."""
        run = f"--prompt {'x' * self._options.prompt_length} --n-samples 1 --n-tokens 1000 --temperature 0".split()
        with contextlib.ExitStack() as stack:
            killed = self._start(stack, "secondary.py", index="0")
            starter = self._start(stack, "starter.py", "--ckpt", str(self._options.ckpt), *run, "--ignore-eos")
            wait_until(lambda: self._n_tokens() >= TOKENS_BEFORE)
            killed.kill()
            killed.wait()
            nodes = (starter, self._start(stack, "secondary.py", index="0"))
            moments = [wait_until(lambda: True, nodes)]
            log = self._scratch / "secondary.py.log"
            moments.append(wait_until(lambda: "waiting for a starter" in log.read_text(), nodes))
            n_tokens = self._n_tokens()
            moments.append(wait_until(lambda: self._state() is not NodeState.IDLE, nodes))
            moments.append(wait_until(lambda: self._state() in (NodeState.READY, NodeState.RUNNING), nodes))
            moments.append(wait_until(lambda: self._n_tokens() > n_tokens, nodes))
        return [Moment(b.time_s - a.time_s, b.processor_s - a.processor_s) for a, b in itertools.pairwise(moments)]

    def _start(self, stack: contextlib.ExitStack, script: str, *words: str, index: str | None = None) -> Process:
        command = [sys.executable, str(ROOT / "src" / script), *words]
        for name in ("dtype", "quantize"):
            command += [f"--{name}", value] if (value := getattr(self._options, name)) else []
        command += [] if index is None else ["--cache-dir", str(self._scratch / "cache")]
        command += ["--nodes-config", str(self._network)] + ([] if index is None else [index])
        process = start(command, own_cores(), self._scratch / f"{script}.log")
        stack.callback(end, process)
        return process

    def _n_tokens(self) -> int:
        """Tokens of the starter so far; 0 where it does not answer."""
        with contextlib.suppress(ControlError):
            status = self._clients[0].status()
            return status.tokens if isinstance(status, StarterStatus) else 0
        return 0

    def _state(self) -> NodeState:
        """Of the secondary; one that does not answer loads nothing."""
        with contextlib.suppress(ControlError):
            return self._clients[1].status().state
        return NodeState.IDLE


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ckpt", type=Path, default=CHECKPOINTS_DIR / "local" / "SmolLM2-135M-Instruct")
    parser.add_argument("--dtype", help="as of starter.py")
    parser.add_argument("--quantize", help="as of starter.py")
    parser.add_argument("--prompt-length", type=int, default=100, metavar="N", help="characters (default: 100)")
    parser.add_argument("--repetitions", type=int, default=3, metavar="N", help="default: 3")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        try:
            options.ckpt = without_chunks(options.ckpt, Path(scratch))
        except BenchError as exc:
            parser.error(str(exc))
        found = [Ring(options, Path(scratch)).measure() for _ in range(options.repetitions)]
    times = ", ".join(f"{sum(part.time_s for part in parts[1:]):.1f}" for parts in found)
    medians = [Moment(*map(statistics.median, zip(*parts, strict=True))) for parts in zip(*found, strict=True)]
    told = [f"{name} {m.time_s:.1f} ({m.processor_s:.1f})" for name, m in zip(PARTS, medians, strict=True)]
    print(f"{options.ckpt.name}: {times} s; medians in s (of processor time): {', '.join(told)}")


if __name__ == "__main__":
    main()
