"""Where messages come from: here a pipe, line by line; `editor` has the terminal.

Each message is read by a thread, so that the chat waits for everything in one place, its inbox.
"""

import io
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from mdi.inbox import Inbox

QUOTE = '"""'


@dataclass(frozen=True)
class Typed:
    """A message."""

    text: str


@dataclass(frozen=True)
class Cleared:
    """The line that was being typed is thrown away."""


@dataclass(frozen=True)
class InputEnded:
    """There will be no more messages."""


@dataclass(frozen=True)
class InputFailed:
    """A bug, to be raised on the main thread."""

    error: Exception


class Keyboard(Protocol):
    """Posts one of these events to the inbox each time it is asked."""

    def ask(self) -> None: ...

    def close(self) -> None:
        """Stop to wait, and leave the terminal as it was."""


def is_open(text: str) -> bool:
    """Whether a message goes on in the next line: it has a quote that is not closed."""
    return text.count(QUOTE) % 2 == 1


def unquoted(text: str) -> str:
    """A message without the quotes around its lines."""
    stripped = text.strip()
    if len(stripped) >= 2 * len(QUOTE) and stripped.startswith(QUOTE) and stripped.endswith(QUOTE):
        return stripped[len(QUOTE) : -len(QUOTE)].strip("\n")
    return text


def read_in_thread(read: Callable[[], Typed | Cleared | InputEnded], inbox: Inbox) -> threading.Thread:
    """Post what `read` returns, when it does."""

    def run() -> None:
        try:
            event: object = read()
        except OSError:  # the terminal is gone
            event = InputEnded()
        except Exception as exc:  # noqa: BLE001  it is raised on the main thread
            event = InputFailed(exc)
        inbox.post(event)

    thread = threading.Thread(target=run, name="input", daemon=True)
    thread.start()
    return thread


class Pipe:
    """Reads standard input by lines: a file, another program, or a terminal without editing."""

    def __init__(self, inbox: Inbox) -> None:
        self._inbox = inbox
        if isinstance(sys.stdin, io.TextIOWrapper):
            sys.stdin.reconfigure(errors="replace")  # bytes that are no text in this locale

    def ask(self) -> None:
        read_in_thread(self._read, self._inbox)

    def close(self) -> None:
        """A thread that waits for a line ends with the process."""

    @staticmethod
    def _read() -> Typed | InputEnded:
        lines: list[str] = []
        while not lines or is_open("".join(lines)):
            if not (line := sys.stdin.readline()):
                break
            lines.append(line)
        return Typed(unquoted("".join(lines).removesuffix("\n"))) if lines else InputEnded()
