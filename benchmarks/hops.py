"""What a hop costs outside the stages: two real links in two processes, on two cores.

A message goes to the other process and comes back as it is: tensor to bytes, frame and checksum, socket, reader
thread, inbox, bytes to tensor. Half the round trip is one hop. With a key a MAC takes the place of the checksum.

The processor time of a hop, and how often a thread waits in it, say more than its duration where other programs run.

`python -m benchmarks.hops` is one of the two processes: it answers JSON lines.
"""

import contextlib
import resource
import statistics
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.workers import Worker, answer, python_module, requests
from mdi.inbox import Inbox
from mdi.model.tensors import from_buffer, to_buffer
from mdi.net.access import THIS_MACHINE, Access
from mdi.net.keys import Key, Keys
from mdi.net.sockets import Peer, listen
from mdi.ring.config import LinkConfig
from mdi.ring.link import Link, LinkDown, PredecessorConnected, Received
from mdi.ring.messages import Activation, Goodbye, Hello, Proof
from mdi.ring.wire import Decoder, Encoder, Session
from mdi.segments import Segment

WARM_UP = 20
MOST_DECODE_ROWS = 32  # larger messages are the prompt of one sample
CONTEXT = 1024


# ---- the parent's side


@contextlib.contextmanager
def pair(cores: Sequence[int], scratch: Path, n_embd: int, key: str = "") -> Iterator[Worker]:
    """Two linked processes; yields the one that answers `{"n_rows", "n_trips"}` with what a hop takes."""
    log = scratch / "logs"
    with contextlib.ExitStack() as stack:
        near = stack.enter_context(Worker(python_module("hops"), cores[:1], log / "hop_near.log"))
        far = stack.enter_context(Worker(python_module("hops"), cores[1:2], log / "hop_far.log"))
        ports = [worker.hear()["port"] for worker in (near, far)]
        for worker, port, echo in ((near, ports[1], False), (far, ports[0], True)):
            worker.tell({"port": port, "echo": echo, "n_embd": n_embd, "key": key})
        near.hear()
        yield near


def microseconds_per_frame(n_rows: int, n_embd: int, session_key: bytes | None, n_frames: int) -> float:
    """Median to encode and to decode a message, without threads and sockets; with a key both sides make a MAC."""
    session = _session(n_embd)
    encoder, decoder = Encoder(session), Decoder(session)
    for greeting in (Hello({}), Proof()):
        _decode(decoder, encoder.encode(greeting))
    encoder.open(session_key)
    decoder.open(session_key)
    message = Activation(segments_of(n_rows), memoryview(bytes(n_rows * session.row_bytes)))
    seconds = []
    for _ in range(WARM_UP + n_frames):
        begin = time.perf_counter()
        _decode(decoder, encoder.encode(message))
        seconds.append(time.perf_counter() - begin)
    return 1e6 * statistics.median(seconds[WARM_UP:])


def _decode(decoder: Decoder, buffers: Sequence[bytes | memoryview]) -> None:
    for part in buffers:
        buffer, at = memoryview(part), 0
        while at < len(buffer):
            room = decoder.buffer()[: len(buffer) - at]
            room[:] = buffer[at : at + len(room)]
            at += len(room)
            decoder.received(len(room))


def _session(n_embd: int) -> Session:
    return Session(1, n_embd, "float32", MOST_DECODE_ROWS, CONTEXT, CONTEXT)


# ---- the child's side


def segments_of(n_rows: int) -> tuple[Segment, ...]:
    """A message of `n_rows`: the next position of so many samples, or a prompt."""
    if n_rows <= MOST_DECODE_ROWS:
        return tuple(Segment(slot, CONTEXT // 2, 1, 1) for slot in range(n_rows))
    return (Segment(0, 0, n_rows, n_rows),)


def cost_of_a_hop(link: Link, inbox: Inbox, n_rows: int, n_trips: int) -> dict[str, float]:
    """Microseconds: median and 95th percentile over `n_trips` round trips, halved, and the processor time of this
    process, which sends once and receives once in each; and how often one of its threads waited meanwhile.
    """
    segments, rows = segments_of(n_rows), torch.zeros(n_rows, link.session.n_embd)
    seconds = []
    for trip in range(WARM_UP + n_trips):
        if trip == WARM_UP:
            before = resource.getrusage(resource.RUSAGE_SELF)
        begin = time.perf_counter()
        link.send(Activation(segments, to_buffer(rows, link.session.wire_dtype)))
        rows = _rows_of(link, inbox)
        seconds.append(time.perf_counter() - begin)
    after = resource.getrusage(resource.RUSAGE_SELF)
    hops = sorted(1e6 * s / 2 for s in seconds[WARM_UP:])
    cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {
        "median": statistics.median(hops),
        "p95": hops[int(0.95 * (len(hops) - 1))],
        "cpu": 1e6 * cpu_s / n_trips,
        "waits": (after.ru_nvcsw - before.ru_nvcsw) / n_trips,
    }


def _rows_of(link: Link, inbox: Inbox) -> torch.Tensor:
    event = inbox.get(60.0)
    if isinstance(event, LinkDown):
        raise event.error
    assert isinstance(event, Received) and isinstance(event.message, Activation)
    return from_buffer(event.message.data, link.session.wire_dtype, link.session.n_embd)


def echo(link: Link, inbox: Inbox) -> None:
    """Send back what comes, until the other end leaves."""
    while isinstance(event := inbox.get(), Received) and isinstance(message := event.message, Activation):
        rows = from_buffer(message.data, link.session.wire_dtype, link.session.n_embd)
        link.send(Activation(message.segments, to_buffer(rows, link.session.wire_dtype)))


def serve(link: Link, inbox: Inbox) -> None:
    for request in requests():
        answer(cost_of_a_hop(link, inbox, request["n_rows"], request["n_trips"]))
    link.send(Goodbye())


def main() -> None:
    with contextlib.closing(listen("127.0.0.1", 0)) as listener:
        answer({"port": listener.getsockname()[1]})
        request: dict[str, Any] = next(requests())
        inbox = Inbox()
        other = Peer("the other end", "127.0.0.1", request["port"])
        link = Link(
            LinkConfig(
                session=_session(request["n_embd"]),
                predecessor=other,
                successor=other,
                expected={},
                hello={},
                returning=False,
                capacity=4,
                peer_timeout_s=60.0,
            ),
            listener=listener,
            post=inbox.post,
            access=Access(Keys(Key(request["key"], "the benchmark"))) if request["key"] else THIS_MACHINE,
        )
        with contextlib.closing(link):
            link.accept()
            link.connect()
            assert isinstance(inbox.get(60.0), PredecessorConnected)
            if request["echo"]:
                echo(link, inbox)
            else:
                answer({"ready": True})
                serve(link, inbox)


if __name__ == "__main__":
    main()
