"""Answers on a terminal: complete blocks stand once, the growing one is rendered as far as it has come."""

import io
import re

import pytest
from rich.console import Console

from mdi.cli.chat.markdown import MarkdownDisplay, split_blocks
from mdi.strings import without_controls


@pytest.mark.parametrize(
    ("text", "complete"),
    [
        ("", []),
        ("one paragraph\nof two lines", []),
        ("one\n\ntwo", ["one\n\n"]),
        ("one\n\ntwo\n\n", ["one\n\n", "two\n\n"]),
        ("```python\na\n\nb", []),
        ("```python\na\n\nb\n```\n\nthen", ["```python\na\n\nb\n```\n\n"]),
        ("~~~\n```\n\n~~~\n\nthen", ["~~~\n```\n\n~~~\n\n"]),
        ("````\n```\n\n````\n\nthen", ["````\n```\n\n````\n\n"]),
        ("```\na\n``` python\n\nb", []),  # words behind it: no closing fence
    ],
)
def test_a_block_ends_at_an_empty_line_that_is_not_within_code(text: str, complete: list[str]) -> None:
    assert split_blocks(text) == (complete, text.removeprefix("".join(complete)))


def shown(*pieces: str, height: int = 12) -> tuple[str, list[str]]:
    """What is written for an answer that comes in pieces, and the lines that then stand on a terminal."""
    out = io.StringIO()
    display = MarkdownDisplay(Console(file=out, force_terminal=True, width=40, height=height, _environ={}))
    with display.answer() as add:
        for piece in pieces:
            add(piece)
    return out.getvalue(), lines_of(out.getvalue())


def lines_of(output: str) -> list[str]:
    """Carry out what rich draws with: the cursor goes up and to the left, lines are erased."""
    lines, row, column = [""], 0, 0
    for number, command, character in re.findall(r"\x1b\[\??([\d;]*)([a-zA-Z])|([^\x1b])", output):
        if command == "A":
            row -= int(number or 1)
        elif command == "K":
            lines[row] = ""
        elif character == "\r":
            column = 0
        elif character == "\n":
            row, column = row + 1, 0
            lines += [""] * (row + 1 - len(lines))
        elif character:
            lines[row] = lines[row][:column].ljust(column) + character + lines[row][column + 1 :]
            column += 1
    return "\n".join(line.rstrip() for line in lines).rstrip("\n").split("\n")


ANSWER = "# Rings\n\nA **ring** has `nodes`.\n\n1. one\n2. two\n\n```python\nx = 1\n\ny = 2\n```\n\nThe end"


def test_an_answer_in_pieces_stands_as_one_in_a_single_piece() -> None:
    _, whole = shown(ANSWER)
    output, lines = shown(*ANSWER)
    assert lines == whole
    text = "\n".join(lines)
    assert text.count("\n\n") == 4 + 1 and "\n\n\n" not in text, (
        "blocks are set apart by one line; so is the code within"
    )
    assert [text.count(word) for word in ("Rings", "A ring has nodes.", "one", "y = 2", "The end")] == [1] * 5
    assert "**" not in text and "`" not in text
    assert "\x1b[1mring\x1b[0m" in output


def test_a_block_that_is_longer_than_the_screen_stands_once() -> None:
    words = [f"word{i:03}" for i in range(60)]
    _, lines = shown(*(f"{word} " for word in words), height=5)
    assert " ".join(lines).split() == words


def test_what_a_terminal_would_act_upon_is_shown_and_not_done() -> None:
    assert without_controls("a\x1b[2Jb\x07\r\n\tc\x9b") == "a\\x1b[2Jb\\x07\\r\n\tc\\x9b"
    family = "\U0001f468\u200d\U0001f469\u200d\U0001f467"
    assert without_controls(family) == family
    output, _ = shown("an \x1b]0;title\x07 end")
    assert "\x1b]0" not in output


def test_nothing_is_written_for_an_empty_answer() -> None:
    assert "".join(shown()[1]) == ""
