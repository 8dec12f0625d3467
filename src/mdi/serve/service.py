"""What is served: a model, and the way of its requests into the engine and back. Called from HTTP threads."""

import contextlib
import itertools
import math
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from mdi.config.bounds import LogitBias, check_biased_tokens
from mdi.engine.sample import Outcome, Sample
from mdi.engine.sampler import generator_for
from mdi.engine.sampling_params import SamplingParams
from mdi.serve.constraints import Constraints
from mdi.serve.conversation import described, turn_of
from mdi.serve.errors import ApiError, context_length_exceeded, queue_full, refusing, unavailable
from mdi.serve.generation import Choice, Generation
from mdi.serve.metrics import Metrics
from mdi.serve.ring_feed import RingFeed
from mdi.serve.ring_state import OpenSample, ring_json, samples_json
from mdi.serve.schemas import MAX_CHOICES, Function, Message, Sampling
from mdi.serve.served_ring import ServedRing
from mdi.serve.shapes import FREE, Shape
from mdi.text.matchers import Matchers
from mdi.text.stops import StopSequences
from mdi.text.stream import TextStream
from mdi.text.tokenizer import Tokenizer
from mdi.text.tool_calls import ToolFormat
from mdi.text.worker_client import WorkerTemplate

MAX_RETRY_AFTER_S = 60
MIN_TOKEN_CHARS = 64  # that the longest token is taken to have at least
READY = "ready"


@dataclass(frozen=True)
class ServedModel:
    """A model as its users see it."""

    full_name: str  # such as `org/name`
    tokenizer: Tokenizer
    template: WorkerTemplate | None
    stops: StopSequences  # token sequences that end an answer
    context: int  # positions of prompt and answer together
    n_ids: int  # that the model has logits for
    matchers: Matchers | None = None  # hold answers to a grammar
    tag_names: Mapping[int, bytes] = field(default_factory=dict)  # of special tokens that are the tags of calls
    created_s: int = field(default_factory=lambda: int(time.time()))

    @cached_property
    def max_chars(self) -> int:
        """Of a text that may fit into the context: a token has at least as many bytes as characters.

        A normal form that is far shorter than its text is not reckoned with, nor are special tokens of more characters.
        """
        longest = max(len(self.tokenizer.token_bytes(token)) for token in range(self.n_ids))
        return self.context * max(longest, MIN_TOKEN_CHARS)

    @property
    def name(self) -> str:
        """Without the organization: what users type."""
        return self.full_name.rpartition("/")[2]

    def to_json(self) -> dict[str, Any]:
        """An entry of `GET /v1/models`."""
        return {
            "id": self.name,
            "object": "model",
            "created": self.created_s,
            "owned_by": "mdi-llm",
            "context_length": self.context,
        }


@dataclass(frozen=True)
class Ask:
    """What a request asks for, whichever route it came by."""

    prompts: Sequence[Sequence[int]]
    sampling: Sampling
    max_tokens: int | None = None
    n: int = 1  # answers to each prompt
    stop_strings: Sequence[str] = ()
    continues: bool = False  # the answers go on from their prompts
    logprobs: int | None = None  # how many of the most likely tokens are told, besides each chosen one
    shape: Shape = FREE
    answer_id: str = ""  # by which the client knows what it gets


@dataclass(frozen=True)
class Health:
    """What a load balancer decides by, and what tells people why."""

    status: str  # `READY`, or what the ring does instead
    seconds: float  # for how long the ring has been as it is
    missing: tuple[str, ...]  # nodes that it is waited for

    @property
    def is_ready(self) -> bool:
        return self.status == READY

    def to_json(self) -> dict[str, Any]:
        return {"status": self.status, "seconds": round(self.seconds, 1), "missing": list(self.missing)}


class Service:
    """Takes requests as long as there is room for them."""

    def __init__(self, model: ServedModel, ring: ServedRing, max_queue: int) -> None:
        """`max_queue` bounds the samples that wait for a slot."""
        self.model, self._ring, self._max_queue = model, ring, max_queue
        self._numbers = itertools.count()
        self._lock = threading.Condition()
        self._open: dict[Sample, OpenSample] = {}
        self._generations: set[Generation] = set()
        self._constraints = Constraints(model.matchers)
        self._usual_s = 1.0  # that an answer takes, as a moving average
        self._refusal: ApiError | None = None
        self.metrics = Metrics(ring, lambda: self.n_open)
        self.feed = RingFeed(self.ring_state)

    # ---- requests

    @property
    def tool_format(self) -> ToolFormat | None:
        """How the model calls tools, if it does."""
        return None if self.model.template is None else self.model.template.tool_format

    def chat_prompt(self, messages: Sequence[Message], tools: Sequence[Function] = ()) -> list[int]:
        """The ids of a conversation, up to where the model answers. Raises `ApiError`."""
        if self.model.template is None:
            raise ApiError(
                400,
                f"{self.model.name} has no chat template: use /v1/completions",
                param="messages",
                code="no_chat_template",
            )
        if self.tool_format is None and any(message.is_about_tools for message in messages):
            raise ApiError(400, f"the chat template of {self.model.name} knows no tools", param="messages")
        with refusing("messages"):
            turns = [turn_of(message) for message in messages]
            text = self.model.template.render(turns, [described(tool) for tool in tools])
        return self.encode(text, "messages")

    def encode(self, text: str, param: str = "prompt") -> list[int]:
        """The ids of a text that leaves room for an answer; `param` is where it comes from. Raises `ApiError`."""
        if len(text) > self.model.max_chars:  # seconds of work, in which nobody else's text is encoded
            raise context_length_exceeded(f"{len(text)} characters", self.model.context)
        with refusing(param):
            ids = self.model.tokenizer.encode(text)
        self._check_room(len(ids))
        return ids

    def _check_room(self, n_prompt: int) -> None:
        if n_prompt == 0:
            raise ApiError(400, "the prompt is empty", param="prompt")
        if n_prompt >= self.model.context:
            raise context_length_exceeded(f"{n_prompt} tokens", self.model.context)

    def check_model(self, name: str) -> None:
        """Raises `ApiError` for another model than the one that is served."""
        if name not in (self.model.name, self.model.full_name):
            raise ApiError(
                404,
                f"the model {name!r} is not here; this server has {self.model.name!r}",
                param="model",
                code="model_not_found",
            )

    def begin(self, ask: Ask) -> Generation:
        """The answers, as they come; to be closed.

        Raises `ApiError` for a prompt that does not fit, and where there is no room or no ring.
        """
        choices = list(self._choices(ask))
        with contextlib.ExitStack() as unless_admitted:
            for sample in [choice.sample for choice in choices] if ask.shape.grammar is not None else []:
                self._constraints.begin(sample, ask.shape)
                unless_admitted.callback(self._constraints.end, sample)
            n_prompt = sum(map(len, ask.prompts))
            generation = Generation(ask.answer_id, choices, n_prompt, self._ring.cancel, self._forget)
            self._admit(generation)
            unless_admitted.pop_all()
        for sample in generation.samples:
            self._ring.submit(sample)
        return generation

    def _forget(self, generation: Generation) -> None:
        with self._lock:
            self._generations.discard(generation)
            self._lock.notify_all()

    def _choices(self, ask: Ask) -> Iterator[Choice]:
        if ask.n * len(ask.prompts) > MAX_CHOICES:
            raise ApiError(400, f"more than {MAX_CHOICES} answers in one request", param="n")
        seed = secrets.randbits(63) if ask.sampling.seed is None else ask.sampling.seed
        pairs = ((prompt, i) for prompt in ask.prompts for i in range(ask.n))
        for index, (prompt, _) in enumerate(pairs):
            sample = Sample(
                next(self._numbers), tuple(prompt), self._params(ask, len(prompt)), generator_for(seed, index)
            )
            names = {} if ask.shape.tool_format is None else self.model.tag_names
            stream = TextStream(self.model.tokenizer, continues=ask.continues, names=names)
            yield Choice(index, sample, stream, ask.stop_strings, ask.shape.call_parser())

    def _params(self, ask: Ask, n_prompt: int) -> SamplingParams:
        self._check_room(n_prompt)
        asked, context = ask.sampling, self.model.context
        return SamplingParams(
            max_tokens=min(ask.max_tokens or context, context - n_prompt),
            stops=self._stops(ask.shape),
            temperature=1.0 if asked.temperature is None else asked.temperature,
            top_k=max(0, asked.top_k or 0),
            top_p=1.0 if asked.top_p is None else asked.top_p,
            min_p=asked.min_p or 0.0,
            frequency_penalty=asked.frequency_penalty or 0.0,
            presence_penalty=asked.presence_penalty or 0.0,
            repetition_penalty=1.0 if asked.repetition_penalty is None else asked.repetition_penalty,
            logit_bias=self._biased(asked),
            logprobs=ask.logprobs,
        )

    def _stops(self, shape: Shape) -> StopSequences:
        """A constraint allows the tokens that end an answer where it may end; a sequence might end it anywhere."""
        return tuple(stop for stop in self.model.stops if shape.grammar is None or len(stop) == 1)

    def _biased(self, asked: Sampling) -> LogitBias:
        bias = asked.logit_bias or {}
        if any(not token.isdecimal() for token in bias):
            raise ApiError(400, "logit_bias: its keys are token ids", param="logit_bias", code="invalid_value")
        pairs = [(int(token), value) for token, value in bias.items()]
        with refusing("logit_bias"):
            check_biased_tokens(pairs, self.model.n_ids)
        return pairs

    # ---- room

    def health(self) -> Health:
        """Whether a request would be served now, and if not, why."""
        condition = self._ring.condition
        status = condition.state.value
        if condition.is_running:
            status = READY if self._refusal is None else "draining"
        return Health(status, condition.seconds, condition.missing)

    def ring_state(self) -> dict[str, Any]:
        """What `GET /ring` answers."""
        view, health = self._ring.view(), self.health()
        with self._lock:
            samples = list(self._open.values())
        own = {
            "model": self.model.name,
            "state": health.status,
            "state_s": round(health.seconds, 1),
            "recoveries": self._ring.condition.n_recoveries,
        }
        counted = samples_json(samples, self._ring.n_slots, self._max_queue, time.monotonic())
        return own | ring_json(view) | counted

    def check_takes(self, n_samples: int = 1) -> None:
        """Raises `ApiError` where so many more samples would be refused now.

        Asked before a text is encoded too: a server that has too much to do must not work for those whom it sends away.
        """
        with self._lock:
            if self._refusal is not None:
                raise self._refusal
            if not (condition := self._ring.condition).is_running:
                raise unavailable(f"the ring is {condition.state.value}")
            n_waiting = max(0, len(self._open) - self._ring.n_slots)
            if len(self._open) + n_samples > self._ring.n_slots + self._max_queue:
                raise queue_full(n_waiting, self._retry_after_s(n_waiting))

    def _admit(self, generation: Generation) -> None:
        samples = generation.samples
        with self._lock:
            self.check_takes(len(samples))
            now_s, answer_id = time.monotonic(), generation.answer_id
            self._open |= {each: OpenSample(each, answer_id, i, now_s) for i, each in enumerate(samples)}
            self._generations.add(generation)
        self.metrics.begun(samples)
        for sample in samples:
            sample.sink = self.metrics.watching(self._counted(sample.sink))

    def _counted(self, sink: Callable[[Sample, Outcome], None]) -> Callable[[Sample, Outcome], None]:
        def counted(sample: Sample, outcome: Outcome) -> None:
            if outcome.finish_reason is not None:
                self._close(sample)
            sink(sample, outcome)

        return counted

    def _close(self, sample: Sample) -> None:
        """Called from the compute thread."""
        with self._lock:
            took_s = time.monotonic() - self._open.pop(sample).since_s
            self._usual_s += 0.1 * (took_s - self._usual_s)
        self._constraints.end(sample)

    def _retry_after_s(self, n_waiting: int) -> int:
        """When a slot will be free for one more, if answers take as long as they did."""
        return min(MAX_RETRY_AFTER_S, max(1, math.ceil(self._usual_s * (n_waiting + 1) / self._ring.n_slots)))

    # ---- the end, from other threads

    @property
    def n_open(self) -> int:
        """Samples that wait or are generated."""
        with self._lock:
            return len(self._open)

    def drain(self) -> None:
        """Take no more requests; those that were begun go on."""
        with self._lock:
            self._refusal = unavailable("this server ends; use another one", retry_after_s=5)

    def wait_until_read(self, timeout_s: float) -> None:
        """Wait until nobody reads an answer any more."""
        with self._lock:
            self._lock.wait_for(lambda: not self._generations, timeout_s)

    def fail(self, reason: str) -> None:
        """Nothing will be generated any more: tell everybody who waits."""
        error = unavailable(reason)
        with self._lock:
            self._refusal = error
            waiting = list(self._generations)
        for generation in waiting:
            generation.fail(error)
