"""A file of packed tensors, to be mapped: written one tensor after the other, and checked whole when it is read.

the bytes of each tensor, from a multiple of 64 on
the directory as JSON: {"<name>": [dtype, shape, first byte], ...}
the end, 40 bytes: "MDIPACK1", first byte and length of the directory, XXH3-128 of everything before
"""

import json
import math
import os
import struct
from collections.abc import Callable

import torch
import xxhash

from mdi.checkpoint.pickles import Damaged
from mdi.model.packed import MappedBytes, Mapper
from mdi.model.tensors import dtype_name
from mdi.strings import one_line

ALIGNMENT = 64  # of a line of the processor's cache; kernels read whole vectors
MIN_MAPPED_BYTES = 1 << 16  # smaller tensors stay in memory of their own while their file is written
_MAGIC = b"MDIPACK1"
_END = struct.Struct("<8sQQ16s")
_HASH_BYTES = 16
_STEP_BYTES = 8 << 20  # between two calls of `tick`
# Where the file is flushed. All of it at its end would take minutes on a slow disk, without a sign of life.
_FLUSH_BYTES = 32 << 20

Tick = Callable[[], None]


class PackedWriter:
    """Writes an empty file: `add` each tensor, then `finish`. Raises `OSError`."""

    def __init__(self, file: int, mapper: Mapper, tick: Tick) -> None:
        """`file` is a descriptor, which its owner closes."""
        self._file, self._mapper, self._tick = file, mapper, tick
        self._hash, self._n_bytes = xxhash.xxh3_128(), 0
        self._directory: dict[str, tuple[str, list[int], int]] = {}
        self.mapped: list[MappedBytes] = []

    def add(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        """Write a tensor. Returns it as it lies in the file; a small one as it is."""
        tensor = tensor.contiguous()
        self._write(bytes(-self._n_bytes % ALIGNMENT))
        start = self._n_bytes
        self._directory[name] = dtype_name(tensor.dtype), list(tensor.shape), start
        self._write(tensor.view(-1).view(torch.uint8).numpy().data)
        if tensor.nbytes < MIN_MAPPED_BYTES:
            return tensor
        self.mapped.append(self._mapper.map(self._file, start, tensor.nbytes))
        return self.mapped[-1].data.view(tensor.dtype).view(tensor.shape)

    def finish(self) -> None:
        """Write the directory and the end, and flush the file."""
        start, directory = self._n_bytes, json.dumps(self._directory).encode()
        self._write(directory)
        self._write(_END.pack(_MAGIC, start, len(directory), bytes(_HASH_BYTES))[:-_HASH_BYTES])
        self._write(self._hash.digest())
        os.fsync(self._file)

    def _write(self, data: bytes | memoryview) -> None:
        rest = memoryview(data).cast("B")
        while rest:
            n_bytes = os.write(self._file, rest[:_STEP_BYTES])
            self._hash.update(rest[:n_bytes])
            if self._n_bytes // _FLUSH_BYTES != (self._n_bytes + n_bytes) // _FLUSH_BYTES:
                os.fsync(self._file)
            self._n_bytes += n_bytes
            rest = rest[n_bytes:]
            self._tick()


def read_packed(file: int, mapper: Mapper, tick: Tick) -> tuple[MappedBytes, dict[str, torch.Tensor]]:
    """Map a file: its bytes, and its tensors by name. All of it is read, and held against its hash.

    Raises `Damaged`, and `OSError` where the system does not map it.
    """
    n_bytes = os.fstat(file).st_size
    if n_bytes < _END.size:
        raise Damaged("it was cut short")
    mapped = mapper.map(file, 0, n_bytes)
    actual = _hash_of(mapped.data[:-_HASH_BYTES], tick)
    magic, start, length, expected = _END.unpack(bytes(mapped.data[-_END.size :].numpy().data))
    if mapped.is_lost or magic != _MAGIC or actual != expected:
        raise Damaged("it is not what was written")
    try:
        directory = json.loads(bytes(mapped.data[start : start + length].numpy().data))
        return mapped, {name: _tensor(mapped.data, *entry) for name, entry in directory.items()}
    except (ValueError, TypeError, AttributeError, RuntimeError) as exc:  # by whoever can compute a hash
        raise Damaged(one_line(exc)) from exc


def _hash_of(data: torch.Tensor, tick: Tick) -> bytes:
    digest = xxhash.xxh3_128()
    rest = data.numpy().data
    while rest:
        digest.update(rest[:_STEP_BYTES])
        rest = rest[_STEP_BYTES:]
        tick()
    return digest.digest()


def _tensor(data: torch.Tensor, dtype: str, shape: list[int], start: int) -> torch.Tensor:
    """One tensor over the bytes of the file."""
    kind: torch.dtype = getattr(torch, dtype)
    n_bytes = math.prod(shape) * kind.itemsize
    return data[start : start + n_bytes].view(kind).view(shape)
