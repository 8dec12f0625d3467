"""The timeline: what is recorded, how clocks are aligned, and the file that trace viewers read."""

import json
import re
from pathlib import Path

import pytest

from mdi.errors import ControlError
from mdi.segments import Segment
from mdi.trace import ACTIVITIES, MAX_EVENTS, NodeTimeline, Timeline, TraceEvent, from_json
from mdi.trace_file import busy_shares, write_trace
from support.models import make_model
from support.rings import ring_of


def test_nothing_is_recorded_unless_it_is_on() -> None:
    timeline = Timeline()
    with timeline.during("head", 3):
        pass
    assert not timeline.events
    timeline.begin(on=True)
    with timeline.during("head", 3, 2):
        pass
    (span,) = timeline.events
    assert (span.activity, span.rows, span.samples) == ("head", 3, 2)
    timeline.begin(on=False)
    assert not timeline.events


def test_another_clock_is_shifted_to_ours() -> None:
    data = {"now_s": 1000.0, "spans": [[0, 999.0, 0.5, 2, 1, "3.1.7"]]}
    node = from_json("secondary 0", data, asked_s=10.0, answered_s=10.2)
    assert node.events == [TraceEvent("prefill", pytest.approx(9.1), 0.5, 2, 1, "3.1.7")]
    assert node.uncertainty_s == pytest.approx(0.1)


EVENT = [0, 1.0, 1.0, 1, 1, ""]


@pytest.mark.parametrize("data", [None, [], {}, {"now_s": "x", "spans": []}, {"now_s": 10**400, "spans": []},
                                  {"now_s": float("nan"), "spans": []}, {"now_s": True, "spans": []},
                                  {"now_s": 1.0, "spans": {}}, {"now_s": 1.0, "spans": [1]},
                                  {"now_s": 1.0, "spans": ["abcdef"]}, {"now_s": 1.0, "spans": [EVENT[:4]]},
                                  {"now_s": 1.0, "spans": [EVENT] * (MAX_EVENTS + 1)},
                                  *({"now_s": 1.0, "spans": [[*EVENT[:i], wrong, *EVENT[i + 1:]]]}
                                    for i, wrong in [(0, 9), (0, -1), (0, True), (1, "x"), (2, float("inf")),
                                                     (3, float("inf")), (3, -1), (4, -1), (4, None), (5, 1),
                                                     (5, "1.2"), (5, "1.2.x"), (5, "1.2." + "3" * 21)])])  # fmt: skip
def test_anything_else_is_refused(data: object) -> None:
    with pytest.raises(ControlError, match="secondary 0 sent something else than a timeline"):
        from_json("secondary 0", data, 0.0, 1.0)


def test_the_file_is_trace_event_json(tmp_path: Path) -> None:
    nodes = [
        NodeTimeline("starter", [TraceEvent("idle", 5.0, 0.25, 0)]),
        NodeTimeline("x", [TraceEvent("send", 5.5, 0.1, 4, 2)], 0.002),
    ]
    write_trace(tmp_path / "trace.json", nodes)
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    complete = [event for event in events if event["ph"] == "X"]
    assert [(e["pid"], e["name"], e["ts"], round(e["dur"]), e["args"]) for e in complete] == [
        (0, "idle", 0.0, 250_000, {"rows": 0, "samples": 0}),
        (1, "send", 500_000.0, 100_000, {"rows": 4, "samples": 2}),
    ]
    names = [event["args"]["name"] for event in events if event["name"] == "process_name"]
    assert names == ["starter", "x (clock known to 2.00 ms)"]


@pytest.mark.parametrize(("rows", "kind"), [([1, 1], "decode"), ([5], "prefill"), ([1, 5], "mixed"), ([1], "decode")])
def test_a_computation_is_named_after_its_segments(rows: list[int], kind: str) -> None:
    timeline = Timeline()
    timeline.begin(on=True)
    with timeline.computing([Segment(slot, 3, n, 1) for slot, n in enumerate(rows)]):
        pass
    (event,) = timeline.events
    assert (event.activity, event.rows, event.samples) == (kind, sum(rows), len(rows))
    assert kind in ACTIVITIES


def test_arrows_join_what_was_sent_and_received(tmp_path: Path) -> None:
    nodes = [
        NodeTimeline(
            "starter", [TraceEvent("send", 1.0, 0.1, 4, 2, "1.0.1"), TraceEvent("send", 2.0, 0.1, 4, 2, "1.0.2")]
        ),
        NodeTimeline("x", [TraceEvent("receive", 1.5, 0.1, 4, 2, "1.0.1"), TraceEvent("receive", 3.0, 0.1, 0)]),
    ]
    write_trace(tmp_path / "trace.json", nodes)
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    arrows = [(e["ph"], e["id"], e["pid"], e["tid"], e["ts"]) for e in events if e["ph"] in "sf"]
    assert arrows == [("s", "1.0.1", 0, 1, 0.0), ("f", "1.0.1", 1, 2, 500_000.0)]  # the end of the second one is lost


def test_tokens_per_second_are_counted_from_what_the_head_computed(tmp_path: Path) -> None:
    heads = [TraceEvent("head", 10.0 + 0.05 * i, 0.01, 2, 2) for i in range(8)]
    write_trace(tmp_path / "trace.json", [NodeTimeline("starter", heads)])
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    counts = [(round(e["ts"], -2), e["args"]["tokens/s"]) for e in events if e["ph"] == "C"]
    assert sum(rate for _, rate in counts) * 0.1 == pytest.approx(16)
    assert [at_us for at_us, _ in counts] == [0, 100_000, 200_000, 300_000, 400_000]
    assert counts[-1][1] == 0


def test_one_line_tells_how_busy_the_nodes_were() -> None:
    nodes = [
        NodeTimeline(
            "starter",
            [TraceEvent("idle", 0.0, 9.0, 0), TraceEvent("prefill", 10.0, 1.0, 3), TraceEvent("head", 13.0, 1.0, 1)],
        ),
        NodeTimeline("secondary 0", [TraceEvent("decode", 11.0, 3.0, 1), TraceEvent("send", 11.0, 3.0, 1)]),
        NodeTimeline("secondary 1", []),
    ]
    assert busy_shares(nodes) == "starter busy 50%, secondary 0 busy 75%, secondary 1 busy 0%"
    assert busy_shares(nodes[2:]) == busy_shares([]) == ""


def test_a_run_shows_what_every_node_did(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "checkpoints" / "org" / "tiny")
    trace = tmp_path / "trace.json"
    with ring_of(3, tmp_path / "cache") as ring:
        ring.generate(folder, [[1, 2, 3], [4, 5], [6]], n_tokens=6, timeline=trace)
    events = json.loads(trace.read_text())["traceEvents"]
    spans = [event for event in events if event["ph"] == "X"]
    for node in range(3):
        own = [span for span in spans if span["pid"] == node]
        kinds = {"prefill", "decode", "send", "receive", "idle"} | ({"head"} if node == 0 else set())
        assert kinds <= {span["name"] for span in own} <= kinds | {"mixed"}
        computed = sum(span["args"]["rows"] for span in own if span["tid"] == 0)
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
    arrows = {phase: {e["id"]: e["pid"] for e in events if e["ph"] == phase} for phase in "sf"}
    assert arrows["s"].keys() == arrows["f"].keys()
    assert {(arrows["s"][flow], arrows["f"][flow]) for flow in arrows["s"]} == {(0, 1), (1, 2), (2, 0)}
    assert sum(event["args"]["tokens/s"] for event in events if event["ph"] == "C") > 0
