"""`POST /v1/chat/completions`: https://platform.openai.com/docs/api-reference/chat"""

from collections.abc import Iterator, Sequence
from typing import Any

from mdi.engine.sample import TokenLogprobs
from mdi.serve.errors import ApiError
from mdi.serve.forms import ChoicesForm, ServerSentEvent, Text
from mdi.serve.generation import Delta, Usage
from mdi.serve.logprobs import of_chat
from mdi.serve.schemas import ChatRequest
from mdi.serve.service import Ask, Service


class ChatForm(ChoicesForm):
    """One conversation and its next turn, `n` times."""

    def __init__(self, request: ChatRequest, service: Service) -> None:
        super().__init__(request, service.model, "chatcmpl-")
        self._request, self._service = request, service

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

    def opening(self) -> Iterator[ServerSentEvent]:
        for index in range(self._request.n or 1):
            yield self._chunk(index, {"role": "assistant", "content": ""})

    def growing(self, delta: Delta) -> Iterator[ServerSentEvent]:
        if delta.text or delta.logprobs:
            yield self._chunk(delta.index, {"content": delta.text}, logprobs=delta.logprobs)
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
