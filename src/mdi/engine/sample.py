"""A prompt and its continuation, with everything that decides how it is generated. No tensors."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol

from mdi.engine.sampling_params import SamplingParams
from mdi.errors import ConfigError

if TYPE_CHECKING:  # the scheduler passes them on without looking at them
    import torch

    from mdi.engine.penalties import LogitAdjustment

FinishReason = Literal["stop", "length", "abort"]


@dataclass(frozen=True)
class Logprob:
    """A token and the natural logarithm of its probability."""

    token: int
    logprob: float


@dataclass(frozen=True)
class TokenLogprobs(Logprob):
    """A chosen token, and the most likely ones in its place, the most likely first. It need not be among them."""

    top_logprobs: tuple[Logprob, ...]


@dataclass(frozen=True)
class Outcome:
    """What one step brought a sample."""

    tokens: tuple[int, ...]  # final now: they belong to the sample, whatever comes next
    n_accepted: int  # tokens chosen in this step, those included that a stop sequence took away
    finish_reason: FinishReason | None = None
    logprobs: tuple[TokenLogprobs, ...] = ()  # of each of `tokens`, where the sample asks for them


class Constraint(Protocol):
    """What one answer has to look like. Used by the compute thread alone, in turns: a mask, then the token chosen."""

    def mask(self) -> bytes:
        """A bit for each token id, the lowest first: whether it may follow. Raises `GrammarError` where none may."""

    def accept(self, token: int) -> None:
        """The token that follows was chosen. What may follow it is best computed meanwhile."""


Sink = Callable[["Sample", Outcome], None]


def discard(sample: "Sample", outcome: Outcome) -> None:
    """The sink of a sample that nobody listens to."""


@dataclass(eq=False)
class Sample:
    """One prompt on its way through the engine. `Scheduler` owns all fields but the first seven."""

    number: int  # names the sample for its owner
    prompt: tuple[int, ...]  # token ids
    params: SamplingParams
    generator: "torch.Generator | None" = None  # yields one number for each token; outlives any ring
    sink: Sink = discard
    constraint: Constraint | None = None  # of what may follow; outlives any ring
    draft: Sequence[int] = ()  # guesses of the next tokens, to be verified in one message (speculative decoding)
    tokens: list[int] = field(default_factory=list)  # generated so far, without a stop sequence at the end
    logprobs: list[TokenLogprobs] = field(default_factory=list)  # of each of `tokens`, where they are asked for
    n_final: int = 0  # of `tokens`, those that the sink has
    finish_reason: FinishReason | None = None
    failure: str | None = None  # why it was aborted, where the reason is its own
    slot: int | None = None
    n_sent: int = 0  # positions that have entered the ring, or were in the slot already
    n_cached: int = 0  # of the prompt, those that were in a slot already and were not computed anew
    adjustment: "LogitAdjustment | None" = None  # of the tokens so far; kept by `choose_tokens`

    def __post_init__(self) -> None:
        if not self.prompt:
            raise ConfigError("a sample needs at least one token to begin with")

    @property
    def n_known(self) -> int:
        """Positions whose token is known."""
        return len(self.prompt) + len(self.tokens)

    def ids(self, start: int, stop: int) -> list[int]:
        """The token ids of the positions `start <= p < stop`; those of the draft follow the known ones."""
        n_prompt = len(self.prompt)
        if stop <= n_prompt:
            return list(self.prompt[start:stop])
        continuation = [*self.tokens, *self.draft] if self.draft else self.tokens
        return [*self.prompt[start:], *continuation[max(0, start - n_prompt) : stop - n_prompt]]
