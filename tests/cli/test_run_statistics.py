"""The CSV of `--time-run`."""

import datetime
from pathlib import Path

import pytest

from mdi.cli.run_statistics import RUN_CSV_HEADER, RunStats, append_run_csv, check_run_csv
from mdi.errors import ConfigError, StorageError

STATS = RunStats(3, 22, 500, 12.5, timestamp=datetime.datetime(2025, 1, 2, 3, 4, 5, 678))
LINE = "2025-01-02 03:04:05,3,22,500,12.5\n"


def test_run_statistics_are_appended_below_one_header(tmp_path: Path) -> None:
    path = tmp_path / "runs.csv"
    assert not check_run_csv(path)
    append_run_csv(path, STATS)
    assert check_run_csv(path)
    append_run_csv(path, STATS)
    header = "timestamp,n_samples,n_layers,context_size,gen_time"
    assert path.read_text(encoding="utf-8") == f"{header}\n{LINE}{LINE}"


def test_an_empty_file_gets_its_header_and_an_open_line_is_closed(tmp_path: Path) -> None:
    path = tmp_path / "runs.csv"
    path.touch()
    append_run_csv(path, STATS)
    assert path.read_text(encoding="utf-8") == f"{RUN_CSV_HEADER}\n{LINE}"
    path.write_text(RUN_CSV_HEADER, encoding="utf-8")
    append_run_csv(path, STATS)
    assert path.read_text(encoding="utf-8") == f"{RUN_CSV_HEADER}\n{LINE}"


def test_line_ends_of_another_system_are_the_same_header(tmp_path: Path) -> None:
    path = tmp_path / "runs.csv"
    path.write_bytes(f"{RUN_CSV_HEADER}\r\n".encode())
    append_run_csv(path, STATS)
    assert path.read_bytes() == f"{RUN_CSV_HEADER}\r\n{LINE}".encode()


@pytest.mark.parametrize("content", [b"a,b,c\n1,2,3\n", b"\n", b"\xff\xfe\x00", b"x" * 1000])
def test_a_file_of_something_else_is_never_touched(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "runs.csv"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"runs\.csv"):
        append_run_csv(path, STATS)
    assert path.read_bytes() == content


def test_the_time_of_a_run_is_now_by_default() -> None:
    assert abs(RunStats(1, 1, 1, 1.0).timestamp - datetime.datetime.now()) < datetime.timedelta(minutes=1)


def test_a_folder_that_cannot_be_written_is_one_line(no_folder: Path) -> None:
    with pytest.raises(StorageError, match="below") as caught:
        append_run_csv(no_folder / "a.csv", STATS)
    assert "\n" not in str(caught.value)
