"""How a node counts what it does."""

import contextlib

from mdi.segments import Segment
from mdi.trace import Timeline
from mdi.work import Work, WorkMeter
from support.clocks import ManualClock


def test_what_is_going_on_counts_already() -> None:
    clock = ManualClock()
    meter = WorkMeter(clock)
    meter.begin("idle")
    clock.now_s += 5
    assert meter.total == Work(0, 0, 5, 0)
    meter.end()
    clock.now_s += 100  # neither
    meter.begin("compute")
    clock.now_s += 2
    assert meter.total == Work(2, 0, 5, 0)
    meter.end(rows=3)
    meter.sent(0.25)
    meter.received(0.5)
    assert meter.total == Work(2, 0.75, 5, 3)


def test_no_counter_goes_back() -> None:
    """The clock was read for the end of a computation, another thread read the counters, and then the end came."""
    clock = ManualClock()
    meter = WorkMeter(clock)
    meter.begin("compute")
    clock.now_s += 2
    told = meter.total
    clock.now_s -= 0.5
    meter.end()
    assert meter.total == told
    meter.begin("compute")
    clock.now_s += 1
    assert meter.total.compute_s == 2.5


def test_a_timeline_counts_whether_it_is_on_or_not() -> None:
    timeline = Timeline()
    meter = timeline.meter
    with timeline.during("idle"):
        pass
    with timeline.computing([Segment(0, 0, 5, 1), Segment(1, 0, 1, 1)]):
        pass
    before = meter.total
    with timeline.during("head", rows=2):
        pass
    after = meter.total
    assert (after.rows, after.idle_s) == (6, before.idle_s), "the head computes rows that are counted already"
    assert after.compute_s > before.compute_s > 0 and before.idle_s > 0
    with contextlib.suppress(ValueError), timeline.during("idle"):
        raise ValueError
    with timeline.during("head"):
        pass
    assert meter.total.compute_s > after.compute_s
    timeline.begin(on=True)
    assert meter.total.rows == 6
