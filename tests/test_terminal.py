"""The terminal: text, lines of the log and progress bars, as a person sees them."""

import io
import threading

import pytest

from mdi.terminal import Bar, Terminal


class Screen(io.StringIO):
    """A terminal of many columns: `shown` are its lines when all that was written to it has been acted upon."""

    def isatty(self) -> bool:
        return True

    @property
    def shown(self) -> list[str]:
        lines = [""]
        column = 0
        for part in self.getvalue().replace("\x1b[K", "\x00"):
            if part == "\n":
                lines.append("")
                column = 0
            elif part == "\r":
                column = 0
            elif part == "\x00":
                lines[-1] = lines[-1][:column]
            else:
                lines[-1] = lines[-1][:column] + part + lines[-1][column + 1 :]
                column += 1
        return lines


@pytest.fixture
def screen(monkeypatch: pytest.MonkeyPatch) -> Screen:
    """Where stdout and stderr go."""
    monkeypatch.setenv("COLUMNS", "200")
    return Screen()


def test_a_line_of_the_log_begins_a_line_of_its_own(screen: Screen) -> None:
    terminal = Terminal(screen)
    terminal.write_text("Once upon a ti", screen)
    terminal.write_line("secondary 1 is lost")
    terminal.write_line("secondary 1 is back")
    terminal.write_text("me\n", screen)
    terminal.write_line("done")
    assert screen.shown == ["Once upon a ti", "secondary 1 is lost", "secondary 1 is back", "me", "done", ""]


def test_what_is_written_stands_above_the_bars(screen: Screen) -> None:
    terminal = Terminal(screen)
    first, second = Bar("chunk for secondary 0", 2_000_000, "B"), Bar("chunk for secondary 1", None, "tensors")
    with terminal.bar(first):
        terminal.advance(first, 1_000_000)
        terminal.write_line("secondary 2 is ready")
        assert screen.shown[0] == "secondary 2 is ready"
        assert screen.shown[1].startswith("chunk for secondary 0: 50%, 1.00 MB of 2.00 MB, ")
        with terminal.bar(second):
            terminal.write_text("text", screen)
            terminal.write_line("line")
            assert screen.shown[1:3] == ["text", "line"]
            assert screen.shown[3].endswith("; chunk for secondary 1: 0 tensors")
        assert screen.shown[3].startswith("chunk for secondary 1: 0 tensors in ")
    assert screen.shown[-2].startswith("chunk for secondary 0: 1.00 MB in ")
    assert screen.shown[-1] == ""


def test_bars_are_no_wider_than_the_terminal(screen: Screen, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    terminal = Terminal(screen)
    for label in ("a" * 50, "日" * 50):
        bar = Bar(label, 10, "tensors")
        with terminal.bar(bar):
            terminal.advance(bar, 1)
            columns = sum(1 if c.isascii() else 2 for c in screen.shown[-1])
            assert 8 < columns <= 20


def test_a_bar_that_fails_leaves_nothing(screen: Screen) -> None:
    terminal, bar = Terminal(screen), Bar("download", 2, "B")
    with pytest.raises(StopIteration), terminal.bar(bar):
        next(filter(None, [terminal.advance(bar, 1)]))
    assert screen.shown == [""]


def test_what_is_no_terminal_gets_what_is_written_and_nothing_else() -> None:
    out, err = io.StringIO(), io.StringIO()
    terminal, bar = Terminal(err), Bar("download", 2, "B")
    terminal.write_text("open", out)
    with terminal.bar(bar):
        terminal.advance(bar, 2)
        terminal.write_line("a line")
    assert out.getvalue() == "open"
    assert err.getvalue().startswith("a line\n")
    assert "\x1b" not in err.getvalue() and "\r" not in err.getvalue()


def test_text_that_goes_elsewhere_leaves_the_log_alone(screen: Screen) -> None:
    terminal = Terminal(screen)
    terminal.write_text("to a file", io.StringIO())
    terminal.write_line("a line")
    assert screen.shown == ["a line", ""]


def test_a_terminal_does_not_act_upon_text_and_a_file_has_it_as_it_is(screen: Screen) -> None:
    text, file = "a\x1b[2J\rb\x9b\tc\n", io.StringIO()
    for out in (screen, file):
        Terminal(screen).write_text(text, out)
    assert screen.getvalue() == "a\\x1b[2J\\rb\\x9b\tc\n"
    assert file.getvalue() == text


def test_a_line_that_nobody_reads_is_lost() -> None:
    closed = io.StringIO()
    closed.close()
    Terminal(closed).write_line("a line")


def test_lines_of_many_threads_stay_whole(screen: Screen) -> None:
    terminal, bar = Terminal(screen), Bar("work", 400, "tensors")

    def work(name: str) -> None:
        for _ in range(50):
            terminal.write_line(name * 40)
            terminal.advance(bar, 1)

    with terminal.bar(bar):
        threads = [threading.Thread(target=work, args=(name,)) for name in "abcd"]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    *lines, result, end = screen.shown
    assert sorted(lines) == sorted(name * 40 for name in "abcd" for _ in range(50))
    assert result.startswith("work: 200 tensors in ") and end == ""
