"""What several nodes say, as one log."""

import os
import signal
import sys
from collections.abc import Sequence
from typing import Protocol

from mdi.terminal import screen

_COLOURS = (36, 33, 32, 35, 34, 31)  # cyan, yellow, green, magenta, blue, red: told apart on light and dark
_RESET = "\x1b[0m"


class Watcher(Protocol):
    """Is told what nodes say and how they end, by threads of theirs."""

    def say(self, node: str, line: str) -> None:
        """A line of a node's log."""

    def write(self, text: str) -> None:
        """A piece of the starter's output. What it raises as `OSError` closes that."""

    def end(self, node: str, status: int) -> None:
        """A node has ended, and nobody had asked for that; `status` is -n after signal n."""


class MergedLog:
    """The lines of all nodes on stderr, with the name of the node in front; the starter's output on stdout."""

    def __init__(self, names: Sequence[str], *, in_colour: bool | None = None) -> None:
        """Colours are used where stderr is a terminal and NO_COLOR is not set, unless `in_colour` says otherwise."""
        if in_colour is None:
            in_colour = sys.stderr.isatty() and not os.environ.get("NO_COLOR")
        width = max(map(len, names))
        self._prefixes = {}
        for index, name in enumerate(names):
            prefix = f"{name:<{width}} |"
            colour = _COLOURS[index % len(_COLOURS)]
            self._prefixes[name] = f"\x1b[{colour}m{prefix}{_RESET} " if in_colour else f"{prefix} "

    def say(self, node: str, line: str) -> None:
        screen.write_line(f"{self._prefixes[node]}{line}")

    def write(self, text: str) -> None:
        screen.write_text(text, sys.stdout)

    def end(self, node: str, status: int) -> None:
        if node != "starter" and status:
            screen.write_line(f"{node} {ending(status)}; the ring waits for it, or goes on without it")
        elif status:
            screen.write_line(f"{node} {ending(status)}")


def ending(status: int) -> str:
    """How a process ended, as the predicate of a sentence; `status` is -n after signal n."""
    return f"was killed by {signal.Signals(-status).name}" if status < 0 else f"ended with exit status {status}"
