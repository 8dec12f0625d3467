"""What training leaves in its folder: the best model, as any other program takes it, and all that goes on with the run.

    model_config.yaml, lit_model.pth, tokenizer.json   the model with the least validation loss
    training.pth                                       the last weights, the optimizer and where the run stood
    training.csv                                       what was logged

Each file is replaced at once, so a process that is killed leaves whole files.
"""

import csv
import io
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mdi.checkpoint.digests import digests_file, record_digests
from mdi.checkpoint.weights import MODEL_FILE, write_errors
from mdi.config.options import TrainOptions
from mdi.documents import misfit
from mdi.errors import CheckpointError
from mdi.files import atomic_path, native_path, write_text
from mdi.strings import one_line

STATE_FILE, LOG_FILE = "training.pth", "training.csv"
LOG_FIELDS = ("iter", "seconds", "train_loss", "val_loss", "perplexity", "lr", "tokens_per_s")


@dataclass
class Progress:
    """Where a run stands."""

    step: int = 0  # steps done
    best_loss: float = float("inf")
    n_worse: int = 0  # validations since the best one
    seconds: float = 0.0  # spent, in all sessions


def save_best(folder: Path, model: nn.Module) -> None:
    """Replace the model that others load, and its digests."""
    target = folder / MODEL_FILE
    digests_file(target).unlink(missing_ok=True)  # those of the former model would call the new one damaged
    with write_errors(target), atomic_path(target) as partial:
        torch.save(model.state_dict(), native_path(partial))
    record_digests(target)


def save_state(
    folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, progress: Progress, settings: dict[str, Any]
) -> None:
    """Replace what the run can be resumed from."""
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
    with write_errors(folder / STATE_FILE), atomic_path(folder / STATE_FILE) as partial:
        torch.save(state | {"progress": asdict(progress), "settings": settings}, native_path(partial))


def read_state(folder: Path) -> dict[str, Any]:
    """What `save_state` wrote: tensors and plain values, nothing that is executed. Raises `CheckpointError`."""
    path = folder / STATE_FILE
    if not path.is_file():
        raise CheckpointError(f"{folder}: has no {STATE_FILE}, so there is no training to resume")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as exc:  # whatever a damaged pickle leads to
        raise CheckpointError(f"{path}: damaged: {one_line(exc)}") from exc
    expected = {"model": dict, "optimizer": dict, "progress": dict, "settings": dict}
    if not isinstance(state, dict) or any(not isinstance(state.get(key), kind) for key, kind in expected.items()):
        raise CheckpointError(f"{path}: was not written by this program's training")
    if problem := misfit(state["progress"], Progress) or misfit(state["settings"], TrainOptions):
        raise CheckpointError(f"{path}: damaged: {problem}")
    return state


def restore(folder: Path | None, load: Callable[[], object]) -> None:
    """Call `load`, which takes a part of the state. Raises `CheckpointError` where it is another model's."""
    try:
        load()
    except (RuntimeError, ValueError, KeyError, TypeError, AttributeError) as exc:
        raise CheckpointError(f"{folder}: {STATE_FILE} is another model's, or damaged: {one_line(exc)}") from exc


class TrainingLog:
    """The CSV log. A run that is resumed goes on behind the step that it is resumed from."""

    def __init__(self, folder: Path, step: int) -> None:
        self._path = folder / LOG_FILE
        rows = [row for row in self._rows() if int(row["iter"]) <= step] if step else []
        buffer = io.StringIO()
        writer = csv.DictWriter(buffer, LOG_FIELDS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        write_text(self._path, buffer.getvalue())

    def _rows(self) -> list[dict[str, str]]:
        if not self._path.is_file():
            return []
        with self._path.open(encoding="utf-8", newline="") as file:
            return [row for row in csv.DictReader(file) if (row.get("iter") or "").isdecimal() and None not in row]

    def write(self, **values: float | str) -> None:
        """Append a row; fields that are not given stay empty."""
        with self._path.open("a", encoding="utf-8", newline="") as file:
            csv.DictWriter(file, LOG_FIELDS, lineterminator="\n").writerow(values)
