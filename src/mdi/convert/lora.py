"""Adapters that training made, and their model -> a litGPT folder of which no adapter is left."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from mdi.checkpoint.adapters import ADAPTERS_FILE, TARGETS, AdapterFacts, read_facts
from mdi.checkpoint.config import load_config, save_config
from mdi.checkpoint.digests import checked, expect_digest
from mdi.checkpoint.disk_space import announce_weights
from mdi.checkpoint.tensor_file import open_weights
from mdi.checkpoint.tensor_writer import Stored, TensorWriter
from mdi.checkpoint.weights import MODEL_FILE, open_whole_model, write_errors
from mdi.config.lora import Lora
from mdi.convert.text_files import copy_text_files
from mdi.errors import CheckpointError
from mdi.model.architecture import ModelConfig
from mdi.model.tensors import TORCH_DTYPES, dtype_name
from mdi.model.weights import Weights
from mdi.progress import progress_bar

LAST_FOLDER = "last"  # in that of a training: the adapters of the last step
_ADAPTED = "transformer.h.{}.attn.qkv."


def suggested_lora_name(source: Path) -> str:
    """The name of the merged model after the folder of its adapters."""
    source = source.resolve()
    return f"{source.parent.name}-{source.name}" if source.name == LAST_FOLDER else source.name


def adapter_layer(config: ModelConfig, lora: Lora) -> Any:
    """litgpt's module of queries, keys and values with an adapter. It has no memory behind its parameters."""
    from litgpt.lora import LoRAQKVLinear  # imports lightning

    with torch.device("meta"):
        return LoRAQKVLinear(
            config.n_embd,
            (config.n_head + 2 * config.n_query_groups) * config.head_size,
            config.head_size,
            config.n_head,
            config.n_query_groups,
            r=lora.r,
            lora_alpha=lora.alpha,
            lora_dropout=lora.dropout,
            enable_lora=tuple(name in TARGETS for name in ("query", "key", "value")),
            bias=False,
        )


def merge_adapters(source: Path, folder: Path, *, base: Path | None = None, dtype: str | None = None) -> None:
    """Write into the existing `folder` the model whose weights the adapters in `source` have changed.

    Args:
        base: where the model that they adapt is now; None: where it was when they were trained.
        dtype: one of `DTYPES`; None is that of the model.

    Raises `CheckpointError` where that model or an adapter is missing, damaged or another one, `StorageError`.
    """
    facts = read_facts(source)
    base = base or facts.base
    config = load_config(base)
    otherwise = f"{base}: is not the model that the adapters in {source} were trained for"
    weights = checked(open_whole_model(base, config), expect_digest(facts.base_digest, otherwise))
    adapters = _open_adapters(source, config, facts)
    sizes = [tensor.numel() * _dtype(tensor, dtype).itemsize for tensor in set(weights.meta.values())]
    announce_weights(folder, sum(sizes), dtype_name(_dtype(weights.meta["lm_head.weight"], dtype)))
    _write(folder / MODEL_FILE, weights, adapters, adapter_layer(config, facts.lora), dtype)
    weights.verify()
    save_config(config, folder)
    copy_text_files(base, folder)


def _open_adapters(source: Path, config: ModelConfig, facts: AdapterFacts) -> Weights:
    """The adapters of every layer, checked. Raises `CheckpointError`."""
    path = source / ADAPTERS_FILE
    adapters, layer = open_weights(path), adapter_layer(config, facts.lora)
    shapes = {
        _ADAPTED.format(i) + name: getattr(layer, name).shape
        for i in range(config.n_layer)
        for name in ("lora_A", "lora_B")
    }
    if {name: tensor.shape for name, tensor in adapters.meta.items()} != shapes:
        raise CheckpointError(f"{path}: its tensors are not the adapters of {config.n_layer} layers for {facts.base}")
    return adapters


def _write(target: Path, weights: Weights, adapters: Weights, layer: Any, dtype: str | None) -> None:
    """One tensor at a time. Two names of one tensor keep it."""
    stored: dict[int, Stored] = {}
    with (
        progress_bar(len(weights), "merging", "tensors") as advance,
        write_errors(target),
        TensorWriter(target) as writer,
    ):
        names = {}
        for name, tensor in _merged(weights, adapters, layer):
            key = id(weights.meta[name])
            if key not in stored:
                stored[key] = writer.store(tensor.to(_dtype(tensor, dtype)))
            names[name] = stored[key]
            advance(1)
        writer.finish(names)


def _merged(weights: Weights, adapters: Weights, layer: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """Each tensor of the model with what its adapter adds, summed in float32 and in the dtype of the model again."""
    for name in weights:
        tensor, prefix = weights[name], name.removesuffix("weight")
        if prefix + "lora_A" in adapters:
            layer.lora_A, layer.lora_B = (_parameter(adapters[prefix + part]) for part in ("lora_A", "lora_B"))
            layer.linear.weight, layer.merged = _parameter(tensor), False
            layer.merge()
            tensor = layer.linear.weight.detach().to(tensor.dtype)
        yield name, tensor


def _parameter(tensor: torch.Tensor) -> torch.nn.Parameter:
    """In float32, and in memory of its own."""
    return torch.nn.Parameter(tensor.to(torch.float32, copy=True), requires_grad=False)


def _dtype(tensor: torch.Tensor, dtype: str | None) -> torch.dtype:
    return TORCH_DTYPES[dtype] if dtype is not None else tensor.dtype
