"""One node's span of blocks: the ledger of its slots and the checks, before a backend computes.

Shapes: N rows in the message, C = n_embd.
"""

from collections.abc import Sequence

import torch

from mdi.model.devices import memory_errors
from mdi.model.span_engine import SpanEngine
from mdi.segments import Segment, SlotLedger


class Stage:
    """A span engine whose slots are accounted for. Called only from the compute thread."""

    def __init__(self, engine: SpanEngine) -> None:
        self.engine = engine
        self._ledger = SlotLedger(0, 0)

    def begin(self, n_slots: int, context: int) -> None:
        """Begin a session with empty slots. Where the last one had as many of the same size, their memory is kept."""
        if self.slots == (n_slots, context):
            self.reset()
        else:
            self.allocate(n_slots, context)

    def allocate(self, n_slots: int, context: int) -> None:
        """Make `n_slots` empty slots of `context` positions each. Earlier slots are forgotten."""
        self._ledger = SlotLedger(0, 0)  # a failed attempt must not look like slots to `begin`
        with memory_errors(f"{n_slots} slots of {context} positions"):
            self.engine.allocate(n_slots, context)
        self._ledger = SlotLedger(n_slots, context)

    @property
    def slots(self) -> tuple[int, int]:
        """The number of slots that have memory, and the positions of each."""
        return self._ledger.n_slots, self._ledger.context

    @property
    def weights_bytes(self) -> int:
        """What the weights hold."""
        return self.engine.weights_bytes

    @property
    def mapped_bytes(self) -> int:
        """Of these, what lies in files that are mapped."""
        return self.engine.mapped_bytes

    @property
    def cache_bytes(self) -> int:
        """What the slots take, filled or not."""
        return self.engine.cache_bytes

    @property
    def numerics(self) -> str:
        """The name of the engine's arithmetic."""
        return self.engine.numerics

    def reset(self) -> None:
        """Empty all slots, keeping their memory."""
        self._ledger = SlotLedger(self._ledger.n_slots, self._ledger.context)

    def free(self) -> None:
        """Give the memory of all slots back; the weights stay."""
        self._ledger = SlotLedger(0, 0)
        self.engine.allocate(0, 0)

    def forward(self, x: torch.Tensor, segments: Sequence[Segment]) -> torch.Tensor:
        """Hidden states (N, C) of a message's rows -> (N, C) after this span; fills the slots.

        Raises `RemoteProtocolError` for illegal segments, before anything is computed.
        """
        self._ledger.extend(segments)
        with memory_errors(f"a message of {len(x)} rows"):
            return self.engine.forward(x, segments)

    def fork(self, source: int, target: int, n: int) -> None:
        """Let slot `target` begin with the first `n` positions of slot `source`."""
        self._ledger.fork(source, target, n)
        self.engine.fork(source, target, n)


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
