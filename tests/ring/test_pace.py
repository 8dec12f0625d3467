"""How long a frame may take: long enough for any link that gets on, and short enough for one that does not."""

import contextlib
import socket
import threading
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mdi.errors import LinkTimeout
from mdi.net.timeouts import Timeouts
from mdi.ring.pace import MIN_MEASURED_BYTES, N_MEASURED, Pace
from support.clocks import ManualClock
from support.links import FLOOD, LARGE, PATIENCE_S, Bench
from support.wire import activation, few_examples, frame, rows

PEER_TIMEOUT_S = 5.0
MB = 1_000_000


def pace_of(timeouts: Timeouts | None = None) -> Pace:
    timeouts = timeouts or Timeouts()
    return Pace(timeouts, PEER_TIMEOUT_S, timeouts.fast_link_bytes_s)


@given(
    st.integers(0, 10**10),
    st.lists(st.tuples(st.integers(0, 10**9), st.floats(0.0, 1e4)), max_size=20),
    st.floats(0.1, 1000.0),
)
@few_examples
def test_no_frame_has_less_time_than_a_silence(
    n_bytes: int, passed: list[tuple[int, float]], peer_timeout_s: float
) -> None:
    pace = Pace(Timeouts(), peer_timeout_s, Timeouts().fast_link_bytes_s)
    for size, took_s in passed:
        pace.passed(size, took_s)
    assert pace.limit_s(n_bytes) >= peer_timeout_s


def test_a_token_that_does_not_get_through_is_noticed_like_a_silence() -> None:
    assert pace_of().limit_s(16_384) == PEER_TIMEOUT_S


def test_nothing_has_more_than_a_minute_unless_it_is_expected_to_take_half_of_one() -> None:
    pace = pace_of()
    assert pace.limit_s(2 * MB) == 60.0
    assert pace.limit_s(int(30 * 256e3)) == 60.0
    assert pace.limit_s(int(40 * 256e3)) == 80.0


@pytest.mark.parametrize("usual_bytes_s", [50e3, 1e6, 12e6, 1e9])
def test_a_link_may_be_eight_times_as_slow_as_usual(usual_bytes_s: float) -> None:
    pace, n_bytes = pace_of(), 256_000
    for _ in range(N_MEASURED):
        pace.passed(n_bytes, n_bytes / usual_bytes_s)
    assert pace.limit_s(n_bytes) >= min(8 * n_bytes / usual_bytes_s, 60.0)


def test_a_fast_link_is_expected_to_stay_fast() -> None:
    pace = pace_of()
    for _ in range(N_MEASURED):
        pace.passed(2 * MB, 0.2)
    assert pace.limit_s(2 * MB) == PEER_TIMEOUT_S
    pace.passed(2 * MB, 2.0)  # once slow is slow for a while
    assert pace.limit_s(2 * MB) == 20.0
    for _ in range(N_MEASURED):
        pace.passed(2 * MB, 0.2)
    assert pace.limit_s(2 * MB) == PEER_TIMEOUT_S


def test_small_frames_say_nothing_of_large_ones() -> None:
    pace = pace_of()
    pace.passed(MIN_MEASURED_BYTES - 1, 1e-6)
    assert pace.limit_s(2 * MB) == 60.0


def test_what_was_measured_in_buffers_is_not_believed() -> None:
    pace = pace_of()
    pace.passed(64 * MB, 0.001)
    assert pace.limit_s(100 * MB) == 60.0


def test_the_time_of_a_frame_runs_from_its_first_byte() -> None:
    clock = ManualClock()
    transfer = pace_of(Timeouts(clock=clock)).begin()
    for _ in range(4):
        clock.now_s += 1.2
        transfer.check(100)
    clock.now_s += 0.3
    with pytest.raises(LinkTimeout, match=r"^is too slow: 100 B were not through after 5 s$"):
        transfer.check(100)
    transfer.check(2 * MB)  # its header has come, and there is more of it than was known


# ---- on real sockets

QUICK = Timeouts(handshake_s=PATIENCE_S, link_bytes_s=1e12)  # every frame has as long as a silence


@contextlib.contextmanager
def dripping(sock: socket.socket, data: bytes, every_s: float = 0.05) -> Iterator[None]:
    """Send a byte at a time meanwhile."""
    done = threading.Event()

    def drip() -> None:
        with contextlib.suppress(OSError):
            for byte in data:
                sock.sendall(bytes([byte]))
                if done.wait(every_s):
                    return

    thread = threading.Thread(target=drip)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


@pytest.mark.slow
@pytest.mark.parametrize("data", [activation([(0, 0, 1, 1)], rows(1)), frame(7)], ids=["rows", "ping"])
def test_a_predecessor_that_sends_a_byte_at_a_time_is_lost(bench: Bench, data: bytes) -> None:
    """Each byte is a sign of life, so no silence would ever tell."""
    end = bench.end(1, peer_timeout_s=1.0, timeouts=QUICK)
    end.link.accept()
    with dripping(bench.predecessor(end), data * 100):
        down = end.down()
    assert down.peer is end.link.config.predecessor
    assert isinstance(down.error, LinkTimeout)
    assert "the node before" in str(down.error)
    assert "is too slow: " in str(down.error)


@pytest.mark.slow
def test_a_successor_that_takes_little_at_a_time_is_lost(bench: Bench) -> None:
    listener = bench.listener()
    end = bench.end(listener.getsockname()[1], session=LARGE, peer_timeout_s=2.0, timeouts=QUICK)
    end.link.connect()
    sock, done = bench.successor(listener), threading.Event()

    def sip() -> None:
        with contextlib.suppress(OSError):
            while not done.wait(0.05) and sock.recv(1 << 18):
                pass

    thread = threading.Thread(target=sip)
    thread.start()
    try:
        end.link.send(FLOOD)
        down = end.down()
    finally:
        done.set()
        thread.join()
    assert down.peer is end.link.config.successor
    assert isinstance(down.error, LinkTimeout)
    assert "is too slow: " in str(down.error)


@pytest.mark.slow
def test_a_slow_link_that_gets_on_is_left_alone(bench: Bench) -> None:
    """Its frame takes several times as long as a silence may."""
    end = bench.end(1, peer_timeout_s=1.0, timeouts=Timeouts(handshake_s=PATIENCE_S, link_bytes_s=1.0))
    end.link.accept()
    with dripping(bench.predecessor(end), activation([(0, 0, 1, 1)], rows(1)), every_s=0.03):
        end.message()
