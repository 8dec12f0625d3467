"""The timeline: what is recorded, how clocks are aligned, and the file that trace viewers read."""

import json
import re
from pathlib import Path

import pytest

from mdi.errors import ControlError
from mdi.trace import MAX_EVENTS, NodeTimeline, Timeline, TraceEvent, from_json, write_trace
from support.models import make_model
from support.rings import ring_of


def test_nothing_is_recorded_unless_it_is_on() -> None:
    timeline = Timeline()
    with timeline.during("compute", 3):
        pass
    assert not timeline.events
    timeline.begin(on=True)
    with timeline.during("compute", 3):
        pass
    (span,) = timeline.events
    assert (span.activity, span.rows) == ("compute", 3)
    timeline.begin(on=False)
    assert not timeline.events


def test_another_clock_is_shifted_to_ours() -> None:
    data = {"now_s": 1000.0, "spans": [[0, 999.0, 0.5, 2]]}
    node = from_json("secondary 0", data, asked_s=10.0, answered_s=10.2)
    assert node.events == [TraceEvent("compute", pytest.approx(9.1), 0.5, 2)]
    assert node.uncertainty_s == pytest.approx(0.1)


@pytest.mark.parametrize("data", [None, [], {}, {"now_s": "x", "spans": []}, {"now_s": 1.0, "spans": [[9, 1, 1, 1]]},
                                  {"now_s": 1.0, "spans": [[0, "x", 1, 1]]}, {"now_s": 1.0, "spans": [1]},
                                  {"now_s": 1.0, "spans": [[0, 1, 1, float("inf")]]},
                                  {"now_s": 10**400, "spans": []}, {"now_s": float("nan"), "spans": []},
                                  {"now_s": True, "spans": []}, {"now_s": 1.0, "spans": {}},
                                  {"now_s": 1.0, "spans": [[-1, 1, 1, 1]]}, {"now_s": 1.0, "spans": [[0, "1", 1, 1]]},
                                  {"now_s": 1.0, "spans": [[0, 1, float("inf"), 1]]},
                                  {"now_s": 1.0, "spans": [[0, 1, 1, -1]]}, {"now_s": 1.0, "spans": ["abcd"]},
                                  {"now_s": 1.0, "spans": [[0, 1, 1, 1]] * (MAX_EVENTS + 1)}])  # fmt: skip
def test_anything_else_is_refused(data: object) -> None:
    with pytest.raises(ControlError, match="secondary 0 sent something else than a timeline"):
        from_json("secondary 0", data, 0.0, 1.0)


def test_the_file_is_trace_event_json(tmp_path: Path) -> None:
    nodes = [
        NodeTimeline("starter", [TraceEvent("idle", 5.0, 0.25, 0)]),
        NodeTimeline("x", [TraceEvent("send", 5.5, 0.1, 4)], 0.002),
    ]
    write_trace(tmp_path / "trace.json", nodes)
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    complete = [event for event in events if event["ph"] == "X"]
    assert [(e["pid"], e["name"], e["ts"], round(e["dur"]), e["args"]["rows"]) for e in complete] == [
        (0, "idle", 0.0, 250_000, 0),
        (1, "send", 500_000.0, 100_000, 4),
    ]
    names = [event["args"]["name"] for event in events if event["name"] == "process_name"]
    assert names == ["starter", "x (clock known to 2.00 ms)"]


def test_a_run_shows_what_every_node_did(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "checkpoints" / "org" / "tiny")
    trace = tmp_path / "trace.json"
    with ring_of(3, tmp_path / "cache") as ring:
        ring.generate(folder, [[1, 2, 3], [4, 5], [6]], n_tokens=6, timeline=trace)
    events = json.loads(trace.read_text())["traceEvents"]
    spans = [event for event in events if event["ph"] == "X"]
    for node in range(3):
        own = [span for span in spans if span["pid"] == node]
        assert {span["name"] for span in own} == {"compute", "send", "receive", "idle"}
        computed = sum(span["args"]["rows"] for span in own if span["name"] == "compute")
        assert computed == 3 + 2 + 1 + 3 * 5 + (18 if node == 0 else 0)  # on the starter, logits too
    arrivals = [
        [
            span["ts"] + span["dur"]
            for span in spans
            if (span["pid"], span["name"]) == (node, "receive") and span["args"]["rows"]
        ]
        for node in range(3)
    ]
    # Once round the ring, by one clock; as far as the clocks of the others are known, which a busy machine makes hard.
    names = {event["pid"]: event["args"]["name"] for event in events if event["name"] == "process_name"}
    slack_us = sum(float(ms) * 1000 for name in names.values() for ms in re.findall(r"known to ([\d.]+) ms", name))
    assert min(arrivals[1]) < min(arrivals[2]) + slack_us < min(arrivals[0]) + 2 * slack_us
