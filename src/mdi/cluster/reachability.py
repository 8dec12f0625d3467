"""Who reaches whom, in words: a pure function of what every node found when it tried."""

import itertools
from collections.abc import Mapping, Sequence

from mdi.control.reach import Outcome, Reach

Pair = tuple[int, int]  # from a node, to a node
_OF_A_FIREWALL = (Outcome.TIMED_OUT, Outcome.REFUSED)


def problems(names: Sequence[str], found: Mapping[Pair, Reach]) -> list[str]:
    """A line for each node that does not reach another one, and what that means.

    Args:
        names: of the nodes, by number.
        found: what each node found of each other one; a pair that is missing was not tried.
    """
    lines = []
    for one, other in itertools.combinations(range(len(names)), 2):
        there, back = found.get((one, other)), found.get((other, one))
        lines += _problem(names[one], names[other], there, back)
        lines += _problem(names[other], names[one], back, there)
    return lines


def _problem(one: str, other: str, there: Reach | None, back: Reach | None) -> list[str]:
    """What is wrong with the way from one node to another, `back` being the other way."""
    if there is None or there.is_whole:
        return []
    ports = {"HTTP port": there.http, "ring port": there.ring}
    failed = [f"its {port}: {outcome.value}" for port, outcome in ports.items() if outcome is not Outcome.REACHED]
    return [f"{one} does not reach {other} ({', '.join(failed)}){_meaning(other, there, back)}"]


def _meaning(other: str, there: Reach, back: Reach | None) -> str:
    if there.http not in (*_OF_A_FIREWALL, Outcome.REACHED):
        return ""
    if back is not None and back.is_whole:
        return f"; the other way works: a firewall on {other} lets only one direction through"
    if there.http is Outcome.REACHED:
        return f"; open the ring port in the firewall of {other}, and choose it there by --ring-port"
    return ""
