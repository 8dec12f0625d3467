"""Small random models with the traits of litgpt's families, and litgpt's own answer on one device."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import yaml
from litgpt.config import Config
from litgpt.generate.base import generate_fn
from litgpt.model import GPT

from mdi.checkpoint.tensor_file import open_weights
from mdi.convert.random import write_byte_tokenizer

NEAR_TIE = 1e-4  # of the two best logits: there, and only there, the ring may choose the other one

BASE: dict[str, Any] = {
    "name": "tiny",
    "block_size": 128,
    "n_layer": 6,
    "n_embd": 32,
    "vocab_size": 320,
    "padded_vocab_size": 320,
    "n_head": 4,
    "n_query_groups": 2,
    "rotary_percentage": 1.0,
    "parallel_residual": False,
    "bias": False,
    "norm_class_name": "RMSNorm",
    "mlp_class_name": "LLaMAMLP",
    "intermediate_size": 48,
}
NEOX = {"norm_class_name": "LayerNorm", "mlp_class_name": "GptNeoxMLP", "bias": True, "n_query_groups": 4}
LLAMA3_ROPE = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_seq_len": 32}
YARN_ROPE = {"factor": 4.0, "beta_fast": 32.0, "beta_slow": 1.0, "original_max_seq_len": 32, "mscale_all_dim": 0.7}
MOE = {"mlp_class_name": "LLaMAMoE", "n_expert": 4, "n_expert_per_token": 2, "moe_intermediate_size": 24}
ROUTER = {
    "n_expert_groups": 2,
    "n_topk_groups": 1,
    "n_topk_scores_per_group": 2,
    "n_shared_expert": 1,
    "first_k_dense_replace": 2,
    "routed_scaling_factor": 1.5,
    "norm_topk_prob": True,
}

TRAITS: dict[str, dict[str, Any]] = {
    "llama": {},
    "multi-head": {"n_query_groups": 4},
    "multi-query": {"n_query_groups": 1},
    "head size of its own": {"head_size": 12},
    "neox, partial rotary, parallel residual": {**NEOX, "rotary_percentage": 0.25, "parallel_residual": True},
    "shared attention norm": {**NEOX, "parallel_residual": True, "shared_attention_norm": True},
    "partial rotary": {"rotary_percentage": 0.5},
    "norm of queries and keys": {"norm_qk": True},
    "norm of queries and keys, olmo2": {
        "norm_qk": True,
        "norm_qk_type": "olmo2",
        "norm_1": False,
        "norm_2": False,
        "post_attention_norm": True,
        "post_mlp_norm": True,
    },
    "attention bias": {"attn_bias": True},
    "head bias": {"lm_head_bias": True},
    "sliding window": {"sliding_window_size": 7, "sliding_window_indices": [1, 0, 1, 0, 1, 0]},
    "softcapping, scaled embeddings": {
        "name": "Gemma-2-tiny",
        "attention_logit_softcapping": 5.0,
        "final_logit_softcapping": 3.0,
        "scale_embeddings": True,
        "attention_scores_scalar": 16,
        "mlp_class_name": "GemmaMLP",
        "gelu_approximate": "tanh",
        "post_attention_norm": True,
        "post_mlp_norm": True,
    },
    "dual rope": {
        "rope_local_base_freq": 500.0,
        "rope_indices": [1, 1, 0, 1, 1, 0],
        "sliding_window_size": 9,
        "sliding_window_indices": [1, 1, 0, 1, 1, 0],
    },
    "interleaved rope": {"rope_interleave": True},
    "llama 3 rope": {"rope_adjustments": LLAMA3_ROPE},
    "yarn": {"rope_adjustments": YARN_ROPE},
    "linear rope": {"rope_condense_ratio": 2, "rope_adjustments": {"factor": 2.0}},
    "mixture of experts": MOE,
    "mixture of experts, grouped router": {**MOE, **ROUTER},
}


def make_model(folder: Path, seed: int = 0, **traits: Any) -> Path:
    """Write a random model into `folder`; its logits are far enough apart for greedy comparison."""
    config = Config(**{**BASE, **traits})
    folder.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(seed)
    model = GPT(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.0, 0.3, generator=generator)
    torch.save(model.state_dict(), folder / "lit_model.pth")
    (folder / "model_config.yaml").write_text(yaml.safe_dump(asdict(config)))
    write_byte_tokenizer(folder, config.vocab_size)
    return folder


def reference_model(folder: Path) -> GPT:
    """litgpt's model on one device, float32."""
    model = GPT(Config.from_file(folder / "model_config.yaml"))
    model.load_state_dict(dict(open_weights(folder / "lit_model.pth")))
    return model.float().eval()


def generate_cached(model: GPT, prompt: Sequence[int], n_tokens: int) -> list[int]:
    """litgpt's own greedy `generate`."""
    model.max_seq_length = len(prompt) + n_tokens
    model.clear_kv_cache()
    model.set_kv_cache(batch_size=1)
    ids = torch.tensor(prompt)
    tokens = generate_fn(model, ids, len(prompt) + n_tokens, temperature=0.0, include_prompt=False, include_eos=True)
    return [int(token) for token in tokens]


@torch.inference_mode()
def generate_uncached(model: GPT, prompt: Sequence[int], n_tokens: int) -> list[int]:
    """Greedy decoding by litgpt's forward over the whole sequence each time: no cache to be wrong."""
    model.max_seq_length = model.config.block_size
    ids = list(prompt)
    for _ in range(n_tokens):
        ids.append(int(model(torch.tensor([ids]))[0, -1].argmax()))
    return ids[len(prompt) :]


@torch.inference_mode()
def assert_same_tokens(model: GPT, prompt: Sequence[int], tokens: Sequence[int], reference: Sequence[int]) -> None:
    """Equal, token for token; or the first difference is a tie of the reference's two best logits."""
    if list(tokens) == list(reference):
        return
    i = next(i for i, (a, b) in enumerate(zip(tokens, reference, strict=False)) if a != b)
    model.max_seq_length = model.config.block_size
    best = model(torch.tensor([[*prompt, *reference[:i]]]))[0, -1].topk(2).values
    gap = float(best[0] - best[1])
    assert gap < NEAR_TIE, f"token {i} is {tokens[i]}, litgpt has {reference[i]}, {gap:.2e} ahead"
    print(f"token {i}: {tokens[i]} for {reference[i]}, two best logits {gap:.2e} apart")
