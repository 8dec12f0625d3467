"""What slots hold and who takes which: unit tests of the table, then whole lives of samples that begin alike."""

import random
from array import array
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mdi.engine.sample import Sample
from mdi.engine.sampling_params import SamplingParams
from mdi.engine.slots import MIN_FORK_POSITIONS, SlotTable, Start, common_prefix_length
from mdi.segments import Fork, Segment
from support.play import Play
from support.wire import few_examples


@given(shared=st.lists(st.integers(0, 9)), one=st.lists(st.integers(0, 2)), other=st.lists(st.integers(0, 2)))
def test_the_common_prefix_is_that_of_a_plain_loop(shared: list[int], one: list[int], other: list[int]) -> None:
    a, b = array("i", shared + one), array("i", shared + other)
    expected = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
    assert common_prefix_length(a, b) == expected


# ---- the table


def run(table: SlotTable, prompt: Sequence[int]) -> tuple[int, Start]:
    """One sample from its begin to its end: its slot, and how it began."""
    slot = table.take(prompt)
    start = table.begin(slot, most=len(prompt) - 1)
    assert start is not None
    table.write(slot, start.n, prompt[start.n :])
    table.give_back(slot)
    return slot, start


def test_the_least_recently_used_slot_is_taken_for_a_new_prompt() -> None:
    table = SlotTable(3)
    assert [run(table, [10 * i] * 5)[0] for i in range(3)] == [0, 1, 2]
    assert run(table, [0] * 7) == (0, Start(5))  # slot 0 is continued, and then the most recently used one
    assert [run(table, [10 * i] * 5)[0] for i in range(5, 8)] == [1, 2, 0]


def test_the_last_position_is_always_computed() -> None:
    table = SlotTable(1)
    run(table, [1, 2, 3])
    assert run(table, [1, 2, 3]) == (0, Start(2))
    assert run(table, [1, 2]) == (0, Start(1))
    assert run(table, [1, 2, 3]) == (0, Start(2)), "the slot was cut back to two positions"


def test_another_conversation_that_begins_alike_is_forked_and_stays() -> None:
    table = SlotTable(3, min_fork=4)
    system, chat = [1] * 4, [1] * 4 + [2] * 20
    run(table, chat)
    assert run(table, [*system, 3, 3]) == (1, Start(4, Fork(0, 1, 4)))
    assert run(table, [*chat, 5]) == (0, Start(24))


def test_a_slot_is_cut_back_where_it_is_the_only_one() -> None:
    table = SlotTable(1)
    run(table, [1] * 4 + [2] * 20)
    assert run(table, [1] * 4 + [3] * 30) == (0, Start(4))


def test_a_slot_that_is_about_to_be_forked_is_not_overwritten_first() -> None:
    table = SlotTable(2, min_fork=4)
    run(table, [1] * 20)
    run(table, [2] * 4)
    slot = table.take([1] * 5 + [3] * 5)
    assert slot == 1, "slot 0 was used before it"
    assert table.begin(slot, most=9) == Start(5, Fork(0, 1, 5))
    assert table.take([4]) == 0


def test_a_fork_has_to_save_some_positions() -> None:
    for n, fork in ((MIN_FORK_POSITIONS - 1, None), (MIN_FORK_POSITIONS, Fork(0, 1, MIN_FORK_POSITIONS))):
        table = SlotTable(2)
        run(table, [1] * n + [2] * 50)
        slot, start = run(table, [1] * n + [3] * 9)
        assert (slot, start.fork) == (1, fork)


def test_a_sample_waits_only_for_a_longer_prefix_that_is_being_sent() -> None:
    table = SlotTable(4, min_fork=2)
    prompt = list(range(30))
    first, second, third = (table.take(prompt) for _ in range(3))
    assert table.begin(first, most=29) == Start(0)
    assert table.begin(second, most=29) is None
    table.write(first, 0, prompt[:15])
    assert table.begin(second, most=29) is None
    table.give_back(first)  # cancelled: what was sent stays, and no more will come
    assert table.begin(second, most=29) == Start(15, Fork(first, second, 15))
    assert table.begin(third, most=29) is None
    table.write(second, 15, prompt[15:])
    assert table.begin(third, most=29) == Start(29, Fork(second, third, 29))


def test_nobody_waits_for_the_next_sample_of_a_slot() -> None:
    table = SlotTable(2, min_fork=2)
    first, second = table.take([1] * 9), table.take([1] * 9)
    assert table.begin(first, most=8) == Start(0)
    assert table.begin(second, most=8) is None
    table.give_back(first)
    assert table.take([2] * 9) == first
    assert table.begin(first, most=8) == Start(0)
    assert table.begin(second, most=8) == Start(0)


def test_a_sample_waits_for_a_prefix_in_a_slot_that_held_something_longer() -> None:
    table = SlotTable(2, min_fork=2)
    for token in (1, 2):
        run(table, [token] * 50)
    first, second = table.take([3] * 9), table.take([3] * 9)
    assert table.begin(first, most=8) == Start(0)
    assert table.begin(second, most=8) is None


def test_wrong_guesses_are_overwritten() -> None:
    table = SlotTable(2, min_fork=2)
    first = table.take([1, 2, 3])
    assert table.begin(first, most=2) == Start(0)
    table.write(first, 0, [1, 2, 3, 7, 8])
    table.write(first, 3, [4])
    assert run(table, [1, 2, 3, 4, 8, 9]) == (1, Start(4, Fork(0, 1, 4)))


def test_a_gap_is_our_mistake() -> None:
    with pytest.raises(AssertionError, match="slot 0 holds 0 positions"):
        SlotTable(1).write(0, 1, [5])


# ---- whole lives


def next_turn(play: Play, number: int, message: Sequence[int]) -> list[int]:
    """The prompt of a conversation's next turn: all that was said, and a message."""
    return [*play.samples[number].prompt, *play.samples[number].tokens, *message]


@pytest.mark.parametrize("n_nodes", [1, 3])
def test_the_next_turn_of_a_conversation_computes_its_message(n_nodes: int) -> None:
    play = Play([[5, 6, 7]], n_tokens=4, n_nodes=n_nodes, n_slots=2).to_the_end()
    for turn in range(1, 10):
        play.add(next_turn(play, turn - 1, [100 + turn, 200 + turn]))
        (step,) = play.fill()
        n_before = 3 + 6 * (turn - 1)
        # The last token of a turn was never sent, and goes with the message.
        assert step.segments == (Segment(0, n_before + 3, 3, 1),)
        assert play.samples[turn].n_cached == n_before + 3
        play.to_the_end()


@pytest.mark.parametrize("n", range(13))
def test_a_prefix_of_any_length_is_reused(n: int) -> None:
    prompt = list(range(12))
    for n_slots in (1, 2):
        play = Play([prompt], n_tokens=1, n_slots=n_slots).to_the_end()
        sample = play.add([*prompt[:n], *range(50, 53)])
        play.to_the_end()
        assert sample.n_cached == n


def test_a_running_sample_is_forked_as_far_as_the_prompts_agree() -> None:
    play = Play([list(range(30))], n_tokens=40, n_slots=2, max_rows=8)
    play.fill()
    sample = play.add([*range(20), 77, 78])
    play.to_the_end()
    forks = [fork for step in play.steps for fork in step.forks]
    assert (forks, sample.n_cached) == ([Fork(0, 1, 20)], 20)


def test_prompts_that_begin_alike_compute_the_beginning_once() -> None:
    play = Play([[*range(20), 50 + number, 60] for number in range(5)], n_nodes=2, min_fork=4, n_tokens=2).to_the_end()
    assert [sample.n_cached for sample in play.samples] == [0, 20, 20, 20, 20]


@pytest.mark.parametrize("n_sent", [1, 2, 3])
def test_what_was_sent_of_a_cancelled_prompt_is_reused(n_sent: int) -> None:
    play = Play([list(range(20))], n_nodes=4, n_slots=1, max_rows=5)
    for _ in range(n_sent):
        play.send_one()
    assert play.scheduler.cancel(play.samples[0]) is not None  # with all its rows in flight
    again = play.add(range(20))
    play.fill()
    assert again.n_cached == 5 * n_sent
    while play.ring:
        play.return_rows()


def test_wrong_guesses_of_a_cancelled_sample_count_as_what_they_are() -> None:
    play = Play([[5, 6, 7]], n_slots=1, n_nodes=2)
    play.samples[0].draft = (20, 21)
    assert play.scheduler.schedule() is not None
    play.scheduler.cancel(play.samples[0])
    play.scheduler.add(Sample(1, (5, 6, 7, 20, 30), SamplingParams(4)))
    batch = play.scheduler.schedule()
    assert batch is not None
    assert (batch.segments, batch.ids) == ((Segment(0, 4, 1, 1),), [30])


def test_another_ring_has_kept_nothing() -> None:
    play = Play([[5, 6, 7]], n_tokens=4, n_slots=2).to_the_end()
    play.rewind(n_nodes=2)
    play.add(next_turn(play, 0, [8]))
    (step,) = play.fill()
    assert step.segments == (Segment(0, 0, 8, 1),)


def test_what_was_reused_is_computed_anew_after_a_loss() -> None:
    play = Play([[5, 6, 7]], n_tokens=4, n_slots=2).to_the_end()
    sample = play.add(next_turn(play, 0, [8]))
    play.fill()
    assert sample.n_cached == 6
    play.rewind(n_nodes=1)
    (step,) = play.fill()
    assert (step.segments, sample.n_cached) == ((Segment(0, 0, 8, 1),), 0)
    play.to_the_end()


def next_token(ids: Sequence[int]) -> int:
    """A model: the token depends on every position."""
    return hash(tuple(ids)) % 4


def alone(prompt: Sequence[int], n_tokens: int) -> list[int]:
    ids = list(prompt)
    for _ in range(n_tokens):
        ids.append(next_token(ids))
    return ids[len(prompt) :]


class Visitors:
    """Random samples, most of which begin like one before, on a ring that is lost now and then."""

    N_TOKENS = 5

    def __init__(self, play: Play, chance: random.Random) -> None:
        self.play, self.chance = play, chance
        play.token_of = lambda sample: next_token(play.slots[sample.slot or 0])

    def prompt(self) -> list[int]:
        """A part of an earlier text, or all of it, and a few tokens more."""
        said: list[int] = []
        if self.play.samples:
            number = self.chance.randrange(len(self.play.samples))
            said = next_turn(self.play, number, [])[: self.chance.randint(0, 30)]
        return [*said, *(self.chance.randrange(4) for _ in range(self.chance.randint(1, 6)))]

    def act(self) -> None:
        """Anything that may happen."""
        play, chance = self.play, self.chance
        match chance.choices(("add", "send", "return", "cancel", "lose"), (3, 6, 6, 1, 0.3))[0]:
            case "add":
                play.add(self.prompt())
            case "send":
                play.send_one()
            case "return" if play.ring:
                play.return_rows()
            case "cancel" if play.samples:
                sample = chance.choice(play.samples)
                if (outcome := play.scheduler.cancel(sample)) is not None:
                    play.take(sample, outcome)
            case "lose":
                play.rewind(chance.randint(1, 4), chance.randint(1, 4))

    def to_the_end(self) -> None:
        while self.play.scheduler.has_unfinished:
            self.play.fill()
            assert self.play.ring, "nothing travels and nothing is done: the scheduler is stuck"
            self.play.return_rows()


@pytest.mark.slow
@few_examples
@given(
    chance=st.randoms(use_true_random=False),
    n_nodes=st.integers(1, 4),
    n_slots=st.integers(1, 5),
    max_rows=st.integers(1, 12),
    min_fork=st.integers(1, 6),
)
def test_whoever_comes_and_goes_no_position_ever_holds_a_wrong_token(
    chance: random.Random, n_nodes: int, n_slots: int, max_rows: int, min_fork: int
) -> None:
    """`Play` compares what each slot holds with the sample in it, at every message."""
    play = Play([], n_tokens=Visitors.N_TOKENS, n_nodes=n_nodes, n_slots=n_slots, max_rows=max_rows, min_fork=min_fork)
    visitors = Visitors(play, chance)
    for _ in range(120):
        visitors.act()
    visitors.to_the_end()
    assert play.scheduler._slots.n_free == play.ledger.n_slots
    for sample in play.samples:
        expected = alone(sample.prompt, Visitors.N_TOKENS)
        assert sample.tokens == (expected[: len(sample.tokens)] if sample.finish_reason == "abort" else expected)
