"""Reading ahead: small frames in one system call, large ones into the memory that becomes their rows."""

import socket
from collections.abc import Iterator

import pytest

from mdi.ring.transport import READ_AHEAD_BYTES, ReadAhead


class CountingSocket(socket.socket):
    """Knows into which buffers it was read."""

    reads: list[memoryview]

    def recv_into(self, buffer: memoryview, *args: int) -> int:  # type: ignore[override]
        self.reads.append(buffer)
        return super().recv_into(buffer, *args)


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, CountingSocket]]:
    near, far = socket.socketpair()
    counting = CountingSocket(fileno=far.detach())
    counting.reads = []
    with near, counting:
        yield near, counting


def taken(source: ReadAhead, n_bytes: int) -> bytes:
    data = memoryview(bytearray(n_bytes))
    at = 0
    while at < n_bytes:
        at += source.recv_into(data[at:])
    return bytes(data)


def test_one_read_brings_what_is_there_and_it_is_taken_in_any_pieces(
    ends: tuple[socket.socket, CountingSocket],
) -> None:
    near, far = ends
    data = bytes(range(250))
    near.sendall(data)
    source = ReadAhead(far)
    assert b"".join(taken(source, n) for n in (32, 1, 16, 200, 1)) == data
    assert len(far.reads) == 1
    near.close()
    assert source.recv_into(memoryview(bytearray(10))) == 0
    assert source.recv_into(memoryview(bytearray(10))) == 0


def test_a_large_buffer_is_read_into_directly_behind_what_was_read_ahead(
    ends: tuple[socket.socket, CountingSocket],
) -> None:
    near, far = ends
    near.sendall(b"head" + b"first rows")
    source, large = ReadAhead(far), memoryview(bytearray(READ_AHEAD_BYTES + 10))
    assert taken(source, 4) == b"head"
    assert source.recv_into(large) == 10
    near.sendall(b"more rows")
    rest = large[10:]
    assert source.recv_into(rest) == 9
    assert bytes(large[:19]) == b"first rowsmore rows"
    assert far.reads[1] is rest


def test_a_read_waits_as_its_socket_does(ends: tuple[socket.socket, CountingSocket]) -> None:
    _, far = ends
    far.settimeout(0.01)
    with pytest.raises(TimeoutError):
        ReadAhead(far).recv_into(memoryview(bytearray(10)))
