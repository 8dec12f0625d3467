"""Compilation of the element-wise ops of a span, kept only where it makes a decoding step faster."""

import logging
import time
from collections.abc import Callable

import torch

from mdi.liveness import no_tick
from mdi.model.devices import memory_errors
from mdi.model.ops import PointwiseOps
from mdi.model.span_engine import SpanEngine
from mdi.segments import Segment
from mdi.strings import one_line

log = logging.getLogger(__name__)

MIN_COMPILE_SPEEDUP = 1.05  # below it the eager ops stay: a compiled graph also takes time and memory


def compile_ops(
    ops: PointwiseOps, engine: SpanEngine, n_embd: int, device: torch.device, tick: Callable[[], None] = no_tick
) -> None:
    """Compile the ops that `engine` computes with, if that pays here.

    Both ways are timed on messages of one row. Where torch cannot compile (no C++ compiler, say) or is
    less than 5% faster for it, the ops stay eager; what was found is logged. The engine's slots are freed.
    `tick` is called after each message that was timed.
    """
    with memory_errors("a message of one row"):
        engine.allocate(1, 2)
        eager_s = step_s(engine, n_embd, device)
    ops.compile()
    try:
        for n_rows in (1, 2):  # torch specializes a graph for the size 1, so one row and several are two graphs
            step_s(engine, n_embd, device, n_rows)
            tick()
        speedup = eager_s / step_s(engine, n_embd, device)
        verdict = f"makes a step {speedup:.2f} times as fast"
    except Exception as exc:  # noqa: BLE001  whatever the compiler raises, the span works without it
        speedup, verdict = 0.0, f"is not possible here ({one_line(exc)})"
    if speedup < MIN_COMPILE_SPEEDUP:
        verdict += ": left as they were"
        ops.use_eager()
    engine.allocate(0, 0)
    log.warning("compiling the small operations %s", verdict)


def step_s(engine: SpanEngine, n_embd: int, device: torch.device, n_rows: int = 1) -> float:
    """Seconds that a message of `n_rows` takes: the best of five."""
    return min(_timed(engine, n_embd, device, n_rows) for _ in range(5))


@torch.inference_mode()
def _timed(engine: SpanEngine, n_embd: int, device: torch.device, n_rows: int) -> float:
    start_s: float = time.perf_counter()
    engine.forward(torch.zeros(n_rows, n_embd), [Segment(0, 0, n_rows, n_rows)])
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start_s
