"""Values as strings, for messages and files."""

import hashlib
import json
import unicodedata
from collections.abc import Iterable, Sequence


def one_line(foreign: BaseException | str, limit: int = 300) -> str:
    """The text of a foreign exception, or of another node, fit to stand in the one line of ours.

    What a terminal would act upon, or a file cannot hold, is escaped: control characters, lone surrogates.
    """
    text = " ".join(str(foreign).split())[:limit]
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)[:limit] or type(foreign).__name__


def without_controls(text: str) -> str:
    """Foreign text in any number of lines, fit for a terminal: what it would act upon is escaped."""
    return "".join(repr(c)[1:-1] if unicodedata.category(c) == "Cc" and c not in "\n\t" else c for c in text)


def quoted(value: object, limit: int = 60) -> str:
    """A foreign value as an error shows it: as Python writes it, in one line, cut at `limit` characters."""
    return one_line(repr(value), limit)


def count(n: int, what: str) -> str:
    """`1 node`, `3 nodes`; for words whose plural is theirs with an s."""
    return f"{n} {what}" if n == 1 else f"{n} {what}s"


def table_lines(rows: Sequence[Sequence[str]]) -> list[str]:
    """The rows of a table, each column as wide as its widest cell."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]


def format_bytes(n_bytes: float) -> str:
    """A size for people, in the unit that leaves it readable: `538.00 MB`, `13.48 GB`."""
    if n_bytes >= 1e9:
        return f"{n_bytes / 1e9:.2f} GB"
    return f"{n_bytes / 1e6:.2f} MB" if n_bytes >= 1e5 else f"{n_bytes:.0f} B"


def format_rate(per_second: float) -> str:
    """A rate to three digits, such as `9.87`, `41` or `1320`."""
    return f"{per_second:.3g}" if per_second < 999.5 else f"{per_second:.0f}"


def format_seconds(seconds: float) -> str:
    """Seconds to the microsecond without trailing zeros: `0`, `0.25`, `3661.000004`."""
    return f"{seconds:.6f}".rstrip("0").rstrip(".")


def digest_of(values: object) -> str:
    """32 hexadecimal digits by which to find what belongs to these JSON values, in whatever order their keys are."""
    return hashlib.blake2b(json.dumps(values, sort_keys=True).encode(), digest_size=16).hexdigest()


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`; did you mean --prompt?`, to end the error about an unknown word with; empty where none is like it."""
    import difflib  # takes a tenth of the time of --help

    close = difflib.get_close_matches(word, known, 1)
    return f"; did you mean {close[0]}?" if close else ""
