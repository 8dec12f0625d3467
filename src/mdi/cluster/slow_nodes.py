"""Which nodes compute more slowly than they were measured: sums of the last minute, compared. No I/O, no threads.

A node is named once it has taken a quarter longer over a minute, and again when it is within a tenth. What lies between
changes nothing, so a node on the border is not named again and again.
"""

from collections import deque
from collections.abc import Mapping
from typing import NamedTuple

from mdi.config.network import node_name
from mdi.ids import NodeId

WINDOW_S = 60.0
SLOW = 1.25  # times as long as measured: from here on a node is slow
FINE = 1.10  # down to here it is no longer
MIN_WORK_S = 1.0  # of computing in a minute; less tells nothing


class _Mark(NamedTuple):
    at_s: float
    computed_s: float
    expected_s: float


class SlowNodes:
    """Compares sums that only grow. Called from one thread; any other may read `slowness`."""

    def __init__(self) -> None:
        self.slowness: Mapping[NodeId, float] = {}  # time in the last minute, in times of what was measured
        self._marks: dict[NodeId, deque[_Mark]] = {}
        self._slow: set[NodeId] = set()

    def update(self, now_s: float, computed_s: Mapping[NodeId, float], expected_s: Mapping[NodeId, float]) -> list[str]:
        """What to tell the user.

        Args:
            computed_s: of each node that was asked and answers, since it was started.
            expected_s: what was measured for the same messages, of the nodes of which that is known.
        """
        for node, seconds in computed_s.items():
            if node in expected_s:
                self._note(node, _Mark(now_s, seconds, expected_s[node]))
            else:
                self._marks.pop(node, None)
        self.slowness = {node: ratio for node in computed_s if (ratio := self._ratio(node)) is not None}
        return [*self._newly_slow(), *self._fine_again()]

    def _note(self, node: NodeId, mark: _Mark) -> None:
        marks = self._marks.setdefault(node, deque())
        if marks and (mark.computed_s < marks[-1].computed_s or mark.expected_s < marks[-1].expected_s):
            marks.clear()  # it is another process, or is counted anew
        marks.append(mark)
        while len(marks) > 2 and mark.at_s - marks[1].at_s >= WINDOW_S:
            marks.popleft()

    def _ratio(self, node: NodeId) -> float | None:
        if not (marks := self._marks.get(node)):
            return None
        first, last = marks[0], marks[-1]
        expected_s = last.expected_s - first.expected_s
        if last.at_s - first.at_s < WINDOW_S or expected_s < MIN_WORK_S:
            return None
        return (last.computed_s - first.computed_s) / expected_s

    def _newly_slow(self) -> list[str]:
        slow = [node for node, ratio in self.slowness.items() if ratio >= SLOW and node not in self._slow]
        self._slow.update(slow)
        cause = "it may be hot, or other programs may run on it"
        return [f"{node_name(n)} has computed {self.slowness[n]:.2f} times as long as measured: {cause}" for n in slow]

    def _fine_again(self) -> list[str]:
        fine = [node for node in sorted(self._slow) if self.slowness.get(node, SLOW) <= FINE]
        self._slow.difference_update(fine)
        return [f"{node_name(node)} computes as fast as measured again" for node in fine]
