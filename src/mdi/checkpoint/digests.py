"""Digests of named tensors, computed while they are read, and what they are compared with.

A digest covers names, dtypes, shapes and tensor bytes, not the zip around them. It is the SHA-256 of
one line per tensor, in the order of the names, each with the XXH3-128 of the tensor's bytes.

It finds damage, not forgery: XXH3 is no cryptographic hash. Whoever can write to a disk can write another digest beside
the weights too, and what comes over the network is authenticated with the key. XXH3 is read at the speed of memory,
where SHA-256 took half as long again as loading itself.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
import xxhash

from mdi.checkpoint.tensor_file import MAX_TENSORS, Advance, no_progress, open_weights
from mdi.documents import Fields, read_json
from mdi.errors import CheckpointError
from mdi.files import storage_error, write_text
from mdi.model.tensors import dtype_name
from mdi.model.weights import Weights

FORMAT_VERSION = 2
_MAX_DIGESTS_BYTES = 400 * MAX_TENSORS
_BLOCK_BYTES = 1 << 20


@dataclass(frozen=True)
class Check:
    """What is known of some tensors before they are read."""

    compare: Callable[[Mapping[str, str]], None]  # raises `CheckpointError` for the lines of tensors, by name
    digest: str = ""  # of all of them; empty where only their lines are known


def tensor_line(tensor: torch.Tensor) -> str:
    """What a digest says of one tensor: dtype, shape and XXH3-128 of its bytes."""
    data = tensor.detach().contiguous().view(-1).view(torch.uint8)
    return f"{dtype_name(tensor.dtype)} {list(tensor.shape)} {xxhash.xxh3_128_hexdigest(data.numpy().data)}"


def digest_of_lines(lines: Mapping[str, str]) -> str:
    """The digest of a set of tensors, from the line of each."""
    text = "".join(f"{name} {lines[name]}\n" for name in sorted(lines))
    return hashlib.sha256(text.encode()).hexdigest()


def lines_of(weights: Mapping[str, torch.Tensor]) -> dict[str, str]:
    """The line of each tensor, by name. All are read, one after the other."""
    return _HashedWeights(Weights.of(weights)).lines()


def digest_of(weights: Mapping[str, torch.Tensor]) -> str:
    """The digest of named tensors."""
    return digest_of_lines(lines_of(weights))


def content_digest(path: Path, advance: Advance = no_progress) -> str:
    """The digest of a file's tensors. Raises `CheckpointError` for a damaged file."""
    return digest_of(open_weights(path, advance))


def file_digest(path: Path, advance: Advance = no_progress) -> str:
    """XXH3-128 of a file's bytes, whatever they are. Raises `StorageError`."""
    digest = xxhash.xxh3_128()
    try:
        with path.open("rb") as file:
            while block := file.read(_BLOCK_BYTES):
                digest.update(block)
                advance(len(block))
    except OSError as exc:
        raise storage_error(path, exc) from exc
    return digest.hexdigest()


# ---- while they are used


class _HashedWeights(Weights):
    """Weights that are hashed as they are read, while the processor's cache still holds much of them."""

    def __init__(self, weights: Weights, check: Check | None = None) -> None:
        known = "" if check is None else check.digest
        super().__init__(weights.meta, weights.__getitem__, known or weights.identity)
        self._check = check
        self._lines: dict[int, str] = {}  # by the stored tensor

    def __getitem__(self, name: str) -> torch.Tensor:
        tensor, stored = super().__getitem__(name), id(self.meta[name])
        if stored not in self._lines:
            self._lines[stored] = tensor_line(tensor)
        return tensor

    def lines(self) -> dict[str, str]:
        """The line of each tensor, also of those that nobody asked for."""
        for name, tensor in self.meta.items():
            if id(tensor) not in self._lines:
                self[name]
        return {name: self._lines[id(tensor)] for name, tensor in self.meta.items()}

    def verify(self) -> None:
        if self._check is not None:
            self._check.compare(self.lines())


def checked(weights: Weights, check: Check | None) -> Weights:
    """The same weights, whose `verify` applies `check` to what was read; None where nothing is known of them."""
    return weights if check is None else _HashedWeights(weights, check)


def expect_digest(digest: str, otherwise: str) -> Check | None:
    """Compare with a digest, if it is not empty; `otherwise` is the text of the error."""

    def check(lines: Mapping[str, str]) -> None:
        if digest_of_lines(lines) != digest:
            raise CheckpointError(otherwise)

    return Check(check, digest) if digest else None


# ---- of a whole model


def digests_file(model: Path) -> Path:
    """Where the digests of a whole model's file lie: beside it, in `lit_model.digests.json` for `lit_model.pth`."""
    return model.with_suffix(".digests.json")


def record_digests(model: Path, advance: Advance = no_progress) -> None:
    """Write what the digest of a whole model says of each tensor, so that a part of it can be checked."""
    lines = lines_of(open_weights(model, advance))
    write_text(digests_file(model), json.dumps({"format_version": FORMAT_VERSION, "tensors": lines}, indent=1))


def read_digests(model: Path) -> dict[str, str] | None:
    """What `record_digests` wrote; None for a model that another program made. Raises `CheckpointError`."""
    path = digests_file(model)
    if not path.is_file():
        return None
    try:
        fields = Fields(read_json(path, _MAX_DIGESTS_BYTES, CheckpointError), str(path), CheckpointError)
        fields.get("format_version", lambda value: value == FORMAT_VERSION, f"{FORMAT_VERSION}")
        lines: dict[str, str] = fields.get("tensors", _are_lines, "a text for each tensor")
    except CheckpointError as exc:
        raise CheckpointError(f"{exc}; remove it, or prepare the model again") from exc
    return lines


def _are_lines(value: object) -> bool:
    return isinstance(value, dict) and all(isinstance(line, str) for line in value.values())


def expect_lines(path: Path, known: Mapping[str, str] | None) -> Check | None:
    """Compare tensors of the whole model `path` with its digests, where they are known."""
    if known is None:
        return None
    file = digests_file(path).name

    def check(lines: Mapping[str, str]) -> None:
        for name, line in lines.items():
            if known.get(name) != line:
                raise CheckpointError(
                    f"{path}: damaged: {name} is not what {file} says. Prepare the model again; if the file was"
                    f" replaced on purpose, remove {file}"
                )

    return Check(check)
