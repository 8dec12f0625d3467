"""GPT-2 and nanoGPT: litgpt's blocks without rotary embedding, and an embedding of positions that is learned.

Radford et al., "Language Models are Unsupervised Multitask Learners", 2019; https://github.com/karpathy/nanoGPT
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from mdi.documents import misfit
from mdi.model.litgpt_architecture import LitgptArchitecture
from mdi.model.litgpt_modules import Config, GptNeoxMLP

ACTIVATIONS = ("gelu", "relu")
LAYER_NORM_EPS = 1e-5  # of all published weights

# What every model of the family has in common.
_TRAITS: dict[str, Any] = {
    "rotary_percentage": 0.0,
    "parallel_residual": False,
    "bias": True,
    "norm_class_name": "LayerNorm",
    "mlp_class_name": "GptNeoxMLP",
}


class ReluMLP(GptNeoxMLP):  # type: ignore[misc]
    """The plain MLP with the activation of the first nanoGPT models."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.proj(F.relu(self.fc(x)))
        return y


@dataclass
class Gpt2Config(Config):  # type: ignore[misc]
    """litgpt's fields, of which `block_size` is the number of positions that were learned."""

    activation: str = "gelu"  # of the MLP, one of `ACTIVATIONS`; `gelu_approximate` says which GELU

    @property
    def norm_class(self) -> type[nn.Module]:
        """litgpt's depends on the model's name."""
        return nn.LayerNorm

    @property
    def mlp_class(self) -> type[nn.Module]:
        """What litgpt's block builds as its MLP."""
        return ReluMLP if self.activation == "relu" else GptNeoxMLP


def gpt2_config(name: str, *, n_layer: int, n_head: int, n_embd: int, **fields: Any) -> Gpt2Config:
    """A configuration of the family; without further fields that of a published GPT-2 of this size.

    Raises `ValueError` or `AssertionError` for numbers that contradict each other.
    """
    published: dict[str, Any] = {
        "block_size": 1024,
        "vocab_size": 50257,
        "gelu_approximate": "tanh",
        "norm_eps": LAYER_NORM_EPS,
    }
    given = published | _TRAITS | fields | {"n_layer": n_layer, "n_head": n_head, "n_embd": n_embd}
    return _checked(Gpt2Config(name=name, **{"padded_vocab_size": given["vocab_size"]} | given))


def _checked(config: Gpt2Config) -> Gpt2Config:
    for name, value in _TRAITS.items():
        if getattr(config, name) != value:
            raise ValueError(f"{name} is {getattr(config, name)!r}, where GPT-2 has {value!r}")
    if config.activation not in ACTIVATIONS:
        raise ValueError(f"activation is {config.activation!r}, not {' or '.join(ACTIVATIONS)}")
    return config


class Gpt2Architecture(LitgptArchitecture):
    """litgpt's blocks; positions enter before the first one."""

    positions: str | None = "transformer.wpe.weight"

    def config_from_dict(self, values: Mapping[str, Any]) -> Gpt2Config:
        values = {name: value for name, value in values.items() if name != "architecture"}
        if problem := misfit(values, Gpt2Config):
            raise ValueError(problem)
        return _checked(Gpt2Config(**values))

    def config_to_dict(self, config: Config) -> dict[str, Any]:
        return {"architecture": "gpt2"} | asdict(config)

    def build_ends(self, config: Config) -> nn.ModuleDict:
        ends = super().build_ends(config)
        shape = (config.block_size, config.n_embd)
        with torch.device("meta"):
            ends["positions"] = nn.Embedding(*shape, _weight=torch.empty(shape))
        return ends

    def rotary_tables(self, config: Config, context: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """Tables of no elements."""
        empty = torch.empty(context, 0, device=device)
        return empty, empty
