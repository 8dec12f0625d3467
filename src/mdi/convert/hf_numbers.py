"""The numbers of a config.json -> litgpt's fields: sizes, epsilons, activation, windows, soft caps, experts."""

from collections.abc import Mapping
from typing import Any

from mdi.checkpoint.config import MAX_VALUES
from mdi.convert.hf_families import Family
from mdi.convert.hf_rotary import is_positive, rotary_fields
from mdi.documents import Fields, has_type, is_text
from mdi.errors import CheckpointError
from mdi.strings import quoted

_SCALAR = "attention_scores_scalar"


def number_fields(flat: Mapping[str, Any], family: Family, known: Mapping[str, Any], what: str) -> dict[str, Any]:
    """litgpt's fields for the numbers of config.json.

    Args:
        flat: config.json with the text model's part on top.
        known: the fields of litgpt's entry for this very model, if it has one: for what config.json leaves out.
        what: what config.json is called in an error.

    Raises `CheckpointError` for what is missing, of another type, or cannot be computed exactly.
    """
    fields = Fields(flat, what, CheckpointError)
    _require(flat, family, what)
    found = _sizes(fields, family, known) | _norm_and_activation(fields, family, known, what)
    if flat.get("model_type") == "falcon":
        found |= _falcon(fields, found)
    if flat.get("model_type") == "gpt_neox":
        found["parallel_residual"] = fields.flag("use_parallel_residual", True)
    if family.traits["mlp_class_name"] == "LLaMAMoE":
        found |= _experts(fields, known)
    slides = _sliding_layers(fields, family, found["n_layer"], what)
    found |= _windows(fields, slides, known, what) | _scores(fields, family, known)
    context = fields.count("max_position_embeddings", known.get("block_size", 2048))
    return found | rotary_fields(flat, what, slides, context)


def _require(flat: Mapping[str, Any], family: Family, what: str) -> None:
    """Compare the fields that change the arithmetic in ways that litgpt has no field for."""
    for name, values in family.required.items():
        if name in flat and not any(type(flat[name]) is type(value) and flat[name] == value for value in values):
            raise CheckpointError(f"{what}: {name} is {quoted(flat[name])}, which cannot be computed")


def _sizes(fields: Fields, family: Family, known: Mapping[str, Any]) -> dict[str, Any]:
    n_embd = _count(fields, ("hidden_size", "n_embed", "n_embd"), known.get("n_embd"))
    n_head = _count(fields, ("num_attention_heads", "n_head"), known.get("n_head"))
    n_rows = _count(fields, ("vocab_size",), known.get("padded_vocab_size"))
    if "text_config" in fields:  # the last rows of multimodal Gemma 3 are for image tokens; litgpt drops them
        n_rows = min(n_rows, known.get("padded_vocab_size", n_rows))
    own_head_size = known.get("head_size") or family.head_size or max(n_embd // n_head, 1)
    mlp_keys = ("intermediate_size", "ffn_hidden_size")
    return {
        "n_layer": _count(fields, ("num_hidden_layers", "n_layer"), known.get("n_layer"), limit=MAX_VALUES["n_layer"]),
        "n_embd": n_embd,
        "n_head": n_head,
        "n_query_groups": _count(fields, ("num_key_value_heads",), known.get("n_query_groups") or n_head),
        "head_size": _count(fields, ("head_dim",), own_head_size),
        "intermediate_size": _count(fields, mlp_keys, known.get("intermediate_size") or 4 * n_embd),
        "padded_vocab_size": n_rows,
        "vocab_size": known["vocab_size"] if known.get("padded_vocab_size") == n_rows else n_rows,
    }


def _count(fields: Fields, names: tuple[str, ...], default: int | None, limit: int = 2**31 - 1) -> int:
    """The first of several spellings. Raises `CheckpointError` where all are missing and there is no default."""

    def check(value: Any) -> bool:
        return type(value) is int and 0 < value <= limit

    for name in names:
        if (value := fields.get(name, check, f"a count up to {limit}", 0)) != 0:
            return int(value)
    return default or int(fields.get(names[0], check, "a count"))


def _norm_and_activation(fields: Fields, family: Family, known: Mapping[str, Any], what: str) -> dict[str, Any]:
    eps = known.get("norm_eps") or family.eps
    for name in ("rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon"):
        eps = fields.get(name, is_small, "a number above 0 and below 1", eps)
    activation = family.activation
    for name in ("activation", "hidden_act", "hidden_activation"):
        activation = fields.get(name, is_text, "a text", activation)
    if activation not in family.activations:
        raise CheckpointError(f"{what}: the activation {activation[:60]!r} is not supported for this kind of model")
    return {"norm_eps": float(eps), "gelu_approximate": family.activations[activation]}


def _falcon(fields: Fields, sizes: dict[str, Any]) -> dict[str, Any]:
    """Two generations: one key and value head and one norm for both branches, or any number and two norms."""
    if fields.flag("new_decoder_architecture", False):
        groups = _count(fields, ("num_kv_heads", "n_head_kv"), sizes["n_head"])
        return {"n_query_groups": groups, "shared_attention_norm": False}
    one = fields.flag("multi_query", True)
    return {"n_query_groups": 1 if one else sizes["n_head"], "shared_attention_norm": True}


def _experts(fields: Fields, known: Mapping[str, Any]) -> dict[str, Any]:
    n_expert = _count(fields, ("num_local_experts", "num_experts"), known.get("n_expert"), limit=MAX_VALUES["n_expert"])
    width = fields.count("moe_intermediate_size", known.get("moe_intermediate_size"))
    per_token = _count(fields, ("num_experts_per_tok",), known.get("n_expert_per_token"), limit=n_expert)
    return {"n_expert": n_expert, "n_expert_per_token": per_token, "moe_intermediate_size": width}


def _sliding_layers(fields: Fields, family: Family, n_layer: int, what: str) -> list[int]:
    """1 for each layer with a sliding window, else 0, as transformers decides it."""
    if family.windows == "none" or not _has_window(fields, family):
        return [0] * n_layer
    kinds = fields.get("layer_types", lambda value: has_type(value, list[str]), "a list of texts", None)
    if family.windows in ("all", "asked"):
        return [1] * n_layer
    if kinds is not None:
        if len(kinds) != n_layer or not set(kinds) <= {"full_attention", "sliding_attention"}:
            raise CheckpointError(f"{what}: layer_types {quoted(kinds)} are not supported for {n_layer} layers")
        return [int(kind == "sliding_attention") for kind in kinds]
    if family.windows == "late":
        first = fields.get("max_window_layers", lambda value: type(value) is int and value >= 0, "a count", 28)
        return [int(layer >= first) for layer in range(n_layer)]
    period = fields.count("sliding_window_pattern", family.period)
    return [int((layer + 1) % period != 0) for layer in range(n_layer)]


def _has_window(fields: Fields, family: Family) -> bool:
    """The families of Qwen carry the width of a window that they do not use."""
    uses = fields.flag("use_sliding_window", family.windows in ("all", "pattern"))
    return uses and (family.windows == "pattern" or _width(fields) is not None)


def _width(fields: Fields) -> int | None:
    width: int | None = fields.count("sliding_window", None)
    return width


def _windows(fields: Fields, slides: list[int], known: Mapping[str, Any], what: str) -> dict[str, Any]:
    if not any(slides):
        return {"sliding_window_size": None, "sliding_window_indices": None}
    if (width := _width(fields) or known.get("sliding_window_size")) is None:
        raise CheckpointError(f"{what}: lacks sliding_window")
    return {"sliding_window_size": width, "sliding_window_indices": slides}


def _scores(fields: Fields, family: Family, known: Mapping[str, Any]) -> dict[str, Any]:
    """Soft caps and the scale of the scores, which only some families have."""
    if family.windows != "pattern":
        return {}
    found: dict[str, Any] = {_SCALAR: _count(fields, ("query_pre_attn_scalar",), known.get(_SCALAR) or 256)}
    for ours, (theirs, default) in family.caps.items():
        missing = known.get(ours, default) if theirs not in fields else None  # null means no cap
        found[ours] = fields.get(theirs, is_positive, "a positive number", missing)
    return found


def is_small(value: Any) -> bool:
    return has_type(value, float) and 0 < value < 1
