"""Accepting connections in the loop of a selector, also while the process has no descriptor left."""

import errno
import selectors
import socket
from collections.abc import Iterator

from mdi.net.timeouts import Clock

MAX_ACCEPTED = 16  # in one turn of the loop: those that are already connected have their turn in between
REST_S = 0.2  # without accepting, where that failed: mostly for want of descriptors or memory
_OF_THE_LISTENER = (errno.EBADF, errno.EINVAL, errno.ENOTSOCK)


def descriptor_limit() -> int:
    """How many files and sockets this process may have open at once."""
    try:
        import resource
    except ImportError:  # on Windows, where sockets are not counted
        return 1 << 20
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return 1 << 20 if soft == resource.RLIM_INFINITY else soft


class Accepting:
    """A listener that is registered with a selector, for as long as connections can be accepted."""

    def __init__(self, listener: socket.socket, selector: selectors.BaseSelector, clock: Clock) -> None:
        self._listener, self._selector, self._clock = listener, selector, clock
        self._resting_until_s: float | None = None
        listener.setblocking(False)  # one that is ready may have been closed by its peer meanwhile
        selector.register(listener, selectors.EVENT_READ)

    @property
    def is_resting(self) -> bool:
        """Whether nothing is accepted for the moment; `resume` is then to be called after `REST_S`."""
        return self._resting_until_s is not None

    def accept(self) -> Iterator[tuple[socket.socket, str]]:
        """Up to `MAX_ACCEPTED` connections that wait, each with the address of its peer."""
        for _ in range(MAX_ACCEPTED):
            try:
                sock, (address, *_) = self._listener.accept()
            except BlockingIOError:
                return
            except ConnectionError:  # closed by its peer while it was in the backlog
                continue
            except OSError as exc:
                if exc.errno in _OF_THE_LISTENER:
                    raise
                self._rest()
                return
            yield sock, address

    def resume(self) -> None:
        """Accept again, if the rest is over."""
        if self._resting_until_s is not None and self._clock() >= self._resting_until_s:
            self._resting_until_s = None
            self._selector.register(self._listener, selectors.EVENT_READ)

    def _rest(self) -> None:
        """The listener stays ready, and a selector that watches it would return at once, again and again."""
        self._resting_until_s = self._clock() + REST_S
        self._selector.unregister(self._listener)
