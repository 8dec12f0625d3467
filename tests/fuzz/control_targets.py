"""The control plane: the body of `/init`, and raw HTTP requests through cheroot's parser, the gate and the routes."""

import io
import json
import logging
import random
import re
import shutil
import threading
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import asdict
from pathlib import Path
from typing import Any

from litgpt.config import Config

from fuzz.mutations import change_bytes, change_json, pick
from fuzz.target import Target
from mdi.checkpoint.cache import ChunkCache
from mdi.checkpoint.config import config_from_dict
from mdi.control.auth import AuthMiddleware
from mdi.control.hosts import OwnHosts, host_of
from mdi.control.protocol import UPLOAD_BYTES
from mdi.control.routes import application_of
from mdi.control.server import WebServer, _Request
from mdi.control.session import SessionSpec
from mdi.control.signatures import SCHEME, Challenge
from mdi.control.status import InitAnswer
from mdi.control.streams import RequestStream
from mdi.errors import CheckpointError, ControlError
from mdi.net.access import Access
from mdi.net.keys import Key, Keys
from mdi.net.timeouts import DEFAULT_TIMEOUTS
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


class _Source:
    """A socket that has received some bytes, and then the end of the stream."""

    def __init__(self, data: bytes) -> None:
        self._data = io.BytesIO(data)

    def recv(self, size: int) -> bytes:
        return self._data.read(size)

    def settimeout(self, timeout_s: float) -> None:
        pass


class _Connection:
    """What cheroot's request asks of a connection."""

    def __init__(self, data: bytes, remote_addr: str) -> None:
        self.rfile, self.wfile = RequestStream(_Source(data), DEFAULT_TIMEOUTS), io.BytesIO()  # type: ignore[arg-type]
        self.remote_addr, self.remote_port = remote_addr, 40000
        self.ssl_env: dict[str, str] = {}
        self.socket = self  # of which the gateway asks one thing
        self.peercreds_enabled = self.peercreds_resolve_enabled = False

    def has_request(self) -> bool:
        """Whether another whole head has come, as the server's loop finds out."""
        while not self.rfile.has_head():
            if not self.rfile.receive():
                return False
        return True

    def getsockname(self) -> tuple[str, int]:
        return LOCAL, PORT


class _Server(WebServer):
    can_add_keepalive_connection = True  # the real one asks its selector, which is not running


class _Errors(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.last = ""

    def emit(self, record: logging.LogRecord) -> None:
        self.last = self.format(record)


class _AnsweringNode(FakeNode):
    """Answers `/init` at once."""

    def request_init(self, spec: SessionSpec) -> "Future[InitAnswer]":
        self.asked.append(spec)
        self.answer = Future()
        self.answer.set_result(READY)
        return self.answer


KEY = Keys(Key("a key for the fuzzer, long enough", "fuzz"))
SIGN = b"@sign"
LOCAL, PORT, STRANGER = "127.0.0.1", 8088, "203.0.113.5"
HOST = host_of(LOCAL, PORT)
N_REQUESTS = 4  # on one connection
_ALLOWED_5XX = {501, 505, 507}
_STATUS = re.compile(rb"HTTP/1\.1 (\d{3}) ")

METHODS = (b"GET", b"PUT", b"POST", b"HEAD", b"DELETE", b"OPTIONS", b"TRACE", b"CONNECT", b"get", b"X" * 300)
PATHS = (b"/", b"/init", b"/stop", b"/release", b"/timeline", b"/chunks", b"/chunks/",
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
        self._errors = _Errors()
        logging.getLogger("mdi").addHandler(self._errors)
        logging.getLogger("mdi").propagate = False
        application = application_of(self._node, threading.Event())
        self._keyed = self._server(application, Access(KEY))
        self._open = self._server(application, Access(addrs=("10.0.0.9",)))
        self._n = 0

    @staticmethod
    def _server(application: Any, access: Access) -> _Server:
        gate = AuthMiddleware(application, access, LOCAL, UPLOAD_BYTES, OwnHosts(LOCAL))
        return _Server(LOCAL, 0, gate, 2 * UPLOAD_BYTES, access)

    def seeds(self) -> list[bytes]:
        init = json.dumps(SPEC.to_json()).encode()
        chunk = b"/chunks/" + DIGEST.encode()
        whole = b"Content-Range: bytes 0-%d/%d" % (len(CHUNK) - 1, len(CHUNK))
        requests = [
            _request(b"GET", b"/"),
            _request(b"GET", b"/timeline"),
            _request(b"POST", b"/init", body=init),
            _request(b"PUT", b"/release", body=b'{"run": 5}'),
            _request(b"PUT", b"/stop"),
            _request(b"HEAD", chunk),
            _request(b"PUT", chunk, [whole], CHUNK),
            _request(b"PUT", chunk, [b"Content-Range: bytes 0-9/5120"], CHUNK[:10]),
            _request(b"PUT", chunk, [b"Transfer-Encoding: chunked"], b"5\r\nhello\r\n0\r\n\r\n"),
        ]
        signed = [request.replace(b"\r\n", b"\r\nAuthorization: " + SIGN + b"\r\n", 1) for request in requests]
        lead = [bytes((who,)) + request for request in requests for who in range(3)]
        return lead + [b"\1" + request for request in signed] + [b"\0" + b"".join(requests[:1] * 2 + requests[4:6])]

    def check(self, data: bytes) -> int:
        who, stream = (data[0] % 3 if data else 0), data[1:]
        self._forget()
        keyed = who == 1
        connection = _Connection(self._signed(stream) if keyed else stream, STRANGER if who == 2 else LOCAL)
        for _ in range(N_REQUESTS):
            if not connection.has_request():
                break
            request = _Request(self._keyed if keyed else self._open, connection)
            request.parse_request()
            if not request.ready:
                break
            request.respond()
            if request.close_connection:
                break
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
        return who + (_fitting(head, body) if rng.random() < 0.7 else head) + (separator or b"\r\n\r\n") + body

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
        connection = _Connection(_request(b"HEAD", b"/", [b"Authorization: " + SCHEME.encode()]), STRANGER)
        assert connection.has_request()
        request = _Request(self._keyed, connection)
        request.parse_request()
        request.respond()
        found = re.search(rb'nonce="([0-9a-f]{32})"', connection.wfile.getvalue())
        assert found is not None
        return found[1].decode()

    def _assert_sound(self, answer: bytes, *, let_in: bool) -> None:
        statuses = [int(status) for status in _STATUS.findall(answer)]
        wrong = [status for status in statuses if status >= 500 and status not in _ALLOWED_5XX]
        assert not wrong, f"answered {wrong}: {self._errors.last}"
        assert not self._errors.last, self._errors.last
        self.accepted += bool(statuses) and max(statuses) < 400
        if not let_in:
            assert not self._node.asked, f"let in: {self._node.asked}"
            assert not [status for status in statuses if 200 <= status < 400], f"let in: {answer!r}"


def _request(method: bytes, path: bytes, headers: Sequence[bytes] = (), body: bytes = b"") -> bytes:
    head = b"\r\n".join((method + b" " + path + b" HTTP/1.1", b"Host: " + HOST.encode(), _type_of(path), *headers))
    return (_fitting(head, body) if body else head) + b"\r\n\r\n" + body


def _type_of(path: bytes) -> bytes:
    return b"Content-Type: application/" + (b"octet-stream" if path.startswith(b"/chunks/") else b"json")


def _fitting(head: bytes, body: bytes) -> bytes:
    """The head with the length of the body in it."""
    lines = [line for line in head.split(b"\r\n") if not line.lower().startswith(b"content-length")]
    return b"\r\n".join([*lines, b"Content-Length: %d" % len(body)])
