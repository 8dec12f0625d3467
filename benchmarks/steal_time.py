"""Makes a core slower for whatever else runs on it (Linux, root): `python -m benchmarks.steal_time SHARE` leaves so
much of it to others.

It computes at a real-time priority for a part of every millisecond. So the core seems a slower one, evenly, however
much the others sleep between their work: beside a busy loop of usual priority they would get more of it the more they
sleep, and a control group enforces a quota only when the kernel's clock ticks, every few milliseconds.
"""

import os
import sys
import time

from benchmarks.workers import answer

PERIOD_S = 0.001


def steal(share: float) -> None:
    """Compute for all of each period but `share` of it, without end."""
    period_ends_s = time.monotonic()
    while True:
        period_ends_s += PERIOD_S
        while time.monotonic() < period_ends_s - share * PERIOD_S:
            pass
        time.sleep(max(0.0, period_ends_s - time.monotonic()))


def main() -> None:
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
    except (AttributeError, OSError) as exc:
        sys.exit(f"a core is made slower by a real-time priority, for which one is root on Linux: {exc}")
    answer({"ready": True})
    steal(float(sys.argv[1]))


if __name__ == "__main__":
    main()
