"""Documents that somebody else wrote: what is accepted, and the one line for what is not."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest

from mdi.documents import MAX_DEPTH, Fields, misfit, parse_json, read_json, read_text, read_yaml
from mdi.errors import CheckpointError, ConfigError, MdiError, StorageError

LIMIT = 1 << 20


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "file"


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_a_byte_order_mark_is_no_part_of_a_document(mark: bytes, path: Path) -> None:
    path.write_bytes(mark + b'{"a": 1}')
    assert read_json(path, LIMIT, ConfigError) == {"a": 1}
    path.write_bytes(mark + b"a: 1")
    assert read_yaml(path, LIMIT, ConfigError) == {"a": 1}
    path.write_bytes(mark + b"a\r\nb\rc\n")
    assert read_text(path, LIMIT, ConfigError) == "a\nb\nc\n"


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "not valid JSON: Expecting value: line 1 column 1"),
        (b"{", "not valid JSON"),
        ("{}".encode("utf-16"), "is UTF-16 text: save it as UTF-8"),
        (b'{"a": "\xff"}', "is not UTF-8 text .byte 7."),
        (b'"\\ud800"', "half a character"),
        (b'{"\\udc80": 1}', "half a character"),
        (b"[NaN]", "NaN is not JSON"),
        (b"[-Infinity]", "-Infinity is not JSON"),
        (b"[1e999]", "1e999 is not a finite number"),
        (b"9" * 5000, "a number of 5000 digits"),
        (b"[" * 200_000, f"nested more than {MAX_DEPTH} deep"),
        (b'{"a":' * 200_000, f"nested more than {MAX_DEPTH} deep"),
        (b"[" * (MAX_DEPTH + 1) + b"]" * (MAX_DEPTH + 1), f"nested more than {MAX_DEPTH} deep"),
    ],
)
def test_what_is_no_json_is_said_in_a_line(data: bytes, reason: str) -> None:
    with pytest.raises(CheckpointError, match=f"^m.json: .*{reason}") as caught:
        parse_json(data, "m.json", CheckpointError)
    assert "\n" not in str(caught.value)


def test_the_depth_that_is_allowed_is_read() -> None:
    data = b"[" * (MAX_DEPTH - 1) + b"]" * (MAX_DEPTH - 1)
    assert json.dumps(parse_json(data, "", ConfigError)).encode() == data


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a: [", "not valid YAML"),
        ("a: &x 1\nb: *x", "an alias"),
        ("- &a [x, x]\n- &b [*a, *a]\n- [*b, *b]", "an alias"),
        ("a: 2001-01-01", r"a value that JSON does not have \(date\)"),
        ("a: !!binary aGVsbG8=", "a value that JSON does not have"),
        ("a: !!python/object/apply:os.getcwd []", "could not determine a constructor"),
        ("1: a", "a key that is no text"),
        ("a: .inf", "inf is not a finite number"),
        ("a: " + "9" * 5000, "not valid YAML"),
        ("[" * 1000, "nested more than"),
        ("a: 2001-13-45", "not valid YAML"),
    ],
)
def test_what_is_no_plain_yaml_is_said_in_a_line(text: str, reason: str, path: Path) -> None:
    path.write_text(text)
    with pytest.raises(CheckpointError, match=reason) as caught:
        read_yaml(path, LIMIT, CheckpointError)
    assert str(caught.value).startswith(f"{path}: ") and "\n" not in str(caught.value)


def test_a_file_that_is_too_large_is_not_read_whole(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(1 << 40)  # sparse
    with pytest.raises(ConfigError, match="has more than 1048576 bytes"):
        read_json(path, LIMIT, ConfigError)


@pytest.mark.parametrize(("kind", "raised"), [(ConfigError, ConfigError), (CheckpointError, StorageError)])
def test_what_cannot_be_read_is_an_error_of_storage_or_of_the_users(
    kind: type[MdiError], raised: type[MdiError], tmp_path: Path
) -> None:
    with pytest.raises(raised, match=f"^{tmp_path}: "):
        read_text(tmp_path, LIMIT, kind)
    with pytest.raises(kind, match="no such file"):
        read_text(tmp_path / "missing", LIMIT, kind)
    with pytest.raises(kind, match="not a usable path"):
        read_text(Path("a\0b"), LIMIT, kind)


def test_a_text_that_is_nearly_json_may_be_mended() -> None:
    assert parse_json(b"{'a': 1}", "", ConfigError, lenient=lambda text: text.replace("'", '"')) == {"a": 1}
    with pytest.raises(ConfigError, match="not valid JSON"):
        parse_json(b"{'a': 1", "", ConfigError, lenient=lambda text: text)


def is_text(value: Any) -> bool:
    return isinstance(value, str)


def test_a_field_is_checked_where_it_is_asked_for() -> None:
    fields = Fields({"a": "x", "b": 1, "c": None}, "m.json", CheckpointError)
    assert fields.get("a", is_text, "a text") == "x"
    assert fields.get("c", is_text, "a text", "default") == fields.get("d", is_text, "a text", "default") == "default"
    assert "b" in fields and "d" not in fields
    for name, reason in (("b", "b is 1, not a text"), ("c", "c is None, not a text"), ("d", "lacks d")):
        with pytest.raises(CheckpointError, match=f"^m.json: {reason}$"):
            fields.get(name, is_text, "a text")
    with pytest.raises(CheckpointError, match=r"^m.json: an object is expected, not \[\]$"):
        Fields([], "m.json", CheckpointError)


def test_a_key_that_occurs_twice_is_an_error_where_keys_are_to_be_distinct() -> None:
    data = b'{"a": 1, "b": {"c": 1, "c": 2}}'
    with pytest.raises(ConfigError, match="the key 'c' occurs twice"):
        parse_json(data, "m.json", ConfigError)
    assert parse_json(data, "m.json", ConfigError, distinct=False) == {"a": 1, "b": {"c": 2}}


@dataclass
class Declared:
    """Fields of every kind that `misfit` knows."""

    count: int
    ratio: float
    flag: bool
    label: str | None
    kind: Literal["a", "b"]
    items: list[int] | None
    parts: dict  # type: ignore[type-arg]


@pytest.mark.parametrize(
    "values",
    [
        {"count": -1, "ratio": 1, "flag": False, "label": None, "kind": "b", "items": [1, 2], "parts": {"x": []}},
        {"ratio": 0.5, "label": "x", "items": None},
        {"unknown": object()},
    ],
)
def test_values_of_the_declared_types_fit(values: Mapping[str, Any]) -> None:
    assert misfit(values, Declared) is None


@pytest.mark.parametrize(
    ("name", "value", "problem"),
    [
        ("count", True, "count is True, not int"),
        ("count", 1.0, "count is 1.0, not int"),
        ("count", None, "count is None, not int"),
        ("ratio", "1e-5", "ratio is '1e-5', not float"),
        ("ratio", False, "ratio is False, not float"),
        ("flag", 1, "flag is 1, not bool"),
        ("label", ["x"], "label is ['x'], not str | None"),
        ("kind", "c\n", "kind is 'c\\n', not Literal['a', 'b']"),
        ("kind", [], "kind is [], not Literal['a', 'b']"),
        ("items", [1, "2"], "items is [1, '2'], not list[int] | None"),
        ("items", [[1]], "items is [[1]], not list[int] | None"),
        ("parts", [], "parts is [], not dict"),
    ],
)
def test_a_value_of_another_type_is_named(name: str, value: Any, problem: str) -> None:
    assert misfit({name: value}, Declared) == problem
