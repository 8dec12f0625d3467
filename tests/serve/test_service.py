"""Requests on their way into the engine and back: their parameters, the room for them, and their end."""

import pytest

from mdi.control.status import NodeState
from mdi.engine.sample import Sample
from mdi.serve.errors import ApiError
from mdi.serve.generation import Delta, Generation
from mdi.serve.schemas import MAX_CHOICES, Message, Sampling
from mdi.serve.service import Ask, Service

from .conftest import CONTEXT, MAX_QUEUE, N_SLOTS, Engine

NOW_S = 0.0
CACHED_NONE = {"prompt_tokens_details": {"cached_tokens": 0}}


def ids(service: Service, text: str) -> list[int]:
    return service.model.tokenizer.encode(text)


def ask(n: int = 1, **values: object) -> Ask:
    return Ask([[5, 6]], Sampling(), n=n, **values)  # type: ignore[arg-type]


def all_of(generation: Generation) -> list[Delta]:
    deltas = []
    while not generation.is_over:
        delta = generation.next(60)
        assert delta is not None
        deltas.append(delta)
    return deltas


def test_what_is_not_said_has_the_defaults_of_the_api(service: Service, engine: Engine) -> None:
    service.begin(ask())
    params = engine.samples[0].params
    assert (params.temperature, params.top_p, params.top_k, params.max_tokens) == (1.0, 1.0, 0, CONTEXT - 2)


def test_what_is_said_reaches_the_engine(service: Service, engine: Engine) -> None:
    service.begin(Ask([[5]], Sampling(temperature=0.0, top_p=0.5, top_k=7), max_tokens=9))
    params = engine.samples[0].params
    assert (params.temperature, params.top_p, params.top_k, params.max_tokens) == (0.0, 0.5, 7, 9)


def test_answers_with_one_seed_are_drawn_alike_and_differ_from_each_other(service: Service, engine: Engine) -> None:
    for _ in range(2):
        with_seed = service.begin(Ask([[5]], Sampling(seed=3), n=2))
        for sample in with_seed.samples:
            engine.end(sample, "stop")
    states = [sample.generator.get_state().tolist() for sample in engine.samples if sample.generator]
    assert states[:2] == states[2:]
    assert states[0] != states[1]


def test_text_comes_as_it_is_generated_and_usage_counts_it(service: Service, engine: Engine) -> None:
    generation = service.begin(ask(n=2))
    first, second = engine.samples
    engine.say(first, *ids(service, "Hel"))
    engine.end(second, "length", *ids(service, "x"))
    engine.end(first, "stop", *ids(service, "lo"))
    assert all_of(generation) == [Delta(0, "Hel"), Delta(1, "x", "length"), Delta(0, "lo", "stop")]
    n = sum(len(ids(service, text)) for text in ("Hel", "x", "lo"))
    assert (
        generation.usage.to_json() == {"prompt_tokens": 2, "completion_tokens": n, "total_tokens": 2 + n} | CACHED_NONE
    )


def test_a_stop_string_ends_an_answer_and_its_sample(service: Service, engine: Engine) -> None:
    generation = service.begin(ask(stop_strings=["END"]))
    (sample,) = engine.samples
    for text in ("one E", "N", "D two"):
        engine.say(sample, *ids(service, text))
    assert all_of(generation) == [Delta(0, "one "), Delta(0, "", "stop")]
    assert engine.cancelled == [sample]


def test_what_looked_like_a_stop_string_is_given_at_the_end(service: Service, engine: Engine) -> None:
    generation = service.begin(ask(stop_strings=["END"]))
    engine.end(engine.samples[0], "length", *ids(service, "one EN"))
    assert all_of(generation) == [Delta(0, "one EN", "length")]


def test_more_than_the_queue_holds_is_refused_until_there_is_room(service: Service, engine: Engine) -> None:
    for _ in range(N_SLOTS + MAX_QUEUE):
        service.begin(ask())
    with pytest.raises(ApiError) as caught:
        service.begin(ask())
    assert caught.value.status == 429
    assert caught.value.retry_after_s is not None and caught.value.retry_after_s >= 1
    engine.end(engine.samples[0], "stop")
    service.begin(ask())


def test_a_refused_request_takes_no_room(service: Service, engine: Engine) -> None:
    with pytest.raises(ApiError, match="waiting"):
        service.begin(ask(n=N_SLOTS + MAX_QUEUE + 1))
    assert service.n_open == 0
    assert engine.samples == []


@pytest.mark.parametrize(
    ("prompts", "n", "match"),
    [([[]], 1, "empty"), ([[1] * CONTEXT], 1, "no room"), ([[1]], MAX_CHOICES + 1, "more than")],
)
def test_what_cannot_be_generated_is_refused(prompts: list[list[int]], n: int, match: str, service: Service) -> None:
    with pytest.raises(ApiError, match=match) as caught:
        service.begin(Ask(prompts, Sampling(), n=n))
    assert caught.value.status == 400
    assert service.n_open == 0


def test_a_text_far_beyond_the_context_is_not_encoded(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    """That would take seconds, and others' texts would wait."""

    def encode(text: str) -> list[int]:
        raise AssertionError("encoded")

    monkeypatch.setattr(service.model.tokenizer, "encode", encode)
    for refused in (
        lambda: service.encode("a" * 100_000),
        lambda: service.chat_prompt([Message(role="user", content="a" * 100_000)]),
    ):
        with pytest.raises(ApiError, match=r"1\d{5} characters; .* leaves no room") as caught:
            refused()
        assert caught.value.to_json()["error"]["code"] == "context_length_exceeded"


def test_without_a_ring_requests_are_refused(service: Service, engine: Engine) -> None:
    engine.state = NodeState.RECOVERING
    with pytest.raises(ApiError, match="recovering") as caught:
        service.begin(ask())
    assert caught.value.status == 503


def test_closing_cancels_what_has_not_ended_once(service: Service, engine: Engine) -> None:
    generation = service.begin(ask(n=2))
    first, second = engine.samples
    engine.end(first, "stop")
    assert generation.next(60) == Delta(0, "", "stop")
    generation.close()
    generation.close()
    assert engine.cancelled == [second]
    assert service.n_open == 0


def test_nothing_comes_in_time(service: Service) -> None:
    assert service.begin(ask()).next(NOW_S) is None


def test_draining_refuses_what_is_new_and_finishes_what_has_begun(service: Service, engine: Engine) -> None:
    generation = service.begin(ask())
    service.drain()
    with pytest.raises(ApiError) as caught:
        service.begin(ask())
    assert caught.value.status == 503
    assert service.n_open == 1
    engine.end(engine.samples[0], "stop", *ids(service, "done"))
    assert all_of(generation) == [Delta(0, "done", "stop")]
    assert service.n_open == 0


def test_whoever_waits_is_told_that_nothing_comes(service: Service) -> None:
    generation = service.begin(ask())
    service.fail("the ring is gone")
    with pytest.raises(ApiError, match="the ring is gone"):
        generation.next(60)


def test_a_conversation_is_rendered_by_the_models_template(service: Service) -> None:
    messages = [Message(role="developer", content="Be brief."), Message(role="user", content="Hi")]
    prompt = service.chat_prompt(messages)
    assert service.model.tokenizer.decode(prompt) == "<system>Be brief.<user>Hi<assistant>"


def test_other_models_are_not_here(service: Service) -> None:
    for name in ("tiny", "org/tiny"):
        service.check_model(name)
    with pytest.raises(ApiError) as caught:
        service.check_model("gpt-4")
    assert caught.value.status == 404


def test_each_sample_has_a_number_of_its_own(service: Service, engine: Engine) -> None:
    service.begin(ask(n=2))
    service.begin(ask())
    assert [sample.number for sample in engine.samples] == [0, 1, 2]
    assert all(isinstance(sample, Sample) for sample in engine.samples)


def test_what_was_cached_is_counted(service: Service, engine: Engine) -> None:
    generation = service.begin(ask(n=2))
    engine.samples[0].n_cached = 1
    engine.samples[1].n_cached = 2  # the whole prompt, from the first one
    assert generation.usage.to_json()["prompt_tokens_details"] == {"cached_tokens": 1}


def test_all_parameters_reach_the_engine(service: Service, engine: Engine) -> None:
    sampling = Sampling(
        min_p=0.1, frequency_penalty=0.2, presence_penalty=0.3, repetition_penalty=1.4, logit_bias={"7": -5.0}
    )
    service.begin(Ask([[5]], sampling, logprobs=3))
    params = engine.samples[0].params
    assert (params.min_p, params.frequency_penalty, params.presence_penalty) == (0.1, 0.2, 0.3)
    assert (params.repetition_penalty, list(params.logit_bias), params.logprobs) == (1.4, [(7, -5.0)], 3)


@pytest.mark.parametrize("bias", [{"word": 1.0}, {"-1": 1.0}, {"4000": 1.0}])
def test_a_bias_is_of_token_ids(bias: dict[str, float], service: Service) -> None:
    with pytest.raises(ApiError, match="logit_bias") as caught:
        service.begin(Ask([[5]], Sampling(logit_bias=bias)))
    assert caught.value.status == 400
