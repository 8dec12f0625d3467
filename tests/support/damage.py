"""Bit rot: bytes of a tensor changed on disk, behind the program's back."""

import os
from pathlib import Path

from mdi.checkpoint.tensor_file import TORCH, TensorFile
from mdi.model.span import spans_of

SPANS = spans_of([2, 4])
DAMAGED = "transformer.h.3.mlp.proj.weight"  # of the second span


def flip_signs(path: Path, name: str) -> None:
    """Flip the sign bit of every number of a float32 tensor. Size and date of the file stay."""
    before, stored = path.stat(), TensorFile(path, TORCH).tensors[name]
    with path.open("r+b") as file:
        file.seek(stored.start)
        data = bytearray(file.read(stored.n_bytes))
        data[3::4] = bytes(byte ^ 0x80 for byte in data[3::4])
        file.seek(stored.start)
        file.write(data)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
