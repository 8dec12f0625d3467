"""A run of training, from its options: the model, the data, the devices."""

from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from lightning.fabric import Fabric
from torch import nn

from mdi.checkpoint.config import CONFIG_FILE, load_config, save_config
from mdi.config.options import TrainOptions
from mdi.convert.random import named_config
from mdi.errors import ConfigError
from mdi.files import storage_error
from mdi.model.architecture import ModelConfig
from mdi.strings import count
from mdi.train.batches import Batches
from mdi.train.checkpoints import STATE_FILE, Progress, read_state, restore
from mdi.train.dataset import DatasetInfo, read_info
from mdi.train.model import build_model, draw_weights, load_weights
from mdi.train.trainer import Trainer
from mdi.train.vocabulary import copy_tokenizer

_PRECISIONS: Any = {"float32": "32-true", "bfloat16": "bf16-mixed", "float16": "16-mixed"}
_BETAS = (0.9, 0.95)


def train(options: TrainOptions, is_stopped: Callable[[], bool]) -> str | None:
    """Train as the options say; return where the run stands at its end, None in all processes but the first.

    Raises `ConfigError`, `CheckpointError`, `StorageError`, `TrainingError`.
    """
    folder, dataset = options.ckpt, options.dataset
    assert folder is not None and dataset is not None  # `TrainOptions` has checked it
    state = _former_state(options, folder)
    if state is not None and options.force_old:
        options = options.with_settings(state["settings"])
    info = read_info(dataset)
    config = _config_of(options, folder, info)
    batches = _batches_of(options, dataset, info, config)
    fabric = _fabric_of(options)
    fabric.launch()
    if state is None and fabric.is_global_zero:
        _begin_folder(options, folder, dataset, config)
    model, optimizer = _set_up(fabric, options, config, state)
    progress = Progress(**state["progress"]) if state is not None else Progress()
    Trainer(fabric, model, optimizer, batches, options, progress, folder).run(is_stopped)
    if not fabric.is_global_zero:
        return None
    return f"{folder}: {count(progress.step, 'step')}, best validation loss {progress.best_loss:.4f}"


def _former_state(options: TrainOptions, folder: Path) -> dict[str, Any] | None:
    """What is resumed, if anything. Raises `ConfigError` where a new run would replace another one."""
    if options.init == "resume":
        return read_state(folder)
    if (folder / STATE_FILE).is_file():
        raise ConfigError(f"--ckpt {folder}: holds a training: go on by --init resume, or choose another folder")
    return None


def _config_of(options: TrainOptions, folder: Path, info: DatasetInfo) -> ModelConfig:
    """From scratch a named shape with the vocabulary of the data, or what `folder` has; else that of the weights."""
    if options.init in ("hf", "finetune"):
        return load_config(Path(options.model or ""))
    if options.init == "resume" or (folder / CONFIG_FILE).is_file():
        return load_config(folder)
    if options.model is None:
        raise ConfigError("--model: say which shape to train, such as nanoGPT-7, gpt2 or pythia-14m")
    config = named_config(options.model)
    sizes = {"vocab_size": info.vocab_size, "padded_vocab_size": info.vocab_size}
    return replace(config, **sizes, block_size=options.context or config.block_size)


def _batches_of(options: TrainOptions, dataset: Path, info: DatasetInfo, config: ModelConfig) -> Batches:
    context = options.context or config.block_size
    if context > config.block_size:
        raise ConfigError(f"--context-length {context}: the model has {config.block_size} positions")
    size = {"batch_size": options.batch_size, "context": context, "vocab_size": config.padded_vocab_size}
    return Batches(dataset, info, **size)


def _begin_folder(options: TrainOptions, folder: Path, dataset: Path, config: ModelConfig) -> None:
    """All that the model's folder has but its weights."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        raise storage_error(folder, exc) from exc
    save_config(config, folder)
    copy_tokenizer(dataset if options.init == "scratch" else Path(options.model or ""), folder)


def _set_up(fabric: Fabric, options: TrainOptions, config: ModelConfig, state: dict[str, Any] | None) -> Any:
    """Fabric's model and optimizer, with the weights that the run begins with."""
    model = build_model(config)
    if state is not None:
        restore(options.ckpt, lambda: model.load_state_dict(state["model"]))
    elif options.init == "scratch":
        draw_weights(model, config, options.seed)
    else:
        load_weights(model, Path(options.model or ""))
    groups = _parameter_groups(model.parameters(), options.weight_decay)
    optimizer = torch.optim.AdamW(groups, lr=options.lr, betas=_BETAS)
    trained = torch.compile(model) if options.compile else model
    fabric_model, fabric_optimizer = fabric.setup(trained, optimizer)
    if state is not None:
        restore(options.ckpt, lambda: optimizer.load_state_dict(state["optimizer"]))
    return fabric_model, fabric_optimizer


def _fabric_of(options: TrainOptions) -> Fabric:
    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    kind, _, index = device.partition(":")
    dtype = options.dtype or ("bfloat16" if kind == "cuda" and torch.cuda.is_bf16_supported() else "float32")
    return Fabric(
        accelerator=kind,
        devices=[int(index)] if index else options.devices,
        strategy=options.strategy,
        precision=_PRECISIONS[dtype],
    )


def _parameter_groups(parameters: Iterable[nn.Parameter], weight_decay: float) -> list[dict[str, Any]]:
    """Matrices and embeddings decay; biases and norms do not."""
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    return [
        {"params": [parameter for parameter in trained if parameter.dim() >= 2], "weight_decay": weight_decay},
        {"params": [parameter for parameter in trained if parameter.dim() < 2], "weight_decay": 0.0},
    ]
