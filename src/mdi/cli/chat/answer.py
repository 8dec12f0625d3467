"""One answer as it comes: a thread reads the stream, and what it says arrives in the inbox of the chat."""

import contextlib
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from mdi.cli.chat.endpoint import Endpoint, malformed
from mdi.documents import Fields
from mdi.inbox import Inbox
from mdi.net.sockets import wake


@dataclass(frozen=True)
class Usage:
    """Tokens of one request, and how long they took."""

    prompt: int
    cached: int  # of the prompt: held by the server from before
    completion: int
    first_token_s: float | None  # from the request on
    seconds: float

    @property
    def tokens_per_s(self) -> float | None:
        """Of the answer, once it had begun; None where that is too short to tell."""
        generating_s = self.seconds - (self.first_token_s or 0.0)
        return (self.completion - 1) / generating_s if self.completion > 1 and generating_s > 0 else None


@dataclass(frozen=True)
class Piece:
    """More of the text."""

    answer: "Answer"
    text: str


@dataclass(frozen=True)
class Finished:
    """The text is complete. A server need not tell its `usage`."""

    answer: "Answer"
    usage: Usage | None
    reason: str | None


@dataclass(frozen=True)
class Failed:
    """The text ends here, or never began: a `RequestFailed`, unless it is a bug."""

    answer: "Answer"
    error: Exception


class Answer:
    """Posts `Piece`s to the inbox, and at last `Finished` or `Failed`, unless it is stopped."""

    def __init__(self, endpoint: Endpoint, path: str, body: Mapping[str, Any], inbox: Inbox) -> None:
        self._endpoint, self._path, self._body, self._inbox = endpoint, path, body, inbox
        self._is_stopped = threading.Event()
        self._socket: socket.socket | None = None
        self._began_s = time.monotonic()
        self._thread = threading.Thread(target=self._run, name="answer", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Close the connection: the server then generates no more. Called from the main thread."""
        self._is_stopped.set()
        if (sock := self._socket) is not None:
            wake(sock)

    # ---- the thread

    def _run(self) -> None:
        event: Finished | Failed
        try:
            event = self._read()
        except Exception as exc:  # noqa: BLE001  what is no `RequestFailed` is a bug, raised on the main thread
            event = Failed(self, exc)
        if not self._is_stopped.is_set():
            self._inbox.post(event)

    def _read(self) -> Finished:
        usage, reason, first_token_s = None, None, None
        events = self._endpoint.events(self._path, self._body, self._keep)
        with contextlib.closing(events):
            for event in events:
                if self._is_stopped.is_set():
                    break
                if text := _text(event):
                    first_token_s = first_token_s or self._elapsed_s
                    self._inbox.post(Piece(self, text))
                reason = _reason(event) or reason
                usage = usage if event.get("usage") is None else event["usage"]
        return Finished(self, _usage(usage, first_token_s, self._elapsed_s), reason)

    def _keep(self, sock: socket.socket) -> None:
        self._socket = sock
        if self._is_stopped.is_set():
            wake(sock)

    @property
    def _elapsed_s(self) -> float:
        return time.monotonic() - self._began_s


def _choices(event: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    choices = event.get("choices") or []
    if not isinstance(choices, list) or not all(isinstance(choice, dict) for choice in choices):
        raise malformed("choices that are no list of objects")
    yield from choices


def _text(event: Mapping[str, Any]) -> str:
    """What an event adds to the text: `delta` in a chat, `text` in a completion."""
    text = ""
    for choice in _choices(event):
        delta = choice.get("delta") or {}
        piece = (delta.get("content") if isinstance(delta, dict) else delta) or choice.get("text") or ""
        if not isinstance(piece, str):
            raise malformed("a piece of the answer that is no text")
        text += piece
    return text


def _reason(event: Mapping[str, Any]) -> str | None:
    reasons = [choice.get("finish_reason") for choice in _choices(event)]
    return next((reason for reason in reasons if isinstance(reason, str)), None)


def _usage(told: object, first_token_s: float | None, seconds: float) -> Usage | None:
    if told is None:
        return None
    usage = Fields(told, "usage", malformed)
    details = usage.get("prompt_tokens_details", lambda value: isinstance(value, dict), "an object", default={})
    cached = Fields(details, "prompt_tokens_details", malformed).get("cached_tokens", _is_count, "a number", default=0)
    prompt, completion = (usage.get(f"{side}_tokens", _is_count, "a number") for side in ("prompt", "completion"))
    return Usage(prompt, cached, completion, first_token_s, seconds)


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 0
