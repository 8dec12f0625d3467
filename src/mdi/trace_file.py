"""The timelines of all nodes as one file for trace viewers, and in one line.

The format is Chrome's "Trace Event Format", in microseconds: complete events ("ph": "X"), arrows from one to another
("s" and "f"), and a counter ("C").
"""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from mdi.files import write_text
from mdi.trace import COMPUTING, MAX_EVENTS, NodeTimeline, TraceEvent

ROWS = ("compute", "send", "receive", "idle")  # of each node in a viewer
MAX_COUNTS = 200  # of tokens per second
_Json = dict[str, Any]


def write_trace(path: Path, nodes: Sequence[NodeTimeline]) -> None:
    """Write the timelines of all nodes, the starter's first, beginning at the first event of any."""
    begin_s = min((event.start_s for node in nodes for event in node.events), default=0.0)
    events = [item for number, node in enumerate(nodes) for item in _node_events(number, node, begin_s)]
    events += _arrows(nodes, begin_s)
    events += _token_rates(nodes[0].events if nodes else (), begin_s)
    write_text(path, json.dumps({"traceEvents": events, "displayTimeUnit": "ms"}))


def busy_shares(nodes: Sequence[NodeTimeline]) -> str:
    """How much of the time each node computed: `starter busy 53%, secondary 0 busy 81%`. Empty where none did."""
    computed = [[event for event in node.events if event.activity in COMPUTING] for node in nodes]
    began_s = min((event.start_s for events in computed for event in events), default=0.0)
    for node in nodes:  # what one node has forgotten is left out of all
        if len(node.events) >= MAX_EVENTS:
            began_s = max(began_s, node.events[0].start_s)
    ended_s = max((event.start_s + event.duration_s for events in computed for event in events), default=0.0)
    if ended_s <= began_s:
        return ""
    busy_s = [sum(event.duration_s for event in events if event.start_s >= began_s) for events in computed]
    shares = (min(100.0, 100 * seconds / (ended_s - began_s)) for seconds in busy_s)
    return ", ".join(f"{node.name} busy {share:.0f}%" for node, share in zip(nodes, shares, strict=True))


def _row(event: TraceEvent) -> int:
    return ROWS.index("compute" if event.activity in COMPUTING else event.activity)


def _node_events(number: int, node: NodeTimeline, begin_s: float) -> Iterator[_Json]:
    name = f"{node.name} (clock known to {node.uncertainty_s * 1e3:.2f} ms)" if node.uncertainty_s else node.name
    yield {"name": "process_name", "ph": "M", "pid": number, "tid": 0, "args": {"name": name}}
    for row, title in enumerate(ROWS):
        yield {"name": "thread_name", "ph": "M", "pid": number, "tid": row, "args": {"name": title}}
    for event in node.events:
        yield {
            "name": event.activity,
            "ph": "X",
            "pid": number,
            "tid": _row(event),
            "ts": (event.start_s - begin_s) * 1e6,
            "dur": event.duration_s * 1e6,
            "args": {"rows": event.rows, "samples": event.samples},
        }


def _arrows(nodes: Sequence[NodeTimeline], begin_s: float) -> Iterator[_Json]:
    """From the sending of each message to its receipt, where both were recorded."""
    ends = [(number, event) for number, node in enumerate(nodes) for event in node.events if event.flow]
    n_ends = Counter((event.flow, event.activity) for _, event in ends)
    for number, event in ends:
        if all(n_ends[event.flow, activity] == 1 for activity in ("send", "receive")):
            yield {
                "name": "message",
                "cat": "ring",
                "ph": "s" if event.activity == "send" else "f",
                "bp": "e",  # the arrow ends at the event that it lies in, not at the next one
                "id": event.flow,
                "pid": number,
                "tid": _row(event),
                "ts": (event.start_s - begin_s) * 1e6,
            }


def _token_rates(events: Sequence[TraceEvent], begin_s: float) -> Iterator[_Json]:
    """Tokens per second over the run: each row that the starter's head computes becomes a token."""
    heads = [event for event in events if event.activity == "head"]
    if not heads:
        return
    first_s, last_s = heads[0].start_s, heads[-1].start_s
    window_s = max(0.1, (last_s - first_s) / MAX_COUNTS)
    tokens: Counter[int] = Counter()
    for event in heads:
        tokens[int((event.start_s - first_s) / window_s)] += event.rows
    for window in range(max(tokens) + 2):  # the last one ends the curve
        rate = tokens[window] / window_s
        at_us = (first_s + window * window_s - begin_s) * 1e6
        yield {"name": "tokens/s", "ph": "C", "pid": 0, "ts": at_us, "args": {"tokens/s": round(rate, 2)}}
