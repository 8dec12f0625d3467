"""Logit bias and penalties, against what is computed from the whole text each time."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mdi.engine.engine import choose_tokens
from mdi.engine.penalties import LogitAdjustment
from mdi.engine.sample import Sample
from mdi.engine.sampler import generator_for
from mdi.engine.sampling_params import SamplingParams
from support.wire import few_examples

N_VOCAB = 200
ALL: dict[str, Any] = {
    "temperature": 0.9, "top_k": 40, "top_p": 0.95, "min_p": 0.01, "frequency_penalty": 0.7, "presence_penalty": 0.4,
    "repetition_penalty": 1.3, "logit_bias": ((3, 5.0), (7, -100.0)), "logprobs": 2,
}  # fmt: skip


def adjusted_slowly(logits: list[float], params: SamplingParams, prompt: list[int], tokens: list[int]) -> list[float]:
    """From the whole text, token by token, as OpenAI's and Hugging Face's documents have it."""
    x = list(logits)
    for token, bias in params.logit_bias:
        x[token] += bias
    for token in {*prompt, *tokens}:
        x[token] = x[token] / params.repetition_penalty if x[token] > 0 else x[token] * params.repetition_penalty
    for token in set(tokens):
        x[token] -= tokens.count(token) * params.frequency_penalty + params.presence_penalty
    return x


def logits_of(seed: int, n_rows: int) -> torch.Tensor:
    return torch.randn(n_rows, N_VOCAB, generator=torch.Generator().manual_seed(seed)) * 3


a_token = st.integers(0, N_VOCAB - 1)


@given(
    seed=st.integers(0, 2**32),
    prompt=st.lists(a_token, min_size=1, max_size=100),
    before=st.lists(a_token, max_size=4),
    tokens=st.lists(a_token | st.integers(0, 3), max_size=90),
    frequency=st.sampled_from([0.0, 0.5, -2.0, 2.0]),
    presence=st.sampled_from([0.0, 1.5, -0.5]),
    repetition=st.sampled_from([1.0, 1.2, 0.5]),
    bias=st.dictionaries(a_token, st.floats(-100, 100), max_size=5),
)
@few_examples
def test_the_adjustment_is_that_of_the_whole_text(
    seed: int, prompt: list[int], before: list[int], tokens: list[int], frequency: float, presence: float,
    repetition: float, bias: dict[int, float],
) -> None:  # fmt: skip
    params = SamplingParams(
        99,
        frequency_penalty=frequency,
        presence_penalty=presence,
        repetition_penalty=repetition,
        logit_bias=tuple(bias.items()),
    )
    adjustment = LogitAdjustment(params, prompt, before)
    rows = logits_of(seed, len(tokens) + 1)
    for i, row in enumerate(rows):
        original = row.clone()
        expected = adjusted_slowly(row.tolist(), params, prompt, [*before, *tokens[:i]])
        assert adjustment.apply(row).tolist() == pytest.approx(expected, abs=1e-4, rel=1e-5)
        assert torch.equal(row, original), "the model's logits are needed for the log probabilities"
        if i < len(tokens):
            adjustment.count(tokens[i])


def test_parameters_that_change_nothing_copy_nothing() -> None:
    adjustment = LogitAdjustment(SamplingParams(9), [1, 2], [])
    adjustment.count(5)
    (row,) = logits_of(1, 1)
    assert adjustment.apply(row) is row


def test_greedy_takes_the_largest_after_the_penalties() -> None:
    logits = torch.zeros(3, 10)
    logits[:, 4], logits[:, 6], logits[:, 2] = 2.0, 1.5, 1.2
    params = SamplingParams(9, temperature=0.0, presence_penalty=1.0)
    sample = Sample(0, (4,), params, draft=(4, 6))
    assert choose_tokens(logits, sample) == ([4, 6, 2], [])


@pytest.mark.parametrize("temperature", [0.0, 0.9])
@pytest.mark.parametrize("n_right", [0, 2, 4])
def test_a_draft_is_verified_row_by_row_with_the_penalties_of_each(n_right: int, temperature: float) -> None:
    """What a sample says token by token, another says with a draft, and goes on alike."""
    params = SamplingParams(20, **{**ALL, "temperature": temperature, "presence_penalty": 2.0, "top_k": 5})
    likely = logits_of(5, 1).expand(8, -1)  # the same in each row: only the penalties make a difference
    one, other = (Sample(0, (1, 2, 3), params, generator_for(1, 0)) for _ in range(2))
    chosen = [choose_tokens(row[None], one) for row in likely]
    tokens, told = [t for (t,), _ in chosen], [p for _, (p,) in chosen]
    assert len(set(tokens[:5])) > 1
    other.draft = tuple(token if i < n_right else (token + 1) % N_VOCAB for i, token in enumerate(tokens[:4]))
    assert choose_tokens(likely[:5], other) == (tokens[: n_right + 1], told[: n_right + 1])
    other.draft = ()
    for i in range(n_right + 1, 8):
        assert choose_tokens(likely[i : i + 1], other) == ([tokens[i]], [told[i]])


def test_log_probabilities_do_not_see_the_penalties_and_are_told_only_where_asked_for() -> None:
    logits, params = logits_of(3, 1), SamplingParams(9, **ALL)
    plain = replace(params, logit_bias=(), repetition_penalty=1.0, frequency_penalty=0.0, presence_penalty=0.0)
    tokens, (told,) = choose_tokens(logits, Sample(0, (1, 2), params, generator_for(1, 0)))
    _, (plainly_told,) = choose_tokens(logits, Sample(0, (1, 2), plain, generator_for(1, 0)))
    assert told.top_logprobs == plainly_told.top_logprobs
    assert told.logprob == pytest.approx(float(logits[0].log_softmax(0)[tokens[0]]), abs=1e-5)
    unasked = replace(params, logprobs=None)
    assert choose_tokens(logits, Sample(0, (1, 2), unasked, generator_for(1, 0))) == (tokens, [])
