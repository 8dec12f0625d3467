"""The engine on a real ring of three nodes: samples come and go while others run."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
import torch

from mdi.config.options import StarterOptions
from mdi.control.status import NodeState
from mdi.engine.engine import AddRequested, CancelRequested
from mdi.engine.sample import Outcome, Sample, TokenLogprobs, discard
from mdi.engine.sampling_params import SamplingParams
from mdi.engine.scheduler import Batch
from mdi.errors import ConfigError, GrammarError
from mdi.inbox import Stopped
from mdi.nodes.starter import Starter
from support.bench import GREEDY, PENALIZED, SEEDED
from support.models import make_model, reference_model
from support.rings import Ring, ring_of, starter_for
from support.scripts import wait_until

N_TOKENS = 12
LONG = list(range(5, 35))
PROMPTS = [[1, 2, 3], [4, 5], LONG, [6]]
ADDED = [7, 8, 9]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("org") / "tiny")


@pytest.fixture(scope="module")
def ring(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ring]:
    with ring_of(3, tmp_path_factory.mktemp("cache")) as ring:
        yield ring


@pytest.fixture(scope="module")
def alone(ring: Ring, model: Path) -> dict[tuple[int, ...], list[int]]:
    """The tokens of each prompt when nobody comes or goes."""
    prompts = [*PROMPTS, ADDED]
    with ring_of(1, model) as single:
        outputs = single.generate(model, prompts, n_tokens=N_TOKENS)
    return {tuple(prompt): tokens for prompt, tokens in zip(prompts, outputs, strict=True)}


class Play:
    """A starter whose engine is stepped by hand."""

    def __init__(self, starter: Starter, samples: list[Sample]) -> None:
        self.starter, self.samples = starter, samples
        self.engine, self.scheduler = starter.engine, starter.engine.scheduler

    def step_until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            assert self.engine.has_unfinished, "the samples ended before it happened"
            self.engine.step()

    def new_sample(self) -> Sample:
        return Sample(99, tuple(ADDED), SamplingParams(N_TOKENS, temperature=0.0))

    def to_the_end(self) -> None:
        self.starter.run()
        assert (self.scheduler.n_running, self.scheduler.n_waiting, self.scheduler.n_in_flight) == (0, 0, 0)


@pytest.fixture
def play(ring: Ring, model: Path) -> Iterator[Play]:
    """Four samples on three nodes with two slots, in messages of few rows, so that prompts travel in pieces."""
    options = StarterOptions(
        ckpt=model, dtype="float32", temperature=0.0, ignore_eos=True, keep_nodes=True, n_tokens=N_TOKENS,
        max_slots=2, max_batch_tokens=4,
    )  # fmt: skip
    with starter_for(ring.network, options, PROMPTS) as (starter, samples):
        starter.prepare()
        yield Play(starter, samples)
    for secondary in ring.secondaries:
        wait_until(lambda node=secondary: node.status().state is NodeState.IDLE, 60, "the node is idle")
        assert secondary.slots == (0, 0)


def assert_alone(samples: Sequence[Sample], alone: dict[tuple[int, ...], list[int]]) -> None:
    for sample in samples:
        assert (sample.tokens, sample.finish_reason) == (alone[sample.prompt], "length")


def test_a_sample_may_be_added_while_others_run(play: Play, alone: dict[tuple[int, ...], list[int]]) -> None:
    play.step_until(lambda: len(play.samples[0].tokens) >= 3)
    added = play.new_sample()
    play.starter.add(added)
    play.to_the_end()
    assert_alone([*play.samples, added], alone)


def test_other_threads_add_and_cancel_through_the_inbox(play: Play, alone: dict[tuple[int, ...], list[int]]) -> None:
    play.step_until(lambda: len(play.samples[0].tokens) >= 3)
    added = play.new_sample()
    play.starter._inbox.post(AddRequested(added))
    play.starter._inbox.post(CancelRequested(play.samples[1]))
    play.to_the_end()
    assert play.samples[1].finish_reason == "abort"
    assert_alone([play.samples[0], *play.samples[2:], added], alone)


def is_waiting(sample: Sample) -> bool:
    return sample.slot is None and sample.finish_reason is None


def is_half_prefilled(sample: Sample) -> bool:
    return 0 < sample.n_sent < len(sample.prompt)


def is_in_flight(sample: Sample) -> bool:
    return sample.slot is not None and sample.n_sent == sample.n_known > len(sample.prompt)


@pytest.mark.parametrize(
    ("which", "phase"),
    [(3, is_waiting), (2, is_half_prefilled), (1, is_in_flight)],
    ids=["waiting", "prefill half sent", "in flight"],
)
def test_a_sample_may_be_cancelled_in_any_phase(
    which: int, phase: Callable[[Sample], bool], play: Play, alone: dict[tuple[int, ...], list[int]]
) -> None:
    cancelled, reported = play.samples[which], list[Outcome]()
    cancelled.sink = lambda sample, outcome: reported.append(outcome)
    play.step_until(lambda: phase(cancelled))
    n_tokens = len(cancelled.tokens)
    play.engine.cancel(cancelled)
    assert (cancelled.finish_reason, cancelled.slot) == ("abort", None)
    assert reported[-1].finish_reason == "abort"
    play.engine.cancel(cancelled)  # again: nothing
    added = play.new_sample()
    play.starter.add(added)
    again = Sample(98, cancelled.prompt, SamplingParams(N_TOKENS, temperature=0.0))  # behind what was sent of it
    play.starter.add(again)
    play.to_the_end()
    assert len(cancelled.tokens) == n_tokens, "rows that were in flight returned to nobody"
    assert cancelled.tokens == alone[cancelled.prompt][:n_tokens]
    assert sum(outcome.finish_reason is not None for outcome in reported) == 1
    others = [sample for sample in play.samples if sample is not cancelled]
    assert_alone([*others, added, again], alone)


def test_a_sample_may_be_cancelled_between_two_tokens(play: Play, alone: dict[tuple[int, ...], list[int]]) -> None:
    """By its own sink: what it has said is enough."""

    def sink(sample: Sample, outcome: Outcome) -> None:
        if outcome.finish_reason is None and len(sample.tokens) == 4:
            play.engine.cancel(sample)

    play.samples[0].sink = sink
    play.to_the_end()
    assert play.samples[0].tokens == alone[play.samples[0].prompt][:4]
    assert play.samples[0].finish_reason == "abort"
    assert_alone(play.samples[1:], alone)


def test_a_sink_may_cancel_a_sample_whose_rows_came_back_in_the_same_message(
    model: Path, tmp_path: Path, alone: dict[tuple[int, ...], list[int]]
) -> None:
    options = StarterOptions(ckpt=model, dtype="float32", temperature=0.0, ignore_eos=True, n_tokens=N_TOKENS)
    with ring_of(1, tmp_path) as single, starter_for(single.network, options, PROMPTS) as (starter, samples):

        def sink(sample: Sample, outcome: Outcome) -> None:
            if len(sample.tokens) == 4:
                starter.engine.cancel(samples[1])

        samples[0].sink = sink
        starter.prepare()
        starter.run()
    assert (len(samples[1].tokens), samples[1].finish_reason) == (3, "abort")
    assert_alone([samples[0], *samples[2:]], alone)


def test_the_slot_of_a_cancelled_sample_goes_to_the_next_in_line(play: Play) -> None:
    first, waiting = play.samples[0], play.samples[2]
    play.step_until(lambda: is_in_flight(first))
    slot = first.slot
    play.engine.cancel(first)
    play.step_until(lambda: waiting.slot is not None)
    assert waiting.slot == slot
    play.to_the_end()


def test_a_prompt_without_room_for_an_answer_is_refused_and_harms_nobody(
    play: Play, alone: dict[tuple[int, ...], list[int]]
) -> None:
    context = len(LONG) + N_TOKENS
    with pytest.raises(ConfigError, match=rf"takes {context} tokens; the context of {context} leaves no room"):
        play.starter.add(Sample(99, (1,) * context, SamplingParams(1)))
    play.to_the_end()
    assert_alone(play.samples, alone)


def test_a_stop_request_ends_the_loop_with_the_code_of_sigterm(play: Play) -> None:
    play.starter.request_stop(None)
    with pytest.raises(Stopped) as caught:
        play.starter.run()
    assert caught.value.code == 143


# ---- a long prompt beside samples that run


def test_a_long_prompt_never_keeps_the_others_from_their_tokens(
    ring: Ring, model: Path, alone: dict[tuple[int, ...], list[int]]
) -> None:
    """Counted in messages: a token takes one trip, as without the prompt, whose pieces travel with it."""
    options = StarterOptions(
        ckpt=model, dtype="float32", temperature=0.0, ignore_eos=True, keep_nodes=True, n_tokens=N_TOKENS,
        max_slots=4, max_batch_tokens=6,
    )  # fmt: skip
    n_nodes, long = 3, PROMPTS.index(LONG)
    with starter_for(ring.network, options, PROMPTS) as (starter, samples):
        starter.prepare()
        play, sent, came = Play(starter, samples), list[Batch](), [list[int]() for _ in PROMPTS]
        schedule = play.scheduler.schedule

        def counted() -> Batch | None:
            if (batch := schedule()) is not None:
                sent.append(batch)
            return batch

        play.scheduler.schedule = counted  # type: ignore[method-assign]
        for sample in samples:
            sample.sink = lambda sample, outcome: came[sample.number].append(len(sent))
        play.to_the_end()
    assert_alone(samples, alone)
    others = [turns for number, turns in enumerate(came) if number != long]
    for turns in others:
        during = [turn for turn in turns if turn < came[long][0]]
        assert len(during) > 1 and max(b - a for a, b in itertools.pairwise(during)) <= n_nodes
    decoding = sent[max(turns[0] for turns in others) :]
    pieces = [batch for batch in decoding if samples[long] in batch.samples and len(batch.ids) > 3]
    assert pieces and all(len(batch.samples) > 1 for batch in pieces)


# ---- several tokens of one sample at once


@pytest.mark.parametrize("n_wrong", [0, 1, 3])
def test_guesses_are_verified_in_one_message_and_change_no_token(
    n_wrong: int, play: Play, alone: dict[tuple[int, ...], list[int]]
) -> None:
    """Each draft has three guesses; the last `n_wrong` are wrong."""
    expected = alone[play.samples[0].prompt]
    counts: list[int] = []

    def guess(sample: Sample, outcome: Outcome) -> None:
        counts.append(outcome.n_accepted)
        right = expected[len(sample.tokens) : len(sample.tokens) + 3]
        n_right = len(right) - n_wrong
        sample.draft = tuple(t if i < n_right else (t + 1) % 100 for i, t in enumerate(right))

    play.samples[0].sink = guess
    play.to_the_end()
    assert_alone(play.samples, alone)
    assert sum(counts) == N_TOKENS
    assert max(counts) == 4 - n_wrong, "the right guesses and the token after them"
    for sample in play.samples[1:]:
        assert sample.sink is discard


# ---- constraints


class Distinct:
    """Allows each token once, `n` of them; then none."""

    def __init__(self, n: int) -> None:
        self.tokens, self._left = list[int](), n

    def mask(self) -> bytes:
        if not self._left:
            raise GrammarError("nothing may follow")
        self._left -= 1
        return sum(1 << token for token in range(320) if token not in self.tokens).to_bytes(40, "little")

    def accept(self, token: int) -> None:
        self.tokens.append(token)


def test_a_constraint_is_followed_and_one_that_fails_ends_its_sample_alone(
    play: Play, alone: dict[tuple[int, ...], list[int]]
) -> None:
    for number, n_masks in ((0, N_TOKENS), (3, 5)):
        play.samples[number].constraint = Distinct(n_masks)
    play.samples[0].sink = lambda sample, outcome: setattr(sample, "draft", (1, 2))  # wrong guesses, all of them
    play.to_the_end()
    followed, failed = play.samples[0], play.samples[3]
    assert (len(followed.tokens), followed.finish_reason, followed.failure) == (N_TOKENS, "length", None)
    assert (len(failed.tokens), failed.finish_reason, failed.failure) == (5, "abort", "nothing may follow")
    for sample in (followed, failed):
        assert len(set(sample.tokens)) == len(sample.tokens)
    assert_alone(play.samples[1:3], alone)


# ---- sampling


def test_a_ring_samples_what_one_node_does_with_all_parameters_set(ring: Ring, model: Path) -> None:
    with ring_of(1, model) as single:
        expected = single.generate(model, PROMPTS, n_tokens=30, **PENALIZED)
        assert expected != single.generate(model, PROMPTS, n_tokens=30, **SEEDED)
    assert ring.generate(model, PROMPTS, n_tokens=30, **PENALIZED) == expected
    assert all(40 not in tokens for tokens in expected)


@pytest.mark.parametrize("style", [GREEDY, PENALIZED], ids=["greedy", "penalized"])
@torch.inference_mode()
def test_log_probabilities_are_those_of_litgpt(style: dict[str, object], ring: Ring, model: Path) -> None:
    """Of each token that a ring delivers, whatever else the sampling does with the logits."""
    told: dict[int, list[TokenLogprobs]] = {number: [] for number in range(len(PROMPTS))}

    def sink(sample: Sample, outcome: Outcome) -> None:
        assert [chosen.token for chosen in outcome.logprobs] == list(outcome.tokens)
        told[sample.number] += outcome.logprobs

    options = StarterOptions(
        ckpt=model, dtype="float32", ignore_eos=True, keep_nodes=True, n_tokens=N_TOKENS, logprobs=5,
        output=model / "unused.jsonl", **style,
    )  # fmt: skip
    with starter_for(ring.network, options, PROMPTS, sink=sink) as (starter, samples):
        starter.prepare()
        starter.run()
    reference = reference_model(model)
    reference.max_seq_length = reference.config.block_size
    for sample in samples:
        assert [chosen.token for chosen in told[sample.number]] == sample.tokens
        rows = reference(torch.tensor([[*sample.prompt, *sample.tokens]]))[0, len(sample.prompt) - 1 : -1]
        for row, chosen in zip(rows.log_softmax(-1), told[sample.number], strict=True):
            assert chosen.logprob == pytest.approx(float(row[chosen.token]), abs=1e-3)
            best = [item.logprob for item in chosen.top_logprobs]
            assert best == pytest.approx(row.topk(5).values.tolist(), abs=1e-3)
            assert best == pytest.approx([float(row[item.token]) for item in chosen.top_logprobs], abs=1e-3)
