"""How much of a device training uses: operations counted by torch, and peaks."""

from typing import Any

import pytest
import torch
from litgpt.config import Config
from torch.utils.flop_counter import FlopCounterMode

from mdi.config.lora import Lora
from mdi.model.architecture import ModelConfig
from mdi.train import flops
from mdi.train.flops import Peak, flops_per_token, peak_of
from mdi.train.lora import add_adapters
from mdi.train.model import build_model
from support.models import BASE, MOE
from support.training import gpt2, llama

CONTEXT = 16


def counted(config: ModelConfig, lora: Lora | None = None) -> float:
    """Operations of a token that torch counts in matrix products of a step, without those of attention."""
    model = build_model(config)
    if lora is not None:
        add_adapters(model, config, lora, seed=0)
    with FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, CONTEXT, dtype=torch.long)).sum().backward()
    products = {str(op): n for op, n in counter.get_flop_counts()["Global"].items()}
    return sum(products.get(op, 0) for op in ("aten.mm", "aten.addmm")) / CONTEXT


def of_attention(config: ModelConfig) -> float:
    return 12 * config.n_layer * config.n_head * config.head_size * CONTEXT


@pytest.mark.parametrize("config", [gpt2(), llama()], ids=["gpt2", "llama"])
def test_products_of_a_step_are_those_that_torch_counts(config: ModelConfig) -> None:
    assert flops_per_token(config, CONTEXT) - of_attention(config) == counted(config)


def test_frozen_weights_have_no_gradients() -> None:
    config = llama()
    frozen = flops_per_token(config, CONTEXT, is_frozen=True) - of_attention(config)
    own = counted(config, Lora(r=1, alpha=1, dropout=0))
    assert frozen == pytest.approx(own, rel=0.1)
    assert own < 0.8 * counted(config)


def test_a_token_asks_few_experts() -> None:
    config = Config(**{**BASE, **MOE})
    dense = {"mlp_class_name": "LLaMAMLP", "intermediate_size": 2 * MOE["moe_intermediate_size"]}
    gates = 6 * config.n_layer * config.n_embd * config.n_expert
    assert flops_per_token(config, CONTEXT) == flops_per_token(Config(**{**BASE, **dense}), CONTEXT) + gates


def test_the_peak_of_a_known_gpu_is_its_makers(monkeypatch: pytest.MonkeyPatch) -> None:
    def named(name: str) -> Peak:
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
        return peak_of(torch.device("cuda"), torch.bfloat16)

    measured: list[Any] = []
    monkeypatch.setattr(flops, "_measure", lambda *args: measured.append(args) or 5e12)
    known = named("NVIDIA A100-SXM4-80GB")
    assert (known, str(known)) == (Peak(312e12, is_measured=False), "peak of 312 TFLOP/s")
    for unknown in ("NVIDIA Z1", "GeForce RTX"):
        assert str(named(unknown)) == "measured peak of 5 TFLOP/s"
    assert len(measured) == 2


def test_a_cpu_is_measured(recwarn: pytest.WarningsRecorder) -> None:
    peak = peak_of(torch.device("cpu"), torch.float32)
    assert peak.is_measured
    assert 1e8 < peak.flops < 1e16
    assert not recwarn.list
