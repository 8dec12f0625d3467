"""A model folder's configuration, checked before weights are touched."""

from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from litgpt.config import Config

from mdi.errors import CheckpointError
from mdi.model.shapes import ends_shapes, layer_weights, rotary_tables
from mdi.strings import one_line

CONFIG_FILE = "model_config.yaml"

# Numbers that decide how long it takes and how much memory to look at a configuration, far above any known model's.
MAX_VALUES = {"n_layer": 10_000, "n_expert": 2048, "head_size": 1 << 16}


def load_config(folder: Path) -> Config:
    """The model's configuration. Refuses what no stage can run, by name, before weights are touched."""
    path = folder / CONFIG_FILE
    if not path.is_file():
        raise CheckpointError(
            f"{folder}: no {CONFIG_FILE}, so this is not a prepared model; run prepare_model.py first"
        )
    return _checked(lambda: Config.from_file(path), str(path))


def config_from_dict(values: Mapping[str, Any]) -> Config:
    """The configuration that a starter sent; raises `CheckpointError` where litgpt does not take it."""
    return _checked(lambda: Config(**values), "the starter's model")


def _checked(make: Callable[[], Config], what: str) -> Config:
    try:
        config = make()
        _refuse_latent_attention(config)
        _check_limits(config)
        _build_parts(config)
    except CheckpointError:
        raise
    except Exception as exc:  # litgpt has no error type of its own: whatever a bad number leads to
        raise CheckpointError(f"{what}: not a configuration that litgpt can run: {one_line(exc)}") from exc
    return config


def config_to_dict(config: Config) -> dict[str, Any]:
    """The fields of a configuration as plain values."""
    return asdict(config)


def _build_parts(config: Config) -> None:
    """Build what a stage will: litgpt checks a configuration only where it uses it, with errors of any type."""
    layer_weights(config)
    ends_shapes(config)
    rotary_tables(config, 1, torch.device("cpu"))


def _check_limits(config: Config) -> None:
    for name, limit in MAX_VALUES.items():
        value = getattr(config, name)
        if value is not None and not 0 <= value <= limit:
            raise CheckpointError(
                f"{config.name}: not a configuration that litgpt can run: {name} is {value}, not within 0 and {limit}"
            )


def _refuse_latent_attention(config: Config) -> None:
    """Raise `CheckpointError` for the one kind of model that has no segment attention."""
    if config.latent_attention is not None:
        raise CheckpointError(f"{config.name}: models with latent attention (DeepSeek V2, V3 and R1) are not supported")


def find_models(root: Path) -> list[Path]:
    """The prepared model folders below `root`."""
    return sorted(path.parent for path in root.glob(f"*/*/{CONFIG_FILE}"))
