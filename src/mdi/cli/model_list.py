"""The models that are prepared, listed and removed, and those that have a short name."""

import shutil
from pathlib import Path

from mdi.checkpoint.chunks import dtype_of
from mdi.checkpoint.config import find_models
from mdi.checkpoint.manifest import Manifest, kind_of, read_manifest
from mdi.checkpoint.weights import mode_of_file, whole_models
from mdi.convert.known_models import KNOWN_MODELS
from mdi.errors import CheckpointError, ConfigError
from mdi.files import storage_error
from mdi.strings import format_bytes


def list_models(root: Path) -> str:
    """Names, sizes, dtypes and chunks of the models below `root`, and the short names of models on the hub."""
    prepared = [f"  {name_of(folder)}: {_describe(folder)}" for folder in find_models(root)]
    width = max(map(len, KNOWN_MODELS))
    known = [
        f"  {name:{width}}  {model.repo_id}, {format_bytes(model.n_bytes)}, {model.licence}"
        for name, model in KNOWN_MODELS.items()
    ]
    return "\n".join([f"in {root}:", *(prepared or ["  nothing yet"]), "short names:", *known])


def name_of(folder: Path) -> str:
    """What a prepared model is called: `org/name`."""
    return "/".join(folder.parts[-2:])


def _describe(folder: Path) -> str:
    n_bytes = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    parts = [format_bytes(n_bytes)]
    try:
        parts += [kind_of(dtype_of(model), mode_of_file(model)) for model in whole_models(folder)]
        manifests = [read_manifest(files) for files in sorted((folder / "chunks").glob("*nodes*"))]
    except CheckpointError as exc:
        return f"{parts[0]}, {exc}"
    chunks = ", ".join(_describe_chunks(manifest) for manifest in manifests if manifest is not None)
    return ", ".join(parts) + (f"; chunks: {chunks}" if chunks else "")


def _describe_chunks(manifest: Manifest) -> str:
    return f"{manifest.folder.name} ({kind_of(manifest.dtype, manifest.quantization)})"


def remove_model(root: Path, name: str) -> Path:
    """Remove a prepared model, by `org/name` or by its last part where that is unique. Returns its former folder.

    Raises `ConfigError` where no one model is meant, `StorageError` where it cannot be removed.
    """
    models = find_models(root)
    found = [folder for folder in models if name in (name_of(folder), folder.name)]
    if len(found) != 1:
        there = ", ".join(map(name_of, found or models)) or "nothing"
        raise ConfigError(f"--remove {name}: {'more than one' if found else 'no such'} model in {root}: {there}")
    folder = found[0]
    try:
        if folder.is_symlink():
            folder.unlink()
        else:
            shutil.rmtree(folder)
        if not any(folder.parent.iterdir()):
            folder.parent.rmdir()
    except OSError as exc:
        raise storage_error(folder, exc) from exc
    return folder
