"""The routes for users.

    POST /v1/chat/completions   a conversation and its next turn
    POST /v1/completions        a text that goes on
    POST /v1/responses          the same as a chat, in the newer form
    GET  /v1/models             the model that is served
    GET  /health                whether a request would be served now
    GET  /live                  that this process answers, whatever the ring does
    GET  /metrics               counters, for Prometheus
    GET  /ring                  the ring and its nodes as they are now
    GET  /ring/events           the same again and again, as events
    GET  /                      the page: a chat, and the ring
    GET  /page/<name>           its files

Bodies are JSON, streams are server-sent events, and errors have OpenAI's shape.
"""

import json
import logging
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import cherrypy

from mdi.control.application import application_with
from mdi.control.protocol import JSON
from mdi.control.server import CONNECTION
from mdi.documents import parse_json
from mdi.errors import ControlError
from mdi.net.sockets import is_closed_by_peer
from mdi.serve.access_log import RECORD, AccessRecord
from mdi.serve.answering import ClientGone, EventStream, answer
from mdi.serve.chats import ChatForm
from mdi.serve.completions import CompletionForm
from mdi.serve.errors import ApiError
from mdi.serve.forms import Form
from mdi.serve.metrics import CONTENT_TYPE
from mdi.serve.responses import ResponseForm
from mdi.serve.ring_feed import RingEvents
from mdi.serve.schemas import ChatRequest, CompletionRequest, ResponseRequest, parse
from mdi.serve.service import Service
from mdi.serve.static_files import INDEX, StaticFile

log = logging.getLogger(__name__)

MAX_BODY_BYTES = 16 << 20
EVENT_HEADERS = {"Content-Type": "text/event-stream", "Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
Request = TypeVar("Request", ChatRequest, CompletionRequest, ResponseRequest)


def application_of(service: Service, page: Mapping[str, StaticFile]) -> cherrypy.Application:
    """The routes as a WSGI application; `page` has the files of the page, by their paths."""
    return application_with(_Root(service, page), lambda status, message: ApiError(status, message).to_json(), log)


class _Root:
    def __init__(self, service: Service, page: Mapping[str, StaticFile]) -> None:
        self._service, self._page = service, page
        self.v1 = _V1(service)
        self.ring = _Ring(service)

    @cherrypy.expose  # type: ignore[untyped-decorator]
    @cherrypy.tools.allow(methods=["GET", "HEAD"])  # type: ignore[untyped-decorator]
    def index(self) -> bytes:
        return self._page[INDEX].send()

    @cherrypy.expose  # type: ignore[untyped-decorator]
    @cherrypy.tools.allow(methods=["GET", "HEAD"])  # type: ignore[untyped-decorator]
    def page(self, name: str) -> bytes:
        if (file := self._page.get(f"/page/{name}")) is None:
            raise cherrypy.NotFound
        return file.send()

    @cherrypy.expose  # type: ignore[untyped-decorator]
    @cherrypy.tools.allow(methods=["GET"])  # type: ignore[untyped-decorator]
    def health(self) -> bytes:
        health = self._service.health()
        cherrypy.response.status = 200 if health.is_ready else 503
        return _json(health.to_json())

    @cherrypy.expose  # type: ignore[untyped-decorator]
    @cherrypy.tools.allow(methods=["GET"])  # type: ignore[untyped-decorator]
    def live(self) -> bytes:
        """For whoever restarts processes: one whose ring recovers is not healthy, and must not be ended."""
        return _json({"status": "live"})

    @cherrypy.expose  # type: ignore[untyped-decorator]
    @cherrypy.tools.allow(methods=["GET"])  # type: ignore[untyped-decorator]
    def metrics(self) -> bytes:
        cherrypy.response.headers["Content-Type"] = CONTENT_TYPE
        return self._service.metrics.render()


class _Ring:
    def __init__(self, service: Service) -> None:
        self._feed = service.feed

    @cherrypy.expose  # type: ignore[untyped-decorator]
    @cherrypy.tools.allow(methods=["GET"])  # type: ignore[untyped-decorator]
    def index(self) -> bytes:
        cherrypy.response.headers["Content-Type"] = JSON
        return self._feed.latest().body

    @cherrypy.expose  # type: ignore[untyped-decorator]
    @cherrypy.tools.allow(methods=["GET"])  # type: ignore[untyped-decorator]
    def events(self) -> bytes | RingEvents:
        cherrypy.response.headers |= EVENT_HEADERS
        if cherrypy.request.method == "HEAD":  # nobody would close a stream that is not sent
            return b""
        try:
            return self._feed.stream(_is_gone())
        except ApiError as exc:
            return _refused(exc)


class _V1:
    def __init__(self, service: Service) -> None:
        self._service = service
        self.chat = _Chat(service)

    @cherrypy.expose  # type: ignore[untyped-decorator]
    @cherrypy.tools.allow(methods=["GET"])  # type: ignore[untyped-decorator]
    def models(self, *name: str) -> bytes:
        model = self._service.model.to_json()
        if not name:
            return _json({"object": "list", "data": [model]})
        try:
            self._service.check_model("/".join(name))
        except ApiError as exc:
            return _refused(exc)
        return _json(model)

    @cherrypy.expose  # type: ignore[untyped-decorator]
    @cherrypy.tools.allow(methods=["POST"])  # type: ignore[untyped-decorator]
    def completions(self) -> bytes | EventStream:
        return _answered(self._service, CompletionRequest, CompletionForm)

    @cherrypy.expose  # type: ignore[untyped-decorator]
    @cherrypy.tools.allow(methods=["POST"])  # type: ignore[untyped-decorator]
    def responses(self) -> bytes | EventStream:
        return _answered(self._service, ResponseRequest, ResponseForm)


class _Chat:
    def __init__(self, service: Service) -> None:
        self._service = service

    @cherrypy.expose  # type: ignore[untyped-decorator]
    @cherrypy.tools.allow(methods=["POST"])  # type: ignore[untyped-decorator]
    def completions(self) -> bytes | EventStream:
        return _answered(self._service, ChatRequest, ChatForm)


def _answered(service: Service, kind: type[Request], form: Callable[[Request, Service], Form]) -> bytes | EventStream:
    record: AccessRecord = cherrypy.request.wsgi_environ[RECORD]
    try:
        request = parse(kind, _read_json())
        record.model = request.model
        service.check_model(request.model)
        service.check_takes()
        asked = form(request, service)
        record.generation = service.begin(asked.ask())
        body = answer(asked, record.generation, _is_gone())
    except ApiError as exc:
        service.metrics.refused(exc.status)
        return _refused(exc)
    except ClientGone:
        return b""  # to nobody
    if isinstance(body, EventStream):
        cherrypy.response.headers |= EVENT_HEADERS
    else:
        cherrypy.response.headers["Content-Type"] = JSON
    return body


def _is_gone() -> Callable[[], bool]:
    """Whether the client of this request has closed its connection."""
    connection = cherrypy.request.wsgi_environ[CONNECTION]
    return lambda: is_closed_by_peer(connection.socket)


def _refused(error: ApiError) -> bytes:
    cherrypy.response.status = error.status
    if error.retry_after_s is not None:
        cherrypy.response.headers["Retry-After"] = str(error.retry_after_s)
    return _json(error.to_json())


def _json(value: Any) -> bytes:
    cherrypy.response.headers["Content-Type"] = JSON
    return json.dumps(value).encode()


def _read_json() -> Any:
    environ = cherrypy.request.wsgi_environ
    text = environ.get("CONTENT_LENGTH") or "0"
    if environ.get("wsgi.input_terminated") or not text.isdecimal():
        raise ApiError(411, "a body of known length is expected")
    if (length := int(text)) > MAX_BODY_BYTES:
        raise ApiError(413, f"a body of {length} bytes; {MAX_BODY_BYTES} are allowed")
    try:
        return parse_json(cherrypy.request.rfile.read(length), "the body", ControlError)
    except ControlError as exc:
        raise ApiError(400, "the body is not JSON") from exc
