"""Training: it learns, goes on exactly where it stood, on several processes too, and leaves models that others load."""

import csv
import itertools
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from litgpt.config import Config

from mdi.checkpoint.config import load_config, save_config
from mdi.checkpoint.digests import content_digest, digest_of_lines, read_digests
from mdi.checkpoint.tensor_file import open_weights
from mdi.checkpoint.weights import MODEL_FILE
from mdi.config.options import PrepareDataOptions, TrainOptions
from mdi.errors import CheckpointError, ConfigError, TrainingError
from mdi.model.architecture import ModelConfig
from mdi.model.backends.torch_span import TorchSpan
from mdi.model.build import Placement
from mdi.model.gpt2 import gpt2_config
from mdi.model.head import EmbeddingAndHead
from mdi.model.shapes import model_shapes
from mdi.model.span import Span
from mdi.segments import Segment
from mdi.train.checkpoints import LOG_FILE, STATE_FILE, save_best
from mdi.train.dataset import TRAIN_FILE
from mdi.train.model import build_model, draw_weights
from mdi.train.prepare_data import prepare_data
from mdi.train.run import train
from mdi.train.schedule import learning_rate
from support.models import BASE
from support.paths import ROOT, SRC

SHAKESPEARE = ROOT / "data" / "shakespeare"
N_CHARACTERS = 63  # of the shipped text
UNTRAINED = 4.14  # log of that
SMALL: dict[str, Any] = {"device": "cpu", "batch_size": 4, "max_iters": 8, "ckpt_interval": 4, "log_interval": 1}
SMALL |= {"eval_iters": 2, "lr": 1e-2}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare_data(PrepareDataOptions(data=SHAKESPEARE, out=tmp_path_factory.mktemp("data") / "characters"))[0]


def gpt2() -> ModelConfig:
    return gpt2_config("tiny", n_layer=2, n_head=2, n_embd=16, block_size=16, vocab_size=N_CHARACTERS)


def llama() -> ModelConfig:
    sizes = {"n_layer": 2, "block_size": 16, "vocab_size": N_CHARACTERS, "padded_vocab_size": N_CHARACTERS}
    return Config(**{**BASE, **sizes})


def begun(folder: Path, config: ModelConfig) -> Path:
    """A folder with the shape that is to be trained."""
    folder.mkdir(parents=True)
    save_config(config, folder)
    return folder


def run(folder: Path, dataset: Path, n_steps: int = 1000, **options: Any) -> str | None:
    """Train; Ctrl-C comes after `n_steps`."""
    checks = itertools.count()
    return train(TrainOptions(ckpt=folder, dataset=dataset, **{**SMALL, **options}), lambda: next(checks) >= n_steps)


@torch.inference_mode()
def ring_logits(folder: Path, ids: list[int]) -> torch.Tensor:
    """What a ring of one node computes for each position (T, V)."""
    config, placement = load_config(folder), Placement(torch.device("cpu"), torch.float32)
    weights = open_weights(folder / MODEL_FILE)
    span = TorchSpan(config, Span(0, config.n_layer), weights, placement)
    head = EmbeddingAndHead(config, weights, placement)
    span.allocate(1, len(ids))
    rows = head.embed(ids, range(len(ids)))
    return head.logits(span.forward(rows, [Segment(0, 0, len(ids), len(ids))]))


def losses(folder: Path) -> list[tuple[str, str, str]]:
    """Step, loss of training and of validation, of each row of the log, to the last digit."""
    with (folder / LOG_FILE).open() as file:
        return [(row["iter"], row["train_loss"], row["val_loss"]) for row in csv.DictReader(file)]


def last_weights(folder: Path) -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = torch.load(folder / STATE_FILE, weights_only=True)["model"]
    return state


@pytest.mark.parametrize("config", [gpt2(), llama()], ids=["gpt2", "llama"])
def test_a_run_that_is_stopped_goes_on_exactly(config: ModelConfig, dataset: Path, tmp_path: Path) -> None:
    whole, broken = begun(tmp_path / "whole", config), begun(tmp_path / "broken", config)
    run(whole, dataset)
    run(broken, dataset, n_steps=5)
    assert [step for step, loss, _ in losses(broken) if loss] == ["1", "2", "3", "4", "5"]
    run(broken, dataset, init="resume")
    assert losses(broken) == losses(whole)
    assert content_digest(broken / MODEL_FILE) == content_digest(whole / MODEL_FILE)
    assert all(map(torch.equal, last_weights(broken).values(), last_weights(whole).values()))


@pytest.mark.parametrize("config", [gpt2(), llama()], ids=["gpt2", "llama"])
def test_a_trained_model_has_the_files_of_a_prepared_one(config: ModelConfig, dataset: Path, tmp_path: Path) -> None:
    folder = begun(tmp_path / "model", config)
    assert run(folder, dataset, max_iters=4) is not None
    assert load_config(folder) == config
    weights = open_weights(folder / MODEL_FILE)
    assert {name: tensor.shape for name, tensor in weights.meta.items()} == model_shapes(config)
    assert digest_of_lines(read_digests(folder / MODEL_FILE) or {}) == content_digest(folder / MODEL_FILE)
    assert (folder / "tokenizer.json").read_bytes() == (dataset / "tokenizer.json").read_bytes()


@pytest.mark.slow
def test_a_character_model_learns_the_shipped_text_and_is_tuned_further(dataset: Path, tmp_path: Path) -> None:
    folder = begun(tmp_path / "model", gpt2())
    run(folder, dataset, max_iters=150, batch_size=16, ckpt_interval=75, log_interval=50)
    validated = [float(loss) for _, _, loss in losses(folder) if loss]
    assert validated[-1] < 3.0 < UNTRAINED
    tuned = tmp_path / "tuned"
    run(tuned, dataset, init="finetune", model=str(folder), max_iters=1, ckpt_interval=1, lr=1e-4)
    (first,) = [float(loss) for _, loss, _ in losses(tuned) if loss]
    assert first < 3.3


@pytest.mark.parametrize("config", [gpt2(), llama()], ids=["gpt2", "llama"])
def test_what_is_trained_is_what_the_ring_computes(config: ModelConfig, tmp_path: Path) -> None:
    folder = begun(tmp_path / "model", config)
    model = build_model(config)
    draw_weights(model, config, seed=1)
    save_best(folder, model)
    ids = list(range(10))
    trained = model(torch.tensor([ids]))[0].detach()
    torch.testing.assert_close(trained, ring_logits(folder, ids), atol=1e-5, rtol=1e-5)


def test_the_learning_rate_warms_up_and_falls_to_its_least() -> None:
    rates = [learning_rate(i, lr=1.0, min_lr=0.1, warmup_iters=4, max_iters=20) for i in range(25)]
    assert rates[:4] == pytest.approx([0.2, 0.4, 0.6, 0.8])
    assert rates[4] == max(rates) == 1.0
    assert rates[12] == pytest.approx(0.55)
    assert sorted(rates[4:], reverse=True) == rates[4:]
    assert rates[20:] == [0.1] * 5


def test_patience_ends_a_run_that_gets_no_better(dataset: Path, tmp_path: Path) -> None:
    folder = begun(tmp_path / "model", gpt2())
    run(folder, dataset, lr=1e-12, weight_decay=0, patience=2, ckpt_interval=1, max_iters=50)
    assert 2 <= len([loss for _, _, loss in losses(folder) if loss]) < 50


def test_a_loss_that_is_no_number_ends_the_run(dataset: Path, tmp_path: Path) -> None:
    folder = begun(tmp_path / "model", gpt2())
    with pytest.raises(TrainingError, match=r"the loss is (nan|inf) at step"):
        run(folder, dataset, lr=1e12, warmup_iters=0, max_iters=50, grad_clip=1e12)


def test_a_training_is_not_replaced_by_another(dataset: Path, tmp_path: Path) -> None:
    folder = begun(tmp_path / "model", gpt2())
    with pytest.raises(CheckpointError, match="no training to resume"):
        run(folder, dataset, init="resume")
    run(folder, dataset, max_iters=1)
    with pytest.raises(ConfigError, match="holds a training: go on by --init resume"):
        run(folder, dataset)
    run(folder, dataset, init="resume", max_iters=2, batch_size=1, force_old=True)  # of one step, which is done
    assert len([loss for _, loss, _ in losses(folder) if loss]) == 1
    (folder / STATE_FILE).write_bytes((folder / STATE_FILE).read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=f"{STATE_FILE}: damaged"):
        run(folder, dataset, init="resume")


def test_data_that_do_not_fit_the_model_are_one_line(dataset: Path, tmp_path: Path) -> None:
    small = gpt2_config("tiny", n_layer=1, n_head=2, n_embd=16, block_size=16, vocab_size=N_CHARACTERS - 1)
    with pytest.raises(ConfigError, match="has ids of a vocabulary of 63, the model one of 62"):
        run(begun(tmp_path / "small", small), dataset)
    long = gpt2_config("tiny", n_layer=1, n_head=2, n_embd=16, block_size=50000, vocab_size=N_CHARACTERS)
    with pytest.raises(ConfigError, match=r"val\.bin: has 40044 tokens, too few for a context of 50000"):
        run(begun(tmp_path / "long", long), dataset)
    with pytest.raises(ConfigError, match="--context-length 17: the model has 16 positions"):
        run(begun(tmp_path / "other", gpt2()), dataset, context=17)
    with pytest.raises(ConfigError, match="--model: say which shape"):
        run(tmp_path / "nothing", dataset)


def test_tokens_above_the_vocabulary_are_told(dataset: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "data"
    damaged.mkdir()
    for path in dataset.iterdir():
        (damaged / path.name).write_bytes(path.read_bytes())
    np.full(len(np.fromfile(damaged / TRAIN_FILE, "<u2")), 999, "<u2").tofile(damaged / TRAIN_FILE)
    with pytest.raises(ConfigError, match="has the token 999, the model 63"):
        run(begun(tmp_path / "model", gpt2()), damaged)


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"ckpt": None}, "--ckpt: say which folder"),
        ({"dataset": None}, "--dataset: say which tokens"),
        ({"init": "new"}, "--init new: expected one of scratch, resume, hf, finetune"),
        ({"init": "finetune"}, "--init finetune needs --model"),
        ({"strategy": "dp"}, "--strategy dp: expected one of auto, ddp"),
        ({"batch_size": 0}, "--batch-size 0: must be a number from 1"),
        ({"context": 0}, "--context-length 0: must be a number from 1"),
        ({"patience": 0}, "--patience 0: must be a number from 1"),
        ({"lr": 0.0}, "--lr 0.0: must be above 0"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        TrainOptions(**{"ckpt": Path("model"), "dataset": Path("data"), **options})


# ---- whole programs


def command(folder: Path, dataset: Path, **options: Any) -> list[str]:
    given = {"ckpt": folder, "dataset": dataset, **SMALL, **options}
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in given.items()]
    return [sys.executable, str(SRC / "train.py"), *flags]


@pytest.fixture
def environment() -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1"}


@pytest.mark.slow
def test_two_processes_give_the_losses_of_one_that_accumulates_twice_as_much(
    dataset: Path, tmp_path: Path, environment: dict[str, str]
) -> None:
    one, two = begun(tmp_path / "one", gpt2()), begun(tmp_path / "two", gpt2())
    run(one, dataset, grad_acc_steps=2, max_iters=4, eval_iters=4)
    flags = {"devices": 2, "strategy": "ddp", "max_iters": 4}
    done = subprocess.run(command(two, dataset, **flags), capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("4 steps") == 1

    def numbers(folder: Path) -> list[float]:
        return [float(value) for _, *values in losses(folder) for value in values if value]

    assert len(numbers(one)) == 5
    assert numbers(two) == pytest.approx(numbers(one), abs=1e-5)


@pytest.mark.slow
def test_a_killed_process_is_resumed_and_ctrl_c_saves(
    dataset: Path, tmp_path: Path, environment: dict[str, str]
) -> None:
    folder = begun(tmp_path / "model", gpt2())

    def end_after(signal_number: int, n_rows: int, **options: Any) -> int:
        lines = command(folder, dataset, max_iters=10**6, ckpt_interval=3, **options)
        process = subprocess.Popen(lines, stderr=subprocess.PIPE, text=True, env=environment)
        assert process.stderr is not None
        with process.stderr:
            for line in process.stderr:
                n_rows -= "step" in line
                if n_rows <= 0:
                    break
            process.send_signal(signal_number)
            process.stderr.read()
        return process.wait(60)

    assert end_after(signal.SIGKILL, 20) == -signal.SIGKILL
    saved = torch.load(folder / STATE_FILE, weights_only=True)["progress"]["step"]
    assert saved >= 12
    assert end_after(signal.SIGINT, 5, init="resume") == 130
    steps = [int(step) for step, loss, _ in losses(folder) if loss]
    assert steps == list(range(1, len(steps) + 1))
    assert torch.load(folder / STATE_FILE, weights_only=True)["progress"]["step"] == steps[-1] > saved
