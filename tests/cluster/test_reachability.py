"""Who reaches whom, in words."""

import pytest

from mdi.cluster.reachability import problems
from mdi.control.reach import Outcome, Reach

NAMES = ["this machine", "a", "b"]
WHOLE = Reach(Outcome.REACHED, Outcome.REACHED)
UNTRIED = "its ring port: not tried"
CLOSED = "; open the ring port in the firewall of b, and choose it there by --ring-port"
ONE_WAY = "; the other way works: a firewall on b lets only one direction through"
ALL = {(one, other): WHOLE for one in range(3) for other in range(3) if one != other}


def test_nothing_is_said_where_everybody_reaches_everybody() -> None:
    assert problems(NAMES, ALL) == []
    assert problems(NAMES, {}) == []  # nothing was tried


@pytest.mark.parametrize(
    ("there", "back", "told"),
    [
        (Reach(Outcome.TIMED_OUT), WHOLE, f"(its HTTP port: timed out, {UNTRIED}){ONE_WAY}"),
        (Reach(Outcome.REFUSED), WHOLE, f"(its HTTP port: refused, {UNTRIED}){ONE_WAY}"),
        (Reach(Outcome.REACHED, Outcome.TIMED_OUT), WHOLE, f"(its ring port: timed out){ONE_WAY}"),
        (Reach(Outcome.REACHED, Outcome.TIMED_OUT), None, f"(its ring port: timed out){CLOSED}"),
        (Reach(Outcome.TIMED_OUT), None, f"(its HTTP port: timed out, {UNTRIED})"),
        (Reach(Outcome.OTHER_KEY), WHOLE, f"(its HTTP port: other key, {UNTRIED})"),
    ],
)
def test_what_one_direction_says_depends_on_the_other(there: Reach, back: Reach | None, told: str) -> None:
    found = {**ALL, (1, 2): there} | ({} if back is None else {(2, 1): back})
    if back is None:
        del found[2, 1]
    assert problems(NAMES, found) == [f"a does not reach b {told}"]


def test_each_direction_has_a_line() -> None:
    lines = problems(NAMES, {(1, 2): Reach(Outcome.NO_WAY), (2, 1): Reach(Outcome.TIMED_OUT)})
    assert [line.partition(" (")[0] for line in lines] == ["a does not reach b", "b does not reach a"]
