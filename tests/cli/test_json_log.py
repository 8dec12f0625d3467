"""The log for programs: one JSON object in each line, whatever is said."""

import json
import logging
from datetime import datetime, timezone
from pathlib import Path

import pytest

from mdi.cli.json_log import JsonFormatter
from mdi.config.options import SecondaryOptions
from mdi.errors import ConfigError
from support.scripts import Scripts, write_network


def test_a_record_is_one_line_with_its_fields_and_its_traceback() -> None:
    try:
        raise ValueError("two\nlines")
    except ValueError as exc:
        trace = (type(exc), exc, exc.__traceback__)
    record = logging.LogRecord("mdi.x", logging.WARNING, __file__, 1, "a %s", ("b\nc",), trace)
    record.fields = {"seconds": 1.5}
    record.created = datetime(2026, 1, 2, 3, 4, 5, 678_000, timezone.utc).timestamp()
    line = JsonFormatter().format(record)
    assert "\n" not in line
    said = json.loads(line)
    assert "two\nlines" in said.pop("traceback")
    assert said == {
        "time": "2026-01-02T03:04:05.678Z", "level": "warning", "logger": "mdi.x", "message": "a b\nc", "seconds": 1.5,
    }  # fmt: skip


def test_another_format_is_refused() -> None:
    with pytest.raises(ConfigError, match="--log-format xml: expected one of text, json"):
        SecondaryOptions(log_format="xml")


@pytest.mark.slow
def test_all_that_a_script_says_is_json_to_its_last_word(scripts: Scripts, tmp_path: Path) -> None:
    network = write_network(tmp_path / "two.json", 2)
    missing = tmp_path / "no-such-folder" / "out.jsonl"
    result = scripts.run(
        "starter.py", "--log-format", "json", "--nodes-config", network.path, "--output", missing, timeout_s=120
    )
    said = [json.loads(line) for line in result.stderr.splitlines()]
    assert result.code == 2
    assert said[-1]["level"] == "error" and str(missing.parent) in said[-1]["message"]
