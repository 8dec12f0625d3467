"""One call to another node: connected, signed if the ring has a key, and whatever fails is one error that names it."""

import contextlib
import http.client
import json
import socket
import ssl
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from mdi import __version__
from mdi.control.exchange import AnswerTooLarge, Bounds, Connection
from mdi.control.hosts import host_of
from mdi.control.protocol import (
    CODES,
    JSON,
    NoAnswer,
    NodeBusy,
    NoStorage,
    NotANode,
    NotAuthorized,
    Refused,
    UnknownName,
    Unreachable,
)
from mdi.control.signatures import SCHEME, Challenge
from mdi.documents import parse_json
from mdi.errors import ControlError
from mdi.net.access import Access
from mdi.net.keys import Keys
from mdi.net.timeouts import Timeouts
from mdi.net.tls_errors import failed_call
from mdi.strings import one_line

MAX_QUOTED_CHARACTERS = 1000  # of an error of another node
MAX_REASON_BYTES = 4 << 10  # of an answer that is not authenticated: it may say why, and nothing else is read of it
SIGNING_ATTEMPTS = 3  # a busy node may have forgotten the nonce it gave us

_UNAVAILABLE = (408, 503)  # a server that is overloaded, or about to end
_NOT_OURS = (404, 405, 501)  # no node says that to what a client asks
_UNAUTHORIZED = (401, 403)
_KINDS: Mapping[int, type[Refused]] = {409: NodeBusy, 507: NoStorage}  # where the body has no code


@dataclass(frozen=True)
class Request:
    """One request, before it is signed."""

    method: str
    path: str
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Answer:
    """A whole answer; in a ring with a key one of a node that has it."""

    status: int
    headers: http.client.HTTPMessage
    body: bytes

    def json(self) -> Any:
        """Raises `ValueError` where the body is no JSON."""
        return parse_json(self.body, "the answer", ValueError)

    def error(self) -> dict[str, Any] | None:
        """What the body says as the error of a node; None where it says something else."""
        try:
            body = self.json()
        except ValueError:
            return None
        return body if isinstance(body, dict) and isinstance(body.get("error"), str) else None


class Caller:
    """Calls one node. Every failure is a `ControlError` that names it; see `protocol`.

    Every call ends: an answer is bounded as a whole, in time and in bytes. In a ring with a key nothing of it is used,
    and only its reason is kept, before its head has shown that the node has the key.
    """

    def __init__(
        self, name: str, addr: str, port: int, access: Access, timeouts: Timeouts, *, by_address: bool = False
    ) -> None:
        """`by_address`: call it by the address that it was reached at, which may be one of those of its name."""
        self.name, self._by_address = name, by_address
        self._addr, self._port, self._access, self._timeouts = addr, port, access, timeouts
        scheme = "https" if access.tls else "http"
        self.url = f"{scheme}://{f'[{addr}]' if ':' in addr else addr}:{port}"

    def __str__(self) -> str:
        return f"{self.name} at {self.url}"

    def call(self, request: Request, bounds: Bounds) -> dict[str, Any]:
        """The JSON object that answers a request."""
        answer = self.exchange(request, bounds)
        try:
            value = answer.json()
        except ValueError as exc:
            raise NotANode(f"{self} answered something that is not JSON") from exc
        if not isinstance(value, dict):
            raise NotANode(f"{self}: {_quote(value)}")
        if isinstance(value.get("error"), str):  # its status line was sent before it failed
            raise self._refusal(answer.status, value, str(self))
        return value

    def exchange(self, request: Request, bounds: Bounds) -> Answer:
        """The answer to a request that was accepted."""
        with self._connected(bounds) as connection:
            addr = connection.peer_address if self._by_address else self._addr
            keys, host = self._access.keys, host_of(addr, self._port)
            headers = {"Host": host, "Content-Length": str(len(request.body)), **request.headers}
            if keys is None:
                answer = self._ask(connection, request, headers, bounds)
            else:
                answer = self._ask_signed(connection, request, headers, bounds, keys)
        if not 200 <= answer.status < 300:
            raise self._error_of(answer)
        return answer

    @contextlib.contextmanager
    def _connected(self, bounds: Bounds) -> Iterator[Connection]:
        """A connection to the node. Whatever fails on it becomes a `ControlError`."""
        with Connection(self._addr, self._port, self._access.tls, bounds, self._timeouts) as connection:
            try:
                connection.connect()
            except (socket.gaierror, UnicodeError) as exc:
                raise UnknownName(f"{self} cannot be reached: no machine is known by that name") from exc
            except OSError as exc:
                raise Unreachable(f"{self} cannot be reached") from exc
            try:
                yield connection
            except AnswerTooLarge as exc:
                raise NoAnswer(f"{self} sends more than an answer can have ({bounds.max_bytes} bytes)") from exc
            except (ssl.SSLEOFError, http.client.RemoteDisconnected, http.client.IncompleteRead) as exc:
                raise NoAnswer(f"{self} did not answer: the connection ended") from exc
            except ConnectionResetError as exc:
                raise NoAnswer(f"{self} did not answer: {self._how_closed(connection)}") from exc
            except ssl.SSLError as exc:
                left_s = min(self._timeouts.connect_s, self._timeouts.left_s(bounds.deadline_s))
                reason = failed_call(exc, self._access.tls, self._addr, self._port, left_s)
                raise NotAuthorized(f"{self} does not agree on TLS: {reason}") from exc
            except TimeoutError as exc:
                is_late = not self._timeouts.left_s(bounds.deadline_s)
                reason = "its answer took too long" if is_late else f"silent for {bounds.silence_s:g} s"
                raise NoAnswer(f"{self} did not answer: {reason}") from exc
            except OSError as exc:
                raise NoAnswer(f"{self} did not answer: {one_line(exc)}") from exc
            except http.client.HTTPException as exc:
                raise NotANode(f"{self} answers, but not in HTTP: {one_line(exc)}") from exc

    def _how_closed(self, connection: Connection) -> str:
        if connection.has_answered:
            return "it closed the connection"
        if self._access.tls is not None:
            return "it closed the connection before it answered"
        return "it closed the connection before it answered, as a node with `tls` does that is called without"

    def _ask(self, connection: Connection, request: Request, headers: Mapping[str, str], bounds: Bounds) -> Answer:
        response = connection.ask(request.method, request.path, headers, request.body)
        return Answer(response.status, response.headers, connection.read(response, bounds.max_bytes))

    def _ask_signed(
        self, connection: Connection, request: Request, headers: Mapping[str, str], bounds: Bounds, keys: Keys
    ) -> Answer:
        """Sign the request with a nonce of the node, and check that the node has the key before its answer is read."""
        challenge, host = self._nonce(connection, headers["Host"]), headers["Host"]
        for _ in range(SIGNING_ATTEMPTS):
            content_range = headers.get("Content-Range", "")
            signature = challenge.sign(keys, host, request.method, request.path, request.body, content_range)
            signed = {**headers, "Authorization": signature}
            response = connection.ask(request.method, request.path, signed, request.body)
            if (digest := challenge.digest_of(keys, host, response.status, response.headers)) is not None:
                received = connection.read(response, bounds.max_bytes)
                if (body := challenge.verified(keys, host, digest, received)) is None:
                    raise NoAnswer(f"{self} did not answer: what came is not what a node with this ring's key sent")
                return Answer(response.status, response.headers, body)
            again = Challenge.of(response.headers.get("WWW-Authenticate", ""))
            reason = self._reason(connection, response)
            if again is None or not again.stale:
                break
            challenge = again
        raise NotAuthorized(f"{self} did not show that it has this ring's key: {reason}")

    def _nonce(self, connection: Connection, host: str) -> Challenge:
        response = connection.ask("HEAD", "/", {"Host": host, "Authorization": SCHEME})
        connection.read(response, 0)
        challenge = Challenge.of(response.headers.get("WWW-Authenticate", ""))
        if challenge is not None:
            return challenge
        if response.status == 403 and response.headers.get("Server", "").startswith("mdi-llm/"):
            raise NotAuthorized(f"{self} has no key, and this node has one")
        raise self._error_of(Answer(response.status, response.headers, b""))

    def _reason(self, connection: Connection, response: http.client.HTTPResponse) -> str:
        """Why a request was refused, by an answer that anybody may have sent."""
        try:
            error = Answer(response.status, response.headers, connection.read(response, MAX_REASON_BYTES)).error()
        except AnswerTooLarge:
            error = None
        if error is None:
            return f"HTTP {response.status}"
        version = _quote(error.get("version", __version__))
        other = "" if version == __version__ else f" (it runs version {version}, this node {__version__})"
        return f"{_quote(error['error'])}{other}"

    def _error_of(self, answer: Answer) -> ControlError:
        """The error for an answer that is none to what was asked."""
        if answer.status in _UNAVAILABLE:
            return NoAnswer(f"{self} did not answer: HTTP {answer.status}")
        if (error := answer.error()) is not None and answer.status not in _NOT_OURS:
            return self._refusal(answer.status, error, f"{self} refused")
        return NotANode(f"{self} is not a node of this version: HTTP {answer.status}")

    def _refusal(self, status: int, error: dict[str, Any], who: str) -> ControlError:
        text = f"{who}: {_quote(error['error'])}"
        if status in _UNAUTHORIZED:
            return NotAuthorized(text)
        code = error.get("code")
        known = CODES.get(code) if isinstance(code, str) else None
        return (known or _KINDS.get(status, Refused))(text)


def json_request(method: str, path: str, value: Any) -> Request:
    """A request with a JSON body."""
    return Request(method, path, json.dumps(value).encode(), {"Content-Type": JSON})


def _quote(answer: object) -> str:
    """What a node sent, fit to stand in an error: it may be of any length."""
    return one_line(str(answer), MAX_QUOTED_CHARACTERS)
