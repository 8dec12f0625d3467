"""torch.compile in training. What it needs besides torch, a C++ compiler or Triton, may be missing."""

import torch

from mdi.errors import ConfigError
from mdi.strings import one_line


def check_compiler(device: torch.device) -> None:
    """Compile a small function. Raises `ConfigError` where torch cannot.

    A model is only compiled where it is first called, by then in each of several processes for itself.
    """
    from torch._dynamo.exc import TorchDynamoException  # slow to import, and only needed here
    from torch._inductor import config as inductor

    inductor.compile_threads = 1  # no pool of processes that outlives the compilation
    try:
        torch.compile(_sine_and_cosine)(torch.ones(16, device=device))
    except TorchDynamoException as exc:
        reason = getattr(exc, "inner_exception", exc)
        raise ConfigError(
            f"-c: torch cannot compile for {device} here: {one_line(reason)}: install what it asks for, on a CPU g++,"
            " or leave -c out"
        ) from exc


def _sine_and_cosine(x: torch.Tensor) -> torch.Tensor:
    return x.sin() + x.cos()
