"""JSON, YAML and text that somebody else wrote -> checked values.

Whatever is wrong with a document is one line of the caller's kind of error: its size, its encoding, its syntax, its
depth, a number or a string that nothing else here can hold. A byte order mark is accepted everywhere: Windows editors
write it.
"""

import codecs
import json
import math
import types
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, NoReturn, TypeVar, Union, get_args, get_origin, get_type_hints

from mdi.errors import ConfigError
from mdi.files import storage_error
from mdi.strings import one_line, quoted

T = TypeVar("T")
ErrorKind = Callable[[str], Exception]
_Pairs = list[tuple[str, Any]]  # of an object, as they stand in the text

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


def parse_json(
    data: bytes, what: str, kind: ErrorKind, *, distinct: bool = True, lenient: Callable[[str], str] | None = None
) -> Any:
    """A JSON value.

    Of a key that occurs twice in an object the last value counts, unless keys are to be `distinct`. `lenient` mends a
    text that is not JSON, for a second attempt.
    """
    text = decode_text(data, what, kind)
    try:
        return _plain(_loads(text, _distinct if distinct else dict, lenient))
    except (ValueError, RecursionError) as exc:
        raise kind(f"{what}: not valid JSON: {_reason(exc)}") from exc


def read_json(path: Path, limit_bytes: int, kind: ErrorKind, *, distinct: bool = True) -> Any:
    """The JSON value in a file; see `read_document` and `parse_json` for what is raised."""
    return parse_json(read_document(path, limit_bytes, kind), str(path), kind, distinct=distinct)


def read_yaml(path: Path, limit_bytes: int, kind: ErrorKind) -> Any:
    """The YAML value in a file: plain scalars, lists and mappings with text as keys, without aliases."""
    text = read_text(path, limit_bytes, kind)
    try:
        return _plain(_load_yaml(text))
    except Exception as exc:  # yaml's constructors raise whatever a bad scalar leads to
        raise kind(f"{path}: not valid YAML: {_reason(exc)}") from exc


def _loads(text: str, to_object: Callable[[_Pairs], dict[str, Any]], lenient: Callable[[str], str] | None) -> Any:
    try:
        return json.loads(
            text,
            parse_int=parse_integer,
            parse_float=parse_number,
            parse_constant=_refuse_constant,
            object_pairs_hook=to_object,
        )
    except json.JSONDecodeError:
        if lenient is None:
            raise
    return _loads(lenient(text), to_object, None)


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


def _distinct(pairs: _Pairs) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for key, value in pairs:
        if key in values:
            raise ValueError(f"the key {key!r} occurs twice")
        values[key] = value
    return values


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


def has_type(value: object, declared: Any) -> bool:
    """Whether a JSON value is what a type annotation says: a scalar, a literal, `X | None`, a list, a dict.

    A whole number is a number, and neither is true or false.
    """
    origin, arguments = get_origin(declared), get_args(declared)
    if origin in (Union, types.UnionType):
        return any(has_type(value, argument) for argument in arguments)
    if origin is Literal:
        return any(type(value) is type(choice) and value == choice for choice in arguments)
    if origin is list:
        return isinstance(value, list) and all(has_type(item, arguments[0]) for item in value)
    if declared is float:
        return type(value) in (int, float)
    return type(value) is declared


def misfit(values: Mapping[str, Any], declared: type) -> str | None:
    """What is wrong with the first of `values` that is not of the type of its field in a dataclass; None: nothing.

    Fields that the dataclass does not have are left to its constructor.
    """
    for name, hint in get_type_hints(declared).items():
        if name in values and not has_type(values[name], hint):
            wanted = getattr(hint, "__name__", None) if isinstance(hint, type) else str(hint)
            return f"{name} is {quoted(values[name])}, not {str(wanted).replace('typing.', '')}"
    return None


def is_text(value: object) -> bool:
    """A check of `Fields`."""
    return isinstance(value, str)


def is_flag(value: object) -> bool:
    """A check of `Fields`: true or false, and not 1 or 0."""
    return isinstance(value, bool)


class Fields:
    """The fields of an object in somebody else's document, each checked where it is asked for."""

    def __init__(self, values: object, what: str, kind: ErrorKind) -> None:
        """Raises `kind`, naming `what` document it is, unless `values` is an object."""
        if not isinstance(values, dict):
            raise kind(f"{what}: an object is expected, not {quoted(values)}")
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
            raise self._kind(f"{self._what}: {name} is {quoted(value)}, not {wanted}")
        return value

    def count(self, name: str, default: Any = _MISSING, limit: int = 2**31 - 1) -> Any:
        """As `get`, for a whole number from 1 to `limit`."""
        return self.get(name, lambda value: type(value) is int and 0 < value <= limit, "a count", default)

    def flag(self, name: str, default: Any = _MISSING) -> Any:
        """As `get`, for true or false."""
        return self.get(name, is_flag, "true or false", default)
