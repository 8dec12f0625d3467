"""A node as its HTTP routes see it, and a session to ask of it."""

import hashlib
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from mdi.checkpoint.cache import ChunkCache
from mdi.control.session import SessionSpec
from mdi.control.status import InitAnswer, NodeStatus
from mdi.ids import Rank
from mdi.model.span import Span
from mdi.net.sockets import Peer
from support.statuses import IDLE

HOST = "127.0.0.1"
CHUNK = bytes(range(256)) * 20
DIGEST = hashlib.sha256(CHUNK).hexdigest()


def sha256_of(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


class FakeNode:
    """What the routes see of a node; records what it is asked."""

    def __init__(self, cache: ChunkCache | None = None) -> None:
        self.cache = cache
        self.answer: Future[InitAnswer] = Future()
        self.refusal: Exception | None = None
        self.asked: list[object] = []

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
    quantize="int8",
    peer_timeout_s=5.0,
    timeline=False,
    nodes_on_host=3,
    predecessor=Peer("starter", "::1", 5088),
    successor=Peer("secondary 1", "box.local", 5092),
)
