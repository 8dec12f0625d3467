"""Small models that are trained for some steps, and what came of it."""

import csv
import itertools
from pathlib import Path
from typing import Any

import torch
from litgpt.config import Config

from mdi.checkpoint.config import load_config, save_config
from mdi.checkpoint.tensor_file import open_weights
from mdi.checkpoint.weights import MODEL_FILE
from mdi.config.training_options import TrainOptions
from mdi.model.architecture import ModelConfig
from mdi.model.backends.torch_span import TorchSpan
from mdi.model.build import Placement
from mdi.model.gpt2 import gpt2_config
from mdi.model.head import EmbeddingAndHead
from mdi.model.span import Span
from mdi.segments import Segment
from mdi.train.checkpoints import STATE_FILE
from mdi.train.records import LOG_FILE
from mdi.train.run import train
from support.models import BASE
from support.paths import ROOT

SHAKESPEARE = ROOT / "data" / "shakespeare"
N_CHARACTERS = 63  # of that text
SMALL: dict[str, Any] = {"device": "cpu", "batch_size": 4, "max_iters": 8, "ckpt_interval": 4, "log_interval": 1}
SMALL |= {"eval_iters": 2, "lr": 1e-2}


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


def numbers(folder: Path) -> list[float]:
    """All losses of the log."""
    return [float(value) for _, *values in losses(folder) for value in values if value]


def last_weights(folder: Path) -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = torch.load(folder / STATE_FILE, weights_only=True)["model"]
    return state
