"""Answers of every kind with values that no node sends: a value that is used, or an error of one line."""

import json
import random
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from fuzz.mutations import change_bytes, change_json
from mdi.control.client import ControlClient
from mdi.control.status import NeedsChunk, NodeStatus, Ready, init_answer_to_json
from mdi.errors import ControlError
from mdi.net.access import Access
from mdi.net.timeouts import Timeouts
from mdi.trace import NodeTimeline, Timeline, from_json
from support.control import CHUNK, DIGEST, SPEC, answer_of
from support.impostor import Impostor, client_of
from support.statuses import IDLE, READY, STARTING

N_ANSWERS = 1000
PATIENT = Timeouts(connect_s=60.0, status_s=60.0, answer_s=60.0)
LONGEST = 1300  # characters of an error


def timeline_seed() -> bytes:
    timeline = Timeline()
    timeline.begin(on=True)
    for rows in range(3):
        timeline.add("decode", 0.5, rows, rows, "1.0.5")
    return json.dumps(timeline.to_json()).encode()


def as_bytes(value: object) -> bytes:
    return json.dumps(value).encode()


STATUSES = [as_bytes(status.to_json()) for status in (IDLE, READY.status, STARTING)]
INITS = [as_bytes(init_answer_to_json(answer)) for answer in (READY, NeedsChunk(5))]
ERRORS = [as_bytes({"error": "the reason", "code": "busy"})]


def status_of(client: ControlClient, chunk: Path) -> object:
    status = client.status()
    assert NodeStatus.from_json(json.loads(json.dumps(status.to_json()))) == status
    return status


def init_of(client: ControlClient, chunk: Path) -> object:
    answer = client.init(SPEC)
    assert isinstance(answer, Ready | NeedsChunk)
    return answer


def timeline_of(client: ControlClient, chunk: Path) -> object:
    timeline = from_json(client.name, client.timeline(), 1.0, 2.0)
    assert isinstance(timeline, NodeTimeline)
    assert "NaN" not in repr(timeline)
    return timeline


def progress_of(client: ControlClient, chunk: Path) -> object:
    steps: list[int] = []
    client.send_chunk(chunk, DIGEST, steps.append)
    assert sum(steps) == len(CHUNK)
    return steps


KINDS: dict[str, tuple[Callable[[ControlClient, Path], object], list[bytes]]] = {
    "status": (status_of, STATUSES + ERRORS),
    "init": (init_of, INITS + ERRORS),
    "timeline": (timeline_of, [timeline_seed(), *ERRORS]),
    "chunk": (progress_of, [as_bytes({"held_bytes": len(CHUNK)}), *ERRORS]),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_thousand_odd_answers_are_values_or_errors_of_one_line(kind: str, tmp_path: Path) -> None:
    call, seeds = KINDS[kind]
    rng = random.Random(kind)
    chunk = tmp_path / "chunk.pth"
    chunk.write_bytes(CHUNK)

    def script(impostor: Impostor, sock: socket.socket) -> None:
        change = change_json if rng.random() < 0.9 else change_bytes
        body = change(rng.choice(seeds), rng) if rng.random() < 0.9 else rng.choice(seeds)
        status = rng.choice(["200 OK", "200 OK", "200 OK", "409 Conflict", "500 Oops"])
        held = body[:20].decode("latin-1").replace("\n", "").replace("\r", "") if kind == "chunk" else "0"
        impostor.send(sock, answer_of(body, f"X-Held-Bytes: {rng.choice(['0', held])}", status=status))

    errors: list[str] = []
    with client_of(script, Access(), PATIENT) as (client, _):
        for _ in range(N_ANSWERS):
            try:
                call(client, chunk)
            except ControlError as exc:
                errors.append(str(exc))
    assert 0 < len(errors) < N_ANSWERS
    assert [e for e in errors if not e.isprintable() or "secondary 0" not in e or len(e) > LONGEST] == []


def test_what_a_node_says_of_itself_is_printable() -> None:
    wild = IDLE.to_json() | {"last_error": "\x1b[2Jgone\ud800", "model": "a\nb", "device": "cpu\x07"}
    found = NodeStatus.from_json(wild)
    assert (found.last_error, found.model, found.device) == ("\\x1b[2Jgone\\ud800", "a b", "cpu\\x07")
    members = NodeStatus.from_json(STARTING.to_json() | {"members": ["\x1b", ""]})
    assert members.to_json()["members"] == ["\\x1b", ""]
