"""Two threads send on one connection, in one order: the compute thread where the system takes a message at once."""

import contextlib
import dataclasses
import queue
import socket
import struct
import threading

import pytest

from mdi.errors import LinkClosed
from mdi.net.access import THIS_MACHINE, Access
from mdi.net.keys import Key, Keys
from mdi.net.timeouts import Timeouts
from mdi.ring.link import PredecessorConnected
from mdi.ring.messages import Activation, Fault, Message
from mdi.ring.sender import MAX_AT_ONCE_BYTES
from mdi.ring.wire import Session
from mdi.segments import Fork, Segment
from mdi.trace import Timeline
from support.links import FLOOD, LARGE, ONE_ROW, PATIENCE_S, Bench, End, read, reset, ring_threads
from support.scripts import wait_until
from support.wire import HEADER_BYTES, activation, frame, rows

FRAME = activation([(0, 0, 1, 1)], rows(1))
NARROW = dataclasses.replace(LARGE, n_embd=4)  # rows of 16 bytes, and many of them
NO_PINGS = Timeouts(handshake_s=PATIENCE_S, ping_interval_s=PATIENCE_S)
KEYED = Access(Keys(Key("correct horse battery staple", "test")))


class Senders(Timeline):
    """Which thread has sent each message, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.begin(on=True)
        self.names: list[str] = []

    def add(self, activity: str, start_s: float, rows: int = 0, samples: int = 0, flow: str = "") -> None:
        if activity == "send":
            self.names.append("writer" if threading.current_thread().name == "ring-writer" else "compute")


def connected(
    bench: Bench, senders: Senders | None = None, session: Session = NARROW, timeouts: Timeouts = NO_PINGS
) -> tuple[End, socket.socket]:
    """A link whose writer thread has nothing to do, and its raw successor."""
    listener = bench.listener()
    end = bench.end(listener.getsockname()[1], timeouts=timeouts, session=session, timeline=senders)
    end.link.connect()
    sock = bench.successor(listener)
    wait_for_idle_writer(end)
    return end, sock


def wait_for_idle_writer(end: End) -> None:
    wait_until(lambda: end.link._sender._idle is not None, PATIENCE_S, "the writer thread waits")


def rows_of(value: int, n_rows: int = 1, row_bytes: int = 4 * LARGE.n_embd) -> Activation:
    return Activation((Segment(0, 0, n_rows, 1),), memoryview(bytes([value]) * (n_rows * row_bytes)))


def frame_of(message: Activation) -> bytes:
    return activation(message.segments, bytes(message.data))


def send_until_one_is_left(end: End) -> list[Activation]:
    """Send messages that the compute thread may send, until the system does not take one of them as a whole."""
    sent: list[Activation] = []
    while end.link.n_sent == len(sent):
        sent.append(rows_of(len(sent) % 256, MAX_AT_ONCE_BYTES // LARGE.row_bytes))
        end.link.send(sent[-1])
    return sent


def read_all(sock: socket.socket, n_bytes: int) -> bytearray:
    data, at = bytearray(n_bytes), 0
    while at < n_bytes:
        at += sock.recv_into(memoryview(data)[at:]) or n_bytes
    return data


def test_the_compute_thread_sends_itself_and_wakes_nobody(bench: Bench) -> None:
    senders = Senders()
    end, sock = connected(bench, senders)
    for n in range(5):
        end.link.send(ONE_ROW)
        end.link.send(Fork(0, 1, 2))
        assert end.link.n_sent == n + 1
    assert senders.names == ["compute"] * 10
    assert read(sock, 5 * (len(FRAME) + HEADER_BYTES + 16)) == 5 * (FRAME + frame(6, struct.pack("<4I", 0, 1, 2, 0)))


def test_a_large_message_is_left_to_the_writer_thread(bench: Bench) -> None:
    """The compute thread goes on at once, and what it sends next stays behind it."""
    senders = Senders()
    end, sock = connected(bench, senders, LARGE)
    for message in (FLOOD, rows_of(1), Fork(0, 1, 2)):
        end.link.send(message)
    assert (end.link.n_sent, senders.names) == (0, [])
    for part in (frame_of(FLOOD), frame_of(rows_of(1)), frame(6, struct.pack("<4I", 0, 1, 2, 0))):
        assert read_all(sock, len(part)) == part
    wait_for_idle_writer(end)
    assert (end.link.n_sent, senders.names) == (2, ["writer"] * 3)
    end.link.send(rows_of(2))
    assert senders.names[3:] == ["compute"]


@pytest.mark.parametrize("access", [THIS_MACHINE, KEYED], ids=["checksums", "MACs"])
def test_what_the_system_does_not_take_is_left_to_the_writer_thread(bench: Bench, access: Access) -> None:
    """The successor does not read on before a message of its inbox is taken: so one of many is sent in part.

    One thread sends and takes here, so it would wait for itself if sending waited.
    """
    senders = Senders()
    b = bench.end(1, inbox=queue.Queue(maxsize=1), session=LARGE, access=access)
    a = bench.end(b.port, timeline=senders, session=LARGE, access=access, timeouts=NO_PINGS)
    b.link.accept()
    a.link.connect()
    assert b.event() == PredecessorConnected(b.link)
    wait_for_idle_writer(a)
    sent: list[Message] = [*send_until_one_is_left(a)]
    for message in (rows_of(1), Fork(0, 1, 2), rows_of(2)):
        sent.append(message)
        a.link.send(message)
    assert [b.message() for _ in sent] == sent
    wait_for_idle_writer(a)
    assert senders.names[0] == "compute"
    assert "writer" in senders.names
    a.link.send(rows_of(3))
    assert b.message() == rows_of(3)
    assert senders.names[len(sent) :] == ["compute"]


@pytest.mark.parametrize("is_read", [True, False], ids=["read", "not read"])
def test_a_link_closes_while_the_compute_thread_sends(bench: Bench, is_read: bool) -> None:
    end, sock = connected(bench)
    has_sent = threading.Event()

    def send_on() -> None:
        with contextlib.suppress(queue.Full):  # nobody sends it any more
            while True:
                end.link.send(rows_of(1, 50 if is_read else 4000, NARROW.row_bytes))
                has_sent.set()

    def read_on() -> None:
        with contextlib.suppress(OSError):
            while is_read and sock.recv(1 << 16):
                pass

    threads = [threading.Thread(target=send_on), threading.Thread(target=read_on)]
    for thread in threads:
        thread.start()
    assert has_sent.wait(PATIENCE_S)
    end.link.close()
    assert ring_threads() == []
    for thread in threads:
        thread.join(PATIENCE_S)
        assert not thread.is_alive()
    assert end.inbox.empty()


def test_a_lost_successor_is_reported_once_and_never_raised_by_send(bench: Bench) -> None:
    end, sock = connected(bench)
    reset(sock)

    def is_noticed() -> bool:
        with contextlib.suppress(queue.Full):
            end.link.send(ONE_ROW)
        return not end.inbox.empty()

    wait_until(is_noticed, PATIENCE_S, "the loss is reported")
    down = end.down()
    assert down.peer is end.link.config.successor
    assert isinstance(down.error, LinkClosed)
    assert "connection lost" in str(down.error)
    end.link.close()
    assert end.inbox.empty()


def test_a_link_pings_again_after_what_the_compute_thread_sent(bench: Bench) -> None:
    end, sock = connected(bench, timeouts=Timeouts(handshake_s=PATIENCE_S, ping_interval_s=0.02))
    end.link.send(ONE_ROW)
    while (header := read(sock, HEADER_BYTES)) == frame(7):
        pass
    assert header + read(sock, len(FRAME) - HEADER_BYTES) == FRAME
    assert read(sock, 3 * HEADER_BYTES) == 3 * frame(7)


def test_a_link_that_ends_sends_what_the_compute_thread_has_begun(bench: Bench) -> None:
    end, sock = connected(bench, session=LARGE)
    frames = [frame_of(message) for message in send_until_one_is_left(end)]
    end.link.send(Fault(1, "the end"))
    closing = threading.Thread(target=end.link.close, args=(PATIENCE_S,))
    closing.start()
    for part in (*frames, frame(8, b"\1\0\0\0the end")):
        assert read_all(sock, len(part)) == part
    sock.close()
    closing.join()
