"""The progress bar: drawn on a terminal, and nowhere else."""

import io
import sys
import threading

import pytest

from mdi.progress import progress_bar


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_bar_is_drawn_on_a_terminal_and_leaves_no_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    before = threading.active_count()
    with progress_bar(2_000_000, "download", "B") as advance:
        advance(2_000_000)
    assert "download: 100%, 2.00 MB of 2.00 MB" in terminal.getvalue()
    assert threading.active_count() == before


def test_no_bar_is_drawn_anywhere_else(monkeypatch: pytest.MonkeyPatch) -> None:
    log = io.StringIO()
    monkeypatch.setattr(sys, "stderr", log)
    with progress_bar(None, "download", "files") as advance:
        advance(1)
    assert log.getvalue() == ""
