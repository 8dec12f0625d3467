"""Make transformers_logits.json.gz: logits of tiny models as transformers computes them.

For tests/convert/test_hf_families.py. `make reference` runs it with the pinned transformers.
"""

import gzip
import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from transformers import AutoConfig, AutoModelForCausalLM

from support.named_weights import write_folder

ORIGINAL, N_IDS, POSITIONS = 32, 48, (20, 47)
IDS = [(7 * i * i + 3 * i) % 40 for i in range(N_IDS)]
SIZES = {"vocab_size": 40, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
SIZES |= {"intermediate_size": 48, "max_position_embeddings": 128}
IDS_OF_TOKENS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
GQA = {"num_key_value_heads": 2}
MOE = {"num_experts_per_tok": 2}
GEMMA = GQA | {"head_dim": 12}
GEMMA3 = GEMMA | {"num_hidden_layers": 4, "sliding_window": 16, "query_pre_attn_scalar": 20}
GEMMA3 |= {"layer_types": ["sliding_attention", "sliding_attention", "full_attention", "sliding_attention"]}
# At least two rotary settings a family, in the forms of transformers 4 and 5.
BASE = {"rope_theta": 5000.0}
DEFAULT5 = {"rope_parameters": {"rope_type": "default", "rope_theta": 20000.0}}
LINEAR = {"rope_theta": 1e4, "rope_scaling": {"type": "linear", "factor": 4.0}}
LLAMA3 = {"rope_theta": 5e4, "rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0}}
LLAMA3["rope_scaling"] |= {"high_freq_factor": 4.0, "original_max_position_embeddings": ORIGINAL}  # type: ignore[index]
YARN = {"max_position_embeddings": ORIGINAL, "rope_theta": 1e4, "rope_scaling": {"rope_type": "yarn", "factor": 4.0}}
YARN5 = {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e6, "factor": 4.0, "beta_fast": 8}}
YARN5["rope_parameters"] |= {"original_max_position_embeddings": ORIGINAL}
DYNAMIC5 = {"max_position_embeddings": ORIGINAL}
DYNAMIC5 |= {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0}}  # type: ignore[dict-item]
LONG = {"short_factor": [1.0, 1.1, 1.2], "long_factor": [1.0, 3.0, 9.0]}
LONGROPE = {"original_max_position_embeddings": ORIGINAL, "rope_theta": 1e4, "partial_rotary_factor": 0.75}
LONGROPE |= {"rope_scaling": {"type": "longrope", **LONG}}
PARTIAL5 = {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0, "partial_rotary_factor": 0.5}}
LAYERS5 = {"rope_parameters": {"full_attention": YARN5["rope_parameters"]}}
LAYERS5["rope_parameters"] |= {"sliding_attention": {"rope_type": "default", "rope_theta": 3000.0}}

CASES: list[tuple[str, dict[str, Any], list[dict[str, Any]]]] = [
    ("llama", GQA | {"head_dim": 10, "rms_norm_eps": 1e-3}, [BASE, LLAMA3, YARN5, DYNAMIC5, LINEAR, YARN]),
    ("llama", GQA | {"vocab_size": 41, "tie_word_embeddings": True}, [DEFAULT5]),
    ("mistral", GQA | {"sliding_window": 24, "rms_norm_eps": 1e-5}, [BASE, YARN]),
    ("mixtral", GQA | MOE | {"num_local_experts": 4}, [DEFAULT5, LINEAR]),
    ("qwen2", GQA, [BASE, YARN]),
    ("qwen2", GQA | {"use_sliding_window": True, "sliding_window": 12, "max_window_layers": 1}, [YARN5]),
    ("qwen3", GQA | {"head_dim": 12}, [YARN5, DYNAMIC5]),
    ("qwen3_moe", GQA | MOE | {"head_dim": 12, "num_experts": 4, "moe_intermediate_size": 24, "norm_topk_prob": True},
     [DEFAULT5, YARN]),
    ("gemma", GEMMA, [BASE, LINEAR]),
    ("gemma2", GEMMA | {"sliding_window": 16, "query_pre_attn_scalar": 20, "attn_logit_softcapping": 4.0}
     | {"final_logit_softcapping": 30.0}, [BASE, YARN5]),
    ("gemma3_text", GEMMA3, [{"rope_theta": 1e5, "rope_local_base_freq": 2000.0,
                              "rope_scaling": {"rope_type": "linear", "factor": 8.0}}, LAYERS5]),
    ("phi3", GQA | {"sliding_window": 30}, [BASE, LONGROPE]),
    ("phi", GQA, [{"rope_theta": 1e4, "partial_rotary_factor": 0.5}, PARTIAL5]),
    ("olmo", GQA, [BASE, LINEAR]),
    ("olmo2", GQA | {"rms_norm_eps": 1e-4}, [BASE, YARN5]),
    ("stablelm", GQA, [{"rope_theta": 1e4, "partial_rotary_factor": 0.5}, PARTIAL5]),
    ("gpt_neox", {}, [{"rotary_pct": 0.5, "rotary_emb_base": 5000}, PARTIAL5]),
    ("gpt_neox", {"use_parallel_residual": False, "hidden_act": "gelu_new"}, [{"rotary_pct": 1.0}]),
    ("falcon", {"multi_query": True, "parallel_attn": True, "bias": False}, [BASE, DYNAMIC5]),
    ("falcon", {"new_decoder_architecture": True, "num_kv_heads": 2, "bias": False, "ffn_hidden_size": 40},
     [DEFAULT5, LINEAR]),
    ("gpt2", {"num_hidden_layers": 3}, [{}]),
    ("gpt2", {"num_hidden_layers": 3, "n_inner": 40, "activation_function": "relu", "layer_norm_epsilon": 1e-3}
     | {"tie_word_embeddings": False}, [{}]),
]  # fmt: skip
PROMPTS = [[5, 17, 20], [9], [31, 2, 7, 7, 10, 11]]
N_TOKENS = 24


def make_case(folder: Path, model_type: str, options: dict[str, Any], rotary: dict[str, Any]) -> dict[str, Any]:
    """config.json with these rotary settings alone, the shapes of the tensors, and logits at `POSITIONS`."""
    options = json.loads(json.dumps(SIZES | IDS_OF_TOKENS | options))
    if model_type == "falcon":
        options.pop("intermediate_size")
    config = AutoConfig.for_model(model_type, **options)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    saved = json.loads((folder / "config.json").read_text())
    foreign = ("rope_parameters", "rope_theta", "partial_rotary_factor", "transformers_version", "dtype")
    settings = {key: value for key, value in saved.items() if key not in foreign} | rotary
    with safe_open(folder / "model.safetensors", "pt") as file:
        shapes = {name: list(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    logits = transformers_logits(write_folder(folder, settings, shapes))
    rows = [[round(value, 5) for value in logits[position].tolist()] for position in POSITIONS]
    case = {"config": settings, "shapes": shapes, "logits": rows}
    return case if model_type != "gpt2" else case | {"tokens": greedy_tokens(folder)}


@torch.inference_mode()
def transformers_logits(folder: Path) -> torch.Tensor:
    """(T, V), in one forward pass over all ids."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    logits: torch.Tensor = model(torch.tensor([IDS])).logits[0]
    return logits


@torch.inference_mode()
def greedy_tokens(folder: Path) -> list[list[int]]:
    """What `generate` appends to each of `PROMPTS`."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    settings = {"do_sample": False, "max_new_tokens": N_TOKENS, "min_new_tokens": N_TOKENS, "eos_token_id": None}
    texts = [model.generate(torch.tensor([prompt]), **settings)[0].tolist() for prompt in PROMPTS]
    return [text[len(prompt) :] for text, prompt in zip(texts, PROMPTS, strict=True)]


def main() -> None:
    cases = []
    for model_type, options, settings in CASES:
        for rotary in settings:
            with tempfile.TemporaryDirectory() as folder:
                cases.append(make_case(Path(folder), model_type, options, rotary))
                spread = max(map(abs, cases[-1]["logits"][-1]))
                print(model_type, list(rotary), f"{spread:.2f}")
    document = {"ids": IDS, "positions": POSITIONS, "prompts": PROMPTS, "cases": cases}
    path = Path(__file__).with_name("transformers_logits.json.gz")
    path.write_bytes(gzip.compress(json.dumps(document, separators=(",", ":")).encode(), mtime=0))


if __name__ == "__main__":
    main()
