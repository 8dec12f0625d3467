"""Where a ring is stuck, from what its nodes have counted."""

import random

import pytest

from mdi.cluster.stall import Stall, Traffic, locate

NAMES = ["starter", "secondary 0", "secondary 1"]


def even(n: int) -> Traffic:
    return Traffic(n, n, n)


@pytest.mark.parametrize(
    ("traffic", "stall"),
    [
        ([even(7), even(7), even(7)], None),
        ([Traffic(4, 4, 7), Traffic(7, 4, 4), even(4)], Stall(1, "secondary 0 has received 7 messages and computed 4")),
        ([Traffic(4, 4, 7), even(7), Traffic(7, 5, 4)], Stall(2, "secondary 1 has received 7 messages and computed 5")),
        ([Traffic(4, 4, 7), Traffic(7, 7, 5), even(4)], Stall(1, "secondary 0 has computed 7 messages and sent 5")),
        ([Traffic(4, 4, 7), even(5), even(4)], Stall(0, "of 7 messages from starter, 5 reached secondary 0")),
        ([Traffic(4, 4, 7), even(7), even(4)], Stall(1, "of 7 messages from secondary 0, 4 reached secondary 1")),
        ([Traffic(4, 4, 7), even(7), even(7)], Stall(2, "of 7 messages from secondary 1, 4 reached starter")),
        ([Traffic(4, 4, 7), None, Traffic(6, 4, 4)], Stall(2, "secondary 1 has received 6 messages and computed 4")),
        ([Traffic(4, 4, 7), None, None], None),
        ([Traffic(4, 4, 7), even(7)], Stall(1, "of 7 messages from secondary 0, 4 reached starter")),
    ],
)
def test_the_first_place_where_messages_do_not_get_on(traffic: list[Traffic | None], stall: Stall | None) -> None:
    assert locate(NAMES[: len(traffic)], traffic) == stall


@pytest.mark.parametrize("seed", range(50))
def test_a_place_that_is_stuck_is_found_wherever_the_messages_before_it_are(seed: int) -> None:
    """Of a ring of any size: one node stops computing, and the others go on for as long as they get something."""
    chance = random.Random(seed)
    n_nodes, n_sent = chance.randint(2, 8), chance.randint(1, 20)
    stuck, done = chance.randrange(1, n_nodes), chance.randrange(n_sent)
    before = [even(n_sent)] * (stuck - 1)
    behind = [even(done)] * (n_nodes - stuck - 1)
    traffic = [Traffic(done, done, n_sent), *before, Traffic(n_sent, done, done), *behind]
    found = locate([f"node {rank}" for rank in range(n_nodes)], traffic)
    assert found is not None
    assert found.rank == stuck
