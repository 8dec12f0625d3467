"""With how many threads a node computes, and what it says of steps that have become slow."""

import itertools
from collections.abc import Iterator

import pytest
import torch

from mdi.machine import n_cores
from mdi.model import threads
from mdi.model.threads import FAR_ABOVE, PAUSE_S, RECENT, CoreShare, SlowSteps
from mdi.other_load import LoadMeter, Reading


def meter_of(cores: float) -> LoadMeter:
    """Other programs take so many cores from now on."""
    readings = (Reading(100.0 + i, 50.0 + cores * i, 7.0) for i in itertools.count())
    return LoadMeter(lambda: next(readings))


@pytest.fixture
def free_choice(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nobody has set OMP_NUM_THREADS."""
    before = torch.get_num_threads()
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(threads, "MEASURE_S", 0.0)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("cores", "nodes", "others", "n_threads"),
    [
        (4, 1, 0.0, 4),
        (4, 1, 0.3, 4),
        (4, 1, 1.0, 3),
        (4, 1, 1.6, 2),
        (4, 1, 4.0, 1),
        (1, 1, 1.0, 1),
        (4, 2, 0.0, 2),
        (4, 2, 2.0, 2),  # the other node loads too
        (4, 2, 4.0, 1),
        (8, 3, 4.0, 2),
        (8, 3, 7.0, 1),
        (2, 3, 1.0, 1),
    ],
)
def test_a_node_leaves_other_programs_their_cores(
    cores: int, nodes: int, others: float, n_threads: int, free_choice: None, caplog: pytest.LogCaptureFixture
) -> None:
    share = CoreShare(nodes, cores, lambda: meter_of(others))
    assert torch.get_num_threads() == max(1, cores // nodes)
    share.settle()
    assert torch.get_num_threads() == n_threads
    said = [record.getMessage() for record in caplog.records]
    if n_threads < cores // nodes:
        word = "thread" if n_threads == 1 else "threads"
        start = f"other programs take {others:.2f} of {cores} cores: computing with {n_threads} {word} ("
        assert len(said) == 1 and said[0].startswith(start)
    else:
        assert not said


def test_the_users_number_of_threads_stays(free_choice: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    torch.set_num_threads(3)
    CoreShare(1, 8, lambda: meter_of(8.0)).settle()
    assert torch.get_num_threads() == 3


class Steps:
    """A node's steps, on a clock that they move."""

    def __init__(self, others: float) -> None:
        self.now_s = 0.0
        self._watch = SlowSteps(lambda: meter_of(others), lambda: self.now_s)

    def take(self, n: int, step_s: float, n_rows: int = 1) -> list[str]:
        """What is said during `n` steps."""
        said = []
        for _ in range(n):
            self.now_s += step_s
            said.append(self._watch.add(n_rows, step_s))
        return [line for line in said if line is not None]


def test_steps_that_have_become_slow_are_told_with_what_others_take() -> None:
    steps = Steps(others=float(n_cores()))
    assert steps.take(100, 0.01) == []
    (line,) = steps.take(3 * RECENT, 0.01 * FAR_ABOVE + 0.011)
    assert line == f"a step takes 41 ms instead of 10 ms: other programs take {n_cores()}.00 of {n_cores()} cores"


def test_slow_steps_of_an_idle_machine_have_another_cause() -> None:
    steps = Steps(others=0.0)
    steps.take(100, 0.01)
    (line,) = steps.take(3 * RECENT, 0.05)
    assert line == "a step takes 50 ms instead of 10 ms: the processor may be too hot or short of power"


def test_slow_steps_are_told_once_a_minute() -> None:
    steps = Steps(others=0.0)
    steps.take(200, 0.01)
    assert len(steps.take(60, 0.1)) == 1
    steps.now_s += PAUSE_S
    assert len(steps.take(30, 0.1)) == 1


def test_a_few_slow_steps_more_rows_and_a_context_that_grows_are_usual() -> None:
    steps = Steps(others=0.0)
    assert steps.take(100, 0.01) == []
    assert steps.take(RECENT // 2 - 1, 1.0) == []
    assert steps.take(100, 0.01) == []
    assert steps.take(100, 0.2, n_rows=128) == []
    assert [line for i in range(2000) for line in steps.take(1, 0.01 + 0.0001 * i)] == []
