"""What each slot of the ring holds, and the longest prefix of a new prompt among them. No tensors.

A slot keeps its tokens after its sample ended, until another sample needs it. A sample that begins takes over what
a slot holds of its prompt: in the slot itself, which is cut back to that, or as a fork of another slot.
"""

from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from mdi.segments import Fork

Ids: TypeAlias = "array[int]"  # slices of it are compared without a Python loop

# A fork copies keys and values in every layer on every node. Below this many positions it takes about as long as
# computing them beside other rows; and nearly all prompts share the first tokens of a template.
MIN_FORK_POSITIONS = 16


@dataclass(frozen=True)
class Start:
    """How a sample begins: behind `n` positions that its slot holds, once `fork` has been sent."""

    n: int
    fork: Fork | None = None


@dataclass(eq=False)
class _Slot:
    """One slot, as every node will have it when the messages that were sent have passed."""

    number: int
    held: Ids = field(default_factory=lambda: array("i"))  # the token of each position
    prompt: Ids = field(default_factory=lambda: array("i"))  # of the sample in it; empty while it is free
    has_begun: bool = False  # the prompt is being sent, or has been
    awaited: "_Slot | None" = None  # which is being sent more of the prompt than any slot holds
    n_awaited: int = 0  # positions that it will have then

    @property
    def is_growing(self) -> bool:
        """Whether more of its prompt is about to be sent."""
        return self.has_begun and len(self.held) < len(self.prompt)


class SlotTable:
    """Which slots are free, and the tokens in each. Called only from the compute thread."""

    def __init__(self, n_slots: int, min_fork: int = MIN_FORK_POSITIONS) -> None:
        """
        Args:
            min_fork: positions that a fork has to save, and the wait for a fork; at least 1.
        """
        self._slots = [_Slot(number) for number in range(n_slots)]
        self._free = {slot.number: slot for slot in self._slots}  # in the order of their last use
        self._min_fork = min_fork

    @property
    def n_free(self) -> int:
        """Slots without a sample."""
        return len(self._free)

    def take(self, prompt: Sequence[int]) -> int:
        """A free slot for a sample with this prompt: the one that holds most of it, or else the least recently used.

        A slot of which less than half would be reused stays as it is while there is another: what it holds more may
        be a conversation that only began alike.
        """
        ids = array("i", prompt)
        best, n = _longest_prefix(ids, self._free.values())
        if n >= self._min_fork:  # `begin` may fork it, so it is not the next one to be overwritten
            self._free[best.number] = self._free.pop(best.number)
        slot = best if 0 < len(best.held) <= 2 * n else next(iter(self._free.values()))
        del self._free[slot.number]
        slot.prompt, slot.has_begun = ids, False
        return slot.number

    def give_back(self, number: int) -> None:
        """The sample of a slot has ended. The slot keeps what was sent of it."""
        slot = self._slots[number]
        slot.prompt, slot.awaited = array("i"), None
        for other in self._slots:
            if other.awaited is slot:
                other.awaited = None
        self._free[number] = slot

    def begin(self, number: int, most: int) -> Start | None:
        """How the sample in a slot begins; None while another slot is being sent a longer prefix of its prompt.

        Args:
            most: positions that may be taken over.
        """
        slot = self._slots[number]
        if slot.awaited is not None and len(slot.awaited.held) < slot.n_awaited:
            return None
        ids = slot.prompt[:most]
        n_own = common_prefix_length(ids, slot.held)
        source, n = _longest_prefix(ids, self._slots)
        slot.awaited, slot.n_awaited = self._longest_growing(ids)
        if slot.awaited is not None and slot.n_awaited >= max(n, n_own) + self._min_fork:
            return None
        slot.has_begun, slot.awaited = True, None
        if n < n_own + self._min_fork:
            del slot.held[n_own:]
            return Start(n_own)
        slot.held = source.held[:n]
        return Start(n, Fork(source.number, number, n))

    def write(self, number: int, start: int, ids: Iterable[int]) -> None:
        """A message was sent that fills a slot from position `start` with these tokens."""
        held = self._slots[number].held
        if start > len(held):
            raise AssertionError(f"slot {number} holds {len(held)} positions, and is sent those from {start}")
        del held[start:]
        held.extend(ids)

    def _longest_growing(self, ids: Ids) -> tuple[_Slot | None, int]:
        """The slot that is being sent the longest prefix of `ids`, and its length."""
        lengths = {slot: common_prefix_length(ids, slot.prompt) for slot in self._slots if slot.is_growing}
        longest = max(lengths, key=lengths.__getitem__, default=None)
        return (None, 0) if longest is None else (longest, lengths[longest])


def _longest_prefix(ids: Ids, slots: Iterable[_Slot]) -> tuple[_Slot, int]:
    """The slot that holds the longest prefix of `ids`, and its length. Of several the first."""
    lengths = [(common_prefix_length(ids, slot.held), slot) for slot in slots]
    n, slot = max(lengths, key=lambda pair: pair[0])
    return slot, n


def common_prefix_length(one: Ids, other: Ids) -> int:
    """How many tokens both begin with.

    Halving compares each token about twice, in C: 64 slots that hold all of a prompt of 8,192 tokens take 0.3 ms.
    """
    low, high = 0, min(len(one), len(other))
    if not high or one[0] != other[0]:  # most slots, at no cost
        return 0
    while low < high:
        middle = (low + high + 1) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low
