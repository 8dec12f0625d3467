"""The middleware in front of a node's routes, which decides what requests they get.

In a ring with a key a request has to be signed, see `mdi.control.signatures`; without one it has to come from an
address of the configuration. In both cases it has to be for this node, and none that a web page can make.
"""

import io
import json
import logging
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from mdi import __version__
from mdi.control.hosts import LOCAL_ADDRESS, OwnHosts, content_type
from mdi.control.protocol import BYTES, HELD_BYTES, JSON
from mdi.control.signatures import SCHEME, STREAM, Challenge, Signature, SignedRequest, sha256
from mdi.net.access import Access, AllowedHosts
from mdi.net.keys import Keys, Nonces
from mdi.net.refusals import RefusalLog
from mdi.strings import one_line

log = logging.getLogger(__name__)

STREAMED = "mdi.streamed"  # in the environ: an event that a route sets whose answer comes bit by bit

Environ = dict[str, Any]
StartResponse = Callable[..., Any]
Application = Callable[[Environ, StartResponse], Iterable[bytes]]


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
        hosts: OwnHosts,
        refusals: RefusalLog | None = None,
    ) -> None:
        """`local` is the address that the node listens on, `hosts` what the node is called."""
        self._application, self._keys, self._max_body_bytes = application, access.keys, max_body_bytes
        self._hosts, self._refusals = hosts, refusals or RefusalLog()
        self._nonces = Nonces()
        self._allowed = None if access.addrs is None else AllowedHosts(("localhost", *access.addrs), local)

    def __call__(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        signed: SignedRequest | None = None
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

    def _check_signature(self, keys: Keys, environ: Environ) -> SignedRequest:
        """A request that is signed with a nonce of ours; all that the proof covers is as it was signed."""
        header = environ.get("HTTP_AUTHORIZATION", "")
        if header == SCHEME:
            raise _RequestRejected("here is a nonce", log=False)
        if (signature := Signature.of(header)) is None:
            raise _RequestRejected("this ring has a key and the caller has none")
        known = self._nonces.redeem(bytes.fromhex(signature.nonce))
        host, content_range = environ.get("HTTP_HOST", ""), environ.get("HTTP_CONTENT_RANGE", "")
        method, target = environ["REQUEST_METHOD"], environ["REQUEST_URI"]
        signed = signature.verified(keys, host, method, target, content_range)
        if signed is None:
            raise _RequestRejected("the caller and this node have different keys")
        if not known:
            raise _RequestRejected("the nonce was used before, or is not known any more", stale=True)
        return signed

    def _check_host(self, environ: Environ) -> None:
        """The request is for this node, and if a web page makes it, the page is this node's own: there are none."""
        host, scheme, local = environ.get("HTTP_HOST", ""), environ["wsgi.url_scheme"], environ[LOCAL_ADDRESS]
        if not self._hosts.include(host, local, scheme):
            theirs, ours = one_line(host, 100) if host else "nobody", self._hosts.describe(local)
            advice = f"spell its addr alike in all nodes files, or add {theirs} to its known_as"
            reason = f"this request is for {theirs}, and this node is {ours}: {advice}"
            raise _RequestRejected(reason, "421 Misdirected Request")
        origin = environ.get("HTTP_ORIGIN")
        if origin is not None and not self._hosts.include_origin(origin, local, scheme):
            raise _RequestRejected(f"a web page of {one_line(origin, 100)} may not use this node", "403 Forbidden")
        if environ.get("HTTP_SEC_FETCH_SITE", "none") not in ("none", "same-origin"):
            raise _RequestRejected("a web page of another site may not use this node", "403 Forbidden")

    def _read_body(self, environ: Environ, digest: str) -> bytes:
        length = environ.get("CONTENT_LENGTH") or "0"
        if environ.get("wsgi.input_terminated") or not length.isdecimal() or int(length) > self._max_body_bytes:
            raise _RequestRejected(
                f"expected a body of known length, at most {self._max_body_bytes} bytes", "400 Bad Request"
            )
        body: bytes = environ["wsgi.input"].read(int(length))
        if sha256(body) != digest:
            raise _RequestRejected("the body is not the one that was signed")
        return body

    def _reject(
        self, environ: Environ, start_response: StartResponse, rejected: _RequestRejected, signed: SignedRequest | None
    ) -> list[bytes]:
        if rejected.log:
            request = one_line(f"{environ['REQUEST_METHOD']} {environ['REQUEST_URI']}", 100)
            self._refusals.add(log, "refused %s from %s: %s", request, environ["REMOTE_ADDR"], rejected)
        body = json.dumps({"error": str(rejected), "version": __version__}).encode()
        headers = [("Content-Type", JSON), ("Content-Length", str(len(body)))]
        if environ["REQUEST_METHOD"] == "HEAD":
            body = b""
        if signed is not None:
            headers.append(("Authentication-Info", signed.info(int(rejected.status[:3]), sha256(body))))
        elif self._keys is not None:
            headers.append(("WWW-Authenticate", Challenge(self._nonces.issue().hex(), rejected.stale).header))
        start_response(rejected.status, headers)
        return [body] if body else []

    def _forward(self, signed: SignedRequest, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
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
            digest, response = STREAM, _closing(response, signed.sign_stream(response))
        else:
            response = _collected(response)
            digest = sha256(b"".join(response))
        ((status, headers),) = begun
        info = signed.info(int(status[:3]), digest, dict(headers).get(HELD_BYTES, ""))
        start_response(status, [*headers, ("Authentication-Info", info)])
        return response


def _check_type(environ: Environ) -> None:
    """A web page may send forms and plain text to anybody; for other types its browser asks first, by OPTIONS."""
    method = environ["REQUEST_METHOD"]
    if method == "OPTIONS":
        raise _RequestRejected("no web page may use this node", "405 Method Not Allowed")
    expected = BYTES if environ["PATH_INFO"].startswith("/chunks/") else JSON
    if method in ("PUT", "POST") and content_type(environ) != expected:
        raise _RequestRejected(f"expected Content-Type: {expected}", "415 Unsupported Media Type")


def _collected(response: Iterable[bytes]) -> list[bytes]:
    try:
        return list(response)
    finally:
        _close(response)


def _closing(response: Iterable[bytes], blocks: Iterable[bytes]) -> Iterator[bytes]:
    """The blocks that were made of a response, which is closed after them as WSGI demands."""
    try:
        yield from blocks
    finally:
        _close(response)


def _close(response: Iterable[bytes]) -> None:
    if (close := getattr(response, "close", None)) is not None:
        close()
