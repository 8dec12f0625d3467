"""When a ring counts as stuck: soon where it is, and never where it is only slow."""

import random
from collections import deque

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mdi.engine.trips import Travelling, Trips
from mdi.net.timeouts import Timeouts
from support.clocks import ManualClock
from support.wire import few_examples

LEAST_S = 5.0


def trips_at(clock: ManualClock, least_s: float = LEAST_S, part: float = 0.5) -> Trips:
    return Trips(Timeouts(clock=clock), least_s, part)


def travel(trips: Trips, clock: ManualClock, n_rows: int, took_s: float, times: int = 1) -> None:
    for _ in range(times):
        trips.sent(n_rows, 0.0)
        trips.waited(took_s)
        clock.now_s += took_s
        trips.returned(clock.now_s)


def limit_s(trips: Trips, n_rows: int, own_s: float = 0.0) -> float:
    """How long a message that is sent now is waited for."""
    trips.sent(n_rows, own_s)
    left_s = trips.left_s()
    assert left_s is not None
    return left_s


def test_where_nothing_travels_nothing_is_overdue() -> None:
    trips = trips_at(ManualClock())
    assert trips.left_s() is None
    travel(trips, ManualClock(), 1, 0.1)
    assert trips.left_s() is None


def test_a_ring_that_was_idle_for_an_hour_has_its_time() -> None:
    clock = ManualClock()
    trips = trips_at(clock)
    travel(trips, clock, 1, 1.0)
    trips.waited(3600.0)  # for a sample
    assert limit_s(trips, 1) == 10.0


def test_the_first_message_has_two_minutes_and_the_first_of_a_size_has_one() -> None:
    clock = ManualClock()
    trips = trips_at(clock)
    assert limit_s(trips, 128) == 120.0
    trips = trips_at(clock)
    travel(trips, clock, 1, 0.1, times=5)
    assert limit_s(trips, 4) == 60.0


def test_a_message_of_more_rows_may_take_longer_in_proportion() -> None:
    clock = ManualClock()
    trips = trips_at(clock)
    travel(trips, clock, 1, 1.0)
    assert limit_s(trips, 128) == 256.0


def test_a_message_that_takes_long_here_may_take_twice_as_long_as_that_everywhere() -> None:
    """A quarter of it took 20 s: 80 s for all of it, if the others are as slow."""
    assert limit_s(trips_at(ManualClock(), part=0.25), 128, own_s=20.0) == 160.0


@pytest.mark.parametrize(
    ("usual_s", "expected_s"),
    [(0.01, 5.0), (0.5, 5.0), (1.0, 10.0), (5.9, 59.0), (10.0, 60.0), (29.0, 60.0), (40.0, 80.0)],
)
def test_ten_times_what_is_usual_within_a_minute_or_twice_what_is_usual(usual_s: float, expected_s: float) -> None:
    clock = ManualClock()
    trips = trips_at(clock)
    travel(trips, clock, 1, usual_s, times=3)
    assert limit_s(trips, 1) == pytest.approx(expected_s)


def test_sizes_are_told_apart() -> None:
    clock = ManualClock()
    trips = trips_at(clock)
    travel(trips, clock, 128, 5.0)
    travel(trips, clock, 1, 0.1)
    assert limit_s(trips, 1) == LEAST_S


def test_one_slow_message_neither_kills_the_ring_nor_spoils_what_is_usual() -> None:
    clock = ManualClock()
    trips = trips_at(clock)
    travel(trips, clock, 1, 1.0, times=10)
    assert limit_s(trips, 1) > 8.0
    trips.waited(8.0)
    clock.now_s += 8.0
    trips.returned(clock.now_s)
    travel(trips, clock, 1, 1.0, times=10)
    assert limit_s(trips, 1) < 12.0


def test_what_this_node_computes_does_not_count() -> None:
    clock = ManualClock()
    trips = trips_at(clock)
    travel(trips, clock, 1, 0.1, times=3)
    trips.sent(1, 0.0)
    clock.now_s += 1000.0
    assert trips.left_s() == LEAST_S
    trips.waited(2.0)
    assert trips.left_s() == 3.0
    trips.waited(4.0)
    assert trips.left_s() == 0.0
    assert trips.overdue == "the ring returned nothing for 6 s, where 0.1 s are usual"


@given(st.floats(0.1, 100.0), st.lists(st.tuples(st.integers(1, 2000), st.floats(0.0, 300.0)), max_size=30))
@few_examples
def test_a_message_never_has_less_time_than_a_silence(least_s: float, history: list[tuple[int, float]]) -> None:
    clock = ManualClock()
    for n_rows, took_s in history:
        trips = trips_at(clock, least_s)
        travel(trips, clock, n_rows, took_s)
        assert limit_s(trips, n_rows) >= least_s


class Pipeline:
    """A ring of nodes that compute one message at a time each."""

    def __init__(self, node_s: list[float], chance: random.Random, jitter: float) -> None:
        self.clock = ManualClock()
        self.trips = trips_at(self.clock, least_s=0.1, part=1 / (1 + len(node_s)))
        self._node_s, self._chance, self._jitter = node_s, chance, jitter
        self._free_s = [self.clock.now_s] * len(node_s)
        self._arrivals_s: deque[float] = deque()

    def send(self, n_rows: int) -> None:
        at_s = self.clock.now_s
        for node, row_s in enumerate(self._node_s):
            slow = self._chance.uniform(1.0, self._jitter)
            at_s = max(at_s, self._free_s[node]) + row_s * (1 + n_rows / 16) * slow
            self._free_s[node] = at_s
        self._arrivals_s.append(at_s)
        self.trips.sent(n_rows, own_s=0.1 * (1 + n_rows / 16))

    def receive(self) -> None:
        """Wait for the next message, as long as the ring may be waited for."""
        arrival_s, left_s = self._arrivals_s.popleft(), self.trips.left_s()
        assert left_s is not None
        assert arrival_s - self.clock.now_s <= left_s, f"{self.trips.overdue}, and it was only slow"
        self.trips.waited(max(0.0, arrival_s - self.clock.now_s))
        self.clock.now_s = max(self.clock.now_s, arrival_s)
        self.trips.returned(arrival_s)


@pytest.mark.parametrize("seed", range(20))
def test_a_healthy_ring_is_never_overdue_however_full_it_is(seed: int) -> None:
    """Full, the ring returns a message for each that the slowest node computes; in the end one travels alone."""
    chance = random.Random(seed)
    node_s = [chance.uniform(0.01, 0.3) for _ in range(chance.choice([1, 2, 5, 20]))]
    ring = Pipeline(node_s, chance, jitter=4.0)
    for _ in range(30):
        n_messages = chance.choice([1, len(node_s), 2 * len(node_s)])
        n_rows = chance.choice([1, 1, 1, 4, 128])
        for _ in range(n_messages):
            ring.send(n_rows)
        for _ in range(n_messages):
            ring.receive()


def test_what_travels_is_told_with_its_age_and_what_is_expected_of_it() -> None:
    clock = ManualClock()
    trips = trips_at(clock)
    trips.sent(3, 0.0)
    assert trips.under_way == (Travelling(3, 0, 0.0, None),), "nothing is known of a first message"
    trips.returned(clock.now_s + 2.0)
    trips.sent(3, 0.0)
    clock.now_s += 0.5
    trips.sent(40, 0.25, n_prompt_rows=39)
    assert trips.under_way == (Travelling(3, 0, 0.5, 2.0), Travelling(40, 39, 0.0, 0.5))
