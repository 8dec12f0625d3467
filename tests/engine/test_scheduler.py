"""The life of samples, played on a ring that is a queue: what is sent, in which order, and how it ends."""

import itertools
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mdi.engine.sample import Sample, TokenLogprobs
from mdi.engine.sampling_params import SamplingParams
from mdi.engine.scheduler import Scheduler
from mdi.errors import RemoteProtocolError
from mdi.segments import Segment
from support.play import CONTEXT, Play
from support.wire import few_examples


def prompts_of(*lengths: int) -> list[list[int]]:
    return [[100 * number + i for i in range(length)] for number, length in enumerate(lengths)]


def assert_every_position_was_sent_once(play: Play) -> None:
    for number, prompt in enumerate(play.prompts):
        ids = [*prompt, *play.raw[number]][:-1]  # the last token ends the sample and is never sent
        assert play.sent[number] == list(enumerate(ids))


# ---- one sample


def test_a_prompt_enters_whole_and_its_tokens_follow_one_by_one() -> None:
    play = Play([[5, 6, 7]], n_tokens=3).to_the_end()
    assert [step.segments for step in play.steps] == [
        (Segment(0, 0, 3, 1),), (Segment(0, 3, 1, 1),), (Segment(0, 4, 1, 1),)
    ]  # fmt: skip
    assert [step.ids for step in play.steps] == [[5, 6, 7], [1000], [1000]]
    assert play.samples[0].tokens == [1000] * 3
    assert play.samples[0].finish_reason == "length"


def test_a_sample_that_travels_is_not_sent_again() -> None:
    play = Play([[5, 6, 7]], n_nodes=3)
    assert len(play.fill()) == 1
    assert play.scheduler.schedule() is None
    assert play.scheduler.has_unfinished


def test_nothing_to_do_is_done() -> None:
    play = Play([])
    assert not play.scheduler.has_unfinished
    assert play.scheduler.schedule() is None
    assert play.scheduler.n_generated == 0


def test_one_token_is_generated_from_the_prompt_alone() -> None:
    play = Play([[1, 2]], n_tokens=1).to_the_end()
    assert len(play.steps) == 1
    assert play.scheduler.n_generated == 1


def test_ids_run_over_from_the_prompt_into_the_tokens() -> None:
    sample = Sample(0, (1, 2, 3), SamplingParams(9), tokens=[4, 5])
    assert sample.n_known == 5
    assert sample.ids(0, 5) == [1, 2, 3, 4, 5]
    assert sample.ids(2, 4) == [3, 4]
    assert sample.ids(4, 5) == [5]
    assert sample.ids(1, 2) == [2]


# ---- how a sample ends


@pytest.mark.parametrize("length", [1, 5, 9])
def test_a_sample_ends_at_the_context(length: int) -> None:
    play = Play(prompts_of(length), n_tokens=100, context=10).to_the_end()
    sample = play.samples[0]
    assert (sample.n_known, sample.finish_reason) == (10, "length")


@pytest.mark.parametrize(
    ("continuation", "stops", "tokens"),
    [
        ([7, 8, 9], ((9,),), [7, 8]),
        ([9], ((9,),), []),
        ([7, 1, 2, 3], ((1, 2, 3),), [7]),
        ([1, 2, 1, 2, 3], ((1, 2, 3),), [1, 2]),
        ([1, 1, 2], ((1, 2),), [1]),
        ([4, 5, 6], ((6,), (5, 6)), [4]),
        ([4, 5, 6], ((4, 5, 6), (6,)), []),
    ],
)
def test_a_stop_sequence_ends_a_sample_and_is_not_part_of_it(
    continuation: list[int], stops: tuple[tuple[int, ...], ...], tokens: list[int]
) -> None:
    play = Play([[1, 2]], n_tokens=50, stops=stops, token_of=lambda sample: continuation[len(sample.tokens)])
    sample = play.to_the_end().samples[0]
    assert (sample.tokens, sample.finish_reason) == (tokens, "stop")
    assert play.raw[0] == continuation
    assert play.scheduler.n_generated == len(continuation)


def test_a_stop_sequence_is_not_completed_by_the_end_of_the_prompt() -> None:
    play = Play([[1, 2]], n_tokens=3, stops=((2, 3),), token_of=lambda sample: 3).to_the_end()
    assert play.samples[0].finish_reason == "length"


def test_a_stop_sequence_counts_before_the_length() -> None:
    play = Play([[1, 2]], n_tokens=2, stops=((8, 9),), token_of=lambda sample: [8, 9][len(sample.tokens)])
    sample = play.to_the_end().samples[0]
    assert (sample.tokens, sample.finish_reason) == ([], "stop")


def test_a_stop_sequence_cut_by_the_length_stays() -> None:
    play = Play([[1, 2]], n_tokens=2, stops=((8, 9, 10),), token_of=lambda sample: [8, 9][len(sample.tokens)])
    sample = play.to_the_end().samples[0]
    assert (sample.tokens, sample.finish_reason) == ([8, 9], "length")


def test_samples_end_independently() -> None:
    lives = [3, 1, 7, 2]
    play = Play(prompts_of(2, 3, 4, 5), n_tokens=7, stops=((0,),), n_nodes=2)
    play.token_of = lambda sample: 0 if len(play.raw[sample.number]) == lives[sample.number] - 1 else 1
    play.to_the_end()
    assert play.ended == [1, 3, 0, 2]
    assert [len(raw) for raw in play.raw] == [3, 1, 7, 2]
    assert_every_position_was_sent_once(play)


# ---- many samples


@pytest.mark.parametrize("n_nodes", range(1, 6))
@pytest.mark.parametrize("n_samples", range(1, 11))
def test_samples_are_spread_evenly_over_the_messages(n_samples: int, n_nodes: int) -> None:
    play = Play(prompts_of(*[3] * n_samples), n_nodes=n_nodes, n_tokens=8)
    sizes = [len(step.segments) for step in play.fill()]
    assert sum(sizes) == n_samples
    assert len(sizes) == min(n_samples, n_nodes), "a node has nothing to do"
    assert max(sizes) - min(sizes) <= 1
    play.to_the_end()
    assert play.most_in_flight == min(n_samples, n_nodes)
    assert {len(step.segments) for step in play.steps} == set(sizes)  # the groups stay as they are


def test_samples_take_turns_in_order_of_arrival() -> None:
    play = Play(prompts_of(2, 2, 2, 2, 2), n_nodes=5, n_tokens=6).to_the_end()
    assert play.numbers == [[i] for i in range(5)] * 6


def test_the_rest_is_spread_again_when_samples_end() -> None:
    play = Play(prompts_of(*[2] * 6), n_nodes=3, n_tokens=50, stops=((0,),))
    play.token_of = lambda sample: 0 if sample.number < 2 else 1
    assert [len(step.segments) for step in play.fill()] == [2, 2, 2]
    for _ in range(6):
        play.return_one()
        play.fill()
    assert play.ended == [0, 1]
    assert len(play.ring) == 3
    assert sorted(len(step.segments) for step in play.ring) == [1, 1, 2]


@pytest.mark.parametrize("n_nodes", [1, 2, 3, 5])
@pytest.mark.parametrize("n_slots", [1, 2, 3])
def test_fewer_slots_than_samples_are_used_again(n_slots: int, n_nodes: int) -> None:
    play = Play(prompts_of(3, 1, 4, 1, 5, 9, 2), n_slots=n_slots, n_nodes=n_nodes, n_tokens=3).to_the_end()
    assert sorted(play.ended) == list(range(7))
    assert max(len(step.segments) for step in play.steps) <= n_slots
    assert_every_position_was_sent_once(play)
    firsts = [n for step, numbers in zip(play.steps, play.numbers, strict=True)
              for s, n in zip(step.segments, numbers, strict=True) if s.start == 0]  # fmt: skip
    assert firsts == list(range(7))  # the waiting come in by their numbers


def test_a_freed_slot_goes_to_the_next_in_line_at_once() -> None:
    play = Play(prompts_of(2, 2, 2), n_slots=2, n_nodes=2, n_tokens=2)
    play.fill()
    play.return_one()
    play.fill()
    play.return_one()
    play.fill()
    play.return_one()  # sample 0 has its two tokens
    assert play.ended == [0]
    (step,) = play.fill()
    assert step.segments == (Segment(0, 0, 2, 1),)
    assert play.samples[2].slot == 0
    assert play.samples[0].slot is None


def test_never_more_messages_travel_than_there_are_nodes() -> None:
    play = Play(prompts_of(*[50] * 9), n_nodes=3, max_rows=7).to_the_end()
    assert play.most_in_flight == 3


# ---- long prompts


def test_a_long_prompt_travels_in_pieces_of_which_the_last_is_kept() -> None:
    play = Play(prompts_of(25), max_rows=10, n_nodes=4, n_tokens=1)
    assert [step.segments for step in play.fill()] == [
        (Segment(0, 0, 10, 0),), (Segment(0, 10, 10, 0),), (Segment(0, 20, 5, 1),)
    ]  # fmt: skip
    play.to_the_end()
    assert_every_position_was_sent_once(play)


def test_a_prompt_of_exactly_the_limit_is_one_piece() -> None:
    play = Play(prompts_of(10), max_rows=10, n_nodes=4)
    assert [step.segments for step in play.fill()] == [(Segment(0, 0, 10, 1),)]


def test_prompts_share_a_message_up_to_its_limit() -> None:
    play = Play(prompts_of(6, 6, 6), max_rows=10, n_nodes=1)
    (step,) = play.fill()
    assert step.segments == (Segment(0, 0, 6, 1), Segment(1, 0, 4, 0))
    play.to_the_end()
    assert_every_position_was_sent_once(play)


@pytest.mark.parametrize("n_nodes", [1, 2, 3, 5])
@pytest.mark.parametrize("n_running", [1, 2, 3, 7])
def test_running_samples_go_on_while_a_long_prompt_enters(n_running: int, n_nodes: int) -> None:
    play = Play(prompts_of(*[1] * n_running, 190), n_nodes=n_nodes, max_rows=4, n_tokens=9, context=CONTEXT)
    play.to_the_end()
    entering = [turn for turn, numbers in enumerate(play.numbers) if n_running in numbers]
    during = play.numbers[: entering[40]]
    for number in range(n_running):
        turns = [turn for turn, numbers in enumerate(during) if number in numbers]
        assert len(turns) == 9, "the sample waited for the prompt"
        # A turn comes once its last message is back and those that were ready before have gone.
        assert max(after - before for before, after in itertools.pairwise(turns)) <= n_nodes + n_running + 1
    assert_every_position_was_sent_once(play)


@pytest.mark.parametrize("n_nodes", [1, 2, 3, 5])
@pytest.mark.parametrize("n_running", [1, 3, 7])
def test_tokens_ride_along_with_the_pieces_of_a_long_prompt(n_running: int, n_nodes: int) -> None:
    """A token takes one trip round the ring, as without the prompt, which fills what is left of each message."""
    play = Play(prompts_of(*[1] * n_running), n_nodes=n_nodes, n_slots=n_running + 1, max_rows=12, n_tokens=40)
    play.fill()
    play.return_one()
    slot = play.add(list(range(1000, 1190))).number
    play.to_the_end()
    pieces = [turn for turn, step in enumerate(play.steps) if any(s.slot == slot and not s.keep for s in step.segments)]
    assert {len(play.steps[turn].ids) for turn in pieces} == {12}
    first, last = pieces[0], pieces[-1]
    assert last - first < len(pieces) + n_nodes, "the prompt waited for running samples"
    for number in range(n_running):
        turns = [turn for turn in range(first, last + 1) if number in play.numbers[turn]]
        assert max(after - before for before, after in itertools.pairwise([first - 1, *turns, last])) <= n_nodes
    assert_every_position_was_sent_once(play)


def test_two_long_prompts_enter_side_by_side() -> None:
    play = Play(prompts_of(100, 100), n_nodes=2, max_rows=5, n_tokens=1).to_the_end()
    lead = 0
    for numbers in play.numbers[:-2]:
        (number,) = numbers
        lead += 1 if number == 0 else -1
        assert abs(lead) <= 1


# ---- prompts that samples share


@pytest.mark.parametrize("n_nodes", [1, 2, 3, 5])
def test_a_prompt_that_samples_share_is_computed_once(n_nodes: int) -> None:
    play = Play([[7, 8, 9]] * 4, n_nodes=n_nodes, n_tokens=3).to_the_end()
    rows_of_prompts = [s for step in play.steps for s in step.segments if s.start < 3]
    assert rows_of_prompts[0] == Segment(0, 0, 3, 1)
    assert rows_of_prompts[1:] == [Segment(slot, 2, 1, 1) for slot in (1, 2, 3)]  # in order of arrival
    assert_every_position_was_sent_once(play)


def test_a_shared_prompt_is_forked_once_all_its_pieces_were_sent() -> None:
    play = Play([list(range(20))] * 3, n_nodes=2, max_rows=6, n_tokens=2).to_the_end()
    first_fork = next(turn for turn, step in enumerate(play.steps) if step.forks)
    assert [s for step in play.steps[:first_fork] for s in step.segments][:4] == [
        Segment(0, 0, 6, 0), Segment(0, 6, 6, 0), Segment(0, 12, 6, 0), Segment(0, 18, 2, 1)
    ]  # fmt: skip
    assert_every_position_was_sent_once(play)


def test_a_prompt_of_one_token_is_not_worth_a_fork() -> None:
    play = Play([[5]] * 3, n_tokens=2).to_the_end()
    assert not any(step.forks for step in play.steps)


@pytest.mark.parametrize("n_nodes", [1, 2, 3])
def test_a_sample_that_waited_for_a_slot_shares_the_prompt_of_one_that_still_runs(n_nodes: int) -> None:
    play = Play([[1, 2, 3]] * 6, n_slots=2, n_nodes=n_nodes, n_tokens=40, stops=((0,),))
    play.token_of = lambda sample: 0 if sample.number and len(sample.tokens) == 1 else 1  # the first outlives all
    play.to_the_end()
    assert sum(s.start == 0 for step in play.steps for s in step.segments) == 1
    assert_every_position_was_sent_once(play)


def test_a_sample_does_not_wait_for_the_end_of_the_one_it_shares_its_prompt_with() -> None:
    play = Play([[1, 2, 3], [4], [1, 2, 3]], n_slots=2, n_tokens=40, stops=((0,),))
    play.token_of = lambda sample: 0 if sample.number == 1 else 1
    play.to_the_end()
    entered = next(turn for turn, numbers in enumerate(play.numbers) if 2 in numbers)
    assert entered <= 3


# ---- what comes back


def test_another_message_than_the_one_due_is_refused() -> None:
    play = Play(prompts_of(3, 3), n_nodes=2)
    first, second = play.fill()
    for wrong in (
        second.segments,
        (),
        (Segment(0, 0, 3, 0),),
        (Segment(0, 0, 2, 1),),
        (Segment(1, 0, 3, 1),),
        (*first.segments, *second.segments),
    ):
        with pytest.raises(RemoteProtocolError, match="another message than the one due"):
            play.scheduler.complete(wrong)
    assert [sample.number for sample, _ in play.scheduler.complete(list(first.segments))] == [0]
    with pytest.raises(RemoteProtocolError):
        play.scheduler.complete(first.segments)  # a second time


def test_a_message_that_was_never_sent_is_refused() -> None:
    with pytest.raises(RemoteProtocolError):
        Play(prompts_of(3)).scheduler.complete((Segment(0, 0, 3, 1),))


def test_a_piece_without_kept_rows_returns_as_an_acknowledgement() -> None:
    play = Play(prompts_of(8), max_rows=4, n_nodes=2)
    first, second = play.fill()
    assert play.scheduler.complete(first.segments) == []
    assert play.scheduler.has_unfinished
    assert [sample.number for sample, _ in play.scheduler.complete(second.segments)] == [0]


# ---- another ring


def test_after_a_rewind_all_that_is_known_enters_again_and_the_next_token_follows() -> None:
    play = Play([[5, 6, 7]], n_tokens=4)
    for _ in range(2):
        play.fill()
        play.return_one()
    play.fill()
    play.rewind(n_nodes=1)
    (step,) = play.fill()
    assert (step.segments, step.ids) == ((Segment(0, 0, 5, 1),), [5, 6, 7, 1000, 1000])
    play.to_the_end()
    assert play.raw == [[1000] * 4]


def test_a_rewind_sends_samples_in_the_order_of_their_arrival() -> None:
    play = Play(prompts_of(3, 3, 3, 3), n_nodes=2, n_slots=3, n_tokens=4)
    for _ in range(3):
        play.fill()
        play.return_one()
    play.rewind(n_nodes=3)
    assert len(play.fill()) == 3
    assert play.numbers[-3:] == [[0], [1], [2]]
    play.to_the_end()
    assert_every_position_was_sent_once(play)


def test_a_ring_with_fewer_slots_takes_the_samples_one_after_another() -> None:
    play = Play(prompts_of(3, 3, 3, 3), n_nodes=2, n_tokens=4)
    for _ in range(3):
        play.fill()
        play.return_one()
    play.rewind(n_nodes=1, n_slots=2)
    (step,) = play.fill()
    assert [segment.slot for segment in step.segments] == [0, 1]
    play.to_the_end()
    assert play.numbers[-1] == [2, 3]
    assert [len(tokens) for tokens in play.raw] == [4] * 4
    assert_every_position_was_sent_once(play)


def test_a_rewind_sends_long_sequences_in_pieces_and_forks_what_is_shared() -> None:
    play = Play([list(range(20))] * 3, n_nodes=2, max_rows=6, n_tokens=9)
    while play.scheduler.n_generated < 9:
        play.fill()
        play.return_one()
    generated, first = play.scheduler.n_generated, len(play.steps)
    play.rewind(n_nodes=2)
    play.to_the_end()
    again = [segment for step in play.steps[first:] for segment in step.segments]
    assert again[:3] == [Segment(0, 0, 6, 0), Segment(0, 6, 6, 0), Segment(0, 12, 6, 0)]
    assert sum(len(step.forks) for step in play.steps[first:]) == 2
    assert generated < play.scheduler.n_generated == 27
    assert_every_position_was_sent_once(play)


def test_what_travelled_before_a_rewind_is_refused_after_it() -> None:
    play = Play(prompts_of(3, 4), n_nodes=2)
    old, _ = play.fill()
    play.rewind(n_nodes=2)
    with pytest.raises(RemoteProtocolError):
        play.scheduler.complete(old.segments)


# ---- anything at all


@few_examples
@given(
    lengths=st.lists(st.integers(1, 39), max_size=9),
    n_tokens=st.integers(1, 12),
    n_nodes=st.integers(1, 5),
    n_slots=st.one_of(st.none(), st.integers(1, 9)),
    max_rows=st.integers(1, 20),
    stops=st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=3).map(tuple), max_size=2).map(tuple),
    tokens=st.randoms(use_true_random=False),
    n_shared=st.integers(0, 9),
)
def test_every_position_is_sent_once_in_order_and_every_sample_ends(
    lengths: list[int], n_tokens: int, n_nodes: int, n_slots: int | None, max_rows: int,
    stops: tuple[tuple[int, ...], ...], tokens: random.Random,
    n_shared: int,
) -> None:  # fmt: skip
    prompts = prompts_of(*lengths)
    prompts[:n_shared] = prompts[:1] * len(prompts[:n_shared])
    play = Play(
        prompts,
        n_tokens=n_tokens,
        context=40,
        stops=stops,
        n_nodes=n_nodes,
        n_slots=n_slots,
        max_rows=max_rows,
        token_of=lambda sample: tokens.randint(0, 5),
    ).to_the_end()
    assert sorted(play.ended) == list(range(len(lengths)))
    assert play.most_in_flight <= n_nodes
    assert_every_position_was_sent_once(play)
    for sample, raw in zip(play.samples, play.raw, strict=True):
        assert sample.finish_reason is not None
        assert raw[: len(sample.tokens)] == sample.tokens
        removed = tuple(raw[len(sample.tokens) :])
        assert removed in stops if sample.finish_reason == "stop" else not removed
        assert len(raw) <= n_tokens
        assert sample.n_known <= 40
    assert play.scheduler.n_generated == sum(map(len, play.raw))


def token_of_slot(play: Play, sample: Sample) -> int:
    """A model: the token depends on every position that the sample's slot holds."""
    return hash(tuple(play.sent[sample.number])) % 7


@few_examples
@given(
    lengths=st.lists(st.integers(1, 30), min_size=1, max_size=6),
    n_shared=st.integers(0, 6),
    n_tokens=st.integers(1, 12),
    n_nodes=st.integers(1, 4),
    n_slots=st.one_of(st.none(), st.integers(1, 6)),
    max_rows=st.integers(1, 20),
    losses=st.lists(st.tuples(st.integers(0, 25), st.integers(0, 3), st.integers(1, 4)), min_size=1, max_size=6),
)
def test_a_ring_lost_at_any_point_changes_no_token(
    lengths: list[int], n_shared: int, n_tokens: int, n_nodes: int, n_slots: int | None, max_rows: int,
    losses: list[tuple[int, int, int]],
) -> None:  # fmt: skip
    """Each loss: after how many returns, after how many messages of the next filling, and the nodes of the new ring."""
    prompts = prompts_of(*lengths)
    prompts[:n_shared] = prompts[:1] * len(prompts[:n_shared])

    def play() -> Play:
        game = Play(
            prompts, n_tokens=n_tokens, context=40, stops=((0, 1),), n_nodes=n_nodes, n_slots=n_slots, max_rows=max_rows
        )
        game.token_of = lambda sample: token_of_slot(game, sample)
        return game

    undisturbed, disturbed = play().to_the_end(), play()
    for n_returns, n_sent, new_n_nodes in losses:
        for _ in range(n_returns):
            disturbed.fill()
            if disturbed.ring:
                disturbed.return_one()
        for _ in range(n_sent):
            disturbed.send_one()
        disturbed.rewind(new_n_nodes)
    disturbed.to_the_end()
    assert disturbed.raw == undisturbed.raw
    assert sorted(disturbed.ended) == sorted(undisturbed.ended)
    for one, other in zip(disturbed.samples, undisturbed.samples, strict=True):
        assert (one.tokens, one.finish_reason) == (other.tokens, other.finish_reason)
    assert_every_position_was_sent_once(disturbed)


# ---- several tokens of one sample at once


def test_a_draft_is_sent_behind_the_known_tokens_and_all_its_rows_are_kept() -> None:
    play = Play([[5, 6, 7]], n_tokens=9)
    play.samples[0].draft = (20, 21)
    batch = play.scheduler.schedule()
    assert batch is not None
    assert (batch.segments, batch.ids) == ((Segment(0, 0, 5, 3),), [5, 6, 7, 20, 21])
    assert batch.positions == [0, 1, 2, 3, 4]
    assert play.scheduler.complete(batch.segments) == [(play.samples[0], slice(0, 3))]


@pytest.mark.parametrize("tokens", [[20, 21, 22], [20, 30], [30]])
def test_positions_of_wrong_guesses_are_sent_again(tokens: list[int]) -> None:
    play = Play([[5, 6, 7]], n_tokens=9)
    (sample,) = play.samples
    sample.draft = (20, 21)
    batch = play.scheduler.schedule()
    assert batch is not None
    play.scheduler.complete(batch.segments)
    outcome = play.scheduler.accept(sample, tokens)
    assert (outcome.tokens, outcome.n_accepted) == (tuple(tokens), len(tokens))
    after = play.scheduler.schedule()
    assert after is not None
    assert (after.segments, after.ids) == ((Segment(0, 2 + len(tokens), 1, 1),), tokens[-1:])


def test_tokens_behind_the_one_that_ends_a_sample_are_dropped() -> None:
    for params, tokens, reason in (
        (SamplingParams(2), [1, 2], "length"),
        (SamplingParams(9, stops=((2, 3),)), [1], "stop"),
    ):
        scheduler, sample = Scheduler(context=50), Sample(0, (5,), params)
        scheduler.add(sample)
        sample.draft = (1, 2, 3, 4)
        batch = scheduler.schedule()
        assert batch is not None
        scheduler.complete(batch.segments)
        outcome = scheduler.accept(sample, [1, 2, 3, 4, 5])
        assert (sample.tokens, sample.finish_reason, sample.slot) == (tokens, reason, None)
        assert (list(outcome.tokens), scheduler.has_unfinished) == (tokens, False)


def told(*tokens: int) -> list[TokenLogprobs]:
    return [TokenLogprobs(token, -0.5, ()) for token in tokens]


def test_log_probabilities_come_with_their_tokens_and_go_with_a_stop_sequence() -> None:
    scheduler = Scheduler(context=50)
    sample = Sample(0, (5,), SamplingParams(9, stops=((2, 3),), logprobs=0))
    scheduler.add(sample)
    outcomes = []
    for tokens in ([1], [2], [4, 2], [3]):
        sample.draft = (4,) if len(tokens) > 1 else ()
        batch = scheduler.schedule()
        assert batch is not None
        scheduler.complete(batch.segments)
        outcomes.append(scheduler.accept(sample, tokens, told(*tokens)))
    assert [list(outcome.tokens) for outcome in outcomes] == [[1], [], [2, 4], []]
    assert [list(outcome.logprobs) for outcome in outcomes] == [told(1), [], told(2, 4), []]
    assert (sample.tokens, sample.logprobs) == ([1, 2, 4], told(1, 2, 4))


def test_log_probabilities_behind_the_end_are_dropped() -> None:
    scheduler, sample = Scheduler(context=50), Sample(0, (5,), SamplingParams(2, logprobs=0), draft=(1, 2, 3))
    scheduler.add(sample)
    batch = scheduler.schedule()
    assert batch is not None
    scheduler.complete(batch.segments)
    outcome = scheduler.accept(sample, [1, 2, 3, 4], told(1, 2, 3, 4))
    assert (outcome.tokens, list(outcome.logprobs)) == ((1, 2), told(1, 2))


def test_a_draft_does_not_reach_beyond_the_context_or_the_message() -> None:
    for scheduler, n_rows in ((Scheduler(context=6), 5), (Scheduler(context=50, max_batch_tokens=4), 4)):
        sample = Sample(0, (5, 6, 7), SamplingParams(9), draft=(1, 2, 3, 4))
        scheduler.add(sample)
        batch = scheduler.schedule()
        assert batch is not None
        assert batch.segments == (Segment(0, 0, n_rows, n_rows - 2),)


# ---- samples that come and go


@given(data=st.data(), n_nodes=st.integers(1, 4), n_slots=st.integers(1, 3), max_rows=st.integers(1, 6))
@few_examples
def test_whoever_is_cancelled_the_others_end_and_every_slot_is_free(
    data: st.DataObject, n_nodes: int, n_slots: int, max_rows: int
) -> None:
    lengths = data.draw(st.lists(st.integers(1, 9), min_size=1, max_size=6))
    play = Play(prompts_of(*lengths), n_tokens=3, n_nodes=n_nodes, n_slots=n_slots, max_rows=max_rows, context=40)
    doomed = [sample for sample in play.samples if data.draw(st.booleans())]
    while play.scheduler.has_unfinished:
        play.fill()
        if doomed and data.draw(st.booleans()):
            sample = doomed.pop()
            if (outcome := play.scheduler.cancel(sample)) is not None:
                play.take(sample, outcome)
                assert sample.finish_reason == "abort"
            assert play.scheduler.cancel(sample) is None
        elif play.ring:
            play.return_rows()
    assert all(sample.finish_reason is not None and sample.slot is None for sample in play.samples)
    assert all(len(s.tokens) == 3 for s in play.samples if s.finish_reason == "length")
    assert (play.scheduler.n_running, play.scheduler.n_waiting, play.scheduler.n_in_flight) == (0, 0, 0)
    assert play.scheduler._slots.n_free == n_slots
