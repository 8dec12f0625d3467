"""The answers to one request as they grow: tokens from the compute thread -> text for the thread of the request."""

import queue
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from mdi.engine.sample import FinishReason, Outcome, Sample, TokenLogprobs
from mdi.serve.errors import ApiError, failed
from mdi.serve.stop_strings import StopStrings
from mdi.text.stream import TextStream
from mdi.text.tool_calls import CallParser, ToolCall

Ending = Literal["stop", "length", "tool_calls"]


@dataclass(frozen=True)
class Delta:
    """What an answer has grown by."""

    index: int  # of the answer among those of its request
    text: str
    ending: Ending | None = None  # with its last one
    logprobs: tuple[TokenLogprobs, ...] = ()  # of the tokens that came, where they are asked for
    calls: tuple[ToolCall, ...] = ()


@dataclass(frozen=True)
class Usage:
    """Tokens of a request: of all its prompts, and of all its answers."""

    n_prompt: int
    n_generated: int
    n_cached: int = 0  # of the prompts, what was not computed anew

    def to_json(self) -> dict[str, Any]:
        """In the names of chats and completions."""
        return {
            "prompt_tokens": self.n_prompt,
            "completion_tokens": self.n_generated,
            "total_tokens": self.n_prompt + self.n_generated,
            "prompt_tokens_details": {"cached_tokens": self.n_cached},
        }


class Choice:
    """One sample's text, on the thread of its request."""

    def __init__(
        self,
        index: int,
        sample: Sample,
        stream: TextStream,
        stops: Sequence[str],
        call_parser: CallParser,
    ) -> None:
        """`call_parser` takes calls of tools out of the text."""
        self.sample, self.n_tokens = sample, 0
        self._index, self._has_calls = index, False
        self._stream, self._stops = stream, StopStrings(stops)
        self._call_parser = call_parser
        self.ending: Ending | None = None

    def push(self, outcome: Outcome) -> Delta | None:
        """The text that one step brings; None where there is nothing to say."""
        if self.ending is not None:  # it was cut at a stop string, and what comes was on its way
            return None
        self.n_tokens += outcome.n_accepted
        text = self._stops.push(self._stream.push(outcome.tokens))
        if outcome.finish_reason is not None and not self._stops.found:
            text += self._stops.push(self._stream.finish()) + self._stops.finish()
        ending = "stop" if self._stops.found else self._ending_of(outcome.finish_reason)
        parsed = self._call_parser.push(text)
        if ending is not None:
            parsed += self._call_parser.finish()
        self._has_calls = self._has_calls or bool(parsed.calls)
        is_made = self._has_calls and (ending == "stop" or self._call_parser.is_over)
        self.ending = "tool_calls" if is_made else ending
        if parsed.text or parsed.calls or self.ending or outcome.logprobs:
            return Delta(self._index, parsed.text, self.ending, outcome.logprobs, parsed.calls)
        return None

    def _ending_of(self, reason: FinishReason | None) -> Ending | None:
        if reason == "abort":
            failure = self.sample.failure
            raise failed(f"the form that was asked for cannot be kept: {failure}" if failure else "the server ends")
        return reason


class Generation:
    """All answers to one request. Read by the thread of the request alone; when it is closed nobody reads them."""

    def __init__(
        self,
        answer_id: str,
        choices: Sequence[Choice],
        n_prompt: int,
        cancel: Callable[[Sample], None],
        forget: Callable[["Generation"], None],
    ) -> None:
        """
        Args:
            answer_id: by which the client knows the answers.
            n_prompt: tokens of all prompts.
            cancel: ends a sample in the engine.
            forget: called when it is closed.
        """
        self.answer_id = answer_id
        self.first_token_s: float | None = None  # from the request to its first token
        self.error: ApiError | None = None  # why it cannot go on
        self._began_s = time.monotonic()
        self._choices, self._n_prompt, self._cancel, self._forget = choices, n_prompt, cancel, forget
        self._news: queue.SimpleQueue[tuple[Choice, Outcome] | ApiError] = queue.SimpleQueue()
        for choice in choices:
            choice.sample.sink = self._sink_of(choice)

    @property
    def samples(self) -> list[Sample]:
        return [choice.sample for choice in self._choices]

    @property
    def is_over(self) -> bool:
        """Whether every answer has ended."""
        return all(choice.ending is not None for choice in self._choices)

    @property
    def usage(self) -> Usage:
        """Tokens so far."""
        return Usage(self._n_prompt, sum(choice.n_tokens for choice in self._choices), self._n_cached)

    @property
    def _n_cached(self) -> int:
        """Of the prompts. All answers to one but the first take it from the first one: that is not what was there."""
        least: dict[tuple[int, ...], int] = {}
        for sample in self.samples:
            least[sample.prompt] = min(sample.n_cached, least.get(sample.prompt, sample.n_cached))
        return sum(least.values())

    def next(self, timeout_s: float) -> Delta | None:
        """What comes next; None where nothing does within `timeout_s`. Raises `ApiError` where it cannot go on."""
        try:
            return self._next(timeout_s)
        except ApiError as exc:
            self.error = exc
            raise

    def _next(self, timeout_s: float) -> Delta | None:
        deadline_s = time.monotonic() + timeout_s
        while True:
            try:
                news = self._news.get(timeout=max(0.0, deadline_s - time.monotonic()))
            except queue.Empty:
                return None
            if isinstance(news, ApiError):
                raise news
            choice, outcome = news
            if self.first_token_s is None and outcome.n_accepted:
                self.first_token_s = time.monotonic() - self._began_s
            if (delta := choice.push(outcome)) is not None:
                if delta.ending is not None and outcome.finish_reason is None:
                    self._cancel(choice.sample)  # its text ended it, which the engine does not know
                return delta

    def close(self) -> None:
        """Have nothing generated any more that nobody reads. Idempotent."""
        for choice in self._choices:
            if choice.ending is None:
                self._cancel(choice.sample)
        self._forget(self)

    # ---- called from other threads

    def fail(self, error: ApiError) -> None:
        """There will be no more tokens."""
        self._news.put(error)

    def _sink_of(self, choice: Choice) -> Callable[[Sample, Outcome], None]:
        return lambda sample, outcome: self._news.put((choice, outcome))
