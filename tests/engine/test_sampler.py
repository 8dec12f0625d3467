"""Logits -> token: the distribution, its limits, and what a seed promises."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mdi.engine.sampler import MIN_LOGPROB, _places_of_largest, choose, generator_for, keep_allowed, logprobs_of
from mdi.engine.sampling_params import SamplingParams
from mdi.errors import CheckpointError, ConfigError, GrammarError
from support.wire import few_examples


def params_of(temperature: float = 0.8, top_k: int = 200, top_p: float = 1.0, min_p: float = 0.0) -> SamplingParams:
    return SamplingParams(1, (), temperature, top_k, top_p, min_p)


LOGITS = torch.tensor([1.0, -2.0, 0.5, 2.0, -0.5, 0.0])
EVERY = params_of(temperature=1.0, top_k=0, top_p=1.0)
OPTIONS = [
    EVERY, params_of(), params_of(0.01), params_of(5.0, 3, 0.7), params_of(1.0, 1), params_of(1.0, 0, 1e-9),
    params_of(1.0, 6), params_of(1.0, 1000, 0.999), params_of(1.0, 0, 1.0, 1.0), params_of(0.7, 4, 0.9, 0.05),
]  # fmt: skip


def draws(logits: torch.Tensor, sampling: SamplingParams, n: int, seed: int = 1) -> list[int]:
    generator = generator_for(seed, 0)
    return [choose(logits, sampling, generator) for _ in range(n)]


def probabilities(logits: torch.Tensor, temperature: float, kept: list[int]) -> dict[int, float]:
    weights = {i: math.exp(float(logits[i]) / temperature) for i in kept}
    return {i: weight / sum(weights.values()) for i, weight in weights.items()}


def assert_drawn_from(tokens: list[int], expected: dict[int, float]) -> None:
    """A chi-square bound that a right sampler misses once in some 10,000 seeds."""
    counts = {i: tokens.count(i) for i in expected}
    assert sum(counts.values()) == len(tokens), "a token outside the allowed ones was drawn"
    chi_square = sum((counts[i] - len(tokens) * p) ** 2 / (len(tokens) * p) for i, p in expected.items())
    degrees = len(expected) - 1
    assert chi_square < degrees + 4 * math.sqrt(2 * max(degrees, 1)) + 8


# ---- greedy


def test_temperature_zero_takes_the_largest_and_draws_nothing() -> None:
    generator = generator_for(1, 0)
    before = generator.get_state()
    for sampling in (params_of(0.0), params_of(0.0, 1, 0.1)):
        assert choose(LOGITS, sampling, generator) == 3
    assert torch.equal(generator.get_state(), before)


def test_top_k_one_and_a_tiny_nucleus_take_the_largest() -> None:
    assert set(draws(LOGITS, params_of(1.0, 1), 200)) == {3}
    assert set(draws(LOGITS, params_of(5.0, 0, 1e-9), 200)) == {3}


# ---- the distribution


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_tokens_are_drawn_with_their_probabilities(temperature: float) -> None:
    tokens = draws(LOGITS, params_of(temperature, 0, 1.0), 20_000)
    assert_drawn_from(tokens, probabilities(LOGITS, temperature, list(range(6))))


@pytest.mark.parametrize(("top_k", "kept"), [(2, [0, 3]), (4, [0, 2, 3, 5]), (6, [*range(6)]), (0, [*range(6)])])
def test_top_k_keeps_the_k_largest(top_k: int, kept: list[int]) -> None:
    assert_drawn_from(draws(LOGITS, params_of(1.0, top_k), 5000), probabilities(LOGITS, 1.0, kept))


# With temperature 1 the tokens in descending order are 3, 0, 2, 5, 4, 1 and reach 0.55, 0.75, 0.87, 0.94, 0.99, 1.
@pytest.mark.parametrize(
    ("top_p", "kept"), [(0.5, [3]), (0.56, [3, 0]), (0.74, [3, 0]), (0.8, [3, 0, 2]), (0.9999, [*range(6)])]
)
def test_top_p_keeps_the_smallest_set_that_reaches_p(top_p: float, kept: list[int]) -> None:
    assert_drawn_from(draws(LOGITS, params_of(1.0, 0, top_p), 5000), probabilities(LOGITS, 1.0, kept))


def test_top_p_applies_to_what_top_k_left() -> None:
    # Of the two largest, 3 has 0.73.
    assert set(draws(LOGITS, params_of(1.0, 2, 0.72), 500)) == {3}
    assert set(draws(LOGITS, params_of(1.0, 2, 0.75), 500)) == {3, 0}


# With temperature 1 the others are 0.37, 0.22, 0.14, 0.08 and 0.02 times as likely as token 3.
@pytest.mark.parametrize(
    ("min_p", "kept"), [(1.0, [3]), (0.38, [3]), (0.36, [3, 0]), (0.1, [3, 0, 2, 5]), (0.0, [*range(6)])]
)
def test_min_p_keeps_what_is_likely_beside_the_most_likely(min_p: float, kept: list[int]) -> None:
    assert_drawn_from(draws(LOGITS, params_of(1.0, 0, 1.0, min_p), 5000), probabilities(LOGITS, 1.0, kept))


def test_min_p_applies_to_the_probabilities_after_temperature() -> None:
    # With temperature 0.5 token 0 is 0.14 times as likely as token 3, which then has 0.88 of the two.
    assert set(draws(LOGITS, params_of(0.5, 0, 1.0, 0.14), 500)) == {3}
    assert set(draws(LOGITS, params_of(0.5, 0, 1.0, 0.13), 500)) == {3, 0}
    assert set(draws(LOGITS, params_of(0.5, 0, 0.87, 0.13), 500)) == {3}, "top_p counts what min_p left"


def slow_choice(logits: list[float], params: SamplingParams, draw: float) -> int:
    """The steps of `SamplingParams` from temperature on, over sorted lists."""
    best = max(logits)
    weights = [math.exp((x - best) / params.temperature) for x in logits]
    ranked = sorted(range(len(logits)), key=lambda i: -weights[i])
    ranked = [i for i in ranked if weights[i] >= params.min_p]
    ranked = ranked[: params.top_k or None]
    total, reached, kept = sum(weights[i] for i in ranked), 0.0, list[int]()
    for i in ranked:
        if params.top_p == 1 or reached < params.top_p * total:
            kept.append(i)
        reached += weights[i]
    draw *= sum(weights[i] for i in kept)
    for i in sorted(kept):
        draw -= weights[i]
        if draw < 0:
            return i
    return max(kept)


@given(
    seed=st.integers(0, 2**32),
    size=st.sampled_from([1, 2, 30, 5000]),
    temperature=st.floats(0.2, 3),
    top_k=st.sampled_from([0, 1, 3, 50, 10_000]),
    top_p=st.sampled_from([1e-6, 0.3, 0.9, 0.999, 1.0]),
    min_p=st.sampled_from([0.0, 1e-3, 0.1, 1.0]),
)
@few_examples
def test_every_combination_chooses_what_a_slow_reference_does(
    seed: int, size: int, temperature: float, top_k: int, top_p: float, min_p: float
) -> None:
    chance = torch.Generator().manual_seed(seed)
    logits = torch.randn(size, generator=chance) * 3
    params = params_of(temperature, top_k, top_p, min_p)
    for number in range(5):
        draw = float(torch.rand((), dtype=torch.float64, generator=generator_for(seed, number)))
        assert choose(logits, params, generator_for(seed, number)) == slow_choice(logits.tolist(), params, draw)


@given(
    seed=st.integers(0, 2**32),
    size=st.sampled_from([1, 16, 500, 3201, 3215, 8192]),
    k=st.sampled_from([1, 2, 50, 100, 400]),
    step=st.sampled_from([1e-3, 0.5, 2.0]),  # many values are equal
    n_excluded=st.sampled_from([0, 100, 5000]),
)
@few_examples
def test_the_largest_are_those_of_a_sort(seed: int, size: int, k: int, step: float, n_excluded: int) -> None:
    chance = torch.Generator().manual_seed(seed)
    values = (torch.randn(size, generator=chance) * 3 / step).round() * step
    values[torch.randperm(size, generator=chance)[:n_excluded]] = -math.inf
    k = min(k, size)
    places = _places_of_largest(values.numpy(), k)
    assert len(places) == k and sorted(set(places.tolist())) == places.tolist()
    assert torch.equal(values[places].sort(descending=True).values, values.sort(descending=True).values[:k])


def test_logits_that_are_no_numbers_are_refused() -> None:
    for bad in (math.nan, math.inf):
        for params in (params_of(0.0), params_of(), EVERY, params_of(1.0, 0, 0.9)):
            logits = torch.zeros(8192)
            logits[5000] = bad
            with pytest.raises(CheckpointError, match="the model computes no numbers"):
                choose(logits, params, generator_for(1, 0))


@pytest.mark.parametrize("n_equal", [511, 512, 513, 3000])
def test_of_equally_likely_tokens_a_nucleus_takes_the_first(n_equal: int) -> None:
    logits = torch.full((5000,), -100.0)
    logits[1000 : 1000 + n_equal] = 1.0
    tokens = draws(logits, params_of(1.0, 0, 0.1), 300)
    assert 1000 <= min(tokens) <= max(tokens) < 1000 + math.ceil(n_equal / 10)


def test_a_forbidden_token_is_never_drawn() -> None:
    logits = torch.tensor([-math.inf, 0.0, -math.inf, 0.0, -math.inf])
    assert set(draws(logits, EVERY, 500)) == {1, 3}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_logits_of_every_dtype_are_taken(dtype: torch.dtype) -> None:
    assert_drawn_from(draws(LOGITS.to(dtype), EVERY, 2000), probabilities(LOGITS, 1.0, list(range(6))))


@pytest.mark.parametrize("temperature", [1e-4, 1e-30, 1e-300, 1e-310])
def test_a_tiny_temperature_is_greedy(temperature: float) -> None:
    logits = torch.tensor([30.0, -20.0, 31.0, 5.0])
    assert set(draws(logits, params_of(temperature), 50)) == {2}


def test_huge_logits_do_not_overflow() -> None:
    logits = torch.tensor([3e38, 0.0, -3e38])
    assert set(draws(logits, EVERY, 50)) == {0}


def test_one_token_is_chosen_from_a_vocabulary_of_one() -> None:
    for sampling in OPTIONS:
        assert draws(torch.tensor([0.3]), sampling, 3) == [0, 0, 0]


# ---- seeds


def test_a_seed_repeats_its_draws_and_another_does_not() -> None:
    logits = torch.zeros(1000)
    assert draws(logits, EVERY, 20, seed=7) == draws(logits, EVERY, 20, seed=7)
    assert draws(logits, EVERY, 20, seed=7) != draws(logits, EVERY, 20, seed=8)


def test_every_sample_and_seed_has_a_generator_of_its_own() -> None:
    pairs = [(seed, sample) for seed in (-(2**63), -1, 0, 1, 10, 10137, 2**63 - 1) for sample in (0, 1, 2, 11)]
    assert len({generator_for(*pair).initial_seed() for pair in pairs}) == len(pairs)
    assert generator_for(1, 11).initial_seed() != generator_for(11, 1).initial_seed()


def test_the_global_generator_is_left_alone() -> None:
    before = torch.get_rng_state()
    draws(LOGITS, EVERY, 5)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("sampling", OPTIONS)
def test_each_token_takes_one_draw_whatever_the_options(sampling: SamplingParams) -> None:
    generator, counted = generator_for(3, 0), generator_for(3, 0)
    for _ in range(5):
        choose(LOGITS, sampling, generator)
        torch.rand((), dtype=torch.float64, generator=counted)
        assert torch.equal(generator.get_state(), counted.get_state())


# ---- rounding


@pytest.mark.parametrize("sampling", [EVERY, params_of(0.8, 40), params_of(1.0, 0, 0.999), params_of(1.0, 40, 0.999)])
def test_rounding_that_swaps_near_equal_tokens_does_not_change_the_text(sampling: SamplingParams) -> None:
    chance = torch.Generator().manual_seed(4)
    # Levels that lie well apart, each of three tokens that differ by rounding only: their ranks are noise. The
    # limits of top_k and top_p fall between the levels and a tail without weight.
    levels = (torch.arange(13) * 0.2).repeat_interleave(3)
    levels = torch.cat([levels, torch.full((21,), -30.0)])[torch.randperm(60, generator=chance)]
    one = levels + 1e-7 * torch.randn(60, generator=chance)
    other = levels + 1e-7 * torch.randn(60, generator=chance)
    assert not torch.equal(one.argsort(), other.argsort())
    first, second = draws(one, sampling, 1000), draws(other, sampling, 1000)
    assert sum(a != b for a, b in zip(first, second, strict=True)) <= 1
    assert len(set(first)) > 20


# ---- log probabilities


def test_log_probabilities_are_those_of_the_logits_as_they_are() -> None:
    expected = {i: math.log(p) for i, p in probabilities(LOGITS, 1.0, list(range(6))).items()}
    told = logprobs_of(LOGITS, 4, 3)
    assert (told.token, [best.token for best in told.top_logprobs]) == (4, [3, 0, 2])
    for one in (told, *told.top_logprobs):
        assert one.logprob == pytest.approx(expected[one.token], abs=1e-5)


def test_as_many_log_probabilities_as_are_asked_for_and_as_there_are() -> None:
    assert logprobs_of(LOGITS, 4, 0).top_logprobs == ()
    assert len(logprobs_of(LOGITS, 4, 20).top_logprobs) == 6


def test_a_log_probability_is_a_number_of_json_also_for_a_forbidden_token() -> None:
    told = logprobs_of(torch.tensor([0.0, -math.inf]), 1, 2)
    assert told.logprob == told.top_logprobs[1].logprob == MIN_LOGPROB


# ---- bounds


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("max_tokens", 0), ("temperature", -1), ("top_k", -1), ("top_p", 0.0), ("min_p", 1.1), ("min_p", math.nan),
        ("frequency_penalty", 2.1), ("presence_penalty", -2.1), ("repetition_penalty", 0.0), ("logprobs", 21),
        ("logprobs", -1), ("logit_bias", ((-1, 1.0),)), ("logit_bias", ((1, math.inf),)),
        ("logit_bias", ((1, 1.0), (1, 2.0))),
    ],
)  # fmt: skip
def test_parameters_are_checked_where_they_are_made(field: str, value: object) -> None:
    with pytest.raises(ConfigError, match=rf"^{field} "):
        SamplingParams(**{"max_tokens": 1, field: value})  # type: ignore[arg-type]


def test_parameters_at_their_bounds_are_taken() -> None:
    SamplingParams(1, (), 0, 0, 1, 1, -2, 2, 0.01, ((0, -100), (1, 100)), 0)
    SamplingParams(1, (), 1e-9, 10**6, 1e-9, 0, 2, -2, 100, (), 20)


# ---- constraints


@pytest.mark.parametrize("sampling", OPTIONS)
def test_only_tokens_that_may_follow_are_drawn(sampling: SamplingParams) -> None:
    kept = keep_allowed(LOGITS, bytes([0b110101]))
    assert set(draws(kept, sampling, 200)) <= {0, 2, 4, 5}


def test_tokens_without_a_bit_may_not_follow_and_bits_without_a_token_do_not_matter() -> None:
    logits = torch.zeros(12)
    assert keep_allowed(logits, b"\x80").isfinite().nonzero().flatten().tolist() == [7]
    assert keep_allowed(logits, b"\x01\xff\xff").isfinite().nonzero().flatten().tolist() == [0, 8, 9, 10, 11]
    assert torch.equal(logits, torch.zeros(12))
    for mask in (b"\0", b"\0\0\xff"):
        with pytest.raises(GrammarError):
            keep_allowed(logits, mask)


def test_what_is_left_is_drawn_in_its_own_proportions() -> None:
    kept = keep_allowed(LOGITS, bytes([0b001101]))
    assert_drawn_from(draws(kept, EVERY, 2000), probabilities(LOGITS, 1.0, [0, 2, 3]))
