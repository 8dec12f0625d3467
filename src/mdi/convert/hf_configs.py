"""The configuration of a Hugging Face model: its kind by name or `model_type`, its numbers by config.json."""

import difflib
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

from litgpt.config import Config, configs

from mdi.convert import gpt2
from mdi.convert.hf_families import FAMILIES, Family, label_of
from mdi.convert.hf_numbers import number_fields
from mdi.convert.hf_rotary import rotary_fields
from mdi.documents import Fields
from mdi.errors import CheckpointError, ConfigError
from mdi.model.rotary import scaling_of
from mdi.strings import one_line, quoted

# Fields of config.json and litgpt's name for the same quantity, compared where the kind of model is unknown.
_SIZES = {
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


def config_by_name(name: str, *, flag: str = "--model-name", others: Sequence[str] = ()) -> Config:
    """litgpt's configuration called `name`: its own name, a repo's name, or org/name.

    Raises `ConfigError` naming `flag` and the nearest names, also of `others` that the flag takes, or where the model
    needs latent attention.
    """
    found = _find(name)
    if found is None:
        raise ConfigError(f"{flag} {name!r} is not a litgpt configuration; {_nearest(name, others)}")
    if found.get("latent_attention"):
        raise ConfigError(f"{flag} {name!r} uses latent attention (DeepSeek MLA), which is not supported")
    return Config(**found)


def resolve_config_name(source_name: str, hf_config: dict[str, Any], model_name: str | None) -> str:
    """What to call a model, with all numbers of its config.json checked: litgpt's name for it, if it has one.

    `model_name` decides if given; else `source_name` (repo id or folder name) if litgpt knows it; else the model is
    called after `source_name`, and has the numbers of `hf_config`, whose `model_type` must be a known one.
    Raises `ConfigError` for unknown names, `CheckpointError` where config.json contradicts a known one.
    """
    check_convertible(source_name, hf_config)
    if _is_gpt2(hf_config):
        name = model_name or "-".join(source_name.rstrip("/").rpartition("/")[2].split())
    elif model_name is not None:
        name = str(config_by_name(model_name).name)
    elif (entry := _find(source_name)) is not None:
        name = str(config_by_name(entry["name"]).name)
    elif (model_type := str(_flat(hf_config).get("model_type"))) in FAMILIES:
        name = label_of(source_name, model_type)
    else:
        raise ConfigError(
            f"no litgpt configuration has the name of {source_name}, and its model_type {quoted(model_type)} is none of"
            f" {', '.join([*FAMILIES, gpt2.MODEL_TYPE])}; if a configuration suits it, say --model-name;"
            f" {_nearest(source_name)}"
        )
    build_config(hf_config, name)
    return name


def build_config(hf_config: dict[str, Any], name: str, what: str = "config.json") -> Config:
    """The configuration of a model that is called `name`: the kind of model from litgpt, the numbers from config.json.

    `what` is config.json in an error. Raises `CheckpointError` for numbers that cannot be computed, or where `name` is
    in litgpt's table as another kind of model, and `ConfigError` for a name that is not, of an unknown `model_type`.
    """
    flat = _flat(hf_config)
    if _is_gpt2(hf_config):
        return gpt2.config_of(flat, name, what)
    family = FAMILIES.get(str(flat.get("model_type")))
    entry = None if family is not None and _find(name) is None else config_by_name(name)
    if family is None:
        assert entry is not None
        return _with_rotary(entry, flat, what)
    if entry is not None:
        _check_kind(flat, family, entry)
    known = {} if entry is None else asdict(entry)
    numbers = number_fields(flat, family, known, what)
    return _checked(known | family.traits | numbers | {"name": name if entry is None else entry.name}, what)


def _with_rotary(entry: Config, flat: dict[str, Any], what: str) -> Config:
    """An entry of litgpt's table for an unknown kind of model, of which only the rotary settings are read.

    Raises `CheckpointError` for the first size in config.json that differs from the entry.
    """
    for key, attribute in _SIZES.items():
        theirs, ours = flat.get(key), getattr(entry, attribute)
        if theirs is not None and theirs != ours:
            raise CheckpointError(
                f"{what} has {key} {quoted(theirs)}, but litgpt's {entry.name} has {ours}: choose another --model-name"
            )
    fields = Fields(flat, what, CheckpointError)
    context = fields.count("max_position_embeddings", entry.block_size)
    slides = entry.sliding_window_indices[: entry.n_layer] if entry.sliding_window_size else [0] * entry.n_layer
    return _checked(asdict(entry) | rotary_fields(flat, what, slides, context), what)


def _checked(fields: dict[str, Any], what: str) -> Config:
    try:
        config = Config(**fields)
        scaling_of(config.rope_adjustments, config.rope_n_elem)
    except (AssertionError, ValueError) as exc:
        raise CheckpointError(f"{what}: its numbers contradict each other: {one_line(exc)}") from exc
    return config


def _check_kind(flat: dict[str, Any], family: Family, entry: Config) -> None:
    """Raise `CheckpointError` for the first trait of a family that litgpt's entry does not have."""
    for trait, expected in family.traits.items():
        if trait != "rotary_percentage" and (ours := getattr(entry, trait)) != expected:
            raise CheckpointError(
                f"config.json has model_type {flat['model_type']}, so {trait} {expected}, but litgpt's"
                f" {entry.name} has {ours}: choose another --model-name"
            )


def conversion_name(hf_config: dict[str, Any], config: Config) -> str:
    """The name by which litgpt chooses how to copy the weights of a model."""
    family = FAMILIES.get(str(_flat(hf_config).get("model_type")))
    if family is None:
        return str(config.name)
    return "falcon-40b" if family is FAMILIES["falcon"] and not config.shared_attention_norm else family.converts_as


def is_tied(hf_config: dict[str, Any]) -> bool:
    """Whether the head of a model is its embedding, as transformers decides it."""
    family = FAMILIES.get(str(_flat(hf_config).get("model_type")))
    tied = _flat(hf_config).get("tie_word_embeddings")
    if tied is None:
        return _is_gpt2(hf_config) or (family is not None and family.tied)
    return bool(tied)


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


def _nearest(name: str, others: Sequence[str] = ()) -> str:
    last = name.rstrip("/").split("/")[-1].casefold()
    names = [*others, *(str(entry["name"]) for entry in configs)]
    known = {name.casefold(): name for name in names}
    close = [known[match] for match in difflib.get_close_matches(last, known, n=5, cutoff=0.4)]
    return f"nearest names: {', '.join(close)}" if close else f"no name is near; one of them is {configs[0]['name']}"


def check_convertible(source_name: str, hf_config: dict[str, Any]) -> None:
    """Raise `ConfigError` for latent attention, and for weights that are quantized."""
    if "kv_lora_rank" in hf_config or str(hf_config.get("model_type", "")).startswith("deepseek_v"):
        raise ConfigError(f"{source_name} uses latent attention (DeepSeek MLA), which is not supported")
    if hf_config.get("quantization_config"):
        method = hf_config["quantization_config"].get("quant_method", "unknown method")
        raise ConfigError(f"{source_name} is quantized ({one_line(str(method), 60)}): take the model it was made from")


def _is_gpt2(hf_config: dict[str, Any]) -> bool:
    """Whether the model is of the one family that litgpt lacks."""
    return hf_config.get("model_type") == gpt2.MODEL_TYPE


def _flat(hf_config: dict[str, Any]) -> dict[str, Any]:
    """config.json with the text model's part of a multimodal one on top."""
    return hf_config | (hf_config.get("text_config") or {})
