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


def spans_of(counts: Sequence[int]) -> list[Span]:
    """Consecutive spans of the given lengths, from layer 0."""
    bounds = [0, *accumulate(counts)]
    return [Span(start, stop) for start, stop in pairwise(bounds)]
