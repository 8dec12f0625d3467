"""Of too many connections, the right one has to go."""

import random

from mdi.net.eviction import EvictionOrder


def test_the_oldest_of_the_lowest_rank_goes_first() -> None:
    order: EvictionOrder[str] = EvictionOrder(3)
    for name, rank in [("a", 1), ("b", 0), ("c", 2), ("d", 0), ("e", 1)]:
        order.add(name, f"address of {name}", rank)
    gone = []
    while order:
        gone.append(order.next_out(""))
        order.discard(gone[-1])
    assert gone == ["b", "d", "a", "e", "c"]


def test_a_connection_that_rises_goes_later() -> None:
    order: EvictionOrder[str] = EvictionOrder(2)
    for name in "abc":
        order.add(name, "10.0.0.1", 0)
    order.add("a", "10.0.0.1", 1)
    assert len(order) == 3
    assert order.next_out("10.0.0.1") == "b"


def test_one_address_cannot_push_out_the_others() -> None:
    order: EvictionOrder[str] = EvictionOrder(1)
    order.add("the right one", "10.0.0.1", 0)
    order.add("another", "10.0.0.2", 0)
    for number in range(1000):
        order.add(f"flood {number}", "203.0.113.5", 0)
        if len(order) > 10:
            order.discard(order.next_out("203.0.113.5"))
    assert len(order) == 10
    assert order.next_out("10.0.0.1") == "the right one"  # nobody else has to go because of its own address


def test_a_newcomer_that_ranks_below_all_goes_itself() -> None:
    order: EvictionOrder[str] = EvictionOrder(2)
    for name in "abc":
        order.add(name, f"10.0.0.{name}", 1)
    order.add("new", "203.0.113.5", 0)
    assert order.next_out("203.0.113.5") == "new"


def test_nothing_is_left_of_what_is_gone() -> None:
    order, rng, members = EvictionOrder[int](3), random.Random(1), set()
    for number in range(2000):
        order.add(number % 97, f"10.0.0.{rng.randrange(5)}", rng.randrange(3))
        members.add(number % 97)
        if rng.random() < 0.5:
            order.discard(gone := rng.randrange(97))
            members.discard(gone)
        assert len(order) == len(members)
        if members:
            assert order.next_out("10.0.0.1") in members
    for number in range(97):
        order.discard(number)
    assert not order and not order._by_address
