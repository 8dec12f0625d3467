"""Every decoder family of litgpt, as an `Architecture`."""

from collections.abc import Mapping
from dataclasses import asdict
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from mdi.documents import has_type, misfit
from mdi.model import rotary
from mdi.model.attention import SegmentAttention
from mdi.model.litgpt_modules import GPT, Block, Config
from mdi.model.ops import PointwiseOps
from mdi.strings import quoted

# How `sliding_window_layer_placing` of litGPT 0.4.13 to 0.5.7 names the layers with a window: every layer, or every
# other from the first on. Some of these versions saved the distance between such layers instead of the word.
_WINDOW_STRIDES: Mapping[object, int] = {None: 1, "all": 1, "interleaved": 2, 1: 1, 2: 2}
_RATIOS = ("rope_base", "rope_condense_ratio")  # declared as whole numbers by litgpt, which computes with any number


class LitgptArchitecture:
    """Every decoder family of litgpt."""

    block_path = "transformer.h.{}."
    embedding = "transformer.wte.weight"
    positions: str | None = None
    norm_path = "transformer.ln_f."
    head_path = "lm_head."

    def config_from_dict(self, values: Mapping[str, Any]) -> Config:
        # litgpt looks at no type, and computes with what it got.
        values = _current_fields(values)
        n_rotated = values.pop("rope_n_elem", None)
        whole = {name: value for name, value in values.items() if not (name in _RATIOS and has_type(value, float))}
        if problem := misfit(whole, Config):
            raise ValueError(problem)
        config = Config(**values)
        if n_rotated not in (None, config.rope_n_elem):
            raise ValueError(f"rope_n_elem is {quoted(n_rotated)}, but the other fields make {config.rope_n_elem}")
        _check_router(config)
        return config

    def config_to_dict(self, config: Config) -> dict[str, Any]:
        return asdict(config)

    def kind_of_layer(self, config: Config, layer: int) -> object:
        """A model may be a mixture of experts from some layer on, and dense before it."""
        return layer < (config.first_k_dense_replace or 0)

    def build_block(self, config: Config, layer: int, ops: PointwiseOps) -> Any:
        with torch.device("meta"):
            block = Block(config, layer)
            block.attn = SegmentAttention(config, layer, ops)
        return block.requires_grad_(False)

    def build_ends(self, config: Config) -> nn.ModuleDict:
        shape = (config.padded_vocab_size, config.n_embd)
        with torch.device("meta"):
            return nn.ModuleDict(
                {
                    # `nn.Embedding` would draw its weight, for which torch imports its compiler on this device.
                    "embedding": nn.Embedding(*shape, _weight=torch.empty(shape)),
                    "norm": config.norm_class(config.n_embd, eps=config.norm_eps),
                    "head": nn.Linear(config.n_embd, config.padded_vocab_size, bias=config.lm_head_bias),
                }
            )

    def embed(self, rows: torch.Tensor, config: Config) -> torch.Tensor:
        """Gemma scales them. Rotary positions are the business of each block."""
        if not config.scale_embeddings:
            return rows
        return rows * torch.tensor(config.n_embd**0.5, dtype=rows.dtype)

    def rotary_tables(self, config: Config, context: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """litgpt's own tables in float32, without a whole `GPT` to ask for them, or those of a method of ours.

        The sines of the first half of the elements are negated, because the rotate-half step swaps the
        halves without negating.
        """
        n_elem, base, local = config.rope_n_elem, config.rope_base, config.rope_local_base_freq
        if (scaling := rotary.scaling_of(config.rope_adjustments, n_elem)) is None:
            cos, sin = GPT.rope_cache(SimpleNamespace(config=config, max_seq_length=context), device)
        else:
            cos, sin = (table.to(device) for table in rotary.tables(scaling, n_elem, base, context, local))
        sin[:, : sin.size(1) - sin.size(1) // 2].neg_()
        return cos, sin


def _check_router(config: Config) -> None:
    """Raise `ValueError` where more is to be chosen than there is, which litgpt finds out when it computes."""
    if config.mlp_class_name != "LLaMAMoE":
        return
    limits = {"n_expert_per_token": config.n_expert}
    if (n_groups := config.n_expert_groups) is not None:
        limits |= {"n_topk_groups": n_groups, "n_topk_scores_per_group": config.n_expert // n_groups}
    for name, limit in limits.items():
        if not 0 < (getattr(config, name) or 0) <= limit:
            raise ValueError(f"{name} is {getattr(config, name)}, not within 1 and {limit}")


def _current_fields(values: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that an earlier litGPT wrote, under the names that they have by now. Raises `ValueError`."""
    fields = dict(values)
    if "sliding_window_layer_placing" not in fields:
        return fields
    placing, n_layer = fields.pop("sliding_window_layer_placing"), fields.get("n_layer")
    if not isinstance(placing, str | int | None) or (stride := _WINDOW_STRIDES.get(placing)) is None:
        raise ValueError(f"sliding_window_layer_placing is {quoted(placing)}, not all or interleaved")
    if fields.get("sliding_window_size") is not None and type(n_layer) is int:
        fields.setdefault("sliding_window_indices", [int(layer % stride == 0) for layer in range(n_layer)])
    return fields
