"""A file of named tensors, read as data: nothing in it is executed, and all that it declares is checked first.

A file of torch.save is a zip archive of uncompressed records: `<root>/data.pkl`, a pickle of names, dtypes, shapes and
places, and `<root>/data/<key>`, the bytes of each storage. Bytes are read into memory of their own and never mapped: of
a file that is cut short under the program a mapping makes SIGBUS, which ends the process without a word.
"""

import errno
import io
import math
import os
import re
import stat
import struct
import sys
import weakref
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from mdi.checkpoint.pickles import Damaged, Foreign, TensorRef, load_pickle
from mdi.errors import CheckpointError
from mdi.files import storage_error
from mdi.model.tensors import mapped_empty
from mdi.model.weights import Weights
from mdi.strings import one_line

MAX_TENSORS = 1 << 17  # five times those of the largest mixture of experts
MAX_DIMENSIONS = 8
NAME = re.compile(r"[A-Za-z0-9._-]{1,256}")
READ_BYTES = 8 << 20  # at a time, between two calls of `advance`
MAX_DIRECTORY_BYTES = 32 << 20
_LOCAL_HEADER_BYTES = 30
_COMPILED = "_orig_mod."
_DTYPES = {
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "DoubleStorage": torch.float64,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}

Advance = Callable[[int], object]


def no_progress(n_bytes: int) -> None:
    """The `advance` of a reader that nobody watches."""


@dataclass(frozen=True)
class StoredTensor:
    """Where in the file a tensor lies."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int  # of its first byte

    @property
    def n_bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True)
class Format:
    """A kind of file: how it is called, and what finds its tensors. That raises `Damaged`, or `OSError`."""

    name: str
    read_directory: Callable[["File"], dict[str, StoredTensor]]


class TensorFile:
    """The named tensors of one file, which stays open as long as this object lives. Used by one thread."""

    def __init__(self, path: Path, format: Format) -> None:
        """Raises `CheckpointError` for a missing, damaged or foreign file, `StorageError` for an unreadable one."""
        self.path = path
        self._file = _open(path)
        try:
            self.tensors = format.read_directory(self._file)
        except Damaged as exc:
            raise CheckpointError(f"{path}: damaged, or not {format.name}: {exc}") from exc
        except OSError as exc:
            raise storage_error(path, exc) from exc
        self._in_use: weakref.WeakValueDictionary[StoredTensor, torch.Tensor] = weakref.WeakValueDictionary()

    @property
    def identity(self) -> str:
        """Another one after every write. The date of a change, unlike that of a write, cannot be set."""
        status = os.fstat(self._file.fileno())
        numbers = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
        return f"file {' '.join(map(str, numbers))}"

    def read(self, name: str, advance: Advance = no_progress) -> torch.Tensor:
        """The tensor `name`; the same object for two names of one tensor, as long as somebody holds it.

        `advance` is called with the bytes of each piece of at most `READ_BYTES`, before the first one with 0.
        Raises `CheckpointError` where the file is shorter by now, `StorageError` where it cannot be read.
        """
        advance(0)
        stored = self.tensors[name]
        if (tensor := self._in_use.get(stored)) is None:
            tensor = self._in_use[stored] = self._read(stored, advance)
        return tensor

    def _read(self, stored: StoredTensor, advance: Advance) -> torch.Tensor:
        tensor = mapped_empty(torch.Size(stored.shape), stored.dtype)
        buffer = tensor.view(-1).view(torch.uint8).numpy().data
        try:
            self._file.seek(stored.start)
            while len(buffer):
                if not (n_bytes := self._file.readinto(buffer[:READ_BYTES])):
                    raise CheckpointError(f"{self.path}: damaged: it was cut short while it was read")
                buffer = buffer[n_bytes:]
                advance(n_bytes)
        except OSError as exc:
            raise storage_error(self.path, exc) from exc
        return tensor


class File(io.FileIO):
    """A file of which no more than a directory of tensors may be read at once."""

    @property
    def n_bytes(self) -> int:
        """Its size by now."""
        return os.fstat(self.fileno()).st_size

    def read(self, size: int | None = -1) -> bytes:
        if size is None or size < 0:  # how `zipfile` looks for the end of the directory: it has gone close to it
            size = MAX_DIRECTORY_BYTES
        if size > MAX_DIRECTORY_BYTES:
            raise Damaged(f"it has a directory of {size} bytes")
        return super().read(size) or b""


def _open(path: Path) -> File:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # a pipe of that name would block
    except FileNotFoundError as exc:
        raise CheckpointError(f"{path}: no such file") from exc
    except OSError as exc:
        raise storage_error(path, exc) from exc
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise CheckpointError(f"{path}: not a file")
    file = File(fd, closefd=False)
    weakref.finalize(file, os.close, fd)
    return file


class _Records:
    """The records of the archive: where each lies, checked against the size of the file."""

    def __init__(self, file: File) -> None:
        self._file = file
        self.file_bytes = file.n_bytes
        try:
            with zipfile.ZipFile(file) as archive:
                entries = {entry.filename: entry for entry in archive.infolist()}
        except Damaged:
            raise
        except Exception as exc:  # of a damaged directory it raises whatever comes of its numbers
            if isinstance(exc, OSError) and exc.errno != errno.EINVAL:  # that is a seek before the start
                raise
            raise Damaged(f"no archive ({one_line(exc, 100)})") from exc
        roots = [name.removesuffix("data.pkl") for name in entries if name.endswith("/data.pkl")]
        if len(roots) != 1:
            raise Damaged(f"an archive with {len(roots)} records data.pkl")
        self._root, self._entries = roots[0], entries
        if (order := self._optional("byteorder")) is not None and order != sys.byteorder.encode():
            raise Damaged(f"its numbers have the byte order {ascii(order)[:40]}")

    def find(self, name: str) -> tuple[int, int]:
        """The first byte of a record in the file, and its length."""
        if (entry := self._entries.get(self._root + name)) is None:
            raise Damaged(f"the record {name} is missing")
        if entry.compress_type != zipfile.ZIP_STORED or entry.file_size != entry.compress_size:
            raise Damaged(f"the record {name} is compressed")
        if not 0 <= entry.header_offset < self.file_bytes:
            raise Damaged(f"the record {name} is not in the file")
        self._file.seek(entry.header_offset)
        header = self._file.read(_LOCAL_HEADER_BYTES)
        if len(header) < _LOCAL_HEADER_BYTES or header[:4] != b"PK\3\4":
            raise Damaged(f"the record {name} is not where the directory says")
        start = entry.header_offset + len(header) + sum(struct.unpack("<2H", header[26:]))  # name, padding
        if start + entry.file_size > self.file_bytes:
            raise Damaged(f"the record {name} goes beyond the end of the file")
        return start, entry.file_size

    def read(self, name: str, max_bytes: int) -> bytes:
        """The bytes of a small record."""
        start, n_bytes = self.find(name)
        if n_bytes > max_bytes:
            raise Damaged(f"the record {name} has {n_bytes} bytes")
        self._file.seek(start)
        return self._file.read(n_bytes)

    def _optional(self, name: str) -> bytes | None:
        return self.read(name, 100) if self._root + name in self._entries else None


def _read_directory(file: File) -> dict[str, StoredTensor]:
    """Where every tensor lies, checked before memory is taken for it."""
    records = _Records(file)
    values = _state_dict(load_pickle(records.read("data.pkl", MAX_DIRECTORY_BYTES)))
    if len(values) > MAX_TENSORS:
        raise Damaged(f"{len(values)} tensors, more than {MAX_TENSORS}")
    tensors = {checked_name(name): _locate(name, value, records) for name, value in values.items()}
    if sum(stored.n_bytes for stored in set(tensors.values())) > records.file_bytes:
        raise Damaged("its tensors are larger than the file")
    return tensors


def read_values(path: Path) -> object:
    """What a file of torch.save holds besides the numbers of its tensors, as `load_pickle` gives it.

    Raises as `TensorFile`.
    """
    file = _open(path)
    try:
        return load_pickle(_Records(file).read("data.pkl", MAX_DIRECTORY_BYTES))
    except Damaged as exc:
        raise CheckpointError(f"{path}: damaged, or not {TORCH.name}: {exc}") from exc
    except OSError as exc:
        raise storage_error(path, exc) from exc


def _state_dict(value: object) -> dict[str, object]:
    """The named tensors among what litGPT saves.

    A conversion, and litGPT's `LLM.save`, write them alone. Training writes them under `model`: finetuning nothing
    besides, pretraining and every intermediate step also the state of optimizer and data. What `torch.compile` wrapped
    has a prefix that litGPT takes off when it loads such a file.
    """
    if isinstance(value, Foreign):
        raise Damaged(f"it refers to {value}")
    if not isinstance(value, dict):
        raise Damaged("it holds something else than named tensors")
    if not isinstance(state := value.get("model"), dict):
        state = value
    if not all(isinstance(name, str) for name in state):
        raise Damaged("it holds tensors without names")
    names = {name: name.replace(_COMPILED, "") for name in state}
    if len(set(names.values())) < len(state):
        raise Damaged("it holds two tensors of one name")
    return {names[name]: tensor for name, tensor in state.items()}


def checked_name(name: str) -> str:
    if not NAME.fullmatch(name):
        raise Damaged(f"a tensor is called {ascii(name)[:100]}: letters, digits, '.', '_' and '-' are allowed")
    return name


def _locate(name: str, value: object, records: "_Records") -> StoredTensor:
    if isinstance(value, Foreign):
        raise Damaged(f"it refers to {value}")
    if not isinstance(value, TensorRef):
        raise Damaged(f"{name} is not a tensor")
    storage, numbers = value.storage, (value.offset, *value.shape, *value.stride)
    if len(value.shape) != len(value.stride) or len(value.shape) > MAX_DIMENSIONS:
        raise Damaged(f"{name} has {len(value.shape)} dimensions and {len(value.stride)} strides")
    if any(not 0 <= number <= records.file_bytes for number in numbers):
        raise Damaged(f"{name} declares sizes that the file does not have")
    if not _is_contiguous(value.shape, value.stride):
        raise Damaged(f"{name} is not contiguous: shape {list(value.shape)}, strides {list(value.stride)}")
    if (dtype := _DTYPES.get(storage.kind)) is None:
        raise Damaged(f"{name} is of the kind {ascii(storage.kind)[:40]}")
    start, n_bytes = records.find(f"data/{storage.key}")
    if n_bytes != storage.n_elements * dtype.itemsize:
        raise Damaged(f"{name}: {n_bytes} bytes are stored where {storage.n_elements * dtype.itemsize} are declared")
    if value.offset + math.prod(value.shape) > storage.n_elements:
        raise Damaged(f"{name} is larger than what is stored of it")
    return StoredTensor(dtype, value.shape, start + value.offset * dtype.itemsize)


def _is_contiguous(shape: tuple[int, ...], stride: tuple[int, ...]) -> bool:
    expected = 1
    for size, step in zip(reversed(shape), reversed(stride), strict=True):
        if size > 1 and step != expected and 0 not in shape:
            return False
        expected *= size
    return True


TORCH = Format("a file of torch.save", _read_directory)


def open_weights(path: Path, advance: Advance = no_progress, format: Format = TORCH) -> Weights:
    """The tensors of a file, by default a chunk or model, each read when it is asked for. Raises as `TensorFile`."""
    file = TensorFile(path, format)
    unique = {stored: torch.empty(stored.shape, dtype=stored.dtype, device="meta") for stored in file.tensors.values()}
    meta = {name: unique[stored] for name, stored in file.tensors.items()}
    return Weights(meta, lambda name: file.read(name, advance), file.identity)
