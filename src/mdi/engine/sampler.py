"""Logits -> token and log probabilities; pure functions with an explicit generator.

Shapes: V tokens in the vocabulary, K of them that may still be drawn.
"""

import hashlib
import math

import torch

from mdi.engine.sample import Logprob, TokenLogprobs
from mdi.engine.sampling_params import SamplingParams
from mdi.errors import CheckpointError, GrammarError

MIN_LOGPROB = -9999.0  # told for a token that the model excludes: OpenAI's value, because JSON has no infinity
_NUCLEUS_SIZE = 512  # tokens that are sorted at first to find a nucleus


def generator_for(seed: int, sample: int) -> torch.Generator:
    """The generator of one sample: what it yields depends on `seed` and the sample's number only."""
    digest = hashlib.sha256(f"{seed}:{sample}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little", signed=True))


def choose(logits: torch.Tensor, params: SamplingParams, generator: torch.Generator | None) -> int:
    """Choose a token from adjusted `logits` (V) on the CPU: from temperature on, the steps of `SamplingParams`.

    Uses one draw, or none when greedy. The draw is turned into a token by the inverse of the cumulative distribution in
    the order of the token ids, not of the probabilities: so rounding that lets two near-equal tokens swap ranks does
    not change the text. Raises `CheckpointError` where the logits are no numbers.
    """
    if params.temperature == 0:
        best, token = logits.max(dim=0)
        _check_finite(best)
        return int(token)
    kept, ids = _largest(logits, params.top_k)  # (K)
    best = _check_finite(kept.max())
    scaled = (kept.double() - best) / params.temperature  # no overflow at a tiny one
    if params.min_p > 0:  # the most likely token is at 0
        is_likely = scaled >= math.log(params.min_p)
        scaled, ids = scaled[is_likely], ids[is_likely]
    probabilities = torch.softmax(scaled, dim=0)
    if params.top_p < 1:
        nucleus = _nucleus(probabilities, params.top_p)
        probabilities, ids = probabilities[nucleus], ids[nucleus]
    cumulative = probabilities.cumsum(0)
    draw = torch.rand((), dtype=torch.float64, generator=generator) * cumulative[-1]
    return int(ids[torch.searchsorted(cumulative, draw, right=True).clamp_max(len(ids) - 1)])


def keep_allowed(logits: torch.Tensor, mask: bytes) -> torch.Tensor:
    """`logits` (V) on the CPU with minus infinity for each token whose bit in `mask` is 0, or that has none.

    Raises `GrammarError` where no token is left.
    """
    packed = torch.frombuffer(bytearray(mask), dtype=torch.uint8)[:, None]
    allowed = (packed & torch.tensor([1, 2, 4, 8, 16, 32, 64, 128], dtype=torch.uint8)).bool().flatten()[: len(logits)]
    if not allowed.any():
        raise GrammarError("no token may follow")
    kept = torch.full_like(logits, -math.inf)
    kept[: len(allowed)] = torch.where(allowed, logits[: len(allowed)], -math.inf)
    return kept


def logprobs_of(logits: torch.Tensor, token: int, n_top: int) -> TokenLogprobs:
    """The log probabilities of a chosen token and of the `n_top` most likely ones, from the model's own logits (V).

    Neither temperature nor penalties are in them, as in OpenAI's API and by default in vLLM.
    """
    normalizer = logits.logsumexp(dim=0)
    top, ids = (logits - normalizer).topk(min(n_top, len(logits)))
    best = tuple(Logprob(i, max(logprob, MIN_LOGPROB)) for i, logprob in zip(ids.tolist(), top.tolist(), strict=True))
    return TokenLogprobs(token, max(float(logits[token] - normalizer), MIN_LOGPROB), best)


def _check_finite(best: torch.Tensor) -> torch.Tensor:
    """The largest logit, which is NaN where any is."""
    if not math.isfinite(best):
        raise CheckpointError("the model computes no numbers (NaN or infinity): try --dtype float32 on all nodes")
    return best


def _largest(logits: torch.Tensor, top_k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The `top_k` largest logits and their ids, in the order of the ids."""
    if not 0 < top_k < len(logits):
        return logits, torch.arange(len(logits))
    ids = logits.topk(top_k, sorted=False).indices.sort().values
    return logits[ids], ids


def _nucleus(probabilities: torch.Tensor, top_p: float) -> torch.Tensor:
    """The places, in ascending order, of the smallest set of tokens that together reach `top_p` (Holtzman et al. 2020).

    Of equal ones the first are taken. Only the largest are sorted, and more of them until the set ends among them: a
    nucleus is small and a vocabulary is not.
    """
    n_sorted = _NUCLEUS_SIZE
    while True:
        largest, places = _largest(probabilities, n_sorted)
        descending, order = largest.sort(descending=True, stable=True)
        n_kept = min(int((descending.cumsum(0) < top_p).sum()) + 1, len(order))
        # Tokens as likely as the last of the sorted ones may be missing there.
        if len(order) == len(probabilities) or descending[n_kept - 1] > descending[-1]:
            return places[order[:n_kept]].sort().values
        n_sorted *= 8
