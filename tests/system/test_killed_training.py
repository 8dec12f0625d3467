"""Training that is killed in one of its writes leaves whole files, and goes on from them exactly."""

import csv
import itertools
import signal
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch

from mdi.checkpoint.config import load_config, save_config
from mdi.checkpoint.digests import content_digest, digest_of_lines, read_digests
from mdi.checkpoint.tensor_file import open_weights
from mdi.checkpoint.weights import MODEL_FILE
from mdi.config.training_options import PrepareDataOptions, TrainOptions
from mdi.model.gpt2 import gpt2_config
from mdi.model.shapes import model_shapes
from mdi.train.prepare_data import prepare_data
from mdi.train.run import train
from support.paths import ROOT
from support.scripts import Process, Scripts, wait_until

pytestmark = pytest.mark.slow

CONFIG = gpt2_config("tiny", n_layer=2, n_head=2, n_embd=16, block_size=16, vocab_size=63)
OPTIONS: dict[str, Any] = {"device": "cpu", "batch_size": 4, "max_iters": 10**6, "eval_iters": 2, "log_interval": 1}
OPTIONS |= {"ckpt_interval": 1}  # so that it writes all the time
FIRST_STATE = 8  # writes: by then there is something to resume
PATIENCE_S = 300.0


def test_killed_training_leaves_whole_files_and_goes_on_exactly(tmp_path: Path, scripts: Scripts) -> None:
    dataset = prepare_data(PrepareDataOptions(data=ROOT / "data" / "shakespeare", out=tmp_path / "tokens"))[0]
    folder, whole = begun(tmp_path / "model"), begun(tmp_path / "whole")
    random = Random(13)
    steps = [0]
    for init in ("scratch", "resume"):
        process = start(scripts, folder, dataset, init)
        wait_for_writes(folder, random.randrange(FIRST_STATE, 3 * FIRST_STATE), process)
        process.kill()
        steps.append(saved_step(folder))
    process = start(scripts, folder, dataset, "resume", ckpt_interval=10**6)  # so that Ctrl-C alone saves
    process.wait_for(f"step {steps[-1] + 2}:", PATIENCE_S)
    process.send_signal(signal.SIGINT)
    assert process.wait(PATIENCE_S) == 130
    steps.append(saved_step(folder))
    assert steps == sorted(set(steps))
    assert not list(folder.glob(".training.pth.*.partial"))  # what the killed processes had begun to write
    checks = itertools.count()
    train(TrainOptions(ckpt=whole, dataset=dataset, **OPTIONS), lambda: next(checks) >= steps[-1])
    assert losses(folder) == [row for row in losses(whole) if row[1] or int(row[0]) <= steps[-2]]


def begun(folder: Path) -> Path:
    """A folder with the shape that is to be trained."""
    folder.mkdir()
    save_config(CONFIG, folder)
    return folder


def start(scripts: Scripts, folder: Path, dataset: Path, init: str, **options: Any) -> Process:
    given = {"ckpt": folder, "dataset": dataset, "init": init, **OPTIONS, **options}
    return scripts.start("train.py", *(f"--{name.replace('_', '-')}={value}" for name, value in given.items()))


def wait_for_writes(folder: Path, n_writes: int, process: Process) -> None:
    """Wait until so many temporary files have been seen in `folder`, the last of them now."""
    seen: set[str] = set()

    def has_seen() -> bool:
        seen.update(path.name for path in folder.glob(".*.partial"))
        return len(seen) >= n_writes or not process.alive

    wait_until(has_seen, PATIENCE_S, "it writes")
    assert process.alive, process.stderr


def saved_step(folder: Path) -> int:
    """Where a run stands by its files, which are whole."""
    digests = read_digests(folder / MODEL_FILE)
    assert digests is None or digest_of_lines(digests) == content_digest(folder / MODEL_FILE)
    assert open_weights(folder / MODEL_FILE).keys() == model_shapes(load_config(folder)).keys()
    return int(torch.load(folder / "training.pth", weights_only=True)["progress"]["step"])


def losses(folder: Path) -> list[tuple[str, str, str]]:
    """Step, loss of training and of validation, of each row of the log, to the last digit."""
    with (folder / "training.csv").open(encoding="utf-8") as file:
        return [(row["iter"], row["train_loss"], row["val_loss"]) for row in csv.DictReader(file)]
