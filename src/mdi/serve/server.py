"""The HTTP server for users: its port, its threads, and who is let in."""

import json
import logging
import threading
from collections.abc import Callable, Iterable, Sequence
from http import HTTPStatus
from typing import Any

from mdi.control.hosts import LOCAL_ADDRESS, OwnHosts
from mdi.control.server import CONNECTION, WebServer
from mdi.errors import ConfigError
from mdi.net.access import THIS_MACHINE, Access
from mdi.net.refusals import RefusalLog
from mdi.net.sockets import listen
from mdi.net.timeouts import DEFAULT_TIMEOUTS, Timeouts
from mdi.serve.api_keys import ApiKeys
from mdi.serve.errors import ApiError, unauthorized
from mdi.serve.routes import JSON, application_of
from mdi.serve.service import Service
from mdi.strings import one_line

log = logging.getLogger(__name__)

NO_LIMIT = 0  # of bodies: the routes refuse large ones, in the API's own words
N_SPARE_THREADS = 8  # for what is answered at once while all streams are busy
_FOR_KEYS = ("/v1/", "/metrics")

Environ = dict[str, Any]
Application = Callable[[Environ, Callable[..., Any]], Iterable[bytes]]


class Door:
    """The middleware in front of the routes. Called from HTTP threads.

    A web page of another site may not use the server, unless its origin is named; without that, a browser that somebody
    on the server's machine or network uses would carry requests there for any page that he looks at.
    """

    def __init__(self, application: Application, keys: ApiKeys, hosts: OwnHosts, origins: Sequence[str] = ()) -> None:
        self._application, self._keys, self._hosts, self._origins = application, keys, hosts, origins

    def __call__(self, environ: Environ, start_response: Callable[..., Any]) -> Iterable[bytes]:
        origin = environ.get("HTTP_ORIGIN")
        headers = _cors(origin) if origin is not None and origin in self._origins else []
        if headers and environ["REQUEST_METHOD"] == "OPTIONS":
            start_response("204 No Content", headers)
            return []
        try:
            self._check(environ, origin)
        except ApiError as exc:
            return _refuse(exc, start_response, headers)

        def start(status: str, own: list[tuple[str, str]], exc_info: object = None) -> Any:
            request = one_line(f"{environ['REQUEST_METHOD']} {environ['PATH_INFO']}", 100)
            log.info("%s from %s: %s", request, environ["REMOTE_ADDR"], status)
            return start_response(status, own + headers, exc_info)

        return self._application(environ, start)

    def _check(self, environ: Environ, origin: str | None) -> None:
        host, scheme, local = environ.get("HTTP_HOST", ""), environ["wsgi.url_scheme"], environ[LOCAL_ADDRESS]
        if not self._keys and not self._hosts.include(host, local, scheme):
            raise ApiError(421, f"this request is for {one_line(host, 100)}, and this server is {local[0]}:{local[1]}")
        if origin is not None and origin not in self._origins and not self._is_own(origin, local, scheme):
            raise ApiError(403, f"web pages of {one_line(origin, 100)} may not use this server: see --cors")
        if self._keys.accept(environ.get("HTTP_AUTHORIZATION", "")):
            environ[CONNECTION].authenticate()  # it does not have to make room for others
        elif environ["PATH_INFO"].startswith(_FOR_KEYS):
            wanted = "in the header Authorization: Bearer <key>"
            given = "the API key is not one of this server's" if environ.get("HTTP_AUTHORIZATION") else "no API key"
            raise unauthorized(f"{given}: it belongs {wanted}")
        if environ["REQUEST_METHOD"] == "POST" and _type_of(environ) != JSON:
            raise ApiError(415, f"expected Content-Type: {JSON}")

    def _is_own(self, origin: str, local: tuple[str, int], scheme: str) -> bool:
        theirs, _, host = origin.partition("://")
        return theirs == scheme and self._hosts.include(host, local, scheme)


def _type_of(environ: Environ) -> str:
    return str(environ.get("CONTENT_TYPE", "")).partition(";")[0].strip().lower()


def _cors(origin: str) -> list[tuple[str, str]]:
    return [
        ("Access-Control-Allow-Origin", origin),
        ("Access-Control-Allow-Headers", "Authorization, Content-Type"),
        ("Access-Control-Allow-Methods", "GET, POST"),
        ("Vary", "Origin"),
    ]


def _refuse(error: ApiError, start_response: Callable[..., Any], headers: list[tuple[str, str]]) -> list[bytes]:
    body = json.dumps(error.to_json()).encode()
    own = [("Content-Type", JSON), ("Content-Length", str(len(body)))]
    if error.status == 401:
        own.append(("WWW-Authenticate", "Bearer"))
    start_response(f"{error.status} {HTTPStatus(error.status).phrase}", own + headers)
    return [body]


class UserServer:
    """Bound on creation, serving from `start()` to `close()`."""

    def __init__(
        self,
        addr: str,
        port: int,
        service: Service,
        *,
        keys: ApiKeys,
        n_streams: int,
        origins: Sequence[str] = (),
        timeouts: Timeouts = DEFAULT_TIMEOUTS,
    ) -> None:
        """`n_streams` requests are answered at once, and others beside them. Raises `ConfigError` for the address."""
        listen(addr, port, "--serve").close()  # for its errors: cheroot's lack the reason
        door = Door(application_of(service), keys, OwnHosts(addr), origins)
        access = THIS_MACHINE if not keys else Access()
        self._server = WebServer(
            addr, port, door, NO_LIMIT, access, timeouts, RefusalLog(), n_threads=n_streams + N_SPARE_THREADS
        )
        try:
            self._server.prepare()
        except OSError as exc:
            raise ConfigError(f"cannot listen on {addr} port {port}: {one_line(exc)}") from exc
        self._thread = threading.Thread(target=self._server.serve, name="user-server", daemon=True)

    @property
    def port(self) -> int:
        """The port in use; of interest where port 0 was asked for."""
        return int(self._server.bind_addr[1])

    def start(self) -> None:
        """Begin to answer."""
        self._thread.start()

    def close(self) -> None:
        """End all threads of the server."""
        self._server.stop()
        if self._thread.ident is not None:
            self._thread.join()
