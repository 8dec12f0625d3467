"""A progress bar on a terminal."""

import contextlib
import sys
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def progress_bar(total: int | None, label: str, unit: str = "it") -> Iterator[Callable[[int], object]]:
    """Yield `advance(n)`. It advances a bar on stderr, and does nothing if stderr is not a terminal.

    `total` is None if it is unknown. Bytes (`unit="B"`) are shown in kB, MB, GB.
    """
    if not sys.stderr.isatty():
        yield lambda n: None
        return
    from tqdm import tqdm

    class Bar(tqdm):  # type: ignore[type-arg]  # not a generic class at run time
        monitor_interval = 0  # no thread that outlives the bar

    with Bar(total=total, desc=label, unit=unit, unit_scale=unit == "B", file=sys.stderr) as bar:
        yield bar.update
