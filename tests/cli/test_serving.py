"""The end of a server: answers that were begun have their time, unless a second signal comes."""

import signal
from dataclasses import dataclass, field
from typing import Any, cast

import pytest

from mdi.cli import serving
from mdi.cli.serving import Drain
from mdi.cli.signals import Signals
from support.clocks import ManualClock

TIMEOUT_S = 30.0


@dataclass
class World:
    """What a drain sees and does."""

    n_open: int = 1
    n_came: int = 1  # signals
    done: list[str] = field(default_factory=list)

    def drain(self) -> None:
        self.done.append("drain")

    def wake(self) -> None:
        self.done.append("wake")

    def interrupt(self, number: signal.Signals) -> None:
        self.done.append(number.name)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> ManualClock:
    clock = ManualClock()
    monkeypatch.setattr(serving.time, "monotonic", clock)
    return clock


def drain_of(world: World, delay_s: float = 0.0) -> Drain:
    anything = cast(Any, world)
    return Drain(anything, anything, cast(Signals, world), TIMEOUT_S, delay_s)


def test_answers_that_were_begun_have_their_time(clock: ManualClock, caplog: pytest.LogCaptureFixture) -> None:
    world = World()
    drain = drain_of(world)
    assert not drain.is_over()
    drain.ask(signal.SIGTERM)
    clock.now_s += TIMEOUT_S - 1
    drain.ask(signal.SIGTERM)
    assert world.done == ["drain", "wake", "wake"]
    assert not drain.is_over()
    assert "1 answer to be finished within 30 s (--drain-timeout); a second signal ends at once" in caplog.text
    world.n_open = 0
    assert drain.is_over()


def test_when_their_time_is_over_the_ring_ends(clock: ManualClock) -> None:
    world = World()
    drain = drain_of(world)
    drain.ask(signal.SIGTERM)
    clock.now_s += TIMEOUT_S + 1
    drain.ask(signal.SIGTERM)
    assert world.done == ["drain", "wake", "SIGTERM"]


def test_a_second_signal_ends_at_once(clock: ManualClock) -> None:
    world = World()
    drain = drain_of(world)
    drain.ask(signal.SIGINT)
    world.n_came += 1
    drain.ask(signal.SIGINT)
    assert world.done == ["drain", "wake", "SIGINT"]


def test_a_load_balancer_has_time_to_notice(clock: ManualClock) -> None:
    world = World(n_open=0)
    drain = drain_of(world, delay_s=5.0)
    drain.ask(signal.SIGTERM)
    clock.now_s += 4.9
    assert not drain.is_over()
    clock.now_s += 0.2
    drain.ask(signal.SIGTERM)
    assert world.done == ["drain", "wake", "wake"]  # so that it is asked now
    assert drain.is_over()


def test_a_server_without_requests_is_over_when_it_is_asked(clock: ManualClock) -> None:
    drain = drain_of(World(n_open=0))
    assert not drain.is_over()
    drain.ask(signal.SIGTERM)
    assert drain.is_over()
