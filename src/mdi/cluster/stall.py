"""Where a ring is stuck whose nodes are all alive: a pure function of what they have counted.

Messages keep their order on the ring, so everything before the place where it is stuck has passed on what it got, and
nothing behind that place has got more than it passed on.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from mdi.ids import Rank


@dataclass(frozen=True)
class Traffic:
    """Messages with rows in one session, as one node has counted them."""

    received: int
    computed: int
    sent: int


@dataclass(frozen=True)
class Stall:
    """Which node to blame, and what for."""

    rank: Rank
    reason: str


def locate(names: Sequence[str], traffic: Sequence[Traffic | None]) -> Stall | None:
    """The first place where messages do not get on; None if there is none.

    Args:
        names: what the nodes are called, by rank.
        traffic: of each; None if it did not say.
    """
    ring = [*enumerate(traffic), (0, traffic[0])]
    for (rank, node), (_, successor) in pairwise(ring):
        name = names[rank]
        if node is None:
            continue
        if rank and node.computed < node.received:
            return Stall(Rank(rank), f"{name} has received {node.received} messages and computed {node.computed}")
        if rank and node.sent < node.computed:
            return Stall(Rank(rank), f"{name} has computed {node.computed} messages and sent {node.sent}")
        if successor is not None and successor.received < node.sent:
            behind = names[(rank + 1) % len(names)]
            return Stall(Rank(rank), f"of {node.sent} messages from {name}, {successor.received} reached {behind}")
    return None
