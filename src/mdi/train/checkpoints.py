"""What training leaves in its folder: the best and the last model, as other programs take them, and all that goes on.

    model_config.yaml, lit_model.pth, tokenizer.json   the model with the least validation loss
    training.pth                                       the last weights, the optimizer and where the run stood
    last/                                              the last model: its weights are those of training.pth
    training.csv                                       what was logged

Where adapters are trained, lora.json and lit_model.pth.lora stand in place of the model. Each file is replaced at once,
so a process that is killed leaves whole files.
"""

import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from mdi.checkpoint.adapters import ADAPTERS_FILE, AdapterFacts, write_facts
from mdi.checkpoint.config import save_config
from mdi.checkpoint.digests import digests_file, record_digests
from mdi.checkpoint.weights import MODEL_FILE, write_errors
from mdi.config.training_options import TrainOptions
from mdi.convert.lora import LAST_FOLDER
from mdi.convert.text_files import copy_text_files
from mdi.documents import misfit
from mdi.errors import CheckpointError
from mdi.files import atomic_path, native_path, storage_error
from mdi.model.architecture import ModelConfig
from mdi.strings import one_line

STATE_FILE = "training.pth"


@dataclass
class Progress:
    """Where a run stands."""

    step: int = 0  # steps done
    best_loss: float = float("inf")
    n_worse: int = 0  # validations since the best one
    seconds: float = 0.0  # spent on steps, in all sessions

    @property
    def has_best(self) -> bool:
        """Whether there is a model with the least validation loss yet."""
        return self.best_loss < float("inf")


@dataclass(frozen=True)
class State:
    """All that goes on with a run."""

    model: Mapping[str, torch.Tensor]
    optimizer: Mapping[str, Any]
    scaler: Mapping[str, Any]  # of the losses, in float16; else empty
    progress: Progress
    settings: Mapping[str, Any]


class Checkpoints:
    """The files of one run. Its first process alone calls what writes."""

    def __init__(self, folder: Path, *, is_adapted: bool) -> None:
        """`is_adapted` if the weights are those of adapters."""
        self.folder = folder
        self._weights_file = ADAPTERS_FILE if is_adapted else MODEL_FILE

    def begin_model(self, config: ModelConfig, texts: Path) -> None:
        """Write all that the best and the last model have besides weights; `texts` is the folder of the tokenizer.

        Raises `CheckpointError` where that is missing, `StorageError`.
        """
        for folder in self._folders():
            save_config(config, folder)
            copy_text_files(texts, folder)

    def begin_adapters(self, facts: AdapterFacts) -> None:
        """Write all that the best and the last adapters have besides weights. Raises `StorageError`."""
        for folder in self._folders():
            write_facts(folder, facts)

    def _folders(self) -> list[Path]:
        last = self.folder / LAST_FOLDER
        try:
            last.mkdir(parents=True, exist_ok=True)
        except OSError as exc:
            raise storage_error(last, exc) from exc
        return [self.folder, last]

    def save_best(self, weights: Mapping[str, torch.Tensor]) -> None:
        """Replace the weights that others load. Raises `StorageError`, and leaves the former ones."""
        target = self.folder / self._weights_file
        with write_errors(target), atomic_path(target) as partial:
            torch.save(dict(weights), native_path(partial))
            # Those of the former model would call the new one damaged.
            digests_file(target).unlink(missing_ok=True)
        if self._weights_file == MODEL_FILE:
            record_digests(target)

    def save_state(self, state: State) -> None:
        """Replace what the run can be resumed from, and the last model. Raises `StorageError`."""
        target = self.folder / STATE_FILE
        values = {**vars(state), "model": dict(state.model), "progress": asdict(state.progress)}
        with write_errors(target), atomic_path(target) as partial:
            torch.save(values, native_path(partial))
        self._publish_last()

    def _publish_last(self) -> None:
        """Give the state the name of a model in `last`: whoever loads models finds the weights in it.

        Where files can be linked that takes no room.
        """
        source, target = self.folder / STATE_FILE, self.folder / LAST_FOLDER / self._weights_file
        with atomic_path(target) as partial:
            partial.unlink()
            try:
                os.link(source, partial)
            except OSError:
                shutil.copyfile(source, partial)


def read_state(folder: Path) -> State:
    """What `save_state` wrote: tensors and plain values, nothing that is executed. Raises `CheckpointError`."""
    path = folder / STATE_FILE
    if not path.is_file():
        raise CheckpointError(f"{folder}: has no {STATE_FILE}, so there is no training to resume")
    try:
        values = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as exc:  # whatever a damaged pickle leads to
        raise CheckpointError(f"{path}: damaged: {one_line(exc)}") from exc
    names = ("model", "optimizer", "scaler", "progress", "settings")
    if not isinstance(values, dict) or any(not isinstance(values.get(name), dict) for name in names):
        raise CheckpointError(f"{path}: was not written by this program's training")
    if problem := misfit(values["progress"], Progress) or misfit(values["settings"], TrainOptions):
        raise CheckpointError(f"{path}: damaged: {problem}")
    state = {name: values[name] for name in names}
    return State(**state | {"progress": Progress(**values["progress"])})


def restore(folder: Path | None, load: Callable[[], object]) -> None:
    """Call `load`, which takes a part of the state. Raises `CheckpointError` where it is another model's."""
    try:
        load()
    except (RuntimeError, ValueError, KeyError, TypeError, AttributeError) as exc:
        raise CheckpointError(f"{folder}: {STATE_FILE} is another model's, or damaged: {one_line(exc)}") from exc
