"""A prompt and its continuation."""

from dataclasses import dataclass, field
from typing import Literal

FinishReason = Literal["stop", "length"]


@dataclass
class Sample:
    """A prompt and its continuation."""

    number: int
    prompt: tuple[int, ...]
    tokens: list[int] = field(default_factory=list)  # generated so far, without a stop sequence at the end
    finish_reason: FinishReason | None = None
    slot: int | None = None
    sent: int = 0  # positions that have entered the ring

    @property
    def known(self) -> int:
        """Positions whose token is known."""
        return len(self.prompt) + len(self.tokens)

    def ids(self, start: int, stop: int) -> list[int]:
        """The token ids of the positions `start <= p < stop`."""
        n_prompt = len(self.prompt)
        return [*self.prompt[start:stop], *self.tokens[max(0, start - n_prompt) : max(0, stop - n_prompt)]]
