"""Which samples enter the ring next, and when each of them ends. No tensors.

A sample waits for a slot; once it has one it is *ready* whenever its next rows are known. Ready samples take turns
in order of arrival. As many messages are in flight as there are nodes, and the samples are spread evenly over
them. What a slot holds of a prompt already is not computed again, whether its sample still runs or has ended.
"""

import itertools
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from mdi.engine.sample import FinishReason, Outcome, Sample, TokenLogprobs
from mdi.engine.slots import MIN_FORK_POSITIONS, SlotTable
from mdi.errors import ConfigError, RemoteProtocolError
from mdi.segments import Fork, Segment
from mdi.text.stops import match_stop, partial_match_length


@dataclass(frozen=True)
class Batch:
    """One message to send, and the forks to be made before it."""

    segments: tuple[Segment, ...]
    samples: tuple[Sample, ...]  # of each segment
    ids: list[int]  # of each row
    forks: tuple[Fork, ...] = ()

    @property
    def positions(self) -> list[int]:
        """Of each row, in its sequence."""
        return [position for segment in self.segments for position in range(segment.start, segment.stop)]


class Scheduler:
    """Decides what enters the ring next, and when a sample ends. Called only from the compute thread."""

    def __init__(
        self,
        *,
        context: int,
        n_nodes: int = 1,
        n_slots: int = 1,
        max_batch_tokens: int = 128,
        min_fork: int = MIN_FORK_POSITIONS,
    ) -> None:
        """
        Args:
            context: most positions per sample.
            n_nodes: messages that are in flight at once.
            n_slots: samples that are in the ring at once; the others wait.
            max_batch_tokens: rows per message; a longer prompt is sent in pieces.
            min_fork: positions that a fork has to save, at least 1.
        """
        self.n_added = 0  # samples so far
        self.n_generated = 0  # tokens accepted, of all samples so far
        self._context, self._max_batch_tokens = context, max_batch_tokens
        self._n_nodes, self._min_fork = n_nodes, min_fork
        self._slots = SlotTable(n_slots, min_fork)
        self._waiting: deque[Sample] = deque()
        self._ready: deque[Sample] = deque()
        self._in_slot: dict[int, Sample] = {}
        self._in_flight: deque[Batch] = deque()

    @property
    def has_unfinished(self) -> bool:
        """Whether a sample has not finished, or a message is still in flight."""
        return bool(self._waiting or self._in_slot or self._in_flight)

    @property
    def n_in_flight(self) -> int:
        """Messages that have been sent and have not returned."""
        return len(self._in_flight)

    @property
    def n_running(self) -> int:
        """Samples that have a slot."""
        return len(self._in_slot)

    @property
    def n_waiting(self) -> int:
        """Samples that wait for a slot."""
        return len(self._waiting)

    def add(self, sample: Sample) -> None:
        """Queue a sample, at any time. Raises `ConfigError` where the context has no room for a token of it."""
        if len(sample.prompt) >= self._context:
            raise ConfigError(
                f"the prompt takes {len(sample.prompt)} tokens; the context of {self._context} leaves no room to answer"
            )
        self.n_added += 1
        self._waiting.append(sample)

    def cancel(self, sample: Sample) -> Outcome | None:
        """End a sample in any phase of its life; None where it has ended already.

        Rows of it that are still in flight return to nobody. Its slot may be given away at once, and what was sent of
        it reused: messages travel in ring order, so every node is done with the old rows before it sees the new ones.
        """
        if sample.slot is not None:
            if sample in self._ready:
                self._ready.remove(sample)
            return self._finish(sample, "abort", n_accepted=0)
        if sample not in self._waiting:
            return None
        self._waiting.remove(sample)
        return self._finish(sample, "abort", n_accepted=0)

    def schedule(self) -> Batch | None:
        """The next message to send, or None while enough are in flight or no sample is ready."""
        self._admit()
        if not self._ready or len(self._in_flight) >= self._n_nodes:
            return None
        batch = self._build_batch(self._batch_size())
        if not batch.segments:  # those that are ready wait for a prefix that is being sent
            return None
        self._in_flight.append(batch)
        return batch

    def complete(self, segments: Sequence[Segment]) -> list[tuple[Sample, slice]]:
        """A message came back: each sample that is still wanted, with its part of the kept rows.

        The caller chooses one token or more from those rows and passes them to `accept`.
        Raises `RemoteProtocolError` where it is not the message that was sent first.
        """
        if not self._in_flight or self._in_flight[0].segments != tuple(segments):
            raise RemoteProtocolError("the ring returned another message than the one due")
        batch = self._in_flight.popleft()
        returned = []
        stop = 0
        for segment, sample in zip(batch.segments, batch.samples, strict=True):
            stop += segment.keep
            if segment.keep and sample.finish_reason is None:
                returned.append((sample, slice(stop - segment.keep, stop)))
        return returned

    def accept(self, sample: Sample, tokens: Sequence[int], logprobs: Sequence[TokenLogprobs] = ()) -> Outcome:
        """Append the tokens that were chosen for a sample, up to the one that ends it, with their `logprobs` if any.

        With a draft these are the verified guesses and the token after them. Positions of wrong guesses count as not
        sent, so the next segment overwrites them.
        """
        sample.draft = ()
        for n_accepted, token in enumerate(tokens, 1):
            sample.tokens.append(token)
            sample.logprobs += logprobs[n_accepted - 1 : n_accepted]
            if n_stop := match_stop(sample.tokens, sample.params.stops):
                del sample.tokens[-n_stop:], sample.logprobs[-n_stop:]
                return self._finish(sample, "stop", n_accepted)
            if len(sample.tokens) >= sample.params.max_tokens or sample.n_known >= self._context:
                return self._finish(sample, "length", n_accepted)
        sample.n_sent = sample.n_known - 1
        self._ready.append(sample)
        n_held = partial_match_length(sample.tokens, sample.params.stops)
        return self._outcome(sample, len(sample.tokens) - n_held, len(tokens))

    def requeue_all(self, n_nodes: int, n_slots: int) -> None:
        """Begin, or begin again, on a ring of `n_nodes` with `n_slots` empty slots: what was in flight is forgotten.

        Every sample that was in a slot gets one again before the others, and is sent anew from its first position
        up to all that is known of it. Its tokens stay as they are, so nothing is generated twice. What the old slots
        kept of other samples is gone.
        """
        self._n_nodes = n_nodes
        self._in_flight.clear()
        for sample in reversed(self._in_slot.values()):
            sample.slot, sample.n_sent, sample.n_cached, sample.draft = None, 0, 0, ()
            self._waiting.appendleft(sample)
        self._in_slot.clear()
        self._ready.clear()
        self._slots = SlotTable(n_slots, self._min_fork)

    def _admit(self) -> None:
        while self._waiting and self._slots.n_free:
            sample = self._waiting.popleft()
            sample.slot = self._slots.take(sample.prompt)
            self._in_slot[sample.slot] = sample
            self._ready.append(sample)

    def _batch_size(self) -> int:
        """Samples of the next message: the ready ones shared out over the messages that may still be sent,
        but no more than an even share of all, so that batches which became uneven become even again.
        """
        n_free = self._n_nodes - len(self._in_flight)
        return min(-(-len(self._ready) // n_free), -(-len(self._in_slot) // self._n_nodes))

    def _build_batch(self, batch_size: int) -> Batch:
        """Up to `batch_size` samples that go on with a token, and pieces of prompts in the rows that those leave."""
        chosen: list[tuple[Segment, Sample]] = []
        forks: list[Fork] = []
        passed_over, entering = list[Sample](), list[Sample]()
        n_kept, room = 0, self._max_batch_tokens
        while self._ready and n_kept < batch_size and room:
            sample = self._ready.popleft()
            own_room = room
            if not _is_decoding(sample):  # a piece that filled the message would keep those behind it from their tokens
                own_room = max(room - self._n_decoding(batch_size - n_kept), 0 if chosen else 1)
            if not own_room or (not sample.n_sent and not self._begin(sample, forks)):
                passed_over.append(sample)
                continue
            segment = self._next_segment(sample, own_room)
            chosen.append((segment, sample))
            room -= segment.n
            sample.n_sent = segment.stop
            if segment.keep:
                n_kept += 1
            else:
                entering.append(sample)  # the rest of this prompt takes its next turn
        self._ready.extendleft(reversed(passed_over))
        self._ready.extend(entering)
        chosen.sort(key=lambda pair: pair[0].slot)  # one attention call then serves neighbouring slots
        return self._batch(chosen, forks)

    def _n_decoding(self, n_samples: int) -> int:
        """How many of the next ready samples need one row each."""
        return sum(map(_is_decoding, itertools.islice(self._ready, n_samples)))

    def _begin(self, sample: Sample, forks: list[Fork]) -> bool:
        """Let a sample begin behind what a slot holds of its prompt; False while more of it is being sent."""
        # The last known position is always computed, for its logits.
        start = self._slots.begin(_slot_of(sample), most=sample.n_known - 1)
        if start is None:
            return False
        if start.fork is not None:
            forks.append(start.fork)
        sample.n_sent = sample.n_cached = start.n
        return True

    def _batch(self, chosen: Sequence[tuple[Segment, Sample]], forks: Sequence[Fork]) -> Batch:
        """The message of these segments. Only from here on do their slots hold them: forks are sent before it."""
        ids: list[int] = []
        for segment, sample in chosen:
            row_ids = sample.ids(segment.start, segment.stop)
            self._slots.write(segment.slot, segment.start, row_ids)
            ids += row_ids
        return Batch(tuple(s for s, _ in chosen), tuple(s for _, s in chosen), ids, tuple(forks))

    def _next_segment(self, sample: Sample, room: int) -> Segment:
        """The positions of `sample` that follow: as many as there is room for, its draft last."""
        n_due = sample.n_known - sample.n_sent
        if n_due > room:
            return Segment(_slot_of(sample), sample.n_sent, room, keep=0)
        sample.draft = tuple(sample.draft)[: min(room - n_due, self._context - 1 - sample.n_known)]
        return Segment(_slot_of(sample), sample.n_sent, n_due + len(sample.draft), keep=1 + len(sample.draft))

    def _finish(self, sample: Sample, reason: FinishReason, n_accepted: int) -> Outcome:
        sample.finish_reason = reason
        if sample.slot is not None:
            del self._in_slot[sample.slot]
            self._slots.give_back(sample.slot)
            sample.slot = None
        return self._outcome(sample, len(sample.tokens), n_accepted)

    def _outcome(self, sample: Sample, n_final: int, n_accepted: int) -> Outcome:
        self.n_generated += n_accepted
        is_new = slice(sample.n_final, n_final)
        tokens, logprobs = tuple(sample.tokens[is_new]), tuple(sample.logprobs[is_new])
        sample.n_final = max(sample.n_final, n_final)
        return Outcome(tokens, n_accepted, sample.finish_reason, logprobs)


def _is_decoding(sample: Sample) -> bool:
    """Whether only its newest token is still to be sent."""
    return sample.n_sent > 0 and sample.n_known - sample.n_sent == 1


def _slot_of(sample: Sample) -> int:
    if sample.slot is None:
        raise AssertionError(f"sample {sample.number} is scheduled without a slot")
    return sample.slot
