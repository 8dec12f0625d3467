"""Requests to a server of OpenAI's API, and what became of them: each failure is one line that says what to do."""

import contextlib
import socket
from collections.abc import Callable, Generator, Iterator, Mapping
from typing import Any

import httpx

from mdi.cli.chat.events import EventParser, EventTooLarge
from mdi.convert.hub_environment import check_connection
from mdi.documents import Fields, is_text, parse_json
from mdi.errors import ConfigError, MdiError
from mdi.net.access import is_loopback
from mdi.strings import one_line

CONNECT_TIMEOUT_S = 10.0
SILENCE_TIMEOUT_S = 300.0  # of a server that works on a long prompt and sends no comments meanwhile
MAX_BODY_BYTES = 1 << 20  # of an answer that is no stream
LAST = b"[DONE]"

OnSocket = Callable[[socket.socket], None]


class RequestFailed(MdiError):
    """A request that was refused or broke. `code` is what the server gave for programs."""

    def __init__(self, text: str, code: str | None = None) -> None:
        super().__init__(text)
        self.code = code


class NoAnswer(RequestFailed):
    """Nobody listens where the server should be."""


class NotReady(RequestFailed):
    """The server cannot answer now, and says in how many seconds it may."""

    def __init__(self, text: str, code: str | None, retry_s: float) -> None:
        super().__init__(text, code)
        self.retry_s = retry_s


class Endpoint:
    """A server by its URL, such as `http://127.0.0.1:8000/v1`. May be used from several threads."""

    def __init__(self, url: str, key: str | None) -> None:
        """Raises `ConfigError` for what is no URL, and for variables of the environment that cannot be used."""
        is_here = is_loopback(_host(url))
        self.url = url.rstrip("/")
        if not is_here:
            check_connection()
        self._http = httpx.Client(
            headers={} if not key else {"Authorization": f"Bearer {key}"},
            timeout=httpx.Timeout(SILENCE_TIMEOUT_S, connect=CONNECT_TIMEOUT_S),
            trust_env=not is_here,  # no proxy leads to this machine
        )

    def close(self) -> None:
        self._http.close()

    def models(self) -> list[str]:
        """The models that the server has, by name."""
        with self._response("GET", "/models") as response:
            answer = _body(response)
        try:
            models = Fields(parse_json(answer, "", RequestFailed), "", RequestFailed).get("data", _is_list, "a list")
            return [Fields(model, "", RequestFailed).get("id", is_text, "a text") for model in models]
        except RequestFailed as exc:
            raise RequestFailed(f"{self.url} does not list models as a server of OpenAI's API does") from exc

    def events(self, path: str, body: Mapping[str, Any], on_socket: OnSocket) -> Generator[dict[str, Any], None, None]:
        """The events of a streamed answer, to its end. `on_socket` gets the connection, to be able to end it.

        Raises `RequestFailed`.
        """
        parser = EventParser()
        with self._response("POST", path, body) as response:
            on_socket(response.extensions["network_stream"].get_extra_info("socket"))
            for piece in response.iter_bytes():
                for data in parser.feed(piece):
                    if data == LAST:
                        return
                    yield _event(data)
        raise RequestFailed("the server ended the connection in the middle of the answer")

    @contextlib.contextmanager
    def _response(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Iterator[httpx.Response]:
        try:
            with self._http.stream(method, f"{self.url}{path}", json=body) as response:
                if response.status_code != httpx.codes.OK:
                    raise _refusal(response)
                yield response
        except httpx.ConnectTimeout as exc:
            raise RequestFailed(f"{self.url} does not answer within {CONNECT_TIMEOUT_S:g} s") from exc
        except httpx.ConnectError as exc:
            raise NoAnswer(f"nothing answers at {self.url} ({one_line(exc)})") from exc
        except httpx.TimeoutException as exc:
            raise RequestFailed(f"the server has said nothing for {SILENCE_TIMEOUT_S:g} s") from exc
        except (httpx.HTTPError, httpx.StreamError, OSError) as exc:
            raise RequestFailed(f"the connection to the server broke ({one_line(exc)})") from exc
        except EventTooLarge as exc:
            raise RequestFailed(f"the server sent {exc}") from exc


def _host(url: str) -> str:
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL as exc:
        raise ConfigError(f"--url {url}: {one_line(exc)}") from exc
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise ConfigError(f"--url {url}: expected a URL such as http://127.0.0.1:8000/v1")
    return parsed.host


def _event(data: bytes) -> dict[str, Any]:
    event = parse_json(data, "an event", malformed)
    if not isinstance(event, dict):
        raise malformed("an event that is no object")
    if "error" in event:
        message, code = _told(event)
        raise RequestFailed(f"the server could not go on: {message}", code)
    return event


def malformed(problem: str) -> RequestFailed:
    """The error for an answer of another shape than the API's."""
    return RequestFailed(f"the server sent what is not of OpenAI's API ({one_line(problem)})")


def _body(response: httpx.Response) -> bytes:
    body = b""
    for piece in response.iter_bytes():
        body += piece
        if len(body) > MAX_BODY_BYTES:
            raise RequestFailed(f"the server sent an answer of more than {MAX_BODY_BYTES} bytes")
    return body


def _refusal(response: httpx.Response) -> RequestFailed:
    """What a status other than 200 says."""
    try:
        message, code = _told(parse_json(_body(response), "", RequestFailed))
    except RequestFailed:
        message, code = response.reason_phrase, None
    seconds = response.headers.get("Retry-After", "")
    text = _explained(response, message, seconds if seconds.isdecimal() else None)
    if response.status_code == httpx.codes.SERVICE_UNAVAILABLE and seconds.isdecimal():
        return NotReady(text, code, float(seconds))
    return RequestFailed(text, code)


def _explained(response: httpx.Response, message: str, retry_s: str | None) -> str:
    again = f"; try again in {retry_s} s" if retry_s is not None and "try again in" not in message else ""
    match response.status_code:
        case 401 | 403:
            return f"the server does not let us in: {message}; give its key by MDI_API_KEY or --api-key"
        case 429:
            return f"the server is busy: {message}{again}"
        case 503:
            return f"the server cannot answer now: {message}{again}"
        case status:
            return f"the server refuses this ({status}): {message}{again}"


def _told(answer: Any) -> tuple[str, str | None]:
    """The message and the code of an error in OpenAI's shape."""
    error = answer.get("error") if isinstance(answer, dict) else None
    if not isinstance(error, dict):
        return "it does not say why", None
    code = error.get("code")
    return one_line(str(error.get("message") or "it does not say why")), code if isinstance(code, str) else None


def _is_list(value: Any) -> bool:
    return isinstance(value, list)
