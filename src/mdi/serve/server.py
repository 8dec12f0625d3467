"""The HTTP server for users: its port, its threads, and who is let in."""

import json
from collections.abc import Callable, Collection, Iterable, Sequence
from http import HTTPStatus
from typing import Any

from mdi.control.hosts import LOCAL_ADDRESS, OwnHosts, content_type
from mdi.control.protocol import JSON
from mdi.control.server import CONNECTION, ServingThread, WebServer
from mdi.net.refusals import RefusalLog
from mdi.net.sockets import listen
from mdi.net.timeouts import DEFAULT_TIMEOUTS, Timeouts
from mdi.serve.access_log import RECORD, REQUEST_ID, AccessRecord, Logged
from mdi.serve.api_keys import ApiKeys
from mdi.serve.errors import ApiError, unauthorized
from mdi.serve.ring_feed import MAX_STREAMS
from mdi.serve.routes import application_of
from mdi.serve.service import Service
from mdi.serve.static_files import read_page
from mdi.strings import one_line

NO_LIMIT = 0  # of bodies: the routes refuse large ones, in the API's own words
N_SPARE_THREADS = 8  # for what is answered at once while all streams are busy
_STATES = {"/health", "/live"}  # of the ring, and of this process

Environ = dict[str, Any]
Application = Callable[[Environ, Callable[..., Any]], Iterable[bytes]]


class Door:
    """The middleware in front of the routes. Called from HTTP threads.

    A web page of another site may not use the server, unless its origin is named; without that, a browser that somebody
    on the server's machine or network uses would carry requests there for any page that he looks at.
    """

    def __init__(
        self,
        application: Application,
        keys: ApiKeys,
        hosts: OwnHosts,
        origins: Sequence[str] = (),
        open_paths: Collection[str] = (),
    ) -> None:
        """`open_paths` need no key; all others do. A list of those that do could be passed by: cherrypy takes
        `//v1/models` for `/v1/models`.
        """
        self._application, self._keys, self._hosts, self._origins = application, keys, hosts, origins
        self._open_paths = open_paths
        self._refusals = RefusalLog()

    def __call__(self, environ: Environ, start_response: Callable[..., Any]) -> Iterable[bytes]:
        record = environ[RECORD] = AccessRecord(environ)
        origin = environ.get("HTTP_ORIGIN")
        cors = _cors(origin) if origin is not None and origin in self._origins else []

        def start(status: str, headers: list[tuple[str, str]], exc_info: object = None) -> Any:
            record.status = status
            return start_response(status, [*headers, (REQUEST_ID, record.request_id), *cors], exc_info)

        if cors and environ["REQUEST_METHOD"] == "OPTIONS":
            start("204 No Content", [])
            return []
        try:
            self._check(environ, origin)
        except ApiError as exc:
            body = _refuse(exc, start)
            record.write(self._refusals)
            return body
        return Logged(self._application(environ, start), record)

    def _check(self, environ: Environ, origin: str | None) -> None:
        host, scheme, local = environ.get("HTTP_HOST", ""), environ["wsgi.url_scheme"], environ[LOCAL_ADDRESS]
        if not self._keys and not self._hosts.include(host, local, scheme):
            raise ApiError(421, f"this request is for {one_line(host, 100)}, and this server is {local[0]}:{local[1]}")
        if origin is not None and origin not in self._origins and not self._is_own(origin, host, local, scheme):
            raise ApiError(403, f"web pages of {one_line(origin, 100)} may not use this server: see --cors")
        if self._keys.accept(environ.get("HTTP_AUTHORIZATION", "")):
            environ[CONNECTION].authenticate()  # it does not have to make room for others
        elif environ["PATH_INFO"] not in self._open_paths:
            wanted = "in the header Authorization: Bearer <key>"
            given = "the API key is not one of this server's" if environ.get("HTTP_AUTHORIZATION") else "no API key"
            raise unauthorized(f"{given}: it belongs {wanted}")
        if environ["REQUEST_METHOD"] == "POST" and content_type(environ) != JSON:
            raise ApiError(415, f"expected Content-Type: {JSON}")

    def _is_own(self, origin: str, host: str, local: tuple[str, int], scheme: str) -> bool:
        """Whether it is this server's own page that asks.

        Where a key is needed, the page may have come by any name, through a proxy with TLS for example: a site whose
        name was made to point here has no key, since browsers keep those by origin.
        """
        if self._keys and origin.partition("://")[2] == host:
            return True
        return self._hosts.include_origin(origin, local, scheme)


def _cors(origin: str) -> list[tuple[str, str]]:
    return [
        ("Access-Control-Allow-Origin", origin),
        ("Access-Control-Allow-Headers", "Authorization, Content-Type"),
        ("Access-Control-Allow-Methods", "GET, POST"),
        ("Vary", "Origin"),
    ]


def _refuse(error: ApiError, start_response: Callable[..., Any]) -> list[bytes]:
    body = json.dumps(error.to_json()).encode()
    headers = [("Content-Type", JSON), ("Content-Length", str(len(body)))]
    if error.status == 401:
        headers.append(("WWW-Authenticate", "Bearer"))
    start_response(f"{error.status} {HTTPStatus(error.status).phrase}", headers)
    return [body]


class UserServer(ServingThread):
    """The HTTP side for users."""

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
        page = read_page()
        door = Door(application_of(service, page), keys, OwnHosts(addr), origins, _STATES | {*page})
        n_threads = n_streams + MAX_STREAMS + N_SPARE_THREADS
        self._feed = service.feed
        super().__init__(WebServer(addr, port, door, NO_LIMIT, timeouts=timeouts, n_threads=n_threads), "user-server")

    def close(self) -> None:
        """End the streams of the ring, which have no end of their own; then as any server."""
        self._feed.close()
        super().close()
