"""`POST /v1/chat/completions`: https://platform.openai.com/docs/api-reference/chat"""

from collections.abc import Iterator, Sequence
from typing import Any

from mdi.engine.sample import TokenLogprobs
from mdi.serve.errors import ApiError
from mdi.serve.forms import Event, Identity, Text
from mdi.serve.generation import Delta, Usage
from mdi.serve.logprobs import of_chat
from mdi.serve.schemas import ChatRequest
from mdi.serve.service import Ask, Service


class ChatForm:
    """One conversation and its next turn, `n` times."""

    last_line = "[DONE]"

    def __init__(self, request: ChatRequest, service: Service) -> None:
        self._request, self._service = request, service
        self._identity = Identity.new("chatcmpl-")

    @property
    def is_streamed(self) -> bool:
        return bool(self._request.stream)

    def ask(self) -> Ask:
        request = self._request
        prompt = self._service.chat_prompt(request.messages)
        max_tokens = request.max_completion_tokens or request.max_tokens
        if request.top_logprobs is not None and not request.logprobs:
            raise ApiError(400, "top_logprobs needs logprobs to be true", param="top_logprobs", code="invalid_value")
        return Ask(
            [prompt],
            request,
            max_tokens,
            request.n or 1,
            request.stop_strings,
            logprobs=(request.top_logprobs or 0) if request.logprobs else None,
        )

    def whole(self, texts: Sequence[Text], usage: Usage) -> dict[str, Any]:
        choices = [
            {
                "index": index,
                "message": {"role": "assistant", "content": text.text, "refusal": None},
                "logprobs": self._logprobs(text.logprobs),
                "finish_reason": text.ending,
            }
            for index, text in enumerate(texts)
        ]
        return self._body("chat.completion", choices) | {"usage": usage.to_json()}

    def opening(self) -> Iterator[Event]:
        for index in range(self._request.n or 1):
            yield self._chunk(index, {"role": "assistant", "content": ""})

    def growing(self, delta: Delta) -> Iterator[Event]:
        if delta.text or delta.logprobs:
            yield self._chunk(delta.index, {"content": delta.text}, logprobs=delta.logprobs)
        if delta.ending is not None:
            yield self._chunk(delta.index, {}, delta.ending)

    def closing(self, usage: Usage) -> Iterator[Event]:
        options = self._request.stream_options
        if options is not None and options.include_usage:
            yield Event(self._body("chat.completion.chunk", []) | {"usage": usage.to_json()})

    def _chunk(
        self, index: int, delta: dict[str, Any], ending: str | None = None, logprobs: Sequence[TokenLogprobs] = ()
    ) -> Event:
        choice = {"index": index, "delta": delta, "logprobs": self._logprobs(logprobs), "finish_reason": ending}
        return Event(self._body("chat.completion.chunk", [choice]))

    def _logprobs(self, found: Sequence[TokenLogprobs]) -> dict[str, Any] | None:
        return of_chat(self._service.model.tokenizer, found) if found else None

    def _body(self, kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        identity = self._identity
        return {
            "id": identity.id,
            "object": kind,
            "created": identity.created_s,
            "model": self._service.model.name,
            "choices": choices,
        }
