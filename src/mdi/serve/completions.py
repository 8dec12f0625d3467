"""`POST /v1/completions`: https://platform.openai.com/docs/api-reference/completions"""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from mdi.engine.sample import TokenLogprobs
from mdi.serve.forms import ChoicesForm, ServerSentEvent, Text
from mdi.serve.generation import Delta, Usage
from mdi.serve.logprobs import of_completion
from mdi.serve.schemas import CompletionRequest
from mdi.serve.service import Ask, Service

DEFAULT_MAX_TOKENS = 16  # OpenAI's
_KIND = "text_completion"


class CompletionForm(ChoicesForm):
    """Texts that go on from one prompt or several, `n` times each."""

    def __init__(self, request: CompletionRequest, service: Service) -> None:
        super().__init__(request, service.model, "cmpl-")
        self._request, self._service = request, service
        self._n_chars: Counter[int] = Counter()  # that were sent of each answer

    def ask(self) -> Ask:
        request = self._request
        max_tokens = DEFAULT_MAX_TOKENS if request.max_tokens is None else request.max_tokens
        return Ask(
            self._prompts(),
            request,
            max_tokens,
            request.n or 1,
            request.stop_strings,
            continues=True,
            logprobs=request.logprobs,
            answer_id=self._identity.id,
        )

    def _prompts(self) -> list[list[int]]:
        prompt = self._request.prompt
        if isinstance(prompt, str):
            return [self._service.encode(prompt)]
        if isinstance(prompt[0], int):
            prompt = [prompt]  # ids of one prompt: all are numbers, as the schema has it
        return [self._service.encode(each) if isinstance(each, str) else list(each) for each in prompt]

    def whole(self, texts: Sequence[Text], usage: Usage) -> dict[str, Any]:
        choices = [self._choice(index, text.text, text.ending, text.logprobs) for index, text in enumerate(texts)]
        return self._body(_KIND, choices) | {"usage": usage.to_json()}

    def opening(self) -> Iterator[ServerSentEvent]:
        return iter(())

    def growing(self, delta: Delta) -> Iterator[ServerSentEvent]:
        choice = self._choice(delta.index, delta.text, delta.ending, delta.logprobs)
        self._n_chars[delta.index] += len(delta.text)
        yield ServerSentEvent(self._body(_KIND, [choice]))

    def closing(self, usage: Usage) -> Iterator[ServerSentEvent]:
        return self._closing(_KIND, usage)

    def _choice(self, index: int, text: str, ending: str | None, found: Sequence[TokenLogprobs]) -> dict[str, Any]:
        tokenizer = self._model.tokenizer
        logprobs = of_completion(tokenizer, found, self._n_chars[index]) if found else None
        return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": ending}
