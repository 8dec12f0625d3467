"""The families of models that litgpt computes, by `model_type`: what a config.json implies without a number for it."""

from dataclasses import dataclass, field
from typing import Any

_SILU = {"silu": "none", "swish": "none"}
_TANH = dict.fromkeys(("gelu_new", "gelu_pytorch_tanh", "gelu_fast", "gelu_python_tanh"), "tanh")
_GELU = _TANH | {"gelu": "none"}


@dataclass(frozen=True)
class Family:
    """What a `model_type` implies."""

    converts_as: str  # a name by which litgpt chooses how to copy this family's weights
    traits: dict[str, Any]  # litgpt's fields that follow from the family alone
    activations: dict[str, str] = field(default_factory=lambda: _SILU)  # name in config.json -> `gelu_approximate`
    activation: str = "silu"  # where config.json names none, as for all defaults below
    eps: float = 1e-6
    head_size: int | None = None  # None: n_embd / n_head
    tied: bool = False
    # Which layers have a sliding window: none; all where it has a width; where use_sliding_window asks for it all
    # ("asked") or those from max_window_layers on ("late"); or all but the last one of each `period` ("pattern").
    windows: str = "none"
    period: int = 0
    required: dict[str, tuple[Any, ...]] = field(default_factory=dict)  # the values of a field that can be computed
    caps: dict[str, tuple[str, float | None]] = field(default_factory=dict)  # litgpt's field -> name and default
    marker: str | None = None  # what litgpt wants to see in the name of such a model, and in no other's


_PLAIN = {"rotary_percentage": 1.0, "parallel_residual": False, "bias": False, "norm_qk": False}
_LLAMA = _PLAIN | {"norm_class_name": "RMSNorm", "mlp_class_name": "LLaMAMLP"}
_GEMMA = _LLAMA | {"mlp_class_name": "GemmaMLP", "scale_embeddings": True, "post_attention_norm": False}
_GEMMA2 = _GEMMA | {"post_attention_norm": True, "post_mlp_norm": True}
_NEOX = {"norm_class_name": "LayerNorm", "mlp_class_name": "GptNeoxMLP", "norm_qk": False}
_OLMO2 = _LLAMA | {"norm_qk": True, "norm_qk_type": "olmo2", "norm_1": False, "norm_2": False}
_NO_BIAS: dict[str, tuple[Any, ...]] = {"attention_bias": (False, None), "mlp_bias": (False, None)}
_ONE_WAY = _NO_BIAS | {"use_bidirectional_attention": (False, None)}
_EVERY_LAYER_ROUTED = _NO_BIAS | {"decoder_sparse_step": (1,), "mlp_only_layers": ([], None)}
_GEMMA_OPTIONS: dict[str, Any] = {
    "activations": _GELU,
    "activation": "gelu_pytorch_tanh",
    "head_size": 256,
    "tied": True,
    "required": _ONE_WAY,
    "marker": "Gemma",
}
_GEMMA2_CAPS: dict[str, tuple[str, float | None]] = {
    "attention_logit_softcapping": ("attn_logit_softcapping", 50.0),
    "final_logit_softcapping": ("final_logit_softcapping", 30.0),
}
_GEMMA3_CAPS: dict[str, tuple[str, float | None]] = {ours: (name, None) for ours, (name, _) in _GEMMA2_CAPS.items()}
_GEMMA3 = Family(
    "Gemma-3", _GEMMA2 | {"norm_qk": True}, windows="pattern", period=6, caps=_GEMMA3_CAPS, **_GEMMA_OPTIONS
)

FAMILIES = {
    "llama": Family("llama", _LLAMA, required=_NO_BIAS),
    "mistral": Family("llama", _LLAMA, windows="all"),
    "mixtral": Family("llama", _LLAMA | {"mlp_class_name": "LLaMAMoE"}, eps=1e-5, windows="all"),
    "qwen2": Family("Qwen2.5", _LLAMA | {"attn_bias": True}, windows="late"),
    "qwen3": Family("Qwen3", _LLAMA | {"norm_qk": True}, head_size=128, windows="late", required=_NO_BIAS),
    "qwen3_moe": Family(
        "Qwen3",
        _LLAMA | {"norm_qk": True, "mlp_class_name": "LLaMAMoE"},
        windows="asked",
        required=_EVERY_LAYER_ROUTED | {"norm_topk_prob": (True,)},  # litgpt always normalizes
    ),
    # Its first configurations say gelu, and it was trained with the approximation: transformers takes that too.
    "gemma": Family("llama", _GEMMA, **_GEMMA_OPTIONS | {"activations": _TANH | {"gelu": "tanh"}}),
    "gemma2": Family("Gemma-2", _GEMMA2, windows="pattern", period=2, caps=_GEMMA2_CAPS, **_GEMMA_OPTIONS),
    "gemma3": _GEMMA3,
    "gemma3_text": _GEMMA3,
    "phi3": Family("Phi-4", _LLAMA, eps=1e-5, windows="all"),
    "phi": Family(
        "phi-2",
        _NEOX | {"parallel_residual": True, "shared_attention_norm": True, "lm_head_bias": True, "bias": True},
        _GELU,
        "gelu_new",
        eps=1e-5,
        required={"qk_layernorm": (False, None)},
    ),
    "olmo": Family(
        "llama",
        _PLAIN | {"norm_class_name": "LayerNorm", "mlp_class_name": "LLaMAMLP"},
        eps=1e-5,
        required=_NO_BIAS | {"clip_qkv": (None,)},
        marker="OLMo",
    ),
    "olmo2": Family(
        "OLMo-2-", _OLMO2 | {"post_attention_norm": True, "post_mlp_norm": True}, eps=1e-5, required=_NO_BIAS
    ),
    "stablelm": Family(
        "llama",
        _PLAIN | {"norm_class_name": "LayerNorm", "mlp_class_name": "LLaMAMLP"},
        eps=1e-5,
        required=dict.fromkeys(("use_qkv_bias", "qk_layernorm", "use_parallel_residual"), (False, None)),
    ),
    "gpt_neox": Family("pythia", _NEOX | {"bias": True}, _GELU, "gelu", 1e-5, required={"attention_bias": (True,)}),
    "falcon": Family(
        "falcon-7b",
        _NEOX | {"parallel_residual": True, "bias": False, "rotary_percentage": 1.0},
        _GELU,
        "gelu",
        eps=1e-5,
        tied=True,
        required={"alibi": (False, None), "bias": (False, None), "parallel_attn": (True,)}
        | {"num_ln_in_parallel_attn": (None, 2)},
    ),
}


def label_of(source_name: str, model_type: str) -> str:
    """What to call a model that is in no table of litgpt's.

    litgpt decides by a name how a norm is computed: "Gemma" in it adds 1 to the weights, "OLMo" leaves them out.
    """
    label = "-".join(source_name.rstrip("/").rpartition("/")[2].split()) or "model"
    wanted = FAMILIES[model_type].marker
    for marker in ("Gemma", "OLMo"):
        if marker != wanted:
            label = label.replace(marker, marker.lower())
    return label if wanted is None or wanted in label else f"{wanted}-{label}"
