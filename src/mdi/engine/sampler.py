"""Logits -> token and log probabilities; pure functions with an explicit generator.

Shapes: V tokens in the vocabulary, K of them that may still be drawn.
"""

import functools
import hashlib
import math

import torch

from mdi.engine.sample import Logprob, TokenLogprobs
from mdi.engine.sampling_params import SamplingParams
from mdi.errors import CheckpointError, GrammarError

MIN_LOGPROB = -9999.0  # told for a token that the model excludes: OpenAI's value, because JSON has no infinity
_NUCLEUS_SIZE = 512  # tokens that are sorted at first to find a nucleus
_N_ROWS = 16  # that a vocabulary is laid out in: see `_places_of_largest`


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
    likeliest = int(logits.float().numpy().argmax())  # the first NaN, if any; torch's takes seven times as long
    best = _check_finite(logits[likeliest])
    if params.temperature == 0:
        return likeliest
    kept, ids = _largest(logits, params.top_k)  # (K)
    scaled = (kept.double() - best).div_(params.temperature)  # no overflow at a tiny one
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
        return logits, _every_id(len(logits))
    ids = _places_of_largest(logits, top_k).sort().values
    return logits[ids], ids


@functools.cache
def _every_id(n: int) -> torch.Tensor:
    return torch.arange(n)


def _places_of_largest(values: torch.Tensor, k: int) -> torch.Tensor:
    """The places of the `k` largest values, none of them NaN, in no order.

    Of 49,152 values, the 200 largest are found in half of the time that `topk` takes alone: values are laid out in
    rows, the largest of each column is found fast, and only the columns of the `k` largest of these hold values that
    count.
    """
    n_columns = len(values) // _N_ROWS
    if 2 * k > n_columns:
        return values.topk(k, sorted=False).indices
    best, columns = values[: n_columns * _N_ROWS].view(_N_ROWS, n_columns).amax(dim=0).topk(k, sorted=False)
    rows = torch.arange(0, n_columns * _N_ROWS, n_columns)
    rest = torch.arange(n_columns * _N_ROWS, len(values))
    places = torch.cat(((rows[:, None] + columns).flatten(), rest))
    places = places[values[places] >= best.min()]
    return places[values[places].topk(k, sorted=False).indices]


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
