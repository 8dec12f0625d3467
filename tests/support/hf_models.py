"""What this program computes with a model in Hugging Face format."""

import json
from collections.abc import Sequence
from pathlib import Path

import torch

from mdi.checkpoint.config import config_from_dict, config_to_dict, load_config
from mdi.checkpoint.tensor_file import open_weights
from mdi.convert.hf_configs import resolve_config_name
from mdi.convert.huggingface import convert_folder
from mdi.model.backends.torch_span import TorchSpan
from mdi.model.build import Placement
from mdi.model.head import EmbeddingAndHead
from mdi.model.span import Span
from mdi.segments import Segment


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
