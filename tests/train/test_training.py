"""Training: it learns, goes on exactly where it stood, on several processes too, and leaves models that others load."""

import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mdi.checkpoint.config import load_config
from mdi.checkpoint.digests import content_digest, digest_of_lines, read_digests
from mdi.checkpoint.tensor_file import open_weights
from mdi.checkpoint.weights import MODEL_FILE
from mdi.cli.prepare import prepare
from mdi.config.lora import Lora
from mdi.config.prepare_options import PrepareOptions
from mdi.config.training_options import TrainOptions
from mdi.errors import CheckpointError, ConfigError, StorageError, TrainingError
from mdi.model.architecture import ModelConfig
from mdi.model.gpt2 import gpt2_config
from mdi.model.shapes import model_shapes
from mdi.train.checkpoints import STATE_FILE, Checkpoints
from mdi.train.dataset import TRAIN_FILE
from mdi.train.model import build_model, draw_weights
from mdi.train.schedule import learning_rate
from mdi.train.trainer import Trainer
from support.files import small_files_only
from support.paths import SRC
from support.training import (
    N_CHARACTERS,
    SMALL,
    begun,
    gpt2,
    last_weights,
    llama,
    losses,
    numbers,
    ring_logits,
    run,
)

UNTRAINED = 4.14  # log of the number of characters


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


def test_the_last_model_is_taken_by_other_programs_too(dataset: Path, tmp_path: Path) -> None:
    folder = begun(tmp_path / "model", llama())
    assert run(folder, dataset, max_iters=3, n_steps=2) == f"{folder}: 2 steps, not validated yet"
    run(folder, dataset, max_iters=3, init="resume")
    last, manifest = prepare(PrepareOptions(model=str(folder / "last"), n_nodes=2))
    assert manifest is not None
    assert [len(span) for span in manifest.spans] == [1, 1]
    model = build_model(llama())
    model.load_state_dict(last_weights(folder))
    trained = model(torch.tensor([[1, 2, 3]]))[0].detach()
    torch.testing.assert_close(trained, ring_logits(last, [1, 2, 3]), atol=1e-5, rtol=1e-5)
    assert (last / MODEL_FILE).stat().st_ino == (folder / STATE_FILE).stat().st_ino  # no room is taken


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
    Checkpoints(folder, is_adapted=False).save_best(model.state_dict())
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


def test_a_worse_model_replaces_a_better_one_if_that_is_asked_for(dataset: Path, tmp_path: Path) -> None:
    folder = begun(tmp_path / "model", gpt2())
    run(folder, dataset, max_iters=1)
    best = content_digest(folder / MODEL_FILE)
    run(folder, dataset, init="resume", max_iters=2, lr=1.0)
    first, worse = [float(loss) for _, _, loss in losses(folder) if loss]
    assert worse > first
    assert content_digest(folder / MODEL_FILE) == best
    run(folder, dataset, init="resume", max_iters=3, lr=1.0, always_update=True)
    assert content_digest(folder / MODEL_FILE) == content_digest(folder / "last" / MODEL_FILE) != best


def test_mixed_precision_goes_on_exactly(dataset: Path, tmp_path: Path) -> None:
    whole, broken = begun(tmp_path / "whole", gpt2()), begun(tmp_path / "broken", gpt2())
    run(whole, dataset, dtype="bfloat16", max_iters=4)
    run(broken, dataset, dtype="bfloat16", max_iters=4, n_steps=2)
    run(broken, dataset, dtype="bfloat16", max_iters=4, init="resume")
    assert losses(broken) == losses(whole)
    assert {weight.dtype for weight in last_weights(broken).values()} == {torch.float32}
    with pytest.raises(ConfigError, match="--dtype float16: not on the CPU"):
        run(broken, dataset, dtype="float16", init="resume")


def test_numbers_that_are_none_end_the_run_and_leave_the_last_checkpoint(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = begun(tmp_path / "model", gpt2())
    with pytest.raises(TrainingError, match=rf"the loss is (nan|inf) at step \d+: .* checkpoint is in {folder}"):
        run(folder, dataset, lr=1e12, warmup_iters=0, max_iters=50, grad_clip=1e12)
    assert all(weight.isfinite().all() for weight in last_weights(folder).values())

    def steep(trainer: Trainer, batch: Any) -> torch.Tensor:
        first = next(trainer._model.parameters())
        return (first * 0).sum().sqrt()  # 0, whose gradient is no number

    monkeypatch.setattr(Trainer, "_loss", steep)
    other = begun(tmp_path / "other", gpt2())
    with pytest.raises(TrainingError, match="the norm of the gradients is nan at step 0"):
        run(other, dataset)
    assert all(weight.isfinite().all() for weight in last_weights(other).values())


def test_a_full_disk_leaves_the_last_checkpoint(dataset: Path, tmp_path: Path) -> None:
    whole, full = begun(tmp_path / "whole", gpt2()), begun(tmp_path / "full", gpt2())
    run(whole, dataset)
    run(full, dataset, max_iters=8, n_steps=6)
    before = {path: path.read_bytes() for path in full.rglob("*.pth")}
    with small_files_only(), pytest.raises(StorageError, match=r"\.pth.* cannot be written: is the disk full\?"):
        run(full, dataset, init="resume")
    assert {path: path.read_bytes() for path in full.rglob("*.pth")} == before
    assert not list(full.rglob("*.partial"))
    run(full, dataset, init="resume")
    assert losses(full) == losses(whole)


def test_a_disk_that_is_full_from_the_start_is_noticed_there(dataset: Path, tmp_path: Path) -> None:
    folder = begun(tmp_path / "model", gpt2())
    with small_files_only(), pytest.raises(StorageError, match=rf"{STATE_FILE} cannot be written"):
        run(folder, dataset)
    assert losses(folder) == []


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


def test_a_model_is_not_replaced_by_a_training(dataset: Path, tmp_path: Path) -> None:
    folder = begun(tmp_path / "model", gpt2())
    run(folder, dataset, max_iters=1)
    (folder / STATE_FILE).unlink()
    with pytest.raises(ConfigError, match="holds a model, which training would replace"):
        run(folder, dataset)
    with pytest.raises(ConfigError, match="no prepared model there"):
        run(tmp_path / "tuned", dataset, init="hf", model=str(tmp_path))


@pytest.mark.parametrize("config", [gpt2(), llama()], ids=["gpt2", "llama"])
def test_a_prepared_model_is_checked_before_it_is_tuned(config: ModelConfig, dataset: Path, tmp_path: Path) -> None:
    base, tuned = begun(tmp_path / "model", config), {"init": "finetune", "model": str(tmp_path / "model")}
    run(base, dataset, max_iters=1)
    (base / "chat_template.jinja").write_text("{{ messages }}")
    run(tmp_path / "tuned", dataset, max_iters=1, **tuned)
    assert (tmp_path / "tuned" / "chat_template.jinja").is_file()
    tokens = tmp_path / "tokens"
    shutil.copytree(dataset, tokens)
    (tokens / "tokenizer.json").write_text("{}")
    with pytest.raises(ConfigError, match=rf"its tokens are not those of {base}: prepare the data with --tokenizer"):
        run(tmp_path / "other", tokens, **tuned)
    with pytest.raises(ConfigError, match=rf"its tokens are not those of {tmp_path / 'tuned'}"):
        run(tmp_path / "tuned", tokens, init="resume", max_iters=2)
    weights = dict(open_weights(base / MODEL_FILE))
    weights["transformer.ln_f.weight"] = weights["transformer.ln_f.weight"] + 1
    torch.save(weights, base / MODEL_FILE)
    with pytest.raises(CheckpointError, match=r"damaged: transformer\.ln_f\.weight is not what"):
        run(tmp_path / "other", dataset, **tuned)
    (base / MODEL_FILE).rename(base / "lit_model.int8.pth")
    with pytest.raises(CheckpointError, match=r"lit_model\.int8\.pth: holds int8 weights"):
        run(tmp_path / "other", dataset, **tuned)
    assert not (tmp_path / "other").exists()


def test_a_gpt2_with_a_head_of_its_own_is_refused(dataset: Path, tmp_path: Path) -> None:
    base = begun(tmp_path / "model", gpt2())
    run(base, dataset, max_iters=1)
    weights = dict(open_weights(base / MODEL_FILE))
    weights["lm_head.weight"] = weights["lm_head.weight"] + 1
    Checkpoints(base, is_adapted=False).save_best(weights)
    with pytest.raises(CheckpointError, match="its head is not its embedding"):
        run(tmp_path / "tuned", dataset, init="finetune", model=str(base))


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
    with pytest.raises(ConfigError, match=r"--model 'nanoGPT-8' is not .*nanoGPT-7"):
        run(tmp_path / "nothing", dataset, model="nanoGPT-8")
    with pytest.raises(ConfigError, match=rf"--dataset {tmp_path}: has no dataset\.json: make tokens"):
        run(tmp_path / "nothing", tmp_path)


def test_tokens_above_the_vocabulary_are_told(dataset: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "data"
    damaged.mkdir()
    for path in dataset.iterdir():
        (damaged / path.name).write_bytes(path.read_bytes())
    np.full(len(np.fromfile(damaged / TRAIN_FILE, "<u2")), 999, "<u2").tofile(damaged / TRAIN_FILE)
    with pytest.raises(ConfigError, match=rf"{TRAIN_FILE}: has the token 999, where the model knows 63"):
        run(begun(tmp_path / "model", gpt2()), damaged)


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"ckpt": None}, "--ckpt: say which folder"),
        ({"dataset": None}, "--dataset: say which tokens"),
        ({"init": "new"}, "--init new: expected one of scratch, resume, hf, finetune"),
        ({"init": "finetune"}, "--init finetune needs --model"),
        ({"lora": Lora(8, 16, 0)}, "--lora adapts a model that is there: give --init finetune"),
        ({"strategy": "dp"}, "--strategy dp: expected one of auto, ddp"),
        ({"strategy": "fsdp"}, "--strategy fsdp: gives each device a part"),
        ({"strategy": "fsdp", "devices": 2, "dtype": "float16"}, "--dtype is float32 or bfloat16"),
        ({"device": "cuda:1", "devices": 2}, "--device cuda:1 is one device"),
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
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_processes_give_the_losses_of_one_that_accumulates_twice_as_much(
    strategy: str, dataset: Path, tmp_path: Path, environment: dict[str, str]
) -> None:
    one, two = begun(tmp_path / "one", gpt2()), begun(tmp_path / "two", gpt2())
    run(one, dataset, grad_acc_steps=2, max_iters=4, eval_iters=4)
    flags = {"devices": 2, "strategy": strategy, "max_iters": 4}
    done = subprocess.run(command(two, dataset, **flags), capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("4 steps") == 1
    assert (two / "training.png").is_file()
    assert len(numbers(one)) == 5
    assert numbers(two) == pytest.approx(numbers(one), abs=1e-5)
    for folder in (one, two):  # what two processes have saved, one takes up
        run(folder, dataset, init="resume", grad_acc_steps=2, eval_iters=4, max_iters=6)
    assert numbers(two) == pytest.approx(numbers(one), abs=1e-5)


@pytest.mark.slow
def test_a_full_disk_ends_all_processes_with_one_line(
    dataset: Path, tmp_path: Path, environment: dict[str, str]
) -> None:
    folder = begun(tmp_path / "model", gpt2())

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))  # room for the weights, not for the optimizer

    lines = command(folder, dataset, devices=2)
    done = subprocess.run(
        lines, capture_output=True, text=True, env=environment, check=False, preexec_fn=limit, timeout=300
    )
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    (error,) = [line for line in done.stderr.splitlines() if "error" in line]
    assert error.startswith(f"error: {folder / STATE_FILE} cannot be written")
    assert torch.load(folder / STATE_FILE, weights_only=True)["progress"]["step"] == 0
