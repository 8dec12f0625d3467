"""Small models in Hugging Face format, and the cache folders that huggingface_hub keeps."""

import json
from pathlib import Path
from typing import Any

import litgpt.config
import pytest
import torch
from safetensors.torch import save_file

from mdi.convert import hf_configs
from mdi.convert.random import write_byte_tokenizer

REVISION = "0123456789abcdef0123456789abcdef01234567"
N_TOKENS, WIDTH, INNER = 320, 16, 24
_CONFIG = {
    "model_type": "llama",
    "num_hidden_layers": 2,
    "hidden_size": WIDTH,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "intermediate_size": INNER,
    "vocab_size": N_TOKENS,
    "rope_theta": 10000.0,
}
_ENTRY = {
    "name": "Minute-Llama",
    "hf_config": {"org": "org", "name": "minute"},
    "block_size": 64,
    "vocab_size": N_TOKENS,
    "padded_vocab_size": N_TOKENS,
    "n_layer": 2,
    "n_embd": WIDTH,
    "n_head": 2,
    "intermediate_size": INNER,
    "rotary_percentage": 1.0,
    "parallel_residual": False,
    "bias": False,
    "norm_class_name": "RMSNorm",
    "mlp_class_name": "LLaMAMLP",
}


def register_minute_llama(monkeypatch: pytest.MonkeyPatch) -> None:
    """litgpt knows the model of `make_hf_folder` for the length of a test."""
    monkeypatch.setattr("mdi.convert.hf_configs.configs", [*hf_configs.configs, _ENTRY])
    monkeypatch.setitem(litgpt.config.name_to_config, _ENTRY["name"], _ENTRY)


def make_hf_folder(folder: Path, seed: int = 0, **config: Any) -> Path:
    """Write a random llama in bfloat16 into `folder`, in one safetensors file."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(_CONFIG | config))
    write_byte_tokenizer(folder, N_TOKENS)
    save_file(_tensors(seed), folder / "model.safetensors")
    return folder


def _tensors(seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator).to(torch.bfloat16)

    tensors = {name: draw(N_TOKENS, WIDTH) for name in ("model.embed_tokens.weight", "lm_head.weight")}
    tensors["model.norm.weight"] = draw(WIDTH)
    for i in range(2):
        block = f"model.layers.{i}."
        tensors |= {f"{block}{name}.weight": draw(WIDTH) for name in ("input_layernorm", "post_attention_layernorm")}
        tensors |= {f"{block}self_attn.{part}_proj.weight": draw(WIDTH, WIDTH) for part in "qkvo"}
        tensors |= {f"{block}mlp.{part}_proj.weight": draw(INNER, WIDTH) for part in ("gate", "up")}
        tensors[f"{block}mlp.down_proj.weight"] = draw(WIDTH, INNER)
    return tensors


def put_into_cache(cache: Path, repo_id: str, source: Path) -> Path:
    """Lay the files of `source` into a Hugging Face cache, as links to blobs. Returns the snapshot."""
    repo = cache / f"models--{repo_id.replace('/', '--')}"
    snapshot = repo / "snapshots" / REVISION
    for folder in (snapshot, repo / "blobs", repo / "refs"):
        folder.mkdir(parents=True, exist_ok=True)
    (repo / "refs" / "main").write_text(REVISION)
    for i, path in enumerate(sorted(source.iterdir())):
        (repo / "blobs" / f"blob{i}").write_bytes(path.read_bytes())
        (snapshot / path.name).symlink_to(f"../../blobs/blob{i}")
    return snapshot
