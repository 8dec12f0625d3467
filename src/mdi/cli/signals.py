"""SIGINT, SIGTERM and SIGHUP: the first one ends the program in order, later ones change nothing."""

import contextlib
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import TYPE_CHECKING, NoReturn

from mdi.cli.streams import leave_dead_terminal
from mdi.inbox import Stopped

if TYPE_CHECKING:
    from sys import UnraisableHookArgs

GRACE_S = 8.0  # for a clean shutdown after a signal
AGAIN_S = 0.2


class Signals:
    """What becomes of a signal that is to end this program. A thread of its own waits for it.

    At first there is nothing to put in order, and the process exits at once, from that thread. Python would run a
    handler on the main thread, between any two of its instructions; an exception there, within the import of torch,
    aborts the process.

    Within `raised`, `Stopped` is raised on the main thread: it ends a call that waits, and removes what is half made.
    In a destructor, a callback from C or code that catches everything an exception is lost; so it is raised again,
    until it is on its way up.

    Within `passed_to`, nothing is raised. A node is at work, and an exception at any instruction of it could leave a
    lock taken, or half a frame sent.

    Whatever becomes of the signal, the thread ends the process after the grace.

    Within `interrupts_passed_to`, SIGINT is none of these signals.
    """

    def __init__(self, grace_s: float = GRACE_S) -> None:
        self.grace_s = grace_s  # from the first signal on
        self._receive: Callable[[signal.Signals], None] | None = None
        self._receive_interrupt: Callable[[], None] | None = None
        self._first: signal.Signals | None = None
        self.n_came = 0  # signals so far
        self._is_due = False  # whether the handler is to raise when it runs next

    def watch(self) -> None:
        """Handle the signals from now on. Called once, on the main thread."""
        news, wakeup = os.pipe()
        os.set_blocking(wakeup, False)  # Python insists: its C handler writes there, and must not wait
        signal.set_wakeup_fd(wakeup, warn_on_full_buffer=False)
        sys.unraisablehook = _silent_on_stopped(sys.unraisablehook)
        threading.Thread(target=self._await_signal, args=(news,), name="signals", daemon=True).start()
        for number in _ending_signals():
            signal.signal(number, self._handle)

    def ignore(self) -> None:
        """No signal changes the exit code any more. Called on the main thread, when the program has come to its end."""
        for number in _ending_signals():
            signal.signal(number, signal.SIG_IGN)

    @contextlib.contextmanager
    def passed_to(self, receive: Callable[[signal.Signals], None]) -> Iterator[None]:
        """Within the block a signal raises nothing: another thread calls `receive` with it, again and again."""
        before, self._receive = self._receive, receive
        try:
            yield
        finally:
            self._receive = before

    @contextlib.contextmanager
    def raised(self) -> Iterator[None]:
        """Within the block, on the main thread, a signal raises `Stopped`."""
        with self.passed_to(self._have_it_raised):
            yield

    @contextlib.contextmanager
    def interrupts_passed_to(self, receive: Callable[[], None]) -> Iterator[None]:
        """Within the block Ctrl-C does not end the program: another thread calls `receive` for each time."""
        self._receive_interrupt = receive
        try:
            yield
        finally:
            self._receive_interrupt = None

    def check(self) -> None:
        """Raise `Stopped` if there was a signal: for what waits within `passed_to` without an inbox."""
        if self._first is not None:
            raise Stopped(self._first)

    @property
    def came(self) -> bool:
        """Whether there was a signal."""
        return self._first is not None

    # ---- the thread that waits

    def _await_signal(self, news: int) -> None:
        number = self._first = self._await_first(news)
        self.n_came = 1
        if self._receive is None:
            _exit_at_once(number)
        if number == signal.SIGHUP:
            leave_dead_terminal()
        began_s = time.monotonic()
        while (left_s := began_s + self.grace_s - time.monotonic()) > 0:
            if (receive := self._receive) is not None:
                receive(number)
            if select.select([news], [], [], min(AGAIN_S, left_s))[0]:
                self.n_came += len(os.read(news, 4096))
                time.sleep(AGAIN_S)  # one of ours, perhaps: `_have_it_raised`
        os._exit(128 + number)

    def _await_first(self, news: int) -> signal.Signals:
        while True:
            number = signal.Signals(os.read(news, 1)[0])
            if number != signal.SIGINT or (receive := self._receive_interrupt) is None:
                return number
            receive()

    def _have_it_raised(self, number: signal.Signals) -> None:
        self._is_due = True
        signal.pthread_kill(threading.main_thread().ident or 0, number)  # `_handle` runs

    # ---- on the main thread, between any two instructions

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._is_due and self._receive == self._have_it_raised and not _is_on_its_way():
            self._is_due = False
            self.check()


def _exit_at_once(number: signal.Signals) -> NoReturn:
    if number == signal.SIGINT:
        with contextlib.suppress(OSError):
            os.write(2, b"interrupted\n")
    os._exit(128 + number)


def _ending_signals() -> list[signal.Signals]:
    """A hangup that was ignored when the program began stays ignored: that is what `nohup` is for."""
    hangup = [] if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN else [signal.SIGHUP]
    return [signal.SIGINT, signal.SIGTERM, *hangup]


def _is_on_its_way() -> bool:
    """Whether `Stopped` is being handled on this thread, or was when that which is being handled was raised."""
    exc = sys.exc_info()[1]
    while exc is not None and not isinstance(exc, Stopped):
        exc = exc.__context__
    return exc is not None


def _silent_on_stopped(hook: Callable[["UnraisableHookArgs"], object]) -> Callable[["UnraisableHookArgs"], object]:
    """`hook`, without a word about a `Stopped` that is lost: it comes again."""
    return lambda lost: None if issubclass(lost.exc_type, Stopped) else hook(lost)
