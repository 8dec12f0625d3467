"""Small random models and the GGUF files llama.cpp's converter would make of them.

The conventions of that converter are written down here a second time, in another form than in
`mdi.convert.gguf.convert`, so that a mistake there cannot hide behind the same one here. llama.cpp itself
(llama-cpp-python 0.3.36, float32 caches) computes the logits of these models from these files: within 2e-5, and 3e-2
for Gemma, whose GELU it takes from a table.
"""

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from litgpt.config import Config
from litgpt.model import GPT
from tokenizers import pre_tokenizers

Array = np.ndarray[Any, Any]

BYTES = sorted(pre_tokenizers.ByteLevel.alphabet())
MERGES = ["h e", "l l", "he ll", "hell o", "Ġ w"]
WORDS = ["".join(merge.split(" ")) for merge in MERGES]
CONTROL = ["<|bos|>", "<|im_end|>", "<|endoftext|>"]
TOKENS = [*BYTES, *WORDS, *CONTROL]
N_TOKENS = len(TOKENS)

SHAPE: dict[str, Any] = {
    "n_layer": 2,
    "n_embd": 64,
    "n_head": 4,
    "n_query_groups": 2,
    "head_size": 16,
    "intermediate_size": 96,
    "block_size": 64,
    "vocab_size": N_TOKENS,
    "padded_vocab_size": N_TOKENS,
    "rotary_percentage": 1.0,
    "parallel_residual": False,
    "bias": False,
    "norm_class_name": "RMSNorm",
    "norm_eps": 1e-5,
    "mlp_class_name": "LLaMAMLP",
    "name": "Tiny",
}
GEMMA: dict[str, Any] = {
    "name": "Gemma-Tiny",
    "mlp_class_name": "GemmaMLP",
    "gelu_approximate": "tanh",
    "scale_embeddings": True,
    "n_query_groups": 1,
    "norm_eps": 1e-6,
}
LLAMA3_ROPE = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_seq_len": 8192}
GEMMA3_SLIDING = [1, 1, 1, 1, 1, 0, 1]

# case -> (architecture, what its Config has beyond SHAPE)
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama-mha-wide-heads": ("llama", {"n_query_groups": 4, "head_size": 32}),
    "llama-biases": ("llama", {"attn_bias": True}),
    "llama-linear": ("llama", {"rope_adjustments": {"factor": 4.0}}),
    "llama3": ("llama", {"rope_base": 500000, "rope_adjustments": LLAMA3_ROPE}),
    "mixtral": ("llama", {"mlp_class_name": "LLaMAMoE", "n_expert": 4, "n_expert_per_token": 2}),
    "qwen2": ("qwen2", {"attn_bias": True, "rope_base": 1000000, "norm_eps": 1e-6}),
    "qwen3": ("qwen3", {"norm_qk": True, "head_size": 32}),
    "qwen3moe": (
        "qwen3moe",
        {
            "norm_qk": True,
            "mlp_class_name": "LLaMAMoE",
            "moe_intermediate_size": 32,
            "n_expert": 4,
            "n_expert_per_token": 2,
        },
    ),
    "gemma": ("gemma", GEMMA),
    "gemma2": (
        "gemma2",
        GEMMA
        | {
            "post_attention_norm": True,
            "post_mlp_norm": True,
            "n_layer": 3,
            "attention_scores_scalar": 16,
            "attention_logit_softcapping": 50.0,
            "final_logit_softcapping": 30.0,
            "sliding_window_size": 4,
            "sliding_window_indices": [1, 0, 1],
        },
    ),
    "gemma3": (
        "gemma3",
        GEMMA
        | {
            "post_attention_norm": True,
            "post_mlp_norm": True,
            "norm_qk": True,
            "n_layer": 7,
            "attention_scores_scalar": 16,
            "sliding_window_size": 4,
            "sliding_window_indices": GEMMA3_SLIDING,
            "rope_base": 1000000,
            "rope_local_base_freq": 10000,
            "rope_indices": GEMMA3_SLIDING,
            "rope_adjustments": {"factor": 8.0},
        },
    ),
}


def tiny_model(case: str, seed: int = 0, **changes: Any) -> tuple[str, GPT]:
    """The architecture's name and a random model whose norms and biases are not the trivial ones."""
    architecture, special = CASES[case]
    torch.manual_seed(seed)
    model = GPT(Config(**(SHAPE | special | changes))).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() == 1:
                weight.add_(torch.randn_like(weight) * 0.3)
            else:
                weight.normal_(std=0.25 if "wte" not in name else 1.0)
    return architecture, model


def hyperparameters(architecture: str, config: Config) -> dict[str, Any]:
    """The metadata of the model itself, as Python values."""
    values: dict[str, Any] = {
        "context_length": config.block_size,
        "embedding_length": config.n_embd,
        "block_count": config.n_layer,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.n_head,
        "attention.head_count_kv": config.n_query_groups,
        "attention.key_length": config.head_size,
        "attention.value_length": config.head_size,
        "attention.layer_norm_rms_epsilon": config.norm_eps,
        "rope.freq_base": float(config.rope_base),
        "rope.dimension_count": config.rope_n_elem,
    }
    if config.n_expert:
        values |= {"expert_count": config.n_expert, "expert_used_count": config.n_expert_per_token}
    if config.moe_intermediate_size:
        values["expert_feed_forward_length"] = config.moe_intermediate_size
    if set(config.rope_adjustments or {}) == {"factor"}:
        values |= {"rope.scaling.type": "linear", "rope.scaling.factor": config.rope_adjustments["factor"]}
    if config.sliding_window_size:
        values["attention.sliding_window"] = config.sliding_window_size
    if config.attention_logit_softcapping:
        values["attn_logit_softcapping"] = config.attention_logit_softcapping
    if config.final_logit_softcapping:
        values["final_logit_softcapping"] = config.final_logit_softcapping
    return {f"{architecture}.{key}": value for key, value in values.items()} | {"general.name": config.name}


def byte_level_tokenizer() -> dict[str, Any]:
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": TOKENS,
        "tokenizer.ggml.token_type": [1] * (N_TOKENS - len(CONTROL)) + [3] * len(CONTROL),
        "tokenizer.ggml.merges": MERGES,
        "tokenizer.ggml.bos_token_id": TOKENS.index("<|bos|>"),
        "tokenizer.ggml.eos_token_id": TOKENS.index("<|im_end|>"),
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.chat_template": "{% for m in messages %}<|bos|>{{ m['content'] }}<|im_end|>{% endfor %}",
    }


def tensors(architecture: str, model: GPT, *, tied: bool = False) -> dict[str, Array]:
    """The model's weights under llama.cpp's names and in its layout, each (rows, columns) or (n,)."""
    config = model.config
    weights = {name: weight.detach().numpy() for name, weight in model.state_dict().items()}
    stored = {
        "token_embd.weight": weights["transformer.wte.weight"],
        "output_norm.weight": weights["transformer.ln_f.weight"],
    }
    if not tied:
        stored["output.weight"] = weights["lm_head.weight"]
    for i in range(config.n_layer):
        inside = {
            name.removeprefix(f"transformer.h.{i}."): weight
            for name, weight in weights.items()
            if name.startswith(f"transformer.h.{i}.")
        }
        stored |= {f"blk.{i}.{name}": weight for name, weight in _block(architecture, config, inside).items()}
    if architecture.startswith("gemma"):
        stored = {name: weight + 1 if name.endswith("norm.weight") else weight for name, weight in stored.items()}
    if "low_freq_factor" in (config.rope_adjustments or {}):
        stored["rope_freqs.weight"] = frequency_factors(config)
    return stored


def _block(architecture: str, config: Config, inside: dict[str, Array]) -> dict[str, Array]:
    """One transformer block. The litGPT names that are left over at the end would be a mistake of this function."""
    n_q, n_kv = config.n_head * config.head_size, config.n_query_groups * config.head_size
    rename = {
        "norm_1.weight": "attn_norm.weight",
        "norm_2.weight": "ffn_norm.weight",
        "attn.proj.weight": "attn_output.weight",
        "attn.norm_q.weight": "attn_q_norm.weight",
        "attn.norm_k.weight": "attn_k_norm.weight",
        "post_attention_norm.weight": "post_attention_norm.weight",
        "post_mlp_norm.weight": "post_ffw_norm.weight",
        "mlp.fc_1.weight": "ffn_gate.weight",
        "mlp.fc_2.weight": "ffn_up.weight",
        "mlp.proj.weight": "ffn_down.weight",
        "mlp.gate.weight": "ffn_gate_inp.weight",
    }
    stored = {rename[name]: inside.pop(name) for name in list(inside) if name in rename}
    for kind in ("weight", "bias"):
        if f"attn.qkv.{kind}" in inside:
            q, k, v = np.split(inside.pop(f"attn.qkv.{kind}"), [n_q, n_q + n_kv])
            if architecture == "llama":
                q, k = interleaved(q, config.n_head), interleaved(k, config.n_query_groups)
            stored |= {f"attn_q.{kind}": q, f"attn_k.{kind}": k, f"attn_v.{kind}": v}
    for theirs, ours in (("gate", "fc_1"), ("up", "fc_2"), ("down", "proj")) if config.n_expert else ():
        experts = [inside.pop(f"mlp.experts.{e}.{ours}.weight") for e in range(config.n_expert)]
        stored[f"ffn_{theirs}_exps.weight"] = np.stack(experts)
    assert not inside
    return stored


def interleaved(rows: Array, n_head: int) -> Array:
    """Within each head, row j of the first half goes to place 2j and row j of the second half to 2j + 1."""
    stored = np.empty_like(rows)
    size = len(rows) // n_head
    for head in range(n_head):
        for j in range(size // 2):
            stored[head * size + 2 * j] = rows[head * size + j]
            stored[head * size + 2 * j + 1] = rows[head * size + size // 2 + j]
    return stored


def frequency_factors(config: Config) -> Array:
    """By how much Llama 3 slows down each rotary frequency, from the wavelengths in tokens."""
    rope = config.rope_adjustments
    longest, shortest = (rope["original_max_seq_len"] / rope[f"{end}_freq_factor"] for end in ("low", "high"))
    factors = []
    for i in range(config.rope_n_elem // 2):
        wavelength = 2 * np.pi * config.rope_base ** (2 * i / config.rope_n_elem)
        smooth = (rope["original_max_seq_len"] / wavelength - rope["low_freq_factor"]) / (
            rope["high_freq_factor"] - rope["low_freq_factor"]
        )
        if wavelength < shortest:
            factors.append(1.0)
        elif wavelength > longest:
            factors.append(rope["factor"])
        else:
            factors.append(1 / ((1 - smooth) / rope["factor"] + smooth))
    return np.array(factors, dtype=np.float32)


def write_gguf(
    path: Path,
    architecture: str,
    values: dict[str, Any],
    stored: dict[str, Array],
    quantize: Callable[[str], gguf.GGMLQuantizationType] = lambda name: gguf.GGMLQuantizationType.F32,
) -> Path:
    """Write `values` and `stored`; `quantize` names the type of each matrix, vectors stay float32."""
    writer = gguf.GGUFWriter(path, architecture)
    for key, value in values.items():
        _add(writer, key, value)
    for name, weight in stored.items():
        kind = quantize(name) if weight.ndim > 1 else gguf.GGMLQuantizationType.F32
        writer.add_tensor(name, gguf.quantize(np.ascontiguousarray(weight), kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def write_parts(
    folder: Path, architecture: str, values: dict[str, Any], stored: dict[str, Array], n: int
) -> list[Path]:
    """Write a model as `n` parts, `tiny-00001-of-00003.gguf` and so on, as llama.cpp's gguf-split does."""
    names, paths = list(stored), []
    for i in range(n):
        part = {name: stored[name] for name in names[i * len(names) // n : (i + 1) * len(names) // n]}
        own = {"split.no": i, "split.count": n, "split.tensors.count": len(names)}
        path = folder / f"tiny-{i + 1:05d}-of-{n:05d}.gguf"
        paths.append(write_gguf(path, architecture, (values | own) if i == 0 else own, part))
    return paths


def _add(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    if isinstance(value, list):
        writer.add_array(key, value)
    elif isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    else:
        writer.add_string(key, value)


def write_tiny(path: Path, case: str, *, tied: bool = False, seed: int = 0, **changes: Any) -> GPT:
    """Write the tiny model of `case` to `path` and return it."""
    architecture, model = tiny_model(case, seed, **changes)
    if tied:
        model.lm_head.weight.data = model.transformer.wte.weight.data
    values = hyperparameters(architecture, model.config) | byte_level_tokenizer()
    write_gguf(path, architecture, values, tensors(architecture, model, tied=tied))
    return model


def shape_of(config: Config) -> dict[str, Any]:
    """The fields that decide what a model computes."""
    labels = ("name", "hf_config", "padding_multiple")
    return {key: value for key, value in asdict(config).items() if key not in labels}
