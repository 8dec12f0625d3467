"""A conversation of OpenAI's API in the names that chat templates use."""

from typing import Any

from mdi.documents import parse_json
from mdi.errors import ConfigError
from mdi.serve.schemas import Function, Message


def turn_of(message: Message) -> dict[str, Any]:
    """A message in the names that templates use. Raises `ConfigError` for arguments of calls that are no object."""
    turn: dict[str, Any] = {"role": _role(message), "content": message.text}
    if message.tool_calls:  # templates write arguments as JSON themselves
        turn["tool_calls"] = [
            {
                "id": call.id,
                "type": call.type,
                "function": {"name": call.function.name, "arguments": _arguments(call.function.arguments)},
            }
            for call in message.tool_calls
        ]
    if message.tool_call_id is not None:
        turn["tool_call_id"] = message.tool_call_id
    if message.name is not None:
        turn["name"] = message.name
    return turn


def _role(message: Message) -> str:
    """OpenAI's newer models call the system a developer; templates do not."""
    return "system" if message.role == "developer" else message.role


def _arguments(text: str) -> dict[str, Any]:
    arguments = parse_json(text.encode(), "the arguments of a call", ConfigError)
    if not isinstance(arguments, dict):
        raise ConfigError("the arguments of a call: an object is expected")
    return arguments


def described(function: Function) -> dict[str, Any]:
    """A tool as templates have it: what was said about it, and nothing that was not."""
    return {"type": "function", "function": function.model_dump(exclude_none=True, exclude={"strict"})}
