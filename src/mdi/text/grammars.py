"""What an answer has to look like, as a grammar of llguidance: JSON of a schema, or calls of tools.

A grammar is a JSON text with a list of Lark grammars and JSON schemas that refer to each other by name:
https://github.com/guidance-ai/llguidance/blob/main/docs/syntax.md
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from mdi.errors import ConfigError
from mdi.strings import format_bytes
from mdi.text.tool_calls import Tool, ToolFormat

MAX_SCHEMA_BYTES = 1 << 17  # of all schemas of a request
MAX_CALLS = 16  # in one answer that has to consist of calls

# As people and programs write JSON. A small model may write blanks until its context is full where it may write any.
_WHITESPACE = {"whitespace_pattern": r" |\n[ \t]{0,16}"}
_ONE_LINE = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}  # as calls were trained on

# Anything, until a tag begins a call. https://github.com/guidance-ai/llguidance/blob/main/docs/syntax.md#tool-calling
_TAGGED_CALLS_IN_TEXT = """\
start: call* text
text: ANYTHING
ANYTHING: /(.|\\n)*/
call: head "\\n" body "\\n</tool_call>"
head[lazy]: /(.|\\n)*<tool_call>/
"""
_BARE_CALL_OR_TEXT = """\
start: NO_CALL | body
NO_CALL: /(\\s*([^\\s{<]|<[^|])(.|\\n)*)?/
"""


def schema_grammar(schema: Mapping[str, Any]) -> str:
    """JSON that has a schema. Raises `ConfigError` for one that is too long."""
    return _serialized("start: @value", {"value": {**schema, "x-guidance": _WHITESPACE}})


def calls_grammar(tools: Sequence[Tool], kind: ToolFormat, *, parallel: bool) -> str:
    """Calls of `tools` and nothing else; one, unless `parallel`. Raises `ConfigError` for schemas that are too long."""
    if kind == "bare":
        return _with_bodies("start: body\n", tools, kind)
    more = f'("\\n" call){{0,{MAX_CALLS - 1}}}' if parallel else ""
    return _with_bodies(f'start: call {more}\ncall: "<tool_call>\\n" body "\\n</tool_call>"\n', tools, kind)


def text_or_calls_grammar(tools: Sequence[Tool], kind: ToolFormat) -> str:
    """Any text, in which what begins as a call becomes one of `tools`. Raises as `calls_grammar` does."""
    return _with_bodies(_TAGGED_CALLS_IN_TEXT if kind == "tagged" else _BARE_CALL_OR_TEXT, tools, kind)


def _with_bodies(rules: str, tools: Sequence[Tool], kind: ToolFormat) -> str:
    """`rules` that refer to a `body`, and the bodies of calls of each tool."""
    key = "arguments" if kind == "tagged" else "parameters"
    starts = [json.dumps(f'{{"name": "{tool.name}", "{key}": ') for tool in tools]  # names need no escapes
    bodies = " | ".join(f'{start} @arguments_{i} "}}"' for i, start in enumerate(starts))
    schemas = {f"arguments_{i}": {**tool.parameters, "x-guidance": _ONE_LINE} for i, tool in enumerate(tools)}
    return _serialized(f"{rules}body: {bodies}\n", schemas)


def _serialized(rules: str, schemas: Mapping[str, Mapping[str, Any]]) -> str:
    named = [{"name": name, "json_schema": schema} for name, schema in schemas.items()]
    text = json.dumps({"grammars": [{"lark_grammar": rules}, *named]})
    if len(text) > MAX_SCHEMA_BYTES:
        raise ConfigError(f"schemas of {format_bytes(len(text))}; {format_bytes(MAX_SCHEMA_BYTES)} are allowed")
    return text
