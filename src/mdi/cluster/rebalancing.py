"""Whether another split of the same nodes is so much faster, as they compute now, that a ring is to be formed anew.

It is where it promises 15% more tokens/s, has done so for a minute without a break, and the last such change is ten
minutes ago. What a node takes is what was measured, times its slowness. That does not depend on the split, so the one
that was chosen looks best afterwards too, and the ring does not go back and forth.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from mdi.cluster.forecast import Costs
from mdi.cluster.plan import Plan
from mdi.cluster.planner import RingPlan
from mdi.errors import ConfigError
from mdi.ids import NodeId

GAIN = 1.15  # times as fast
SUSTAINED_S = 60.0
PAUSE_S = 600.0  # between two changes
_STEP = 0.05  # of slowness; less is no news


@dataclass(frozen=True)
class BetterSplit:
    """A ring of the same members, and what it brings."""

    ring: RingPlan
    now_tokens_s: float  # with the split in use

    @property
    def members(self) -> tuple[NodeId, ...]:
        """In its order."""
        return tuple(map(NodeId, self.ring.order))

    @property
    def gain(self) -> float:
        """Times as fast."""
        return self.ring.prediction.tokens_s / self.now_tokens_s


def best_split(costs: Costs, plan: Plan, slowness: Mapping[NodeId, float]) -> BetterSplit | None:
    """The best ring of all members of `plan`, each as slow as it is; None where they cannot hold the model."""
    slowed = replace(costs, times=costs.times.slowed(slowness))
    now_tokens_s = slowed.tokens_s(plan.members, [len(span) for span in plan.spans], slowed.job.n_samples)
    try:
        return BetterSplit(slowed.ring_of(plan.members), now_tokens_s)
    except ConfigError:
        return None


class Rebalancing:
    """Remembers since when there has been a better split, and when the last one was taken. No I/O, no threads."""

    def __init__(self) -> None:
        self._slowness: dict[NodeId, float] = {}  # what was known last: a node with little work says nothing
        self._asked: tuple[Plan, dict[NodeId, float]] | None = None  # what `_found` is for
        self._found: BetterSplit | None = None
        self._better_since_s: float | None = None
        self._changed_s: float | None = None

    def due(
        self, now_s: float, costs: Costs | None, plan: Plan, slowness: Mapping[NodeId, float]
    ) -> BetterSplit | None:
        """The split that is to be taken now; None as long as the one of `plan` is to be kept.

        Args:
            costs: what was measured; None: nothing was.
            slowness: of those nodes of which it is known now.
        """
        if costs is None or not costs.has(plan.members):
            self._better_since_s = None
            return None
        self._slowness.update({node: _STEP * round(factor / _STEP) for node, factor in slowness.items()})
        if self._asked != (asked := (plan, dict(self._slowness))):  # a search takes its time
            self._asked, self._found = asked, best_split(costs, plan, self._slowness)
        if self._found is None or self._found.gain < GAIN:
            self._better_since_s = None
            return None
        if self._better_since_s is None:
            self._better_since_s = now_s
        is_early = self._changed_s is not None and now_s - self._changed_s < PAUSE_S
        return None if is_early or now_s - self._better_since_s < SUSTAINED_S else self._found

    def changed(self, now_s: float) -> None:
        """The ring was formed anew on a split that was due."""
        self._changed_s, self._better_since_s = now_s, None
