"""What each node did when: events, and the trace-event JSON that trace viewers show.

The format is Chrome's "Trace Event Format": complete events ("ph": "X") with microseconds.
"""

import contextlib
import json
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mdi.errors import ControlError
from mdi.files import write_text

MAX_EVENTS = 200_000  # of a node; the oldest go first
MAX_TIME_S = 1e12  # of any clock
ACTIVITIES = ("compute", "send", "receive", "idle")  # one row each in a viewer


@dataclass(frozen=True)
class TraceEvent:
    """One thing that a node did, by the node's own clock."""

    activity: str
    start_s: float
    duration_s: float
    rows: int  # that the message carried; 0: no message


class Timeline:
    """The events of one node. Any thread may add to it; unless it is on, that costs a comparison."""

    def __init__(self) -> None:
        self.on = False
        self.events: deque[TraceEvent] = deque(maxlen=MAX_EVENTS)

    def begin(self, on: bool) -> None:
        """Forget what was recorded; go on recording, or not."""
        self.on = on
        self.events.clear()

    def add(self, activity: str, start_s: float, rows: int = 0) -> None:
        """Record what went on from `start_s`, by `time.perf_counter`, until now."""
        if self.on:
            self.events.append(TraceEvent(activity, start_s, time.perf_counter() - start_s, rows))

    @contextlib.contextmanager
    def during(self, activity: str, rows: int = 0) -> Iterator[None]:
        """Record what goes on inside the block."""
        start_s = time.perf_counter()
        yield
        self.add(activity, start_s, rows)

    def to_json(self) -> dict[str, Any]:
        """Plain values for another node, with the time at which they were read."""
        events = [
            [ACTIVITIES.index(event.activity), event.start_s, event.duration_s, event.rows]
            for event in list(self.events)
        ]
        return {"now_s": time.perf_counter(), "spans": events}


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
                events = [TraceEvent(ACTIVITIES[row[0]], row[1] + shift_s, row[2], row[3]) for row in rows]
                return NodeTimeline(name, events, (answered_s - asked_s) / 2)
    raise ControlError(f"{name} sent something else than a timeline")


def _is_event(row: Any) -> bool:
    """Whether a row is one that `Timeline.to_json` writes."""
    if not isinstance(row, list) or len(row) != 4:
        return False
    activity, start_s, duration_s, n_rows = row
    is_known = type(activity) is int and 0 <= activity < len(ACTIVITIES) and type(n_rows) is int and n_rows >= 0
    return is_known and _is_time(start_s) and _is_time(duration_s)


def _is_time(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) < MAX_TIME_S  # NaN is not


def write_trace(path: Path, nodes: Sequence[NodeTimeline]) -> None:
    """Write the timelines of all nodes, beginning at the first event of any."""
    begin_s = min((event.start_s for node in nodes for event in node.events), default=0.0)
    events = [event for number, node in enumerate(nodes) for event in _events(number, node, begin_s)]
    write_text(path, json.dumps({"traceEvents": events, "displayTimeUnit": "ms"}))


def _events(number: int, node: NodeTimeline, begin_s: float) -> Iterator[dict[str, Any]]:
    name = f"{node.name} (clock known to {node.uncertainty_s * 1e3:.2f} ms)" if node.uncertainty_s else node.name
    yield {"name": "process_name", "ph": "M", "pid": number, "tid": 0, "args": {"name": name}}
    for row, activity in enumerate(ACTIVITIES):
        yield {"name": "thread_name", "ph": "M", "pid": number, "tid": row, "args": {"name": activity}}
    for event in node.events:
        yield {
            "name": event.activity,
            "ph": "X",
            "pid": number,
            "tid": ACTIVITIES.index(event.activity),
            "ts": (event.start_s - begin_s) * 1e6,
            "dur": event.duration_s * 1e6,
            "args": {"rows": event.rows},
        }
