"""Accepting connections, also while there are no descriptors."""

import contextlib
import errno
import os
import selectors
import socket
from collections.abc import Iterator

import pytest

from mdi.net.accepting import MAX_ACCEPTED, REST_S, Accepting
from mdi.net.sockets import listen
from support.clocks import ManualClock
from support.links import HOST

PATIENCE_S = 60.0


class Failing(socket.socket):
    """A listener whose `accept` fails as long as there is an `error`."""

    error: int | None = None

    def accept(self) -> tuple[socket.socket, object]:
        if self.error is not None:
            raise OSError(self.error, os.strerror(self.error))
        return super().accept()


@pytest.fixture
def listener() -> Iterator[Failing]:
    with listen(HOST, 0) as plain, Failing(fileno=plain.detach()) as failing:
        yield failing


@pytest.fixture
def selector() -> Iterator[selectors.BaseSelector]:
    with selectors.DefaultSelector() as selector:
        yield selector


@pytest.mark.parametrize("error", [errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.EPERM])
def test_a_listener_that_cannot_accept_rests_and_recovers(
    listener: Failing, selector: selectors.BaseSelector, error: int
) -> None:
    clock = ManualClock()
    accepting = Accepting(listener, selector, clock)
    listener.error = error
    with socket.create_connection(listener.getsockname()):
        assert selector.select(PATIENCE_S)
        assert list(accepting.accept()) == []
        assert accepting.is_resting
        assert selector.select(0) == []  # though the connection still waits: no busy loop
        clock.now_s += REST_S - 0.01
        accepting.resume()
        assert selector.select(0) == []
        listener.error = None
        clock.now_s += 0.01
        accepting.resume()
        assert not accepting.is_resting
        assert selector.select(PATIENCE_S)
        ((sock, address),) = accepting.accept()
        sock.close()
        assert address == HOST


def test_a_connection_that_is_gone_is_no_failure(listener: Failing, selector: selectors.BaseSelector) -> None:
    listener.error = errno.ECONNABORTED
    accepting = Accepting(listener, selector, ManualClock())
    assert list(accepting.accept()) == []
    assert not accepting.is_resting


def test_a_listener_that_is_closed_is_an_error(listener: Failing, selector: selectors.BaseSelector) -> None:
    accepting = Accepting(listener, selector, ManualClock())
    listener.error = errno.EBADF
    with pytest.raises(OSError, match="Bad file descriptor"):
        list(accepting.accept())


def test_a_flood_is_accepted_in_turns(listener: Failing, selector: selectors.BaseSelector) -> None:
    accepting = Accepting(listener, selector, ManualClock())
    with contextlib.ExitStack() as stack:
        for _ in range(MAX_ACCEPTED + 5):
            stack.enter_context(socket.create_connection(listener.getsockname()))
        for expected in (MAX_ACCEPTED, 5, 0):
            accepted = [stack.enter_context(sock) for sock, _ in accepting.accept()]
            assert len(accepted) == expected
