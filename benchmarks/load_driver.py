"""Users of a server: `python -m benchmarks.load_driver` plays them and answers JSON lines.

It speaks HTTP/1.1 itself and parses no more of an answer than it has to, because it runs on the cores of the server.
Chats are streamed and greedy; every message begins differently, so that no server has it in a cache.
"""

import asyncio
import dataclasses
import json
import random
import re
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

from benchmarks.workers import answer, requests

HOST = "127.0.0.1"
WORDS = re.findall(
    r"\w+",
    "river stone paper window garden silver thunder bottle market shadow ladder winter candle bridge forest engine "
    "copper island violin blanket harbour pepper mirror wagon meadow lantern pocket feather castle barrel orchard",
)
Message = dict[str, str]


@dataclass
class Call:
    """One chat: when it was sent, and when each piece of its answer came, on the clock that all processes share."""

    sent_s: float
    times_s: list[float] = field(default_factory=list)
    text: str = ""
    n_tokens: int = 0
    n_prompt: int = 0
    n_cached: int = 0
    error: str = ""


@dataclass(frozen=True)
class Server:
    """Where chats go."""

    port: int
    model: str
    n_tokens: int  # of each answer
    extra: dict[str, Any]  # what else a request has

    async def chat(self, messages: list[Message]) -> Call:
        """One chat on a connection of its own, to the end of its answer."""
        call = Call(time.monotonic())
        try:
            reader, writer = await asyncio.open_connection(HOST, self.port)
        except OSError as exc:
            call.error = str(exc)
            return call
        try:
            writer.write(self._request(messages))
            async for event in _events(reader):
                _note(call, event)
        except (OSError, EOFError, ValueError) as exc:
            call.error = f"{type(exc).__name__}: {exc}"
        finally:
            writer.close()
        return call

    def _request(self, messages: list[Message]) -> bytes:
        values = {
            "model": self.model,
            "messages": messages,
            "temperature": 0,
            "max_tokens": self.n_tokens,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        body = json.dumps(values | self.extra).encode()
        lines = ["POST /v1/chat/completions HTTP/1.1", f"Host: {HOST}:{self.port}", "Content-Type: application/json"]
        lines += [f"Content-Length: {len(body)}", "Connection: close", "", ""]
        return "\r\n".join(lines).encode() + body


def _note(call: Call, event: dict[str, Any]) -> None:
    if "error" in event:
        raise ValueError(event["error"]["message"])
    if usage := event.get("usage"):
        call.n_tokens, call.n_prompt = usage["completion_tokens"], usage["prompt_tokens"]
        call.n_cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens", 0)
    for choice in event["choices"]:
        if text := choice["delta"].get("content"):
            call.times_s.append(time.monotonic())
            call.text += text


async def _events(reader: asyncio.StreamReader) -> AsyncIterator[dict[str, Any]]:
    """The data of each server-sent event."""
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    status = head.split(b" ", 2)[1]
    data = b""
    async for piece in _pieces(reader, b"transfer-encoding: chunked" in head):
        data += piece
        if status != b"200":
            continue
        *blocks, data = data.split(b"\n\n")
        for block in blocks:
            if block.startswith(b"data: ") and block != b"data: [DONE]":
                yield json.loads(block[6:])
    if status != b"200":
        raise ValueError(f"status {status.decode()}: {data[:300].decode(errors='replace')}")


async def _pieces(reader: asyncio.StreamReader, is_chunked: bool) -> AsyncIterator[bytes]:
    while not is_chunked:
        if not (piece := await reader.read(1 << 16)):
            return
        yield piece
    while size := int(await reader.readline(), 16):
        yield (await reader.readexactly(size + 2))[:-2]


# ---- plays


def message_of(rng: random.Random, n_words: int) -> Message:
    """What a user says."""
    return {"role": "user", "content": " ".join(rng.choices(WORDS, k=n_words)) + ": tell a story with these words."}


Chat = Callable[[list[Message]], Coroutine[Any, Any, Call]]


async def users(chat: Chat, rng: random.Random, *, n: int, seconds: float, n_words: int) -> list[Call]:
    """`n` users who ask again as soon as they are answered, for `seconds`; the last answers are waited for."""
    end_s = time.monotonic() + seconds

    async def user() -> list[Call]:
        calls = []
        while time.monotonic() < end_s:
            calls.append(await chat([message_of(rng, n_words)]))
        return calls

    return [call for calls in await asyncio.gather(*(user() for _ in range(n))) for call in calls]


async def arrivals(chat: Chat, rng: random.Random, *, rate: float, seconds: float, n_words: int) -> list[Call]:
    """Users who come independently of each other, `rate` a second on average, and ask once (a Poisson process)."""
    began_s, comes_s, tasks = time.monotonic(), rng.expovariate(rate), list[asyncio.Task[Call]]()
    while comes_s < seconds:  # by the clock of the plan, so that every server gets the same users
        await asyncio.sleep(began_s + comes_s - time.monotonic())
        tasks.append(asyncio.create_task(chat([message_of(rng, n_words)])))
        comes_s += rng.expovariate(rate)
    return await asyncio.gather(*tasks)


async def turns(chat: Chat, rng: random.Random, *, n: int, n_words: int) -> list[Call]:
    """A conversation of `n` turns, and then its last message as a conversation of its own: `n + 1` calls."""
    messages, calls = list[Message](), list[Call]()
    for _ in range(n):
        messages.append(message_of(rng, n_words))
        calls.append(await chat(messages))
        messages.append({"role": "assistant", "content": calls[-1].text})
    return [*calls, await chat([messages[-2]])]


PLAYS: dict[str, Callable[..., Coroutine[Any, Any, list[Call]]]] = {
    "users": users,
    "arrivals": arrivals,
    "turns": turns,
}


def play(request: dict[str, Any]) -> dict[str, Any]:
    """Play what is asked for: all calls, when it began, and what processor time it took here."""
    server = Server(**request["server"])
    began_s, began_cpu_s = time.monotonic(), time.process_time()
    calls = asyncio.run(PLAYS[request["play"]](server.chat, random.Random(request["seed"]), **request["values"]))
    cpu_s = time.process_time() - began_cpu_s
    return {"calls": [dataclasses.asdict(call) for call in calls], "began_s": began_s, "cpu_s": cpu_s}


def main() -> None:
    answer({"ready": True})
    for request in requests():
        answer(play(request))


if __name__ == "__main__":
    main()
