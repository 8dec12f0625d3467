"""A link closes at once whatever it does, and sends what is queued if it drains."""

import queue
import struct
import threading
import time

import pytest

from mdi.ring.link import PredecessorConnected
from mdi.ring.messages import Fault, Goodbye
from mdi.segments import Fork
from support.links import FLOOD, HELLO, LARGE, ONE_ROW, PATIENCE_S, Bench, End, free_port, read, ring_threads
from support.wire import GOODBYE, HEADER_BYTES, activation, frame, rows


def assert_closes_at_once(end: End) -> None:
    """close() ends every thread well before any timeout does, may be repeated, and lets nothing be posted."""
    while not end.inbox.empty():
        end.inbox.get_nowait()
    began = time.monotonic()
    end.link.close()
    assert time.monotonic() - began < PATIENCE_S / 2
    assert ring_threads() == []
    end.link.close()
    assert all(isinstance(event, PredecessorConnected) for event in end.inbox.queue)


def test_a_link_that_never_started_closes(bench: Bench) -> None:
    assert_closes_at_once(bench.end(1))


def test_a_link_that_waits_for_its_predecessor_closes(bench: Bench) -> None:
    end = bench.end(1)
    end.link.accept()
    assert_closes_at_once(end)
    with bench.dial(end.port):  # the listener is the caller's and still open
        pass


def test_a_link_that_greets_a_silent_stranger_closes(bench: Bench) -> None:
    end = bench.end(1)
    end.link.accept()
    intruder = bench.dial(end.port)
    intruder.sendall(HELLO[:5])
    assert_closes_at_once(end)


def test_a_link_with_a_silent_predecessor_closes(bench: Bench) -> None:
    end = bench.end(1)
    end.link.accept()
    bench.predecessor(end)
    assert_closes_at_once(end)


def test_a_link_that_calls_a_black_hole_closes(bench: Bench) -> None:
    end = bench.end(bench.black_hole())
    end.link.connect()
    assert_closes_at_once(end)


def test_a_link_whose_handshake_is_not_answered_closes(bench: Bench) -> None:
    listener = bench.listener()
    end = bench.end(listener.getsockname()[1])
    end.link.connect()
    sock, _ = listener.accept()
    with sock:
        assert read(sock, len(HELLO)) == HELLO
        assert_closes_at_once(end)


def test_an_idle_link_closes(bench: Bench) -> None:
    listener = bench.listener()
    end = bench.end(listener.getsockname()[1])
    end.link.connect()
    bench.successor(listener)
    assert_closes_at_once(end)


def test_a_link_that_is_blocked_in_sending_closes(bench: Bench) -> None:
    listener = bench.listener()
    end = bench.end(listener.getsockname()[1], session=LARGE)
    end.link.connect()
    sock = bench.successor(listener)
    end.link.send(FLOOD)
    assert read(sock, 1) == b"M"  # it is sending, and no more of it is read
    assert_closes_at_once(end)


def test_a_ring_in_use_closes(bench: Bench) -> None:
    a, b = bench.ring()
    for _ in range(5):
        a.link.send(ONE_ROW)
        b.link.send(ONE_ROW)
    a.link.close()
    b.link.close()
    assert ring_threads() == []


def test_a_link_that_is_down_closes(bench: Bench) -> None:
    end = bench.end(free_port())
    end.link.connect()
    end.down()
    assert_closes_at_once(end)


def test_draining_sends_what_is_queued(bench: Bench) -> None:
    listener = bench.listener()
    end = bench.end(listener.getsockname()[1])
    end.link.connect()
    sock = bench.successor(listener)
    for message in (ONE_ROW, Fork(1, 0, 2), Fault(1, "the end")):
        end.link.send(message)
    closing = threading.Thread(target=end.link.close, args=(PATIENCE_S,))
    closing.start()
    expected = [
        activation([(0, 0, 1, 1)], rows(1)),
        frame(6, struct.pack("<IIII", 1, 0, 2, 0)),
        frame(8, b"\1\0\0\0the end"),
    ]
    assert read(sock, sum(map(len, expected))) == b"".join(expected)
    sock.close()
    closing.join()


def test_a_connection_stays_open_until_the_goodbye_was_read(bench: Bench) -> None:
    listener = bench.listener()
    end = bench.end(listener.getsockname()[1])
    end.link.connect()
    sock = bench.successor(listener)
    end.link.send(Goodbye())
    assert read(sock, HEADER_BYTES) == GOODBYE
    sock.settimeout(0.2)
    with pytest.raises(TimeoutError):
        sock.recv(1)
    sock.close()
    end.link.close(drain_s=PATIENCE_S)
    assert end.inbox.empty()


def test_draining_does_not_wait_for_a_node_that_takes_nothing(bench: Bench) -> None:
    listener = bench.listener()
    end = bench.end(listener.getsockname()[1], session=LARGE)
    end.link.connect()
    bench.successor(listener)
    end.link.send(FLOOD)
    end.link.send(Goodbye())
    began = time.monotonic()
    end.link.close(drain_s=0.2)
    assert time.monotonic() - began < PATIENCE_S / 2
    assert ring_threads() == []


def test_more_messages_than_can_travel_are_a_bug_that_still_lets_the_link_close(bench: Bench) -> None:
    end = bench.end(1)
    end.link.accept()
    for _ in range(10):
        end.link.send(ONE_ROW)
    with pytest.raises(queue.Full):
        end.link.send(ONE_ROW)
    assert_closes_at_once(end)
