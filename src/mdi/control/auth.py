"""Authentication of HTTP between nodes: the middleware in front of a node's routes, and the client's signatures.

In a ring with a key a client asks for a nonce first and signs its request with it; the node signs its answer:

    Authorization: MDI-HMAC                                      give me a nonce
    WWW-Authenticate: MDI-HMAC nonce="...", stale="false"        (401) here it is
    Authorization: MDI-HMAC nonce="...", body="...", mac="..."   the SHA-256 of the body, and a proof of each key
    Authentication-Info: body="...", mac="..."                   the same for the answer, with the key they share

Without a key only clients at the addresses of the configuration are authorized.
"""

import hashlib
import io
import json
import logging
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from mdi import __version__
from mdi.net.access import Access, AllowedHosts
from mdi.net.keys import MAC_BYTES, NONCE_BYTES, Key, Keys, Nonces
from mdi.net.refusals import RefusalLog
from mdi.strings import one_line

log = logging.getLogger(__name__)

SCHEME = "MDI-HMAC"
STREAMED = "mdi.streamed"  # set in the environ by a route whose answer comes bit by bit
_STREAM = "stream"  # instead of the digest of such a body

_HEX = "[0-9a-f]"
_CHALLENGE = re.compile(f'{SCHEME} nonce="({_HEX}{{{2 * NONCE_BYTES}}})", stale="(true|false)"')
_SIGNED = re.compile(
    f'{SCHEME} nonce="({_HEX}{{{2 * NONCE_BYTES}}})", body="({_HEX}{{64}})",'
    f' mac="((?:{_HEX}{{{2 * MAC_BYTES}}}){{1,2}})"'
)
_ANSWER = re.compile(f'body="({_HEX}{{64}}|{_STREAM})", mac="({_HEX}{{{2 * MAC_BYTES}}})"')

Environ = dict[str, Any]
StartResponse = Callable[..., Any]
Application = Callable[[Environ, StartResponse], Iterable[bytes]]


def _request_parts(nonce: str, method: str, target: str, digest: str) -> tuple[bytes, ...]:
    return b"mdi http request", nonce.encode(), method.encode(), target.encode("latin-1", "replace"), digest.encode()


def _answer_parts(nonce: str, status: int, digest: str) -> tuple[bytes, ...]:
    return b"mdi http answer", nonce.encode(), b"%d" % status, digest.encode()


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

    def sign(self, keys: Keys, method: str, target: str, body: bytes) -> str:
        """The header Authorization for one request; `target` is its path and query, as they are sent."""
        digest = _sha256(body)
        mac = keys.prove(*_request_parts(self.nonce, method, target, digest)).hex()
        return f'{SCHEME} nonce="{self.nonce}", body="{digest}", mac="{mac}"'

    def answered(self, keys: Keys, status: int, body: bytes, header: str) -> bool:
        """Whether the header Authentication-Info of an answer shows that the other side has one of the keys."""
        match = _ANSWER.fullmatch(header)
        if match is None or match[1] not in (_STREAM, _sha256(body)):
            return False
        return keys.match(bytes.fromhex(match[2]), *_answer_parts(self.nonce, status, match[1])) is not None


# ---- the node's side


class _RequestRejected(Exception):
    """A request is not authorized. It never leaves this module."""

    def __init__(self, reason: str, status: str = "401 Unauthorized", *, stale: bool = False, log: bool = True):
        super().__init__(reason)
        self.status, self.stale, self.log = status, stale, log


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
        refusals: RefusalLog | None = None,
    ) -> None:
        """`local` is the address that the node listens on."""
        self._application, self._keys, self._max_body_bytes = application, access.keys, max_body_bytes
        self._refusals = refusals or RefusalLog()
        self._nonces = Nonces()
        self._allowed = None if access.addrs is None else AllowedHosts(("localhost", *access.addrs), local)

    def __call__(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        try:
            if self._keys is None:
                self._check_address(environ)
                return self._application(environ, start_response)
            key, nonce, body = self._check_signature(self._keys, environ)
        except _RequestRejected as exc:
            return self._reject(environ, start_response, exc)
        environ["wsgi.input"] = io.BytesIO(body)
        return self._forward(key, nonce, environ, start_response)

    def _check_address(self, environ: Environ) -> None:
        if environ.get("HTTP_AUTHORIZATION", "").startswith(SCHEME):
            raise _RequestRejected("the caller has a key and this node has none", "403 Forbidden")
        if self._allowed is not None and not self._allowed.include(environ["REMOTE_ADDR"]):
            reason = f"{environ['REMOTE_ADDR']} is not in this node's configuration, and this ring has no key"
            raise _RequestRejected(reason, "403 Forbidden")

    def _check_signature(self, keys: Keys, environ: Environ) -> tuple[Key, str, bytes]:
        """Key, nonce and body of a request whose signature is right; all that it covers is as it was signed."""
        header = environ.get("HTTP_AUTHORIZATION", "")
        if header == SCHEME:
            raise _RequestRejected("here is a nonce", log=False)
        if (match := _SIGNED.fullmatch(header)) is None:
            raise _RequestRejected("this ring has a key and the caller has none")
        nonce, digest, mac = match.groups()
        parts = _request_parts(nonce, environ["REQUEST_METHOD"], environ["REQUEST_URI"], digest)
        known = self._nonces.redeem(bytes.fromhex(nonce))
        key = keys.match(bytes.fromhex(mac), *parts)
        if key is None:
            raise _RequestRejected("the caller and this node have different keys")
        if not known:
            raise _RequestRejected("the nonce was used before, or is not known any more", stale=True)
        body = self._read_body(environ)
        if _sha256(body) != digest:
            raise _RequestRejected("the body is not the one that was signed")
        return key, nonce, body

    def _read_body(self, environ: Environ) -> bytes:
        length = environ.get("CONTENT_LENGTH") or "0"
        if environ.get("wsgi.input_terminated") or not length.isdecimal() or int(length) > self._max_body_bytes:
            raise _RequestRejected(
                f"expected a body of known length, at most {self._max_body_bytes} bytes", "400 Bad Request"
            )
        body: bytes = environ["wsgi.input"].read(int(length))
        return body

    def _reject(self, environ: Environ, start_response: StartResponse, rejected: _RequestRejected) -> list[bytes]:
        if rejected.log:
            request = one_line(f"{environ['REQUEST_METHOD']} {environ['REQUEST_URI']}", 100)
            self._refusals.add(log, "refused %s from %s: %s", request, environ["REMOTE_ADDR"], rejected)
        body = json.dumps({"error": str(rejected), "version": __version__}).encode()
        headers = [("Content-Type", "application/json"), ("Content-Length", str(len(body)))]
        if self._keys is not None:
            nonce, stale = self._nonces.issue().hex(), "true" if rejected.stale else "false"
            headers.append(("WWW-Authenticate", f'{SCHEME} nonce="{nonce}", stale="{stale}"'))
        start_response(rejected.status, headers)
        return [] if environ["REQUEST_METHOD"] == "HEAD" else [body]

    def _forward(self, key: Key, nonce: str, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        """Pass the request on, and sign the answer.

        The signature stands in a header and covers the body, so the body is collected first; but the answer to /init
        goes on for minutes, and its blanks must be sent as they come. There the signature covers the status alone.
        """
        begun: list[tuple[str, list[tuple[str, str]]]] = []

        def begin(status: str, headers: list[tuple[str, str]], exc_info: object = None) -> None:
            begun[:] = [(status, headers)]

        response = self._application(environ, begin)
        digest = _STREAM
        if not environ.get(STREAMED):
            response = _collected(response)
            digest = _sha256(b"".join(response))
        ((status, headers),) = begun
        mac = key.mac(*_answer_parts(nonce, int(status[:3]), digest)).hex()
        start_response(status, [*headers, ("Authentication-Info", f'body="{digest}", mac="{mac}"')])
        return response


def _collected(response: Iterable[bytes]) -> list[bytes]:
    try:
        return list(response)
    finally:
        if (close := getattr(response, "close", None)) is not None:
            close()
