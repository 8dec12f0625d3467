"""The model that a GGUF file's metadata describes -> litGPT's `Config`. File and model names decide nothing here."""

import math
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from litgpt.config import Config, name_to_config
from litgpt.model import build_rope_cache

from mdi.convert.gguf.file import GgufFile, Metadata
from mdi.errors import CheckpointError
from mdi.model.gpt2 import Gpt2Config, gpt2_config
from mdi.model.rotary import KIND, Yarn, scaling_of

MAX_CONTEXT = 2**24
_FREQUENCIES = "rope_freqs.weight"


@dataclass(frozen=True)
class Architecture:
    """What `general.architecture` implies without a metadata key."""

    permuted: bool = False  # q and k rows are stored in the order of interleaved rotary
    gemma: bool = False  # norms stored with 1 added; scaled embeddings; GELU
    norm_qk: bool = False
    post_norms: bool = False
    learned_positions: bool = False  # and with them all that is particular to GPT-2
    window: int = 0  # sliding window and its period, where the metadata leave them out
    period: int = 0
    n_layer_27b: int = 0  # the one size whose attention scale is n_embd / n_head, not the head size


ARCHITECTURES = {
    "llama": Architecture(permuted=True),
    "gpt2": Architecture(learned_positions=True),
    "qwen2": Architecture(),
    "qwen3": Architecture(norm_qk=True),
    "qwen3moe": Architecture(norm_qk=True),
    "gemma": Architecture(gemma=True),
    "gemma2": Architecture(gemma=True, post_norms=True, window=4096, period=2, n_layer_27b=46),
    "gemma3": Architecture(gemma=True, post_norms=True, norm_qk=True, period=6, n_layer_27b=62),
}

# Keys that change the arithmetic in ways litGPT's blocks have no field for, with the values that change nothing.
_REFUSED_UNLESS: dict[str, tuple[Any, ...]] = {
    "attention.causal": (True,),
    "attention.clamp_kqv": (0.0,),
    "attention.scale": (0.0,),
    "embedding_scale": (0.0, 1.0),
    "expert_gating_func": (0, 1),
    "expert_shared_count": (0,),
    "expert_weights_scale": (0.0, 1.0),
    "leading_dense_block_count": (0,),
    "logit_scale": (0.0, 1.0),
    "residual_scale": (0.0, 1.0),
    "rope.scaling.alpha": (0.0,),
    "rope.scaling.attn_factor": (1.0,),
    "rope.scaling.yarn_attn_factor": (1.0,),
    "rope.scaling.yarn_ext_factor": (1.0,),
    "rope.scaling.yarn_log_multiplier": (0.0,),
    "use_parallel_residual": (False,),
}


class _Keys:
    """The metadata under one architecture's prefix."""

    def __init__(self, file: GgufFile) -> None:
        self.file = file
        self.name = file.metadata.string("general.architecture")
        if self.name not in ARCHITECTURES:
            raise CheckpointError(
                f"{file.path}: architecture {self.name!r} is not supported, only {', '.join(ARCHITECTURES)} are;"
                " prepare this model from its Hugging Face folder instead"
            )

    def integer(self, key: str, default: int | None = None, limit: int = 2**31) -> int:
        value = self.file.metadata.integer(f"{self.name}.{key}", default)
        if not 0 <= value <= limit:
            raise self.error(f"{self.name}.{key} is {value}, expected 0 to {limit}")
        return value

    def positive(self, key: str, default: int | None = None, limit: int = 2**31) -> int:
        value = self.integer(key, default, limit)
        if value == 0:
            raise self.error(f"{self.name}.{key} is 0")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        return _shortest(self.file.metadata.number(f"{self.name}.{key}", default))

    def has(self, key: str) -> bool:
        return f"{self.name}.{key}" in self.file.metadata

    def error(self, text: str) -> CheckpointError:
        return CheckpointError(f"{self.file.path}: {text}")


def architecture_of(file: GgufFile) -> Architecture:
    return ARCHITECTURES[_Keys(file).name]


def build_config(file: GgufFile, n_tokens: int, name: str | None = None) -> Config:
    """The `Config` of the model in `file`, whose tokenizer has `n_tokens` tokens.

    `name` is a label: it selects a prompt style later, and no parameter here. Raises `CheckpointError` for what
    litGPT cannot compute exactly.
    """
    keys = _Keys(file)
    architecture = ARCHITECTURES[keys.name]
    _refuse_foreign_arithmetic(keys)
    if architecture.learned_positions:
        return _gpt2(keys, n_tokens, name)
    fields = _sizes(keys, n_tokens) | _mlp(keys, architecture)
    fields["norm_eps"] = keys.number("attention.layer_norm_rms_epsilon")
    fields |= _rotary(keys, fields["head_size"])
    fields |= _attention(keys, architecture, fields)
    try:
        return Config(
            name=config_name(file.metadata, name, gemma=architecture.gemma),
            parallel_residual=False,
            bias=False,
            norm_class_name="RMSNorm",
            **fields,
        )
    except (AssertionError, ValueError) as exc:
        raise keys.error(f"its metadata contradict each other: {exc}") from exc


def config_name(metadata: Metadata, name: str | None, *, gemma: bool) -> str:
    """A label for the model, in litGPT's spelling where litGPT knows it.

    litGPT adds 1 to the norms of every model whose name holds "Gemma", so that exactly the Gemma architectures do.
    """
    label = "-".join((name or _own_name(metadata)).rsplit("/", 1)[-1].split())
    label = {_squashed(known): known for known in name_to_config}.get(_squashed(label), label)
    label = re.sub("gemma", "Gemma" if gemma else "gemma", label, flags=re.IGNORECASE)
    return label if "Gemma" in label or not gemma else f"Gemma-{label}"


def _own_name(metadata: Metadata) -> str:
    parts = (metadata.string(f"general.{key}", "").strip() for key in ("basename", "size_label", "finetune"))
    return metadata.string("general.name", "").strip() or "-".join(filter(None, parts)) or "model"


def _squashed(name: str) -> str:
    return re.sub("[^a-z0-9]", "", name.lower())


def _refuse_foreign_arithmetic(keys: _Keys) -> None:
    for key, neutral in _REFUSED_UNLESS.items():
        value = keys.file.metadata.value(f"{keys.name}.{key}")
        if value is not None and (isinstance(value, np.ndarray) or value not in neutral):
            raise keys.error(f"{keys.name}.{key} = {value!r}, which litGPT cannot express")


def _sizes(keys: _Keys, n_tokens: int) -> dict[str, Any]:
    embedding = keys.file.tensors.get("token_embd.weight")
    if embedding is None or len(embedding.shape) != 2:
        raise keys.error("the tensor token_embd.weight is missing or not a matrix")
    n_rows, n_embd = embedding.shape
    if keys.positive("embedding_length") != n_embd or n_tokens > n_rows:
        raise keys.error(
            f"token_embd.weight has {n_rows} x {n_embd} values, which does not fit {n_tokens} tokens and"
            f" {keys.name}.embedding_length = {keys.positive('embedding_length')}"
        )
    n_head = keys.positive("attention.head_count")
    n_query_groups = keys.positive("attention.head_count_kv", n_head)
    head_size = keys.positive("attention.key_length", n_embd // n_head)
    if n_head % n_query_groups or keys.positive("attention.value_length", head_size) != head_size:
        raise keys.error(f"{n_head} heads with {n_query_groups} key/value heads, or key and value lengths, do not fit")
    return {
        "block_size": keys.positive("context_length", limit=MAX_CONTEXT),
        "n_layer": keys.positive("block_count", limit=len(keys.file.tensors)),
        "n_embd": n_embd,
        "vocab_size": n_tokens,
        "padded_vocab_size": n_rows,
        "n_head": n_head,
        "n_query_groups": n_query_groups,
        "head_size": head_size,
    }


def _gpt2(keys: _Keys, n_tokens: int, name: str | None) -> Gpt2Config:
    """llama.cpp computes GELU by tanh, as GPT-2 was trained with."""
    fields = _sizes(keys, n_tokens) | {"intermediate_size": keys.positive("feed_forward_length")}
    label = config_name(keys.file.metadata, name, gemma=False)
    try:
        return gpt2_config(label, norm_eps=keys.number("attention.layer_norm_epsilon"), **fields)
    except (AssertionError, ValueError) as exc:
        raise keys.error(f"its metadata contradict each other: {exc}") from exc


def _mlp(keys: _Keys, architecture: Architecture) -> dict[str, Any]:
    fields: dict[str, Any] = {"intermediate_size": keys.positive("feed_forward_length"), "mlp_class_name": "LLaMAMLP"}
    if architecture.gemma:
        return fields | {"mlp_class_name": "GemmaMLP", "gelu_approximate": "tanh", "scale_embeddings": True}
    n_expert = keys.integer("expert_count", 0, limit=2**12)
    if n_expert == 0:
        return fields
    router = keys.file.tensors.get("blk.0.ffn_gate_inp.weight")
    if router is None or router.shape[0] != n_expert:
        raise keys.error(f"blk.0.ffn_gate_inp.weight is missing, or not for {n_expert} experts")
    moe = {"mlp_class_name": "LLaMAMoE", "n_expert": n_expert}
    moe["n_expert_per_token"] = keys.positive("expert_used_count", limit=n_expert)
    if keys.has("expert_feed_forward_length"):
        moe["moe_intermediate_size"] = keys.positive("expert_feed_forward_length")
    return fields | moe


def _attention(keys: _Keys, architecture: Architecture, fields: dict[str, Any]) -> dict[str, Any]:
    """Norms, biases, scale, softcaps and sliding windows. `fields` are the sizes found so far."""
    added: dict[str, Any] = {
        "attn_bias": "blk.0.attn_q.bias" in keys.file.tensors,
        "norm_qk": architecture.norm_qk,
        "post_attention_norm": architecture.post_norms,
        "post_mlp_norm": architecture.post_norms,
    }
    if not architecture.post_norms:
        return added
    is_27b = fields["n_layer"] == architecture.n_layer_27b
    added["attention_scores_scalar"] = fields["n_embd"] // fields["n_head"] if is_27b else fields["head_size"]
    if keys.name == "gemma2":
        added["attention_logit_softcapping"] = keys.number("attn_logit_softcapping", 50.0)
    cap = keys.number("final_logit_softcapping", 30.0 if keys.name == "gemma2" else 0.0)
    added["final_logit_softcapping"] = cap or None
    return added | _sliding(keys, architecture, fields)


def _sliding(keys: _Keys, architecture: Architecture, fields: dict[str, Any]) -> dict[str, Any]:
    window = keys.integer("attention.sliding_window", architecture.window)
    slides = _sliding_layers(keys, architecture.period, fields["n_layer"])
    if window == 0 or not any(slides):
        return {}
    added: dict[str, Any] = {"sliding_window_size": window, "sliding_window_indices": slides}
    local = keys.number("rope.freq_base_swa", 10000.0 if keys.name == "gemma3" else float(fields["rope_base"]))
    if keys.name == "gemma3" or local != fields["rope_base"]:
        added |= {"rope_local_base_freq": _whole(local), "rope_indices": slides}
    return added


def _sliding_layers(keys: _Keys, period: int, n_layer: int) -> list[int]:
    """1 for each layer with a sliding window. The key holds a flag per layer, or a period that one full layer ends."""
    key = "attention.sliding_window_pattern"
    if keys.has(key) and isinstance(keys.file.metadata.value(f"{keys.name}.{key}"), np.ndarray):
        flags = keys.file.metadata.array(f"{keys.name}.{key}")
        if flags is None or len(flags) != n_layer:
            raise keys.error(f"{keys.name}.{key} does not have one entry for each of the {n_layer} layers")
        return [int(bool(flag)) for flag in flags]
    period = keys.integer(key, period)
    return [int(period == 0 or i % period < period - 1) for i in range(n_layer)]


def _rotary(keys: _Keys, head_size: int) -> dict[str, Any]:
    n_elem = keys.positive("rope.dimension_count", head_size)
    # Where rows are permuted, a partial rotation would be over other rows than those of the file's converter.
    partial = n_elem < head_size and not ARCHITECTURES[keys.name].permuted
    if not (n_elem == head_size or partial) or n_elem % 2 or int(n_elem / head_size * head_size) != n_elem:
        raise keys.error(f"{keys.name}.rope.dimension_count = {n_elem} with heads of {head_size} is not supported")
    base = keys.number("rope.freq_base", 10000.0)
    if base <= 1.0:
        raise keys.error(f"{keys.name}.rope.freq_base = {base} is not supported")
    return {
        "rotary_percentage": n_elem / head_size,
        "rope_base": _whole(base),
        "rope_adjustments": _rope_adjustments(keys, n_elem, base),
    }


def _rope_adjustments(keys: _Keys, n_elem: int, base: float) -> dict[str, Any] | None:
    kind = keys.file.metadata.string(f"{keys.name}.rope.scaling.type", "linear")
    if kind not in ("none", "linear", "yarn"):
        raise keys.error(f"rotary scaling of the kind {kind!r} is not supported, only 'linear', 'yarn' and Llama 3's")
    if kind == "yarn":
        return _yarn(keys, n_elem)
    factor = keys.number("rope.scaling.factor", keys.number("rope.scale_linear", 0.0)) if kind == "linear" else 0.0
    linear = None if factor in (0.0, 1.0) else {"factor": factor}
    info = keys.file.tensors.get(_FREQUENCIES)
    if info is None or not ARCHITECTURES[keys.name].permuted:
        return linear
    if linear or info.shape != (n_elem // 2,):
        raise keys.error(f"rope_freqs.weight has the shape {list(info.shape)}, or comes with linear scaling too")
    return _from_factors(keys, keys.file.rows(info, 0, 1)[0].astype(np.float64), n_elem, base)


def _yarn(keys: _Keys, n_elem: int) -> dict[str, Any]:
    """YaRN as llama.cpp computes it (`ggml_rope_yarn_corr_dims`, `rope_yarn`), which scales attention by the paper."""
    factor = keys.number("rope.scaling.factor")
    if _FREQUENCIES in keys.file.tensors or not factor >= 1:
        raise keys.error(f"rotary scaling 'yarn' with the factor {factor}, or with rope_freqs.weight, is not supported")
    scaling = Yarn(
        factor=factor,
        original_max_position_embeddings=keys.positive("rope.scaling.original_context_length", limit=MAX_CONTEXT),
        attention_factor=1.0 + 0.1 * math.log(factor),
        beta_fast=keys.number("rope.scaling.yarn_beta_fast", 32.0),
        beta_slow=keys.number("rope.scaling.yarn_beta_slow", 1.0),
    )
    adjustments = {KIND: "yarn", **asdict(scaling)}
    try:
        scaling_of(adjustments, n_elem)
    except ValueError as exc:
        raise keys.error(str(exc)) from exc
    return adjustments


def _from_factors(keys: _Keys, factors: npt.NDArray[Any], n_elem: int, base: float) -> dict[str, float] | None:
    """Llama 3 divides each rotary frequency by a factor of its own; find the four numbers they come from.

    factors: (n_elem / 2,). The first proposal with which litGPT's own table gives the same frequencies is returned.
    """
    if np.array_equal(factors, np.ones_like(factors)):
        return None
    frequencies = base ** (-np.arange(0, n_elem, 2) / n_elem)
    for adjustments in _proposals(frequencies, factors):
        _, sin = cache = build_rope_cache(2, n_elem, base=_whole(base), extra_config=adjustments)
        angles = torch.atan2(sin[1], cache[0][1])[: n_elem // 2].double().numpy()
        if np.allclose(angles * factors, frequencies, rtol=1e-5, atol=0.0):
            return adjustments
    raise keys.error("rope_freqs.weight does not follow the rotary scaling of Llama 3, which is all litGPT can express")


def _proposals(frequencies: npt.NDArray[Any], factors: npt.NDArray[Any]) -> Iterable[dict[str, float]]:
    """Between the low and the high frequencies, (1/f - 1/F) / (1 - 1/F) = (L / wavelength - low) / (high - low).

    That is a line in the frequency; its slope and intercept fix L and high for low = 1, as in every Llama 3.
    """
    if not np.isfinite(factors).all() or factors.min() <= 0 or factors.max() <= 1:
        return
    largest = _shortest(float(factors.max()))
    between = (factors > 1 + 1e-6) & (factors < largest * (1 - 1e-6))
    if between.sum() >= 2:
        share = (1 / factors[between] - 1 / largest) / (1 - 1 / largest)
        slope, intercept = np.polyfit(frequencies[between] / (2 * np.pi), share, 1).tolist()
        if intercept < 0 < slope:
            yield _llama3(largest, round(1 - 1 / intercept, 2), round(-slope / intercept))
    for high in (4.0, 2.0, 8.0):
        yield _llama3(largest, high, 8192)
    yield {"factor": largest}


def _llama3(factor: float, high: float, original: int) -> dict[str, float]:
    return {
        "factor": factor,
        "low_freq_factor": 1.0,
        "high_freq_factor": max(high, 1.01),
        "original_max_seq_len": original,
    }


def _shortest(value: float) -> float:
    """The shortest decimal that a 32-bit float stores as `value`: 1e-05 rather than 9.999999747378752e-06."""
    return float(str(np.float32(value)))


def _whole(value: float) -> int | float:
    return int(value) if value.is_integer() else value
