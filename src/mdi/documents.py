"""JSON, YAML and text that somebody else wrote -> checked values.

Whatever is wrong with a document is one line of the caller's kind of error: its size, its encoding, its syntax, its
depth, a number or a string that nothing else here can hold. A byte order mark is accepted everywhere: Windows editors
write it.
"""

import codecs
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from mdi.errors import ConfigError
from mdi.files import storage_error
from mdi.strings import one_line

T = TypeVar("T")
ErrorKind = Callable[[str], Exception]

MAX_DEPTH = 64  # of lists and objects in each other
MAX_DIGITS = 40  # of an integer; converting thousands of them takes quadratic time
_UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_MISSING = object()


def read_document(path: Path, limit_bytes: int, kind: ErrorKind) -> bytes:
    """The content of a file of at most `limit_bytes`.

    Raises `kind` where there is none or it is larger; where it cannot be read, `StorageError`, or `ConfigError` if that
    is the kind.
    """
    try:
        with path.open("rb") as file:
            data = file.read(limit_bytes + 1)
    except FileNotFoundError as exc:
        raise kind(f"{path}: no such file") from exc
    except OSError as exc:
        if kind is ConfigError:
            raise ConfigError(f"{path}: cannot be read: {exc.strerror or one_line(exc)}") from exc
        raise storage_error(path, exc) from exc
    except ValueError as exc:  # a null character in the path
        raise kind(f"{one_line(str(path))}: not a usable path") from exc
    if len(data) > limit_bytes:
        raise kind(f"{path}: has more than {limit_bytes} bytes, which no such file has")
    return data


def decode_text(data: bytes, what: str, kind: ErrorKind) -> str:
    """UTF-8 with or without a byte order mark. `what` names the document in the error."""
    if data.startswith(_UTF16):
        raise kind(f"{what}: is UTF-16 text: save it as UTF-8")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as exc:
        raise kind(f"{what}: is not UTF-8 text (byte {exc.start})") from exc


def read_text(path: Path, limit_bytes: int, kind: ErrorKind) -> str:
    """A text file, its lines ended by newlines alone; see `read_document` and `decode_text` for what is raised."""
    text = decode_text(read_document(path, limit_bytes, kind), str(path), kind)
    return text.replace("\r\n", "\n").replace("\r", "\n")


def parse_json(data: bytes, what: str, kind: ErrorKind, *, lenient: Callable[[str], str] | None = None) -> Any:
    """A JSON value. `lenient` mends a text that is not JSON, for a second attempt."""
    text = decode_text(data, what, kind)
    try:
        return _plain(_loads(text, lenient))
    except (ValueError, RecursionError) as exc:
        raise kind(f"{what}: not valid JSON: {_reason(exc)}") from exc


def read_json(path: Path, limit_bytes: int, kind: ErrorKind) -> Any:
    """The JSON value in a file; see `read_document` and `parse_json` for what is raised."""
    return parse_json(read_document(path, limit_bytes, kind), str(path), kind)


def read_yaml(path: Path, limit_bytes: int, kind: ErrorKind) -> Any:
    """The YAML value in a file: plain scalars, lists and mappings with text as keys, without aliases."""
    text = read_text(path, limit_bytes, kind)
    try:
        return _plain(_load_yaml(text))
    except Exception as exc:  # yaml's constructors raise whatever a bad scalar leads to
        raise kind(f"{path}: not valid YAML: {_reason(exc)}") from exc


def _loads(text: str, lenient: Callable[[str], str] | None) -> Any:
    try:
        return json.loads(text, parse_int=parse_integer, parse_float=parse_number, parse_constant=_refuse_constant)
    except json.JSONDecodeError:
        if lenient is None:
            raise
    return _loads(lenient(text), None)


def parse_integer(digits: str) -> int:
    """A whole number of at most `MAX_DIGITS` digits; raises `ValueError`."""
    if len(digits) > MAX_DIGITS:
        raise ValueError(f"a number of {len(digits)} digits")
    return int(digits)


def parse_number(text: str) -> float:
    """A finite number; raises `ValueError`."""
    if not math.isfinite(value := float(text)):
        raise ValueError(f"{text[:40]} is not a finite number")
    return value


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _load_yaml(text: str) -> Any:
    import yaml  # only where there is such a file

    class Loader(yaml.SafeLoader):
        """Without aliases: a few lines of them stand for gigabytes."""

        def compose_node(self, parent: Any, index: Any) -> Any:
            if self.check_event(yaml.AliasEvent):
                raise ValueError("an alias (*name), which this program's files have not")
            return super().compose_node(parent, index)

    return yaml.load(text, Loader)


def _plain(document: T) -> T:
    """The document itself. Raises `ValueError` where a value in it is of another kind than JSON has, or too deep."""
    level: list[Any] = [document]
    for _ in range(MAX_DEPTH):
        deeper: list[Any] = []
        for value in level:
            deeper += _children(value)
        if not deeper:
            return document
        level = deeper
    raise ValueError(f"nested more than {MAX_DEPTH} deep")


def _children(value: Any) -> list[Any]:
    if isinstance(value, dict):
        if any(not isinstance(key, str) for key in value):
            raise ValueError("a key that is no text")
        return [*value, *value.values()]
    if isinstance(value, list):
        return value
    if isinstance(value, str):
        value.encode()  # a lone surrogate could neither be printed nor written
    elif isinstance(value, float):
        parse_number(str(value))
    elif isinstance(value, int):
        if abs(value) >= 10**MAX_DIGITS:
            raise ValueError(f"a number of more than {MAX_DIGITS} digits")
    elif value is not None:
        raise ValueError(f"a value that JSON does not have ({type(value).__name__})")
    return []


def _reason(exc: Exception) -> str:
    if isinstance(exc, RecursionError):
        return f"nested more than {MAX_DEPTH} deep"
    if isinstance(exc, UnicodeEncodeError):
        return "a string that holds half a character (a lone surrogate)"
    return one_line(exc)


class Fields:
    """The fields of an object in somebody else's document, each checked where it is asked for."""

    def __init__(self, values: object, what: str, kind: ErrorKind) -> None:
        """Raises `kind`, naming `what` document it is, unless `values` is an object."""
        if not isinstance(values, dict):
            raise kind(f"{what}: an object is expected, not {one_line(repr(values), 60)}")
        self._values: Mapping[str, Any] = values
        self._what, self._kind = what, kind

    def __contains__(self, name: str) -> bool:
        return name in self._values

    def get(self, name: str, check: Callable[[Any], bool], wanted: str, default: Any = _MISSING) -> Any:
        """The value of a field that passes `check`; `default`, if one is given, where it is missing or null.

        Raises the kind of error of this document, saying what is `wanted`.
        """
        value = self._values.get(name)
        if value is None and default is not _MISSING:
            return default
        if name not in self._values:
            raise self._kind(f"{self._what}: lacks {name}")
        if not check(value):
            raise self._kind(f"{self._what}: {name} is {one_line(repr(value), 60)}, not {wanted}")
        return value
