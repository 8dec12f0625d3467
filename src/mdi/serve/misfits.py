"""What is wrong with a request, in one line: pydantic's findings in words of the API."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from mdi.strings import count, quoted

Path = tuple[str | int, ...]

_KINDS = {
    "string_type": "a text",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "list_type": "a list",
    "dict_type": "an object",
    "model_type": "an object",
    "model_attributes_type": "an object",
    "none_required": "null",
}
_BOUNDS = {
    "greater_than_equal": ("at least", "ge"),
    "greater_than": ("above", "gt"),
    "less_than_equal": ("at most", "le"),
    "less_than": ("below", "lt"),
}
_LENGTHS = {
    "too_short": ("at least", "min_length", "item"),
    "too_long": ("at most", "max_length", "item"),
    "string_too_short": ("at least", "min_length", "character"),
    "string_too_long": ("at most", "max_length", "character"),
}
_OF_ABSENT = ("missing", "value_error")  # errors of a parameter that is not there


class Misfit(NamedTuple):
    """The parameter that is to blame, such as `messages.0.role`, and what is wrong with it."""

    param: str
    text: str  # names the parameter
    is_unknown: bool = False  # whether there is no such parameter


def first_misfit(values: Mapping[str, Any], errors: Sequence[Mapping[str, Any]]) -> Misfit:
    """What to tell of the `errors` that pydantic found in `values`.

    A parameter that may be of several kinds has an error for each of them: those are told that lie deepest in it.
    """
    paths = [_path_in(values, error) for error in errors]
    inside = [path for path in paths if path[: len(paths[0])] == paths[0]]
    path = max(inside, key=len)
    found = [error for error, where in zip(errors, paths, strict=True) if where == path]
    param = ".".join(map(str, path))
    if found[0]["type"] == "extra_forbidden":
        return Misfit(param, f"{param} is not supported here", is_unknown=True)
    return Misfit(param, f"{param}{_problem(found)}")


def _path_in(values: Any, error: Mapping[str, Any]) -> Path:
    """The part of an error's path that leads through `values`; the rest names alternatives of a parameter's type."""
    path: list[str | int] = []
    *parts, last = error["loc"]
    for part in parts:
        if _has(values, part):
            values = values[part]
            path.append(part)
    return (*path, last) if _has(values, last) or error["type"] in _OF_ABSENT else tuple(path)


def _has(values: Any, part: str | int) -> bool:
    return part in values if isinstance(values, Mapping) else isinstance(values, list) and isinstance(part, int)


def _problem(errors: Sequence[Mapping[str, Any]]) -> str:
    """What is wrong with a parameter, to stand behind its name."""
    first = errors[0]
    match first["type"]:
        case "missing":
            return " is missing"
        case "value_error":
            return f": {first['msg'].removeprefix('Value error, ')}"  # of our own checks
        case "union_tag_not_found":
            return f" lacks {first['ctx']['discriminator']}"
    told = [error for error in errors if error["type"] not in _KINDS] or errors  # of a value that has one of the kinds
    wanted = list(dict.fromkeys(filter(None, map(_wanted, told))))
    if not wanted:
        return f": {first['msg']}"
    choices = " or ".join([wanted[0], *(text.removeprefix("be ") for text in wanted[1:])])
    return f" must {choices}, not {_found(told[0])}"


def _wanted(error: Mapping[str, Any]) -> str | None:
    """What a value must be, or have; None for an error of another kind."""
    kind, context = error["type"], error.get("ctx", {})
    if kind in _KINDS:
        return f"be {_KINDS[kind]}"
    if kind in _BOUNDS:
        how, bound = _BOUNDS[kind]
        return f"be {how} {context[bound]:.15g}"
    if kind in _LENGTHS:
        how, bound, unit = _LENGTHS[kind]
        return f"have {how} {count(context[bound], unit)}"
    match kind:
        case "literal_error":
            return f"be {context['expected']}"
        case "string_pattern_mismatch":
            return f"match {context['pattern']}"
        case "union_tag_invalid":
            return f"have as {context['discriminator']} one of {context['expected_tags']}"
    return None


def _found(error: Mapping[str, Any]) -> str:
    """What there is instead. Of lists and objects, which may be long, only that."""
    value = error["input"]
    if error["type"] in _LENGTHS:
        return str(len(value))
    if error["type"] == "union_tag_invalid":
        return quoted(error["ctx"]["tag"])
    if isinstance(value, list | Mapping):
        return "a list" if isinstance(value, list) else "an object"
    return quoted(value)
