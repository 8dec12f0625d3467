"""What a ring generates is held against what was predicted, and only where both mean the same."""

from collections.abc import Mapping

import pytest

from mdi.engine.speed import Comparison, SpeedMeter
from mdi.ids import NodeId
from mdi.segments import Segment
from support.clocks import ManualClock

PROMPT = [Segment(0, 0, 8, 1)]
STEP = [Segment(0, 20, 1, 1), Segment(1, 30, 1, 1)]


class Expected:
    """Ten tokens a second for each sample; a node takes a millisecond for each row, and for each that is kept."""

    def tokens_s(self, n_samples: int, context: int) -> float:
        assert context == 26
        return 10.0 * n_samples

    def compute_s(self, rows: int, kept: int, context: int) -> Mapping[NodeId, float]:
        return {NodeId(0): 1e-3 * (rows + kept), NodeId(1): 1e-3 * rows}


class Run:
    """Messages of two samples, one after the other."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.meter = SpeedMeter(self.clock)
        self.meter.begin(Expected())

    def trip(self, segments: list[Segment], took_s: float, n_left: int = 2) -> None:
        self.meter.sent(segments)
        self.clock.now_s += took_s
        self.meter.returned(len(segments), 2, n_left)


@pytest.fixture
def run() -> Run:
    return Run()


def test_next_tokens_count_and_prompts_do_not(run: Run) -> None:
    run.trip(PROMPT, 5.0)
    for _ in range(4):
        run.trip(STEP, 0.2)
    total = run.meter.total
    assert total == (8, pytest.approx(0.8), pytest.approx(0.4))
    assert (total.reached, total.predicted) == (pytest.approx(10), pytest.approx(20))


def test_a_prompt_between_steps_spoils_the_steps_that_it_is_beside(run: Run) -> None:
    meter = run.meter
    run.trip(PROMPT, 1.0)
    for segments in (STEP, PROMPT):  # two messages travel
        meter.sent(segments)
    for _ in range(2):
        run.clock.now_s += 3.0
        meter.returned(1, 2, 2)
    assert meter.total.tokens == 0
    run.trip(STEP, 0.2)
    assert meter.total == (2, pytest.approx(0.2), pytest.approx(0.1))


def test_nothing_counts_while_no_sample_is_there(run: Run) -> None:
    """A prompt of one token looks like a step."""
    run.trip(STEP, 0.2)
    run.trip(STEP, 0.2, n_left=0)
    run.clock.now_s += 100.0
    run.trip(STEP, 0.2)
    assert run.meter.total.reached_s == pytest.approx(0.2)


def test_a_ring_of_which_nothing_is_known_adds_nothing(run: Run) -> None:
    run.trip(STEP, 0.2)
    run.trip(STEP, 0.2)
    before = run.meter.total
    run.meter.begin(None)
    run.trip(STEP, 0.2)
    run.trip(STEP, 0.2)
    assert run.meter.total == before
    assert run.meter.expected_s == {}


def test_what_was_under_way_when_a_ring_broke_is_not_waited_for(run: Run) -> None:
    run.meter.sent(STEP)
    run.meter.begin(Expected())
    run.clock.now_s += 100.0
    run.trip(PROMPT, 1.0)
    run.trip(STEP, 0.2)
    assert run.meter.total.reached_s == pytest.approx(0.2)


def test_each_node_is_expected_to_compute_all_messages(run: Run) -> None:
    run.trip(PROMPT, 5.0)
    run.trip(STEP, 0.2)
    assert run.meter.expected_s == {0: pytest.approx(13e-3), 1: pytest.approx(10e-3)}


def test_what_was_long_ago_is_not_recent(run: Run) -> None:
    assert run.meter.recent is None
    run.trip(STEP, 0.2)
    for took_s in (*[0.5] * 200, *[0.25] * 400):
        run.trip(STEP, took_s)
    assert run.meter.total.reached == pytest.approx(6)
    assert run.meter.recent is not None and run.meter.recent.reached == pytest.approx(8)
    assert Comparison().reached == Comparison().predicted == 0.0
