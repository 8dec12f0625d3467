"""A scheduler on a ring that is a queue, which checks each message as the nodes would."""

import itertools
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from mdi.engine.sample import Outcome, Sample
from mdi.engine.sampling_params import SamplingParams
from mdi.engine.scheduler import Batch, Scheduler
from mdi.segments import SlotLedger

CONTEXT = 200
TokenOf = Callable[[Sample], int]


def any_token(sample: Sample) -> int:
    return 1000 + sample.number


@dataclass
class Play:
    """A scheduler on a ring of our own, which checks each message as the nodes would."""

    prompts: Sequence[Sequence[int]]
    n_tokens: int = 4
    context: int = CONTEXT
    stops: tuple[tuple[int, ...], ...] = ()
    n_nodes: int = 1
    n_slots: int | None = None
    max_rows: int = 512
    min_fork: int = 1
    token_of: TokenOf = any_token
    steps: list[Batch] = field(default_factory=list)
    numbers: list[list[int]] = field(default_factory=list)  # the samples of each step
    ended: list[int] = field(default_factory=list)
    most_in_flight: int = 0

    def __post_init__(self) -> None:
        n_slots = len(self.prompts) if self.n_slots is None else self.n_slots
        self.scheduler = Scheduler(
            context=self.context,
            n_nodes=self.n_nodes,
            n_slots=n_slots,
            max_batch_tokens=self.max_rows,
            min_fork=self.min_fork,
        )
        self.ledger = SlotLedger(n_slots, self.context)
        self.slots: list[list[int]] = [[] for _ in range(n_slots)]  # the ids that each holds on every node
        self.ring: deque[Batch] = deque()
        self.samples: list[Sample] = []
        self.sent: list[list[tuple[int, int]]] = []  # of each sample, (position, id) in order
        self.raw: list[list[int]] = []  # every token accepted, stop sequences included
        self.final: list[list[int]] = []  # what the sinks were given
        for prompt in self.prompts:
            self.add(prompt)

    def add(self, prompt: Sequence[int]) -> Sample:
        sample = Sample(len(self.samples), tuple(prompt), SamplingParams(self.n_tokens, self.stops))
        self.samples.append(sample)
        for of_each in (self.sent, self.raw, self.final):
            of_each.append([])
        self.scheduler.add(sample)
        return sample

    def fill(self) -> list[Batch]:
        """Send as much as the scheduler wants to."""
        sent = []
        while (step := self.send_one()) is not None:
            sent.append(step)
        self.most_in_flight = max(self.most_in_flight, len(self.ring))
        return sent

    def send_one(self) -> Batch | None:
        """Send one message, if the scheduler wants to."""
        if (step := self.scheduler.schedule()) is not None:
            self._check(step)
        return step

    def _check(self, step: Batch) -> None:
        assert 1 <= len(step.ids) == sum(s.n for s in step.segments) <= self.max_rows
        in_slot = {sample.slot: sample for sample in self.samples if sample.slot is not None}
        for fork in step.forks:
            self.ledger.fork(fork.source, fork.target, fork.n)
            assert self.sent[in_slot[fork.target].number] == [], "a slot that is in use was overwritten"
            self.slots[fork.target] = self.slots[fork.source][: fork.n]
        self.ledger.extend(step.segments)
        ids = iter(step.ids)
        for segment in step.segments:
            sample, held = in_slot[segment.slot], self.slots[segment.slot]
            sent = self.sent[sample.number]
            if not sent:
                assert segment.start == sample.n_cached
                sent += enumerate(held[: segment.start])
            held[segment.start :] = itertools.islice(ids, segment.n)
            sent += enumerate(held[segment.start :], segment.start)
            assert held == [*sample.prompt, *self.raw[sample.number]][: segment.stop], "a wrong token at a position"
            is_last = segment.stop == len(sample.prompt) + len(self.raw[sample.number])
            assert segment.keep == int(is_last)
        self.numbers.append([in_slot[s.slot].number for s in step.segments])
        self.steps.append(step)
        self.ring.append(step)

    def return_one(self) -> None:
        """Let the oldest message come back and accept a token for each sample that it carries."""
        kept = [segment.slot for segment in self.ring[0].segments if segment.keep]
        assert self.return_rows() == kept

    def return_rows(self) -> list[int | None]:
        """The same; returns the slots of the samples that are still wanted."""
        returned = self.scheduler.complete(self.ring.popleft().segments)
        slots = [sample.slot for sample, _ in returned]
        for sample, rows in returned:
            assert rows.stop - rows.start == 1
            token = self.token_of(sample)
            self.raw[sample.number].append(token)
            self.take(sample, self.scheduler.accept(sample, [token]))
        return slots

    def take(self, sample: Sample, outcome: Outcome) -> None:
        """Do what the engine does with an outcome."""
        self.final[sample.number] += outcome.tokens
        if outcome.finish_reason is not None:
            self.ended.append(sample.number)

    def rewind(self, n_nodes: int, n_slots: int | None = None) -> None:
        """The ring is lost with all that travels and all that its slots hold; another one takes its place."""
        self.ring.clear()
        self.ledger = SlotLedger(n_slots or self.ledger.n_slots, self.context)
        self.slots = [[] for _ in range(self.ledger.n_slots)]
        for sample in self.samples:
            if sample.slot is not None:
                self.sent[sample.number] = []
        self.n_nodes = n_nodes
        self.scheduler.requeue_all(n_nodes, self.ledger.n_slots)

    def to_the_end(self, most_steps: int = 10_000) -> "Play":
        while self.scheduler.has_unfinished:
            self.fill()
            assert self.ring, "nothing travels and nothing is done: the scheduler is stuck"
            assert len(self.steps) < most_steps
            self.return_one()
        assert not self.ring
        assert self.scheduler.schedule() is None
        assert self.final == [sample.tokens for sample in self.samples]
        return self
