"""`POST /v1/responses`: https://platform.openai.com/docs/api-reference/responses"""

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

from mdi.serve.forms import Identity, ServerSentEvent, Text
from mdi.serve.generation import Delta, Ending, Usage
from mdi.serve.schemas import ResponseRequest, Sampling
from mdi.serve.service import Ask, Service
from mdi.serve.shapes import shape_of_response


class ResponseForm:
    """One conversation and its next turn, with an event for every stage of it. Nothing is stored."""

    last_line = None

    def __init__(self, request: ResponseRequest, service: Service) -> None:
        self._request, self._service = request, service
        self._identity, self._item_id = Identity.new("resp_"), Identity.new("msg_").id
        self._numbers = itertools.count()
        self._text = ""
        self._ending: Ending = "stop"

    @property
    def is_streamed(self) -> bool:
        return bool(self._request.stream)

    def ask(self) -> Ask:
        request = self._request
        sampling = Sampling(temperature=request.temperature, top_p=request.top_p)
        prompt = self._service.chat_prompt(request.messages)
        shape, answer_id = shape_of_response(request), self._identity.id
        return Ask([prompt], sampling, request.max_output_tokens, shape=shape, answer_id=answer_id)

    def whole(self, texts: Sequence[Text], usage: Usage) -> dict[str, Any]:
        (text,) = texts
        self._text, self._ending = text.text, text.ending
        return self._ended(usage)

    def opening(self) -> Iterator[ServerSentEvent]:
        begun = self._body("in_progress", [])
        yield self._event("response.created", response=begun)
        yield self._event("response.in_progress", response=begun)
        yield self._event("response.output_item.added", output_index=0, item=self._item("in_progress", []))
        yield self._event("response.content_part.added", **self._place, part=self._part)

    def growing(self, delta: Delta) -> Iterator[ServerSentEvent]:
        self._text += delta.text
        self._ending = delta.ending or self._ending
        if delta.text:
            yield self._event("response.output_text.delta", **self._place, delta=delta.text, logprobs=[])

    def closing(self, usage: Usage) -> Iterator[ServerSentEvent]:
        yield self._event("response.output_text.done", **self._place, text=self._text, logprobs=[])
        yield self._event("response.content_part.done", **self._place, part=self._part)
        yield self._event("response.output_item.done", output_index=0, item=self._item(self._status, [self._part]))
        yield self._event(f"response.{self._status}", response=self._ended(usage))

    def _event(self, name: str, **values: Any) -> ServerSentEvent:
        return ServerSentEvent({"type": name, "sequence_number": next(self._numbers), **values}, name)

    @property
    def _place(self) -> dict[str, Any]:
        return {"item_id": self._item_id, "output_index": 0, "content_index": 0}

    @property
    def _part(self) -> dict[str, Any]:
        return {"type": "output_text", "text": self._text, "annotations": []}

    def _item(self, status: str, parts: list[dict[str, Any]]) -> dict[str, Any]:
        return {"id": self._item_id, "type": "message", "role": "assistant", "status": status, "content": parts}

    @property
    def _status(self) -> str:
        return "completed" if self._ending == "stop" else "incomplete"

    @property
    def _format(self) -> dict[str, Any]:
        asked = None if self._request.text is None else self._request.text.format
        return {"type": "text"} if asked is None else asked.model_dump(by_alias=True)

    def _ended(self, usage: Usage) -> dict[str, Any]:
        body = self._body(self._status, [self._item(self._status, [self._part])])
        return body | {
            "usage": {
                "input_tokens": usage.n_prompt,
                "input_tokens_details": {"cached_tokens": usage.n_cached},
                "output_tokens": usage.n_generated,
                "output_tokens_details": {"reasoning_tokens": 0},
                "total_tokens": usage.n_prompt + usage.n_generated,
            }
        }

    def _body(self, status: str, output: list[dict[str, Any]]) -> dict[str, Any]:
        request = self._request
        return {
            "id": self._identity.id,
            "object": "response",
            "created_at": self._identity.created_s,
            "status": status,
            "error": None,
            "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
            "instructions": request.instructions,
            "max_output_tokens": request.max_output_tokens,
            "model": self._service.model.name,
            "output": output,
            "parallel_tool_calls": False,
            "previous_response_id": None,
            "store": False,
            "temperature": 1.0 if request.temperature is None else request.temperature,
            "text": {"format": self._format},
            "tool_choice": "none",
            "tools": [],
            "top_p": 1.0 if request.top_p is None else request.top_p,
            "truncation": "disabled",
            "metadata": {},
            "usage": None,
        }
