"""stdout and stderr when nobody reads them any more."""

import contextlib
import os
import stat
import sys


def drop_stdout() -> None:
    """What is still buffered goes nowhere, so that flushing it at exit cannot fail."""
    _to_nowhere(sys.stdout.fileno())


def leave_dead_terminal() -> None:
    """Let stdout and stderr go nowhere where they are a terminal that is gone: each write would be an error."""
    for descriptor in (1, 2):
        with contextlib.suppress(OSError):  # it is closed
            if stat.S_ISCHR(os.fstat(descriptor).st_mode) and not os.isatty(descriptor):
                _to_nowhere(descriptor)


def _to_nowhere(descriptor: int) -> None:
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, descriptor)
    os.close(null)
