"""The one writer for the terminal that stdout and stderr share: text, lines of the log and progress bars do not mix.

A line of the log begins a line of its own, also where the text has not ended its own; the text goes on in the next
one. Progress bars are one line below everything else. A stream that is no terminal gets what is written to it, and no
bars.
"""

import contextlib
import shutil
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TextIO

from mdi.strings import format_bytes, without_controls

REDRAW_S = 0.1


@dataclass(eq=False)
class Bar:
    """How far some work is. `unit` is what is counted; `B` for bytes."""

    label: str
    total: int | None  # None: unknown
    unit: str
    initial: int = 0  # done before it began
    done: int = 0  # since then
    began_s: float = field(default_factory=time.monotonic)

    @property
    def text(self) -> str:
        """`chunk for secondary 0: 45%, 120.00 MB of 266.67 MB, 11.80 MB/s`"""
        elapsed_s = max(time.monotonic() - self.began_s, 1e-3)
        position = self.initial + self.done
        if not self.total:
            return f"{self.label}: {self._amount(position)}"
        share = f"{100 * position // self.total}%, {self._amount(position)} of {self._amount(self.total)}"
        return f"{self.label}: {share}, {self._amount(self.done / elapsed_s)}/s"

    @property
    def result(self) -> str:
        """`chunk for secondary 0: 266.67 MB in 22.6 s`"""
        return f"{self.label}: {self._amount(self.done)} in {time.monotonic() - self.began_s:.1f} s"

    def _amount(self, n: float) -> str:
        return format_bytes(n) if self.unit == "B" else f"{n:.0f} {self.unit}"


class Terminal:
    """Any thread may write to it. What is written reaches the system before a method returns."""

    def __init__(self, err: TextIO | None = None) -> None:
        """`err` is whatever stderr is at the time, unless given."""
        self._given_err = err
        self.is_quiet = False  # whether bars are left out
        self._lock = threading.RLock()
        self._bars: list[Bar] = []
        self._drawn_s: float | None = None  # when the line of bars was drawn at which the cursor stands
        self._is_line_open = False  # whether the cursor stands behind text

    @property
    def shows_bars(self) -> bool:
        """Whether stderr is a terminal, and bars are wanted."""
        return not self.is_quiet and _is_terminal(self._err)

    @property
    def _err(self) -> TextIO:
        return self._given_err or sys.stderr

    def write_text(self, text: str, out: TextIO) -> None:
        """Write to `out`, which is stdout but in tests; raises `OSError` as it does.

        A terminal is shown what it would act upon: the text is a model's, or comes from another program.
        """
        is_terminal = _is_terminal(out)
        with self._lock:
            self._erase()
            out.write(without_controls(text) if is_terminal else text)
            out.flush()
            if text and is_terminal:
                self._is_line_open = not text.endswith("\n")
            self._draw()

    def write_line(self, line: str) -> None:
        """Write a line to stderr. Where nobody reads it any more it is lost."""
        with self._lock, contextlib.suppress(OSError, ValueError):
            self._erase()
            self._write(f"{self._end_line()}{line}\n")
            self._draw()

    @contextlib.contextmanager
    def bar(self, bar: Bar) -> Iterator[None]:
        """Draw a bar, with those of other threads, while the block runs; a line tells the result if it succeeds."""
        with self._lock:
            self._bars.append(bar)
        try:
            yield
        except BaseException:
            self._remove(bar)
            raise
        self._remove(bar)
        self.write_line(bar.result)

    def advance(self, bar: Bar, n: int) -> None:
        """`n` more of a bar are done."""
        with self._lock, contextlib.suppress(OSError, ValueError):
            bar.done += n
            if self._drawn_s is None or time.monotonic() - self._drawn_s >= REDRAW_S:
                self._draw()

    def _remove(self, bar: Bar) -> None:
        with self._lock, contextlib.suppress(OSError, ValueError):
            self._bars.remove(bar)
            self._erase()
            self._draw()

    # ---- with the lock held

    def _draw(self) -> None:
        if not self._bars or not self.shows_bars:
            return
        text = "; ".join(bar.text for bar in self._bars)
        columns = shutil.get_terminal_size().columns
        text = text[: columns - 1 if text.isascii() else columns // 2]  # other characters may take two columns
        self._write(f"{self._end_line()}\r{text}\x1b[K")
        self._drawn_s = time.monotonic()

    def _erase(self) -> None:
        if self._drawn_s is not None:
            self._drawn_s = None
            self._write("\r\x1b[K")

    def _end_line(self) -> str:
        """What takes the cursor to the beginning of a line, if text has left it elsewhere on stderr's terminal."""
        is_open, self._is_line_open = self._is_line_open and _is_terminal(self._err), False
        return "\n" if is_open else ""

    def _write(self, text: str) -> None:
        self._err.write(text)
        self._err.flush()


def _is_terminal(stream: TextIO | None) -> bool:
    try:
        return stream is not None and stream.isatty()
    except ValueError:  # it is closed
        return False


screen = Terminal()  # of this process: it has one stdout and one stderr
