"""A model that is trained through adapters: its own weights stay as they are."""

from typing import Any

import torch
from torch import nn

from mdi.config.lora import Lora
from mdi.convert.lora import adapter_layer
from mdi.model.architecture import ModelConfig


def add_adapters(model: Any, config: ModelConfig, lora: Lora, seed: int) -> None:
    """Freeze `model`, and give each layer an adapter. As long as that is not trained, the model computes the same."""
    model.requires_grad_(False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for block in model.transformer.h:
            layer = adapter_layer(config, lora)
            for name in ("lora_A", "lora_B"):
                setattr(layer, name, nn.Parameter(torch.empty(getattr(layer, name).shape)))
            layer.reset_parameters()
            layer.linear, block.attn.qkv = block.attn.qkv, layer
