"""The primitive that everything is made of: segments of sequences in KV slots, and the ledger of legal ones.

A segment (slot, start, n, keep) stands for the next `n` positions, from position `start`, of the
sequence that lives in KV slot `slot`; the starter needs the last `keep` of their rows back. No tensors here.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from mdi.errors import RemoteProtocolError


class Segment(NamedTuple):
    """`n` consecutive rows of a message, for positions `start` to `start + n - 1` of `slot`.

    A tuple, since every node makes and checks one for each sample of each message: in half of a data class's time.
    """

    slot: int
    start: int
    n: int
    keep: int

    @property
    def stop(self) -> int:
        return self.start + self.n


def rows_of(segments: Sequence[Segment]) -> int:
    """Rows of a message on its way to the last node."""
    return sum(segment.n for segment in segments)


def prompt_rows_of(segments: Sequence[Segment]) -> int:
    """Rows that belong to prompts: a segment of several rows is a part of one, a single row goes on with a sample."""
    return sum(segment.n for segment in segments if segment.n > 1)


def kept_rows_of(segments: Sequence[Segment]) -> int:
    """Rows of the message that the last node returns to the starter."""
    return sum(segment.keep for segment in segments)


@dataclass(frozen=True)
class Fork:
    """The first `n` positions of slot `source` are copied to slot `target`."""

    source: int
    target: int
    n: int


@dataclass
class SlotLedger:
    """How far each slot of a node is filled. Called only from the compute thread.

    Every check raises `RemoteProtocolError` and leaves the ledger as it was: a message is legal as
    a whole or not at all.
    """

    n_slots: int
    context: int
    _filled: list[int] = field(init=False)

    def __post_init__(self) -> None:
        self._filled = [0] * self.n_slots

    def filled(self, slot: int) -> int:
        """Positions that slot `slot` holds."""
        return self._filled[slot]

    def extend(self, segments: Sequence[Segment]) -> None:
        """Record one message: each slot is filled up to the end of its segment."""
        check_segments(segments, self.n_slots, self.context)
        for segment in segments:
            if segment.start > self._filled[segment.slot]:
                raise RemoteProtocolError(
                    f"slot {segment.slot} holds {self._filled[segment.slot]} positions, so no segment may start at"
                    f" {segment.start}"
                )
        for segment in segments:
            self._filled[segment.slot] = segment.stop

    def fork(self, source: int, target: int, n: int) -> None:
        """Let `target` hold the first `n` positions of `source`."""
        self._check_slot(source)
        self._check_slot(target)
        if source == target or not 0 < n <= self._filled[source]:
            raise RemoteProtocolError(
                f"cannot fork {n} positions of slot {source} (it holds {self._filled[source]}) into slot {target}"
            )
        self._filled[target] = n

    def _check_slot(self, slot: int) -> None:
        if not 0 <= slot < self.n_slots:
            raise RemoteProtocolError(f"slot {slot} is out of range: there are {self.n_slots}")


def check_segments(segments: Sequence[Segment], n_slots: int, context: int) -> None:
    """Raise `RemoteProtocolError` unless every segment fits its slot and no slot occurs twice."""
    if not segments:
        raise RemoteProtocolError("a message without segments")
    for segment in segments:
        slot, start, n, keep = segment
        if not (0 <= slot < n_slots and 0 <= start <= context - n and n >= 1 and 0 <= keep <= n):
            raise RemoteProtocolError(f"illegal {segment}: there are {n_slots} slots of {context} positions")
    if len({segment[0] for segment in segments}) != len(segments):
        raise RemoteProtocolError("a slot occurs twice in one message")
