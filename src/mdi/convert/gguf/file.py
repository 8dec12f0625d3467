"""A GGUF file: its header, read without trusting one length in it, and its tensors in blocks of rows.

Layout: magic, version, counts; key/value pairs; tensor table; padding; tensor data. `gguf.GGUFReader` is not
used for the header: it makes an object per array item, hundreds of thousands for a vocabulary, and trusts every
length, so that a damaged one makes it allocate without end. Here a length is compared with what is left of the file
before anything is read or allocated.
"""

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import gguf
import numpy as np
import numpy.typing as npt

from mdi.errors import CheckpointError
from mdi.files import storage_error

MAX_STRING_BYTES = 16 * 2**20
MAX_ITEMS = 2**24
MAX_TENSORS = 2**18
MAX_DIMENSIONS = 4

_STRING, _ARRAY = 8, 9
# Type codes of the format, each with its little-endian form. A boolean is one byte, 0 or 1.
_NUMBERS = {
    0: "<u1",
    1: "<i1",
    2: "<u2",
    3: "<i2",
    4: "<u4",
    5: "<i4",
    6: "<f4",
    7: "|b1",
    10: "<u8",
    11: "<i8",
    12: "<f8",
}

T = TypeVar("T", bool, int, str)
_TableRow = tuple[tuple[int, ...], int, int]  # shape, outermost first; type code; offset in the data section


class Damaged(Exception):
    """The header contradicts itself or ends too early; turned into `CheckpointError` by `open_gguf`."""


class Metadata:
    """The key/value pairs of one file. Reading a key with the wrong type is an error that names it."""

    def __init__(self, path: Path, values: dict[str, Any]) -> None:
        self._path = path
        self._values = values

    def __contains__(self, key: str) -> bool:
        return key in self._values

    def value(self, key: str) -> Any:
        """Whatever is stored under `key`, or None."""
        return self._values.get(key)

    def integer(self, key: str, default: int | None = None) -> int:
        """An integer. A per-layer list counts as its one value when all layers agree."""
        value = self._values.get(key)
        if isinstance(value, np.ndarray) and value.size and value.dtype.kind in "iu":
            if (value != value[0]).any():
                raise CheckpointError(f"{self._path}: {key} differs between layers, which litGPT cannot express")
            value = int(value[0])
        return self._typed(key, int, value, default)

    def number(self, key: str, default: float | None = None) -> float:
        value = self._values.get(key)
        if isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        if value is None and default is not None:
            return default
        if not isinstance(value, float) or not abs(value) < 1e38:
            raise self._wrong(key, "a number")
        return value

    def flag(self, key: str, default: bool | None = None) -> bool:
        return self._typed(key, bool, self._values.get(key), default)

    def string(self, key: str, default: str | None = None) -> str:
        return self._typed(key, str, self._values.get(key), default)

    def strings(self, key: str) -> list[str]:
        value = self._values.get(key)
        if not isinstance(value, list):
            raise self._wrong(key, "a list of strings")
        return value

    def array(self, key: str) -> npt.NDArray[Any] | None:
        """A list of numbers, or None where the file has none under `key`."""
        value = self._values.get(key)
        if value is not None and not isinstance(value, np.ndarray):
            raise self._wrong(key, "a list of numbers")
        return value

    def _typed(self, key: str, kind: type[T], value: Any, default: T | None) -> T:
        if value is None and default is not None:
            return default
        if type(value) is not kind:
            raise self._wrong(key, {int: "an integer", bool: "true or false", str: "a string"}[kind])
        return value

    def _wrong(self, key: str, wanted: str) -> CheckpointError:
        found = "is missing" if key not in self._values else f"is not {wanted}"
        return CheckpointError(f"{self._path}: the metadata key {key} {found}")


@dataclass(frozen=True)
class TensorInfo:
    """One row of the tensor table. `shape` is outermost first, `offset` counts from the start of the file."""

    path: Path  # of the file
    name: str
    shape: tuple[int, ...]
    kind: gguf.GGMLQuantizationType
    offset: int

    @property
    def row_bytes(self) -> int:
        block, block_bytes = gguf.GGML_QUANT_SIZES[self.kind]
        return int(self.shape[-1] // block * block_bytes)

    @property
    def n_rows(self) -> int:
        rows = 1
        for size in self.shape[:-1]:
            rows *= size
        return rows


@dataclass(frozen=True)
class GgufFile:
    """The header of a file; its tensors may lie in other parts of the model."""

    path: Path
    metadata: Metadata
    tensors: dict[str, TensorInfo]

    def rows(self, info: TensorInfo, start: int, n: int) -> npt.NDArray[np.float32]:
        """Rows `start` to `start + n` of a tensor seen as (n_rows, last dimension), dequantized: (n, last)."""
        return dequantized(info, self.stored_rows(info, start, n))

    def stored_rows(self, info: TensorInfo, start: int, n: int) -> npt.NDArray[np.uint8]:
        """The same rows as the file has them: (n, bytes of a row)."""
        with info.path.open("rb") as file:
            file.seek(info.offset + start * info.row_bytes)
            raw = np.fromfile(file, dtype=np.uint8, count=n * info.row_bytes)
        if raw.size != n * info.row_bytes:
            raise CheckpointError(f"{info.path}: the file ended inside tensor {info.name}")
        return raw.reshape(n, info.row_bytes)


def open_gguf(path: Path) -> GgufFile:
    """Read the header of `path` and check that every tensor lies inside the file.

    Raises `CheckpointError` for anything that is not a whole, little-endian GGUF file of version 2 or 3,
    `StorageError` for one that cannot be read.
    """
    size = _file_size(path)
    try:
        with path.open("rb") as file:
            magic = file.read(4)
            if magic != b"GGUF":
                raise CheckpointError(f"{path}: not a GGUF file (it starts with {magic!r})")
            _check_version(path, file.read(4))
            values, tensors = _read_header(_Cursor(file, 8, size), path, size)
    except Damaged as exc:
        raise CheckpointError(f"{path}: damaged or cut-off GGUF file: {exc}; fetch it again") from exc
    except OSError as exc:
        raise storage_error(path, exc) from exc
    opened = GgufFile(path, Metadata(path, values), tensors)
    for info in {info.kind: info for info in tensors.values()}.values():
        _dequantized(path, info.kind, np.zeros((1, gguf.GGML_QUANT_SIZES[info.kind][1]), dtype=np.uint8))
    return opened


def _file_size(path: Path) -> int:
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file")
    size = path.stat().st_size
    if size < 24:
        raise CheckpointError(f"{path}: not a GGUF file: only {size} bytes long")
    return size


def _check_version(path: Path, field: bytes) -> None:
    version = int.from_bytes(field, "little")
    if int.from_bytes(field, "big") in (1, 2, 3):
        raise CheckpointError(f"{path}: a big-endian GGUF file; only little-endian ones are supported")
    if version not in (2, 3):
        raise CheckpointError(
            f"{path}: GGUF version {version}; versions 2 and 3 are supported: convert the model again"
        )


class _Cursor:
    """Reads values, one after the other; whatever would pass `end` raises `Damaged` before it is read.

    The file is not mapped: of a file that is cut short meanwhile, a mapping makes SIGBUS.
    """

    def __init__(self, file: BinaryIO, position: int, end: int) -> None:
        """`file` is at `position`."""
        self.position = position
        self._file = file
        self._end = end

    def u32(self) -> int:
        return int(struct.unpack("<I", self._take(4))[0])

    def u64(self) -> int:
        return int(struct.unpack("<Q", self._take(8))[0])

    def string(self, limit: int = MAX_STRING_BYTES) -> str:
        length = self._limited(self.u64(), limit, "bytes in a string")
        start = self.position
        try:
            return self._take(length).decode("utf-8")
        except UnicodeDecodeError as exc:
            raise Damaged(f"a string at byte {start} is not UTF-8") from exc

    def value(self, code: int) -> Any:
        if code == _STRING:
            return self.string()
        if code == _ARRAY:
            return self._array(self.u32(), self.count(MAX_ITEMS, "items in a list"))
        return self._numbers(code, 1)[0].item()

    def count(self, limit: int, what: str) -> int:
        return self._limited(self.u64(), limit, what)

    def _array(self, code: int, n: int) -> Any:
        if code != _STRING:
            return self._numbers(code, n)
        self._limited(8 * n, self._end - self.position, "bytes of strings")
        return [self.string() for _ in range(n)]

    def _numbers(self, code: int, n: int) -> npt.NDArray[Any]:
        if code not in _NUMBERS:
            raise Damaged(f"unknown value type {code} at byte {self.position}")
        kind = np.dtype(_NUMBERS[code])
        return np.frombuffer(self._take(n * kind.itemsize), dtype=kind)

    def _take(self, n: int) -> bytes:
        self._limited(n, self._end - self.position, f"bytes at byte {self.position}")
        data = self._file.read(n)
        if len(data) != n:
            raise Damaged(f"it was cut short at byte {self.position + len(data)} while it was read")
        self.position += n
        return data

    @staticmethod
    def _limited(n: int, limit: int, what: str) -> int:
        if n > limit:
            raise Damaged(f"{n} {what} where at most {limit} are possible")
        return n


def _read_header(cursor: _Cursor, path: Path, size: int) -> tuple[dict[str, Any], dict[str, TensorInfo]]:
    n_tensors = cursor.count(MAX_TENSORS, "tensors")
    n_values = cursor.count(MAX_ITEMS, "metadata keys")
    values: dict[str, Any] = {}
    for _ in range(n_values):
        key = _new_name(cursor.string(limit=2**16), values, "metadata key")
        values[key] = cursor.value(cursor.u32())
    table = _read_table(cursor, n_tensors)
    alignment = values.get("general.alignment", 32)
    if not isinstance(alignment, int) or alignment < 1:
        raise Damaged(f"general.alignment is {alignment!r}")
    start = -(-cursor.position // alignment) * alignment
    return values, {name: _located(path, name, row, start, size) for name, row in table.items()}


def _read_table(cursor: _Cursor, n_tensors: int) -> dict[str, _TableRow]:
    table: dict[str, _TableRow] = {}
    for _ in range(n_tensors):
        name = _new_name(cursor.string(limit=2**16), table, "tensor")
        n_dimensions = cursor.u32()
        if not 1 <= n_dimensions <= MAX_DIMENSIONS:
            raise Damaged(f"tensor {name} has {n_dimensions} dimensions")
        shape = tuple(reversed([cursor.u64() for _ in range(n_dimensions)]))
        table[name] = (shape, cursor.u32(), cursor.u64())
    return table


def _new_name(name: str, seen: dict[str, Any], what: str) -> str:
    if not name or not name.isprintable() or name in seen:
        raise Damaged(f"{what} {name!r} is empty, unreadable or occurs twice")
    return name


def _located(path: Path, name: str, row: _TableRow, start: int, size: int) -> TensorInfo:
    shape, code, offset = row
    try:
        kind = gguf.GGMLQuantizationType(code)
    except ValueError as exc:
        raise Damaged(f"tensor {name} has the unknown type {code}") from exc
    info = TensorInfo(path, name, shape, kind, start + offset)
    block = gguf.GGML_QUANT_SIZES[kind][0]
    if 0 in shape or shape[-1] % block:
        raise Damaged(f"tensor {name} of type {kind.name} cannot have the shape {list(shape)}")
    if info.offset + info.n_rows * info.row_bytes > size:
        raise Damaged(f"tensor {name} ends at byte {info.offset + info.n_rows * info.row_bytes} of {size}")
    return info


def dequantized(info: TensorInfo, rows: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """The numbers (n, last dimension) that stored rows of a tensor stand for."""
    return _dequantized(info.path, info.kind, rows)


def _dequantized(path: Path, kind: gguf.GGMLQuantizationType, raw: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    with np.errstate(all="ignore"):  # damaged scales overflow; the caller looks for numbers that are not finite
        try:
            return np.asarray(gguf.dequantize(raw, kind), dtype=np.float32)
        except NotImplementedError as exc:
            raise CheckpointError(f"{path}: cannot read tensors of type {kind.name}: quantize to another type") from exc
