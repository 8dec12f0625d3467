"""Chunks of weights are sent in pieces, and resumed."""

import shutil
import socket
from pathlib import Path

import pytest

from mdi.control.client import ControlClient
from mdi.control.protocol import NodeBusy
from mdi.control.routes import ControlServer
from mdi.errors import ControlError, StorageError
from support.control import CHUNK, DIGEST, HOST, Answer, FakeNode, answer_of, answering, ask, raw_head, reason_of


def put_chunk(
    server: ControlServer, content_range: str | None, body: bytes = b"x" * 10, digest: str = DIGEST
) -> Answer:
    headers = {} if content_range is None else {"Content-Range": content_range}
    return ask(server, "PUT", f"/chunks/{digest}", body, headers)


def test_a_chunk_is_sent_in_pieces(client: ControlClient, node: FakeNode, chunk: Path) -> None:
    steps: list[int] = []
    client.send_chunk(chunk, DIGEST, steps.append)
    assert steps == [0, *[1000] * 5, 120]
    assert node.cache is not None
    path = node.cache.find(DIGEST)
    assert path is not None
    assert path.read_bytes() == CHUNK


def test_a_chunk_is_resumed_where_it_broke_and_never_sent_twice(
    client: ControlClient, server: ControlServer, node: FakeNode, chunk: Path
) -> None:
    assert put_chunk(server, f"bytes 0-699/{len(CHUNK)}", CHUNK[:700])[2] == b'{"held_bytes": 700}'
    steps: list[int] = []
    client.send_chunk(chunk, DIGEST, steps.append)
    assert steps == [700, *[1000] * 4, 420]
    again: list[int] = []
    client.send_chunk(chunk, DIGEST, again.append)
    assert again == [len(CHUNK)]
    assert node.cache is not None
    assert node.cache.find(DIGEST) is not None


def test_a_piece_that_breaks_off_is_kept_and_resumed(
    server: ControlServer, client: ControlClient, node: FakeNode, chunk: Path
) -> None:
    request = f"{raw_head(server, f'PUT /chunks/{DIGEST}')}Content-Length: 1000\r\n"
    request += f"Content-Range: bytes 0-999/{len(CHUNK)}\r\n\r\n"
    with socket.create_connection((HOST, server.port), timeout=10) as sock:
        sock.sendall(request.encode() + CHUNK[:300])
        sock.shutdown(socket.SHUT_WR)
        assert sock.recv(1000).startswith(b"HTTP/1.1 200 ")
    steps: list[int] = []
    client.send_chunk(chunk, DIGEST, steps.append)
    assert steps[0] == 300
    assert node.cache is not None
    assert node.cache.find(DIGEST) is not None


@pytest.mark.parametrize(
    "content_range",
    [None, "", "bytes", "bytes 0-9", "bytes 0-9/*", "bytes */100", "bytes -9/100", "bytes 0-8/100", "bytes 0-10/100",
     "bytes 9-0/100",
     "0-9/100", "bytes 0-9/100 ", "bytes  0-9/100", "bytes 0-9/" + "9" * 30, "bytes 0-9/100, 10-19/100"],
)  # fmt: skip
def test_a_range_that_is_malformed_or_does_not_fit_the_body_is_refused(
    server: ControlServer, node: FakeNode, content_range: str | None
) -> None:
    stripped = content_range and content_range.strip()
    status = 200 if stripped == "bytes 0-9/100" else 400  # blanks around a header's value are not part of it
    answer = put_chunk(server, content_range)
    if status == 400:
        assert "expected Content-Range: bytes first-last/total" in reason_of(answer, 400)
        assert node.cache is not None
        assert node.cache.held_bytes(DIGEST) == 0


@pytest.mark.parametrize("content_range", ["bytes 5-14/100", "bytes 0-9/9"])
def test_a_range_that_does_not_continue_the_chunk_is_refused(server: ControlServer, content_range: str) -> None:
    reason_of(put_chunk(server, content_range), 409)


def test_a_chunk_that_another_starter_sends_is_tried_again_later(
    client: ControlClient, node: FakeNode, chunk: Path
) -> None:
    """Two starters, of two rings, may send a node's machine the same chunk: neither run is to end for that."""
    assert node.cache is not None
    with node.cache._locked(DIGEST), pytest.raises(NodeBusy, match="another starter is sending this chunk right now"):
        client.send_chunk(chunk, DIGEST)
    client.send_chunk(chunk, DIGEST)
    assert node.cache.find(DIGEST) is not None


def test_an_upload_beyond_its_limit_is_refused(server: ControlServer, chunk: Path) -> None:
    reason_of(put_chunk(server, "bytes 0-1000/5000", bytes(1001)), 400)


def test_what_is_no_digest_is_refused(server: ControlServer, tmp_path: Path) -> None:
    for digest in ("a" * 63, "..%2F..%2Fetc", "A" * 64, "%00" * 64):
        answer = put_chunk(server, "bytes 0-9/10", digest=digest)
        assert 400 <= answer[0] < 500
        reason_of(answer, answer[0])
        assert 400 <= ask(server, "HEAD", f"/chunks/{digest}")[0] < 500
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_a_full_disk_is_told_to_the_starter(
    client: ControlClient, chunk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(100, 99, 1))
    with pytest.raises(ControlError, match=r"secondary 0 at .* refused: .*free some space or choose another folder"):
        client.send_chunk(chunk, DIGEST)


def test_a_node_without_a_cache_takes_no_chunks(
    server: ControlServer, client: ControlClient, node: FakeNode, chunk: Path
) -> None:
    node.cache = None
    assert reason_of(put_chunk(server, "bytes 0-9/10"), 409) == "this node takes no chunks"
    with pytest.raises(ControlError, match="secondary 0"):
        client.send_chunk(chunk, DIGEST)


# ---- on the starter's side


@pytest.mark.parametrize(
    "answers",
    [
        [answer_of(b"", "X-Held-Bytes: many")],
        [answer_of(b"", "X-Held-Bytes: -5")],
        [answer_of(b"", "X-Held-Bytes: " + "9" * 5000)],
        [answer_of(b""), answer_of(b'{"held_bytes": 999999999999999999999}')],
        [answer_of(b""), answer_of(b'{"held_bytes": true}')],
        [answer_of(b""), answer_of(b"{}")],
        [answer_of(b""), answer_of(b'{"held_bytes": null}')],
        [answer_of(b""), answer_of(b'{"held_bytes": 0}')],
        [answer_of(b""), answer_of(b'{"held_bytes": "x"}')],
    ],
)
def test_strange_answers_to_a_chunk_are_control_errors(answers: list[bytes], chunk: Path) -> None:
    with answering(*answers) as client, pytest.raises(ControlError, match="secondary 0"):
        client.send_chunk(chunk, DIGEST)


def test_a_chunk_that_is_not_there_is_an_mdi_error(client: ControlClient, tmp_path: Path) -> None:
    with pytest.raises((StorageError, ControlError), match=r"missing\.pth"):
        client.send_chunk(tmp_path / "missing.pth", DIGEST)
