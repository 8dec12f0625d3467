"""How fast a ring generates, held against what was predicted for it. No tensors.

Predictions are of next tokens. So only the time between two returns counts in which no prompt was under way, and some
sample always was.
"""

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from mdi.ids import NodeId
from mdi.net.timeouts import Clock
from mdi.segments import Segment, kept_rows_of, prompt_rows_of, rows_of

RECENT_S = 60.0  # of generation


class Comparison(NamedTuple):
    """Next tokens that were generated, the time that they took, and the time that was predicted for them."""

    tokens: int = 0
    reached_s: float = 0.0
    predicted_s: float = 0.0

    @property
    def reached(self) -> float:
        """Tokens/s."""
        return self.tokens / self.reached_s if self.reached_s else 0.0

    @property
    def predicted(self) -> float:
        """Tokens/s."""
        return self.tokens / self.predicted_s if self.predicted_s else 0.0

    def since(self, earlier: "Comparison") -> "Comparison":
        """What came after `earlier`."""
        return Comparison(
            self.tokens - earlier.tokens, self.reached_s - earlier.reached_s, self.predicted_s - earlier.predicted_s
        )


class Expectation(Protocol):
    """What was predicted of one ring."""

    def tokens_s(self, n_samples: int, context: int) -> float:
        """Of `n_samples` together, which are generated at once and hold `context` positions each."""

    def compute_s(self, rows: int, kept: int, context: int) -> Mapping[NodeId, float]:
        """For how long each node computes a message of so many rows, of which the starter needs `kept` back."""


@dataclass(frozen=True)
class _Message:
    rows: int
    kept: int
    context: int  # positions that a segment holds on average
    is_of_prompt: bool  # in part at least

    @classmethod
    def of(cls, segments: Sequence[Segment]) -> "_Message":
        context = sum(segment.stop for segment in segments) // len(segments)
        return cls(rows_of(segments), kept_rows_of(segments), context, prompt_rows_of(segments) > 0)


class SpeedMeter:
    """Compares one run with what is predicted of its rings. Called from the compute thread; any thread may read it."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._expectation: Expectation | None = None
        self._under_way: deque[_Message] = deque()
        self._returned_s: float | None = None  # when the latest message returned, if samples went on from there
        self._is_comparable = False  # whether no prompt was under way since then
        self.total = Comparison()
        self._marks: deque[Comparison] = deque([self.total])  # a second of generation apart
        # For how long each node should have computed, as far as that is known. Replaced, and never changed.
        self.expected_s: Mapping[NodeId, float] = {}

    def begin(self, expectation: Expectation | None) -> None:
        """A ring begins, with nothing under way. None: nothing is known of it."""
        self._expectation = expectation
        self._under_way.clear()
        self._returned_s = None
        if expectation is None:
            self.expected_s = {}

    @property
    def recent(self) -> Comparison | None:
        """Of the last minute of generation; None where nothing could be compared."""
        found = self.total.since(self._marks[0])
        return found if found.tokens else None

    def sent(self, segments: Sequence[Segment]) -> None:
        """A message leaves."""
        if self._expectation is not None:
            message = _Message.of(segments)
            self._under_way.append(message)
            self._is_comparable &= not message.is_of_prompt

    def returned(self, n_tokens: int, n_samples: int, n_left: int) -> None:
        """The message that was sent first came back.

        Args:
            n_tokens: that were chosen from it.
            n_samples: that were generated until then.
            n_left: that go on.
        """
        if self._expectation is None or not self._under_way:
            return
        message, now_s = self._under_way.popleft(), self._clock()
        self._expect(self._expectation.compute_s(message.rows, message.kept, message.context))
        if self._returned_s is not None and self._is_comparable and n_tokens:
            self._count(n_tokens, now_s - self._returned_s, self._expectation.tokens_s(n_samples, message.context))
        self._returned_s = now_s if n_left else None
        self._is_comparable = not any(other.is_of_prompt for other in self._under_way)

    def _expect(self, compute_s: Mapping[NodeId, float]) -> None:
        before = self.expected_s
        self.expected_s = {**before, **{node: before.get(node, 0.0) + s for node, s in compute_s.items()}}

    def _count(self, n_tokens: int, took_s: float, predicted_tokens_s: float) -> None:
        tokens, reached_s, predicted_s = self.total
        self.total = Comparison(tokens + n_tokens, reached_s + took_s, predicted_s + n_tokens / predicted_tokens_s)
        if self.total.reached_s - self._marks[-1].reached_s >= 1.0:
            self._marks.append(self.total)
        while self.total.reached_s - self._marks[0].reached_s > RECENT_S and len(self._marks) > 1:
            self._marks.popleft()
