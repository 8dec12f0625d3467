"""The requests of OpenAI's API that are served: every parameter, its type and its bounds.

https://platform.openai.com/docs/api-reference; `top_k`, `min_p` and `repetition_penalty` are those of vLLM. What is not
here is refused by its name: a parameter that is ignored would give another text than was asked for.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator

from mdi.config.bounds import BIAS_BOUNDS, SAMPLING_BOUNDS
from mdi.serve.errors import ApiError
from mdi.serve.misfits import first_misfit
from mdi.strings import did_you_mean

MAX_CHOICES, MAX_STOPS, MAX_TOOLS = 16, 16, 128
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
    top_k: Annotated[int, Field(ge=-1, le=SAMPLING_BOUNDS["top_k"].high)] | None = None  # 0 and -1 keep all
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


Content = str | list[TextPart]


def _text_of(content: Content) -> str:
    return content if isinstance(content, str) else "".join(part.text for part in content)


class CalledFunction(_Schema):
    name: str
    arguments: str  # a JSON object


class MadeCall(_Schema):
    """A call of a tool that an earlier answer made."""

    id: str
    type: Literal["function"]
    function: CalledFunction


class Message(_Schema):
    """A message of a conversation; an answer comes back as it was given, with its calls."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    tool_calls: list[MadeCall] | None = None
    tool_call_id: str | None = None  # that the content is the result of
    content: Content | None = Field(None, validate_default=True)
    name: str | None = None
    refusal: None = None  # answers of this server have no other

    @field_validator("tool_calls")
    @classmethod
    def _only_in_answers(cls, calls: list[MadeCall] | None, info: ValidationInfo) -> list[MadeCall] | None:
        if calls and info.data.get("role") != "assistant":
            raise ValueError("only messages of the assistant have calls")
        return calls

    @field_validator("content")
    @classmethod
    def _unless_it_calls(cls, content: Content | None, info: ValidationInfo) -> Content | None:
        if content is None and not info.data.get("tool_calls"):
            raise ValueError("a text is expected")
        return content

    @property
    def text(self) -> str:
        return _text_of(self.content or "")

    @property
    def is_about_tools(self) -> bool:
        return self.role == "tool" or bool(self.tool_calls)


class Function(_Schema):
    """What a model may call. `strict` calls are held to the schema of their arguments."""

    name: Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class FunctionTool(_Schema):
    type: Literal["function"]
    function: Function


class FunctionName(_Schema):
    name: str


class NamedTool(_Schema):
    type: Literal["function"]
    function: FunctionName


class TextFormat(_Schema):
    type: Literal["text"]


class JsonFormat(_Schema):
    """Any JSON object."""

    type: Literal["json_object"]


class NamedSchema(_Schema):
    """A JSON schema. It is followed whether it is `strict` or not."""

    name: Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]
    description: str | None = None
    schema_: Annotated[dict[str, Any], Field(alias="schema")]
    strict: bool | None = None


class SchemaFormat(_Schema):
    """JSON of a schema, as chats have it."""

    type: Literal["json_schema"]
    json_schema: NamedSchema


class FlatSchemaFormat(NamedSchema):
    """The same as responses have it."""

    type: Literal["json_schema"]


class ChatRequest(_Generation):
    """`POST /v1/chat/completions`."""

    messages: Annotated[list[Message], Field(min_length=1)]
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = _bounded("logprobs")
    response_format: Annotated[TextFormat | JsonFormat | SchemaFormat, Field(discriminator="type")] | None = None
    tools: Annotated[list[FunctionTool], Field(max_length=MAX_TOOLS)] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    parallel_tool_calls: bool | None = None


_SeveralPrompts = Field(min_length=1, max_length=MAX_CHOICES)


class CompletionRequest(_Generation):
    """`POST /v1/completions`."""

    prompt: str | Annotated[list[str], _SeveralPrompts] | Ids | Annotated[list[Ids], _SeveralPrompts]
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: int | None = _bounded("logprobs")


class ResponseText(_Schema):
    format: Annotated[TextFormat | JsonFormat | FlatSchemaFormat, Field(discriminator="type")] | None = None


class InputMessage(_Schema):
    """A message of a conversation; one that the server has answered comes back with more fields."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Content
    name: str | None = None
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
        if isinstance(self.input, str):
            return [*system, Message(role="user", content=self.input)]
        return [*system, *(Message(role=each.role, content=each.content) for each in self.input)]


def parse(kind: type[Request], values: Any) -> Request:
    """Raises `ApiError` that names the parameter and what is wrong with it."""
    if not isinstance(values, Mapping):
        raise ApiError(400, "the body is not a JSON object")
    try:
        return kind.model_validate(values)
    except ValidationError as exc:
        found = first_misfit(values, exc.errors(include_url=False))
        if found.is_unknown:
            meant = did_you_mean(found.param, list(kind.model_fields))
            raise ApiError(400, f"{found.text}{meant}", param=found.param, code="unsupported_parameter") from exc
        raise ApiError(400, found.text, param=found.param or None, code="invalid_value") from exc
