"""Logits -> token; pure functions with an explicit generator."""

import hashlib
import math
from dataclasses import dataclass

import torch

from mdi.errors import NumericsError


@dataclass(frozen=True)
class Sampling:
    """How a token is chosen. Temperature 0 is greedy; top_k 0 and top_p 1 keep every token."""

    temperature: float = 0.8
    top_k: int = 200
    top_p: float = 1.0


def generator_for(seed: int, sample: int) -> torch.Generator:
    """The generator of one sample: what it yields depends on `seed` and the sample's number only."""
    digest = hashlib.sha256(f"{seed}:{sample}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little", signed=True))


def choose(logits: torch.Tensor, sampling: Sampling, generator: torch.Generator) -> int:
    """Choose a token from `logits` (vocabulary) on the CPU; uses one draw, or none when greedy.

    The draw is turned into a token by the inverse of the cumulative distribution in the order of the
    token ids, not of the probabilities: so rounding that lets two near-equal tokens swap ranks does
    not change the text. Raises `NumericsError` where the logits are no numbers.
    """
    if sampling.temperature == 0:
        best, token = logits.max(dim=0)
        _refuse_nonsense(best)
        return int(token)
    kept, ids = _largest(logits, sampling.top_k)
    best = _refuse_nonsense(kept.max())
    probabilities = torch.softmax((kept.double() - best) / sampling.temperature, dim=0)  # no overflow at a tiny one
    if sampling.top_p < 1:
        probabilities = _nucleus(probabilities, sampling.top_p)
    cumulative = probabilities.cumsum(0)
    draw = torch.rand((), dtype=torch.float64, generator=generator) * cumulative[-1]
    return int(ids[torch.searchsorted(cumulative, draw, right=True).clamp_max(len(ids) - 1)])


def _refuse_nonsense(best: torch.Tensor) -> torch.Tensor:
    """The largest logit, which is NaN where any is."""
    if not math.isfinite(best):
        raise NumericsError("the model computes no numbers (NaN or infinity): try --dtype float32 on all nodes")
    return best


def _largest(logits: torch.Tensor, top_k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The `top_k` largest logits and their ids, in the order of the ids."""
    if not 0 < top_k < len(logits):
        return logits, torch.arange(len(logits))
    ids = logits.topk(top_k, sorted=False).indices.sort().values
    return logits[ids], ids


def _nucleus(probabilities: torch.Tensor, top_p: float) -> torch.Tensor:
    """Zero all but the smallest set of tokens that together reach `top_p` (Holtzman et al. 2020)."""
    descending, order = probabilities.sort(descending=True, stable=True)
    before = descending.cumsum(0) - descending
    return probabilities.masked_fill(torch.zeros_like(order, dtype=torch.bool).scatter(0, order, before >= top_p), 0.0)
