"""Names of dtypes, quantization modes, backends and devices, and digests, as files, options and messages spell them."""

import re
from typing import Literal

DTYPES = ("float32", "float16", "bfloat16")
Mode = Literal["none", "int8", "int4"]  # of quantization
MODES: tuple[Mode, ...] = ("none", "int8", "int4")  # from the most exact on
QUANTIZED = MODES[1:]
KvDtype = Literal["float32", "float16", "int8"]  # of keys and values
KV_DTYPES: tuple[KvDtype, ...] = ("float32", "float16", "int8")
BackendChoice = Literal["auto", "native", "torch"]  # what computes a stage; auto: the fastest that can
BACKEND_CHOICES: tuple[BackendChoice, ...] = ("auto", "native", "torch")
DIGEST = re.compile(r"[0-9a-f]{64}")  # of a chunk or a model, see mdi.checkpoint.digests
DEVICE = re.compile(r"cpu|mps|cuda(:\d{1,3})?")


def allowed_modes(least_exact: Mode | None) -> tuple[Mode, ...]:
    """The modes of quantization up to `least_exact`; none where that is None."""
    return () if least_exact is None else QUANTIZED[: QUANTIZED.index(least_exact) + 1]
