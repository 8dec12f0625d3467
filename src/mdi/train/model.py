"""Models as they are trained: litgpt's own modules, and for GPT-2 the same with positions that are learned."""

import math
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

from mdi.checkpoint.digests import Check, checked, digest_of_lines, expect_lines, read_digests
from mdi.checkpoint.weights import open_whole_model, whole_model
from mdi.errors import CheckpointError
from mdi.model.architecture import ModelConfig
from mdi.model.gpt2 import Gpt2Config
from mdi.model.litgpt_modules import GPT
from mdi.progress import progress_bar

_STD = 0.02


class LearnedPositions(GPT):  # type: ignore[misc]
    """GPT-2: an embedding of positions before litgpt's blocks, and the embedding of tokens as head."""

    def __init__(self, config: Gpt2Config) -> None:
        super().__init__(config)
        self.transformer["wpe"] = nn.Embedding(config.block_size, config.n_embd)
        self.lm_head.weight = self.transformer.wte.weight

    def forward(self, idx: torch.Tensor) -> torch.Tensor:
        """Token ids (B, T) -> logits (B, T, vocabulary)."""
        n_positions = idx.size(1)
        cos, sin = self.cos[:n_positions].unsqueeze(0), self.sin[:n_positions].unsqueeze(0)  # of no elements
        x = self.transformer.wte(idx) + self.transformer.wpe.weight[:n_positions]
        for block in self.transformer.h:
            x = block(x, cos, sin)
        logits: torch.Tensor = self.lm_head(self.transformer.ln_f(x))
        return logits


def build_model(config: ModelConfig) -> nn.Module:
    """The module of a configuration, whose state dict has the names of the model's file."""
    model: nn.Module = LearnedPositions(config) if isinstance(config, Gpt2Config) else GPT(config)
    return model


def draw_weights(model: nn.Module, config: ModelConfig, seed: int) -> None:
    """The weights that training from scratch begins with: those of GPT-2, whose residual branches start small."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if parameter.dim() < 2:
            continue  # biases and norms are what their modules made them
        is_residual = name.endswith(("attn.proj.weight", "mlp.proj.weight"))
        std = _STD / math.sqrt(2 * config.n_layer) if is_residual else _STD
        nn.init.normal_(parameter, 0.0, std, generator=generator)
    for name, parameter in model.named_parameters():
        if name.endswith(".bias"):
            nn.init.zeros_(parameter)


def load_weights(model: nn.Module, config: ModelConfig, folder: Path) -> str:
    """Give `model` the weights of a prepared model, in float32; return their digest.

    Raises `CheckpointError` where they are damaged, or not in floating point.
    """
    path = whole_model(folder)
    known = expect_lines(path, read_digests(path))
    lines: dict[str, str] = {}

    def check(read: Mapping[str, str]) -> None:
        lines.update(read)
        if known is not None:
            known.compare(read)

    weights = checked(open_whole_model(folder, config), Check(check))
    with progress_bar(len(weights), "loading", "tensors") as advance, torch.no_grad():
        for name, tensor in model.state_dict().items():
            tensor.copy_(weights[name])
            advance(1)
    weights.verify()
    if isinstance(model, LearnedPositions) and lines["lm_head.weight"] != lines["transformer.wte.weight"]:
        raise CheckpointError(f"{path}: its head is not its embedding, as in the GPT-2 models that can be trained")
    return digest_of_lines(lines)
