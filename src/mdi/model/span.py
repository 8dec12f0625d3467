"""Half-open ranges of layers."""

from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import NamedTuple


class Span(NamedTuple):
    """The layers `start <= i < stop`."""

    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start

    def __str__(self) -> str:
        """As messages name the layers: from 0, the last one included."""
        return f"layer {self.start}" if len(self) == 1 else f"layers {self.start} to {self.stop - 1}"


def spans_of(counts: Sequence[int]) -> list[Span]:
    """Consecutive spans of the given lengths, from layer 0."""
    bounds = [0, *accumulate(counts)]
    return [Span(start, stop) for start, stop in pairwise(bounds)]
