"""One node's span of blocks and its KV slots.

The blocks are litgpt's own, built with their global layer index; only their attention is replaced.
Shapes: N rows in the message, C = n_embd.
"""

import logging
import time
from collections.abc import Mapping, Sequence

import torch
from litgpt.config import Config
from litgpt.model import Block

from mdi.model.attention import make_plan
from mdi.model.build import Assembler, Placement
from mdi.model.devices import memory_errors
from mdi.model.quant import held_bytes
from mdi.model.shapes import build_block, rotary_tables, stage_shapes
from mdi.model.span import Span
from mdi.segments import Segment, SlotLedger
from mdi.strings import one_line

log = logging.getLogger(__name__)

LEAST_GAIN = 1.05  # of compiling, to be kept


class Stage:
    """The blocks of one span and their KV slots. Called only from the compute thread."""

    def __init__(
        self,
        config: Config,
        span: Span,
        weights: Mapping[str, torch.Tensor],
        placement: Placement,
    ) -> None:
        """
        Args:
            weights: the span's tensors under their global names (`transformer.h.<layer>. ...`); others are ignored.

        Raises:
            CheckpointError: a tensor is missing, or of another shape than `config` says.
            ConfigError: out of memory, or the device has no kernel for quantized weights.
        """
        self.config, self.span = config, span
        self.device, self.dtype = placement.device, placement.dtype
        self.weights_bytes = held_bytes(stage_shapes(config, span), placement.dtype, placement.quantize)
        self._kernels = placement.kernels
        self._ledger = SlotLedger(0, 0)
        self._blocks = {layer: _load_block(config, layer, weights, placement) for layer in range(*span)}

    def begin(self, n_slots: int, context: int) -> None:
        """Begin a session with empty slots. Where the last one had as many of the same size, their memory is kept."""
        if self.slots == (n_slots, context):
            self.reset()
        else:
            self.allocate(n_slots, context)

    def allocate(self, n_slots: int, context: int) -> None:
        """Make `n_slots` empty slots of `context` positions each. Earlier slots are forgotten."""
        self._ledger = SlotLedger(n_slots, context)
        with memory_errors(f"{n_slots} slots of {context} positions"):
            for block in self._blocks.values():
                block.attn.allocate(n_slots, context, self.device, self.dtype)
            self._cos, self._sin = rotary_tables(self.config, context, self.device)  # (context, D[, 2])

    @property
    def slots(self) -> tuple[int, int]:
        """The number of slots that have memory, and the positions of each."""
        return self._ledger.n_slots, self._ledger.context

    def reset(self) -> None:
        """Empty all slots, keeping their memory."""
        self._ledger = SlotLedger(self._ledger.n_slots, self._ledger.context)

    def free(self) -> None:
        """Give the memory of all slots back; the weights stay."""
        self._ledger = SlotLedger(0, 0)
        for block in self._blocks.values():
            block.attn.allocate(0, 0, self.device, self.dtype)

    @torch.inference_mode()
    def forward(self, x: torch.Tensor, segments: Sequence[Segment]) -> torch.Tensor:
        """Hidden states (N, C) of a message's rows -> (N, C) after this span; fills the slots.

        Raises `RemoteProtocolError` for illegal segments, before anything is computed.
        """
        self._ledger.extend(segments)
        with memory_errors(f"a message of {len(x)} rows"):
            plan = make_plan(segments, self.config, self.device, self.dtype)
            cos, sin = self._cos[plan.positions][:, None], self._sin[plan.positions][:, None]  # (N, 1, D[, 2])
            x = x.to(self.device, self.dtype)
            for layer, block in self._blocks.items():
                if (indices := self.config.rope_indices) is not None:
                    x = block.forward(x, cos[..., indices[layer]], sin[..., indices[layer]], plan)
                else:
                    x = block.forward(x, cos, sin, plan)
        return x

    def release(self, slot: int) -> None:
        """Empty a slot."""
        self._ledger.release(slot)

    @torch.inference_mode()
    def fork(self, source: int, target: int, n: int) -> None:
        """Let slot `target` begin with the first `n` positions of slot `source`."""
        self._ledger.fork(source, target, n)
        for block in self._blocks.values():
            block.attn.fork(source, target, n)

    def compile(self) -> None:
        """Compile the small operations of each block, if that pays here.

        Both ways are timed on messages of one row. Where torch cannot compile (no C++ compiler, say) or is
        less than 5% faster for it, the stage stays as it was; what was found is logged. Slots are forgotten.
        """
        self.allocate(1, 2)
        plain_s = self._step_s()
        self._kernels.compile()
        try:
            for n_rows in (1, 2):  # torch sees 1 as special
                self._step_s(n_rows)
            gain = plain_s / self._step_s()
            verdict = f"makes a step {gain:.2f} times as fast"
        except Exception as exc:  # noqa: BLE001  whatever the compiler raises, the stage works without it
            gain, verdict = 0.0, f"is not possible here ({one_line(exc)})"
        if gain < LEAST_GAIN:
            verdict += ": left as they were"
            self._kernels.restore()
        log.warning("compiling the small operations %s", verdict)

    def _step_s(self, n_rows: int = 1) -> float:
        """Seconds that a message takes: the best of five."""
        return min(self._timed(n_rows) for _ in range(5))

    @torch.inference_mode()
    def _timed(self, n_rows: int) -> float:
        start_s: float = time.perf_counter()
        self.forward(torch.zeros(n_rows, self.config.n_embd), [Segment(0, 0, n_rows, n_rows)])
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter() - start_s


def kept_rows(x: torch.Tensor, segments: Sequence[Segment]) -> torch.Tensor:
    """Of the rows (N, C) of a message, the last `keep` of each segment: what the last node returns."""
    if all(segment.keep == segment.n for segment in segments):
        return x
    kept: list[int] = []
    stop = 0
    for segment in segments:
        stop += segment.n
        kept += range(stop - segment.keep, stop)
    return x[kept]


def _load_block(config: Config, layer: int, weights: Mapping[str, torch.Tensor], placement: Placement) -> Block:
    prefix = f"transformer.h.{layer}."
    own = {name.removeprefix(prefix): weights[name] for name in weights if name.startswith(prefix)}
    with memory_errors(f"the weights of layer {layer}"):
        return Assembler(own, f"layer {layer}", placement).assemble(build_block(config, layer, placement.kernels))
