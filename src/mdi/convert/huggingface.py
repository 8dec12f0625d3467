"""A folder in Hugging Face format becomes a litGPT folder, through litgpt's own conversion.

Added around that conversion, which `litgpt_conversion` runs: choosing litgpt's configuration, checking that all files
are present and whole, and verifying that the result has exactly the parameters of the model.
"""

import math
import re
import shutil
from collections.abc import Iterable
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import torch

from mdi.checkpoint.config import save_config
from mdi.checkpoint.disk_space import announce_weights
from mdi.checkpoint.tensor_file import open_weights
from mdi.checkpoint.weights import MODEL_FILE
from mdi.convert import gpt2
from mdi.convert.hf_configs import build_config, check_convertible, conversion_name, is_tied
from mdi.convert.hub import is_weight_file, read_config, wanted_files
from mdi.convert.hub_files import RECORDS_FOLDER
from mdi.convert.weight_files import open_weight_file
from mdi.documents import Fields, read_json
from mdi.errors import CheckpointError, ConfigError
from mdi.files import flush, storage_error
from mdi.model.gpt2 import Gpt2Config
from mdi.model.litgpt_modules import Config
from mdi.model.shapes import model_shapes
from mdi.model.tensors import TORCH_DTYPES, dtype_name

MAX_INDEX_BYTES = 64 << 20  # one line for each tensor


def link_or_copy(source: Path, folder: Path) -> None:
    """Populate `folder` from the user's own `source` folder in Hugging Face format.

    Small files are copied. Weights are linked, since only the conversion reads them, and copied where
    the file system has no links. Nothing in `source` changes, whatever is later done to `folder`.
    """
    try:
        for name in wanted_files(path.name for path in source.iterdir() if path.is_file()):
            (folder / name).unlink(missing_ok=True)
            if not (is_weight_file(name) and _linked(source / name, folder / name)):
                shutil.copyfile(source / name, folder / name)
    except OSError as exc:
        raise storage_error(Path(exc.filename or source), exc) from exc


def _linked(source: Path, target: Path) -> bool:
    try:
        target.symlink_to(source.resolve())
    except (OSError, NotImplementedError):
        return False
    return True


def check_small_files(folder: Path, model_name: str) -> tuple[Config, dict[str, Any]]:
    """What config.json tells of a conversion: litgpt's configuration of that name with its numbers, and itself.

    Raises `ConfigError` or `CheckpointError` for what `convert_folder` would refuse without looking at weights.
    """
    hf_config = read_config(folder)
    check_convertible(folder.name, hf_config)
    return build_config(hf_config, model_name, str(folder / "config.json")), hf_config


def announce_size(source: Path, folder: Path, *, model_name: str, dtype: str | None = None) -> None:
    """Say how much the model in `source` takes once it is converted, by its configuration; `dtype` as `convert_folder`.

    Raises `StorageError` where the disk of `folder` has less room, and as `check_small_files`.
    """
    config, hf_config = check_small_files(source, model_name)
    shapes = model_shapes(config)
    if is_tied(hf_config):
        del shapes["lm_head.weight"]
    stored = TORCH_DTYPES[dtype] if dtype else _stored_dtype(source)
    n_parameters = sum(math.prod(shape) for shape in shapes.values())
    announce_weights(folder, n_parameters * stored.itemsize, dtype_name(stored))


def _stored_dtype(source: Path) -> torch.dtype:
    weights = [name for name in wanted_files(path.name for path in source.iterdir()) if is_weight_file(name)]
    tensors = open_weight_file(source / next(name for name in weights if not name.endswith(".json")))
    return next(iter(tensors.meta.values())).dtype


def convert_folder(folder: Path, *, model_name: str, dtype: str | None = None) -> None:
    """Make the working folder `folder`, in Hugging Face format, a litGPT folder in place.

    `model_name` is what the model is called (`resolve_config_name`); `dtype` one of `DTYPES`, None for the stored one.
    Afterwards `folder` holds model_config.yaml, a verified lit_model.pth, and the tokenizer and
    configuration files it had; its weight files are gone. Call it on copies or links only.
    Raises `ConfigError` for unknown names, `CheckpointError` for missing, damaged or mismatching files,
    `StorageError` where `folder` cannot be written.
    """
    if dtype is not None and dtype not in TORCH_DTYPES:
        raise ConfigError(f"unknown dtype {dtype!r}: use one of {', '.join(TORCH_DTYPES)}")
    config, hf_config = check_small_files(folder, model_name)
    _normalize_weight_files(folder, hf_config)
    _run_conversion(folder, config, hf_config, dtype)
    save_config(config, folder)
    _verify(folder / MODEL_FILE, config)
    flush(folder / MODEL_FILE)  # durable before the weights that it was made from are removed
    _remove_sources(folder)


def _run_conversion(folder: Path, config: Config, hf_config: dict[str, Any], dtype: str | None) -> None:
    if isinstance(config, Gpt2Config):
        gpt2.run_conversion(folder, config, dtype, tied=is_tied(hf_config))
        return
    from mdi.convert.litgpt_conversion import run_conversion  # it imports lightning: seconds, and 125 MB

    named = replace(config, name=conversion_name(hf_config, config))
    run_conversion(folder, named, dtype, tied=is_tied(hf_config))


def _normalize_weight_files(folder: Path, hf_config: dict[str, Any]) -> None:
    """Leave exactly the weight files to convert, all present and whole."""
    names = {path.name for path in folder.iterdir()}
    weights = [name for name in wanted_files(names) if is_weight_file(name)]
    files = [folder / name for name in weights if not name.endswith(".json")]
    if not files:
        raise CheckpointError(f"{folder} has no weights in safetensors or .bin format")
    check_complete(folder, weights)
    for name in names - {file.name for file in files}:
        if is_weight_file(name):
            (folder / name).unlink()
    if hf_config.get("tie_word_embeddings") is False and not _has_head(chain(*map(open_weight_file, files))):
        raise CheckpointError(f"{folder} lacks lm_head.weight, which config.json does not tie: is a file missing?")


def _has_head(tensors: Iterable[str]) -> bool:
    return any(name.endswith(("lm_head.weight", "embed_out.weight")) for name in tensors)


def check_complete(folder: Path, weights: list[str]) -> None:
    """Raise `CheckpointError` unless every file is there that the index, or the numbering of the shards, speaks of."""
    expected = {name for name in weights if not name.endswith(".json")}
    for name in list(weights):
        if name.endswith(".json"):
            expected |= _indexed(folder / name)
        elif match := re.search(r"-(\d+)-of-(\d+)\.", name):
            number, total = match.groups()
            digits = range(1, int(total) + 1) if int(total) <= 10_000 else []
            expected |= {name.replace(f"-{number}-of-", f"-{i:0{len(number)}d}-of-") for i in digits}
    missing = sorted(name for name in expected if not (folder / name).is_file())
    if missing:
        raise CheckpointError(f"{folder} lacks {len(missing)} of {len(expected)} weight files: {missing[0]}")


def _indexed(index: Path) -> set[str]:
    fields = Fields(read_json(index, MAX_INDEX_BYTES, CheckpointError), str(index), CheckpointError)
    weight_map = fields.get("weight_map", lambda value: isinstance(value, dict), "names of files by tensor")
    if not all(isinstance(name, str) and name and Path(name).name == name for name in weight_map.values()):
        raise CheckpointError(f"{index} names files outside its own folder: refused")
    return set(weight_map.values())


def _verify(file: Path, config: Config) -> None:
    """`file` must hold exactly the model's parameters. Raises `CheckpointError` otherwise."""
    state = open_weights(file).meta
    expected = {name: tuple(shape) for name, shape in model_shapes(config).items()}
    missing, foreign = sorted(expected.keys() - state.keys()), sorted(state.keys() - expected.keys())
    advice = "is a weight file missing, or --model-name wrong?"
    if missing:
        raise CheckpointError(f"{len(missing)} of {len(expected)} parameters are missing: {missing[0]}; {advice}")
    if foreign:
        raise CheckpointError(f"{config.name} has no parameter {foreign[0]} ({len(foreign)} such); {advice}")
    for name, shape in expected.items():
        if tuple(state[name].shape) != shape:
            raise CheckpointError(f"{name} is {tuple(state[name].shape)}, {config.name} has {shape}; {advice}")
        if not state[name].is_floating_point() or state[name].itemsize < 2:
            raise CheckpointError(f"{name} is {state[name].dtype}: quantized weights cannot be converted")


def _remove_sources(folder: Path) -> None:
    """Remove the weight files, and what is left of a download."""
    for path in folder.iterdir():
        if is_weight_file(path.name):
            path.unlink()
    remove_download_records(folder)


def remove_download_records(folder: Path) -> None:
    """Remove what is left of a download, and the folders of the repo that are empty by now."""
    shutil.rmtree(folder / RECORDS_FOLDER, ignore_errors=True)
    for path in folder.iterdir():
        if path.is_dir() and not any(file.is_file() for file in path.rglob("*")):
            shutil.rmtree(path, ignore_errors=True)
