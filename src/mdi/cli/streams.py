"""The standard streams where they are closed, or when nobody reads them any more."""

import contextlib
import os
import stat
import sys
from collections.abc import Iterator


def open_missing() -> None:
    """Let standard streams that are closed (`>&-` in a shell) be /dev/null.

    Otherwise the next file or socket would get the number of one, and what a library prints. Called before anything
    is opened.
    """
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest number that is free
    # Python has None in the place of a stream that was closed when it began.
    sys.stdin = sys.stdin or os.fdopen(0, encoding="utf-8", closefd=False)
    sys.stdout = sys.stdout or os.fdopen(1, "w", encoding="utf-8", closefd=False)
    sys.stderr = sys.stderr or os.fdopen(2, "w", encoding="utf-8", closefd=False)


def drop_stdout() -> None:
    """What is still buffered goes nowhere, so that flushing it at exit cannot fail."""
    _to_nowhere(sys.stdout.fileno())


def leave_dead_terminal() -> None:
    """Let stdout and stderr go nowhere where they are a terminal that is gone: each write would be an error."""
    for descriptor in (1, 2):
        with contextlib.suppress(OSError):  # it is closed
            if stat.S_ISCHR(os.fstat(descriptor).st_mode) and not os.isatty(descriptor):
                _to_nowhere(descriptor)


@contextlib.contextmanager
def without_echo() -> Iterator[None]:
    """Within the block a terminal does not show what is typed. Nothing changes where stdin is none."""
    if not os.isatty(0):
        yield
        return
    import termios  # not on every system

    before = termios.tcgetattr(0)
    silent = before.copy()
    silent[3] &= ~termios.ECHO
    termios.tcsetattr(0, termios.TCSADRAIN, silent)
    try:
        yield
    finally:
        termios.tcsetattr(0, termios.TCSADRAIN, before)


def _to_nowhere(descriptor: int) -> None:
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, descriptor)
    os.close(null)
