"""What an answer has to look like, as requests ask for it: JSON, JSON of a schema, calls of tools."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mdi.errors import ConfigError
from mdi.serve.errors import ApiError
from mdi.serve.schemas import (
    ChatRequest,
    FlatSchemaFormat,
    Function,
    JsonFormat,
    NamedTool,
    ResponseRequest,
    SchemaFormat,
    TextFormat,
)
from mdi.text.grammars import calls_grammar, schema_grammar, text_or_calls_grammar
from mdi.text.tool_calls import CallParser, NoCalls, Tool, ToolFormat, parser_for


@dataclass(frozen=True)
class Shape:
    """What an answer has to look like, and what is taken out of its text."""

    grammar: str | None = None
    param: str = ""  # of the request, that asks for it
    tool_format: ToolFormat | None = None  # of calls in the text, where there may be any
    tool_names: tuple[str, ...] = ()
    is_parallel: bool = True  # whether an answer may have several calls

    def call_parser(self) -> CallParser:
        """Takes the calls out of one answer."""
        if self.tool_format is None:
            return NoCalls()
        return parser_for(self.tool_format, self.tool_names, parallel=self.is_parallel)


FREE = Shape()


def shape_of_chat(request: ChatRequest, tool_format: ToolFormat | None) -> Shape:
    """`tool_format` is that of the model. Raises `ApiError`."""
    held = _shape_of_format(request.response_format, "response_format")
    if not offered_tools(request):
        if request.tool_choice not in (None, "none"):
            raise ApiError(400, "tool_choice needs tools", param="tool_choice", code="invalid_value")
        return held
    if held.grammar is not None:
        raise ApiError(400, "response_format cannot be combined with tools here", param="response_format")
    if tool_format is None:
        raise ApiError(
            400,
            "tools are not supported: the chat template of this model describes no form of calls that is known here",
            param="tools",
            code="unsupported_parameter",
        )
    return _shape_of_calls(request, tool_format)


def shape_of_response(request: ResponseRequest) -> Shape:
    """Raises `ApiError`."""
    return _shape_of_format(None if request.text is None else request.text.format, "text.format")


def offered_tools(request: ChatRequest) -> Sequence[Function]:
    """The tools that the model is told of: none where it is to call none."""
    return [] if request.tool_choice == "none" else [tool.function for tool in request.tools or []]


def _shape_of_format(asked: TextFormat | JsonFormat | SchemaFormat | FlatSchemaFormat | None, param: str) -> Shape:
    if asked is None or isinstance(asked, TextFormat):
        return FREE
    if isinstance(asked, JsonFormat):
        schema: dict[str, Any] = {"type": "object"}
    else:
        schema = (asked.json_schema if isinstance(asked, SchemaFormat) else asked).schema_
    try:
        return Shape(schema_grammar(schema), param)
    except ConfigError as exc:
        raise ApiError(400, f"{param}: {exc}", param=param, code="invalid_value") from exc


def _shape_of_calls(request: ChatRequest, tool_format: ToolFormat) -> Shape:
    tools = {tool.name: tool for tool in map(_tool, offered_tools(request))}
    if len(tools) < len(offered_tools(request)):
        raise ApiError(400, "tools: two have the same name", param="tools", code="invalid_value")
    choice, is_parallel = request.tool_choice, request.parallel_tool_calls is not False
    if isinstance(choice, NamedTool):
        if choice.function.name not in tools:
            message = f"tool_choice: no tool is called {choice.function.name!r}"
            raise ApiError(400, message, param="tool_choice", code="invalid_value")
        tools, is_parallel = {choice.function.name: tools[choice.function.name]}, False
    grammar = None
    try:
        if isinstance(choice, NamedTool) or choice == "required":
            grammar = calls_grammar(list(tools.values()), tool_format, parallel=is_parallel)
        elif any(tool.strict for tool in offered_tools(request)):
            grammar = text_or_calls_grammar(list(tools.values()), tool_format)
    except ConfigError as exc:
        raise ApiError(400, f"tools: {exc}", param="tools", code="invalid_value") from exc
    return Shape(grammar, "tools", tool_format, tuple(tools), is_parallel)


def _tool(function: Function) -> Tool:
    """Its arguments are an object, whatever else the schema says of it. Raises `ApiError` where it says otherwise."""
    schema = function.parameters
    if schema is None:
        schema = {"properties": {}, "additionalProperties": False}
    if schema.get("type", "object") != "object":
        raise ApiError(400, f"tools: the parameters of {function.name} are no object", param="tools")
    return Tool(function.name, {"type": "object", **schema})
