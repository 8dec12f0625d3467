"""What the nodes say, asked in the background only while somebody wants to know."""

import threading
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import pytest

from mdi.cluster import node_watch
from mdi.cluster.node_watch import NodeNews, NodeWatch
from mdi.control.protocol import NoAnswer
from mdi.control.status import NodeStatus
from mdi.ids import NodeId
from mdi.net.timeouts import Timeouts
from mdi.work import Work
from support.clocks import ManualClock
from support.scripts import wait_until
from support.statuses import IDLE

NODE, OTHER = NodeId(1), NodeId(2)


@dataclass
class Node:
    """One that is asked."""

    status: NodeStatus | None = IDLE
    n_asked: int = 0
    free: threading.Event = field(default_factory=threading.Event)  # set: it answers

    def ask(self) -> NodeStatus:
        self.n_asked += 1
        assert self.free.wait(60)
        if self.status is None:
            raise NoAnswer("it is off")
        return self.status


@dataclass
class Play:
    watch: NodeWatch
    clock: ManualClock
    node: Node
    other: Node

    def next(self) -> NodeNews:
        """What is known after the node was asked once more at least."""
        n_before = self.node.n_asked + 2  # one may be under way
        wait_until(lambda: self.node.n_asked >= n_before, 60, "it is asked again")
        return self.watch.news()[NODE]


@pytest.fixture
def play(monkeypatch: pytest.MonkeyPatch) -> Iterator[Play]:
    monkeypatch.setattr(node_watch, "EVERY_S", 0.001)
    clock, node, other = ManualClock(), Node(), Node()
    node.free.set()
    other.free.set()
    watch = NodeWatch({NODE: node.ask, OTHER: other.ask}, Timeouts(clock=clock))
    yield Play(watch, clock, node, other)
    other.free.set()
    watch.close()
    watch.close()
    wait_until(lambda: not watch._threads, 60, "the threads end")


def test_nobody_is_asked_until_somebody_wants_to_know(play: Play) -> None:
    assert play.node.n_asked == 0
    news = play.watch.news()
    assert [each.latest and each.latest.status for each in news.values()] == [IDLE, IDLE]


def test_a_node_that_takes_its_time_holds_up_no_other(play: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node_watch, "FIRST_ANSWERS_S", 0.05)
    play.other.free.clear()
    assert play.watch.news()[OTHER] == NodeNews()
    assert play.next().latest is not None
    play.other.free.set()
    wait_until(lambda: play.watch.news()[OTHER].latest is not None, 60, "it answers in the end")


def test_a_lost_node_is_missing_since_the_first_question_without_an_answer(play: Play) -> None:
    play.watch.news()
    play.node.status = None
    lost = play.next()
    assert lost.missing_since_s == play.clock.now_s
    assert lost.latest is not None and lost.latest.status == IDLE, "what it said is kept"
    play.clock.now_s += 7
    assert play.next().missing_since_s == play.clock.now_s - 7
    play.node.status = replace(IDLE, messages=1)
    back = play.next()
    assert back.missing_since_s is None
    assert back.latest is not None and back.latest.status == play.node.status


def test_rates_are_of_one_process_and_of_the_last_seconds(play: Play) -> None:
    play.node.status = replace(IDLE, work=Work(1.0, 0.0, 0.0, 10))
    play.watch.news()
    began_s = play.clock.now_s
    play.clock.now_s += 4
    play.node.status = replace(IDLE, work=Work(2.0, 0.0, 3.0, 20))
    news = play.next()
    assert news.earlier is not None and news.earlier.at_s == began_s
    play.clock.now_s += node_watch.WINDOW_S
    news = play.next()
    assert news.earlier is not None and news.earlier.at_s > began_s
    play.node.status = replace(IDLE, work=Work(0.5, 0.0, 3.5, 1))  # it was started anew
    news = play.next()
    assert news.earlier is None or news.earlier.status == play.node.status


def test_when_nobody_wants_to_know_any_more_nobody_is_asked(play: Play) -> None:
    play.watch.news()
    play.clock.now_s += node_watch.LINGER_S
    wait_until(lambda: not play.watch._threads, 60, "the threads end")
    n_asked = play.node.n_asked
    assert play.watch.news()[NODE].latest is not None
    assert play.node.n_asked > n_asked


def test_a_watch_that_is_closed_asks_nobody(play: Play) -> None:
    play.watch.news()
    play.watch.close()
    assert play.watch._threads == {}
    n_asked = play.node.n_asked
    assert play.watch.news()[NODE].latest is not None
    assert play.node.n_asked == n_asked
