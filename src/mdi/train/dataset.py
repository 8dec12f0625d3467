"""Tokens in files: `train.bin` and `val.bin`, little-endian, and `dataset.json` that says how to read them."""

import json
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from mdi.documents import Fields, read_json
from mdi.errors import ConfigError
from mdi.files import write_text
from mdi.strings import one_line

DATASET_FILE = "dataset.json"
TRAIN_FILE, VAL_FILE = "train.bin", "val.bin"
FORMAT_VERSION = 1
_MAX_BYTES = 1 << 16
_TRAIN_TENTHS = 9


@dataclass(frozen=True)
class DatasetInfo:
    """What `dataset.json` says."""

    dtype: str  # of the tokens: uint16, or uint32 where the vocabulary needs it
    vocab_size: int  # every token is below it
    train_tokens: int
    val_tokens: int
    format_version: int = FORMAT_VERSION


def write_tokens(folder: Path, pieces: Iterable[Sequence[int]], vocab_size: int) -> DatasetInfo:
    """Write tokens into `folder`: the first nine tenths for training, the rest for validation.

    Raises `ConfigError` for fewer than two tokens of validation; `OSError`.
    """
    dtype = np.dtype("uint16" if vocab_size <= 1 << 16 else "uint32")
    n_tokens = 0
    with (folder / TRAIN_FILE).open("wb+") as train, (folder / VAL_FILE).open("wb") as val:
        for piece in pieces:
            train.write(np.asarray(piece, dtype.newbyteorder("<")).tobytes())
            n_tokens += len(piece)
        n_train = n_tokens * _TRAIN_TENTHS // 10
        if n_tokens - n_train < 2:
            raise ConfigError(f"only {n_tokens} tokens, of which a tenth is for validation: more text is needed")
        train.seek(n_train * dtype.itemsize)
        shutil.copyfileobj(train, val)
        train.truncate(n_train * dtype.itemsize)
    info = DatasetInfo(dtype.name, vocab_size, n_train, n_tokens - n_train)
    write_text(folder / DATASET_FILE, json.dumps(asdict(info), indent=2) + "\n")
    return info


def read_info(folder: Path) -> DatasetInfo:
    """What a folder of tokens holds. Raises `ConfigError` where it is none, or damaged."""
    path = folder / DATASET_FILE
    if not path.is_file():
        raise ConfigError(f"--dataset {folder}: has no {DATASET_FILE}: make tokens of texts by prepare_data.py")
    fields = Fields(read_json(path, _MAX_BYTES, ConfigError), str(path), ConfigError)

    def count(name: str) -> int:
        return int(fields.count(name, limit=2**48))

    return DatasetInfo(
        fields.get("dtype", lambda value: value in ("uint16", "uint32"), "uint16 or uint32"),
        count("vocab_size"),
        count("train_tokens"),
        count("val_tokens"),
        fields.get("format_version", lambda value: value == FORMAT_VERSION, f"{FORMAT_VERSION}"),
    )


def read_tokens(path: Path, dtype: str, n_tokens: int) -> np.ndarray:
    """The tokens of a file, mapped. Raises `ConfigError` where they are not as many as `dataset.json` says."""
    try:
        tokens = np.memmap(path, np.dtype(dtype).newbyteorder("<"), mode="r")
    except (OSError, ValueError) as exc:
        raise ConfigError(f"{path}: cannot be read: prepare the data again ({one_line(exc)})") from exc
    if len(tokens) != n_tokens:
        raise ConfigError(f"{path}: has {len(tokens)} tokens, not {n_tokens}: prepare the data again")
    return tokens
