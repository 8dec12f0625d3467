"""A child that ends when the program that started it has ended, however that came about: even killed.

The child's standard input is a pipe that nothing is written to. The parent holds the other end, and the system closes
that with the parent.
"""

import contextlib
import os
import signal
import threading
import time

VARIABLE = "MDI_END_WITH_STDIN"  # tells a script that its standard input is such a pipe
_AGAIN_S = 1.0


class Lifeline:
    """The parent's end, held until `close`."""

    def __init__(self) -> None:
        # Python lets no other program inherit either end, but the one that is given as a standard input.
        self.stdin, self._held = os.pipe()
        self.environment = os.environ | {VARIABLE: "1"}

    def close(self) -> None:
        """Children that are still there end now."""
        os.close(self.stdin)
        os.close(self._held)


def end_with_parent() -> None:
    """The child's part: where the variable is set, SIGTERM for this process as soon as its standard input ends.

    Children of its own do not get the variable.
    """
    if os.environ.pop(VARIABLE, None):
        threading.Thread(target=_await_end, name="lifeline", daemon=True).start()


def _await_end() -> None:
    with contextlib.suppress(OSError):
        while os.read(0, 4096):
            pass
    while True:  # a server ends at the second signal; at the first it would finish its answers, for nobody
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(_AGAIN_S)
