"""Answers that have to look like something: calls of tools, and JSON."""

import contextlib
import dataclasses
import json
import random
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from typing import Any

import pytest

from mdi.engine.sample import Sample
from mdi.errors import GrammarError
from mdi.serve import constraints
from mdi.serve.errors import ApiError
from mdi.serve.schemas import ChatRequest, ResponseRequest, parse
from mdi.serve.server import UserServer
from mdi.serve.service import Ask, Service
from mdi.serve.shapes import FREE, Shape, shape_of_chat, shape_of_response
from mdi.text.matchers import Matcher, Matchers

from .conftest import MAX_QUEUE, N_SLOTS, STOP, Engine
from .test_server import CHAT, RESPONSE, call, events

ServerOf = Callable[..., UserServer]

CITY = {
    "type": "object",
    "properties": {"city": {"enum": ["Rome", "Oslo"]}},
    "required": ["city"],
    "additionalProperties": False,
}
WEATHER = {"type": "function", "function": {"name": "weather", "description": "Of a city", "parameters": CITY}}
NOW = {"type": "function", "function": {"name": "now"}}
WITH_TOOLS = CHAT | {"tools": [WEATHER, NOW]}
ROME = '<tool_call>\n{"name": "weather", "arguments": {"city": "Rome"}}\n</tool_call>'
NAMED = {"type": "function", "function": {"name": "weather"}}
SCHEMA = {"type": "json_schema", "json_schema": {"name": "city", "schema": CITY}}


def says(service: Service, engine: Engine, text: str, ending: str = "stop") -> None:
    """Each sample says a text, token by token, unless it is cancelled."""

    def script(sample: Sample) -> None:
        for token in service.model.tokenizer.encode(text):
            engine.say(sample, token)
        engine.end(sample, ending)

    engine.script = script


def draws(service: Service, engine: Engine, max_tokens: int = 150) -> None:
    """Each sample says what its constraint allows, at random."""
    stop = service.model.tokenizer.token_id(STOP)

    def script(sample: Sample) -> None:
        assert sample.constraint is not None
        draw = random.Random(sample.number)
        for _ in range(max_tokens):
            mask = int.from_bytes(sample.constraint.mask(), "little")
            token = draw.choice([i for i in range(mask.bit_length()) if mask >> i & 1])
            sample.constraint.accept(token)
            if token == stop:
                return engine.end(sample, "stop")
            engine.say(sample, token)
        return engine.end(sample, "length")

    engine.script = script


# ---- calls in the text


def test_calls_are_taken_out_of_an_answer(server_of: ServerOf, service: Service, engine: Engine) -> None:
    says(service, engine, f"I look.\n{ROME}\n{ROME}")
    choice = call(server_of(), "POST", "/v1/chat/completions", WITH_TOOLS)[2]["choices"][0]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["content"] == "I look."
    calls = choice["message"]["tool_calls"]
    assert [each["function"] for each in calls] == [{"name": "weather", "arguments": '{"city": "Rome"}'}] * 2
    assert len({each["id"] for each in calls}) == 2 and {each["type"] for each in calls} == {"function"}


def test_calls_are_streamed_as_a_beginning_and_arguments(server_of: ServerOf, service: Service, engine: Engine) -> None:
    says(service, engine, f"I look. {ROME}{ROME}")
    *chunks, done = events(server_of(), "/v1/chat/completions", WITH_TOOLS)
    choices = [chunk["choices"][0] for chunk in chunks]
    assert "".join(choice["delta"].get("content") or "" for choice in choices) == "I look."
    deltas = [each for choice in choices for each in choice["delta"].get("tool_calls", [])]
    assert [delta["index"] for delta in deltas] == [0, 0, 1, 1]
    for first, second in (deltas[:2], deltas[2:]):
        assert first["id"].startswith("call_") and first["type"] == "function"
        assert first["function"] == {"name": "weather", "arguments": ""}
        assert second["function"] == {"arguments": '{"city": "Rome"}'} and "id" not in second
    assert (choices[-1]["finish_reason"], done) == ("tool_calls", "[DONE]")


def test_the_first_call_ends_an_answer_without_parallel_calls(
    server_of: ServerOf, service: Service, engine: Engine
) -> None:
    says(service, engine, f"{ROME}\n{ROME}")
    body = WITH_TOOLS | {"parallel_tool_calls": False}
    choice = call(server_of(), "POST", "/v1/chat/completions", body)[2]["choices"][0]
    assert len(choice["message"]["tool_calls"]) == 1 and choice["message"]["content"] is None
    assert choice["finish_reason"] == "tool_calls"


@pytest.mark.parametrize(
    ("text", "ending", "body"),
    [
        (ROME[:-5], "length", WITH_TOOLS),
        (ROME.replace("weather", "other"), "stop", WITH_TOOLS),
        (ROME, "stop", WITH_TOOLS | {"tool_choice": "none"}),
        (ROME, "stop", CHAT),
    ],
    ids=["cut", "of an unknown tool", "none may be", "no tools"],
)
def test_what_is_no_call_is_content(
    text: str, ending: str, body: dict[str, Any], server_of: ServerOf, service: Service, engine: Engine
) -> None:
    says(service, engine, text, ending)
    choice = call(server_of(), "POST", "/v1/chat/completions", body)[2]["choices"][0]
    assert choice["message"] == {"role": "assistant", "content": text, "refusal": None}
    assert choice["finish_reason"] == ending


def test_tags_that_are_special_tokens_are_seen(service: Service, engine: Engine) -> None:
    tokenizer = service.model.tokenizer
    tags = {STOP: b"<tool_call>", "<|eot_id|>": b"</tool_call>"}
    names = {tokenizer.token_id(special) or 0: tag for special, tag in tags.items()}
    service.model = dataclasses.replace(service.model, tag_names=names)
    ids = tokenizer.encode(f'{STOP}{{"name": "now", "arguments": {{}}}}<|eot_id|>')
    generation = service.begin(Ask([[5]], parse(ChatRequest, CHAT), shape=Shape(None, "", "tagged", ("now",))))
    engine.end(engine.samples[0], "stop", *ids)
    delta = generation.next(60)
    assert delta is not None and (delta.text, delta.ending, len(delta.calls)) == ("", "tool_calls", 1)


def test_a_conversation_with_calls_is_rendered(service: Service) -> None:
    made = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Rome"}'}}
    messages = [
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "content": None, "refusal": None, "tool_calls": [made]},
        {"role": "tool", "tool_call_id": "call_1", "content": "Rain"},
    ]
    request = parse(ChatRequest, WITH_TOOLS | {"messages": messages})
    prompt = service.chat_prompt(request.messages, [tool.function for tool in request.tools or []])
    assert service.model.tokenizer.decode(prompt) == (
        "<tool_call>weather<tool_call>now<user>Weather?"
        '<assistant>{"name": "weather", "arguments": {"city": "Rome"}}<tool>Rain<assistant>'
    )
    made["function"] = {"name": "weather", "arguments": "[]"}
    with pytest.raises(ApiError, match="an object is expected"):
        service.chat_prompt(parse(ChatRequest, WITH_TOOLS | {"messages": messages}).messages)


# ---- what is asked for


@pytest.mark.parametrize(
    ("values", "param"),
    [
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": [NOW, NOW]}, "tools"),
        ({"tools": [NOW], "tool_choice": NAMED}, "tool_choice"),
        ({"tools": [NOW], "response_format": {"type": "json_object"}}, "response_format"),
        ({"tools": [{"type": "function", "function": {"name": "x", "parameters": {"type": "string"}}}]}, "tools"),
        ({"response_format": SCHEMA | {"json_schema": {"name": "x", "schema": {"enum": ["x" * 200_000]}}}}, None),
    ],
)
def test_what_makes_no_sense_is_refused_by_its_name(values: dict[str, Any], param: str | None) -> None:
    with pytest.raises(ApiError) as caught:
        shape_of_chat(parse(ChatRequest, CHAT | values), "tagged")
    error = caught.value.to_json()["error"]
    assert caught.value.status == 400
    assert error["param"] == (param or "response_format") and error["param"] in error["message"]


def test_tools_need_a_template_that_knows_them(service: Service) -> None:
    with pytest.raises(ApiError, match="tools are not supported") as caught:
        shape_of_chat(parse(ChatRequest, WITH_TOOLS), None)
    assert caught.value.to_json()["error"]["code"] == "unsupported_parameter"
    assert shape_of_chat(parse(ChatRequest, WITH_TOOLS | {"tool_choice": "none"}), None) == FREE


@pytest.mark.parametrize(
    ("values", "is_held", "is_parallel"),
    [
        ({}, False, True),
        ({"tool_choice": "auto", "parallel_tool_calls": False}, False, False),
        ({"tool_choice": "required"}, True, True),
        ({"tool_choice": NAMED}, True, False),
        ({"tools": [WEATHER | {"function": WEATHER["function"] | {"strict": True}}]}, True, True),  # type: ignore[operator]
    ],
)
def test_answers_are_held_to_calls_where_they_must_be(values: dict[str, Any], is_held: bool, is_parallel: bool) -> None:
    shape = shape_of_chat(parse(ChatRequest, WITH_TOOLS | values), "tagged")
    assert (shape.grammar is not None, shape.is_parallel) == (is_held, is_parallel)


def test_text_is_free() -> None:
    text = {"type": "text"}
    assert shape_of_chat(parse(ChatRequest, CHAT | {"response_format": text}), None) == FREE
    assert shape_of_response(parse(ResponseRequest, RESPONSE | {"text": {"format": text}})) == FREE


# ---- constraints


class Missing(Matchers):
    """Where the library is not installed."""

    def __init__(self) -> None:
        pass

    def begin(self, grammar: str) -> Matcher:
        raise ModuleNotFoundError("No module named 'llguidance'", name="llguidance")


def test_without_the_library_the_request_is_refused_and_told_what_to_install(
    server_of: ServerOf, service: Service
) -> None:
    service._constraints = constraints.Constraints(Missing())
    status, _, body = call(server_of(), "POST", "/v1/chat/completions", CHAT | {"response_format": SCHEMA})
    assert status == 400 and body["error"]["param"] == "response_format"
    assert "pip install llguidance" in body["error"]["message"]
    assert service.n_open == 0


@contextlib.contextmanager
def all_ended(service: Service) -> Iterator[None]:
    yield
    assert service._constraints.n_open == 0


needs_library = pytest.mark.skipif(find_spec("llguidance") is None, reason="llguidance is not installed")


@needs_library
def test_answers_have_the_schema_that_was_asked_for(server_of: ServerOf, service: Service, engine: Engine) -> None:
    draws(service, engine)
    server = server_of()
    with all_ended(service):
        chat = call(server, "POST", "/v1/chat/completions", CHAT | {"response_format": SCHEMA, "n": 2})[2]
        flat = {"format": {"type": "json_schema", "name": "city", "schema": CITY}}
        response = call(server, "POST", "/v1/responses", RESPONSE | {"text": flat})[2]
    texts = [choice["message"]["content"] for choice in chat["choices"]]
    texts.append(response["output"][0]["content"][0]["text"])
    assert all(json.loads(text)["city"] in ("Rome", "Oslo") for text in texts)
    assert response["text"]["format"]["schema"] == CITY


@needs_library
@pytest.mark.parametrize("choice", ["required", NAMED])
def test_forced_calls_are_made(choice: Any, server_of: ServerOf, service: Service, engine: Engine) -> None:
    draws(service, engine)
    with all_ended(service):
        body = WITH_TOOLS | {"tool_choice": choice, "parallel_tool_calls": False}
        answer = call(server_of(), "POST", "/v1/chat/completions", body)[2]["choices"][0]
    assert (answer["message"]["content"], answer["finish_reason"]) == (None, "tool_calls")
    (made,) = answer["message"]["tool_calls"]
    arguments = json.loads(made["function"]["arguments"])
    assert arguments == {} if made["function"]["name"] == "now" else arguments["city"] in ("Rome", "Oslo")


@needs_library
def test_a_schema_that_is_refused_is_the_fault_of_the_request(server_of: ServerOf, service: Service) -> None:
    bad = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"$ref": "https://example.com/x"}}}
    with all_ended(service):
        status, _, body = call(server_of(), "POST", "/v1/chat/completions", CHAT | {"response_format": bad, "n": 2})
    assert (status, body["error"]["param"], body["error"]["code"]) == (400, "response_format", "invalid_value")


@needs_library
def test_constraints_end_with_requests_that_are_not_admitted_or_cancelled(service: Service, engine: Engine) -> None:
    shape = shape_of_chat(parse(ChatRequest, CHAT | {"response_format": SCHEMA}), None)
    request = parse(ChatRequest, CHAT)
    with all_ended(service):
        with pytest.raises(ApiError, match="waiting"):
            service.begin(Ask([[5]], request, n=N_SLOTS + MAX_QUEUE + 1, shape=shape))
        generation = service.begin(Ask([[5]], request, shape=shape))
        assert engine.samples[0].params.stops == ()
        generation.close()


@needs_library
def test_more_constraints_than_there_may_be_are_refused(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constraints, "MAX_CONSTRAINTS", 1)
    few = Service(service.model, Engine(), MAX_QUEUE)
    shape = shape_of_chat(parse(ChatRequest, CHAT | {"response_format": SCHEMA}), None)
    with all_ended(few):
        with pytest.raises(ApiError) as caught:
            few.begin(Ask([[5]], parse(ChatRequest, CHAT), n=2, shape=shape))
        assert caught.value.status == 429


def test_a_constraint_that_fails_is_told(server_of: ServerOf, service: Service, engine: Engine) -> None:
    def script(sample: Sample) -> None:
        sample.failure = str(GrammarError("no token may follow"))
        engine.end(sample, "abort")

    engine.script = script
    status, _, body = call(server_of(), "POST", "/v1/chat/completions", CHAT)
    assert status == 500 and "no token may follow" in body["error"]["message"]
