"""From a form to the bytes of its answer, whole or event by event, as long as somebody is there to read it."""

import json
from collections.abc import Callable, Iterable, Iterator

from mdi.serve.errors import ApiError
from mdi.serve.forms import Form, ServerSentEvent, Text
from mdi.serve.generation import Delta, Generation

SIGN_OF_LIFE_S = 1.0  # between two comments of a stream in which nothing happens
_COMMENT = b":\n\n"


class ClientGone(Exception):
    """Nobody is there any more to read the answer."""


def answer(form: Form, generation: Generation, is_gone: Callable[[], bool]) -> "bytes | EventStream":
    """The body of the answer. Raises `ApiError`, and `ClientGone` where the client closed its connection meanwhile."""
    if form.is_streamed:
        return EventStream(form, generation, is_gone)
    try:
        return json.dumps(form.whole(_texts(generation, is_gone), generation.usage)).encode()
    finally:
        generation.close()


def _texts(generation: Generation, is_gone: Callable[[], bool]) -> list[Text]:
    texts = [Text("", "stop")] * len(generation.samples)
    for delta in _deltas(generation, is_gone):
        if delta is not None:
            before = texts[delta.index]
            texts[delta.index] = Text(
                before.text + delta.text,
                delta.ending or before.ending,
                before.logprobs + delta.logprobs,
                before.calls + delta.calls,
            )
    return texts


def _deltas(generation: Generation, is_gone: Callable[[], bool]) -> Iterator[Delta | None]:
    """Until all answers have ended; None once a second while nothing happens."""
    while not generation.is_over:
        delta = generation.next(SIGN_OF_LIFE_S)
        if is_gone():
            raise ClientGone
        yield delta


class EventStream:
    """Server-sent events (https://html.spec.whatwg.org/multipage/server-sent-events.html) of one request.

    An object and not a generator, because one that was never begun does nothing when it is closed.
    """

    def __init__(self, form: Form, generation: Generation, is_gone: Callable[[], bool]) -> None:
        self._generation = generation
        self._blocks = _blocks(form, generation, is_gone)

    def __iter__(self) -> "EventStream":
        return self

    def __next__(self) -> bytes:
        return next(self._blocks)

    def close(self) -> None:
        """Called by the server, whether all was sent or the client is gone."""
        self._generation.close()


def _blocks(form: Form, generation: Generation, is_gone: Callable[[], bool]) -> Iterator[bytes]:
    try:
        yield _encoded(form.opening())
        for delta in _deltas(generation, is_gone):
            yield _COMMENT if delta is None else _encoded(form.growing(delta))
        yield _encoded(form.closing(generation.usage))
    except ApiError as exc:  # the status line was sent long ago
        yield _encoded([ServerSentEvent(exc.to_json(), "error")])
    except ClientGone:
        return
    if form.last_line is not None:
        yield f"data: {form.last_line}\n\n".encode()


def _encoded(events: Iterable[ServerSentEvent]) -> bytes:
    return b"".join(_lines(event) for event in events)


def _lines(event: ServerSentEvent) -> bytes:
    name = "" if event.name is None else f"event: {event.name}\n"
    return f"{name}data: {json.dumps(event.data)}\n\n".encode()
