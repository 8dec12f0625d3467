"""What each node did when: recorded on the node, sent to the starter, and shifted to the starter's clock."""

import contextlib
import re
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from mdi.errors import ControlError
from mdi.segments import Segment, prompt_rows_of, rows_of
from mdi.work import WorkMeter

MAX_EVENTS = 200_000  # of a node; the oldest go first
MAX_TIME_S = 1e12  # of any clock
PASSES = ("prefill", "decode", "mixed")  # of rows through the node's span
COMPUTING = (*PASSES, "head")
ACTIVITIES = (*COMPUTING, "send", "receive", "idle")
_FLOW = re.compile(r"(\d{1,20}\.){2}\d{1,20}|")


@dataclass(frozen=True)
class TraceEvent:
    """One thing that a node did, by the node's own clock."""

    activity: str
    start_s: float
    duration_s: float
    rows: int  # that the message carried; 0: no message
    samples: int = 0  # that the rows belong to
    flow: str = ""  # names a message with rows on one edge of the ring: its sending and its receipt


class Timeline:
    """The events of one node, kept while it is on; and sums of them, which always are. Any thread may add to it."""

    def __init__(self) -> None:
        self.on = False
        self.meter = WorkMeter()
        self.events: deque[TraceEvent] = deque(maxlen=MAX_EVENTS)

    def begin(self, on: bool) -> None:
        """Forget what was recorded; go on recording, or not."""
        self.on = on
        self.events.clear()

    def add(self, activity: str, start_s: float, rows: int = 0, samples: int = 0, flow: str = "") -> None:
        """Record what went on from `start_s`, by `time.perf_counter`, until now."""
        if self.on:
            self.events.append(TraceEvent(activity, start_s, time.perf_counter() - start_s, rows, samples, flow))

    @contextlib.contextmanager
    def during(self, activity: str, rows: int = 0, samples: int = 0, flow: str = "") -> Iterator[None]:
        """Record what the main thread does inside the block."""
        start_s = time.perf_counter()
        self.meter.begin("compute" if activity in COMPUTING else "idle")
        try:
            yield
        finally:
            self.meter.end(rows if activity in PASSES else 0)
        self.add(activity, start_s, rows, samples, flow)

    def computing(self, segments: Sequence[Segment]) -> contextlib.AbstractContextManager[None]:
        """Record the computation of a message inside the block."""
        return self.during(_kind_of(segments), rows_of(segments), len(segments))

    def to_json(self) -> dict[str, Any]:
        """Plain values for another node, with the time at which they were read."""
        events = [
            [ACTIVITIES.index(item.activity), item.start_s, item.duration_s, item.rows, item.samples, item.flow]
            for item in list(self.events)
        ]
        return {"now_s": time.perf_counter(), "spans": events}


def _kind_of(segments: Sequence[Segment]) -> str:
    n_prompt_rows = prompt_rows_of(segments)
    return "decode" if not n_prompt_rows else "prefill" if n_prompt_rows == rows_of(segments) else "mixed"


@dataclass(frozen=True)
class NodeTimeline:
    """The events of a node in the starter's time."""

    name: str
    events: Sequence[TraceEvent]
    uncertainty_s: float = 0.0  # of the difference between the two clocks


def from_json(name: str, data: Any, asked_s: float, answered_s: float) -> NodeTimeline:
    """What a node answered to a request between two moments of our clock: its clock is taken to have been
    read half-way. Raises `ControlError` for anything else than a timeline.
    """
    match data:
        case {"now_s": now_s, "spans": list(rows)} if _is_time(now_s) and len(rows) <= MAX_EVENTS:
            if all(map(_is_event, rows)):
                shift_s = (asked_s + answered_s) / 2 - now_s
                events = [TraceEvent(ACTIVITIES[row[0]], row[1] + shift_s, *row[2:]) for row in rows]
                return NodeTimeline(name, events, (answered_s - asked_s) / 2)
    raise ControlError(f"{name} sent something else than a timeline")


def _is_event(row: Any) -> bool:
    """Whether a row is one that `Timeline.to_json` writes."""
    if not isinstance(row, list) or len(row) != 6:
        return False
    activity, start_s, duration_s, n_rows, n_samples, flow = row
    is_known = type(activity) is int and 0 <= activity < len(ACTIVITIES)
    are_counts = all(type(n) is int and n >= 0 for n in (n_rows, n_samples))
    is_flow = isinstance(flow, str) and _FLOW.fullmatch(flow) is not None
    return is_known and are_counts and is_flow and _is_time(start_s) and _is_time(duration_s)


def _is_time(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) < MAX_TIME_S  # NaN is not
