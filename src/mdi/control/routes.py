"""Start, stop, status and chunk transfer over HTTP: the routes.

    GET  /                 status
    GET  /timeline         what the node did when
    POST /reach            try whether the node reaches another one
    POST /init             configure a secondary for a session
    POST /join             ask a starter for a place in its ring
    POST /measure          time what a node would do in one, or a link to another node
    PUT  /release          give up a session that never ran
    PUT  /stop             end the node
    HEAD /chunks/<digest>  how many bytes of a chunk the node holds (X-Held-Bytes)
    PUT  /chunks/<digest>  append to it (Content-Range)

Bodies are JSON, but for the chunk's bytes. An error has the body {"error": reason}, and beside it a "code" where the
other side can decide by it; see `mdi.control.protocol`. Which clients are authorized is decided before, in
`mdi.control.auth`.
"""

import contextlib
import json
import logging
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from typing import Any, Protocol, TypeVar

import cherrypy

from mdi.checkpoint.cache import ChunkCache
from mdi.control.application import application_with
from mdi.control.attempts import MAX_ATTEMPTS, attempt, check_target
from mdi.control.auth import STREAMED, AuthMiddleware
from mdi.control.hosts import LOCAL_ADDRESS, OwnHosts
from mdi.control.join import JoinRequest
from mdi.control.measurement import Measured, MeasureRequest, measured_to_json, request_from_json
from mdi.control.protocol import HELD_BYTES, JSON, MAX_JSON_BYTES, UPLOAD_BYTES, NodeBusy, code_of
from mdi.control.reach import Target
from mdi.control.server import ServingThread, WebServer, marking
from mdi.control.session import SessionSpec
from mdi.control.status import InitAnswer, NodeStatus, init_answer_to_json
from mdi.documents import parse_json
from mdi.errors import ControlError, MdiError
from mdi.net.access import THIS_MACHINE, Access, is_loopback, plain_address
from mdi.net.refusals import RefusalLog
from mdi.net.sockets import listen
from mdi.net.timeouts import DEFAULT_TIMEOUTS, Timeouts

log = logging.getLogger(__name__)
T = TypeVar("T")

_STATUSES = {"busy": 409, "storage": 507}  # by code; any other error has that of its route
_CONTENT_RANGE = re.compile(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18})")


class Node(Protocol):
    """What the routes ask of a node. All calls come from HTTP threads; a `ControlError` refuses what is asked."""

    @property
    def cache(self) -> ChunkCache | None: ...

    @property
    def n_steps(self) -> int:
        """Grows for as long as the node's main thread gets on."""

    def status(self) -> NodeStatus: ...

    def request_init(self, spec: SessionSpec) -> "Future[InitAnswer]": ...

    def request_measurement(self, request: MeasureRequest) -> "Future[Measured]": ...

    def request_join(self, request: JoinRequest, addr: str) -> str:
        """What the node that asks from `addr` is called in this starter's ring. Takes seconds."""

    def timeline(self) -> dict[str, Any]: ...

    def request_release(self, run: int) -> None: ...

    def request_stop(self, run: int | None) -> None: ...


class ControlServer(ServingThread):
    """The HTTP side of one node."""

    def __init__(
        self,
        addr: str,
        port: int,
        node: Node,
        access: Access = THIS_MACHINE,
        timeouts: Timeouts = DEFAULT_TIMEOUTS,
        refusals: RefusalLog | None = None,
        known_as: Sequence[str] = (),
    ) -> None:
        """
        Args:
            refusals: the node's, if it has a ring port too.
            known_as: `address:port` under which others call the node where something in between forwards to it.

        Raises `ConfigError` where the port is taken or the address is not one of this machine.
        """
        with listen(addr, port) as probe:  # for its errors: cheroot's lack the reason
            local = probe.getsockname()[0]
        _warn_if_unauthenticated(addr, access)
        self._closing = threading.Event()
        refusals = refusals or RefusalLog()
        application = marking(application_of(node, self._closing, timeouts, access))
        middleware = AuthMiddleware(application, access, local, UPLOAD_BYTES, OwnHosts(addr, known_as), refusals)
        server = WebServer(addr, port, middleware, 2 * UPLOAD_BYTES, access, timeouts, refusals)
        super().__init__(server, "http-server")

    def close(self) -> None:
        """End; answers that go on for as long as a node loads end at once."""
        self._closing.set()
        super().close()


def _warn_if_unauthenticated(addr: str, access: Access) -> None:
    if access.keys is None and not is_loopback(addr):
        clients = "everyone" if access.addrs is None else f"whoever calls from {', '.join(access.addrs)}"
        log.warning("this ring has no key: %s may use this node, see docs/running.md", clients)


def application_of(
    node: Node, closing: threading.Event, timeouts: Timeouts = DEFAULT_TIMEOUTS, access: Access = THIS_MACHINE
) -> cherrypy.Application:
    """The routes as a WSGI application; what they still have to answer ends when `closing` is set."""
    routes = _Routes(node, closing, timeouts, access)
    return application_with(routes, lambda status, message: {"error": message}, log)


class _Routes:
    """One exposed method for each path. Called from HTTP threads."""

    def __init__(self, node: Node, closing: threading.Event, timeouts: Timeouts, access: Access) -> None:
        self._node, self._closing, self._timeouts, self._access = node, closing, timeouts, access
        self._attempts = threading.BoundedSemaphore(MAX_ATTEMPTS)

    @cherrypy.expose  # type: ignore[untyped-decorator]
    @cherrypy.tools.allow(methods=["GET"])  # type: ignore[untyped-decorator]
    def index(self) -> bytes:
        if cherrypy.request.path_info.strip("/"):  # `/index`
            raise cherrypy.NotFound()
        caller, (called, _) = cherrypy.request.remote.ip, cherrypy.request.wsgi_environ[LOCAL_ADDRESS]
        ends = {"caller": plain_address(caller), "called": plain_address(called)}
        return _json(self._node.status().to_json() | ends)

    @cherrypy.expose  # type: ignore[untyped-decorator]
    @cherrypy.tools.allow(methods=["GET"])  # type: ignore[untyped-decorator]
    def timeline(self) -> bytes:
        return _json(self._node.timeline())

    @cherrypy.expose  # type: ignore[untyped-decorator]
    @cherrypy.tools.allow(methods=["POST"])  # type: ignore[untyped-decorator]
    def reach(self) -> bytes:
        try:
            target = Target.from_json(_read_json())
            check_target(target, cherrypy.request.remote.ip, self._access)
            with self._attempting():
                return _json(attempt(target, self._access, self._timeouts).to_json())
        except ControlError as exc:
            return _refused(exc, 400)

    @contextlib.contextmanager
    def _attempting(self) -> Iterator[None]:
        """The node calls another one inside the block. Raises `NodeBusy` where it calls several already."""
        if not self._attempts.acquire(blocking=False):
            raise NodeBusy(f"{MAX_ATTEMPTS} attempts are under way")
        try:
            yield
        finally:
            self._attempts.release()

    @cherrypy.expose  # type: ignore[untyped-decorator]
    @cherrypy.tools.allow(methods=["POST"])  # type: ignore[untyped-decorator]
    def join(self) -> bytes:
        try:
            request = JoinRequest.from_json(_read_json())
            with self._attempting():
                name = self._node.request_join(request, plain_address(cherrypy.request.remote.ip))
        except ControlError as exc:
            return _refused(exc, 400)
        return _json({"name": name})

    @cherrypy.expose  # type: ignore[untyped-decorator]
    @cherrypy.tools.allow(methods=["POST"])  # type: ignore[untyped-decorator]
    def init(self) -> Iterator[bytes] | bytes:
        return self._long(lambda: self._node.request_init(SessionSpec.from_json(_read_json())), init_answer_to_json)

    @cherrypy.expose  # type: ignore[untyped-decorator]
    @cherrypy.tools.allow(methods=["POST"])  # type: ignore[untyped-decorator]
    def measure(self) -> Iterator[bytes] | bytes:
        return self._long(lambda: self._node.request_measurement(request_from_json(_read_json())), measured_to_json)

    def _long(
        self, request: Callable[[], "Future[T]"], to_json: Callable[[T], dict[str, Any]]
    ) -> Iterator[bytes] | bytes:
        """The answer to what the main thread takes its time for; a refusal of it has a status line of its own."""
        try:
            answer = request()
            self._raise_if_refused(answer)
        except ControlError as exc:
            return _refused(exc, 400)
        cherrypy.response.headers["Content-Type"] = JSON
        cherrypy.request.wsgi_environ[STREAMED].set()
        return self._wait_for(answer, to_json)

    def _raise_if_refused(self, answer: "Future[T]") -> None:
        """Give the node a moment to refuse, so that the refusal has a status of its own; raises `NodeBusy`.

        A node that is loading weights takes longer to decide. By then the status line was sent, and the body tells.
        """
        with contextlib.suppress(FutureTimeout):
            error = answer.exception(timeout=self._timeouts.heartbeat_s)
            if isinstance(error, NodeBusy):
                raise error

    def _wait_for(self, answer: "Future[T]", to_json: Callable[[T], dict[str, Any]]) -> Iterator[bytes]:
        """Blanks while the node gets on with its work, then the JSON answer.

        Loading can take minutes, and the client's timeout bounds a silence: each blank is a sign of life. It is one of
        the main thread, which loads: this thread would go on for ever beside one that is stuck. JSON allows whitespace
        in front of a value, so the body as a whole is still plain JSON, for curl too.
        """
        n_steps, stalled_s = self._node.n_steps, self._timeouts.deadline_s(self._timeouts.stall_s)
        while not self._closing.is_set():
            try:
                yield json.dumps(to_json(answer.result(timeout=self._timeouts.heartbeat_s))).encode()
                return
            except FutureTimeout:
                if (now := self._node.n_steps) != n_steps:
                    n_steps, stalled_s = now, self._timeouts.deadline_s(self._timeouts.stall_s)
                    yield b" "
                elif not self._timeouts.left_s(stalled_s):
                    yield _late_error(NodeBusy(f"the node has made no progress for {self._timeouts.stall_s:g} s"))
                    return
            except MdiError as exc:  # the status line was sent long ago, so the error goes into the body
                yield _late_error(exc)
                return
        yield _late_error(NodeBusy("the node ends"))

    @cherrypy.expose  # type: ignore[untyped-decorator]
    @cherrypy.tools.allow(methods=["PUT"])  # type: ignore[untyped-decorator]
    def release(self) -> bytes:
        body = _read_json()
        if not isinstance(body, dict) or type(body.get("run")) is not int:
            raise cherrypy.HTTPError(400, 'expected {"run": number}')
        return _answered(lambda: self._node.request_release(body["run"]), {"released": body["run"]})

    @cherrypy.expose  # type: ignore[untyped-decorator]
    @cherrypy.tools.allow(methods=["PUT"])  # type: ignore[untyped-decorator]
    def stop(self) -> bytes:
        body = _read_json() if _body_length() else {}
        run = body.get("run") if isinstance(body, dict) else body
        if run is not None and type(run) is not int:
            raise cherrypy.HTTPError(400, 'expected nothing, or {"run": number}')
        return _answered(lambda: self._node.request_stop(run), {"stopping": True})

    @cherrypy.expose  # type: ignore[untyped-decorator]
    @cherrypy.tools.allow(methods=["HEAD", "PUT"])  # type: ignore[untyped-decorator]
    def chunks(self, digest: str) -> bytes:
        if cherrypy.request.method == "PUT":
            return self._append(digest)
        try:
            cherrypy.response.headers[HELD_BYTES] = str(self._cache().held_bytes(digest))
        except MdiError as exc:
            return _refused(exc, 409)
        return b""

    def _append(self, digest: str) -> bytes:
        headers = cherrypy.request.headers
        match = _CONTENT_RANGE.fullmatch(headers.get("Content-Range", ""))
        length = _body_length()
        if not match or length != int(match[2]) - int(match[1]) + 1 or length > UPLOAD_BYTES:
            raise cherrypy.HTTPError(400, "expected Content-Range: bytes first-last/total and a body of that length")
        start, stop, total_bytes = int(match[1]), int(match[2]) + 1, int(match[3])
        try:
            held = self._cache().append(digest, start, stop, total_bytes, cherrypy.request.rfile)
        except MdiError as exc:
            return _refused(exc, 409)
        return _json({"held_bytes": held})

    def _cache(self) -> ChunkCache:
        if self._node.cache is None:
            raise ControlError("this node takes no chunks")
        return self._node.cache


def _late_error(error: MdiError) -> bytes:
    """An error whose status line was sent long ago."""
    return json.dumps(_error_body(error)).encode()


def _answered(action: Callable[[], None], value: Any) -> bytes:
    """What a route answers once the node has taken a request, or its refusal."""
    try:
        action()
    except ControlError as exc:
        return _refused(exc, 409)
    return _json(value)


def _refused(error: MdiError, status: int) -> bytes:
    """The answer that carries an error of the node; `status` where the kind of the error has none of its own."""
    body = _error_body(error)
    cherrypy.response.status = _STATUSES.get(body.get("code", ""), status)
    return _json(body)


def _error_body(error: MdiError) -> dict[str, str]:
    code = code_of(error)
    return {"error": str(error)} | ({} if code is None else {"code": code})


def _body_length() -> int:
    if cherrypy.request.wsgi_environ.get("wsgi.input_terminated"):  # of a length that shows only when it was read
        raise cherrypy.HTTPError(400, "expected a body of known length, not Transfer-Encoding: chunked")
    text = cherrypy.request.headers.get("Content-Length", "0")
    if not text.isdecimal():
        raise cherrypy.HTTPError(400, "Content-Length is not a number")
    return int(text)


def _read_json() -> Any:
    length = _body_length()
    if length > MAX_JSON_BYTES:
        while cherrypy.request.rfile.read(MAX_JSON_BYTES):
            pass  # closing with unread bytes makes the kernel send RST, which can discard our answer at the client
        raise cherrypy.HTTPError(413, f"a body of {length} bytes; {MAX_JSON_BYTES} are allowed")
    try:
        return parse_json(cherrypy.request.rfile.read(length), "the body", ControlError)
    except ControlError as exc:
        raise cherrypy.HTTPError(400, "the body is not JSON") from exc


def _json(value: Any) -> bytes:
    cherrypy.response.headers["Content-Type"] = JSON
    return json.dumps(value).encode()
