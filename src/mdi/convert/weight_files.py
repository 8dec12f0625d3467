"""The weight files of a Hugging Face folder, read one tensor at a time, without mapping them or executing a pickle.

litgpt reads .bin files with an ordinary unpickler, which would run the file's code, and the reader of the safetensors
library maps the file: if it is cut short meanwhile, that makes SIGBUS.
"""

import errno
import math
import pickle
import struct
import zipfile
from pathlib import Path
from typing import Any

import torch

from mdi.checkpoint.pickles import Damaged
from mdi.checkpoint.tensor_file import (
    MAX_DIMENSIONS,
    MAX_DIRECTORY_BYTES,
    MAX_TENSORS,
    Advance,
    File,
    Format,
    StoredTensor,
    checked_name,
    no_progress,
    open_weights,
)
from mdi.documents import parse_json
from mdi.errors import CheckpointError
from mdi.files import storage_error
from mdi.model.weights import Weights
from mdi.strings import one_line

SAFETENSORS_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_EMBEDDING, _HEAD = "model.embed_tokens.weight", "lm_head.weight"
# What torch.load raises for bytes that are not a checkpoint, or a truncated one.
_DAMAGE = (RuntimeError, EOFError, ValueError, KeyError, IndexError, AttributeError, TypeError)


def open_weight_file(file: Path, advance: Advance = no_progress) -> Weights:
    """The tensors of a .safetensors or .bin file, each read when it is asked for.

    `advance` is called with the bytes that were read. A head that is the embedding itself is left out: litgpt ties it
    again, and it is stored once.
    Raises `CheckpointError` for a damaged file or one of more than plain tensors, `StorageError` for an unreadable one.
    """
    if file.suffix == ".safetensors":
        weights = open_weights(file, advance, SAFETENSORS)
    else:
        weights = open_weights(file, advance) if zipfile.is_zipfile(file) else _load_old(file, advance)
    if _HEAD in weights and weights.meta[_HEAD] is weights.meta.get(_EMBEDDING):
        return Weights({name: meta for name, meta in weights.meta.items() if name != _HEAD}, weights.__getitem__)
    return weights


def _read_header(file: File) -> dict[str, StoredTensor]:
    """Where every tensor of a safetensors file lies.

    The layout: 8 bytes with the length of the header, little-endian; the header, in JSON; the bytes of the tensors,
    without holes. https://huggingface.co/docs/safetensors
    """
    data = file.read(8)
    n_bytes = struct.unpack("<Q", data)[0] if len(data) == 8 else 0
    if not 2 <= n_bytes <= min(file.n_bytes - 8, MAX_DIRECTORY_BYTES):
        raise Damaged(f"its header would have {n_bytes} bytes")
    values = parse_json(file.read(n_bytes), "its header", Damaged)
    if not isinstance(values, dict):
        raise Damaged("its header is no object of JSON")
    values.pop("__metadata__", None)
    if len(values) > MAX_TENSORS:
        raise Damaged(f"{len(values)} tensors, more than {MAX_TENSORS}")
    start = 8 + n_bytes
    tensors = {checked_name(name): _locate(name, value, start) for name, value in values.items()}
    end = start
    for stored in sorted(tensors.values(), key=lambda stored: (stored.start, stored.n_bytes)):
        if stored.start != end:
            raise Damaged("its tensors do not follow each other")
        end += stored.n_bytes
    if end != file.n_bytes:
        raise Damaged(f"it has {file.n_bytes} bytes where its header describes {end}")
    return tensors


def _locate(name: str, value: Any, start: int) -> StoredTensor:
    """Raises `Damaged` where the description of a tensor contradicts itself."""
    if not isinstance(value, dict):
        raise Damaged(f"{name} is not described")
    code, shape, place = value.get("dtype"), _sizes(name, value, "shape"), _sizes(name, value, "data_offsets")
    if len(shape) > MAX_DIMENSIONS or len(place) != 2:
        raise Damaged(f"{name} has {len(shape)} dimensions and {len(place)} offsets")
    if not isinstance(code, str) or (dtype := SAFETENSORS_DTYPES.get(code)) is None:
        raise Damaged(f"{name} is of the dtype {ascii(code)[:40]}, which is unknown")
    if place[1] - place[0] != math.prod(shape) * dtype.itemsize:
        raise Damaged(f"{name} has another size than its shape")
    return StoredTensor(dtype, tuple(shape), start + place[0])


def _sizes(name: str, description: dict[str, Any], key: str) -> list[int]:
    value = description.get(key)
    if not isinstance(value, list) or not all(type(item) is int and 0 <= item < 1 << 48 for item in value):
        raise Damaged(f"{name} has no {key}")
    return value


SAFETENSORS = Format("a safetensors file", _read_header)


def _load_old(file: Path, advance: Advance) -> Weights:
    """The tensors of a file in torch's older form, which is read into memory whole."""
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as exc:
        raise CheckpointError(
            f"{file} is damaged, or holds more than plain tensors and could run code: refused; "
            "take the model in safetensors format"
        ) from exc
    except (OSError, *_DAMAGE) as exc:
        if isinstance(exc, OSError) and exc.errno != errno.EINVAL:  # that is a seek before the start
            raise storage_error(file, exc) from exc
        raise CheckpointError(f"{file} is damaged or cut short ({one_line(exc)}): fetch it again") from exc
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise CheckpointError(f"{file} is not a plain dictionary of tensors")
    for name, tensor in state.items():
        if not _is_plain(tensor):
            raise CheckpointError(f"{file}: {ascii(name)[:100]} is not a plain tensor: refused")
    advance(file.stat().st_size)
    unique: dict[object, torch.Tensor] = {}
    meta = {name: unique.setdefault((t.data_ptr(), t.shape, t.stride()), t) for name, t in state.items()}
    return Weights(meta, lambda name: state[name].contiguous())


def _is_plain(tensor: torch.Tensor) -> bool:
    """Whether a tensor is made of numbers that are stored as they are, each in a place of its own."""
    return (
        tensor.layout is torch.strided
        and tensor.device.type == "cpu"
        and tensor.dtype in SAFETENSORS_DTYPES.values()
        and not (tensor.is_conj() or tensor.is_neg())
        and tensor.nbytes <= tensor.untyped_storage().nbytes()
    )
