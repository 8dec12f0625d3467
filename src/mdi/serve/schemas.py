"""The requests of OpenAI's API that are served: every parameter, its type and its bounds.

https://platform.openai.com/docs/api-reference; `top_k`, `min_p` and `repetition_penalty` are those of vLLM. What is not
here is refused by its name: a parameter that is ignored would give another text than was asked for.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mdi.config.bounds import BIAS_BOUNDS, SAMPLING_BOUNDS
from mdi.serve.errors import ApiError
from mdi.strings import did_you_mean

MAX_CHOICES, MAX_STOPS = 16, 16
Stop = Annotated[str, Field(min_length=1, max_length=1000)]
Stops = Stop | Annotated[list[Stop], Field(max_length=MAX_STOPS)] | None
TokenId = Annotated[int, Field(ge=0)]
Ids = Annotated[list[TokenId], Field(min_length=1)]
Request = TypeVar("Request", bound="_Schema")


def _bounded(name: str) -> Any:
    """A parameter that has the engine's own bounds; None where it is not given."""
    bounds = SAMPLING_BOUNDS[name]
    return Field(None, ge=bounds.low, le=bounds.high)


class _Schema(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class Sampling(_Schema):
    """How tokens are chosen. What is null has its default."""

    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1)] | None = None  # 0 and -1 keep all
    min_p: float | None = _bounded("min_p")
    frequency_penalty: float | None = _bounded("frequency_penalty")
    presence_penalty: float | None = _bounded("presence_penalty")
    repetition_penalty: float | None = _bounded("repetition_penalty")
    logit_bias: dict[str, Annotated[float, Field(ge=BIAS_BOUNDS.low, le=BIAS_BOUNDS.high)]] | None = None  # by token id
    seed: Annotated[int, Field(ge=-(2**63), lt=2**64)] | None = None


class StreamOptions(_Schema):
    include_usage: bool = False


class _Generation(Sampling):
    model: str
    stop: Stops = None
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: str | None = None  # names the client's user: it changes nothing, there neither

    @property
    def stop_strings(self) -> list[str]:
        return [self.stop] if isinstance(self.stop, str) else self.stop or []


class TextPart(_Schema):
    """A part of a message's content; other kinds than text are not served."""

    type: Literal["text", "input_text", "output_text"]
    text: str


class Message(_Schema):
    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart]
    name: str | None = None

    @property
    def text(self) -> str:
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)


class TextFormat(_Schema):
    type: Literal["text"]


class ChatRequest(_Generation):
    """`POST /v1/chat/completions`."""

    messages: Annotated[list[Message], Field(min_length=1)]
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = _bounded("logprobs")
    response_format: TextFormat | None = None


class CompletionRequest(_Generation):
    """`POST /v1/completions`."""

    prompt: str | Annotated[list[str], Field(min_length=1)] | Ids | Annotated[list[Ids], Field(min_length=1)]
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: int | None = _bounded("logprobs")


class ResponseText(_Schema):
    format: TextFormat | None = None


class InputMessage(Message):
    """A message of a conversation; one that the server has answered comes back with more fields."""

    type: Literal["message"] | None = None
    id: str | None = None
    status: str | None = None


class ResponseRequest(_Schema):
    """`POST /v1/responses`: text in, text out. Nothing is stored."""

    model: str
    input: str | Annotated[list[InputMessage], Field(min_length=1)]
    instructions: str | None = None
    max_output_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    stream: bool | None = None
    store: Literal[False] | None = None
    text: ResponseText | None = None
    user: str | None = None

    @property
    def messages(self) -> list[Message]:
        """The conversation, instructions first."""
        system = [] if self.instructions is None else [Message(role="system", content=self.instructions)]
        asked = [Message(role="user", content=self.input)] if isinstance(self.input, str) else list(self.input)
        return [*system, *asked]


def parse(kind: type[Request], values: Any) -> Request:
    """Raises `ApiError` that names the parameter and what is wrong with it."""
    if not isinstance(values, Mapping):
        raise ApiError(400, "the body is not a JSON object")
    try:
        return kind.model_validate(values)
    except ValidationError as exc:
        first = exc.errors(include_url=False, include_input=False)[0]
        param = ".".join(map(str, first["loc"])) or None
        if first["type"] == "extra_forbidden":
            meant = did_you_mean(str(param), list(kind.model_fields))
            raise ApiError(
                400, f"{param} is not supported here{meant}", param=param, code="unsupported_parameter"
            ) from exc
        raise ApiError(400, f"{param}: {first['msg']}", param=param, code="invalid_value") from exc
