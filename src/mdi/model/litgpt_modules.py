"""litgpt's configuration and modules: where every module of a running node gets them from."""

import importlib
import sys
from types import ModuleType
from typing import Any

from mdi import litgpt_package

_CONVERSION = "litgpt.scripts.convert_hf_checkpoint"


def qkv_reassemble(tensor: Any, config: Any) -> Any:
    """litgpt's, which rearranges the interleaved queries, keys and values of old checkpoints."""
    return importlib.import_module(_CONVERSION).qkv_reassemble(tensor, config)


def _import_model() -> None:
    """Import `litgpt.model` without the conversion from which it takes one function, and which imports lightning."""
    if "litgpt.model" in sys.modules or _CONVERSION in sys.modules:
        return
    stand_in = ModuleType(_CONVERSION)
    stand_in.__dict__["qkv_reassemble"] = qkv_reassemble
    sys.modules[_CONVERSION] = stand_in
    try:
        importlib.import_module("litgpt.model")
    finally:
        del sys.modules[_CONVERSION]


litgpt_package.register()
_import_model()

from litgpt.config import Config  # noqa: E402
from litgpt.model import (  # noqa: E402
    GPT,
    Block,
    CausalSelfAttention,
    GemmaMLP,
    GptNeoxMLP,
    LLaMAMLP,
    LLaMAMoE,
    RMSNorm,
    do_softcapping,
)

__all__ = [
    "GPT",
    "Block",
    "CausalSelfAttention",
    "Config",
    "GemmaMLP",
    "GptNeoxMLP",
    "LLaMAMLP",
    "LLaMAMoE",
    "RMSNorm",
    "do_softcapping",
    "qkv_reassemble",
]
