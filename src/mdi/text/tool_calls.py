"""Calls of tools in what a model writes: the form that its template taught it, and the calls in a text that grows."""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NoReturn, Protocol

ToolFormat = Literal["tagged", "bare"]  # JSON in <tool_call> tags (Hermes, Qwen); an answer that is JSON (Llama 3)

OPENING, CLOSING = "<tool_call>", "</tool_call>"
_PYTHON_TAG = "<|python_tag|>"
_OTHER_CONTENT = ("<function=", "<arg_key>")  # within the same tags, as Qwen3-Coder and GLM have it
_LLAMA_INSTRUCTION = '{"name": function name, "parameters":'


def tool_format(template: str) -> ToolFormat | None:
    """The form of calls that a chat template describes; None where it knows no tools, or another form."""
    if not re.search(r"\btools\b", template):
        return None
    if OPENING in template:
        return None if any(mark in template for mark in _OTHER_CONTENT) else "tagged"
    return "bare" if _PYTHON_TAG in template or _LLAMA_INSTRUCTION in template else None


@dataclass(frozen=True)
class Tool:
    """What a model may call."""

    name: str
    parameters: Mapping[str, Any]  # the JSON schema of the object of its arguments


@dataclass(frozen=True)
class ToolCall:
    """One call."""

    name: str
    arguments: str  # a JSON object, as the model wrote it


@dataclass(frozen=True)
class Parsed:
    """What a text has grown by."""

    text: str = ""
    calls: tuple[ToolCall, ...] = ()

    def __add__(self, more: "Parsed") -> "Parsed":
        return Parsed(self.text + more.text, self.calls + more.calls)


class CallParser(Protocol):
    """Takes the calls out of a text that grows. A call is told once it is complete: before, it may yet be none.

    However the text is cut into pieces, their results add up to the same. What is no call of a known tool stays text.
    """

    is_over: bool  # whether the answer has all the calls that it may have

    def push(self, text: str) -> Parsed:
        """Take what the text has grown by."""

    def finish(self) -> Parsed:
        """The text has ended: what was held back."""


def parser_for(kind: ToolFormat, names: Iterable[str], *, parallel: bool) -> CallParser:
    """`names` are those of the tools; one call ends the answer, unless they may be `parallel`."""
    return _TaggedCalls(names, parallel) if kind == "tagged" else _BareCalls(names, parallel)


class NoCalls:
    """Where there are no tools, all is text."""

    is_over = False

    def push(self, text: str) -> Parsed:
        return Parsed(text)

    def finish(self) -> Parsed:
        return Parsed()


class _TaggedCalls:
    """`<tool_call>{"name": ..., "arguments": {...}}</tool_call>` anywhere in a text. Blanks around are the tags'."""

    def __init__(self, names: Iterable[str], parallel: bool) -> None:
        self._names, self._parallel = frozenset(names), parallel
        self._held = ""
        self._is_behind_call = False
        self.is_over = False

    def push(self, text: str) -> Parsed:
        self._held += text
        shown, calls = "", list[ToolCall]()
        while not self.is_over and (found := self._next()) is not None:
            shown += self._take_text(found.text)
            if found.calls:
                calls += found.calls
                self._is_behind_call, self.is_over = True, not self._parallel
        if self.is_over:
            self._held = ""
        return Parsed(shown + self._take_text(self._take_undoubted()), tuple(calls))

    def finish(self) -> Parsed:
        held, self._held = self._held, ""
        return Parsed(self._take_text(held))

    def _next(self) -> Parsed | None:
        """The text up to the first tag that is decided about, and its call if it is one; None while none is."""
        opening = self._held.find(OPENING)
        start = opening + len(OPENING)
        if opening < 0 or (closing := _end_of_content(self._held, start)) is None:
            return None
        call = _sole_call(self._held[start:closing], self._names)
        before = self._held[:opening].rstrip() if call else self._held[:start]
        self._held = self._held[closing + len(CLOSING) if call else start :]
        return Parsed(before, (call,) if call else ())

    def _take_undoubted(self) -> str:
        """The text before whatever may become a tag, without the blanks in front of that."""
        opening = self._held.find(OPENING)
        end = opening if opening >= 0 else len(self._held) - _overlap(self._held, OPENING)
        undoubted = self._held[:end].rstrip()
        self._held = self._held[len(undoubted) :]
        return undoubted

    def _take_text(self, text: str) -> str:
        if self._is_behind_call:
            text = text.lstrip()
            self._is_behind_call = not text
        return text


class _BareCalls:
    """An answer that is nothing but `{"name": ..., "parameters": {...}}`, or several, with blanks or `;` between."""

    def __init__(self, names: Iterable[str], parallel: bool) -> None:
        self._names, self._parallel = frozenset(names), parallel
        self._held = ""
        self._is_text = False
        self.is_over = False  # known at the end alone

    def push(self, text: str) -> Parsed:
        self._held += text
        self._is_text = self._is_text or not _may_begin_calls(self._held)
        return self._take() if self._is_text else Parsed()

    def finish(self) -> Parsed:
        content = self._held.lstrip().removeprefix(_PYTHON_TAG)
        calls = () if self._is_text else _all_calls(content, self._names)
        if not calls:
            return self._take()
        self._held = ""
        return Parsed(calls=calls if self._parallel else calls[:1])

    def _take(self) -> Parsed:
        held, self._held = self._held, ""
        return Parsed(held)


def _may_begin_calls(text: str) -> bool:
    text = text.lstrip()
    if _PYTHON_TAG.startswith(text):
        return True
    return text.removeprefix(_PYTHON_TAG).lstrip()[:1] in ("", "{")


def _overlap(text: str, tag: str) -> int:
    """The longest end of `text` that `tag` begins with."""
    return next((n for n in range(min(len(text), len(tag) - 1), 0, -1) if text.endswith(tag[:n])), 0)


def _end_of_content(text: str, start: int) -> int | None:
    """Where the first closing tag behind `start` is that is not within a JSON string."""
    closing = text.find(CLOSING, start)
    while closing >= 0:
        quotes = re.sub(r"\\.", "", text[start:closing], flags=re.DOTALL).count('"')
        if quotes % 2 == 0:
            return closing
        closing = text.find(CLOSING, closing + 1)
    return None


# ---- JSON


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


_DECODER = json.JSONDecoder(parse_constant=_refuse_constant)
_BLANKS = re.compile(r"[ \t\n\r]*")
_BETWEEN = re.compile(r"[ \t\n\r;]*")


def _sole_call(text: str, names: frozenset[str]) -> ToolCall | None:
    calls = _all_calls(text, names)
    return calls[0] if len(calls) == 1 else None


def _all_calls(text: str, names: frozenset[str]) -> tuple[ToolCall, ...]:
    """The calls that a text consists of; none unless all of it is calls."""
    calls = list[ToolCall]()
    at = _skip(_BETWEEN, text, 0)
    while at < len(text):
        try:
            members, at = _read_object(text, at)
        except (ValueError, RecursionError):
            return ()
        if (call := _call_of(members, names)) is None:
            return ()
        calls.append(call)
        at = _skip(_BETWEEN, text, at)
    return tuple(calls)


def _call_of(members: Mapping[str, str], names: frozenset[str]) -> ToolCall | None:
    arguments = members.get("arguments", members.get("parameters", ""))
    name = json.loads(members.get("name", "null"))
    if not isinstance(name, str) or name not in names or not arguments.startswith("{"):
        return None
    return ToolCall(name, arguments)


def _read_object(text: str, start: int) -> tuple[dict[str, str], int]:
    """The members of the JSON object that begins at `start`, as they are written, and its end. Raises `ValueError`."""
    members, at = dict[str, str](), _expect(text, start, "{")
    while True:
        key, at = _DECODER.raw_decode(text, at)
        if not isinstance(key, str):
            raise ValueError("a key that is no text")
        value_start = _expect(text, at, ":")
        _, at = _DECODER.raw_decode(text, value_start)
        members[key] = text[value_start:at]
        if text.startswith("}", _skip(_BLANKS, text, at)):
            return members, _expect(text, at, "}")
        at = _expect(text, at, ",")


def _expect(text: str, at: int, mark: str) -> int:
    """Where the next thing begins behind `mark`, with blanks around it. Raises `ValueError` where that is not next."""
    at = _skip(_BLANKS, text, at)
    if not text.startswith(mark, at):
        raise ValueError(f"no {mark} at {at}")
    return _skip(_BLANKS, text, at + len(mark))


def _skip(blanks: "re.Pattern[str]", text: str, at: int) -> int:
    found = blanks.match(text, at)
    return at if found is None else found.end()
