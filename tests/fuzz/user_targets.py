"""The server for users: raw requests through the door, the routes and the schemas to an engine that answers at once."""

import json
import random
import re
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fuzz.mutations import JSON_VALUES, change_bytes, change_json, pick
from fuzz.raw_http import (
    LOCAL,
    STRANGER,
    Connection,
    ErrorLog,
    InertServer,
    exchange,
    fitting,
    request_of,
    sound_statuses,
)
from fuzz.target import Target
from mdi.cluster.condition import RingCondition
from mdi.cluster.ring_view import RingView
from mdi.control.hosts import OwnHosts
from mdi.control.status import NodeState
from mdi.engine.sample import Logprob, Outcome, Sample, TokenLogprobs
from mdi.serve.api_keys import ApiKeys
from mdi.serve.routes import application_of
from mdi.serve.server import NO_LIMIT, Door
from mdi.serve.service import ServedModel, Service
from mdi.serve.static_files import read_page
from mdi.text.tokenizer import Tokenizer
from mdi.text.worker_client import encoded
from support.vocabularies import local_tokenizer, model_folder

KEY = "a-key-for-the-fuzzer"
ORIGIN = "https://here.example"
N_IDS, CONTEXT = 400, 300
CHAT, COMPLETION, RESPONSE = b"/v1/chat/completions", b"/v1/completions", b"/v1/responses"
BODIES: dict[bytes, list[dict[str, Any]]] = {
    CHAT: [
        {"messages": [{"role": "user", "content": "Hi"}]},
        {
            "messages": [
                {"role": "system", "content": [{"type": "text", "text": "Be brief."}]},
                {"role": "user", "content": "Hi", "name": "me"},
            ],
            "stream": True, "stream_options": {"include_usage": True}, "n": 2, "logprobs": True, "top_logprobs": 2,
            "stop": ["a", "END"], "seed": 7, "temperature": 0.5, "top_p": 0.9, "max_completion_tokens": 5,
        },
        {
            "messages": [
                {"role": "user", "content": "Hi"},
                {"role": "assistant", "content": None, "tool_calls": [
                    {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
                ]},
                {"role": "tool", "tool_call_id": "call_1", "content": "Rain."},
            ],
            "tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}],
            "tool_choice": "auto", "n": 8,
        },
    ],
    COMPLETION: [
        {"prompt": "Hi", "logprobs": 2, "logit_bias": {"7": -5}},
        {"prompt": [[1, 2], [3]], "stream": True, "min_p": 0.1, "repetition_penalty": 1.2, "max_tokens": 3},
    ],
    RESPONSE: [
        {"input": "Hi", "instructions": "Be brief.", "max_output_tokens": 4},
        {"input": [{"role": "user", "content": [{"type": "input_text", "text": "Hi"}]}], "stream": True},
    ],
}  # fmt: skip
KEYS = (
    *dict.fromkeys(key for bodies in BODIES.values() for body in bodies for key in body),
    "tools", "tool_choice", "response_format", "frequency_penalty", "presence_penalty", "top_k", "user", "store",
    "text", "functions", "best_of", "__class__",
)  # fmt: skip
VALUES = (
    "\ud83d\ude00", "\ud83d", "a" * 3000, {"type": "text"}, {"type": "json_object"}, [1] * 200, [-1], [[]], [""],
    {"1": 100, "x": 1}, {"-1": 0.5}, {"9" * 30: 1}, ["stop"] * 20, [{"role": "user", "content": []}],
    *JSON_VALUES,
)  # fmt: skip
SAYINGS = (
    'Well. <tool_call>\n{"name": "f", "arguments": {"x": 1}}\n</tool_call>', '<tool_call>{"name": "f", "argum',
    '<tool_call>{"name": 3}</tool_call>', '<tool_call>[1]</tool_call> and END of it', "a b",
    '{"name": "f", "parameters": {}}',
)  # fmt: skip
METHODS = (b"GET", b"POST", b"OPTIONS", b"HEAD", b"PUT", b"DELETE", b"TRACE", b"post")
PATHS = (CHAT, COMPLETION, RESPONSE, b"/", b"/health", b"/metrics", b"/ring", b"/v1/models", b"/v1/models/tiny",
         b"/ring/events",
         b"/v1/models/org/tiny", b"/v1/models/\xff", b"//v1/models", b"/v1//completions", b"/v1", b"/v1/chat",
         b"/page/", b"/page/x", b"/page/..%2f..%2fetc%2fpasswd", b"/_service", b"/v1/__class__", b"/health/x",
         b"/health?x=1", b"/metrics;x", b"*", b"http://a/b", b"/%00", b"/%ff")  # fmt: skip
HEADERS = (b"Authorization: Bearer " + KEY.encode(), b"Authorization: Bearer wrong-key-of-mine",
           b"Authorization: Bearer", b"Authorization: Basic Og==", b"Authorization: \xff", b"Origin: null", b"Origin: http://evil.example",
           b"Origin: " + ORIGIN.encode(), b"Origin: http://127.0.0.1:8088", b"Host: evil.example", b"Host:", b"Host: [",
           b"Content-Length: 0", b"Content-Length: -1", b"Content-Length: 99999999", b"Content-Length: \xb2",
           b"Content-Length: " + b"9" * 5000, b"Transfer-Encoding: chunked", b"Content-Type: text/plain",
           b"Content-Type: application/json; charset=utf-16", b"Content-Type: multipart/form-data; boundary=x",
           b"Expect: 100-continue", b"Connection: close", b"Accept: text/event-stream", b"Range: bytes=0-1",
           b"If-None-Match: *", b"If-Modified-Since: x", b"Cookie: a=b", b"X-HTTP-Method-Override: GET",
           b" folded")  # fmt: skip
_CHUNK = re.compile(rb"([0-9a-f]+)\r\n")


class _Template:
    """Takes the conversation as the worker would get it."""

    tool_format = "tagged"

    def render(self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]] = ()) -> str:
        text = encoded(json.dumps([*tools, *messages], ensure_ascii=False)).decode()
        return (
            "".join(f"<{turn.get('role', 'tools')}>{turn.get('content')}" for turn in json.loads(text)) + "<assistant>"
        )


class _Ring:
    """An engine that generates at once: parts of characters, and what looks like calls of tools."""

    n_slots = 4
    condition = RingCondition(NodeState.RUNNING, 1.0, ())

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.submitted: list[Sample] = []
        self._sayings = [list(range(0, N_IDS, 37)), *(tokenizer.encode(text) for text in SAYINGS)]

    def submit(self, sample: Sample) -> None:
        self.submitted.append(sample)
        tokens = self._sayings[sample.number % len(self._sayings)][: sample.params.max_tokens]
        assert sample.n_known + len(tokens) <= CONTEXT
        for token in tokens:
            sample.sink(sample, Outcome((token,), 1, None, self._logprobs(sample, token)))
        sample.finish_reason = "length" if len(tokens) == sample.params.max_tokens else "stop"
        sample.sink(sample, Outcome((), 0, sample.finish_reason))

    @staticmethod
    def _logprobs(sample: Sample, token: int) -> tuple[TokenLogprobs, ...]:
        n_top = sample.params.logprobs
        return () if n_top is None else (TokenLogprobs(token, -0.5, (Logprob(token, -0.5),) * n_top),)

    def cancel(self, sample: Sample) -> None:
        assert sample.finish_reason is not None

    def view(self) -> RingView:
        return RingView(epoch=1, n_layers=4, tokens_per_s=0.0, messages=(), nodes=())


class _Client(Connection):
    """A connection with a socket that nobody closes, which the routes look at."""

    def __init__(self, data: bytes, remote_addr: str, sock: socket.socket) -> None:
        super().__init__(data, remote_addr)
        self.fileno = sock.fileno

    def authenticate(self) -> None:
        pass


class UserTarget(Target):
    """Requests on one connection, as bytes. The first byte says whether the server has keys, and who calls.

    No answer is an unforeseen error; an error has the shape of the API; nobody generates without a key; and nothing of
    a request stays in the service when it was answered.
    """

    name = "users"
    unit = "connections"
    max_bytes = 16384
    growth_limit_bytes = 64 << 20

    def __init__(self, scratch: Path) -> None:
        super().__init__(scratch)
        tokenizer = local_tokenizer(model_folder(scratch, "byte-level"))
        self._ring = _Ring(tokenizer)
        model = ServedModel("org/tiny", tokenizer, _Template(), (), CONTEXT, N_IDS)  # type: ignore[arg-type]
        self._service = Service(model, self._ring, max_queue=2)
        self._service.feed.close()  # a stream of the ring ends with its first event
        self._errors = ErrorLog()
        self._socket, self._other_end = socket.socketpair()
        self._open, self._keyed = self._server(), self._server(KEY)

    def _server(self, *keys: str) -> InertServer:
        page = read_page()
        application = application_of(self._service, page)
        door = Door(application, ApiKeys(keys), OwnHosts(LOCAL), [ORIGIN], {"/health", *page})
        return InertServer(LOCAL, 0, door, NO_LIMIT)

    def seeds(self) -> list[bytes]:
        key = [b"Authorization: Bearer " + KEY.encode()]
        bodies = [(path, json.dumps({"model": "tiny"} | body).encode()) for path in BODIES for body in BODIES[path]]
        requests = [request_of(b"POST", path, key, body) for path, body in bodies]
        requests += [
            request_of(b"GET", path, key)
            for path in (b"/health", b"/v1/models", b"/metrics", b"/ring", b"/ring/events", b"/")
        ]
        several = b"".join(requests[:1] + requests[-2:])
        return [bytes((who,)) + request for request in [*requests, several] for who in range(3)]

    def check(self, data: bytes) -> int:
        who, stream = (data[0] % 3 if data else 0), data[1:]
        self._errors.last = ""
        self._ring.submitted.clear()
        connection = _Client(stream, STRANGER if who == 2 else LOCAL, self._socket)
        exchange(self._keyed if who else self._open, connection)
        answer = connection.wfile.getvalue()
        statuses = sound_statuses(answer, self._errors)
        self.accepted += bool(statuses) and max(statuses) < 400
        if len(statuses) == 1 and statuses[0] >= 400 and statuses != [503]:  # /health has a form of its own
            self._check_error(answer)
        if who and KEY.encode() not in stream:
            assert not self._ring.submitted, "generated without a key"
        assert self._service.n_open == 0, "a sample stayed open"
        return 1

    def _check_error(self, answer: bytes) -> None:
        """What the door and the routes say of a request that they refuse has the form of the API."""
        head, _, body = answer.partition(b"\r\n\r\n")
        if b"application/json" in head and (text := _dechunked(body) if b"chunked" in head else body):
            error = json.loads(text)["error"]
            assert error["message"] and set(error) == {"message", "type", "param", "code"}, error

    def mutate(self, data: bytes, rng: random.Random) -> bytes:
        who, (head, separator, body) = data[:1] or b"\0", data[1:].partition(b"\r\n\r\n")
        lines = head.split(b"\r\n")
        match rng.randrange(10):
            case 0:
                who = bytes((rng.randrange(3),))
            case 1:
                lines[0] = b" ".join((pick(rng, METHODS), pick(rng, PATHS), b"HTTP/1.1"))
            case 2:
                lines.insert(rng.randint(1, len(lines)), pick(rng, HEADERS))
            case 3:
                at = rng.randrange(len(lines))
                lines[at] = change_bytes(lines[at], rng)
            case 4 | 5:
                body = change_json(body, rng)
            case _:
                body = _with_parameter(body, rng)
        head = b"\r\n".join(lines)
        return who + (fitting(head, body) if rng.random() < 0.8 else head) + (separator or b"\r\n\r\n") + body


def _dechunked(body: bytes) -> bytes:
    data = b""
    while (found := _CHUNK.match(body)) and (size := int(found[1], 16)):
        data += body[found.end() : found.end() + size]
        body = body[found.end() + size + 2 :]
    return data


def _with_parameter(body: bytes, rng: random.Random) -> bytes:
    """Another parameter, or another value of one."""
    try:
        values = json.loads(body)
        return json.dumps(values | {rng.choice(KEYS): rng.choice(VALUES)}).encode()
    except (ValueError, TypeError, RecursionError):
        return change_bytes(body, rng)
