"""Every answer ends: however slowly it comes, however large it is, and whatever it claims to be."""

import random
import re
import socket
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import mdi.control.client
from mdi.control.client import ControlClient
from mdi.control.protocol import MAX_INIT_BYTES, MAX_STATUS_BYTES, MAX_TIMELINE_BYTES, NoAnswer, NotANode, NotAuthorized
from mdi.control.signatures import SCHEME
from mdi.errors import ControlError
from mdi.net.access import THIS_MACHINE, Access
from mdi.net.certificates import make_certificates
from mdi.net.keys import Key, Keys
from mdi.net.timeouts import Timeouts
from support.config_files import files_of
from support.control import HOST, SPEC, answer_of
from support.impostor import PIECE, Impostor, client_of

KEYED = Access(Keys(Key("a key of more than sixteen characters", "test")))
# A slow machine may drip too slowly; without a bound of the whole, the call would not end.
LATE = re.compile(r"did not answer: (its answer took too long|silent for)")
SHORT = Timeouts(connect_s=0.4, status_s=0.4, answer_s=0.4)
AT_ONCE_S = 30.0  # far beyond the bounds of a test, far below for ever
KERNEL_BYTES = 16 << 20  # that the system may hold between the two ends of a connection

OK = b"HTTP/1.1 200 OK\r\n"
CHALLENGE = f'WWW-Authenticate: {SCHEME} nonce="{"00" * 16}", stale="false"'
UNAUTHORIZED = answer_of(b"", CHALLENGE, status="401 Unauthorized")
WRONG_MAC = f'Authentication-Info: body="{"00" * 32}", mac="{"00" * 32}"\r\n'.encode()


def fails(call: Callable[[], object], kind: type[ControlError]) -> str:
    """The error of a call that ends by itself."""
    began_s = time.monotonic()
    with pytest.raises(ControlError) as caught:
        call()
    assert type(caught.value) is kind, caught.value
    assert time.monotonic() - began_s < AT_ONCE_S
    return str(caught.value)


# ---- in bytes


def endless(head: bytes, piece: bytes) -> Callable[[Impostor, socket.socket], None]:
    def script(impostor: Impostor, sock: socket.socket) -> None:
        impostor.send(sock, OK + head + b"\r\n")
        impostor.flood(sock, piece)

    return script


ENDLESS = {
    "without a length": endless(b"", bytes(PIECE)),
    "gigabytes": endless(b"Content-Length: 5000000000\r\n", bytes(PIECE)),
    "in chunks": endless(b"Transfer-Encoding: chunked\r\n", b"%x\r\n%s\r\n" % (PIECE, bytes(PIECE))),
    "in tiny chunks": endless(b"Transfer-Encoding: chunked\r\n", b"1\r\n \r\n" * 1000),
    "one line of a chunk's size": endless(b"Transfer-Encoding: chunked\r\n", b"0" * PIECE),
    "trailers": endless(b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n", b"a: b\r\n" * 1000),
    "a head": endless(b"a: b", b"c" * PIECE),
    "interim answers": lambda impostor, sock: impostor.flood(sock, b"HTTP/1.1 100 Continue\r\n\r\n" * 1000),
}


@pytest.mark.parametrize("script", ENDLESS.values(), ids=ENDLESS)
def test_an_answer_without_end_is_given_up(script: Callable[[Impostor, socket.socket], None]) -> None:
    with client_of(script) as (client, impostor):
        with pytest.raises((NoAnswer, NotANode), match="secondary 0 at"):
            client.status()
        assert impostor.n_sent < MAX_STATUS_BYTES + KERNEL_BYTES


@pytest.mark.parametrize(
    ("call", "limit_bytes"),
    [
        (lambda client: client.status(), MAX_STATUS_BYTES),
        (lambda client: client.timeline(), MAX_TIMELINE_BYTES),
        (lambda client: client.init(SPEC), MAX_INIT_BYTES),
        (lambda client: client.release(5), MAX_STATUS_BYTES),
        (lambda client: client.stop(), MAX_STATUS_BYTES),
    ],
    ids=["status", "timeline", "init", "release", "stop"],
)
def test_every_kind_of_answer_has_a_size(call: Callable[[ControlClient], object], limit_bytes: int) -> None:
    blanks = endless(b"", b" " * PIECE)
    with client_of(blanks) as (client, impostor):
        words = fails(lambda: call(client), NoAnswer)
        assert f"sends more than an answer can have ({limit_bytes} bytes)" in words
        assert impostor.n_sent < limit_bytes + KERNEL_BYTES


def test_an_answer_to_a_chunk_has_a_size(tmp_path: Path) -> None:
    chunk = tmp_path / "chunk.pth"
    chunk.write_bytes(bytes(1000))

    def script(impostor: Impostor, sock: socket.socket) -> None:
        impostor.send(sock, answer_of(b"") if impostor.n_sent == 0 else OK + b"\r\n")
        impostor.flood(sock, b" " * PIECE)

    with client_of(script) as (client, impostor):
        fails(lambda: client.send_chunk(chunk, "ab" * 32), NoAnswer)
        assert impostor.n_sent < MAX_STATUS_BYTES + 2 * KERNEL_BYTES


@pytest.mark.parametrize("status", [b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 401 Unauthorized\r\n", b"HTTP/1.1 500 Oops\r\n"])
def test_gigabytes_without_the_key_are_not_read(status: bytes) -> None:
    """Their head does not show the key: that is found before any of the body is read."""

    def script(impostor: Impostor, sock: socket.socket) -> None:
        if impostor.n_sent == 0:
            impostor.send(sock, UNAUTHORIZED)
        else:
            impostor.send(sock, status + WRONG_MAC + b"Content-Length: 5000000000\r\n\r\n")
            impostor.flood(sock, bytes(PIECE))

    with client_of(script, KEYED) as (client, impostor):
        words = fails(client.status, NotAuthorized)
        assert "did not show that it has this ring's key: HTTP " in words
        assert impostor.n_sent < KERNEL_BYTES


# ---- in time


def dripping(head: bytes, drops: bytes) -> Callable[[Impostor, socket.socket], None]:
    def script(impostor: Impostor, sock: socket.socket) -> None:
        impostor.send(sock, head)
        impostor.drip(sock, drops)

    return script


HEADS = [dripping(b"", b"H"), dripping(OK + b"a: ", b"b"), dripping(OK, b"a: b\r\n")]
BODIES = [
    dripping(OK + b"\r\n", b" "),
    dripping(OK + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\n \r\n"),
    dripping(OK + b"Transfer-Encoding: chunked\r\n\r\n", b"0"),
    dripping(OK + b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n", b"a: b\r\n"),
]


def test_an_answer_that_drips_is_given_up() -> None:
    def give_up(access: Access, script: Callable[[Impostor, socket.socket], None]) -> str:
        with client_of(script, access, SHORT) as (client, _):
            return fails(client.status, NoAnswer)

    attacks = [(THIS_MACHINE, script) for script in HEADS + BODIES] + [(KEYED, script) for script in HEADS]
    with ThreadPoolExecutor(len(attacks)) as pool:
        for words in pool.map(give_up, *zip(*attacks, strict=True)):
            assert LATE.search(words)


def test_an_answer_that_drips_through_tls_is_given_up(tmp_path: Path) -> None:
    """Both where the handshake drips and where it is done: there every read waits for a whole record."""
    tls = files_of(*make_certificates([HOST], tmp_path / "certs"))
    record = b"\x16\x03\x03\x40\x00"  # the head of one with 16 KiB
    with client_of(dripping(record, b"x"), Access(tls=tls), SHORT) as (client, _):
        assert LATE.search(fails(client.status, NoAnswer))

    def script(impostor: Impostor, sock: socket.socket) -> None:
        impostor.send(sock, OK)
        impostor.drip(sock, b"a: b\r\n")

    with Impostor(script, tls) as impostor:
        client = ControlClient("secondary 0", HOST, impostor.port, Access(tls=tls), SHORT)
        assert LATE.search(fails(client.status, NoAnswer))


def test_blanks_for_ever_are_no_answer_to_init() -> None:
    blanks = dripping(OK + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\n \r\n")
    with client_of(blanks, timeouts=SHORT) as (client, _):
        assert LATE.search(fails(lambda: client.init(SPEC, within_s=0.5), NoAnswer))


def test_an_init_without_a_bound_of_its_caller_ends_too() -> None:
    blanks = dripping(OK + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\n \r\n")
    with client_of(blanks, timeouts=Timeouts(answer_s=0.3, load_s=0.5)) as (client, _):
        assert LATE.search(fails(lambda: client.init(SPEC), NoAnswer))


def test_a_silent_node_is_given_up_after_its_silence() -> None:
    def script(impostor: Impostor, sock: socket.socket) -> None:
        impostor.send(sock, OK)
        impostor.closing.wait(AT_ONCE_S)

    with client_of(script, timeouts=Timeouts(status_s=0.2, connect_s=2 * AT_ONCE_S)) as (client, _):
        assert "did not answer: silent for 0.2 s" in fails(client.status, NoAnswer)


def test_a_piece_of_a_chunk_may_take_longer_than_a_silence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A slow network takes a part of it at a time."""
    piece_bytes = 24 << 20  # more than the system takes at once
    monkeypatch.setattr(mdi.control.client, "UPLOAD_BYTES", piece_bytes)
    chunk = tmp_path / "chunk.pth"
    chunk.write_bytes(bytes(piece_bytes))

    def script(impostor: Impostor, sock: socket.socket) -> None:
        if impostor.n_sent == 0:
            impostor.send(sock, answer_of(b""))
            return
        n_received = 0
        while n_received < piece_bytes - PIECE:  # some of it came with the head
            impostor.closing.wait(0.02)
            n_received += len(sock.recv(8 * PIECE) or bytes(piece_bytes))
        impostor.send(sock, answer_of(b'{"held_bytes": %d}' % piece_bytes))

    with client_of(script, timeouts=Timeouts(connect_s=0.5, answer_s=0.5)) as (client, _):
        client.send_chunk(chunk, "ab" * 32)


def test_random_bytes_are_an_error_of_one_line() -> None:
    rng = random.Random(7)

    def script(impostor: Impostor, sock: socket.socket) -> None:
        head = rng.choice([b"\r\n", b"Transfer-Encoding: chunked\r\n\r\n", b"Content-Length: 9\r\n\r\n", b"a: "])
        impostor.send(sock, rng.choice([b"", OK, OK + head]) + rng.randbytes(rng.randrange(300)))

    with client_of(script) as (client, _):
        for _ in range(300):
            with pytest.raises(ControlError, match=r"\Asecondary 0 at [^\n]*\Z"):
                client.status()
