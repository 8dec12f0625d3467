"""The loop that generates tokens: fill the ring, choose tokens from what returns, feed them back.

The loop knows neither whether the ring is made of links or of this node alone, nor whether the samples are all
there at the start or come one by one.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from mdi.engine.penalties import LogitAdjustment
from mdi.engine.ring import LocalRing, Ring
from mdi.engine.sample import Sample, TokenLogprobs
from mdi.engine.sampler import choose, keep_allowed, logprobs_of
from mdi.engine.scheduler import Batch, Scheduler
from mdi.engine.speed import Expectation, SpeedMeter
from mdi.errors import GrammarError
from mdi.inbox import Inbox
from mdi.model.runner import StageRunner
from mdi.net.timeouts import DEFAULT_TIMEOUTS, Timeouts
from mdi.segments import Segment
from mdi.trace import Timeline


@dataclass(frozen=True)
class AddRequested:
    """A sample is to be generated; posted by any thread."""

    sample: Sample


@dataclass(frozen=True)
class CancelRequested:
    """Nobody wants a sample any more; posted by any thread."""

    sample: Sample


@dataclass(frozen=True)
class Wake:
    """Something changed that whoever calls `Engine.step` waits for; posted by any thread."""


class Engine:
    """Generates samples on a ring. Called only from the compute thread; other threads post to its inbox."""

    def __init__(
        self,
        scheduler: Scheduler,
        runner: StageRunner,
        inbox: Inbox,
        timeline: Timeline,
        timeouts: Timeouts = DEFAULT_TIMEOUTS,
    ) -> None:
        self.scheduler, self._clock = scheduler, timeouts.clock
        self._runner, self._timeline = runner, timeline
        self._ring: Ring = LocalRing(inbox)
        self.speed = SpeedMeter(timeouts.clock)

    @property
    def has_unfinished(self) -> bool:
        """Whether there is anything to be generated."""
        return self.scheduler.has_unfinished

    def begin(self, ring: Ring, n_nodes: int, n_slots: int, expectation: Expectation | None = None) -> None:
        """Go on with a ring whose slots are empty: samples that were in flight are sent anew."""
        self._ring = ring
        self.speed.begin(expectation)
        self.scheduler.requeue_all(n_nodes, n_slots)

    def add(self, sample: Sample) -> None:
        """Queue a sample; see `Scheduler.add`."""
        self.scheduler.add(sample)

    def cancel(self, sample: Sample) -> None:
        """End a sample in any phase of its life, and tell its sink. Nothing happens where it has ended."""
        if (outcome := self.scheduler.cancel(sample)) is not None:
            sample.sink(sample, outcome)

    def step(self) -> None:
        """Send what can be sent, then handle one event: rows that return, or a request.

        Where the ring breaks, `begin` with another ring lets the samples go on: a number is drawn only for a token
        that is accepted at once, so a replay changes no text. Raises `RingBroken`, and `Stopped` as the inbox does.
        """
        while (batch := self.scheduler.schedule()) is not None:
            began_s = self._clock()
            rows = self._forward(batch)
            self._ring.send(batch.segments, rows, self._clock() - began_s)
            self.speed.sent(batch.segments)
        with self._timeline.during("idle"):
            event = self._ring.next_event()
        match event:
            case AddRequested(sample):
                self.add(sample)
            case CancelRequested(sample):
                self.cancel(sample)
            case Wake():
                pass
            case _ if (returned := self._ring.receive(event)) is not None:
                n_generated, n_running = self.scheduler.n_generated, self.scheduler.n_running
                self._complete(returned.segments, returned.rows)
                n_tokens = self.scheduler.n_generated - n_generated
                self.speed.returned(n_tokens, n_running, self.scheduler.n_running)

    def _forward(self, batch: Batch) -> torch.Tensor:
        """The batch's rows (N, C) after the starter's stage."""
        for fork in batch.forks:
            self._runner.fork(fork)
            self._ring.fork(fork)
        with self._timeline.computing(batch.segments):
            return self._runner.forward(self._runner.embed(batch.ids, batch.positions), batch.segments)

    def _complete(self, segments: Sequence[Segment], rows: torch.Tensor) -> None:
        returned = self.scheduler.complete(segments)
        if not returned:
            return
        with self._timeline.during("head", len(rows), len(returned)):
            logits = self._runner.logits(rows)
            for sample, part in returned:
                if sample.finish_reason is None:  # the sink of one before it may have cancelled it
                    self._go_on(sample, logits[part])

    def _go_on(self, sample: Sample, logits: torch.Tensor) -> None:
        try:
            chosen = choose_tokens(logits, sample)
        except GrammarError as exc:  # a fault of this sample alone
            sample.failure = str(exc)
            self.cancel(sample)
        else:
            sample.sink(sample, self.scheduler.accept(sample, *chosen))


def choose_tokens(logits: torch.Tensor, sample: Sample) -> tuple[list[int], list[TokenLogprobs]]:
    """The tokens that follow from the last rows of a sample, and their log probabilities where it asks for them.

    `logits` are (1 + length of its draft, vocabulary). Row i is the choice after i right guesses, so it counts only
    while each guess before it is the token chosen (speculative decoding by exact match, arXiv 2211.17192, with one
    draw for each token). Each row is adjusted for the tokens chosen from those before it. Raises `GrammarError` where
    the sample's constraint cannot be followed.
    """
    params, tokens, logprobs = sample.params, list[int](), list[TokenLogprobs]()
    if sample.adjustment is None:
        sample.adjustment = LogitAdjustment(params, sample.prompt, sample.tokens)
    for row, guess in zip(logits, [*sample.draft, None], strict=True):
        adjusted = sample.adjustment.apply(row)
        if sample.constraint is not None:
            adjusted = keep_allowed(adjusted, sample.constraint.mask())
        token = choose(adjusted, params, sample.generator)
        sample.adjustment.count(token)
        if sample.constraint is not None:
            sample.constraint.accept(token)
        tokens.append(token)
        if params.logprobs is not None:
            logprobs.append(logprobs_of(row, token, params.logprobs))
        if token != guess:
            break
    return tokens, logprobs
