"""A progress bar on a terminal."""

import contextlib
from collections.abc import Callable, Iterator

from mdi.terminal import Bar, screen


@contextlib.contextmanager
def progress_bar(total: int | None, label: str, unit: str, *, initial: int = 0) -> Iterator[Callable[[int], object]]:
    """Yield `advance(n)`. It advances a bar on stderr, and does nothing if stderr is not a terminal.

    `total` is None if it is unknown; `initial` of it are done already. Bytes (`unit="B"`) are shown in B, MB, GB.
    """
    if not screen.shows_bars:
        yield lambda n: None
        return
    bar = Bar(label, total, unit, initial)
    with screen.bar(bar):
        yield lambda n: screen.advance(bar, n)
