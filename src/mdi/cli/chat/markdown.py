"""An answer as it grows on a terminal, rendered as Markdown by rich."""

import contextlib
import re
from collections.abc import Iterator

from rich.console import Console
from rich.live import Live
from rich.markdown import Markdown
from rich.segment import Segment, SegmentLines

from mdi.cli.chat.display import Add
from mdi.cli.streams import without_echo
from mdi.strings import without_controls

_FENCE = re.compile(r" {0,3}(```+|~~~+)")


class MarkdownDisplay:
    """A `Display`: blocks that are complete stand, and the one that grows is drawn again below them.

    To draw the whole answer again would leave copies behind as soon as it is longer than the screen.
    """

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console()

    @contextlib.contextmanager
    def answer(self) -> Iterator[Add]:
        growing = ""
        live = Live(console=self._console, auto_refresh=False, transient=True, vertical_overflow="visible")

        def add(text: str) -> None:
            nonlocal growing
            complete, growing = split_blocks(growing + without_controls(text))
            for block in complete:
                self._print(block)
            n_shown = max(1, self._console.height - 1)  # of a block that is longer, its end
            live.update(SegmentLines(self._rendered(growing)[-n_shown:], new_lines=True), refresh=True)

        # What is echoed, Ctrl-C's `^C` too, would move the cursor away from what is drawn again.
        with without_echo():
            try:
                with live:
                    yield add
            finally:
                self._print(growing)

    def _print(self, text: str) -> None:
        if lines := self._rendered(text):
            self._console.print(SegmentLines([*lines, []], new_lines=True), end="")

    def _rendered(self, text: str) -> list[list[Segment]]:
        """The lines of a block, without those that rich leaves empty around some kinds of blocks and not others."""
        lines = self._console.render_lines(Markdown(text), pad=False)
        filled = [index for index, line in enumerate(lines) if any(segment.text.strip() for segment in line)]
        return [_unpadded(line) for line in lines[filled[0] : filled[-1] + 1]] if filled else []


def _unpadded(line: list[Segment]) -> list[Segment]:
    """A line without the blanks that fill a paragraph up: in a terminal that is made narrower they would wrap."""
    if not line or (line[-1].style is not None and line[-1].style.bgcolor is not None):
        return line
    return [*line[:-1], line[-1]._replace(text=line[-1].text.rstrip())]


def split_blocks(text: str) -> tuple[list[str], str]:
    """The blocks of a Markdown text that nothing can be added to any more, and the rest.

    A block ends at an empty line, but within a fence of code.
    """
    blocks: list[str] = []
    block, fence = "", ""
    for line in text.splitlines(keepends=True):
        block += line
        if match := _FENCE.match(line):
            if not fence:
                fence = match[1]
            elif match[1].startswith(fence) and not line[match.end() :].strip():
                fence = ""
        elif not fence and line == "\n":
            blocks.append(block)
            block = ""
    return blocks, block
