"""The JSON Lines file of `--output`."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from mdi.cli.sample_records import RunSummary, SampleRecord, SampleWriter
from mdi.engine.sample import Logprob, TokenLogprobs
from mdi.errors import StorageError

RECORD = SampleRecord(0, "Who?", "Ein schöner Tag ✓\n", 3, 2, [5, 6], "stop", 0.5)
SUMMARY = RunSummary(3, 1, 2, 0.5, 4.0, 10137, 0)


def test_each_sample_is_in_the_file_as_soon_as_it_is_written(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    with SampleWriter(path) as writer:
        assert path.read_bytes() == b""
        writer.write_sample(RECORD)
        assert json.loads(path.read_text(encoding="utf-8")) == {
            "sample": 0,
            "prompt": "Who?",
            "completion": "Ein schöner Tag ✓\n",
            "prompt_tokens": 3,
            "cached_tokens": 2,
            "tokens": [5, 6],
            "finish_reason": "stop",
            "seconds": 0.5,
        }
        writer.write_summary(SUMMARY)
        lines = path.read_text(encoding="utf-8").splitlines()
    assert len(lines) == 2
    assert json.loads(lines[1]) == {
        "summary": {
            "n_nodes": 3,
            "n_samples": 1,
            "n_tokens": 2,
            "gen_time": 0.5,
            "tokens_per_s": 4.0,
            "seed": 10137,
            "recoveries": 0,
        }
    }
    writer.close()


def test_log_probabilities_are_written_where_they_were_asked_for(tmp_path: Path) -> None:
    chosen = TokenLogprobs(5, -1.5, (Logprob(7, -0.25), Logprob(5, -1.5)))
    with SampleWriter(tmp_path / "out.jsonl") as writer:
        writer.write_sample(replace(RECORD, logprobs=[chosen]))
        writer.write_sample(replace(RECORD, logprobs=[]))
    first, second = map(json.loads, (tmp_path / "out.jsonl").read_text(encoding="utf-8").splitlines())
    best = [{"token": 7, "logprob": -0.25}, {"token": 5, "logprob": -1.5}]
    assert first["logprobs"] == [{"token": 5, "logprob": -1.5, "top_logprobs": best}]
    assert second["logprobs"] == []


def test_a_full_disk_is_one_line() -> None:
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("this system has no /dev/full")
    with pytest.raises(StorageError, match="no space left"), SampleWriter(full) as writer:
        writer.write_sample(RECORD)


def test_a_folder_that_cannot_be_written_is_one_line(no_folder: Path) -> None:
    with pytest.raises(StorageError, match="below") as caught:
        SampleWriter(no_folder / "a.jsonl")
    assert "\n" not in str(caught.value)
