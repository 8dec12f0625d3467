"""Changes of valid inputs that get past the first check: bytes, numbers, JSON values, archives."""

import codecs
import io
import json
import math
import random
import re
import struct
import zipfile
from collections.abc import Callable, Sequence
from typing import Any

EDGES = (0, 1, 2, 3, 4, 7, 8, 15, 16, 31, 32, 63, 64, 127, 128, 255, 256, 4095, 4096, 65535, 65536, 2**24, 2**31 - 1,
         2**31, 2**32 - 1, 2**32, 2**53, 2**63 - 1, 2**63, 2**64 - 1)  # fmt: skip
JSON_VALUES: tuple[Any, ...] = (
    None, True, False, "", " ", "x", "\ud800", "\0", "é" * 2000, "127.0.0.1", "::1", "int4", "float16", "f" * 64,
    [], {}, [[]], [0], [0, 1], [1, 0], [{}], {"x": 1}, math.nan, math.inf, -math.inf, 1e308, 0.5, -0.0, -1, 10**30,
    *EDGES,
)  # fmt: skip


def edge(rng: random.Random, n_bytes: int) -> bytes:
    """A little-endian integer near one of the values where programs go wrong."""
    return ((rng.choice(EDGES) + rng.randint(-1, 1)) % 2 ** (8 * n_bytes)).to_bytes(n_bytes, "little")


def change_bytes(data: bytes, rng: random.Random, first: int = 0, stop: int | None = None) -> bytes:
    """Up to four small changes between `first` and `stop`."""
    changed = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        last = min(len(changed), len(changed) if stop is None else stop)
        if first >= last:
            return bytes(changed) + rng.randbytes(rng.randint(1, 8))
        _change_once(changed, rng, rng.randrange(first, last))
    return bytes(changed)


def _change_once(data: bytearray, rng: random.Random, at: int) -> None:
    length = rng.choice((1, 1, 2, 4, 8, 16, 100))
    match rng.randrange(7):
        case 0:
            data[at] ^= 1 << rng.randrange(8)
        case 1:
            data[at] = rng.randrange(256)
        case 2:
            number = edge(rng, rng.choice((1, 2, 4, 8)))
            data[at : at + len(number)] = number
        case 3:
            del data[at : at + length]
        case 4:
            data[at:at] = rng.randbytes(length)
        case 5:
            data[at:at] = data[at : at + length]
        case _:
            if rng.random() < 0.3:
                del data[at:]


def put(data: bytes, at: int, piece: bytes) -> bytes:
    """`data` with `piece` written over it."""
    return data[:at] + piece + data[at + len(piece) :]


def change_json(data: bytes, rng: random.Random) -> bytes:
    """Replace, remove or double a few values somewhere in a JSON text; any change of bytes where it is none."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return change_bytes(data, rng)
    for _ in range(rng.randint(1, 3)):
        value = _changed_value(value, rng)
    try:
        return json.dumps(value).encode()
    except RecursionError:
        return data


def change_document(data: bytes, rng: random.Random) -> bytes:
    """Other bytes, other values, or what no value can say: marks, encodings, depth, digits, a key that occurs twice."""
    match rng.randrange(8):
        case 0 | 1 | 2:
            return change_json(data, rng)
        case 3 | 4 | 5:
            return change_bytes(data, rng)
        case 6:
            return rng.choice(_WHOLE_DOCUMENTS)(data)
        case _:
            return _with_odd_text(data, rng)


_WHOLE_DOCUMENTS: tuple[Callable[[bytes], bytes], ...] = (
    lambda data: codecs.BOM_UTF8 + data,
    lambda data: codecs.BOM_UTF8 + codecs.BOM_UTF8 + data,
    lambda data: data.decode(errors="replace").encode("utf-16"),
    lambda data: data.decode(errors="replace").encode("utf-16-be"),
    lambda data: data.replace(b"\n", b"\r\n"),
    lambda data: data[: len(data) // 2],
    lambda data: data + data,
    lambda data: data[:1] + data[1:-1] + b"," + data[1:],  # each key of an object occurs twice
    lambda data: b"",
    lambda data: b"null",
    lambda data: b"\0" * 50,
    lambda data: b"[" * 5000,
    lambda data: b'{"a":' * 2000,
    lambda data: b"9" * 5000,
    lambda data: b"- " * 500,
    lambda data: b"&a [*a]",
)
_ODD_TEXTS = ("9" * 5000, "-" + "9" * 50, "1e999", "NaN", "[" * 500 + "]" * 500, '"\\ud800"', '"\\u0000"', '"a\\nb"',
              '"\\u001b[2J"', "&a 1", "*a", "!!binary aGVsbG8=", "2001-13-45", "null", "1_000", "0x1F")  # fmt: skip


def _with_odd_text(data: bytes, rng: random.Random) -> bytes:
    """One number or string of the text replaced by another text, which need not be JSON."""
    places = [match.span() for match in re.finditer(rb'"[^"]*"|-?[0-9.]+|true|false|null', data)]
    if not places:
        return data + rng.choice(_ODD_TEXTS).encode()
    start, stop = rng.choice(places)
    return data[:start] + rng.choice(_ODD_TEXTS).encode() + data[stop:]


def _changed_value(value: Any, rng: random.Random) -> Any:
    if not isinstance(value, dict | list) or not value or rng.random() < 0.05:
        return rng.choice(JSON_VALUES) if rng.random() < 0.7 else _nearby(value, rng)
    changed = value.copy()
    key = rng.choice(list(changed)) if isinstance(changed, dict) else rng.randrange(len(changed))
    match rng.randrange(10):
        case 0:
            del changed[key]
        case 1 if isinstance(changed, dict):
            changed[rng.choice((str(key) + "x", "nodes", ""))] = value[key]
        case 1:
            changed.insert(key, value[key])
        case _:
            changed[key] = _changed_value(value[key], rng)
    return changed


def _nearby(value: Any, rng: random.Random) -> Any:
    match value:
        case bool():
            return not value
        case int() | float():
            return rng.choice(
                (value + 1, value - 1, -value, value * 1000, str(value), float(value) if value < 1e300 else 0)
            )
        case str():
            return change_bytes(value.encode(errors="replace"), rng).decode(errors="replace")
        case _:
            return [value]


def change_archive(data: bytes, rng: random.Random, member: str, change: Any) -> bytes:
    """A zip archive with one member changed by `change` and its checksums right again; others are kept, or go."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = {info.filename: archive.read(info) for info in archive.infolist()}
    except (zipfile.BadZipFile, NotImplementedError, ValueError, EOFError, OSError, RuntimeError, struct.error):
        return change_bytes(data, rng)
    found = [name for name in members if name.endswith(member)] or list(members)
    if not found:
        return change_bytes(data, rng)
    name = rng.choice(found) if rng.random() < 0.85 else rng.choice(list(members))
    if rng.random() < 0.05:
        del members[name]
    else:
        members[name] = change(members[name]) if name.endswith(member) else change_bytes(members[name], rng)
    return _archive(members)


def _archive(members: dict[str, bytes]) -> bytes:
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as archive:
        for name, content in members.items():
            archive.writestr(zipfile.ZipInfo(name), content)
    return target.getvalue()


def splice(one: bytes, other: bytes, rng: random.Random) -> bytes:
    """The beginning of one input and the end of another."""
    return one[: rng.randint(0, len(one))] + other[rng.randint(0, len(other)) :]


def pick(rng: random.Random, choices: Sequence[bytes]) -> bytes:
    return choices[rng.randrange(len(choices))]
