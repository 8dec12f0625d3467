"""A node as its HTTP routes see it, a session to ask of it, and raw requests and answers."""

import contextlib
import hashlib
import http.client
import itertools
import json
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from mdi.checkpoint.cache import ChunkCache
from mdi.control.client import ControlClient
from mdi.control.join import JoinRequest
from mdi.control.measurement import LayerTime, Measured, MeasureRequest, StageRequest, StageTimes
from mdi.control.routes import ControlServer
from mdi.control.session import SessionSpec
from mdi.control.status import InitAnswer, NodeStatus
from mdi.ids import Rank
from mdi.model.span import Span
from mdi.net.sockets import Peer, listen
from support.statuses import IDLE

HOST = "127.0.0.1"
ENDS = {"caller": HOST, "called": HOST}  # of a call, as a status tells them
Answer = tuple[int, str, bytes]
CHUNK = bytes(range(256)) * 20
DIGEST = hashlib.sha256(CHUNK).hexdigest()


def sha256_of(path: Path, advance: object = None) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


class FakeNode:
    """What the routes see of a node; records what it is asked."""

    def __init__(self, cache: ChunkCache | None = None) -> None:
        self.cache = cache
        self.answer: Future[InitAnswer] = Future()
        self.measured: Future[Measured] = Future()
        self.refusal: Exception | None = None
        self.asked: list[object] = []
        self.gets_on = True
        self._steps = itertools.count(1)

    @property
    def n_steps(self) -> int:
        return next(self._steps) if self.gets_on else 0

    def status(self) -> NodeStatus:
        if self.refusal is not None:
            raise self._refusal()
        return IDLE

    def timeline(self) -> dict[str, Any]:
        return {"now_s": 1.5, "spans": []}

    def request_init(self, spec: SessionSpec) -> "Future[InitAnswer]":
        self.asked.append(spec)
        if self.refusal is not None:
            raise self._refusal()
        return self.answer

    def request_measurement(self, request: MeasureRequest) -> "Future[Measured]":
        self.asked.append(request)
        if self.refusal is not None:
            raise self._refusal()
        return self.measured

    def request_join(self, request: JoinRequest, addr: str) -> str:
        self.asked.append((request, addr))
        if self.refusal is not None:
            raise self._refusal()
        return "secondary 5"

    def _refusal(self) -> Exception:
        """A fresh exception: its traceback holds the connection, and the node outlives the request."""
        return type(self.refusal)(*self.refusal.args)  # type: ignore[union-attr]

    def request_release(self, run: int) -> None:
        self.asked.append(run)

    def request_stop(self, run: int | None) -> None:
        self.asked.append("stop")


def answer_of(body: bytes, *headers: str, status: str = "200 OK") -> bytes:
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", "Connection: close", *headers, "", ""]
    return "\r\n".join(lines).encode() + body


SPEC = SessionSpec(
    run=2**63 + 5,
    epoch=2**63 + 5,
    rank=Rank(1),
    n_nodes=3,
    names=["starter", "secondary 0", "secondary 1"],
    starter=Peer("starter", "127.0.0.1", 8088),
    model="org/tiny",
    model_digest="ab" * 32,
    config={"n_embd": 64, "n_layer": 6, "name": "tiny", "rope_adjustments": None},
    span=Span(2, 4),
    chunk_digest="",
    n_slots=3,
    context=128,
    max_rows=512,
    wire_dtype="bfloat16",
    dtype="float32",
    quantize="int8",
    kv_dtype=None,
    peer_timeout_s=5.0,
    timeline=False,
    nodes_on_host=3,
    predecessor=Peer("starter", "::1", 5088),
    successor=Peer("secondary 1", "box.local", 5092),
)


STAGE_REQUEST = StageRequest(
    config=SPEC.config,
    stored_dtype="bfloat16",
    stored="none",
    dtype=None,
    quantize="int8",
    kv_dtype="float16",
    has_head=True,
    nodes_on_host=2,
)
STAGE_TIMES = StageTimes(
    device="cpu",
    dtype="float32",
    mode="none",
    kv_dtype="int8",
    threads=2,
    has_kernels=True,
    layers=(LayerTime(1, 128, 1e-3), LayerTime(128, 128, 0.02)),
    head=(),
    message_s=1e-5,
    frame_s=1e-4,
    disk_read_bytes_s=1e9,
    disk_write_bytes_s=None,
    free_memory_bytes=2**31,
    memory_limit_bytes=2**30,
)


def type_of(method: str, path: str) -> dict[str, str]:
    """The header with the type that the body of a request to `path` has to have."""
    kind = "application/octet-stream" if path.startswith("/chunks/") else "application/json"
    return {"Content-Type": kind} if method in ("PUT", "POST") else {}


def raw_head(server: ControlServer, request: str) -> str:
    """The lines that every request has, such as `PUT /stop`; others and a blank line are to follow."""
    lines = [f"{request} HTTP/1.1", f"Host: {HOST}:{server.port}"]
    lines += [f"{name}: {value}" for name, value in type_of(*request.split(" ")).items()]
    return "\r\n".join([*lines, ""])


def ask(
    server: ControlServer, method: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None
) -> Answer:
    """Status, content type and body of the answer to one request."""
    with contextlib.closing(http.client.HTTPConnection(HOST, server.port, timeout=10)) as connection:
        connection.request(method, path, body, type_of(method, path) | (headers or {}))
        response = connection.getresponse()
        return response.status, response.headers.get("Content-Type", ""), response.read()


def ask_raw(server: ControlServer, request: bytes) -> bytes:
    """What the server sends before it waits for more, or closes."""
    with socket.create_connection((HOST, server.port), timeout=10) as sock:
        sock.sendall(request)
        return sock.recv(10_000)


def reason_of(answer: Answer, status: int) -> str:
    """The reason in an error's body: JSON, and one line."""
    assert answer[0] == status
    assert answer[1].startswith("application/json")
    error = json.loads(answer[2])
    assert {"error"} <= set(error) <= {"error", "code", "version"}
    assert "\n" not in error["error"]
    return str(error["error"])


@contextlib.contextmanager
def answering(*answers: bytes) -> Iterator[ControlClient]:
    """A client of a server that gives these answers, one a connection, whatever it is asked."""
    with listen(HOST, 0) as listener:
        listener.settimeout(10)

        def serve() -> None:
            for answer in answers:
                sock, _ = listener.accept()
                with sock, sock.makefile("rb") as file:
                    length = 0
                    while (line := file.readline()) not in (b"\r\n", b""):
                        if line.lower().startswith(b"content-length:"):
                            length = int(line.split(b":")[1])
                    file.read(length)
                    sock.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        yield ControlClient("secondary 0", HOST, listener.getsockname()[1])
        thread.join()
