"""Tiny models of every family, in no table of litgpt's, give the logits that transformers gives."""

import gzip
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from mdi.checkpoint.config import load_config
from mdi.convert.hf_configs import build_config, resolve_config_name
from mdi.convert.hf_families import FAMILIES, label_of
from mdi.errors import CheckpointError, ConfigError
from support.hf_models import our_logits
from support.named_weights import write_folder
from support.paths import DATA, TESTS

REFERENCE = json.loads(gzip.decompress((DATA / "transformers_logits.json.gz").read_bytes()))
CASES = REFERENCE["cases"]
LLAMA = CASES[0]["config"]


def case_of(model_type: str) -> dict[str, Any]:
    case: dict[str, Any] = next(case for case in CASES if case["config"]["model_type"] == model_type)
    return case


def name_of(case: dict[str, Any]) -> str:
    return f"{case['config']['model_type']}-{CASES.index(case)}"


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=name_of)
def test_logits_are_those_of_transformers(case: dict[str, Any], tmp_path: Path) -> None:
    """Within the original context and beyond it, with rotary settings in both forms."""
    folder = write_folder(tmp_path / "me" / "tiny", case["config"], case["shapes"])
    ours = our_logits(folder, REFERENCE["ids"])[REFERENCE["positions"]]
    torch.testing.assert_close(ours, torch.tensor(case["logits"]), rtol=0, atol=1e-4)


def test_every_family_is_compared() -> None:
    """But Gemma 3 with images, whose text model is compared."""
    compared = [case["config"]["model_type"] for case in CASES]
    assert set(compared) == FAMILIES.keys() - {"gemma3"} | {"gpt2"}
    assert all(compared.count(model_type) >= 2 for model_type in compared)


def test_the_reference_needs_nothing_of_this_program() -> None:
    """It is made where litGPT is not: `make reference`."""
    source = (TESTS / "support" / "named_weights.py").read_text(encoding="utf-8")
    assert {"mdi", "litgpt", "support"}.isdisjoint(re.findall(r"^ *(?:from|import) (\w+)", source, re.MULTILINE))


@pytest.mark.slow
def test_transformers_itself_gives_these_logits(tmp_path: Path) -> None:
    """At every position, with whichever version is installed."""
    pytest.importorskip("transformers")
    from data.make_logits import transformers_logits

    for case in CASES:
        folder = write_folder(tmp_path / name_of(case), case["config"], case["shapes"])
        logits = transformers_logits(folder)
        torch.testing.assert_close(logits[REFERENCE["positions"]], torch.tensor(case["logits"]), rtol=0, atol=1e-4)
        torch.testing.assert_close(our_logits(folder, REFERENCE["ids"]), logits, rtol=0, atol=1e-4)


# ---- what config.json may not say


@pytest.mark.parametrize(
    ("model_type", "change", "text"),
    [
        ("llama", {"attention_bias": True}, "attention_bias is True, which cannot be computed"),
        ("llama", {"mlp_bias": True}, "mlp_bias is True"),
        ("llama", {"hidden_act": "relu"}, "the activation 'relu' is not supported"),
        ("llama", {"hidden_act": 3}, "hidden_act is 3, not a text"),
        ("llama", {"rms_norm_eps": "1e-6"}, "rms_norm_eps is '1e-6', not a number"),
        ("llama", {"num_hidden_layers": "2"}, "num_hidden_layers is '2', not a count"),
        ("llama", {"num_hidden_layers": None}, "num_hidden_layers is None, not a count"),
        ("llama", {"hidden_size": 0}, "hidden_size is 0"),
        ("llama", {"vocab_size": True}, "vocab_size is True"),
        ("llama", {"num_key_value_heads": 3}, "its numbers contradict each other"),
        ("llama", {"max_position_embeddings": "x"}, "max_position_embeddings is 'x'"),
        ("mistral", {"sliding_window": -1}, "sliding_window is -1"),
        ("qwen2", {"use_sliding_window": 1}, "use_sliding_window is 1, not true or false"),
        ("qwen3_moe", {"norm_topk_prob": False}, "norm_topk_prob is False"),
        ("qwen3_moe", {"mlp_only_layers": [0]}, r"mlp_only_layers is \[0\]"),
        ("qwen3_moe", {"num_experts_per_tok": 9}, "num_experts_per_tok is 9, not a count up to 4"),
        ("gemma2", {"layer_types": ["chunked", "full_attention"]}, "layer_types"),
        ("gemma2", {"layer_types": "sliding_attention"}, "layer_types is 'sliding_attention', not a list"),
        ("gemma2", {"attn_logit_softcapping": [1]}, "attn_logit_softcapping"),
        ("gemma2", {"query_pre_attn_scalar": 1.5}, "query_pre_attn_scalar is 1.5"),
        ("gemma3_text", {"use_bidirectional_attention": True}, "use_bidirectional_attention is True"),
        ("stablelm", {"use_qkv_bias": True}, "use_qkv_bias is True"),
        ("gpt_neox", {"attention_bias": False}, "attention_bias is False"),
        ("falcon", {"alibi": True}, "alibi is True"),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx is True, which cannot"),
        ("gpt2", {"scale_attn_weights": False}, "scale_attn_weights is False"),
        ("gpt2", {"activation_function": "swish"}, "the activation 'swish' is not supported"),
        ("gpt2", {"n_layer": "12"}, "n_layer is '12', not a count"),
        ("gpt2", {"n_head": 5}, "its numbers contradict each other"),
        ("gpt2", {"layer_norm_epsilon": 2}, "layer_norm_epsilon is 2, not a number above 0"),
        ("phi3", {"rope_scaling": {"type": "longrope", "short_factor": [1.0], "long_factor": [1.0]}}, "needs 4 short"),
    ],
)
def test_what_cannot_be_computed_is_refused_by_name(model_type: str, change: dict[str, Any], text: str) -> None:
    """Before weights are looked at."""
    with pytest.raises(CheckpointError, match=text):
        resolve_config_name("me/tiny", case_of(model_type)["config"] | change, None)


def test_a_kind_of_model_that_is_unknown() -> None:
    with pytest.raises(ConfigError, match=r"its model_type 'granite' is none of llama, mistral.*, gpt2; "):
        resolve_config_name("me/tiny", LLAMA | {"model_type": "granite"}, None)


# ---- names and numbers


@pytest.mark.parametrize(
    ("source", "model_type", "label"),
    [
        ("me/My Model", "llama", "My-Model"),
        ("me/distilled-from-Gemma", "llama", "distilled-from-gemma"),
        ("me/chatty", "gemma2", "Gemma-chatty"),
        ("me/OLMo-tiny", "olmo", "OLMo-tiny"),
        ("me/OLMo-like", "stablelm", "olmo-like"),
    ],
)
def test_labels_do_not_change_norms(source: str, model_type: str, label: str) -> None:
    assert label_of(source, model_type) == label


def test_a_fine_tune_with_more_tokens_of_a_model_that_litgpt_knows() -> None:
    """Its name is litgpt's, its numbers are its own."""
    published = {"model_type": "llama", "num_hidden_layers": 30, "hidden_size": 576, "num_attention_heads": 9}
    published |= {"num_key_value_heads": 3, "intermediate_size": 1536, "rms_norm_eps": 1e-5, "rope_theta": 100000}
    published |= {"max_position_embeddings": 8192, "vocab_size": 49153, "tie_word_embeddings": True}
    name = resolve_config_name("HuggingFaceTB/SmolLM2-135M", published, None)
    config = build_config(published, name)
    assert (name, config.vocab_size, config.padded_vocab_size, config.rope_base) == (
        "SmolLM2-135M",
        49153,
        49153,
        100000,
    )
    assert build_config(published | {"vocab_size": 49152}, name).padded_vocab_size == 49152


def test_what_config_json_leaves_out_is_litgpts() -> None:
    """Multimodal Gemma 3 was published with the few numbers that differ from transformers' defaults."""
    text = {"model_type": "gemma3_text", "hidden_size": 2560, "intermediate_size": 10240, "num_hidden_layers": 34}
    text |= {"rope_scaling": {"factor": 8.0, "rope_type": "linear"}, "sliding_window": 1024}
    config = build_config({"model_type": "gemma3", "text_config": text}, "Gemma-3-4b-it")
    assert (config.n_head, config.n_query_groups, config.head_size, config.padded_vocab_size) == (8, 4, 256, 262144)
    assert (config.rope_base, config.rope_local_base_freq, config.rope_adjustments) == (1000000, 10000, {"factor": 8.0})
    assert config.sliding_window_indices == config.rope_indices == [int((i + 1) % 6 != 0) for i in range(34)]


def test_the_context_is_that_of_the_folder(tmp_path: Path) -> None:
    case = case_of("llama")
    folder = write_folder(tmp_path, case["config"] | {"max_position_embeddings": 77}, case["shapes"])
    our_logits(folder, [1, 2, 3])
    assert load_config(folder).block_size == 77
