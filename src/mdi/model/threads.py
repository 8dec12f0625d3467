"""With how many threads a node computes: never with more than there are cores left for it.

The threads of one product wait for each other at its end, thousands of times a second. One that has to share its core
makes all others wait until it has its turn, which is a matter of milliseconds.
"""

import logging
import math
import os
import statistics
import time
from collections import defaultdict, deque
from collections.abc import Callable

import torch

from mdi.machine import n_cores
from mdi.other_load import LoadMeter, OtherLoad
from mdi.strings import count

log = logging.getLogger(__name__)

MEASURE_S = 0.25  # the least that says something: the system counts in hundredths
VARIABLE = "OMP_NUM_THREADS"
FAR_ABOVE = 3.0  # times as long as the median of the last `USUAL` messages with as many rows
USUAL, RECENT = 200, 10  # messages
PAUSE_S = 60.0


class CoreShare:
    """This node's share of the cores, from the moment before it loads its weights.

    Nodes of one machine divide the cores among them. What other programs take while the weights are loaded is left to
    them. OMP_NUM_THREADS overrides all of it.
    """

    def __init__(
        self, nodes_on_host: int, cores: int | None = None, meter: Callable[[], LoadMeter] = LoadMeter
    ) -> None:
        self._nodes, self._cores = nodes_on_host, cores or n_cores()
        self._share = max(1, self._cores // nodes_on_host)
        self._began_s = time.monotonic()
        self._meter: LoadMeter | None = None
        if VARIABLE not in os.environ:
            torch.set_num_threads(self._share)
            self._meter = meter() if self._share > 1 else None

    def settle(self) -> None:
        """Leave other programs their cores. Waits a moment where too little time has passed to know what they take."""
        if self._meter is None:
            return
        time.sleep(max(0.0, self._began_s + MEASURE_S - time.monotonic()))
        others = self._meter.stop(self._cores)
        if (n_threads := self._beside(others)) < self._share:
            torch.set_num_threads(n_threads)
            log.warning(
                "other programs take %s: computing with %s (%s overrides it)",
                others,
                count(n_threads, "thread"),
                VARIABLE,
            )

    def _beside(self, others: OtherLoad) -> int:
        """The other nodes of this machine load too, and may: each with its share."""
        foreign = max(0.0, others.cores - (self._nodes - 1) * self._share)
        return max(1, min(self._share, round(self._cores - foreign) // self._nodes))


class SlowSteps:
    """Notices that steps take far longer than they did, and what other programs take meanwhile."""

    def __init__(self, meter: Callable[[], LoadMeter] = LoadMeter, clock: Callable[[], float] = time.monotonic) -> None:
        self._make_meter, self._clock = meter, clock
        self._steps_s: dict[int, deque[float]] = defaultdict(lambda: deque(maxlen=USUAL))
        self._n_steps = 0
        self._meter: LoadMeter | None = None  # while steps are slow
        self._silent_until_s = -math.inf

    def add(self, n_rows: int, step_s: float) -> str | None:
        """A message of `n_rows` took `step_s`. Returns what is to be said about it, once a minute at most."""
        steps_s = self._steps_s[n_rows]
        steps_s.append(step_s)
        self._n_steps += 1
        if self._n_steps % RECENT or len(steps_s) < 2 * RECENT or self._clock() < self._silent_until_s:
            return None
        usual_s, now_s = statistics.median(steps_s), statistics.median(list(steps_s)[-RECENT:])
        if now_s < FAR_ABOVE * usual_s:
            self._meter = None
            return None
        if self._meter is None:
            self._meter = self._make_meter()
            return None
        others, self._meter = self._meter.stop(n_cores()), None
        self._silent_until_s = self._clock() + PAUSE_S
        cause = f"other programs take {others}" if others.is_heavy else "the processor may be too hot or short of power"
        return f"a step takes {1000 * now_s:.0f} ms instead of {1000 * usual_s:.0f} ms: {cause}"
