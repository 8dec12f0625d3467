"""Logits -> token and log probabilities; pure functions with an explicit generator.

Shapes: V tokens in the vocabulary, K of them that may still be drawn. Most of it is numpy's work: its calls take less
time than torch's on so few numbers.
"""

import functools
import hashlib
import math
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from mdi.engine.sample import Logprob, TokenLogprobs
from mdi.engine.sampling_params import SamplingParams
from mdi.errors import CheckpointError, GrammarError

Floats: TypeAlias = "npt.NDArray[np.floating]"
Places: TypeAlias = "npt.NDArray[np.intp]"

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
    values = logits.float().numpy()
    likeliest = int(values.argmax())  # the first NaN, if any
    best = _check_finite(float(values[likeliest]))
    if params.temperature == 0:
        return likeliest
    kept, ids = _largest(values, params.top_k)  # (K)
    scaled = kept.astype(np.float64)
    scaled -= best
    with np.errstate(over="ignore"):  # at a tiny temperature all but the most likely are at minus infinity
        scaled /= params.temperature
    if params.min_p > 0:  # the most likely token is at 0
        is_likely = scaled >= math.log(params.min_p)
        scaled, ids = scaled[is_likely], ids[is_likely]
    weights = np.exp(scaled)
    if params.top_p < 1:
        nucleus = _nucleus(weights / weights.sum(), params.top_p)
        weights, ids = weights[nucleus], ids[nucleus]
    cumulative = torch.from_numpy(weights).cumsum(0).numpy()  # of a whole vocabulary in a fifth of numpy's time
    draw = float(torch.rand((), dtype=torch.float64, generator=generator)) * cumulative[-1]
    return int(ids[min(int(cumulative.searchsorted(draw, side="right")), len(ids) - 1)])


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


def _check_finite(best: float) -> float:
    """The largest logit, which is NaN where any is."""
    if not math.isfinite(best):
        raise CheckpointError("the model computes no numbers (NaN or infinity): try --dtype float32 on all nodes")
    return best


def _largest(values: Floats, k: int) -> tuple[Floats, Places]:
    """The `k` largest values and their places, in the order of the places; all of them where `k` is 0."""
    if not 0 < k < len(values):
        return values, _every_place(len(values))
    places = _places_of_largest(values, k)
    return values[places], places


@functools.cache
def _every_place(n: int) -> Places:
    return np.arange(n)


def _places_of_largest(values: Floats, k: int) -> Places:
    """The places, in ascending order, of the `k` largest values, none of them NaN.

    Most values need no more than a comparison: the values are laid out in rows, and the `k`-th of the largest of each
    column bounds the `k`-th of all from below. So 200 of 49,152 logits are found in a third of the time of `partition`.
    """
    n_columns = len(values) // _N_ROWS
    if 2 * k > n_columns:
        return np.sort(values.argpartition(len(values) - k)[len(values) - k :])
    of_columns = values[: n_columns * _N_ROWS].reshape(_N_ROWS, n_columns).max(axis=0)
    of_columns.partition(n_columns - k)
    places = np.flatnonzero(values >= of_columns[n_columns - k])
    return places[np.sort(values[places].argpartition(len(places) - k)[len(places) - k :])]


def _nucleus(probabilities: Floats, top_p: float) -> Places:
    """The places, in ascending order, of the smallest set of tokens that together reach `top_p` (Holtzman et al. 2020).

    Of equal ones the first are taken. Only the largest are sorted, and more of them until the set ends among them: a
    nucleus is small and a vocabulary is not.
    """
    n_sorted = _NUCLEUS_SIZE
    while True:
        largest, places = _largest(probabilities, n_sorted)
        order = np.argsort(-largest, kind="stable")
        descending = largest[order]
        n_kept = min(int((descending.cumsum() < top_p).sum()) + 1, len(order))
        # Tokens as likely as the last of the sorted ones may be missing there.
        if len(order) == len(probabilities) or descending[n_kept - 1] > descending[-1]:
            return np.sort(places[order[:n_kept]])
        n_sorted *= 8
