"""A model in several GGUF files, `name-00001-of-00003.gguf` and so on, read where they lie.

The first part has the metadata of the model; each has tensors of its own, and says in `split.*` which part it is.
"""

import re
from pathlib import Path

from mdi.convert.gguf.file import GgufFile, TensorInfo, open_gguf
from mdi.errors import CheckpointError

MAX_PARTS = 10_000

_PART = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})(?P<suffix>\.gguf)", re.IGNORECASE)


def parts_of(path: Path) -> list[Path]:
    """All parts of the model that `path` is a part of, the first one first; `path` alone where its name is no part's.

    Raises `CheckpointError` for a part that is not there.
    """
    names = part_names(path.name)
    if len(names) == 1:
        return [path]
    for i, name in enumerate(names):
        if not (path.parent / name).is_file():
            raise CheckpointError(f"{path}: part {i + 1} of {len(names)} is not beside it: fetch {name} too")
    return [path.parent / name for name in names]


def part_names(name: str) -> list[str]:
    """The names of all parts of a model, by the name of one; `name` alone where it is not that of a part."""
    match = _PART.fullmatch(name)
    if match is None or not 1 <= int(match["number"]) <= int(match["count"]) <= MAX_PARTS:
        return [name]
    n = int(match["count"])
    return [f"{match['stem']}-{i:05d}-of-{match['count']}{match['suffix']}" for i in range(1, n + 1)]


def without_part(name: str) -> str:
    """The name of a file without the number of its part."""
    match = _PART.fullmatch(name)
    return name if match is None else match["stem"] + match["suffix"]


def open_model(path: Path) -> GgufFile:
    """Read the headers of all files of a model; `path` is the only one, or any part. Raises as `open_gguf`."""
    paths = parts_of(path)
    files = [_open_part(part, i, len(paths)) for i, part in enumerate(paths)]
    tensors: dict[str, TensorInfo] = {}
    for file in files:
        if twice := tensors.keys() & file.tensors.keys():
            raise CheckpointError(f"{file.path}: the tensor {min(twice)} is in another part too")
        tensors |= file.tensors
    first = files[0]
    n_tensors = first.metadata.integer("split.tensors.count", len(tensors))
    if n_tensors != len(tensors):
        raise CheckpointError(f"{first.path}: its {len(files)} parts have {len(tensors)} tensors, not {n_tensors}")
    return GgufFile(first.path, first.metadata, tensors)


def _open_part(path: Path, index: int, count: int) -> GgufFile:
    file = open_gguf(path)
    declared = (file.metadata.integer("split.no", 0), max(file.metadata.integer("split.count", 0), 1))
    if declared != (index, count):
        raise CheckpointError(
            f"{path}: it says that it is part {declared[0] + 1} of {declared[1]}: give the parts of a model the names"
            " that they were published with, such as model-00001-of-00003.gguf, in one folder"
        )
    return file
