"""What a secondary says of a session that is over."""

import logging
import re
from pathlib import Path

import pytest

from mdi.nodes.session_work import SessionWork
from mdi.segments import Segment
from support.models import make_model
from support.rings import ring_of


def test_work_is_counted_from_the_first_message_to_the_last() -> None:
    work = SessionWork()
    work.add([Segment(0, 0, 10, 0), Segment(1, 0, 4, 1)], 1_000_000, began_s=5.0, ended_s=5.25)
    work.add([Segment(0, 10, 5, 1), Segment(1, 4, 1, 1)], 200_000, began_s=6.75, ended_s=7.0)
    said = "2 messages, 20 rows, 3 tokens in 2.00 s: 1.50 tokens/s, computing 25% of the time; 1.20 MB sent on"
    assert str(work) == said


def test_a_session_of_one_message_is_one_message() -> None:
    work = SessionWork()
    work.add([Segment(0, 0, 1, 1)], 8, began_s=0.0, ended_s=0.5)
    assert str(work) == "1 message, 1 row, 1 token in 0.50 s: 2.00 tokens/s, computing 100% of the time; 8 B sent on"


def test_a_secondary_tells_who_came_what_it_loads_and_how_fast_it_was(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = make_model(tmp_path / "checkpoints" / "org" / "tiny")
    caplog.set_level(logging.INFO, "mdi.nodes.secondary")
    with ring_of(2, tmp_path / "cache") as ring:
        ring.generate(folder, [[1, 2, 3], [4, 5]], n_tokens=4)
    said = [record.getMessage() for record in caplog.records if record.name == "mdi.nodes.secondary"]
    asked = "the starter at 127.0.0.1:\\d+ asks for layers \\d to 5 of org/tiny, epoch 1"
    patterns = [
        asked,
        "the starter is to send the weights; 0 B of them are here",
        asked,
        "ready: layers \\d to 5, float32 on cpu, weights of .*; memory: .*",
        "the session is over: .*, 11 rows, 8 tokens in .* tokens/s, computing \\d+% of the time; .* sent on",
    ]
    for pattern, line in zip(patterns, said, strict=True):
        assert re.fullmatch(pattern, line), said
