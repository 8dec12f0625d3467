"""A .bin file of Hugging Face -> a safetensors file, one tensor at a time, without executing its pickle.

litGPT reads .bin files with an ordinary unpickler, which would run the file's code, and the writer of the safetensors
library wants all tensors in memory at once.
"""

import errno
import json
import pickle
import struct
import zipfile
from pathlib import Path
from typing import Any

import torch

from mdi.checkpoint.tensor_file import open_weights
from mdi.errors import CheckpointError
from mdi.files import storage_error
from mdi.model.weights import Weights
from mdi.strings import one_line

DTYPE_CODES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
_EMBEDDING, _HEAD = "model.embed_tokens.weight", "lm_head.weight"
# What torch.load raises for bytes that are not a checkpoint, or a truncated one.
_DAMAGE = (RuntimeError, EOFError, ValueError, KeyError, IndexError, AttributeError, TypeError)


def bin_to_safetensors(file: Path) -> Path:
    """Replace a .bin file by a safetensors file.

    A head that is the embedding itself is left out: litgpt ties it again, and it is stored once.
    Raises `CheckpointError` for a damaged file or one of more than plain tensors, `StorageError` for a full disk.
    """
    weights = open_weights(file) if zipfile.is_zipfile(file) else _load_old(file)
    names = list(weights)
    if _HEAD in weights and weights.meta[_HEAD] is weights.meta.get(_EMBEDDING):
        names.remove(_HEAD)
    target = file.with_suffix(".safetensors")
    try:
        _write_safetensors(target, weights, names)
    except OSError as exc:
        raise storage_error(target, exc) from exc
    file.unlink()
    return target


def _write_safetensors(target: Path, weights: Weights, names: list[str]) -> None:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    start = 0
    for name in names:
        meta = weights.meta[name]
        stop = start + meta.nbytes
        header[name] = {"dtype": DTYPE_CODES[meta.dtype], "shape": list(meta.shape), "data_offsets": [start, stop]}
        start = stop
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with target.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name in names:
            file.write(weights[name].view(-1).view(torch.uint8).numpy().data)


def _load_old(file: Path) -> Weights:
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
    unique: dict[object, torch.Tensor] = {}
    meta = {name: unique.setdefault((t.data_ptr(), t.shape, t.stride()), t) for name, t in state.items()}
    return Weights(meta, lambda name: state[name].contiguous())


def _is_plain(tensor: torch.Tensor) -> bool:
    """Whether a tensor is made of numbers that are stored as they are, each in a place of its own."""
    return (
        tensor.layout is torch.strided
        and tensor.device.type == "cpu"
        and tensor.dtype in DTYPE_CODES
        and not (tensor.is_conj() or tensor.is_neg())
        and tensor.nbytes <= tensor.untyped_storage().nbytes()
    )
