"""Stop sequences as plain arithmetic on token ids: no text, no tokenizer, no tensors."""

from collections.abc import Sequence

StopSequences = tuple[tuple[int, ...], ...]


def match_stop(ids: Sequence[int], stops: StopSequences) -> int:
    """Length of the longest stop sequence that `ids` ends with, or 0."""
    return max((len(stop) for stop in stops if _ends_with(ids, stop)), default=0)


def partial_match_length(ids: Sequence[int], stops: StopSequences) -> int:
    """How many of the last `ids` could still grow into a stop sequence.

    That is the length of the longest proper prefix of a stop sequence that `ids` ends with.
    """
    longest = max((len(stop) for stop in stops), default=0)
    for n in range(min(longest - 1, len(ids)), 0, -1):
        if any(len(stop) > n and _ends_with(ids, stop[:n]) for stop in stops):
            return n
    return 0


def _ends_with(ids: Sequence[int], tail: tuple[int, ...]) -> bool:
    return 0 < len(tail) <= len(ids) and tuple(ids[len(ids) - len(tail) :]) == tail
