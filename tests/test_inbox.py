"""The inbox of a node: the order of events, and waiting for some of them."""

import queue
import signal
import threading
from collections.abc import Callable

import pytest

from mdi.inbox import Inbox, Stopped


def inbox_with(*events: object) -> Inbox:
    inbox = Inbox()
    for event in events:
        inbox.post(event)
    return inbox


def test_events_come_in_the_order_in_which_they_were_posted() -> None:
    inbox = inbox_with(1, "a", 2)
    assert [inbox.get(), inbox.get(), inbox.get()] == [1, "a", 2]


def test_what_is_not_waited_for_stays_in_its_order() -> None:
    inbox = inbox_with(1, "a", 2, "b", 3)
    assert [inbox.wait_for(str), inbox.wait_for(str)] == ["a", "b"]
    assert [inbox.get() for _ in range(3)] == [1, 2, 3]


def test_an_event_that_was_passed_over_is_found_before_newer_ones() -> None:
    inbox = inbox_with(1, "a")
    assert inbox.wait_for(str) == "a"
    inbox.post(2)
    assert [inbox.wait_for(int), inbox.wait_for(int)] == [1, 2]


def test_waiting_has_a_deadline() -> None:
    inbox = inbox_with(1)
    with pytest.raises(queue.Empty):
        inbox.wait_for(str, timeout_s=0.0)
    with pytest.raises(queue.Empty):
        inbox.wait_for(timeout_s=0.0)  # for nothing at all: a pause
    assert inbox.get() == 1
    with pytest.raises(queue.Empty):
        inbox.get(0.0)


def test_it_is_known_whether_something_waits() -> None:
    inbox = inbox_with()
    assert inbox.is_empty
    inbox.post(1)
    inbox.post("a")
    assert not inbox.is_empty
    assert inbox.wait_for(str) == "a" and not inbox.is_empty, "what was passed over waits too"
    assert inbox.get() == 1 and inbox.is_empty
    inbox.interrupt(signal.SIGTERM)
    assert not inbox.is_empty


def test_an_interruption_is_ahead_of_all_events_and_stays() -> None:
    inbox = inbox_with(1, "a")
    inbox.check()
    inbox.interrupt(signal.SIGTERM)
    inbox.interrupt(signal.SIGINT)
    for take in (inbox.get, inbox.check, lambda: inbox.wait_for(str), lambda: inbox.wait_for(timeout_s=0.0)) * 2:
        with pytest.raises(Stopped) as caught:
            take()
        assert caught.value.code == 143  # by the first


@pytest.mark.parametrize("take", [Inbox.get, lambda inbox: inbox.wait_for(str)])
def test_an_interruption_wakes_a_thread_that_waits(take: Callable[[Inbox], object]) -> None:
    inbox, waiting = inbox_with(), threading.Event()

    def interrupt() -> None:
        waiting.wait()
        inbox.interrupt(signal.SIGHUP)

    other = threading.Thread(target=interrupt)
    other.start()
    waiting.set()
    with pytest.raises(Stopped) as caught:
        take(inbox)
    other.join()
    assert caught.value.code == 129


def test_each_of_two_equal_events_is_taken_once() -> None:
    inbox = inbox_with("a", "a")
    assert [inbox.wait_for(str), inbox.wait_for(str)] == ["a", "a"]
    with pytest.raises(queue.Empty):
        inbox.get(0.0)
