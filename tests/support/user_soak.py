"""Users of a server who behave in every way that users do, and a ring whose nodes are killed under them.

Every behaviour is a coroutine that ends only as it should: with the right text, with a refusal that is due, or because
the user has gone. Whatever else happens is an `AssertionError`.
"""

import asyncio
import json
import random
import re
import socket
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

KEY = "a-key-for-the-soak"
MODEL = "soak"
JSON_HEADERS = ("Content-Type: application/json", f"Authorization: Bearer {KEY}")
BUSY = (429, 503)  # the queue is full; the ring is formed anew
ANSWER_TIMEOUT_S = 180.0  # for any request to end
HEAD_TIMEOUT_S = 60.0  # for the server to end what never becomes a request: ten times what it promises
MAX_PAUSE_S = 1.0
_CHUNK = re.compile(rb"([0-9a-f]+)\r\n")


@dataclass(frozen=True)
class Answer:
    """A prompt of token ids, and the text that greedily follows."""

    prompt: tuple[int, ...]
    text: str
    n_tokens: int


@dataclass(frozen=True)
class Site:
    """The server, and what its answers should be."""

    port: int
    answers: Sequence[Answer]


def body_of(answer: Answer, **values: Any) -> dict[str, Any]:
    """A request of a greedy completion."""
    return {"model": MODEL, "prompt": answer.prompt, "max_tokens": answer.n_tokens, "temperature": 0} | values


def request_of(body: Any, *headers: str, path: str = "/v1/completions", method: str = "POST") -> bytes:
    """A whole request, after which the connection is to be closed."""
    data = b"" if body is None else json.dumps(body).encode()
    length = () if body is None else (f"Content-Length: {len(data)}",)
    lines = (f"{method} {path} HTTP/1.1", "Host: 127.0.0.1", "Connection: close", *(headers or JSON_HEADERS), *length)
    return "\r\n".join((*lines, "", "")).encode() + data


class Call:
    """One connection of a user."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    @classmethod
    async def open(cls, port: int, receive_buffer_bytes: int | None = None) -> "Call":
        sock = socket.socket()
        if receive_buffer_bytes is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer_bytes)
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", port))
        return cls(*await asyncio.open_connection(sock=sock, limit=1 << 12))

    async def send(self, data: bytes) -> None:
        """Send as much as the server takes: it may close before it has all."""
        try:
            self._writer.write(data)
            await self._writer.drain()
        except ConnectionError:
            pass

    async def pieces(self, size: int = 1 << 16) -> AsyncIterator[bytes]:
        """What comes, up to the end of the connection; also where the server resets it."""
        try:
            while piece := await self._reader.read(size):
                yield piece
        except ConnectionError:
            pass

    async def receive(self) -> bytes:
        return b"".join([piece async for piece in self.pieces()])

    def close(self) -> None:
        self._writer.close()


def status_of(received: bytes) -> int:
    """The status of an answer, 0 where none came."""
    found = re.match(rb"HTTP/1\.1 (\d{3}) ", received)
    return int(found[1]) if found else 0


def content_of(received: bytes) -> bytes:
    """The body of an answer, of which all has come. Raises `AssertionError` where its end is missing."""
    head, _, body = received.partition(b"\r\n\r\n")
    if b"transfer-encoding: chunked" not in head.lower():
        return body
    data = b""
    while (found := _CHUNK.match(body)) and (size := int(found[1], 16)):
        data += body[found.end() : found.end() + size]
        body = body[found.end() + size + 2 :]
    assert body.startswith(b"0\r\n"), f"an answer without an end: ...{received[-200:]!r}"
    return data


def text_of_stream(content: bytes) -> str:
    """The text of a stream that has ended as it should."""
    events = [block.removeprefix(b"data: ") for block in content.split(b"\n\n") if block.startswith(b"data: ")]
    assert events and events[-1] == b"[DONE]", f"a stream without an end: ...{content[-200:]!r}"
    assert b"event: error" not in content, f"a stream that failed: ...{content[-300:]!r}"
    return "".join(choice["text"] for event in events[:-1] for choice in json.loads(event)["choices"])


# ---- behaviours


class User:
    """Somebody who does one thing after another."""

    def __init__(self, site: Site, rng: random.Random, counts: Counter[str], *, is_patient: bool = True) -> None:
        """One who is not patient does nothing that takes seconds by itself."""
        self._site, self._rng, self._counts = site, rng, counts
        self._behaviours: dict[Callable[[], Awaitable[None]], int] = {
            self.ask: 6,
            self.stream: 6,
            self.read_slowly: 2,
            self.leave: 4,
            self.leave_before_the_answer: 2,
            self.send_garbage: 2,
            self.send_half_a_head: int(is_patient),
            self.announce_too_much: 1,
            self.send_a_huge_prompt: 1,
            self.use_a_wrong_key: 2,
            self.ask_for_what_is_not_there: 2,
            self.look: 2,
        }

    async def act(self) -> None:
        """Do one thing, at random, which has an end."""
        (behaviour,) = self._rng.choices(list(self._behaviours), list(self._behaviours.values()))
        name = behaviour.__name__  # type: ignore[attr-defined]
        try:
            await asyncio.wait_for(behaviour(), ANSWER_TIMEOUT_S)
        except TimeoutError as exc:
            raise AssertionError(f"{name}: no end within {ANSWER_TIMEOUT_S:g} s") from exc
        except AssertionError as exc:
            raise AssertionError(f"{name}: {exc}") from exc
        self._counts[name] += 1

    async def ask(self) -> None:
        """A completion in one piece."""
        answer = self._rng.choice(self._site.answers)
        received = await self._exchange(request_of(body_of(answer)))
        if await self._was_served(received):
            choice = json.loads(content_of(received))["choices"][0]
            assert choice["text"] == answer.text, f"{choice['text']!r} for {answer.text!r}"
            self._counts["right_texts"] += 1

    async def stream(self) -> None:
        """A completion as events, often twice the same one at once."""
        answer, n = self._rng.choice(self._site.answers), self._rng.choice((1, 1, 2))
        received = await self._exchange(request_of(body_of(answer, stream=True, n=n)))
        if await self._was_served(received):
            text = text_of_stream(content_of(received))
            assert sorted(text) == sorted(answer.text * n) and (n > 1 or text == answer.text), f"{text!r}"
            self._counts["right_texts"] += n

    async def read_slowly(self) -> None:
        """A stream with much in each event, which the server has to wait with."""
        answer = self._rng.choice(self._site.answers)
        call = await Call.open(self._site.port, receive_buffer_bytes=1 << 12)
        await call.send(request_of(body_of(answer, stream=True, logprobs=20)))
        received = b""
        async for piece in call.pieces(2048):
            received += piece
            await asyncio.sleep(self._rng.uniform(0, 0.05))
        call.close()
        if await self._was_served(received):
            assert text_of_stream(content_of(received)) == answer.text
            self._counts["right_texts"] += 1

    async def leave(self) -> None:
        """Close in the middle of a stream."""
        call = await Call.open(self._site.port)
        answer = self._rng.choice(self._site.answers)
        await call.send(request_of(body_of(answer, stream=True, n=self._rng.choice((1, 3)))))
        n_left = self._rng.randint(1, 12)
        async for _ in call.pieces():
            n_left -= 1
            if not n_left:
                break
        call.close()

    async def leave_before_the_answer(self) -> None:
        """Close while nothing has been answered."""
        call = await Call.open(self._site.port)
        await call.send(request_of(body_of(self._rng.choice(self._site.answers))))
        await asyncio.sleep(self._rng.uniform(0, 0.3))
        call.close()

    async def send_garbage(self) -> None:
        """Bytes that are no request, or a request of garbage."""
        garbage = self._rng.randbytes(self._rng.choice((1, 50, 3000)))
        request = request_of(self._rng.choice([garbage.hex(), [1], {"model": MODEL, "prompt": {"a": 1}}, 3]))
        received = await self._exchange(self._rng.choice((garbage + b"\r\n\r\n", request)), HEAD_TIMEOUT_S)
        assert status_of(received) in (0, 400), received[:100]

    async def send_half_a_head(self) -> None:
        """A request that never is one is ended by the server."""
        received = await self._exchange(b"POST /v1/completions HTTP/1.1\r\nHost: 127", HEAD_TIMEOUT_S)
        assert status_of(received) in (0, 400, 408), received[:100]

    async def announce_too_much(self) -> None:
        """A body of 100 MB is refused before it comes."""
        head = request_of(None, *JSON_HEADERS, f"Content-Length: {100 << 20}")
        assert status_of(await self._exchange(head + b" " * 1000)) == 413

    async def send_a_huge_prompt(self) -> None:
        """More than the context, by much."""
        n_chars = self._rng.choice((2000, 50_000, 2 << 20))
        received = await self._exchange(request_of({"model": MODEL, "prompt": "word " * (n_chars // 5)}))
        assert status_of(received) in (400, *BUSY), received[:200]

    async def use_a_wrong_key(self) -> None:
        key = self._rng.choice(("Bearer wrong-key-of-mine", "Basic Og==", f"Bearer {KEY}x"))
        headers = ("Content-Type: application/json", f"Authorization: {key}")
        body = body_of(self._rng.choice(self._site.answers))
        assert status_of(await self._exchange(request_of(body, *headers))) == 401

    async def ask_for_what_is_not_there(self) -> None:
        changes, status = self._rng.choice(
            [({"model": "gpt-4"}, 404), ({"suffix": "x"}, 400), ({"temperature": 9}, 400), ({"n": 0}, 400)]
        )
        received = await self._exchange(request_of(body_of(self._rng.choice(self._site.answers)) | changes))
        assert status_of(received) == status, received[:200]
        assert json.loads(content_of(received))["error"]["message"]

    async def look(self) -> None:
        """What is answered at once, whatever the ring does."""
        path = self._rng.choice(("/health", "/metrics", "/v1/models"))
        received = await self._exchange(request_of(None, *JSON_HEADERS, path=path, method="GET"))
        assert status_of(received) in ((200, 503) if path == "/health" else (200,)), received[:100]

    # ---- what they have in common

    async def _exchange(self, data: bytes, timeout_s: float = ANSWER_TIMEOUT_S) -> bytes:
        """Send, and receive until the server closes."""
        call = await Call.open(self._site.port)
        try:
            await call.send(data)
            return await asyncio.wait_for(call.receive(), timeout_s)
        finally:
            call.close()

    async def _was_served(self, received: bytes) -> bool:
        """Whether there is an answer; where the server is busy, come again later."""
        status = status_of(received)
        if status in BUSY:
            self._counts[f"status_{status}"] += 1
            assert json.loads(content_of(received))["error"]["code"] in ("queue_full", "unavailable")
            await asyncio.sleep(self._rng.uniform(0.1, MAX_PAUSE_S))
            return False
        assert status == 200, f"status {status}: {received[:300]!r}"
        return True
