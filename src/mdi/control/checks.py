"""What JSON values from another node must be, as predicates, and how one is quoted that is something else."""

from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any

from mdi.errors import ControlError
from mdi.formats import DIGEST, DTYPES, KV_DTYPES, MODES
from mdi.strings import one_line

MAX_STRING_CHARACTERS = 1024

Check = Callable[[Any], bool]


def short(text: str) -> str:
    """What another node sent, fit to stand in one line."""
    line = one_line(text, 201)
    return line if len(line) <= 200 else f"{line[:200]}..."


def check_fields(what: str, data: Mapping[str, Any], kind: type, checks: Mapping[str, Check]) -> None:
    """Raise `ControlError` unless `data` has the fields of the dataclass `kind` and no others, and they are acceptable.

    `what` names the object that was sent.
    """
    if set(data) != (wanted := {item.name for item in fields(kind)}):
        raise ControlError(f"{what} has wrong fields: {short(', '.join(sorted(set(data) ^ wanted)))}")
    check_values(what, data, checks)


def check_values(what: str, data: Mapping[str, Any], checks: Mapping[str, Check]) -> None:
    """Raise `ControlError` naming the first field of `checks` that is missing, or whose value is not acceptable."""
    for name, check in checks.items():
        if name not in data:
            raise ControlError(f"{what} lacks {name}")
        if not check(data[name]):
            raise ControlError(f"{what}'s {name} is not acceptable: {short(repr(data[name]))}")


def whole(least: int, most: int) -> Check:
    """A whole number between two; True and 1.0, which are equal to 1, are none."""
    return lambda value: type(value) is int and least <= value <= most


def optional(check: Check) -> Check:
    """Null, or what passes `check`."""
    return lambda value: value is None or check(value)


def printable(value: Any, limit: int = MAX_STRING_CHARACTERS) -> Any:
    """A string of another node, or a list of them, as it may be shown; anything else as it is."""
    if isinstance(value, list):
        return [printable(item, limit) for item in value]
    return one_line(value, limit) if isinstance(value, str) and value else value


def is_string(value: Any) -> bool:
    return isinstance(value, str) and len(value) <= MAX_STRING_CHARACTERS


def is_name(value: Any) -> bool:
    """A string that can be shown, or resolved, as it is."""
    return is_string(value) and value.isprintable()


def is_seconds(value: Any) -> bool:
    """A duration; NaN is none."""
    return type(value) in (int, float) and 0 <= value < 1e9


def is_digest(value: Any) -> bool:
    return value == "" or (isinstance(value, str) and DIGEST.fullmatch(value) is not None)


def is_span(value: Any) -> bool:
    return isinstance(value, list) and list(map(type, value)) == [int, int] and 0 <= value[0] < value[1] <= 10_000


def is_dtype(value: Any) -> bool:
    return isinstance(value, str) and value in DTYPES


def is_kv_dtype(value: Any) -> bool:
    return isinstance(value, str) and value in KV_DTYPES


def is_mode(value: Any) -> bool:
    return isinstance(value, str) and value in MODES
