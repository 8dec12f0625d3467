"""Weights that are made up, against those that are rounded one by one."""

import pytest
import torch
from litgpt.config import Config

from mdi.formats import MODES, Mode
from mdi.model.quant import load_weight, mode_for, quantize
from mdi.model.span import Span
from mdi.model.synthetic import synthetic_layers
from support.models import BASE


@pytest.mark.parametrize("mode", MODES)
def test_each_weight_is_what_rounding_it_would_give(mode: Mode) -> None:
    config, span = Config(**{**BASE, "n_embd": 64, "intermediate_size": 96}), Span(1, 2)
    exact, layers = (synthetic_layers(config, span, torch.float32, each) for each in ("none", mode))
    for name, tensor in exact.items():
        own_mode = mode_for(name, tensor.shape, mode)
        for suffix, part in quantize(tensor, own_mode).parts.items():
            assert layers[name + suffix].equal(part)
            assert layers.meta[name + suffix].dtype == part.dtype


@pytest.mark.parametrize("mode", MODES)
def test_weights_of_any_width_are_in_a_format(mode: Mode) -> None:
    """Where 32 does not divide it, a block is shorter than others."""
    config = Config(**{**BASE, "n_embd": 36, "intermediate_size": 50})
    layers = synthetic_layers(config, Span(0, 1), torch.float32, mode)
    for name in ("transformer.h.0.mlp.fc_1.weight", "transformer.h.0.mlp.proj.weight"):
        assert load_weight(layers, name).mode == ("none" if mode == "none" else "int8")
