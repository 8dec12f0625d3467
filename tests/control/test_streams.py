"""What a client sends, as it arrives: whole, byte by byte, slowly, or in part."""

import socket
import ssl
import threading
from collections.abc import Iterator

import pytest

from mdi.control.streams import MAX_HEAD_BYTES, MIN_BYTES_PER_S, RequestStream, ResponseStream
from mdi.net.timeouts import Timeouts
from support.clocks import ManualClock

HEAD = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
LINES = HEAD.splitlines(keepends=True)


class Client:
    """The other end of a stream."""

    def __init__(self, timeouts: Timeouts) -> None:
        self.sock, self.theirs = socket.socketpair()
        self.theirs.setblocking(False)
        self.request = RequestStream(self.theirs, timeouts)
        self.response = ResponseStream(self.theirs, timeouts)

    def head_after(self, data: bytes) -> bool:
        self.sock.sendall(data)
        assert self.request.receive()
        return self.request.has_head()


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def client(clock: ManualClock) -> Iterator[Client]:
    client = Client(Timeouts(clock=clock))
    with client.sock, client.theirs:
        yield client


def read_head(client: Client) -> list[bytes]:
    return [client.request.readline(256) for _ in LINES]


def test_a_head_is_complete_with_its_last_byte(client: Client) -> None:
    for byte in HEAD[:-1]:
        assert not client.head_after(bytes([byte]))
    assert client.head_after(HEAD[-1:])
    assert read_head(client) == LINES
    assert not client.request.has_head()


def test_requests_that_come_together_stay_apart(client: Client) -> None:
    client.sock.sendall(HEAD + b"body" + HEAD + HEAD[:-1])
    assert client.request.receive()
    for body in (b"body", b""):
        assert client.request.has_head()
        assert read_head(client) == LINES
        assert client.request.read(len(body)) == body
    assert not client.request.has_head()
    assert client.head_after(b"\n")


def test_a_head_without_end_is_passed_on_to_be_refused(client: Client) -> None:
    assert not client.head_after(b"x" * MAX_HEAD_BYTES)
    assert client.head_after(b"x")


def test_nothing_waits_before_a_body_is_expected(client: Client) -> None:
    client.head_after(b"GET")
    assert client.request.readline() == b"GET"
    assert client.request.read(1) == b""


def test_a_body_is_waited_for(client: Client) -> None:
    client.head_after(b"he")
    client.request.expect_body()
    sending = threading.Thread(target=client.sock.sendall, args=(b"llo worldGET",))
    sending.start()
    assert client.request.read(10) == b"hello worl"
    sending.join()
    assert client.request.read(4) == b"dGET"


@pytest.mark.parametrize("end", ["closes", "stops"])
def test_a_body_that_ends_early_is_short(end: str, client: Client, clock: ManualClock) -> None:
    client.request.expect_body()
    client.sock.sendall(b"12345")
    if end == "closes":
        client.sock.close()
    else:
        stream = RequestStream(client.theirs, Timeouts(request_read_s=0.05, clock=clock))
        stream.expect_body()
        client.request = stream
    assert client.request.read(10) == b"12345"
    assert client.request.read(10) == b""


def test_a_body_has_to_come_at_a_least_rate(client: Client, clock: ManualClock) -> None:
    """A byte in every pause that is allowed does not keep a thread for ever, whatever size was announced."""
    client.request.expect_body()
    for _ in range(2):
        client.sock.sendall(b"x")
        assert client.request.read(1) == b"x"
        clock.now_s += Timeouts().request_read_s / 2 + 1
    client.sock.sendall(b"x")
    assert client.request.read(1) == b""


def test_what_has_come_of_a_body_earns_time_for_the_rest(client: Client, clock: ManualClock) -> None:
    client.request.expect_body()
    for _ in range(10):
        sending = threading.Thread(target=client.sock.sendall, args=(bytes(20 * MIN_BYTES_PER_S),))
        sending.start()
        assert client.request.read(20 * MIN_BYTES_PER_S) == bytes(20 * MIN_BYTES_PER_S)
        sending.join()
        clock.now_s += 19


def test_the_rest_of_a_body_is_dropped_as_it_comes(client: Client) -> None:
    client.head_after(HEAD + b"12345")
    read_head(client)
    client.request.ignore(10)
    assert not client.request.has_head()
    assert not client.head_after(b"6789")
    assert client.head_after(b"0" + HEAD)
    assert read_head(client) == LINES


def test_a_thread_does_not_wait_for_a_client_that_does_not_read(client: Client) -> None:
    with pytest.raises(ConnectionAbortedError, match="does not read its answers"):
        client.response.write(bytes(100 << 20))


def test_an_authenticated_client_may_read_in_its_own_time(client: Client) -> None:
    client.response.may_wait = True
    n_bytes, received = 10 << 20, bytearray()

    def read() -> None:
        while len(received) < n_bytes and (data := client.sock.recv(1 << 20)):
            received.extend(data)

    reading = threading.Thread(target=read)
    reading.start()
    client.response.write(bytes(n_bytes))
    reading.join()
    assert len(received) == n_bytes


def test_a_broken_connection_ends_the_body(client: Client) -> None:
    class Broken:
        def settimeout(self, timeout_s: float) -> None:
            pass

        def recv(self, size: int) -> bytes:
            raise ssl.SSLError("bad record")

    stream = RequestStream(Broken(), Timeouts())  # type: ignore[arg-type]
    stream.expect_body()
    assert stream.read(10) == b""
