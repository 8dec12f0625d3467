"""Files that cannot be written are told before a run, and what they hold is kept until there is something to write."""

from collections.abc import Callable
from pathlib import Path

import pytest

from mdi.cli import output_files
from mdi.cli.output_files import check_output_files
from mdi.config.options import OutputOptions
from mdi.errors import ConfigError, StorageError


@pytest.mark.parametrize(
    "options",
    [
        lambda path: OutputOptions(output=path),
        lambda path: OutputOptions(time_run=path),
        lambda path: OutputOptions(timeline=path),
    ],
)
def test_a_folder_that_does_not_exist_is_told_at_once_and_not_created(
    options: Callable[[Path], OutputOptions], tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=r"^--[\w-]+ .*: the folder .*typo does not exist$"):
        check_output_files(options(tmp_path / "typo" / "file"))
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ConfigError, match="this is a folder"):
        check_output_files(options(tmp_path))


@pytest.mark.parametrize("name", ["LOGS_DIR", "IMAGES_DIR"])
def test_so_are_the_folders_of_plots(
    name: str, no_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(output_files, "LOGS_DIR", tmp_path / "logs")
    monkeypatch.setattr(output_files, "IMAGES_DIR", tmp_path / "img")
    check_output_files(OutputOptions(plots=True))
    assert [list(path.iterdir()) for path in (tmp_path / "logs", tmp_path / "img")] == [[], []]
    monkeypatch.setattr(output_files, name, no_folder)
    with pytest.raises(StorageError, match="below"):
        check_output_files(OutputOptions(plots=True))
    check_output_files(OutputOptions())


def test_what_a_file_holds_is_kept(tmp_path: Path) -> None:
    output, timeline = tmp_path / "out.jsonl", tmp_path / "trace.json"
    output.write_text("a run\n")
    timeline.write_text("another\n")
    check_output_files(OutputOptions(output=output, timeline=timeline))
    assert (output.read_text(), timeline.read_text()) == ("a run\n", "another\n")
    assert len(list(tmp_path.iterdir())) == 2
