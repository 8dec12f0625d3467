"""The rotary settings of a config.json, in every form that transformers 4 and 5 write -> litgpt's fields.

transformers 4 writes `rope_theta`, `partial_rotary_factor` and `rope_scaling`; transformers 5 `rope_parameters`, where
each kind of layer may have its own. Both are read as transformers 5 reads them.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from mdi.documents import Fields, has_type, is_text
from mdi.errors import CheckpointError
from mdi.model.rotary import KIND, DynamicNtk, LongRope, Scaling, Yarn

MAX_FACTOR = 10**6  # by which a context is extended, far above any known model's
_LAYERS = ("full_attention", "sliding_attention")
# What transformers takes where config.json is silent: https://github.com/huggingface/transformers, configuration_*.py
_BASES = {"mixtral": 1e6, "gemma3": 1e6, "gemma3_text": 1e6}
_LOCAL_BASES = {"gemma3": 1e4, "gemma3_text": 1e4}  # of the layers with a sliding window
_SHARES = {"gpt_neox": 0.25, "stablelm": 0.25, "phi": 0.5}


@dataclass(frozen=True)
class _Context:
    """What a scaling method needs besides its own numbers."""

    context: int  # max_position_embeddings
    original: int | None  # original_max_position_embeddings outside the rotary settings, which comes first


def rotary_fields(flat: Mapping[str, Any], what: str, sliding_layers: list[int], context: int) -> dict[str, Any]:
    """litgpt's fields for the rotary settings of config.json, `block_size` among them.

    Args:
        flat: config.json with the text model's part on top.
        what: what it is called in an error.
        sliding_layers: 1 for each layer with a sliding window, else 0.
        context: the positions it was made for, `max_position_embeddings`.

    Raises `CheckpointError` for values of another type, and for methods that cannot be computed exactly.
    """
    fields = Fields(flat, what, CheckpointError)
    full, sliding = (_Layers(flat, what, layer) for layer in _LAYERS)
    if sliding_layers and all(sliding_layers):
        full = sliding  # no layer is of the other kind
    limits = _Context(context, fields.count("original_max_position_embeddings", None))
    scaling = full.scaling(limits)
    found: dict[str, Any] = {
        "rope_base": whole_if_integral(full.base),
        "rotary_percentage": full.share,
        "rope_condense_ratio": 1,
        "rope_adjustments": _adjustments(scaling),
        "rope_local_base_freq": None,
        "rope_indices": None,
        "block_size": _extended(context, scaling),
    }
    if any(sliding_layers) and not all(sliding_layers) and full.settings(limits) != sliding.settings(limits):
        found |= {"rope_local_base_freq": _local_base(full, sliding, limits, what), "rope_indices": sliding_layers}
    return found


class _Layers:
    """The rotary settings of one kind of layers."""

    def __init__(self, flat: Mapping[str, Any], what: str, layer: str) -> None:
        model_type = str(flat.get("model_type"))
        top = Fields(flat, what, CheckpointError)
        values = _parameters(flat, what, layer)
        local = layer == _LAYERS[1] and model_type in _LOCAL_BASES
        if local and values is flat.get("rope_scaling"):
            values = {}  # transformers 4 scales only the other layers of these models
        self.fields = Fields(values, f"{what}: rotary settings", CheckpointError)
        bases, key = (_LOCAL_BASES, "rope_local_base_freq") if local else (_BASES, "rope_theta")
        old = top.get("rotary_emb_base", _is_base, "a number above 1", bases.get(model_type, 1e4))
        outside = top.get(key, _is_base, "a number above 1", old)
        self.base = float(self.fields.get("rope_theta", _is_base, "a number above 1", outside))
        share = top.get("rotary_pct", _is_share, "a number up to 1", _SHARES.get(model_type, 1.0))
        share = top.get("partial_rotary_factor", _is_share, "a number up to 1", share)
        self.share = float(self.fields.get("partial_rotary_factor", _is_share, "a number up to 1", share))
        old_kind = self.fields.get("type", is_text, "a text", "default")
        kind = self.fields.get(KIND, is_text, "a text", old_kind)
        self.kind = "longrope" if kind == "su" or (kind == "yarn" and model_type == "phi3") else str(kind)
        self._what = what

    def settings(self, limits: _Context) -> tuple[object, ...]:
        """Equal for layers that rotate equally."""
        return self.base, self.share, self.scaling(limits)

    def scaling(self, limits: _Context) -> Scaling | dict[str, float] | None:
        """A method of ours, litgpt's adjustments, or None. Raises `CheckpointError` for another kind."""
        if self.kind == "default":
            return None
        if (method := _METHODS.get(self.kind)) is None:
            raise CheckpointError(
                f"{self._what}: rotary scaling of the kind {self.kind[:60]!r} is not supported, only"
                f" default, {', '.join(_METHODS)}"
            )
        return method(self.fields, limits)


def _parameters(flat: Mapping[str, Any], what: str, layer: str) -> object:
    """The settings of one kind of layers: a dictionary for all, or one with a dictionary for each kind."""
    values = flat.get("rope_scaling") or flat.get("rope_parameters") or {}
    if not isinstance(values, dict) or not values or not all(isinstance(v, dict | None) for v in values.values()):
        return values
    if foreign := sorted(values.keys() - set(_LAYERS)):
        raise CheckpointError(f"{what}: rotary settings for layers of the kind {foreign[0][:60]!r} are not supported")
    return values.get(layer) or {}


def _local_base(full: _Layers, sliding: _Layers, limits: _Context, what: str) -> float:
    if sliding.scaling(limits) is not None or sliding.share != full.share:
        raise CheckpointError(f"{what}: rotary settings of sliding_attention other than its base are not supported")
    return whole_if_integral(sliding.base)


def _adjustments(scaling: Scaling | dict[str, float] | None) -> dict[str, Any] | None:
    if scaling is None or isinstance(scaling, dict):
        return scaling
    name = {Yarn: "yarn", DynamicNtk: "dynamic", LongRope: "longrope"}[type(scaling)]
    return {KIND: name, **asdict(scaling)}


def _extended(context: int, scaling: Scaling | dict[str, float] | None) -> int:
    """The positions that a model can be run with: YaRN and dynamic NTK extend what config.json often still says."""
    if isinstance(scaling, Yarn | DynamicNtk):
        return max(context, round(scaling.factor * scaling.original_max_position_embeddings))
    return context


def _factor(fields: Fields, default: float | None = None) -> float:
    missing = {} if default is None else {"default": default}
    return float(fields.get("factor", _is_factor, "a number from 1 on", **missing))


def _original(fields: Fields, limits: _Context) -> int:
    own = fields.count("original_max_position_embeddings", limits.context)
    return int(limits.original or own)


def _linear(fields: Fields, limits: _Context) -> dict[str, float] | None:
    del limits
    return None if (factor := _factor(fields)) == 1 else {"factor": factor}


def _llama3(fields: Fields, limits: _Context) -> dict[str, float]:
    low, high = (float(fields.get(f"{name}_freq_factor", is_positive, "a positive number")) for name in ("low", "high"))
    original = _original(fields, limits)
    return {"factor": _factor(fields), "low_freq_factor": low, "high_freq_factor": high} | {
        "original_max_seq_len": original
    }


def _dynamic(fields: Fields, limits: _Context) -> DynamicNtk:
    return DynamicNtk(_factor(fields), limits.context)


def _yarn(fields: Fields, limits: _Context) -> Yarn:
    original = _original(fields, limits)
    factor = _factor(fields, max(limits.context / original, 1.0))
    return Yarn(
        factor,
        original,
        fields.get("attention_factor", is_positive, "a positive number", _yarn_attention(fields, factor)),
        beta_fast=_optional(fields, "beta_fast") or 32.0,
        beta_slow=_optional(fields, "beta_slow") or 1.0,
        truncate=fields.get("truncate", lambda value: isinstance(value, bool), "true or false", True),
    )


def _yarn_attention(fields: Fields, factor: float) -> float:
    """YaRN, https://arxiv.org/abs/2309.00071, equation 22; the ratio of two such factors as in DeepSeek V2."""
    numerator, denominator = _optional(fields, "mscale"), _optional(fields, "mscale_all_dim")
    if numerator and denominator:
        return _yarn_scale(factor, numerator) / _yarn_scale(factor, denominator)
    return _yarn_scale(factor, 1.0)


def _yarn_scale(factor: float, weight: float) -> float:
    return 0.1 * weight * math.log(factor) + 1.0


def _longrope(fields: Fields, limits: _Context) -> LongRope:
    original = _original(fields, limits)
    short, long = (fields.get(f"{name}_factor", _are_positive, "positive numbers") for name in ("short", "long"))
    factor = _factor(fields, max(limits.context / original, 1.0))
    # LongRoPE, https://arxiv.org/abs/2402.13753, as Phi-3 was published with it
    attention = math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 and original > 1 else 1.0
    attention = fields.get("attention_factor", is_positive, "a positive number", attention)
    return LongRope([float(value) for value in short], [float(value) for value in long], original, float(attention))


_METHODS = {"linear": _linear, "llama3": _llama3, "dynamic": _dynamic, "yarn": _yarn, "longrope": _longrope}


def whole_if_integral(value: float) -> int | float:
    """A base as litgpt writes it."""
    return int(value) if value.is_integer() else value


def _optional(fields: Fields, name: str) -> float:
    """A number from 0 on; 0, which transformers takes for none, where it is missing."""
    value = fields.get(name, lambda value: has_type(value, float) and 0 <= value < math.inf, "a number from 0 on", 0)
    return float(value)


def is_positive(value: Any) -> bool:
    return has_type(value, float) and 0 < value < math.inf


def _is_base(value: Any) -> bool:
    return has_type(value, float) and 1 < value < math.inf


def _is_share(value: Any) -> bool:
    return has_type(value, float) and 0 < value <= 1


def _is_factor(value: Any) -> bool:
    return has_type(value, float) and 1 <= value <= MAX_FACTOR


def _are_positive(value: Any) -> bool:
    return isinstance(value, list) and 0 < len(value) <= 1 << 15 and all(map(is_positive, value))
