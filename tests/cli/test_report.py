"""Files, plots and bars that a run leaves behind."""

import datetime
import io
import json
import struct
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from mdi.cli.report import (
    RUN_CSV_HEADER,
    RunStats,
    RunSummary,
    SampleRecord,
    SampleWriter,
    TokenTimes,
    append_run_csv,
    check_run_csv,
    format_seconds,
    plot_token_times,
    read_token_csv,
    run_names,
    write_token_csv,
)
from mdi.errors import ConfigError, StorageError
from mdi.progress import progress_bar
from support.paths import SRC


def png_size(path: Path) -> tuple[int, int]:
    data = path.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = struct.unpack(">II", data[16:24])
    return width, height


@pytest.fixture
def no_folder(tmp_path: Path) -> Path:
    """A path below a file, so that nothing can be written there even by root."""
    (tmp_path / "file").write_text("", encoding="utf-8")
    return tmp_path / "file" / "below"


# --- tokens over time ---


def test_token_times_begin_at_zero_and_count_every_token() -> None:
    times = TokenTimes()
    times.add(0.5)
    times.add(0.75, 2)
    assert times.points == [(0.0, 0), (0.5, 1), (0.75, 2), (0.75, 3)]
    assert TokenTimes().points == [(0.0, 0)]


def test_names_are_those_that_people_know() -> None:
    csv, png = run_names(Path("logs"), Path("img"), 3, "meta-llama/Meta-Llama-3-8B", 4)
    assert csv == Path("logs/tokens_time_samples_3nodes_Meta-Llama-3-8B_4samples.csv")
    assert png == Path("img/tokens_time_3nodes_Meta-Llama-3-8B_4samples.png")
    assert run_names(Path(), Path(), 1, "NanoLlama", 1)[1].name == "tokens_time_1nodes_NanoLlama_1samples.png"


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.0, "0"), (0.25, "0.25"), (3661.000004, "3661.000004"), (10.0, "10"), (1e-9, "0")]
)
def test_seconds_are_written_to_the_microsecond(seconds: float, text: str) -> None:
    assert format_seconds(seconds) == text


def test_a_token_csv_is_read_back_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "new" / "tokens.csv"
    points = [(0.0, 0), (0.125, 1), (12345.678901, 2)]
    write_token_csv(path, points)
    assert path.read_text(encoding="utf-8") == "0,0\n0.125,1\n12345.678901,2\n"
    assert read_token_csv(path) == points


@pytest.mark.parametrize("content", [b"", b"0,0\nx,1\n", b"0,0\n1\n", b"0,0\n1,2,3\n", b"\xff"])
def test_a_damaged_token_csv_is_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "tokens.csv"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"tokens\.csv"):
        read_token_csv(path)


def test_a_missing_token_csv_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        read_token_csv(tmp_path / "none.csv")


# --- plots ---


def test_several_runs_are_drawn_into_one_plot(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    path = tmp_path / "img" / "plot.png"
    plot_token_times(path, {f"{n} nodes": [(0.0, 0), (1.0, 10 * n)] for n in (1, 2, 3)})
    assert png_size(path) == (1200, 750)
    assert list(path.parent.iterdir()) == [path]
    assert not recwarn.list


def test_a_plot_of_nothing_is_drawn(tmp_path: Path) -> None:
    plot_token_times(tmp_path / "plot.png", {})
    assert png_size(tmp_path / "plot.png") == (1200, 750)


def test_only_drawing_imports_the_plotting_library() -> None:
    code = (
        "import mdi.cli.report, mdi.progress, sys\n"
        "with mdi.progress.progress_bar(2, 'x') as advance: advance(1)\n"
        "assert not {'matplotlib', 'tqdm', 'torch'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], cwd=SRC, check=True, stderr=subprocess.DEVNULL)


# --- run statistics ---

STATS = RunStats(3, 22, 500, 12.5, timestamp=datetime.datetime(2025, 1, 2, 3, 4, 5, 678))
LINE = "2025-01-02 03:04:05,3,22,500,12.5\n"


def test_run_statistics_are_appended_below_one_header(tmp_path: Path) -> None:
    path = tmp_path / "new" / "runs.csv"
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


# --- samples as JSON ---

RECORD = SampleRecord(0, "Who?", "Ein schöner Tag ✓\n", 3, [5, 6], "stop", 0.5)
SUMMARY = RunSummary(3, 1, 2, 0.5, 4.0, 10137, 0)


def test_each_sample_is_in_the_file_as_soon_as_it_is_written(tmp_path: Path) -> None:
    path = tmp_path / "new" / "out.jsonl"
    with SampleWriter(path) as writer:
        assert path.read_bytes() == b""
        writer.write_sample(RECORD)
        assert json.loads(path.read_text(encoding="utf-8")) == {
            "sample": 0,
            "prompt": "Who?",
            "completion": "Ein schöner Tag ✓\n",
            "prompt_tokens": 3,
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


def test_a_full_disk_is_one_line() -> None:
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("this system has no /dev/full")
    with pytest.raises(StorageError, match="no space left"), SampleWriter(full) as writer:
        writer.write_sample(RECORD)


def test_folders_that_cannot_be_written_are_one_line(no_folder: Path) -> None:
    for attempt in (
        lambda: write_token_csv(no_folder / "a.csv", [(0.0, 0)]),
        lambda: plot_token_times(no_folder / "a.png", {}),
        lambda: append_run_csv(no_folder / "a.csv", STATS),
        lambda: SampleWriter(no_folder / "a.jsonl"),
    ):
        with pytest.raises(StorageError, match="below") as caught:
            attempt()
        assert "\n" not in str(caught.value)


# --- progress ---


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_bar_is_drawn_on_a_terminal_and_leaves_no_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    before = threading.active_count()
    with progress_bar(2_000_000, "download", "B") as advance:
        advance(2_000_000)
    assert "download: 100%" in terminal.getvalue()
    assert "2.00M/2.00M" in terminal.getvalue()
    assert threading.active_count() == before


def test_no_bar_is_drawn_anywhere_else(monkeypatch: pytest.MonkeyPatch) -> None:
    log = io.StringIO()
    monkeypatch.setattr(sys, "stderr", log)
    with progress_bar(None, "download") as advance:
        advance(1)
    assert log.getvalue() == ""
