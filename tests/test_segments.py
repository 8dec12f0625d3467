"""The ledger of slots: which segments are legal, and how far each slot is filled."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mdi.errors import RemoteProtocolError
from mdi.segments import Segment, SlotLedger, check_segments, kept_rows_of, rows_of
from support.wire import few_examples

N_SLOTS, CONTEXT = 3, 10


@pytest.fixture
def ledger() -> SlotLedger:
    """Slot 0 holds 4 positions, slot 1 holds 7, slot 2 none."""
    ledger = SlotLedger(N_SLOTS, CONTEXT)
    ledger.extend([Segment(0, 0, 4, 1), Segment(1, 0, 7, 1)])
    return ledger


def held(ledger: SlotLedger) -> list[int]:
    return [ledger.filled(slot) for slot in range(N_SLOTS)]


def test_rows_are_counted_on_the_way_and_on_the_return() -> None:
    segments = [Segment(0, 0, 5, 0), Segment(1, 2, 3, 3), Segment(2, 9, 1, 1)]
    assert rows_of(segments) == 9
    assert kept_rows_of(segments) == 4
    assert segments[1].stop == 5


def test_a_new_ledger_is_empty() -> None:
    assert held(SlotLedger(N_SLOTS, CONTEXT)) == [0, 0, 0]


@pytest.mark.parametrize("start", range(5))
def test_a_slot_is_filled_up_to_the_end_of_its_last_segment_also_after_rewinding(
    ledger: SlotLedger, start: int
) -> None:
    ledger.extend([Segment(0, start, 2, 1)])
    assert held(ledger) == [start + 2, 7, 0]


def test_a_segment_must_not_leave_a_gap(ledger: SlotLedger) -> None:
    with pytest.raises(RemoteProtocolError, match="slot 0 holds 4 positions, so no segment may start at 5"):
        ledger.extend([Segment(0, 5, 1, 1)])


def test_after_rewinding_the_old_positions_are_gone(ledger: SlotLedger) -> None:
    ledger.extend([Segment(1, 2, 1, 1)])
    with pytest.raises(RemoteProtocolError, match="holds 3"):
        ledger.extend([Segment(1, 4, 1, 1)])


def test_a_slot_can_be_filled_to_the_last_position_of_the_context(ledger: SlotLedger) -> None:
    ledger.extend([Segment(1, 7, 3, 0)])
    assert ledger.filled(1) == CONTEXT


@pytest.mark.parametrize(
    "illegal",
    [
        [],
        [Segment(2, 0, 1, 1), Segment(N_SLOTS, 0, 1, 1)],
        [Segment(2, 0, 1, 1), Segment(0, 4, 0, 0)],
        [Segment(2, 0, 1, 1), Segment(1, 7, 4, 1)],
        [Segment(2, 0, 1, 1), Segment(0, 4, 1, 2)],
        [Segment(2, 0, 1, 1), Segment(2, 1, 1, 1)],
        [Segment(2, 0, 1, 1), Segment(0, 5, 1, 1)],
    ],
    ids=["nothing", "slot out of range", "no rows", "beyond the context", "keep more than n", "slot twice", "gap"],
)
def test_an_illegal_message_changes_nothing(ledger: SlotLedger, illegal: list[Segment]) -> None:
    with pytest.raises(RemoteProtocolError):
        ledger.extend(illegal)
    assert held(ledger) == [4, 7, 0]


def test_a_segment_that_starts_earlier_cuts_its_slot_back_and_no_other(ledger: SlotLedger) -> None:
    ledger.extend([Segment(1, 2, 1, 1)])
    assert held(ledger) == [4, 3, 0]
    with pytest.raises(RemoteProtocolError, match="holds 3"):
        ledger.extend([Segment(1, 4, 1, 1)])


@pytest.mark.parametrize("slot", [-1, N_SLOTS, 2**32 - 1])
def test_slots_outside_the_session_are_refused(ledger: SlotLedger, slot: int) -> None:
    for action in (
        lambda: ledger.fork(slot, 2, 1),
        lambda: ledger.fork(0, slot, 1),
    ):
        with pytest.raises(RemoteProtocolError, match="out of range: there are 3"):
            action()
    assert held(ledger) == [4, 7, 0]


@pytest.mark.parametrize("n", [1, 4])
def test_a_fork_holds_what_was_copied(ledger: SlotLedger, n: int) -> None:
    ledger.fork(0, 1, n)
    assert held(ledger) == [4, n, 0]


@pytest.mark.parametrize(("source", "target", "n"), [(0, 2, 0), (0, 2, 5), (2, 0, 1), (0, 0, 1)])
def test_an_impossible_fork_is_refused_and_changes_nothing(
    ledger: SlotLedger, source: int, target: int, n: int
) -> None:
    with pytest.raises(RemoteProtocolError, match="cannot fork"):
        ledger.fork(source, target, n)
    assert held(ledger) == [4, 7, 0]


segments = st.builds(
    Segment, st.integers(0, N_SLOTS), st.integers(0, CONTEXT), st.integers(0, CONTEXT), st.integers(0, CONTEXT)
)


@few_examples
@given(st.lists(st.lists(segments, max_size=3), max_size=20))
def test_the_ledger_follows_a_model_made_of_lists(messages: list[list[Segment]]) -> None:
    ledger = SlotLedger(N_SLOTS, CONTEXT)
    model: list[list[int]] = [[] for _ in range(N_SLOTS)]
    for message in messages:
        slots = [segment.slot for segment in message]
        legal = 0 < len(message) == len(set(slots)) and all(
            s.slot < N_SLOTS and s.n and s.keep <= s.n and s.start <= len(model[s.slot]) and s.start + s.n <= CONTEXT
            for s in message
        )
        if not legal:
            with pytest.raises(RemoteProtocolError):
                ledger.extend(message)
            continue
        ledger.extend(message)
        for s in message:
            model[s.slot] = [*model[s.slot][: s.start], *range(s.n)]
        assert held(ledger) == [len(positions) for positions in model]


def test_the_error_of_an_illegal_segment_tells_the_limits() -> None:
    with pytest.raises(RemoteProtocolError, match=r"slot=1, start=9, n=2, keep=1.*3 slots of 10 positions"):
        check_segments([Segment(1, 9, 2, 1)], N_SLOTS, CONTEXT)
