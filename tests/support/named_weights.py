"""Tiny models in Hugging Face format whose weights follow from the names of their tensors.

Without this program's own packages: it is also used where transformers is, and litGPT cannot be.
"""

import json
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file


def write_folder(folder: Path, config: Mapping[str, Any], shapes: Mapping[str, Sequence[int]]) -> Path:
    """Write config.json and weights of these names and shapes."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    gemma = str(config["model_type"]).startswith("gemma")
    tensors = {name: _values(name, shape, 0.0 if gemma else 1.0) for name, shape in shapes.items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def _values(name: str, shape: Sequence[int], norm: float) -> torch.Tensor:
    """Uniform numbers, the same on every machine, with which a model neither dies out nor explodes."""
    numbers = torch.rand(*shape, generator=torch.Generator().manual_seed(zlib.crc32(name.encode()))) - 0.5
    if len(shape) == 2:
        is_embedding = any(word in name for word in ("embed", "wte", "wpe"))
        return numbers * (3.5 if is_embedding else 4.5 / shape[-1] ** 0.5)
    return numbers * 0.6 + (norm if ("norm" in name and name.endswith("weight")) or "ln_" in name else 0.0)
