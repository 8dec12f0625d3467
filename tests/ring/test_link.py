"""Two sockets and two threads, on real connections of the loopback."""

import contextlib
import dataclasses
import logging
import queue
import socket
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from mdi.errors import ConfigError, LinkClosed, LinkTimeout, LocalProtocolError, RemoteAbort, RemoteProtocolError
from mdi.net.sockets import listen
from mdi.net.timeouts import Timeouts
from mdi.ring.link import PredecessorConnected
from mdi.ring.messages import Activation, Fault, Goodbye, Message
from mdi.segments import Fork, Release, Segment
from support.links import FLOOD, FOREIGN, HELLO, HOST, LARGE, PATIENCE_S, WELCOME, Bench, End, read
from support.wire import GOODBYE, HEADER_BYTES, ROW_BYTES, SESSION, activation, frame, rows

ONE_ROW = Activation((Segment(0, 0, 1, 1),), memoryview(rows(1)))


def ring_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("ring-")]


@pytest.fixture
def bench() -> Iterator[Bench]:
    bench = Bench()
    try:
        yield bench
    finally:
        bench.close()
    assert ring_threads() == []


SHORT_HANDSHAKE = Timeouts(handshake_s=0.3)
FREQUENT_PINGS = Timeouts(ping_interval_s=0.02)


def reset(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def free_port() -> int:
    with socket.create_server((HOST, 0)) as sock:
        return int(sock.getsockname()[1])


def in_time_wait(ports: list[int]) -> list[str]:
    """The connections of these ports that the system still remembers (on Linux; elsewhere none are seen)."""
    table = Path("/proc/net/tcp")
    rows = [line.split() for line in table.read_text().splitlines()[1:]] if table.exists() else []
    return [row[1] for row in rows if row[3] == "06" and int(row[1].rpartition(":")[2], 16) in ports]


def pings(sock: socket.socket) -> Iterator[None]:
    """Read frames that must all be pings."""
    while True:
        assert read(sock, HEADER_BYTES) == frame(7)
        yield


# ---- a ring of two


def test_messages_travel_round_a_ring_and_a_goodbye_ends_it(bench: Bench) -> None:
    a, b = bench.ring()
    full = Activation((Segment(0, 0, 2, 1), Segment(2, 4, 3, 0)), memoryview(rows(5)))
    for message in (full, Release(2), Fork(0, 1, 2), ONE_ROW):
        a.link.send(message)
        assert b.message() == message
    kept = Activation(full.segments, memoryview(rows(1)))
    for message in (kept, Release(2), Fork(0, 1, 2)):
        b.link.send(message)
        assert a.message() == message
    a.link.send(Goodbye())
    assert b.message() == Goodbye()
    b.link.send(Goodbye())
    assert a.message() == Goodbye()
    for end in (a, b):
        end.link.close(drain_s=PATIENCE_S)
        assert end.inbox.empty()


def test_messages_arrive_in_order(bench: Bench) -> None:
    a, b = bench.ring()
    sent: list[Message] = [Activation((Segment(0, i, 1, 1),), memoryview(bytes([i]) * ROW_BYTES)) for i in range(10)]
    for message in sent:
        a.link.send(message)
    assert [b.message() for _ in sent] == sent


def test_a_fault_travels_and_ends_the_direction(bench: Bench) -> None:
    a, b = bench.ring()
    a.link.send(Fault(2, "gave no sign of life"))
    assert b.message() == Fault(2, "gave no sign of life")
    b.link.send(Fault(2, "gave no sign of life"))
    assert a.message() == Fault(2, "gave no sign of life")
    for end in (a, b):
        end.link.close(drain_s=PATIENCE_S)
        assert end.inbox.empty()


def test_a_large_message_arrives_whole(bench: Bench) -> None:
    session = dataclasses.replace(SESSION, n_embd=4096, context=1000, max_rows=1000)  # 16 MB: many reads and writes
    listener = bench.listener()
    a = bench.end(listener.getsockname()[1], session=session)
    b = bench.end(1, listener=listener, session=session)
    b.link.accept()
    a.link.connect()
    assert isinstance(b.event(), PredecessorConnected)
    data = bytes(range(256)) * (1000 * 16384 // 256)
    message = Activation((Segment(0, 0, 1000, 1),), memoryview(data))
    a.link.send(message)
    assert b.message() == message


def test_sessions_follow_each_other_at_once_on_the_same_ports(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="mdi.ring.link")
    ports = [free_port() for _ in range(4)]
    assert len(set(ports)) == 4
    for _ in range(20):
        with contextlib.ExitStack() as stack:
            bench = Bench()
            stack.callback(bench.close)
            a_listener, b_listener = bench.listener(ports[0]), bench.listener(ports[1])
            a = bench.end(ports[1], listener=a_listener, source_port=ports[2])
            b = bench.end(ports[0], listener=b_listener, source_port=ports[3])
            a.link.accept()
            b.link.accept()
            a.link.connect()
            assert isinstance(b.event(), PredecessorConnected)
            b.link.connect()
            assert isinstance(a.event(), PredecessorConnected)
            a.link.send(Goodbye())
            assert b.message() == Goodbye()
            b.link.send(Goodbye())
            assert a.message() == Goodbye()
            a.link.close(drain_s=PATIENCE_S)
            b.link.close(drain_s=PATIENCE_S)
    assert [record.getMessage() for record in caplog.records] == []  # no "port ... is not free"
    assert in_time_wait(ports) == []


def test_ports_are_free_again_after_a_session_that_broke(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="mdi.ring.link")
    port, source_port = free_port(), free_port()
    for _ in range(5):
        bench = Bench()
        b = bench.end(1, listener=bench.listener(port))
        a = bench.end(port, source_port=source_port)
        b.link.accept()
        a.link.connect()
        assert isinstance(b.event(), PredecessorConnected)
        bench.close()
    assert [record.getMessage() for record in caplog.records] == []
    assert in_time_wait([port, source_port]) == []


def test_ipv6_addresses_work(bench: Bench) -> None:
    try:
        listener = bench.listener(host="::1")
    except ConfigError:
        pytest.skip("no IPv6 on this machine")
    b = bench.end(1, listener=listener)
    a = bench.end(b.port, host="::1", source_port=free_port())
    b.link.accept()
    a.link.connect()
    assert isinstance(b.event(), PredecessorConnected)


# ---- the source port


def test_the_connection_comes_from_the_source_port(bench: Bench) -> None:
    listener, source_port = bench.listener(), free_port()
    end = bench.end(listener.getsockname()[1], source_port=source_port)
    end.link.connect()
    assert bench.successor(listener).getpeername()[1] == source_port


def test_a_taken_source_port_is_replaced(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="mdi.ring.link")
    listener, taken = bench.listener(), bench.listener().getsockname()[1]
    end = bench.end(listener.getsockname()[1], source_port=taken)
    end.link.connect()
    assert bench.successor(listener).getpeername()[1] != taken
    assert f"port {taken} for outgoing data is not free" in caplog.text


# ---- the handshake


def test_a_refused_handshake_gives_its_reason_on_both_sides(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    b = bench.end(1, expected={"n_slots": 4})
    a = bench.end(b.port)
    b.link.accept()
    a.link.connect()
    down = a.down()
    assert down.peer is a.link.config.successor
    assert isinstance(down.error, RemoteAbort)
    reason = "n_slots is 3, this node expects 4"
    assert str(down.error) == f"the node behind ({HOST}:{b.port}) refused the connection: {reason}"
    a.link.close()
    b.link.close()
    assert f"refused a connection from {HOST}: {reason}" in caplog.text
    assert b.inbox.empty()  # it waits on


def test_another_epoch_is_refused_with_its_reason(bench: Bench) -> None:
    b = bench.end(1)
    a = bench.end(b.port, session=dataclasses.replace(SESSION, epoch=8))
    b.link.accept()
    a.link.connect()
    error = a.down().error
    # The refusal itself is of another epoch: either way the epoch is what the user reads.
    assert isinstance(error, RemoteAbort | RemoteProtocolError)
    assert "epoch" in str(error)


def test_nobody_at_the_address_is_said_at_once(bench: Bench) -> None:
    port = free_port()
    end = bench.end(port)
    end.link.connect()
    down = end.down()
    assert isinstance(down.error, LinkClosed)
    assert str(down.error) == f"the node behind ({HOST}:{port}) cannot be reached: Connection refused"


@pytest.mark.parametrize("addr", ["10.7..48.46", "a" * 64])
def test_an_address_that_is_none_is_reported_as_such(bench: Bench, addr: str) -> None:
    end = bench.end(5088, successor_host=addr)
    end.link.connect()
    error = end.down().error
    assert isinstance(error, LinkClosed)
    assert "cannot be reached" in str(error)


def test_a_successor_that_never_answers_is_given_up(bench: Bench) -> None:
    listener = bench.listener()
    end = bench.end(listener.getsockname()[1], timeouts=SHORT_HANDSHAKE)
    end.link.connect()
    error = end.down().error
    assert isinstance(error, LinkTimeout)
    assert "0.3 s" in str(error)  # the time that was waited, not the peer timeout


def test_a_black_hole_is_given_up(bench: Bench) -> None:
    end = bench.end(bench.black_hole(), timeouts=SHORT_HANDSHAKE)
    end.link.connect()
    error = end.down().error
    assert isinstance(error, LinkClosed)
    assert "cannot be reached" in str(error)
    assert "timed out" in str(error)


@pytest.mark.parametrize(
    "answer", [b"", b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n", frame(7), WELCOME[:9]]
)
def test_a_successor_that_answers_nonsense_is_an_error(bench: Bench, answer: bytes) -> None:
    listener = bench.listener()
    end = bench.end(listener.getsockname()[1])
    end.link.connect()
    sock, _ = listener.accept()
    with sock:
        assert read(sock, len(HELLO)) == HELLO
        sock.sendall(answer)
    error = end.down().error
    assert isinstance(error, RemoteProtocolError if len(answer) >= HEADER_BYTES else LinkClosed)
    if isinstance(error, LinkClosed):
        assert "closed the connection during the handshake" in str(error)


# ---- connections of others


@pytest.mark.parametrize("how", ["closes", "resets", "goes"])
@pytest.mark.parametrize("data", FOREIGN.values(), ids=FOREIGN)
def test_a_foreign_connection_does_not_keep_the_predecessor_out(bench: Bench, data: bytes, how: str) -> None:
    end = bench.end(1, timeouts=SHORT_HANDSHAKE)
    end.link.accept()
    intruder = bench.dial(end.port)
    with contextlib.suppress(ConnectionError):
        intruder.sendall(data)
    if how == "closes":
        intruder.close()
    elif how == "resets":
        reset(intruder)
    sock = bench.predecessor(end)
    sock.sendall(frame(5, struct.pack("<IIII", 1, 0, 0, 0)))
    assert end.message() == Release(1)


class ManualClock:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


def assert_refused(bench: Bench, end: End) -> None:
    """By then the acceptor has also done everything that was due when this connection came."""
    sock = bench.dial(end.port)
    sock.sendall(GOODBYE)
    assert read(sock, HEADER_BYTES)[5] == 3


def test_a_silent_connection_is_closed_exactly_at_its_deadline(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    clock = ManualClock()
    end = bench.end(1, timeouts=Timeouts(authentication_s=2.0, clock=clock))
    end.link.accept()
    silent = bench.dial(end.port)
    assert_refused(bench, end)
    clock.now_s += 1.99
    for _ in range(2):
        assert_refused(bench, end)
    assert "did not authenticate" not in caplog.text
    clock.now_s += 0.01
    assert_refused(bench, end)
    with contextlib.suppress(ConnectionError):
        assert silent.recv(1) == b""
    assert "it did not authenticate within 2 s" in caplog.text


@pytest.mark.parametrize("data", [FOREIGN["other epoch"], FOREIGN["other facts"], FOREIGN["not hello"]])
def test_a_foreign_connection_is_answered_why_it_is_refused(bench: Bench, data: bytes) -> None:
    end = bench.end(1)
    end.link.accept()
    intruder = bench.dial(end.port)
    intruder.sendall(data)
    header = read(intruder, HEADER_BYTES)
    assert header[5] == 3
    assert len(read(intruder, int.from_bytes(header[20:24], "little"))) > 10


def test_a_peer_that_drips_does_not_keep_the_predecessor_out(bench: Bench) -> None:
    end = bench.end(1, timeouts=SHORT_HANDSHAKE)
    end.link.accept()
    intruder, done = bench.dial(end.port), threading.Event()

    def drip() -> None:
        with contextlib.suppress(OSError):
            for byte in frame(1, b'{"a": "' + b"x" * 4000 + b'"}'):
                intruder.sendall(bytes([byte]))
                if done.wait(0.05):
                    return

    thread = threading.Thread(target=drip)
    thread.start()
    try:
        sock = bench.dial(end.port)
        sock.settimeout(4)
        sock.sendall(HELLO)
        assert read(sock, HEADER_BYTES) == WELCOME
    finally:
        done.set()
        thread.join()


# ---- a predecessor that is lost


def test_a_predecessor_that_closes_without_goodbye_is_lost(bench: Bench) -> None:
    end = bench.end(1)
    end.link.accept()
    bench.predecessor(end).close()
    down = end.down()
    assert down.peer is end.link.config.predecessor
    assert isinstance(down.error, LinkClosed)
    assert str(down.error) == f"the node before ({HOST}:1) closed the connection without a goodbye"


def test_a_predecessor_that_resets_is_lost(bench: Bench) -> None:
    end = bench.end(1)
    end.link.accept()
    reset(bench.predecessor(end))
    error = end.down().error
    assert isinstance(error, LinkClosed)
    assert "connection lost: Connection reset by peer" in str(error)


@pytest.mark.parametrize("n_bytes", [1, HEADER_BYTES, HEADER_BYTES + 20])
def test_a_frame_that_is_cut_off_is_a_lost_node(bench: Bench, n_bytes: int) -> None:
    end = bench.end(1)
    end.link.accept()
    sock = bench.predecessor(end)
    sock.sendall(activation([(0, 0, 1, 1)], rows(1))[:n_bytes])
    sock.close()
    error = end.down().error
    assert isinstance(error, LinkClosed)
    assert "within a frame without a goodbye" in str(error)


@pytest.mark.parametrize("n_bytes", [0, 1, HEADER_BYTES + 20])
def test_a_predecessor_that_falls_silent_is_lost(bench: Bench, n_bytes: int) -> None:
    end = bench.end(1, peer_timeout_s=0.2)
    end.link.accept()
    bench.predecessor(end).sendall(activation([(0, 0, 1, 1)], rows(1))[:n_bytes])
    down = end.down()
    assert down.peer is end.link.config.predecessor
    assert isinstance(down.error, LinkTimeout)
    assert str(down.error) == f"the node before ({HOST}:1) gave no sign of life for 0.2 s"


def test_a_predecessor_that_breaks_the_protocol_is_named(bench: Bench) -> None:
    end = bench.end(1)
    end.link.accept()
    bench.predecessor(end).sendall(activation([(7, 0, 1, 1)], rows(1)))
    down = end.down()
    assert down.peer is end.link.config.predecessor
    assert isinstance(down.error, RemoteProtocolError)
    assert "the node before" in str(down.error)
    assert "there are 3 slots" in str(down.error)


# ---- a successor that is lost


@pytest.mark.parametrize("how", ["closes", "resets"])
def test_a_successor_that_is_gone_is_noticed_while_idle(bench: Bench, how: str) -> None:
    listener = bench.listener()
    end = bench.end(listener.getsockname()[1], timeouts=FREQUENT_PINGS)
    end.link.connect()
    sock = bench.successor(listener)
    reset(sock) if how == "resets" else sock.close()
    down = end.down()
    assert down.peer is end.link.config.successor
    assert isinstance(down.error, LinkClosed)
    assert "connection lost" in str(down.error)


def test_a_successor_that_takes_nothing_is_lost(bench: Bench) -> None:
    listener = bench.listener()
    end = bench.end(listener.getsockname()[1], session=LARGE, peer_timeout_s=0.2)
    end.link.connect()
    bench.successor(listener)
    end.link.send(FLOOD)
    down = end.down()
    assert down.peer is end.link.config.successor
    assert isinstance(down.error, LinkTimeout)


def test_our_own_mistake_is_reported_as_ours(bench: Bench) -> None:
    listener = bench.listener()
    end = bench.end(listener.getsockname()[1])
    end.link.connect()
    bench.successor(listener)
    end.link.send(Activation((Segment(0, 0, 2, 1),), memoryview(rows(5))))
    assert isinstance(end.down().error, LocalProtocolError)


def test_more_messages_than_can_travel_are_a_bug_that_still_lets_the_link_close(bench: Bench) -> None:
    end = bench.end(1)
    end.link.accept()
    for _ in range(10):
        end.link.send(ONE_ROW)
    with pytest.raises(queue.Full):
        end.link.send(ONE_ROW)
    assert_closes_at_once(end)


# ---- silence


def test_an_idle_link_pings(bench: Bench) -> None:
    listener = bench.listener()
    end = bench.end(listener.getsockname()[1], timeouts=FREQUENT_PINGS)
    end.link.connect()
    arriving = pings(bench.successor(listener))
    for _ in range(10):
        next(arriving)


def test_pings_go_no_further(bench: Bench) -> None:
    end = bench.end(1)
    end.link.accept()
    sock = bench.predecessor(end)
    sock.sendall(frame(7) * 10 + activation([(0, 0, 1, 1)], rows(1)))
    assert end.message() == ONE_ROW


def test_pings_keep_an_idle_ring_alive(bench: Bench) -> None:
    end = bench.end(1, peer_timeout_s=1.0)
    end.link.accept()
    sock = bench.predecessor(end)
    for _ in range(12):
        sock.sendall(frame(7))
        time.sleep(0.1)
    sock.sendall(activation([(0, 0, 1, 1)], rows(1)))
    assert end.message() == ONE_ROW


def test_a_short_peer_timeout_does_not_outrun_the_pings() -> None:
    timeouts = Timeouts(ping_interval_s=1.0)
    assert timeouts.ping_every_s(60.0) == 1.0
    assert timeouts.ping_every_s(1.5) == 0.5
    assert timeouts.ping_every_s(0.1) < 0.1 / 2


# ---- closing


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
    for message in (ONE_ROW, Release(1), Fault(1, "the end")):
        end.link.send(message)
    closing = threading.Thread(target=end.link.close, args=(PATIENCE_S,))
    closing.start()
    expected = [
        activation([(0, 0, 1, 1)], rows(1)),
        frame(5, struct.pack("<IIII", 1, 0, 0, 0)),
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


# ---- listen


def test_a_listener_takes_any_free_port() -> None:
    with listen(HOST, 0) as one, listen("localhost", 0) as other:
        assert one.getsockname()[1] != other.getsockname()[1]


def test_a_port_in_use_is_refused_with_advice() -> None:
    with listen(HOST, 0) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError) as caught:
            listen(HOST, port)
    assert str(caught.value) == (
        f"cannot listen on {HOST} port {port}: another program uses this port; stop it or choose another port in the"
        " nodes configuration"
    )
    listen(HOST, port).close()


@pytest.mark.parametrize("addr", ["192.0.2.1", "10.7..48.46", "a" * 64])
def test_an_address_of_another_machine_is_refused_with_advice(addr: str) -> None:
    with pytest.raises(ConfigError, match=f"cannot listen on {addr} port 0: this is not an address of this machine"):
        listen(addr, 0)
