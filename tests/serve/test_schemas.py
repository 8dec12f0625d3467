"""Requests are checked: what is not supported is refused by its name, and never ignored."""

from typing import Any

import pytest

from mdi.serve.errors import ApiError
from mdi.serve.schemas import ChatRequest, CompletionRequest, ResponseRequest, parse

CHAT: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "Hi"}]}
COMPLETION: dict[str, Any] = {"model": "m", "prompt": "Hi"}
RESPONSE: dict[str, Any] = {"model": "m", "input": "Hi"}
MADE = {"id": "call_1", "type": "function", "function": {"name": "now", "arguments": "{}"}}


@pytest.mark.parametrize(
    "values",
    [
        {"temperature": 1, "top_p": 0.5, "top_k": -1, "n": 2, "seed": 2**63, "stop": "x", "user": "me"},
        {"stop": ["a", "b"], "stream": True, "stream_options": {"include_usage": True}, "temperature": None},
        {
            "messages": [
                {"role": "developer", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}
            ]
        },
    ],
)
def test_what_clients_send_is_taken(values: dict[str, Any]) -> None:
    parse(ChatRequest, CHAT | values)


def test_an_answer_comes_back_as_it_was_given() -> None:
    answer = {"role": "assistant", "content": None, "refusal": None, "tool_calls": [MADE]}
    result = {"role": "tool", "tool_call_id": "call_1", "content": [{"type": "text", "text": "noon"}]}
    messages = parse(ChatRequest, CHAT | {"messages": [*CHAT["messages"], answer, result]}).messages
    assert [(message.text, message.is_about_tools) for message in messages] == [
        ("Hi", False),
        ("", True),
        ("noon", True),
    ]


def test_parts_of_a_message_are_one_text() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    request = parse(ChatRequest, CHAT | {"messages": [{"role": "user", "content": parts}]})
    assert request.messages[0].text == "ab"


@pytest.mark.parametrize(
    ("values", "param", "code"),
    [
        ({"functions": []}, "functions", "unsupported_parameter"),
        ({"best_of": 2}, "best_of", "unsupported_parameter"),
        (
            {"stream_options": {"include_obfuscation": True}},
            "stream_options.include_obfuscation",
            "unsupported_parameter",
        ),
        ({"temperature": 2.1}, "temperature", "invalid_value"),
        ({"temperature": "1"}, "temperature", "invalid_value"),
        ({"top_p": 0}, "top_p", "invalid_value"),
        ({"top_k": 10**13}, "top_k", "invalid_value"),
        ({"n": 0}, "n", "invalid_value"),
        ({"n": True}, "n", "invalid_value"),
        ({"max_tokens": 0}, "max_tokens", "invalid_value"),
        ({"messages": []}, "messages", "invalid_value"),
        ({"messages": [{"role": "user"}]}, "messages.0.content", "invalid_value"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages.0.role", "invalid_value"),
        (
            {"messages": [{"role": "user", "content": "x", "tool_calls": [MADE]}]},
            "messages.0.tool_calls",
            "invalid_value",
        ),
        ({"messages": [{"role": "assistant", "tool_calls": []}]}, "messages.0.content", "invalid_value"),
        ({"messages": [{"role": "tool", "tool_call_id": "x"}]}, "messages.0.content", "invalid_value"),
        ({"messages": [{"role": "assistant", "content": "", "refusal": "No."}]}, "messages.0.refusal", "invalid_value"),
        ({"tools": [{"type": "web_search"}]}, "tools.0.type", "invalid_value"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools.0.function.name", "invalid_value"),
        ({"response_format": {"type": "grammar"}}, "response_format", "invalid_value"),
        ({"stop": [""]}, None, "invalid_value"),
        ({"seed": 2**70}, "seed", "invalid_value"),
        ({"model": 3}, "model", "invalid_value"),
    ],
)
def test_what_cannot_be_served_is_refused_by_its_name(values: dict[str, Any], param: str | None, code: str) -> None:
    with pytest.raises(ApiError) as caught:
        parse(ChatRequest, CHAT | values)
    error = caught.value.to_json()["error"]
    assert caught.value.status == 400
    assert error["code"] == code
    assert param is None or error["param"] == param
    assert str(error["param"]) in error["message"]


USER: dict[str, Any] = {"role": "user", "content": "Hi"}
FORMATS = "'text', 'json_object', 'json_schema'"


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"temperature": 5}, "temperature must be at most 2, not 5"),
        ({"temperature": "1"}, "temperature must be a number, not '1'"),
        ({"top_k": 10**13}, "top_k must be at most 1000000000000, not 10000000000000"),
        ({"top_p": 0}, "top_p must be above 0, not 0"),
        ({"seed": 2**64}, "seed must be below 1.84467440737096e+19, not 18446744073709551616"),
        ({"n": True}, "n must be a whole number, not True"),
        ({"stream": 1}, "stream must be true or false, not 1"),
        ({"stop": 3}, "stop must be a text or a list, not 3"),
        ({"stop": ["a", ""]}, "stop.1 must have at least 1 character, not 0"),
        ({"stop": ["a"] * 17}, "stop must have at most 16 items, not 17"),
        ({"messages": "Hi"}, "messages must be a list, not 'Hi'"),
        ({"messages": []}, "messages must have at least 1 item, not 0"),
        ({"messages": ["Hi"]}, "messages.0 must be an object, not 'Hi'"),
        ({"messages": [{"content": "Hi"}]}, "messages.0.role is missing"),
        ({"messages": [{"role": "user"}]}, "messages.0.content: a text is expected"),
        ({"messages": [USER, USER | {"content": {"text": "secret"}}]}, "messages.1.content must be a text or a list"),
        (
            {"messages": [USER | {"content": [{"type": "image_url", "text": ""}]}]},
            "messages.0.content.0.type must be 'text', 'input_text' or 'output_text', not 'image_url'",
        ),
        ({"response_format": {}}, "response_format lacks 'type'"),
        ({"response_format": {"type": "a"}}, f"response_format must have as 'type' one of {FORMATS}, not 'a'"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema is missing"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "a b", "schema": {}}}},
            "response_format.json_schema.name must match ^[a-zA-Z0-9_-]{1,64}$, not 'a b'",
        ),
        ({"tool_choice": {"type": "function"}}, "tool_choice.function is missing"),
        ({"logit_bias": {"7": 101}}, "logit_bias.7 must be at most 100, not 101"),
        ({"user": "a\nb", "refusal": "\x1b"}, "refusal is not supported here"),
    ],
)
def test_what_is_wrong_is_one_line_in_words_of_the_api(values: dict[str, Any], text: str) -> None:
    with pytest.raises(ApiError) as caught:
        parse(ChatRequest, CHAT | values)
    message = caught.value.to_json()["error"]["message"]
    assert message.startswith(text)
    assert message.isprintable() and "secret" not in message


@pytest.mark.parametrize(
    ("prompt", "text"),
    [
        (3, "prompt must be a text or a list, not 3"),
        ([1, "a"], "prompt.0 must be a text or a list, not 1"),
        ([-1], "prompt.0 must be"),
        ([[]], "prompt.0 must have at least 1 item, not 0"),
    ],
)
def test_what_is_wrong_with_a_prompt_is_told_of_the_place_where_it_is(prompt: Any, text: str) -> None:
    with pytest.raises(ApiError, match=text):
        parse(CompletionRequest, COMPLETION | {"prompt": prompt})


@pytest.mark.parametrize("body", [None, [], "x", 3])
def test_a_body_that_is_no_object_is_refused(body: Any) -> None:
    with pytest.raises(ApiError, match="not a JSON object"):
        parse(ChatRequest, body)


@pytest.mark.parametrize("prompt", ["Hi", ["Hi", "Ho"], [1, 2, 3], [[1, 2], [3]]])
def test_a_completion_takes_texts_and_ids(prompt: Any) -> None:
    assert parse(CompletionRequest, COMPLETION | {"prompt": prompt}).prompt == prompt


@pytest.mark.parametrize("prompt", [[], [[]], [-1], [1, "a"], {"a": 1}, ["a"] * 17, [[1]] * 17])
def test_a_completion_takes_nothing_else(prompt: Any) -> None:
    with pytest.raises(ApiError):
        parse(CompletionRequest, COMPLETION | {"prompt": prompt})


def test_a_response_has_a_conversation_with_instructions_first() -> None:
    request = parse(ResponseRequest, RESPONSE | {"instructions": "Be brief."})
    assert [(message.role, message.text) for message in request.messages] == [("system", "Be brief."), ("user", "Hi")]


def test_nothing_is_stored() -> None:
    for values in ({"store": True}, {"previous_response_id": "resp_1"}, {"tools": [MADE]}):
        with pytest.raises(ApiError):
            parse(ResponseRequest, RESPONSE | values)


def test_a_parameter_that_was_meant_is_named() -> None:
    with pytest.raises(ApiError, match="did you mean temperature"):
        parse(ChatRequest, CHAT | {"temprature": 1})
