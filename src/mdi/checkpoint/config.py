"""A model folder's configuration, checked before weights are touched."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml

from mdi.documents import read_yaml
from mdi.errors import CheckpointError
from mdi.files import write_text
from mdi.installation import program_name
from mdi.model import architecture
from mdi.model.architecture import ModelConfig, architecture_of
from mdi.model.shapes import head_shapes, layer_shapes
from mdi.strings import one_line

CONFIG_FILE = "model_config.yaml"
MAX_FILE_BYTES = 1 << 16

# Numbers that decide how long it takes and how much memory to look at a configuration, far above any known model's.
MAX_VALUES = {"n_layer": 10_000, "n_expert": 2048, "head_size": 1 << 16}
MAX_NUMBER = 2**31 - 1  # of any other whole number


def load_config(folder: Path) -> ModelConfig:
    """The model's configuration. Refuses what no stage can run, by name, before weights are touched."""
    path = folder / CONFIG_FILE
    if not path.is_file():
        raise CheckpointError(
            f"{folder}: no {CONFIG_FILE}, so this is not a prepared model; run {program_name('prepare_model')} first"
        )
    return _checked(_read_fields(path), str(path))


def save_config(config: ModelConfig, folder: Path) -> None:
    """Write the configuration where `load_config` and litgpt find it. Raises `StorageError`."""
    write_text(folder / CONFIG_FILE, yaml.safe_dump(config_to_dict(config)))


def _read_fields(path: Path) -> dict[str, Any]:
    values = read_yaml(path, MAX_FILE_BYTES, CheckpointError)
    if not isinstance(values, dict):
        raise CheckpointError(f"{path}: not a configuration that litgpt can run: it holds no fields")
    return values


def config_from_dict(values: Mapping[str, Any]) -> ModelConfig:
    """The configuration that a starter sent; raises `CheckpointError` where litgpt does not take it."""
    return _checked(values, "the starter's model")


def _checked(values: Mapping[str, Any], what: str) -> ModelConfig:
    try:
        _check_limits(values)  # before litgpt makes lists with an item for each layer
        config = architecture.config_from_dict(values)
        _refuse_latent_attention(config)
        _check_limits(config_to_dict(config))
        _build_parts(config)
    except CheckpointError:
        raise
    except Exception as exc:  # litgpt has no error type of its own: whatever a bad number leads to
        raise CheckpointError(f"{what}: not a configuration that litgpt can run: {one_line(exc)}") from exc
    return config


def config_to_dict(config: ModelConfig) -> dict[str, Any]:
    """The fields of a configuration as plain values."""
    return architecture_of(config).config_to_dict(config)


def _build_parts(config: ModelConfig) -> None:
    """Build what a stage will: litgpt checks a configuration only where it uses it, with errors of any type."""
    layer_shapes(config)
    head_shapes(config)
    architecture_of(config).rotary_tables(config, 1, torch.device("cpu"))


def _check_limits(values: Mapping[str, Any]) -> None:
    for name, value in values.items():
        limit = MAX_VALUES.get(name, MAX_NUMBER)
        if isinstance(value, int) and not 0 <= value <= limit:
            raise ValueError(f"{name} is {value}, not within 0 and {limit}")


def _refuse_latent_attention(config: ModelConfig) -> None:
    """Raise `CheckpointError` for the one kind of model that has no segment attention."""
    if config.latent_attention is not None:
        raise CheckpointError(f"{config.name}: models with latent attention (DeepSeek V2, V3 and R1) are not supported")


def find_models(root: Path) -> list[Path]:
    """The prepared model folders below `root`."""
    return sorted(path.parent for path in root.glob(f"*/*/{CONFIG_FILE}"))
