"""Digests of named tensors, computed while they are used, and what they are compared with.

A digest covers names, dtypes, shapes and tensor bytes, not the zip around them. It is the SHA-256 of
one line per tensor, in the order of the names, each with the tensor's own SHA-256.
"""

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path

import torch

from mdi.checkpoint.tensor_file import MAX_TENSORS, Advance, no_progress, open_weights
from mdi.checkpoint.weights import MODEL_FILE
from mdi.documents import Fields, read_json
from mdi.errors import CheckpointError
from mdi.files import write_text
from mdi.model.tensors import dtype_name
from mdi.model.weights import Weights

DIGESTS_FILE = "lit_model.digests.json"
FORMAT_VERSION = 1
_MAX_DIGESTS_BYTES = 400 * MAX_TENSORS

# With the processor's instructions for SHA-256 one thread hashes 1.5 GB/s, and the main thread loads 0.2 to 0.8 GB/s;
# the second is for processors without them. Each may hold a tensor that the main thread has let go already.
HASH_THREADS = 2

Check = Callable[[Mapping[str, str]], None]  # raises `CheckpointError` for the lines of tensors, by name


def tensor_line(tensor: torch.Tensor) -> str:
    """What a digest says of one tensor: dtype, shape and SHA-256 of its bytes."""
    data = tensor.detach().contiguous().view(-1).view(torch.uint8)
    return f"{dtype_name(tensor.dtype)} {list(tensor.shape)} {hashlib.sha256(data.numpy().data).hexdigest()}"


def digest_of_lines(lines: Mapping[str, str]) -> str:
    """The digest of a set of tensors, from the line of each."""
    text = "".join(f"{name} {lines[name]}\n" for name in sorted(lines))
    return hashlib.sha256(text.encode()).hexdigest()


def lines_of(weights: Mapping[str, torch.Tensor]) -> dict[str, str]:
    """The line of each tensor, by name. All are read, one after the other."""
    with _hashed(Weights.of(weights), None) as hashed:
        return hashed.lines()


def digest_of(weights: Mapping[str, torch.Tensor]) -> str:
    """The digest of named tensors."""
    return digest_of_lines(lines_of(weights))


def content_digest(path: Path, advance: Advance = no_progress) -> str:
    """The digest of a file's tensors. Raises `CheckpointError` for a damaged file."""
    return digest_of(open_weights(path, advance))


# ---- while they are used


class _HashedWeights(Weights):
    """Weights whose bytes are hashed by other threads, while whoever asked for a tensor works on it."""

    def __init__(self, weights: Weights, check: Check | None, pool: ThreadPoolExecutor) -> None:
        super().__init__(weights.meta, weights.__getitem__)
        self._check, self._pool = check, pool
        self._lines: dict[int, Future[str]] = {}  # by the stored tensor

    def __getitem__(self, name: str) -> torch.Tensor:
        stored = id(self.meta[name])
        if stored not in self._lines:
            self._wait_for_a_thread()
        tensor = super().__getitem__(name)
        if stored not in self._lines:
            self._lines[stored] = self._pool.submit(tensor_line, tensor)
        return tensor

    def _wait_for_a_thread(self) -> None:
        """A tensor that waits to be hashed takes memory, so none waits."""
        pending = [line for line in self._lines.values() if not line.done()]
        if len(pending) >= HASH_THREADS:
            wait(pending, return_when="FIRST_COMPLETED")

    def lines(self) -> dict[str, str]:
        """The line of each tensor, also of those that nobody asked for."""
        for name, tensor in self.meta.items():
            if id(tensor) not in self._lines:
                self[name]
        return {name: self._lines[id(tensor)].result() for name, tensor in self.meta.items()}

    def verify(self) -> None:
        if self._check is not None:
            self._check(self.lines())


@contextlib.contextmanager
def _hashed(weights: Weights, check: Check | None) -> Iterator[_HashedWeights]:
    pool = ThreadPoolExecutor(HASH_THREADS, "digest")
    try:
        yield _HashedWeights(weights, check, pool)
    finally:
        pool.shutdown(cancel_futures=True)


@contextlib.contextmanager
def checked(weights: Weights, check: Check | None) -> Iterator[Weights]:
    """The same weights, whose `verify` applies `check` to what was read; None where nothing is known of them."""
    if check is None:
        yield weights
        return
    with _hashed(weights, check) as hashed:
        yield hashed


def expect_digest(digest: str, otherwise: str) -> Check | None:
    """Compare with a digest, if it is not empty; `otherwise` is the text of the error."""

    def check(lines: Mapping[str, str]) -> None:
        if digest_of_lines(lines) != digest:
            raise CheckpointError(otherwise)

    return check if digest else None


# ---- of a whole model


def record_digests(folder: Path, advance: Advance = no_progress) -> None:
    """Write what the digest of the whole model says of each tensor, so that a part of it can be checked."""
    lines = lines_of(open_weights(folder / MODEL_FILE, advance))
    write_text(folder / DIGESTS_FILE, json.dumps({"format_version": FORMAT_VERSION, "tensors": lines}, indent=1))


def read_digests(folder: Path) -> dict[str, str] | None:
    """What `record_digests` wrote; None for a folder that another program made. Raises `CheckpointError`."""
    path = folder / DIGESTS_FILE
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

    def check(lines: Mapping[str, str]) -> None:
        for name, line in lines.items():
            if known.get(name) != line:
                raise CheckpointError(
                    f"{path}: damaged: {name} is not what {DIGESTS_FILE} says. Prepare the model again; if the file was"
                    f" replaced on purpose, remove {DIGESTS_FILE}"
                )

    return check
