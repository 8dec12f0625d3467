"""What the forms of answers have in common: whole, or as events while they grow."""

import secrets
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from mdi.engine.sample import TokenLogprobs
from mdi.serve.generation import Delta, Ending, Usage
from mdi.serve.service import Ask


@dataclass(frozen=True)
class Event:
    """One server-sent event."""

    data: dict[str, Any]
    name: str | None = None


@dataclass(frozen=True)
class Text:
    """One answer that has ended."""

    text: str
    ending: Ending
    logprobs: tuple[TokenLogprobs, ...] = ()


class Form(Protocol):
    """One request, and the shape of the answer to it."""

    @property
    def is_streamed(self) -> bool: ...

    def ask(self) -> Ask:
        """What is to be generated. Raises `ApiError`."""

    def whole(self, texts: Sequence[Text], usage: Usage) -> dict[str, Any]:
        """The answer in one piece."""

    def opening(self) -> Iterable[Event]:
        """What comes before the first token."""

    def growing(self, delta: Delta) -> Iterable[Event]:
        """What an answer has grown by."""

    def closing(self, usage: Usage) -> Iterable[Event]:
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
