"""A file of torch.save, written one tensor at a time: what `torch.load` and `mdi.checkpoint.tensor_file` read."""

import collections
import io
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

from mdi.files import native_path


@dataclass(frozen=True, eq=False)
class Stored:
    """A tensor whose bytes are in the file already. Two names may have the same one."""

    key: int
    dtype: torch.dtype
    shape: torch.Size

    @property
    def n_elements(self) -> int:
        return self.shape.numel()


class TensorWriter:
    """Writes the file `path`: `store` each tensor, then `finish`. Raises `RuntimeError` or `OSError` as torch does."""

    def __init__(self, path: Path) -> None:
        self._file = torch._C.PyTorchFileWriter(native_path(path))
        self._n_stored = 0

    def __enter__(self) -> "TensorWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.write_end_of_file()

    def store(self, tensor: torch.Tensor) -> Stored:
        """Write the bytes of a tensor in the CPU's memory; it may be changed or freed afterwards."""
        tensor = tensor.detach().contiguous()
        if tensor.untyped_storage().nbytes() != tensor.nbytes:  # a view: its whole storage would be written
            tensor = tensor.clone()
        stored = Stored(self._n_stored, tensor.dtype, tensor.shape)
        self._file.write_record(f"data/{stored.key}", tensor.untyped_storage(), tensor.nbytes)  # type: ignore[arg-type]
        self._n_stored += 1
        return stored

    def finish(self, tensors: Mapping[str, Stored]) -> None:
        """Write the directory: which name has which tensor."""
        buffer = io.BytesIO()
        _Pickler(buffer, protocol=2).dump(dict(tensors))
        data = buffer.getvalue()
        self._file.write_record("data.pkl", data, len(data))


class _Pickler(pickle.Pickler):
    """Pickles a `Stored` as torch does a tensor: a call of its function with a reference to a storage."""

    def reducer_override(self, value: Any) -> Any:
        if not isinstance(value, Stored):
            return NotImplemented
        stride = torch.empty(value.shape, device="meta").stride()
        hooks: collections.OrderedDict[str, Any] = collections.OrderedDict()
        arguments = (_Storage(value), 0, tuple(value.shape), stride, False, hooks)
        return torch._utils._rebuild_tensor_v2, arguments

    def persistent_id(self, value: Any) -> Any:
        if not isinstance(value, _Storage):
            return None
        stored = value.of
        kind = getattr(torch, torch.storage._dtype_to_storage_type_map()[stored.dtype])
        return "storage", kind, str(stored.key), "cpu", stored.n_elements


@dataclass(frozen=True, eq=False)
class _Storage:
    of: Stored
