"""What the forms of answers have in common: whole, or as events while they grow."""

import secrets
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from mdi.engine.sample import TokenLogprobs
from mdi.serve.generation import Delta, Ending, Usage
from mdi.serve.schemas import ChatRequest, CompletionRequest
from mdi.serve.service import Ask, ServedModel
from mdi.text.tool_calls import ToolCall


@dataclass(frozen=True)
class ServerSentEvent:
    """One server-sent event."""

    data: dict[str, Any]
    name: str | None = None


@dataclass(frozen=True)
class Text:
    """One answer that has ended."""

    text: str
    ending: Ending
    logprobs: tuple[TokenLogprobs, ...] = ()
    calls: tuple[ToolCall, ...] = ()


class Form(Protocol):
    """One request, and the shape of the answer to it."""

    @property
    def is_streamed(self) -> bool: ...

    def ask(self) -> Ask:
        """What is to be generated. Raises `ApiError`."""

    def whole(self, texts: Sequence[Text], usage: Usage) -> dict[str, Any]:
        """The answer in one piece."""

    def opening(self) -> Iterable[ServerSentEvent]:
        """What comes before the first token."""

    def growing(self, delta: Delta) -> Iterable[ServerSentEvent]:
        """What an answer has grown by."""

    def closing(self, usage: Usage) -> Iterable[ServerSentEvent]:
        """What comes after the last token."""

    @property
    def last_line(self) -> str | None:
        """What ends the stream beside that, if anything does."""


@dataclass(frozen=True)
class Identity:
    """What names an answer."""

    id: str
    created_s: int

    @classmethod
    def new(cls, prefix: str) -> "Identity":
        return cls(f"{prefix}{secrets.token_hex(12)}", int(time.time()))


class ChoicesForm:
    """What chats and completions have in common: a list of choices, and usage where it is asked for."""

    last_line = "[DONE]"

    def __init__(self, request: ChatRequest | CompletionRequest, model: ServedModel, prefix: str) -> None:
        self._model, self._identity = model, Identity.new(prefix)
        self._stream_options = request.stream_options
        self.is_streamed = bool(request.stream)

    def _closing(self, kind: str, usage: Usage) -> Iterator[ServerSentEvent]:
        if self._stream_options is not None and self._stream_options.include_usage:
            yield ServerSentEvent(self._body(kind, []) | {"usage": usage.to_json()})

    def _body(self, kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": self._identity.id,
            "object": kind,
            "created": self._identity.created_s,
            "model": self._model.name,
            "choices": choices,
        }
