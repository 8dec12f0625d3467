"""What is recorded of a run as it goes: a CSV log, and what TensorBoard shows where it is installed."""

import contextlib
import csv
import importlib.util
import io
from pathlib import Path
from typing import Any

from mdi.files import storage_error, write_text

LOG_FILE, TENSORBOARD_FOLDER = "training.csv", "tensorboard"
LOG_FIELDS = ("iter", "seconds", "train_loss", "val_loss", "perplexity", "lr", "tokens_per_s", "mfu")
_SHOWN = LOG_FIELDS[2:]  # by TensorBoard


class Records:
    """The records of one run. One that is resumed goes on behind the step that it is resumed from."""

    def __init__(self, folder: Path, step: int) -> None:
        """Raises `StorageError`."""
        self._path = folder / LOG_FILE
        buffer = io.StringIO()
        writer = csv.DictWriter(buffer, LOG_FIELDS, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(row for row in read_log(folder) if 0 < int(row["iter"]) <= step)
        write_text(self._path, buffer.getvalue())
        self._tensorboard = _tensorboard(folder, step)

    def write(self, **values: float | str) -> None:
        """Append a row; fields that are not given stay empty. Raises `StorageError`."""
        try:
            with self._path.open("a", encoding="utf-8", newline="") as file:
                csv.DictWriter(file, LOG_FIELDS, lineterminator="\n").writerow(values)
            if self._tensorboard is not None:
                for name in values.keys() & set(_SHOWN):
                    self._tensorboard.add_scalar(name, float(values[name]), int(values["iter"]))
        except OSError as exc:
            raise storage_error(self._path, exc) from exc

    def close(self) -> None:
        """Write what TensorBoard has not written yet."""
        if self._tensorboard is not None:
            with contextlib.suppress(OSError):  # a full disk, which has been told of a file that matters
                self._tensorboard.close()


def read_log(folder: Path) -> list[dict[str, str]]:
    """The rows of the CSV log, without one that a full disk or the end of the process has cut off."""
    path = folder / LOG_FILE
    if not path.is_file():
        return []
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError as exc:
        raise storage_error(path, exc) from exc
    rows = list(csv.DictReader(io.StringIO(text[: text.rfind("\n") + 1])))
    return [row for row in rows if None not in row and None not in row.values() and (row.get("iter") or "").isdecimal()]


def _tensorboard(folder: Path, step: int) -> Any | None:
    """TensorBoard's writer; None where TensorBoard is not installed."""
    if importlib.util.find_spec("tensorboard") is None:
        return None
    from torch.utils.tensorboard import SummaryWriter  # imports protobuf

    # What a run that was killed wrote of later steps is not shown any more.
    return SummaryWriter(str(folder / TENSORBOARD_FOLDER), purge_step=step + 1 if step else None)
