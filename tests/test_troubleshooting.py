"""docs/troubleshooting.md quotes lines that the program can print."""

import ast
import functools
import re
from collections.abc import Iterator

import pytest

from support.paths import ROOT

PAGE = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
LEAST_LETTERS = 5  # of a fixed text; what is shorter stands in too many lines
CODE = re.compile(r"(?<!`)(`{1,2})(?!`)(.+?)\1(?!`)")
FORMATS = re.compile(r"%[.\d]*[sdgrf]")
# Words that are filled in, or stand alone between two things that are: names, units, reasons of the system.
FILLED_IN = (
    "starter secondary tinylama raspberrypi nodes addr port layers bfloat cpu weights message rows slots days free"
    " a at for from in is it key most no of on only to with the and an sent busy MB GB s UTC"
    " Connection refused No such file or directory"
)


def quoted_lines() -> list[str]:
    """The lines in blocks of text, and in the first column of the tables whose header says `line`."""
    lines = [line for block in re.findall(r"```text\n(.*?)```", PAGE, re.DOTALL) for line in block.splitlines()]
    for table in re.findall(r"^\| line \|.*\n\|[-|]+\n((?:\|.*\n)+)", PAGE, re.MULTILINE):
        lines += [code.strip() for _, code in CODE.findall("\n".join(row.split("|")[1] for row in table.splitlines()))]
    return [line for line in lines if line != "Killed"]  # which the shell says


def fixed_texts() -> Iterator[str]:
    """What the program's texts consist of, between the values that are filled in."""
    for path in (ROOT / "src" / "mdi").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield from FORMATS.split(node.value.removeprefix("error: "))


@functools.cache
def longest_texts_first() -> list[str]:
    """Those that are long enough to mean something. Read once, and only by the worker that runs these tests."""
    texts = {text.strip() for text in fixed_texts() if len(re.findall("[a-zA-Z]", text)) >= LEAST_LETTERS}
    return sorted(texts, key=len, reverse=True)


def invented_words(line: str) -> set[str]:
    """The words of a line that neither the program's texts have nor are filled in."""
    for text in longest_texts_first():
        line = line.replace(text, " ")
    words = re.findall(r"(?<![\w./:-])[A-Za-z]+(?![\w/:]|[.-]\w)", line)
    return set(words) - set(FILLED_IN.split())


@pytest.mark.parametrize("line", quoted_lines())
def test_the_program_can_print_what_the_page_quotes(line: str) -> None:
    assert invented_words(line) == set()


def test_an_invented_line_is_noticed() -> None:
    assert len(quoted_lines()) > 60
    assert invented_words("secondary 0 feels unwell; waiting up to 60 s for it") == {"feels", "unwell"}
