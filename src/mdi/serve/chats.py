"""`POST /v1/chat/completions`: https://platform.openai.com/docs/api-reference/chat"""

import secrets
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from mdi.engine.sample import TokenLogprobs
from mdi.serve.errors import ApiError
from mdi.serve.forms import ChoicesForm, ServerSentEvent, Text
from mdi.serve.generation import Delta, Usage
from mdi.serve.logprobs import of_chat
from mdi.serve.schemas import ChatRequest
from mdi.serve.service import Ask, Service
from mdi.serve.shapes import offered_tools, shape_of_chat
from mdi.text.tool_calls import ToolCall


class ChatForm(ChoicesForm):
    """One conversation and its next turn, `n` times."""

    def __init__(self, request: ChatRequest, service: Service) -> None:
        super().__init__(request, service.model, "chatcmpl-")
        self._request, self._service = request, service
        self._n_calls: Counter[int] = Counter()  # that were sent of each answer

    def ask(self) -> Ask:
        request = self._request
        shape = shape_of_chat(request, self._service.tool_format)
        prompt = self._service.chat_prompt(request.messages, offered_tools(request))
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
            shape=shape,
            answer_id=self._identity.id,
        )

    def whole(self, texts: Sequence[Text], usage: Usage) -> dict[str, Any]:
        choices = [
            {
                "index": index,
                "message": _message(text),
                "logprobs": self._logprobs(text.logprobs),
                "finish_reason": text.ending,
            }
            for index, text in enumerate(texts)
        ]
        return self._body("chat.completion", choices) | {"usage": usage.to_json()}

    def opening(self) -> Iterator[ServerSentEvent]:
        for index in range(self._request.n or 1):
            yield self._chunk(index, {"role": "assistant", "content": ""})

    def growing(self, delta: Delta) -> Iterator[ServerSentEvent]:
        if delta.text or delta.logprobs:
            yield self._chunk(delta.index, {"content": delta.text}, logprobs=delta.logprobs)
        for call in delta.calls:
            number = self._n_calls[delta.index]
            self._n_calls[delta.index] += 1
            for part in _parts(call):
                yield self._chunk(delta.index, {"tool_calls": [{"index": number, **part}]})
        if delta.ending is not None:
            yield self._chunk(delta.index, {}, delta.ending)

    def closing(self, usage: Usage) -> Iterator[ServerSentEvent]:
        return self._closing("chat.completion.chunk", usage)

    def _chunk(
        self, index: int, delta: dict[str, Any], ending: str | None = None, logprobs: Sequence[TokenLogprobs] = ()
    ) -> ServerSentEvent:
        choice = {"index": index, "delta": delta, "logprobs": self._logprobs(logprobs), "finish_reason": ending}
        return ServerSentEvent(self._body("chat.completion.chunk", [choice]))

    def _logprobs(self, found: Sequence[TokenLogprobs]) -> dict[str, Any] | None:
        return of_chat(self._model.tokenizer, found) if found else None


def _message(text: Text) -> dict[str, Any]:
    if not text.calls:
        return {"role": "assistant", "content": text.text, "refusal": None}
    calls = [_call(call) for call in text.calls]
    return {"role": "assistant", "content": text.text or None, "refusal": None, "tool_calls": calls}


def _parts(call: ToolCall) -> Iterator[dict[str, Any]]:
    """A call as it is streamed."""
    yield _call(ToolCall(call.name, ""))
    yield {"function": {"arguments": call.arguments}}


def _call(call: ToolCall) -> dict[str, Any]:
    function = {"name": call.name, "arguments": call.arguments}
    return {"id": f"call_{secrets.token_hex(12)}", "type": "function", "function": function}
