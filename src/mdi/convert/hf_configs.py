"""Which of litgpt's configurations a Hugging Face model has: by its name, or by the sizes in its config.json."""

import difflib
from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Any

from litgpt.config import Config, configs

from mdi.convert.hf_rotary import is_count, rotary_fields
from mdi.documents import Fields
from mdi.errors import CheckpointError, ConfigError
from mdi.model.rotary import scaling_of
from mdi.strings import one_line, quoted

# Fields of config.json (newer and older spellings) and litgpt's name for the same quantity.
_FIELDS = {
    "num_hidden_layers": "n_layer",
    "n_layer": "n_layer",
    "hidden_size": "n_embd",
    "n_embd": "n_embd",
    "num_attention_heads": "n_head",
    "n_head": "n_head",
    "num_key_value_heads": "n_query_groups",
    "head_dim": "head_size",
    "intermediate_size": "intermediate_size",
    "moe_intermediate_size": "moe_intermediate_size",
    "vocab_size": "padded_vocab_size",
    "num_local_experts": "n_expert",
    "num_experts": "n_expert",
}
# What config.json's model_type implies for a block where shapes alone would not reveal a wrong choice.
_LLAMA = {"norm_class_name": "RMSNorm", "mlp_class_name": "LLaMAMLP", "norm_qk": False}
_FAMILIES: dict[str, dict[str, Any]] = {
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "phi3": _LLAMA,
    "qwen2": _LLAMA | {"attn_bias": True},
    "qwen3": _LLAMA | {"norm_qk": True, "norm_qk_type": "default"},
    "mixtral": {"mlp_class_name": "LLaMAMoE", "norm_qk": False},
    "qwen3_moe": {"mlp_class_name": "LLaMAMoE", "norm_qk": True},
    "gemma": {"mlp_class_name": "GemmaMLP", "post_attention_norm": False},
    "gemma2": {"mlp_class_name": "GemmaMLP", "post_attention_norm": True, "norm_qk": False},
    "gemma3": {"mlp_class_name": "GemmaMLP", "post_attention_norm": True, "norm_qk": True},
    "gemma3_text": {"mlp_class_name": "GemmaMLP", "post_attention_norm": True, "norm_qk": True},
    "olmo": {"norm_class_name": "LayerNorm", "mlp_class_name": "LLaMAMLP", "norm_qk": False},
    "olmo2": {"norm_class_name": "RMSNorm", "norm_qk_type": "olmo2"},
    "stablelm": {"norm_class_name": "LayerNorm", "mlp_class_name": "LLaMAMLP"},
    "gpt_neox": {"norm_class_name": "LayerNorm", "mlp_class_name": "GptNeoxMLP"},
    "falcon": {"norm_class_name": "LayerNorm", "mlp_class_name": "GptNeoxMLP"},
    "phi": {"norm_class_name": "LayerNorm", "mlp_class_name": "GptNeoxMLP", "shared_attention_norm": True},
}


def config_by_name(name: str, *, flag: str = "--model-name") -> Config:
    """litgpt's configuration called `name`: its own name, a repo's name, or org/name.

    Raises `ConfigError` naming `flag` and the nearest names, or where the model needs latent attention.
    """
    found = _find(name)
    if found is None:
        raise ConfigError(f"{flag} {name!r} is not a litgpt configuration; {_nearest(name)}")
    if found.get("latent_attention"):
        raise ConfigError(f"{flag} {name!r} uses latent attention (DeepSeek MLA), which is not supported")
    return Config(**found)


def resolve_config_name(source_name: str, hf_config: dict[str, Any], model_name: str | None) -> str:
    """The name of the litgpt configuration for a model, checked against its config.json.

    `model_name` decides if given; else `source_name` (repo id or folder name) if litgpt knows it; else the
    one configuration that has the sizes of `hf_config`.
    Raises `ConfigError` where none or several fit, `CheckpointError` where config.json contradicts it.
    """
    check_convertible(source_name, hf_config)
    if model_name is None and _find(source_name) is None:
        return _name_by_sizes(source_name, hf_config)
    return str(build_config(hf_config, model_name or source_name).name)


def build_config(hf_config: dict[str, Any], model_name: str, what: str = "config.json") -> Config:
    """litgpt's configuration called `model_name`, with the rotary settings of a config.json, called `what` in errors.

    Raises as `config_by_name` and `check_config` do, and `CheckpointError` for settings that cannot be computed.
    """
    config = config_by_name(model_name)
    check_config(hf_config, config)
    flat = _flat(hf_config)
    fields = Fields(flat, what, CheckpointError)
    context = fields.get("max_position_embeddings", is_count, "a count", config.block_size)
    slides = config.sliding_window_indices[: config.n_layer] if config.sliding_window_size else [0] * config.n_layer
    built = Config(**asdict(config) | rotary_fields(flat, what, slides, context))
    try:
        scaling_of(built.rope_adjustments, built.rope_n_elem)
    except ValueError as exc:
        raise CheckpointError(f"{what}: {one_line(exc)}") from exc
    return built


def check_config(hf_config: dict[str, Any], config: Config) -> None:
    """Raise `CheckpointError` for the first field of config.json that differs from `config`."""
    for key, theirs, ours in _mismatches(hf_config, config):
        field = one_line(f"{key} {theirs}", 120)
        raise CheckpointError(
            f"config.json has {field}, but litgpt's {config.name} has {ours}: choose another --model-name"
        )


def _find(name: str) -> dict[str, Any] | None:
    """litgpt's table entry for `name`, exact spelling first."""
    last = name.rstrip("/").rpartition("/")[2]
    return _entry_called(name) or _entry_called(last) or _entry_called(last, str.casefold)


def _entry_called(name: str, fold: Callable[[str], str] = str) -> dict[str, Any] | None:
    """The first table entry with `name`, both sides compared after `fold`."""
    return next((dict(entry) for entry in configs if fold(name) in map(fold, _names(entry))), None)


def _names(entry: dict[str, Any]) -> list[str]:
    hub = entry.get("hf_config") or {}
    names = [entry["name"], hub.get("name"), f"{hub.get('org')}/{hub.get('name')}"]
    return [name for name in names if name]


def _nearest(name: str) -> str:
    last = name.rstrip("/").split("/")[-1].casefold()
    known = {str(entry["name"]).casefold(): str(entry["name"]) for entry in configs}
    close = [known[match] for match in difflib.get_close_matches(last, known, n=5, cutoff=0.4)]
    return f"nearest names: {', '.join(close)}" if close else f"no name is near; one of them is {configs[0]['name']}"


def check_convertible(source_name: str, hf_config: dict[str, Any]) -> None:
    """Raise `ConfigError` for latent attention, and for weights that are quantized."""
    if "kv_lora_rank" in hf_config or str(hf_config.get("model_type", "")).startswith("deepseek_v"):
        raise ConfigError(f"{source_name} uses latent attention (DeepSeek MLA), which is not supported")
    if hf_config.get("quantization_config"):
        method = hf_config["quantization_config"].get("quant_method", "unknown method")
        raise ConfigError(f"{source_name} is quantized ({one_line(str(method), 60)}): take the model it was made from")


def _name_by_sizes(source_name: str, hf_config: dict[str, Any]) -> str:
    model_type = hf_config.get("model_type")
    names = [
        str(config.name)
        for config in map(_entry_config, configs)
        if model_type in _FAMILIES and config is not None and not list(_mismatches(hf_config, config))
    ]
    if len(names) == 1:
        return names[0]
    if names:
        raise ConfigError(
            f"{source_name} fits {len(names)} litgpt configurations: choose one of {', '.join(names[:12])} "
            "with --model-name"
        )
    raise ConfigError(
        f"no litgpt configuration has the name or the numbers of {source_name} (model_type {quoted(model_type)}); "
        f"if one suits it, say --model-name; {_nearest(source_name)}"
    )


def _entry_config(entry: dict[str, Any]) -> Config | None:
    return None if entry.get("latent_attention") else Config(**entry)


def _mismatches(hf_config: dict[str, Any], config: Config) -> Iterator[tuple[str, Any, Any]]:
    """(field, value in config.json, value in litgpt) for each field that both have and that differs."""
    hf_config = _flat(hf_config)
    for trait, expected in _FAMILIES.get(hf_config.get("model_type", ""), {}).items():
        if getattr(config, trait) != expected:
            yield f"model_type {hf_config['model_type']}, so {trait}", expected, getattr(config, trait)
    for key, attribute in _FIELDS.items():
        theirs, ours = hf_config.get(key), getattr(config, attribute)
        known = isinstance(theirs, int | float) and ours is not None
        trimmed = key == "vocab_size" and known and _trimmed_vocabulary(config, int(theirs or 0))
        if known and theirs != ours and not trimmed:
            yield key, theirs, ours


def _flat(hf_config: dict[str, Any]) -> dict[str, Any]:
    """config.json with the text model's part of a multimodal one on top."""
    return hf_config | (hf_config.get("text_config") or {})


def _trimmed_vocabulary(config: Config, rows: int) -> bool:
    """Multimodal Gemma 3 has embedding rows for image tokens at the end, which litgpt drops."""
    return str(config.name).startswith("Gemma-3") and rows > config.padded_vocab_size
