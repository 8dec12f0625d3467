"""Chat templates in their sandbox."""

import json
from pathlib import Path

import pytest

from mdi.errors import CheckpointError
from mdi.text.chat_template import ChatTemplate, load_chat_template


def render(source: str, content: str = "Hi", **special_tokens: str) -> str:
    template = ChatTemplate(source, Path("tokenizer_config.json"), special_tokens)
    return template.render([{"role": "user", "content": content}])


def test_templates_see_what_hugging_face_gives_them() -> None:
    assert render("{{ bos_token }}{{ tools is none }}{{ missing }}", bos_token="<s>") == "<s>True"
    assert render("{{ messages | tojson }}", "<é>") == '[{"role": "user", "content": "<é>"}]'
    assert render(
        "{{ {'b': 'é', 'a': [1]} | tojson(ensure_ascii=True, indent=1, separators=(',', ':'), sort_keys=True) }}"
    ) == ('{\n "a":[\n  1\n ],\n "b":"\\u00e9"\n}')
    assert render("{{ messages | tojson(false) }}", "é") == '[{"role": "user", "content": "é"}]'
    assert render("{% for m in messages %}{% break %}{% endfor %}.") == "."
    assert len(render("{{ strftime_now('%Y-%m-%d') }}")) == 10


@pytest.mark.parametrize(
    "source",
    [
        "{{ raise_exception('only\nwith a system prompt') }}",
        "{{ messages.append(1) }}",
        "{{ messages.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages[0] + 1 }}",
        "{{ messages[7].content }}",
        "{{ 1 / 0 }}",
        "{% for %}",
        "{{ 'x' | nosuchfilter }}",
    ],
)
def test_a_template_that_fails_or_breaks_out_is_one_line(source: str) -> None:
    with pytest.raises(CheckpointError, match=r"tokenizer_config\.json") as caught:
        render(source)
    assert "\n" not in str(caught.value)


def test_a_list_of_templates_may_have_entries_of_any_shape(tmp_path: Path) -> None:
    entries = [
        None,
        {"name": ["default"], "template": "x"},
        {"template": "y"},
        {"name": "default", "template": "{{ 1 }}"},
    ]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": entries}))
    template = load_chat_template(tmp_path)
    assert template is not None and template.render([]) == "1"


TOOLS = [{"type": "function", "function": {"name": "now", "parameters": {}}}]


def test_a_conversation_with_tools_has_them_and_calls_in_it() -> None:
    source = (
        "{% if tools %}<tool_call>{{ tools | tojson }}{% endif %}"
        "{% for m in messages %}{{ m.content }}{% for c in m.tool_calls or [] %}{{ c.function.arguments | tojson }}"
        "{% endfor %}{% endfor %}"
    )
    template = ChatTemplate(source, Path("x.json"), {})
    called = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "now", "arguments": {"é": 1}}}]}
    assert template.render([called], TOOLS) == "<tool_call>" + json.dumps(TOOLS) + '{"é": 1}'
    assert template.render([called]) == '{"é": 1}'
    assert template.tool_format == "tagged"


def test_a_template_for_tools_may_be_another_one(tmp_path: Path) -> None:
    entries = [{"name": "default", "template": "plain"}, {"name": "tool_use", "template": "{{ tools }}<tool_call>"}]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": entries}))
    template = load_chat_template(tmp_path)
    assert template is not None and template.tool_format == "tagged"
    assert (template.render([]), template.render([], TOOLS)) == ("plain", f"{TOOLS}<tool_call>")
