"""Authentication of HTTP between nodes: the middleware in front of a node's routes, and the client's signatures.

In a ring with a key a client asks for a nonce first and signs its request with it; the node signs its answer:

    Authorization: MDI-HMAC                                      give me a nonce
    WWW-Authenticate: MDI-HMAC nonce="...", stale="false"        (401) here it is
    Authorization: MDI-HMAC nonce="...", body="...", mac="..."   the SHA-256 of the body, and a proof of each key
    Authentication-Info: body="...", mac="..."                   the same for the answer, with the key they share

Every proof covers the header Host, so that nobody can relay a request to another node. Without a key only clients at
the addresses of the configuration are authorized. Requests that a web page can make are refused in both cases.
"""

import hashlib
import io
import json
import logging
import re
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from http.client import HTTPMessage
from typing import Any

from mdi import __version__
from mdi.control.hosts import LOCAL_ADDRESS, OwnHosts
from mdi.control.protocol import BYTES, HELD_BYTES, JSON
from mdi.net.access import Access, AllowedHosts
from mdi.net.keys import MAC_BYTES, NONCE_BYTES, Key, Keys, Nonces
from mdi.net.refusals import RefusalLog
from mdi.strings import one_line

log = logging.getLogger(__name__)

SCHEME = "MDI-HMAC"
STREAMED = "mdi.streamed"  # in the environ: an event that a route sets whose answer comes bit by bit
STREAM = "stream"  # instead of the digest of such a body, which ends with a line that holds its MAC

_HEX = "[0-9a-f]"
_CHALLENGE = re.compile(f'{SCHEME} nonce="({_HEX}{{{2 * NONCE_BYTES}}})", stale="(true|false)"')
_SIGNED = re.compile(
    f'{SCHEME} nonce="({_HEX}{{{2 * NONCE_BYTES}}})", body="({_HEX}{{64}})",'
    f' mac="((?:{_HEX}{{{2 * MAC_BYTES}}}){{1,2}})"'
)
_ANSWER = re.compile(f'body="({_HEX}{{64}}|{STREAM})", mac="({_HEX}{{{2 * MAC_BYTES}}})"')
_MAC_LINE = re.compile(rb"\n(%s{%d})" % (_HEX.encode(), 2 * MAC_BYTES))
_MAC_LINE_BYTES = 1 + 2 * MAC_BYTES

Environ = dict[str, Any]
StartResponse = Callable[..., Any]
Application = Callable[[Environ, StartResponse], Iterable[bytes]]


@dataclass(frozen=True)
class _Exchange:
    """What the proofs of a request and of its answer have in common: the nonce, and the node that they are for.

    Each also covers the one header that says something of its body: Content-Range and X-Held-Bytes.
    """

    nonce: str
    host: str

    def request(self, method: str, target: str, content_range: str, digest: str) -> tuple[bytes, ...]:
        return self._parts(b"mdi http request", method, target, content_range, digest)

    def answer(self, status: int, held_bytes: str, digest: str) -> tuple[bytes, ...]:
        return self._parts(b"mdi http answer", str(status), held_bytes, digest)

    def streamed(self, digest: str) -> tuple[bytes, ...]:
        return self._parts(b"mdi http stream", digest)

    def _parts(self, label: bytes, *values: str) -> tuple[bytes, ...]:
        return label, *(value.encode("latin-1", "replace") for value in (self.nonce, self.host, *values))


def _sha256(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()


# ---- the client's side


@dataclass(frozen=True)
class Challenge:
    """A nonce that a node gave out; `stale`: because the one that was signed with is no longer known."""

    nonce: str
    stale: bool

    @classmethod
    def of(cls, header: str) -> "Challenge | None":
        """What the header WWW-Authenticate holds."""
        match = _CHALLENGE.fullmatch(header)
        return cls(match[1], match[2] == "true") if match else None

    def sign(self, keys: Keys, host: str, method: str, target: str, body: bytes, content_range: str = "") -> str:
        """The header Authorization for one request; `host` and `target` (path and query) are those that are sent."""
        digest = _sha256(body)
        mac = keys.prove(*_Exchange(self.nonce, host).request(method, target, content_range, digest)).hex()
        return f'{SCHEME} nonce="{self.nonce}", body="{digest}", mac="{mac}"'

    def digest_of(self, keys: Keys, host: str, status: int, headers: HTTPMessage) -> str | None:
        """What the header Authentication-Info of an answer says of its body, which is still to come.

        `STREAM` or a SHA-256; None where it does not show that the other side has one of the keys.
        """
        match = _ANSWER.fullmatch(headers.get("Authentication-Info", ""))
        if match is None:
            return None
        parts = _Exchange(self.nonce, host).answer(status, headers.get(HELD_BYTES, ""), match[1])
        return match[1] if keys.match(bytes.fromhex(match[2]), *parts) else None

    def verified(self, keys: Keys, host: str, digest: str, body: bytes) -> bytes | None:
        """The body of an answer without its proof; None where it is not the one that the node with the key sent."""
        if digest != STREAM:
            return body if _sha256(body) == digest else None
        text, match = body[:-_MAC_LINE_BYTES], _MAC_LINE.fullmatch(body[-_MAC_LINE_BYTES:])
        if match is None:
            return None
        parts = _Exchange(self.nonce, host).streamed(_sha256(text))
        return text if keys.match(bytes.fromhex(match[1].decode()), *parts) else None


# ---- the node's side


class _RequestRejected(Exception):
    """A request is not authorized. It never leaves this module."""

    def __init__(self, reason: str, status: str = "401 Unauthorized", *, stale: bool = False, log: bool = True):
        super().__init__(reason)
        self.status, self.stale, self.log = status, stale, log


@dataclass(frozen=True)
class _Signed:
    """A request whose signature is right; `key` is the one it was made with, and signs the answer."""

    key: Key
    exchange: _Exchange
    digest: str  # of its body, which is still to come

    def info(self, status: str, digest: str, held_bytes: str = "") -> tuple[str, str]:
        """The header of an answer with that status line and body."""
        mac = self.key.mac(*self.exchange.answer(int(status[:3]), held_bytes, digest)).hex()
        return "Authentication-Info", f'body="{digest}", mac="{mac}"'

    def sign_stream(self, blocks: Iterable[bytes]) -> Iterator[bytes]:
        """The blocks as they come, and the proof of all of them at their end."""
        digest = hashlib.sha256()
        try:
            for block in blocks:
                digest.update(block)
                yield block
        finally:
            _close(blocks)
        yield b"\n" + self.key.mac(*self.exchange.streamed(digest.hexdigest())).hex().encode()


class AuthMiddleware:
    """A WSGI application in front of another one. Called from HTTP threads.

    Nothing of a request's body is read, and nothing of the node is revealed, before the client is authorized.
    """

    def __init__(
        self,
        application: Application,
        access: Access,
        local: str,
        max_body_bytes: int,
        hosts: OwnHosts,
        refusals: RefusalLog | None = None,
    ) -> None:
        """`local` is the address that the node listens on, `hosts` what the node is called."""
        self._application, self._keys, self._max_body_bytes = application, access.keys, max_body_bytes
        self._hosts, self._refusals = hosts, refusals or RefusalLog()
        self._nonces = Nonces()
        self._allowed = None if access.addrs is None else AllowedHosts(("localhost", *access.addrs), local)

    def __call__(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        signed: _Signed | None = None
        environ[STREAMED] = threading.Event()  # an object: CherryPy gives the routes a copy of the environ
        try:
            if self._keys is None:
                self._check_address(environ)
            else:
                signed = self._check_signature(self._keys, environ)
            self._check_host(environ)
            _check_type(environ)
            if signed is not None:
                environ["wsgi.input"] = io.BytesIO(self._read_body(environ, signed.digest))
        except _RequestRejected as exc:
            return self._reject(environ, start_response, exc, signed)
        if signed is None:
            return self._application(environ, start_response)
        return self._forward(signed, environ, start_response)

    def _check_address(self, environ: Environ) -> None:
        if environ.get("HTTP_AUTHORIZATION", "").startswith(SCHEME):
            raise _RequestRejected("the caller has a key and this node has none", "403 Forbidden")
        if self._allowed is not None and not self._allowed.include(environ["REMOTE_ADDR"]):
            reason = f"{environ['REMOTE_ADDR']} is not in this node's configuration, and this ring has no key"
            raise _RequestRejected(reason, "403 Forbidden")

    def _check_signature(self, keys: Keys, environ: Environ) -> _Signed:
        """A request that is signed with a nonce of ours; all that the proof covers is as it was signed."""
        header = environ.get("HTTP_AUTHORIZATION", "")
        if header == SCHEME:
            raise _RequestRejected("here is a nonce", log=False)
        if (match := _SIGNED.fullmatch(header)) is None:
            raise _RequestRejected("this ring has a key and the caller has none")
        nonce, digest, mac = match.groups()
        exchange = _Exchange(nonce, environ.get("HTTP_HOST", ""))
        content_range = environ.get("HTTP_CONTENT_RANGE", "")
        parts = exchange.request(environ["REQUEST_METHOD"], environ["REQUEST_URI"], content_range, digest)
        known = self._nonces.redeem(bytes.fromhex(nonce))
        key = keys.match(bytes.fromhex(mac), *parts)
        if key is None:
            raise _RequestRejected("the caller and this node have different keys")
        if not known:
            raise _RequestRejected("the nonce was used before, or is not known any more", stale=True)
        return _Signed(key, exchange, digest)

    def _check_host(self, environ: Environ) -> None:
        """The request is for this node, and if a web page makes it, the page is this node's own: there are none."""
        host, scheme, local = environ.get("HTTP_HOST", ""), environ["wsgi.url_scheme"], environ[LOCAL_ADDRESS]
        if not self._hosts.include(host, local, scheme):
            theirs, ours = one_line(host, 100) if host else "nobody", self._hosts.describe(local)
            advice = f"spell its addr alike in all nodes files, or add {theirs} to its known_as"
            reason = f"this request is for {theirs}, and this node is {ours}: {advice}"
            raise _RequestRejected(reason, "421 Misdirected Request")
        origin = environ.get("HTTP_ORIGIN")
        if origin is not None and not self._is_own_origin(origin, local, scheme):
            raise _RequestRejected(f"a web page of {one_line(origin, 100)} may not use this node", "403 Forbidden")
        if environ.get("HTTP_SEC_FETCH_SITE", "none") not in ("none", "same-origin"):
            raise _RequestRejected("a web page of another site may not use this node", "403 Forbidden")

    def _is_own_origin(self, origin: str, local: tuple[str, int], scheme: str) -> bool:
        theirs, _, host = origin.partition("://")
        return theirs == scheme and self._hosts.include(host, local, scheme)

    def _read_body(self, environ: Environ, digest: str) -> bytes:
        length = environ.get("CONTENT_LENGTH") or "0"
        if environ.get("wsgi.input_terminated") or not length.isdecimal() or int(length) > self._max_body_bytes:
            raise _RequestRejected(
                f"expected a body of known length, at most {self._max_body_bytes} bytes", "400 Bad Request"
            )
        body: bytes = environ["wsgi.input"].read(int(length))
        if _sha256(body) != digest:
            raise _RequestRejected("the body is not the one that was signed")
        return body

    def _reject(
        self, environ: Environ, start_response: StartResponse, rejected: _RequestRejected, signed: _Signed | None
    ) -> list[bytes]:
        if rejected.log:
            request = one_line(f"{environ['REQUEST_METHOD']} {environ['REQUEST_URI']}", 100)
            self._refusals.add(log, "refused %s from %s: %s", request, environ["REMOTE_ADDR"], rejected)
        body = json.dumps({"error": str(rejected), "version": __version__}).encode()
        headers = [("Content-Type", JSON), ("Content-Length", str(len(body)))]
        if environ["REQUEST_METHOD"] == "HEAD":
            body = b""
        if signed is not None:
            headers.append(signed.info(rejected.status, _sha256(body)))
        elif self._keys is not None:
            nonce, stale = self._nonces.issue().hex(), "true" if rejected.stale else "false"
            headers.append(("WWW-Authenticate", f'{SCHEME} nonce="{nonce}", stale="{stale}"'))
        start_response(rejected.status, headers)
        return [body] if body else []

    def _forward(self, signed: _Signed, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        """Pass the request on, and sign the answer.

        The signature stands in a header and covers the body, so the body is collected first; but the answer to /init
        goes on for minutes, and its blanks must be sent as they come. There the signature of the head covers the status
        alone, and the one of the body follows it.
        """
        begun: list[tuple[str, list[tuple[str, str]]]] = []

        def begin(status: str, headers: list[tuple[str, str]], exc_info: object = None) -> None:
            begun[:] = [(status, headers)]

        response = self._application(environ, begin)
        if environ[STREAMED].is_set():
            digest, response = STREAM, signed.sign_stream(response)
        else:
            response = _collected(response)
            digest = _sha256(b"".join(response))
        ((status, headers),) = begun
        start_response(status, [*headers, signed.info(status, digest, dict(headers).get(HELD_BYTES, ""))])
        return response


def _check_type(environ: Environ) -> None:
    """A web page may send forms and plain text to anybody; for other types its browser asks first, by OPTIONS."""
    method = environ["REQUEST_METHOD"]
    if method == "OPTIONS":
        raise _RequestRejected("no web page may use this node", "405 Method Not Allowed")
    expected = BYTES if environ["PATH_INFO"].startswith("/chunks/") else JSON
    if method in ("PUT", "POST") and environ.get("CONTENT_TYPE", "").partition(";")[0].strip().lower() != expected:
        raise _RequestRejected(f"expected Content-Type: {expected}", "415 Unsupported Media Type")


def _collected(response: Iterable[bytes]) -> list[bytes]:
    try:
        return list(response)
    finally:
        _close(response)


def _close(response: Iterable[bytes]) -> None:
    if (close := getattr(response, "close", None)) is not None:
        close()
