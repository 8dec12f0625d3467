"""Which device a node computes on, in which dtype, with how many threads and how much memory."""

import contextlib
import os
import platform
from collections.abc import Iterator

import torch

from mdi.errors import ConfigError
from mdi.machine import available_memory_bytes
from mdi.model.tensors import TORCH_DTYPES
from mdi.strings import one_line

# Of layer shapes, of which most models have four, times numbers of rows: a session decodes with one to four of those.
ONEDNN_ENTRIES = 32
_MEMORY_ADVICE = "use fewer samples, a shorter --sequence-length, a smaller --dtype or more nodes"
_ONEDNN_CAPACITIES = ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY")


def pick_device(wanted: str | None) -> torch.device:
    """The device named by the user, or else the best of cuda, mps and cpu. Raises `ConfigError` if it is not there."""
    if wanted is None:
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(wanted)
    except RuntimeError as exc:
        raise ConfigError(f"device {wanted}: {one_line(exc)}") from exc
    if device.type == "cuda" and (device.index or 0) >= (n_cuda := torch.cuda.device_count()):
        raise ConfigError(f"device {wanted}: torch finds {n_cuda} CUDA devices on this machine")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise ConfigError("device mps: not available on this machine")
    return device


def pick_dtype(wanted: str | None, device: torch.device) -> torch.dtype:
    """The dtype named by the user, or else the fastest safe one: bfloat16 where the device computes it
    natively, float16 on other GPUs, float32 on other CPUs.
    """
    if wanted is not None:
        return TORCH_DTYPES[wanted]
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.get_device_capability(device) >= (8, 0) else torch.float16
    if device.type == "mps":
        return torch.float16
    return torch.bfloat16 if _cpu_computes_bfloat16() else torch.float32


def limit_onednn_caches() -> None:
    """Let oneDNN keep what few layer shapes with few numbers of rows need. Called before the first layer is made.

    For each of them oneDNN keeps its code, and torch's wrapper of it a description: 0.6 MB in all, by default for 1024.
    Each message of a prompt may have a new number of rows, so a node would grow for as long as it meets prompts. What
    decoding needs again and again stays; what was left out is made anew in 1 to 3 ms, once for all layers.
    """
    for name in _ONEDNN_CAPACITIES:
        os.environ.setdefault(name, str(ONEDNN_ENTRIES))  # read when oneDNN is first used


def avoid_cudnn_attention() -> None:
    """Let torch's other kernels compute attention on NVIDIA's GPUs.

    cuDNN, which torch prefers on some of them, plans anew for each length of a sequence, which is another one at every
    step of decoding: one of the TinyLlama-1.1B shape took 60 to 80 ms instead of 13 on an H100.
    """
    torch.backends.cuda.enable_cudnn_sdp(False)


def free_memory_bytes(device: torch.device) -> int:
    """Memory that a node on `device` could still take."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return available_memory_bytes()


def _cpu_computes_bfloat16() -> bool:
    if platform.system() != "Linux":
        return False
    try:
        with open("/proc/cpuinfo", encoding="ascii", errors="replace") as file:
            flags = {flag for line in file if line.startswith(("flags", "Features")) for flag in line.split()}
    except OSError:
        return False
    return bool(flags & {"avx512_bf16", "amx_bf16", "bf16"})


@contextlib.contextmanager
def memory_errors(what: str, advice: str = _MEMORY_ADVICE) -> Iterator[None]:
    """Turn torch's out-of-memory errors into a `ConfigError` that says what did not fit, and what to use instead."""
    try:
        yield
    except (RuntimeError, OSError) as exc:  # torch.OutOfMemoryError on GPUs; plain ones from the CPU's allocators
        if "memory" not in str(exc):
            raise
        raise ConfigError(f"out of memory for {what}: {advice}") from exc
