"""What is decided when a ring breaks: try again, go on without a node, or give up."""

import itertools

import pytest

from mdi.cluster.recovery import GiveUp, GoOnWithout, Recovery, Retry, RunState
from mdi.ids import NodeId


def recovery(n_nodes: int = 3) -> Recovery:
    """Of a run that has begun; a node is waited for 60 s."""
    decisions = Recovery(n_nodes, 60.0)
    decisions.formed()
    return decisions


def test_a_broken_link_between_nodes_that_live_is_tried_again_for_as_long_as_tokens_come() -> None:
    decisions = recovery()
    for i in range(100):
        assert decisions.broke(i, silent=[], suspect=1, progressed=True) == Retry()
        decisions.formed()
    assert decisions.n_recoveries == 100


@pytest.mark.parametrize(("suspect", "blamed"), [(1, 1), (2, 2), (0, 1), (None, 2)])
def test_a_ring_that_breaks_without_a_token_is_blamed_on_a_node(suspect: int | None, blamed: int) -> None:
    decisions = recovery()
    for _ in range(2):
        assert decisions.broke(0.0, silent=[], suspect=suspect, progressed=False) == Retry()
    decision = decisions.broke(0.0, silent=[], suspect=suspect, progressed=False)
    assert decision == GoOnWithout((blamed,), "failed 3 times in 10 minutes")
    assert decisions.members == tuple(node for node in (0, 1, 2) if node != blamed)


def test_failures_that_lie_ten_minutes_back_are_forgotten() -> None:
    decisions = recovery()
    for now_s in (0.0, 400.0, 601.0, 1002.0):
        assert decisions.broke(now_s, silent=[1], suspect=1, progressed=True) == Retry()
        decisions.formed()


def test_a_node_is_waited_for_from_when_it_was_missed_first() -> None:
    decisions = recovery()
    assert decisions.deadline_s(1, 5.0) == 65.0
    decisions.broke(10.0, silent=[1], suspect=1, progressed=True)
    assert decisions.deadline_s(1, 30.0) == 70.0
    decisions.broke(30.0, silent=[1, 2], suspect=2, progressed=False)  # it is blamed once for one absence
    assert (decisions.deadline_s(1, 40.0), decisions.deadline_s(2, 40.0)) == (70.0, 90.0)
    decisions.broke(50.0, silent=[2], suspect=2, progressed=False)
    assert decisions.deadline_s(1, 50.0) == 110.0  # it was back meanwhile
    assert decisions.expired(110.0, [2]) == GoOnWithout((2,), "did not come back within 60 s (--node-timeout)")
    assert decisions.members == (0, 1)
    decisions.formed()
    assert (decisions.state, decisions.n_recoveries) == (RunState.RUNNING, 1)


def test_before_the_run_has_begun_nobody_is_left_out() -> None:
    decisions = Recovery(3, 60.0)
    assert isinstance(decisions.expired(60.0, [1]), GiveUp)
    assert decisions.state is RunState.FAILED
    decisions = Recovery(3, 60.0)
    for _ in range(2):
        assert decisions.broke(0.0, silent=[], suspect=2, progressed=False) == Retry()
    assert isinstance(decisions.broke(0.0, silent=[], suspect=2, progressed=False), GiveUp)


def test_a_node_that_was_left_out_may_return_at_once_and_after_failures_in_ten_minutes() -> None:
    decisions = recovery()
    decisions.broke(0.0, silent=[1], suspect=1, progressed=True)
    decisions.expired(60.0, [1])
    decisions.formed()
    assert decisions.may_return(60.0) == (1,)
    for _ in range(3):
        decisions.broke(70.0, silent=[], suspect=2, progressed=False)
    decisions.formed()
    assert (decisions.members, decisions.may_return(70.0), decisions.may_return(670.0)) == ((0,), (1,), (1, 2))


def test_a_node_that_returns_takes_its_place_and_is_not_waited_for_long() -> None:
    decisions = recovery()
    decisions.broke(0.0, silent=[1], suspect=1, progressed=True)
    decisions.expired(60.0, [1])
    decisions.formed()
    decisions.returned([1], [0, 1, 2])
    assert (decisions.state, decisions.members) == (RunState.RECOVERING, (0, 1, 2))
    assert (decisions.deadline_s(1, 100.0), decisions.deadline_s(2, 100.0)) == (110.0, 160.0)
    decisions.broke(100.0, silent=[1], suspect=None, progressed=False)
    assert decisions.expired(110.0, [1]) == GoOnWithout((1,), "did not get ready after all")
    decisions.formed()
    assert (decisions.may_return(110.0), decisions.may_return(710.0)) == ((), (1,))


def test_a_node_that_has_returned_is_like_the_others() -> None:
    decisions = recovery()
    decisions.broke(0.0, silent=[1], suspect=1, progressed=True)
    decisions.expired(60.0, [1])
    decisions.formed()
    decisions.returned([1], [0, 1, 2])
    decisions.formed()
    assert (decisions.deadline_s(1, 100.0), decisions.may_return(100.0)) == (160.0, ())
    assert decisions.n_recoveries == 2


def test_nodes_that_a_plan_leaves_out_never_return_and_the_others_keep_their_order() -> None:
    decisions = Recovery(4, 60.0)
    decisions.choose([NodeId(0), NodeId(3), NodeId(1)])
    decisions.formed()
    decisions.broke(0.0, silent=[NodeId(3)], suspect=NodeId(3), progressed=True)
    decisions.expired(60.0, [NodeId(3)])
    decisions.formed()
    assert (decisions.members, decisions.may_return(60.0)) == ((0, 1), (3,))
    decisions.returned([NodeId(3)], decisions.with_returned([NodeId(3)]))
    assert decisions.members == (0, 3, 1)
    assert decisions.may_take_part(NodeId(3)) and not decisions.may_take_part(NodeId(2))


def test_every_way_through_a_recovery_ends() -> None:
    """Whichever node is the suspect and whichever are silent: without a token, members or deadlines run out."""
    for silent, lost in itertools.product(([], [1], [2], [1, 2]), (None, 0, 1, 2)):
        decisions = recovery()
        for _ in range(20):
            if len(decisions.members) == 1:
                break
            here = [node for node in silent if node in decisions.members]
            suspect = lost if lost in decisions.members else None
            if isinstance(decisions.broke(0.0, silent=here, suspect=suspect, progressed=False), Retry) and here:
                decisions.expired(0.0, here)
        assert decisions.members == (0,)


def test_a_node_that_joined_is_like_one_that_was_left_out() -> None:
    decisions = recovery()
    assert decisions.may_return(5.0) == ()
    decisions.add(NodeId(3))
    assert (decisions.members, decisions.may_return(5.0)) == ((0, 1, 2), (3,))
    decisions.returned([NodeId(3)], [NodeId(0), NodeId(3), NodeId(1), NodeId(2)])
    decisions.formed()
    assert (decisions.members, decisions.may_return(5.0)) == ((0, 3, 1, 2), ())


def test_the_order_of_a_better_split_is_kept_where_a_node_is_lost_and_returns() -> None:
    decisions = recovery()
    decisions.rebalanced([NodeId(0), NodeId(2), NodeId(1)])
    assert decisions.state is RunState.RECOVERING
    decisions.formed()
    decisions.broke(0.0, silent=[NodeId(2)], suspect=None, progressed=True)
    assert decisions.expired(60.0, [NodeId(2)]) == GoOnWithout((2,), "did not come back within 60 s (--node-timeout)")
    decisions.formed()
    assert (decisions.members, decisions.with_returned([NodeId(2)])) == ((0, 1), (0, 2, 1))


def test_another_order_of_those_that_are_left_is_not_that_of_all() -> None:
    decisions = Recovery(4, 60.0)
    decisions.formed()
    decisions.broke(0.0, silent=[NodeId(1)], suspect=None, progressed=True)
    decisions.expired(60.0, [NodeId(1)])
    decisions.arrange([NodeId(0), NodeId(3), NodeId(2)])
    assert decisions.members == (0, 3, 2)
    assert decisions.with_returned([NodeId(1)]) == (0, 1, 2, 3)
