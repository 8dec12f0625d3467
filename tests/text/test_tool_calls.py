"""Calls of tools in the text of a model: told once they are complete, however the text comes."""

import json
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mdi.text.tool_calls import Parsed, ToolCall, ToolFormat, parser_for, tool_format
from support.wire import few_examples

NAMES = ["add", "now"]
ADD, NOW = ToolCall("add", '{"a": 1, "b": [2.50]}'), ToolCall("now", "{}")
ADD_BODY, NOW_BODY = '{"name": "add", "arguments": {"a": 1, "b": [2.50]}}', '{"name": "now", "arguments": {}}'
TAGGED_ADD, TAGGED_NOW = f"<tool_call>\n{ADD_BODY}\n</tool_call>", f"<tool_call>{NOW_BODY}</tool_call>"

TAGGED: dict[str, tuple[str, str, list[ToolCall]]] = {  # text -> content, calls
    "nothing": ("", "", []),
    "text": ("a < b, <tool> and\n more \n", "a < b, <tool> and\n more \n", []),
    "a call": (TAGGED_ADD, "", [ADD]),
    "text before a call": (f"I'll add.\n\n{TAGGED_ADD}", "I'll add.", [ADD]),
    "text behind a call": (f"{TAGGED_ADD}\n Done. ", "Done. ", [ADD]),
    "blanks around calls": (f" {TAGGED_ADD} \n\n {TAGGED_NOW}\n", "", [ADD, NOW]),
    "text between calls": (f"{TAGGED_ADD}\nand\n{TAGGED_NOW}", "and", [ADD, NOW]),
    "tags in strings": (
        '<tool_call>{"name": "add", "arguments": {"a": "</tool_call> \\"<tool_call>"}}</tool_call>',
        "",
        [ToolCall("add", '{"a": "</tool_call> \\"<tool_call>"}')],
    ),
    "other members and another order": (
        '<tool_call>{"type": "function", "parameters": {"a": 1}, "name": "add"}</tool_call>',
        "",
        [ToolCall("add", '{"a": 1}')],
    ),
}
UNPARSABLE = [
    "<tool_call>",
    f" <tool_call>{ADD_BODY}",
    f"<tool_call>{ADD_BODY}{NOW_BODY} x</tool_call>",
    "<tool_call>add(1, 2)</tool_call>",
    '<tool_call>{"name": "other", "arguments": {}}</tool_call>',
    '<tool_call>{"name": ["add"], "arguments": {}}</tool_call>',
    '<tool_call>{"name": "add"}</tool_call>',
    '<tool_call>{"name": "add", "arguments": "{}"}</tool_call>',
    '<tool_call>{"name": "add", "arguments": {"a": NaN}}</tool_call>',
    '<tool_call>{"name": "add", "arguments": {"a": 1}</tool_call>',
    '<tool_call>{"name": "add", "arguments": {"a": "1}}</tool_call>',
    '<tool_call>{"name" "add"}</tool_call>',
    "<tool_call>{1: 2}</tool_call>",
    "<tool_call>{}</tool_call>",
    "<tool_call>" + "[" * 100_000 + "</tool_call>",
]
ADD_BARE, NOW_BARE = ADD_BODY.replace("arguments", "parameters"), NOW_BODY.replace("arguments", "parameters")
BARE: dict[str, tuple[str, str, list[ToolCall]]] = {
    "nothing": ("", "", []),
    "blanks": (" \n", " \n", []),
    "text": ("It is {now}.", "It is {now}.", []),
    "a call": (ADD_BARE, "", [ADD]),
    "a call behind a tag": (f"\n<|python_tag|>{ADD_BARE}\n", "", [ADD]),
    "part of the tag": ("<|python", "<|python", []),
    "calls": (f"{ADD_BARE}; {NOW_BARE}\n{ADD_BARE}", "", [ADD, NOW, ADD]),
    "another object": ('{"a": 1}', '{"a": 1}', []),
    "text behind a call": (f"{ADD_BARE} Done.", f"{ADD_BARE} Done.", []),
    "a call that was cut": (ADD_BARE[:-1], ADD_BARE[:-1], []),
    "an unknown tool": ('{"name": "other", "parameters": {}}', '{"name": "other", "parameters": {}}', []),
}
CASES: list[tuple[ToolFormat, str, str, list[ToolCall]]] = [
    *(("tagged", *case) for case in TAGGED.values()),
    *(("tagged", text, text, list[ToolCall]()) for text in UNPARSABLE[:-1]),
    *(("bare", *case) for case in BARE.values()),
]


def parse(kind: ToolFormat, pieces: list[str], *, parallel: bool = True) -> Parsed:
    parser = parser_for(kind, NAMES, parallel=parallel)
    results = [*map(parser.push, pieces), parser.finish()]
    return sum(results, Parsed())


@pytest.mark.parametrize(("kind", "text", "content", "calls"), CASES)
def test_calls_are_taken_out_of_the_text_however_it_is_cut(
    kind: ToolFormat, text: str, content: str, calls: list[ToolCall]
) -> None:
    expected = Parsed(content, tuple(calls))
    assert parse(kind, [text]) == expected
    assert parse(kind, list(text)) == expected
    for i in range(len(text)):
        assert parse(kind, [text[:i], text[i:]]) == expected
    for call in calls:
        json.loads(call.arguments)


def test_what_is_nested_too_deep_stays_text() -> None:
    assert parse("tagged", [UNPARSABLE[-1]]) == Parsed(UNPARSABLE[-1])
    assert parse("bare", ["{" + UNPARSABLE[-1]]) == Parsed("{" + UNPARSABLE[-1])


PARTS = st.sampled_from(
    [TAGGED_ADD, TAGGED_NOW, *UNPARSABLE[:-1], ADD_BARE, "<|python_tag|>", "text", " ", "\n", '"', "</tool_call>", ";"]
)


@given(kind=st.sampled_from(["tagged", "bare"]), parts=st.lists(PARTS, max_size=6), data=st.data())
@few_examples
def test_cuts_change_nothing(kind: ToolFormat, parts: list[str], data: st.DataObject) -> None:
    text = "".join(parts)
    for parallel in (True, False):
        cuts = data.draw(st.lists(st.integers(0, len(text)), max_size=8))
        pieces = [text[a:b] for a, b in pairwise([0, *sorted(cuts), len(text)])]
        assert parse(kind, pieces, parallel=parallel) == parse(kind, [text], parallel=parallel)


def test_text_comes_before_the_end_and_no_part_of_a_tag_does() -> None:
    parser = parser_for("tagged", NAMES, parallel=True)
    shown = [parser.push(piece) for piece in ("I ", "look. <to", "ols>", " <tool", '_call>{"name": "now"', ", ")]
    assert [each.text for each in shown] == ["I", " look.", " <tools>", "", "", ""]
    assert parser.push('"arguments": {}}</tool_call>').calls == (NOW,)
    assert not parser.is_over


@pytest.mark.parametrize("kind", ["tagged", "bare"])
def test_one_call_ends_an_answer_that_may_have_no_more(kind: ToolFormat) -> None:
    text = f"{TAGGED_ADD}\n{TAGGED_NOW}" if kind == "tagged" else f"{ADD_BARE}; {NOW_BARE}"
    assert parse(kind, list(text), parallel=False) == Parsed(calls=(ADD,))


TEMPLATES: dict[str, tuple[str, ToolFormat | None]] = {
    "Qwen": ("{% if tools %}<tool_call>\n{{ tools | tojson }}</tool_call>{% endif %}", "tagged"),
    "Llama 3.1": ("{% if tools is not none %}<|python_tag|>{% endif %}", "bare"),
    "Llama 3.2": ('{{ tools }} \'Respond in the format {"name": function name, "parameters": dictionary\'', "bare"),
    "Qwen3-Coder": ("{% if tools %}<tool_call>\n<function=x>{% endif %}", None),
    "Mistral": ("{% if tools %}[AVAILABLE_TOOLS]{% endif %}", None),
    "no tools": ("{{ messages[0].content }} <tool_call>", None),
}


@pytest.mark.parametrize("case", TEMPLATES)
def test_the_form_of_calls_is_that_of_the_template(case: str) -> None:
    template, expected = TEMPLATES[case]
    assert tool_format(template) == expected
