"""What is recorded of a run: whole rows, whatever happened before, and scalars for TensorBoard where there is one."""

import importlib.machinery
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from mdi.cli.loss_plot import PLOT_FILE, plot_losses
from mdi.errors import StorageError
from mdi.train.records import LOG_FIELDS, LOG_FILE, TENSORBOARD_FOLDER, Records, read_log

ROW = {"iter": 3, "seconds": "0.5", "train_loss": "4.0"}


def test_rows_behind_the_resumed_step_and_cut_rows_are_left_out(tmp_path: Path) -> None:
    records = Records(tmp_path, 0)
    for step in range(1, 6):
        records.write(**ROW | {"iter": step})
    log = tmp_path / LOG_FILE
    log.write_text(log.read_text() + "4,0.6,3.9\nx,,,,,,,\n4,0.6,3.9,,,,,\n4,0.6,3.9,,,,,0.")
    Records(tmp_path, 4)
    assert [row["iter"] for row in read_log(tmp_path)] == ["1", "2", "3", "4", "4"]


def test_a_log_of_an_earlier_version_is_gone_on_with(tmp_path: Path) -> None:
    (tmp_path / LOG_FILE).write_text("iter,train_loss\n1,4.0\n2,3.5\n")
    Records(tmp_path, 1).write(iter=2, mfu="0.5")
    first, second = read_log(tmp_path)
    assert (first["train_loss"], first["mfu"], second["mfu"]) == ("4.0", "", "0.5")
    assert tuple(first) == LOG_FIELDS


def test_a_full_disk_is_one_line(tmp_path: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    records = Records(tmp_path, 0)
    (tmp_path / LOG_FILE).unlink()
    (tmp_path / LOG_FILE).symlink_to("/dev/full")
    with pytest.raises(StorageError, match=r"training\.csv: no space left on the disk"):
        records.write(**ROW)


def test_losses_are_drawn(tmp_path: Path) -> None:
    records = Records(tmp_path, 0)
    plot_losses(tmp_path)  # nothing yet
    for step in range(1, 4):
        records.write(**ROW | {"iter": step, "val_loss": "3.0" if step == 2 else ""})
    plot_losses(tmp_path)
    assert (tmp_path / PLOT_FILE).read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


class Writer:
    """In place of TensorBoard's: remembers what it is given."""

    def __init__(self, folder: str, purge_step: int | None) -> None:
        self.folder, self.purge_step, self.is_closed = folder, purge_step, False
        self.scalars: list[tuple[str, float, int]] = []

    def add_scalar(self, name: str, value: float, step: int) -> None:
        self.scalars.append((name, value, step))

    def close(self) -> None:
        self.is_closed = True


@pytest.fixture
def writers(monkeypatch: pytest.MonkeyPatch) -> list[Writer]:
    """TensorBoard is installed; the writers that it makes."""
    made: list[Writer] = []

    def make(*args: Any, **options: Any) -> Writer:
        made.append(Writer(*args, **options))
        return made[-1]

    tensorboard, of_torch = ModuleType("tensorboard"), ModuleType("torch.utils.tensorboard")
    tensorboard.__spec__ = importlib.machinery.ModuleSpec("tensorboard", None)
    of_torch.SummaryWriter = make  # type: ignore[attr-defined]
    for module in (tensorboard, of_torch):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    return made


def test_tensorboard_gets_the_scalars_of_each_row(tmp_path: Path, writers: list[Writer]) -> None:
    records = Records(tmp_path, 0)
    records.write(**ROW)
    records.close()
    (writer,) = writers
    assert (writer.folder, writer.purge_step) == (str(tmp_path / TENSORBOARD_FOLDER), None)
    assert writer.scalars == [("train_loss", 4.0, 3)]
    assert writer.is_closed
    Records(tmp_path, 3)
    assert writers[-1].purge_step == 4


def test_nothing_is_said_or_written_where_tensorboard_is_absent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    records = Records(tmp_path, 0)
    records.write(**ROW)
    records.close()
    assert [path.name for path in tmp_path.iterdir()] == [LOG_FILE]
    assert not recwarn.list
