"""The control plane: the body of `/init`, and raw HTTP requests through cheroot's parser, the gate and the routes."""

import json
import random
import re
import shutil
import threading
from concurrent.futures import Future
from dataclasses import asdict
from pathlib import Path
from typing import Any

from litgpt.config import Config

from fuzz.mutations import change_bytes, change_json, pick
from fuzz.raw_http import (
    HOST,
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
from mdi.checkpoint.cache import ChunkCache
from mdi.checkpoint.config import config_from_dict
from mdi.control.auth import AuthMiddleware
from mdi.control.hosts import OwnHosts
from mdi.control.join import JoinRequest
from mdi.control.protocol import UPLOAD_BYTES
from mdi.control.routes import application_of
from mdi.control.session import SessionSpec
from mdi.control.signatures import SCHEME, Challenge
from mdi.control.status import InitAnswer
from mdi.errors import CheckpointError, ControlError
from mdi.net.access import Access
from mdi.net.keys import Key, Keys
from support.control import CHUNK, DIGEST, SPEC, FakeNode, sha256_of
from support.models import BASE, TRAITS
from support.statuses import READY

TRAITS_OF_SEEDS = ("llama", "yarn", "mixture of experts, grouped router", "sliding window")


class SessionTarget(Target):
    """`SessionSpec.from_json`, and litgpt's configuration in it, which the node builds next."""

    name = "session"
    share = 0.5
    max_bytes = 16384
    growth_limit_bytes = 64 << 20

    def seeds(self) -> list[bytes]:
        configs = [asdict(Config(**{**BASE, **TRAITS[trait]})) for trait in TRAITS_OF_SEEDS]
        return [json.dumps(SPEC.to_json() | {"config": config}).encode() for config in configs]

    def check(self, data: bytes) -> int:
        try:
            spec = SessionSpec.from_json(json.loads(data))
        except (ControlError, ValueError, RecursionError):  # all but the first are `control`'s matter
            return 1
        again = SessionSpec.from_json(json.loads(json.dumps(spec.to_json())))
        assert again == spec or "NaN" in json.dumps(spec.to_json())
        assert spec.session.max_body_bytes > 0 and spec.hello != spec.expected
        try:
            config_from_dict(spec.config)
        except CheckpointError:
            return 1
        self.accepted += 1
        return 1

    def mutate(self, data: bytes, rng: random.Random) -> bytes:
        try:
            session = json.loads(data)
            config = json.loads(change_json(json.dumps(session["config"]).encode(), rng))
        except (ValueError, KeyError, TypeError, RecursionError):
            return change_json(data, rng)
        return json.dumps(session | {"config": config}).encode() if rng.random() < 0.6 else change_json(data, rng)


class _AnsweringNode(FakeNode):
    """Answers `/init` at once."""

    def request_init(self, spec: SessionSpec) -> "Future[InitAnswer]":
        self.asked.append(spec)
        self.answer = Future()
        self.answer.set_result(READY)
        return self.answer


KEY = Keys(Key("a key for the fuzzer, long enough", "fuzz"))
SIGN = b"@sign"

METHODS = (b"GET", b"PUT", b"POST", b"HEAD", b"DELETE", b"OPTIONS", b"TRACE", b"CONNECT", b"get", b"X" * 300)
PATHS = (b"/", b"/init", b"/measure", b"/stop", b"/release", b"/timeline", b"/reach", b"/join", b"/chunks", b"/chunks/",
         b"/chunks/" + DIGEST.encode(), b"/chunks/x/y",
         b"/chunks/..%2f..%2fetc%2fpasswd", b"/chunks/../../x", b"/%00", b"/%ff", b"/init?epoch=1", b"/stop;x", b"*",
         b"http://a/b", b"//", b"/GET", b"/_node/cache", b"/__class__", b"/favicon.ico", b"/chunks/" + b"A" * 64,
         b"/chunks/" + DIGEST.encode() + b"?digest=" + b"0" * 64, b"/index", b"/init/POST",
         b"/" + b"a" * 3000)  # fmt: skip
HEADERS = (b"Content-Range: bytes 0-9/10", b"Content-Range: bytes 10-19/5120", b"Content-Range: bytes 5-2/10",
           b"Content-Range: bytes 0-999999999999999999/999999999999999999", b"Content-Range: bytes */10",
           b"Content-Length: 10", b"Content-Length: 0", b"Content-Length: -1", b"Content-Length: 99999999999999999999",
           b"Content-Length: " + b"9" * 5000, b"Content-Length: 1_0", b"Content-Length: \xb2", b"Content-Length: +5",
           b"Transfer-Encoding: chunked", b"Transfer-Encoding: gzip", b"Expect: 100-continue", b"Connection: close",
           b"Content-Type: multipart/form-data; boundary=x", b"Content-Type: application/x-www-form-urlencoded",
           b"Authorization: " + SIGN, b"Authorization: MDI-HMAC", b"Authorization: MDI-HMAC nonce=\"\"",
           b"Authorization: Basic Og==", b"Authorization: MDI-HMAC nonce=\"" + b"0" * 32 + b"\", body=\"" + b"0" * 64
           + b"\", mac=\"" + b"0" * 64 + b"\"", b"Cookie: a=b; session_id=x", b"Range: bytes=0-1",
           b"If-Modified-Since: x", b"X-Forwarded-For: 127.0.0.1", b"X-HTTP-Method-Override: PUT", b": ", b"A: \xff",
           b"Accept: " + b"a," * 500, b" folded", b"Host:", b"Host: evil.example", b"Host: [::1]:8088", b"Host: [",
           b"Host: \xff:8088", b"Host: localhost:08088", b"Host: 127.0.0.1:99999999", b"Origin: null", b"Origin: http://evil.example",
           b"Origin: http://127.0.0.1:8088", b"Sec-Fetch-Site: cross-site",
           b"Content-Type: application/json")  # fmt: skip
BODIES = (b"{}", b'{"run": 1}', b'{"run": true}', b"[1]", b"null", b"", b"[" * 3000, b"9" * 5000, b"\xff", b"NaN")


class HttpTarget(Target):
    """Requests on one connection, as bytes: no answer is an unforeseen error, and nobody is let in who should not be.

    The first byte says who calls: this machine, whoever has the ring's key or has it not, or a stranger without one.
    """

    name = "http"
    unit = "connections"
    share = 1.5
    max_bytes = 16384
    growth_limit_bytes = 64 << 20

    def __init__(self, scratch: Path) -> None:
        super().__init__(scratch)
        self._folder = scratch / "cache"
        self._node = _AnsweringNode(ChunkCache(self._folder, sha256_of, limit_bytes=1 << 16))
        self._errors = ErrorLog()
        application = application_of(self._node, threading.Event())
        self._keyed = self._server(application, Access(KEY))
        self._open = self._server(application, Access(addrs=("10.0.0.9",)))
        self._n = 0

    @staticmethod
    def _server(application: Any, access: Access) -> InertServer:
        gate = AuthMiddleware(application, access, LOCAL, UPLOAD_BYTES, OwnHosts(LOCAL))
        return InertServer(LOCAL, 0, gate, 2 * UPLOAD_BYTES, access)

    def seeds(self) -> list[bytes]:
        init = json.dumps(SPEC.to_json()).encode()
        chunk = b"/chunks/" + DIGEST.encode()
        whole = b"Content-Range: bytes 0-%d/%d" % (len(CHUNK) - 1, len(CHUNK))
        requests = [
            request_of(b"GET", b"/"),
            request_of(b"GET", b"/timeline"),
            request_of(b"POST", b"/reach", body=b'{"addr": "10.0.0.7", "port": 8088}'),
            request_of(b"POST", b"/join", body=json.dumps(JoinRequest(8090).to_json()).encode()),
            request_of(b"POST", b"/init", body=init),
            request_of(b"PUT", b"/release", body=b'{"run": 5}'),
            request_of(b"PUT", b"/stop"),
            request_of(b"HEAD", chunk),
            request_of(b"PUT", chunk, [whole], CHUNK),
            request_of(b"PUT", chunk, [b"Content-Range: bytes 0-9/5120"], CHUNK[:10]),
            request_of(b"PUT", chunk, [b"Transfer-Encoding: chunked"], b"5\r\nhello\r\n0\r\n\r\n"),
        ]
        signed = [request.replace(b"\r\n", b"\r\nAuthorization: " + SIGN + b"\r\n", 1) for request in requests]
        lead = [bytes((who,)) + request for request in requests for who in range(3)]
        return lead + [b"\1" + request for request in signed] + [b"\0" + b"".join(requests[:1] * 2 + requests[4:6])]

    def check(self, data: bytes) -> int:
        who, stream = (data[0] % 3 if data else 0), data[1:]
        self._forget()
        keyed = who == 1
        connection = Connection(self._signed(stream) if keyed else stream, STRANGER if who == 2 else LOCAL)
        exchange(self._keyed if keyed else self._open, connection)
        self._assert_sound(connection.wfile.getvalue(), let_in=who == 0 or (keyed and SIGN in stream))
        return 1

    def mutate(self, data: bytes, rng: random.Random) -> bytes:
        who, (head, separator, body) = data[:1] or b"\0", data[1:].partition(b"\r\n\r\n")
        lines = head.split(b"\r\n")
        match rng.randrange(8):
            case 0:
                who = bytes((rng.randrange(3),))
            case 1:
                lines[0] = b" ".join(
                    (pick(rng, METHODS), pick(rng, PATHS), pick(rng, (b"HTTP/1.1", b"HTTP/1.0", b"HTTP/2")))
                )
            case 2 | 3:
                lines.insert(rng.randint(1, len(lines)), pick(rng, HEADERS))
            case 4:
                del lines[rng.randrange(len(lines))]
            case 5:
                at = rng.randrange(len(lines))
                lines[at] = change_bytes(lines[at], rng)
            case _:
                body = pick(rng, BODIES) if rng.random() < 0.3 else change_json(body, rng)
        head = b"\r\n".join(lines)
        return who + (fitting(head, body) if rng.random() < 0.7 else head) + (separator or b"\r\n\r\n") + body

    def _forget(self) -> None:
        self._node.asked.clear()
        self._errors.last = ""
        self._n += 1
        if self._n % 256 == 0:
            shutil.rmtree(self._folder, ignore_errors=True)

    def _signed(self, stream: bytes) -> bytes:
        """Where the stream asks for it, the signature of its first request, right unless the stream is not."""
        if SIGN not in stream:
            return stream
        head, _, body = stream.partition(b"\r\n\r\n")
        method, target, *_ = [*head.split(b"\r\n")[0].split(b" "), b"", b""]
        challenge = Challenge(self._nonce(), stale=False)
        header = challenge.sign(KEY, HOST, method.decode("latin-1"), target.decode("latin-1"), body)
        return stream.replace(SIGN, header.encode(), 1)

    def _nonce(self) -> str:
        connection = Connection(request_of(b"HEAD", b"/", [b"Authorization: " + SCHEME.encode()]), STRANGER)
        exchange(self._keyed, connection)
        found = re.search(rb'nonce="([0-9a-f]{32})"', connection.wfile.getvalue())
        assert found is not None
        return found[1].decode()

    def _assert_sound(self, answer: bytes, *, let_in: bool) -> None:
        statuses = sound_statuses(answer, self._errors)
        self.accepted += bool(statuses) and max(statuses) < 400
        if not let_in:
            assert not self._node.asked, f"let in: {self._node.asked}"
            assert not [status for status in statuses if 200 <= status < 400], f"let in: {answer!r}"
