"""A node that is slower than measured is named once, and once when it is over."""

from dataclasses import replace

import pytest

from mdi.cluster.slow_nodes import SlowNodes
from mdi.cluster.speed_watch import SpeedWatch
from mdi.ids import NodeId
from mdi.net.timeouts import Timeouts
from mdi.work import Work
from support.clocks import ManualClock
from support.statuses import IDLE, RUNNING_STARTER

ONE = NodeId(1)
SLOW = "secondary 0 has computed 1.50 times as long as measured: it may be hot, or other programs may run on it"
FINE = "secondary 0 computes as fast as measured again"


class Minute:
    """A node that is looked at every ten seconds, in which it is expected to compute for five."""

    def __init__(self) -> None:
        self.nodes, self.now_s, self.computed_s, self.expected_s = SlowNodes(), 0.0, 0.0, 0.0
        self.nodes.update(0.0, {ONE: 0.0}, {ONE: 0.0})

    def passes(self, *ratios: float, expected_s: float = 5.0) -> list[str]:
        said = []
        for ratio in ratios:
            self.now_s += 10.0
            self.expected_s += expected_s
            self.computed_s += ratio * expected_s
            said += self.nodes.update(self.now_s, {ONE: self.computed_s}, {ONE: self.expected_s})
        return said


@pytest.fixture
def minute() -> Minute:
    return Minute()


def test_a_node_is_named_after_a_minute_and_once(minute: Minute) -> None:
    assert minute.passes(*[1.5] * 5) == []
    assert minute.passes(1.5) == [SLOW]
    assert minute.passes(*[1.5] * 20) == []
    assert minute.nodes.slowness == {ONE: pytest.approx(1.5)}


def test_it_is_over_once_a_minute_is_within_a_tenth(minute: Minute) -> None:
    minute.passes(*[1.5] * 6)
    assert minute.passes(*[1.0] * 4) == []
    assert minute.passes(1.0) == [FINE]  # 1.083 on average
    assert minute.passes(*[1.0] * 20) == []
    assert minute.passes(*[1.5] * 6) == [SLOW.replace("1.50", "1.25")]


def test_a_node_on_the_border_is_not_named_again_and_again(minute: Minute) -> None:
    assert len(minute.passes(*[1.3, 1.2] * 60)) == 1


def test_a_short_burst_and_a_node_that_is_as_measured_are_no_news(minute: Minute) -> None:
    assert minute.passes(*[1.0] * 6, 2.0, *[1.0] * 20, *[1.2] * 20) == []


def test_a_minute_with_little_work_tells_nothing(minute: Minute) -> None:
    assert minute.passes(*[3.0] * 20, expected_s=0.1) == []
    assert minute.nodes.slowness == {}


def test_another_process_is_counted_anew(minute: Minute) -> None:
    minute.passes(*[1.0] * 6)
    minute.computed_s = 0.0
    assert minute.passes(*[1.5] * 6) == []
    assert minute.passes(1.5) == [SLOW]


def test_a_ring_that_was_not_measured_is_not_compared(minute: Minute) -> None:
    minute.passes(*[1.0] * 3)
    for _ in range(20):
        minute.now_s += 10.0
        minute.computed_s += 5.0
        assert minute.nodes.update(minute.now_s, {ONE: minute.computed_s}, {}) == []
    minute.expected_s = 0.0
    assert minute.passes(*[1.0] * 20) == []


def test_the_watch_compares_what_the_nodes_say(caplog: pytest.LogCaptureFixture) -> None:
    clock, passed = ManualClock(), [0.0]
    silent, working = NodeId(2), Work(0.0, 0.0, 0.0, 0)

    def ask() -> dict[NodeId, object]:
        own = replace(RUNNING_STARTER, work=working._replace(compute_s=passed[0]))
        return {NodeId(0): own, ONE: replace(IDLE, work=working._replace(compute_s=1.5 * passed[0])), silent: None}

    watch = SpeedWatch(ask, lambda: dict.fromkeys(map(NodeId, range(3)), passed[0]), Timeouts(clock=clock))  # type: ignore[arg-type, return-value]
    for _ in range(7):
        watch.look()
        passed[0] += 5.0
        clock.now_s += 10.0
    assert caplog.messages == [SLOW]
    assert watch.slowness == {0: pytest.approx(1.0), 1: pytest.approx(1.5)}
