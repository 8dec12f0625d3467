"""Tokens over time, and their CSV."""

from pathlib import Path

import pytest

from mdi.cli.token_times import TokenTimes, comparison_image, read_token_csv, run_names, write_token_csv
from mdi.errors import ConfigError, StorageError


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
    with pytest.raises(ConfigError, match="no such file"):
        read_token_csv(tmp_path / "none.csv")


def test_a_comparison_with_a_note_is_not_replaced_by_one_without(tmp_path: Path) -> None:
    plain = comparison_image(tmp_path, "org/tiny", 3)
    assert plain.name == "tokens_time_comparison_tiny_3samples.png"
    assert comparison_image(tmp_path, "org/tiny", 3, has_note=True) != plain


def test_a_folder_that_cannot_be_written_is_one_line(no_folder: Path) -> None:
    with pytest.raises(StorageError, match="below") as caught:
        write_token_csv(no_folder / "a.csv", [(0.0, 0)])
    assert "\n" not in str(caught.value)
