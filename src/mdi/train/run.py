"""A run of training, from its options: the model, the data, the devices."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from lightning.fabric import Fabric
from torch import nn

from mdi.checkpoint.adapters import AdapterFacts, is_adapter
from mdi.config.training_options import TrainOptions
from mdi.errors import CheckpointError, ConfigError
from mdi.model.architecture import ModelConfig
from mdi.model.devices import memory_errors, pick_device
from mdi.model.tensors import TORCH_DTYPES
from mdi.strings import count
from mdi.train.batches import Batches
from mdi.train.beginning import Beginning, find_beginning
from mdi.train.checkpoints import Checkpoints, Progress, State, restore
from mdi.train.compilation import check_compiler
from mdi.train.dataset import DatasetInfo, read_info
from mdi.train.flops import flops_per_token, peak_of
from mdi.train.lora import add_adapters
from mdi.train.model import build_model, draw_weights, load_weights
from mdi.train.processes import EndedElsewhere, Processes, ProcessLost, lost_processes
from mdi.train.sharding import load_optimizer, sharding_strategy
from mdi.train.trainer import Trained, Trainer

_PRECISIONS: Any = {"float32": "32-true", "bfloat16": "bf16-mixed", "float16": "16-mixed"}
_BETAS = (0.9, 0.95)
_MEMORY_ADVICE = "use a smaller --batch-size with more --grad-acc-steps, or a shorter --context-length"


def train(options: TrainOptions, is_stopped: Callable[[], bool]) -> str | None:
    """Train as the options say; return where the run stands at its end, None in all processes but the first.

    Raises `ConfigError`, `CheckpointError`, `StorageError`, `TrainingError`, in the first process alone once there are
    several.
    """
    folder, dataset = options.ckpt, options.dataset
    assert folder is not None and dataset is not None  # `TrainOptions` has checked it
    info = read_info(dataset)
    beginning = find_beginning(options, folder, dataset, info)
    if beginning.state is not None and options.force_old:
        options = options.with_settings(beginning.state.settings)
    batches = _batches_of(options, dataset, info, beginning.config)
    fabric = _fabric_of(options)
    fabric.launch()
    is_first = fabric.is_global_zero
    try:
        with lost_processes(), memory_errors("training", _MEMORY_ADVICE):
            progress = _train(fabric, options, beginning, batches, folder, is_stopped)
    except (EndedElsewhere, ProcessLost):
        if is_first:
            raise
        return None
    if not is_first:
        return None
    best = f"best validation loss {progress.best_loss:.4f}" if progress.has_best else "not validated yet"
    return f"{folder}: {count(progress.step, 'step')}, {best}"


def _train(
    fabric: Fabric,
    options: TrainOptions,
    beginning: Beginning,
    batches: Batches,
    folder: Path,
    is_stopped: Callable[[], bool],
) -> Progress:
    processes, checkpoints = Processes(fabric), Checkpoints(folder, is_adapted=beginning.lora is not None)
    if options.compile:
        processes.together(lambda: check_compiler(fabric.device))
    model, base_digest = processes.together(lambda: _build(options, beginning))
    if beginning.state is None:
        processes.write(lambda: _begin_folder(checkpoints, beginning, base_digest))
    trained = _set_up(fabric, options, beginning, model)
    progress = beginning.state.progress if beginning.state is not None else Progress()
    Trainer(fabric, trained, batches, options, progress, checkpoints).run(is_stopped)
    return progress


def _batches_of(options: TrainOptions, dataset: Path, info: DatasetInfo, config: ModelConfig) -> Batches:
    context = options.context or config.block_size
    if context > config.block_size:
        raise ConfigError(f"--context-length {context}: the model has {config.block_size} positions")
    size = {"batch_size": options.batch_size, "context": context, "vocab_size": config.padded_vocab_size}
    return Batches(dataset, info, **size)


def _fabric_of(options: TrainOptions) -> Fabric:
    """Raises `ConfigError` where this machine has not the devices."""
    device = pick_device(options.device)
    n_there = {"cpu": options.devices, "cuda": torch.cuda.device_count()}.get(device.type, 1)
    if options.devices > n_there:
        raise ConfigError(f"--devices {options.devices}: torch finds {count(n_there, f'{device.type} device')} here")
    if (device.type, options.dtype) == ("cpu", "float16"):
        raise ConfigError("--dtype float16: not on the CPU; use bfloat16 or float32")  # Fabric would take bfloat16
    devices: Any = options.devices if device.index is None else [device.index]
    strategy: Any = sharding_strategy(options.devices) if options.strategy == "fsdp" else options.strategy
    precision = _PRECISIONS[_dtype_of(options, device)]
    return Fabric(accelerator=device.type, devices=devices, strategy=strategy, precision=precision)


def _dtype_of(options: TrainOptions, device: torch.device) -> str:
    """By default mixed precision where it needs no scaling of losses and is fast, on most GPUs."""
    if options.dtype is not None:
        return options.dtype
    return "bfloat16" if device.type == "cuda" and torch.cuda.is_bf16_supported() else "float32"


def _build(options: TrainOptions, beginning: Beginning) -> tuple[nn.Module, str]:
    """The model with the weights that the run begins with, and the digest of those of a prepared model."""
    config, state = beginning.config, beginning.state
    model, base_digest = build_model(config), ""
    if beginning.base is not None:
        base_digest = load_weights(model, config, beginning.base)
        if beginning.base_digest not in ("", base_digest):
            raise CheckpointError(f"{beginning.base}: is not the model that the adapters were trained for")
    elif state is None:
        draw_weights(model, config, options.seed)
    if beginning.lora is not None:
        add_adapters(model, config, beginning.lora, options.seed)
    if state is not None:
        restore(options.ckpt, lambda: _load_trained(model, state, beginning))
    return model, base_digest


def _load_trained(model: nn.Module, state: State, beginning: Beginning) -> None:
    """Raises `KeyError` or `RuntimeError` for the state of another model."""
    missing = model.load_state_dict(dict(state.model), strict=beginning.lora is None).missing_keys
    if absent := [name for name in missing if is_adapter(name)]:
        raise KeyError(f"{absent[0]} is missing")


def _begin_folder(checkpoints: Checkpoints, beginning: Beginning, base_digest: str) -> None:
    if beginning.lora is None:
        checkpoints.begin_model(beginning.config, beginning.texts)
    else:
        assert beginning.base is not None  # adapters adapt a model
        checkpoints.begin_adapters(AdapterFacts(beginning.base.resolve(), base_digest, beginning.lora))


def _set_up(fabric: Fabric, options: TrainOptions, beginning: Beginning, model: nn.Module) -> Trained:
    """Hand model and optimizer to Fabric; the model first, since its weights may be cut into parts."""
    config, state, is_adapted = beginning.config, beginning.state, beginning.lora is not None
    if options.compile:
        model.compile()  # in place, so the strategy wraps what is compiled: the wrapper of DDP cannot be
    fabric_model = fabric.setup_module(model)
    groups = _parameter_groups(fabric_model.parameters(), options.weight_decay)
    optimizer = torch.optim.AdamW(groups, lr=options.lr, betas=_BETAS)
    if state is not None:
        restore(options.ckpt, lambda: load_optimizer(optimizer, state.optimizer))
        if state.scaler:  # of a run in float16; one in another type does not look at it
            restore(options.ckpt, lambda: fabric.strategy.precision.load_state_dict(dict(state.scaler)))
    return Trained(
        fabric_model,
        fabric.setup_optimizers(optimizer),
        is_weight=is_adapter if is_adapted else lambda name: True,
        flops_per_token=flops_per_token(config, options.context or config.block_size, is_frozen=is_adapted),
        peak=peak_of(fabric.device, TORCH_DTYPES[_dtype_of(options, fabric.device)]),
    )


def _parameter_groups(parameters: Iterable[nn.Parameter], weight_decay: float) -> list[dict[str, Any]]:
    """Matrices and embeddings decay; biases and norms do not."""
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    return [
        {"params": [parameter for parameter in trained if parameter.dim() >= 2], "weight_decay": weight_decay},
        {"params": [parameter for parameter in trained if parameter.dim() < 2], "weight_decay": 0.0},
    ]
