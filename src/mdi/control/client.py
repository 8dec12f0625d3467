"""The client's side of the routes in `mdi.control.routes`."""

import contextlib
import functools
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import requests
from urllib3.exceptions import HTTPError

from mdi.control.auth import SCHEME, Challenge
from mdi.control.protocol import UPLOAD_BYTES, NodeBusy
from mdi.control.session import SessionSpec
from mdi.control.status import InitAnswer, NodeStatus, init_answer_from_json
from mdi.errors import ControlError
from mdi.files import storage_error
from mdi.net.access import THIS_MACHINE, Access
from mdi.net.keys import Keys
from mdi.net.timeouts import DEFAULT_TIMEOUTS, Timeouts
from mdi.strings import one_line

T = TypeVar("T")

MAX_QUOTED_CHARACTERS = 1000  # of an error of another node
_BYTE_COUNT = re.compile(r"[0-9]{1,18}")
_MAX_BYTES = 10**18
SIGNING_ATTEMPTS = 3  # a busy node may have forgotten the nonce it gave us


class ControlClient:
    """One node as seen from another one. Every failure is a `ControlError` that names the node."""

    def __init__(
        self, name: str, addr: str, port: int, access: Access = THIS_MACHINE, timeouts: Timeouts = DEFAULT_TIMEOUTS
    ) -> None:
        self.name = name
        self._access, self._timeouts = access, timeouts
        scheme = "https" if access.tls else "http"
        self.url = f"{scheme}://{f'[{addr}]' if ':' in addr else addr}:{port}"

    def status(self) -> NodeStatus:
        """The status of the node."""
        return self._checked(NodeStatus.from_json, self._call("GET", "/", answer_timeout_s=self._timeouts.status_s))

    def timeline(self) -> dict[str, Any]:
        """What the node did when, in its last run; see `mdi.trace`."""
        return self._call("GET", "/timeline")

    def init(self, spec: SessionSpec, answer_timeout_s: float | None = None) -> InitAnswer:
        """Configure the node; returns its answer once it is ready, or what it lacks.

        While it loads it sends a sign of life every second, so a lost node is noticed.

        Args:
            answer_timeout_s: how long it may be silent, if less than usual.
        """
        answer = self._call("POST", "/init", answer_timeout_s=answer_timeout_s, json=spec.to_json())
        return self._checked(init_answer_from_json, answer)

    def release(self, run: int) -> None:
        """Give up a session that never ran."""
        self._call("PUT", "/release", json={"run": run})

    def stop(self, run: int | None = None) -> None:
        """End the node; with a `run`, only if it does not serve another one by now."""
        self._call("PUT", "/stop", json={} if run is None else {"run": run})

    def send_chunk(self, path: Path, digest: str, advance: Callable[[int], object] = lambda n_bytes: None) -> None:
        """Send the part of a chunk that the node does not hold yet; `advance` gets the bytes of each step."""
        url = f"/chunks/{digest}"
        try:
            total_bytes = path.stat().st_size
            held = self._held_bytes(self._request("HEAD", url).headers.get("X-Held-Bytes", 0), 0, _MAX_BYTES)
            if held > total_bytes:  # the rest of another file with the same content: it begins anew
                held = 0
            advance(held)
            with path.open("rb") as file:
                while held < total_bytes:
                    file.seek(held)
                    block = file.read(UPLOAD_BYTES)
                    headers = {"Content-Range": f"bytes {held}-{held + len(block) - 1}/{total_bytes}"}
                    answer = self._call("PUT", url, data=block, headers=headers)
                    before, held = held, self._held_bytes(answer.get("held_bytes"), held + 1, total_bytes)
                    advance(held - before)
        except OSError as exc:
            raise storage_error(path, exc) from exc

    def _held_bytes(self, value: object, least: int, most: int) -> int:
        text = str(value)
        if not _BYTE_COUNT.fullmatch(text) or not least <= int(text) <= most:
            claim = f"says it holds {one_line(text, 40)} bytes of a chunk, not {least} or more"
            raise ControlError(f"{self.name} at {self.url} {claim}")
        return int(text)

    def _checked(self, parse: Callable[[Any], T], answer: dict[str, Any]) -> T:
        try:
            return parse(answer)
        except ControlError as exc:
            raise ControlError(f"{self.name} at {self.url}: {exc}") from exc

    def _call(self, method: str, path: str, **arguments: Any) -> dict[str, Any]:
        try:
            answer = self._request(method, path, **arguments).json()
        except (ValueError, RecursionError) as exc:  # also an integer of 5000 digits, and 100 000 brackets
            raise ControlError(f"{self.name} at {self.url} answered something that is not JSON") from exc
        if not isinstance(answer, dict):
            raise ControlError(f"{self.name} at {self.url}: {_quote(answer)}")
        if "error" in answer:
            kind = NodeBusy if answer.get("retry") is True else ControlError
            raise kind(f"{self.name} at {self.url}: {_quote(answer['error'])}")
        return answer

    def _request(
        self, method: str, path: str, answer_timeout_s: float | None = None, **arguments: Any
    ) -> requests.Response:
        with self._session() as session:
            try:
                request = session.prepare_request(requests.Request(method, self.url + path, **arguments))
                timeouts = (self._timeouts.connect_s, answer_timeout_s or self._timeouts.answer_s)
                send = functools.partial(session.send, timeout=timeouts, allow_redirects=False)
                keys = self._access.keys
                response = send(request) if keys is None else self._send_signed(send, request, keys)
            except requests.exceptions.SSLError as exc:
                raise ControlError(f"{self.name} at {self.url} does not agree on TLS: {one_line(exc)}") from exc
            except requests.ConnectionError as exc:
                raise Unreachable(f"{self.name} at {self.url} cannot be reached") from exc
            except (requests.RequestException, HTTPError, UnicodeError) as exc:
                raise NoAnswer(f"{self.name} at {self.url} did not answer: {one_line(exc)}") from exc
        if not response.ok:
            kind = NodeBusy if response.status_code == 409 else ControlError
            raise kind(f"{self.name} at {self.url} refused: {_reason(response)}")
        return response

    @contextlib.contextmanager
    def _session(self) -> Iterator[requests.Session]:
        """A session for one request, whose connections are closed at its end.

        requests leaves that to the garbage collector, and the traceback of an error keeps the connection. It is closed
        from our side: `Connection: close` would leave the node's fixed port in TIME_WAIT.
        """
        with requests.Session() as session:
            session.trust_env = False  # a proxy of the environment does not know the nodes of a LAN
            if (tls := self._access.tls) is not None:
                session.verify, session.cert = str(tls.ca), (str(tls.certificate), str(tls.private_key))
            adapter = requests.adapters.HTTPAdapter()
            session.mount(self.url, adapter)
            try:
                yield session
            finally:
                pools = adapter.poolmanager.pools
                for key in list(pools.keys()):
                    pools[key].close()

    def _send_signed(
        self, send: Callable[..., requests.Response], request: requests.PreparedRequest, keys: Keys
    ) -> requests.Response:
        """Ask for a nonce, without the body; sign with it; check that the other side has the key too."""
        body = request.body or b""
        body = body.encode() if isinstance(body, str) else body
        answer = send(requests.Request("HEAD", f"{self.url}/", headers={"Authorization": SCHEME}).prepare())
        for _ in range(SIGNING_ATTEMPTS):
            challenge = Challenge.of(answer.headers.get("WWW-Authenticate", ""))
            if challenge is None:
                raise ControlError(f"{self.name} at {self.url} has no key, and this node has one")
            signature = challenge.sign(keys, str(request.method), request.path_url, body)
            request.headers["Authorization"] = signature
            answer = send(request)
            if challenge.answered(
                keys, answer.status_code, answer.content, answer.headers.get("Authentication-Info", "")
            ):
                return answer
            again = Challenge.of(answer.headers.get("WWW-Authenticate", ""))
            if again is None or not again.stale:
                break
        raise ControlError(f"{self.name} at {self.url} did not show that it has this ring's key: {_reason(answer)}")


class NoAnswer(ControlError):
    """The node was asked, and its answer did not come, or broke off."""


class Unreachable(NoAnswer):
    """Nobody answers at the node's address."""


def _quote(answer: object) -> str:
    """What a node sent, fit to stand in an error: it may be of any length."""
    return one_line(str(answer), MAX_QUOTED_CHARACTERS)


def _reason(response: requests.Response) -> str:
    try:
        return _quote(response.json()["error"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return f"HTTP {response.status_code}"
