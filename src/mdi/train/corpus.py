"""The texts that a model is trained on, read in pieces, so that they may be larger than memory."""

import codecs
import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from mdi.errors import ConfigError
from mdi.files import storage_error
from mdi.strings import one_line

SUFFIXES = (".txt", ".md")
BLOCK_BYTES = 1 << 16
MAX_PIECE_CHARS = 1 << 20  # without such a place a text is cut anywhere


@dataclass(frozen=True)
class Corpus:
    """One file, or all texts below a folder in the order of their paths, without hidden ones."""

    files: tuple[Path, ...]
    n_bytes: int


def open_corpus(path: Path) -> Corpus:
    """The texts that `path` stands for. Raises `ConfigError` where there is none, or where one is empty."""
    if path.is_file():
        files = [path]
    elif path.is_dir():
        found = (file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file())
        files = sorted(file for file in found if not _is_hidden(file.relative_to(path)))
    else:
        raise ConfigError(f"{one_line(str(path))}: no such file or folder")
    if not files:
        raise ConfigError(f"{path}: no {' or '.join(SUFFIXES)} file there")
    try:
        sizes = [file.stat().st_size for file in files]
    except OSError as exc:
        raise storage_error(Path(exc.filename or path), exc) from exc
    if 0 in sizes:
        raise ConfigError(f"{files[sizes.index(0)]}: is empty")
    return Corpus(tuple(files), sum(sizes))


def _is_hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def pieces_of(file: Path, advance: Callable[[int], object]) -> Iterator[str]:
    """The text of a UTF-8 file, cut between two lines where no token reaches across.

    Line ends become newlines, a byte order mark is left out. `advance` is called with the bytes that were read.
    Raises `ConfigError` for other text, `StorageError`.
    """
    rest = ""
    for text in _decoded(file, advance):
        rest += text
        if cut := _find_cut(rest):
            yield rest[:cut]
            rest = rest[cut:]
    if rest:
        yield rest


def _find_cut(text: str) -> int:
    """Behind the last newline that is the only blank there; 0 if there is none.

    The patterns of byte-level BPE take several blanks together, and then look at what follows them.
    """
    end = len(text) - 1
    while (end := text.rfind("\n", 0, end)) > 0:
        if not text[end - 1].isspace() and not text[end + 1].isspace():
            return end + 1
    return len(text) if len(text) >= MAX_PIECE_CHARS else 0


def _decoded(path: Path, advance: Callable[[int], object]) -> Iterator[str]:
    decoder = io.IncrementalNewlineDecoder(codecs.getincrementaldecoder("utf-8-sig")(), translate=True)
    n_lines = 1
    try:
        with path.open("rb") as file:
            while block := file.read(BLOCK_BYTES):
                text = decoder.decode(block)
                n_lines += text.count("\n")
                advance(len(block))
                yield text
            yield decoder.decode(b"", final=True)
    except UnicodeDecodeError as exc:
        line = n_lines + exc.object[: exc.start].count(b"\n")
        raise ConfigError(f"{path}: is not UTF-8 text (line {line}): save it as UTF-8") from exc
    except OSError as exc:
        raise storage_error(path, exc) from exc
