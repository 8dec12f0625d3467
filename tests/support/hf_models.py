"""Tiny models in Hugging Face format whose weights follow from the names of their tensors."""

import json
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from mdi.checkpoint.config import config_from_dict, config_to_dict, load_config
from mdi.checkpoint.tensor_file import open_weights
from mdi.convert.hf_configs import resolve_config_name
from mdi.convert.huggingface import convert_folder
from mdi.model.backends.torch_span import TorchSpan
from mdi.model.build import Placement
from mdi.model.head import EmbeddingAndHead
from mdi.model.span import Span
from mdi.segments import Segment


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
        return numbers * (3.5 if "embed" in name else 4.5 / shape[-1] ** 0.5)
    return numbers * 0.6 + (norm if ("norm" in name and name.endswith("weight")) or "ln_" in name else 0.0)


@torch.inference_mode()
def our_logits(folder: Path, ids: Sequence[int], source_name: str = "me/tiny-finetune") -> torch.Tensor:
    """Convert a folder in place, and compute it as a secondary would: with the configuration from JSON. (T, V)"""
    convert_folder(
        folder, model_name=resolve_config_name(source_name, json.loads((folder / "config.json").read_text()), None)
    )
    config = config_from_dict(json.loads(json.dumps(config_to_dict(load_config(folder)))))
    weights, placement = open_weights(folder / "lit_model.pth"), Placement(torch.device("cpu"), torch.float32)
    span = TorchSpan(config, Span(0, config.n_layer), weights, placement)
    head = EmbeddingAndHead(config, weights, placement)
    span.allocate(1, len(ids))
    rows = head.embed(ids, range(len(ids)))
    return head.logits(span.forward(rows, [Segment(0, 0, len(ids), len(ids))]))
