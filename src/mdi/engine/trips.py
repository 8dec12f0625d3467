"""How long messages take round the ring, and how long the next one may take before the ring counts as stuck. No I/O.

A ring whose nodes all ping may still return nothing, because one of them has stopped computing. Only the starter knows
what travels and how long that takes.
"""

from collections import deque
from dataclasses import dataclass

from mdi.net.timeouts import Timeouts

NEWEST = 0.25  # the weight of the newest trip in what is usual


@dataclass(frozen=True)
class Travelling:
    """A message on its way round the ring."""

    n_rows: int
    n_prompt_rows: int  # of those
    age_s: float
    expected_s: float | None  # for the whole trip; None: nothing tells yet


@dataclass(frozen=True)
class _Trip:
    n_rows: int
    n_prompt_rows: int
    sent_s: float
    prior_s: float  # how long it should take, as far as this node's own part tells

    @property
    def size(self) -> int:
        """As many binary digits as the number of rows has."""
        return self.n_rows.bit_length()


class Trips:
    """The messages under way on one ring. Called only from the compute thread, unless a method says otherwise.

    How long a message takes, from sending to return, includes its waiting behind others. How long the ring has been
    waited for counts from the last return, when nothing was ahead of the message that is due any more. So a full ring
    makes what is usual longer, and never the wait.
    """

    def __init__(self, timeouts: Timeouts, least_s: float, part: float) -> None:
        """
        Args:
            least_s: how long any message may take.
            part: what this node computes of each message, between 0 and 1.
        """
        self._timeouts, self._least_s, self._part = timeouts, least_s, part
        self._under_way: deque[_Trip] = deque()
        self._usual_s: dict[int, float] = {}  # by size
        self._waited_s = 0.0

    def sent(self, n_rows: int, own_s: float, n_prompt_rows: int = 0) -> None:
        """A message leaves, whose rows took this node `own_s`."""
        if not self._under_way:
            self._waited_s = 0.0  # for a sample, perhaps, but not for the ring
        self._under_way.append(_Trip(n_rows, n_prompt_rows, self._timeouts.clock(), own_s / self._part))

    def returned(self, at_s: float) -> None:
        """The message that was sent first came back at `at_s`. Nothing happens where none was under way."""
        self._waited_s = 0.0
        if self._under_way:
            trip = self._under_way.popleft()
            took_s = max(0.0, at_s - trip.sent_s)
            usual_s = self._usual_s.get(trip.size, took_s)
            self._usual_s[trip.size] = usual_s + NEWEST * (took_s - usual_s)

    def waited(self, wait_s: float) -> None:
        """The node had nothing else to do than to wait for the ring. What it computes meanwhile does not count."""
        self._waited_s += wait_s

    def left_s(self) -> float | None:
        """How much longer to wait for the message that is due; None where none is."""
        return max(0.0, self._limit_s(self._under_way[0]) - self._waited_s) if self._under_way else None

    @property
    def under_way(self) -> tuple[Travelling, ...]:
        """The messages that have not returned, the oldest first. May be asked from any thread."""
        now_s = self._timeouts.clock()
        return tuple(
            Travelling(
                trip.n_rows,
                trip.n_prompt_rows,
                max(0.0, now_s - trip.sent_s),
                self._usual_s.get(trip.size, trip.prior_s) or None,
            )
            for trip in self._under_way.copy()
        )

    @property
    def overdue(self) -> str:
        """What to say of a message that did not come back in time."""
        usual_s = self._usual_s.get(self._under_way[0].size) if self._under_way else None
        usual = "" if usual_s is None else f", where {usual_s:.2g} s are usual"
        return f"the ring returned nothing for {self._waited_s:.3g} s{usual}"

    def _limit_s(self, trip: _Trip) -> float:
        """A size that has not been seen has a minute at least, and the first message of all has two: little or nothing
        tells yet how fast the others are, and their weights may still have to come from the disk.
        """
        timeouts, usual_s = self._timeouts, self._usual_s
        if trip.size in usual_s:
            return timeouts.patience_s(usual_s[trip.size], self._least_s)
        # A message of twice the rows takes at most twice as long.
        scaled_s = [took_s * 2 ** (trip.size - size) for size, took_s in usual_s.items() if size < trip.size]
        least_s = timeouts.max_patience_s if usual_s else timeouts.first_patience_s
        return max(least_s, timeouts.patience_s(max(trip.prior_s, *scaled_s, 0.0), self._least_s))
