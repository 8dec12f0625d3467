"""How an answer is shown as it grows: here as plain text; `markdown` renders it."""

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Protocol, TextIO

from mdi.terminal import screen

Add = Callable[[str], None]  # shows more of an answer


class Display(Protocol):
    """Shows one answer after the other."""

    def answer(self) -> AbstractContextManager[Add]:
        """A block in which one answer grows; at its end the answer ends, complete or not."""


class Plain:
    """The text itself, ended by a newline."""

    def __init__(self, out: TextIO) -> None:
        self._out = out

    @contextlib.contextmanager
    def answer(self) -> Iterator[Add]:
        last = "\n"

        def add(text: str) -> None:
            nonlocal last
            screen.write_text(text, self._out)
            last = text[-1:] or last

        try:
            yield add
        finally:
            if last != "\n":
                screen.write_text("\n", self._out)
