"""The client's side of the routes in `mdi.control.routes`."""

import re
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

from mdi.control.calls import Caller, Request, json_request
from mdi.control.exchange import Bounds
from mdi.control.join import JoinRequest, name_from_json
from mdi.control.measurement import Measured, MeasureRequest, measured_from_json, request_to_json
from mdi.control.protocol import (
    BYTES,
    HELD_BYTES,
    MAX_INIT_BYTES,
    MAX_STATUS_BYTES,
    MAX_TIMELINE_BYTES,
    UPLOAD_BYTES,
    NotANode,
)
from mdi.control.reach import Reach, Target
from mdi.control.session import SessionSpec
from mdi.control.status import InitAnswer, NodeStatus, init_answer_from_json
from mdi.errors import ControlError
from mdi.files import storage_error
from mdi.net.access import THIS_MACHINE, Access
from mdi.net.timeouts import DEFAULT_TIMEOUTS, Timeouts
from mdi.strings import one_line

T = TypeVar("T")

_BYTE_COUNT = re.compile(r"[0-9]{1,18}")
_MAX_BYTES = 10**18


class ControlClient:
    """One node as seen from another one. Every call ends, and every failure is a `ControlError` that names the node."""

    def __init__(
        self,
        name: str,
        addr: str,
        port: int,
        access: Access = THIS_MACHINE,
        timeouts: Timeouts = DEFAULT_TIMEOUTS,
        *,
        by_address: bool = False,
    ) -> None:
        """`by_address`: see `Caller`."""
        self._caller, self._timeouts = Caller(name, addr, port, access, timeouts, by_address=by_address), timeouts
        self.name, self.url = name, self._caller.url

    def status(self) -> NodeStatus:
        """The status of the node."""
        bounds = self._bounds(silence_s=self._timeouts.status_s)
        return self._checked(NodeStatus.from_json, self._caller.call(Request("GET", "/"), bounds))

    def timeline(self) -> dict[str, Any]:
        """What the node did when, in its last run; see `mdi.trace`."""
        bounds = self._bounds(MAX_TIMELINE_BYTES, within_s=self._timeouts.upload_s)
        return self._caller.call(Request("GET", "/timeline"), bounds)

    def init(
        self, spec: SessionSpec, answer_timeout_s: float | None = None, within_s: float | None = None
    ) -> InitAnswer:
        """Configure the node; returns its answer once it is ready, or what it lacks.

        While it loads it sends a sign of life every second, so a lost node is noticed.

        Args:
            answer_timeout_s: how long it may be silent, if less than usual.
            within_s: how long the whole may take, signs of life or not; an hour if not given.
        """
        within_s = self._timeouts.load_s if within_s is None else within_s
        bounds = self._bounds(MAX_INIT_BYTES, answer_timeout_s, within_s)
        request = json_request("POST", "/init", spec.to_json())
        return self._checked(init_answer_from_json, self._caller.call(request, bounds))

    def reach(self, target: Target) -> Reach:
        """Whether the node reaches another one, which it tries now."""
        request = json_request("POST", "/reach", asdict(target))
        return self._checked(Reach.from_json, self._caller.call(request, self._bounds()))

    def join(self, request: JoinRequest) -> str:
        """What this node is called in the ring of the starter that is asked, once it takes part."""
        body = json_request("POST", "/join", request.to_json())
        return self._checked(name_from_json, self._caller.call(body, self._bounds()))

    def measure(self, request: MeasureRequest) -> Measured:
        """What the node has measured. Meanwhile it sends signs of life, as for `init`."""
        bounds = self._bounds(MAX_INIT_BYTES, within_s=self._timeouts.measure_s)
        body = json_request("POST", "/measure", request_to_json(request))
        return self._checked(measured_from_json, self._caller.call(body, bounds))

    def release(self, run: int) -> None:
        """Give up a session that never ran."""
        self._caller.call(json_request("PUT", "/release", {"run": run}), self._bounds())

    def stop(self, run: int | None = None) -> None:
        """End the node; with a `run`, only if it does not serve another one by now."""
        self._caller.call(json_request("PUT", "/stop", {} if run is None else {"run": run}), self._bounds())

    def send_chunk(self, path: Path, digest: str, advance: Callable[[int], object] = lambda n_bytes: None) -> None:
        """Send the part of a chunk that the node does not hold yet; `advance` gets the bytes of each step."""
        url = f"/chunks/{digest}"
        try:
            total_bytes = path.stat().st_size
            answer = self._caller.exchange(Request("HEAD", url), self._bounds())
            held = self._held_bytes(answer.headers.get(HELD_BYTES, 0), 0, _MAX_BYTES)
            if held > total_bytes:  # the rest of another file with the same content: it begins anew
                held = 0
            advance(held)
            with path.open("rb") as file:
                while held < total_bytes:
                    file.seek(held)
                    before, held = held, self._send_piece(url, held, file.read(UPLOAD_BYTES), total_bytes)
                    advance(held - before)
        except OSError as exc:
            raise storage_error(path, exc) from exc

    def _send_piece(self, url: str, held: int, block: bytes, total_bytes: int) -> int:
        """Append to a chunk; returns how much of it the node holds then."""
        content_range = f"bytes {held}-{held + len(block) - 1}/{total_bytes}"
        request = Request("PUT", url, block, {"Content-Range": content_range, "Content-Type": BYTES})
        answer = self._caller.call(request, self._bounds(within_s=self._timeouts.upload_s))
        return self._held_bytes(answer.get("held_bytes"), held + 1, total_bytes)

    def _held_bytes(self, value: object, least: int, most: int) -> int:
        text = str(value)
        if not _BYTE_COUNT.fullmatch(text) or not least <= int(text) <= most:
            raise NotANode(f"{self._caller} says it holds {one_line(text, 40)} bytes of a chunk, not {least} to {most}")
        return int(text)

    def _bounds(
        self, max_bytes: int = MAX_STATUS_BYTES, silence_s: float | None = None, within_s: float | None = None
    ) -> Bounds:
        silence_s = self._timeouts.answer_s if silence_s is None else silence_s
        if within_s is None:
            within_s = self._timeouts.connect_s + 2 * silence_s  # for a nonce, and for the answer
        return Bounds(silence_s, self._timeouts.deadline_s(within_s), max_bytes)

    def _checked(self, parse: Callable[[Any], T], answer: dict[str, Any]) -> T:
        try:
            return parse(answer)
        except ControlError as exc:
            raise NotANode(f"{self._caller}: {exc}") from exc
