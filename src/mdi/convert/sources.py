"""What a user typed -> a model on this machine: its name, where it lies, and what it is instead of a model.

All checks here read names and a few bytes, so they come before anything is fetched or converted.
"""

import contextlib
from dataclasses import dataclass
from pathlib import Path

from mdi.convert.hub import is_weight_file, wanted_files
from mdi.convert.hub_environment import check_numbers
from mdi.convert.huggingface import check_complete
from mdi.documents import read_json
from mdi.errors import CheckpointError
from mdi.files import storage_error
from mdi.strings import one_line

_POINTER = b"version https://git-lfs.github.com/spec/"
_MAX_POINTER_BYTES = 1024
_ADAPTER_FILE = "adapter_config.json"
_MAX_ADAPTER_BYTES = 1 << 20
_CACHED = "models--"  # prefix of a repo's folder in a Hugging Face cache: models--org--name/snapshots/<revision>


@dataclass(frozen=True)
class LocalSource:
    """A folder in Hugging Face format on this machine."""

    path: Path
    name: str  # what the model is called: `name`, or `org/name` where it is a copy of a repo
    repo_id: str | None  # of a copy in a Hugging Face cache


def local_source(path: Path) -> LocalSource:
    """What the folder `path` is called: a link has its own name, a copy in a Hugging Face cache that of its repo."""
    path = path.absolute()
    if path.name.startswith(_CACHED) and (snapshot := _current_snapshot(path)) is not None:
        path = snapshot
    repo_id = _repo_id(path.resolve())
    if path.is_symlink():
        return LocalSource(path, path.name, repo_id)
    return LocalSource(path, repo_id or path.resolve().name, repo_id)


def _repo_id(path: Path) -> str | None:
    """The repo of a snapshot in a Hugging Face cache, `models--org--name/snapshots/<revision>`."""
    repo = path.parent.parent.name
    if path.parent.name != "snapshots" or not repo.startswith(_CACHED):
        return None
    return repo.removeprefix(_CACHED).replace("--", "/", 1)


def find_cached(repo_id: str) -> Path | None:
    """The current copy of a repo in the Hugging Face cache of this machine, if all files of a model are in it.

    Raises `ConfigError` where huggingface_hub cannot be imported in this environment.
    """
    check_numbers()
    from huggingface_hub import constants

    snapshot = _current_snapshot(Path(constants.HF_HUB_CACHE) / (_CACHED + repo_id.replace("/", "--")))
    if snapshot is None:
        return None
    with contextlib.suppress(CheckpointError):
        check_source(snapshot)
        has_tokenizer = any(path.name.startswith(("tokenizer", "vocab")) for path in snapshot.iterdir())
        return snapshot if has_tokenizer else None
    return None


def _current_snapshot(cached: Path) -> Path | None:
    """The snapshot that the branch `main` was at when it was fetched last."""
    with contextlib.suppress(OSError, UnicodeDecodeError):
        revision = (cached / "refs" / "main").read_text(encoding="ascii").strip()
        if revision and Path(revision).name == revision and (cached / "snapshots" / revision).is_dir():
            return cached / "snapshots" / revision
    return None


def check_source(folder: Path) -> None:
    """Raise `CheckpointError` that names what a folder in Hugging Face format lacks, or is instead of a model."""
    try:
        paths = {path.name: path for path in folder.iterdir()}
    except OSError as exc:
        raise storage_error(folder, exc) from exc
    wanted = wanted_files(paths)
    for name in wanted:
        check_present(paths[name])
    weights = [name for name in wanted if is_weight_file(name)]
    if not weights and _ADAPTER_FILE in paths:
        raise CheckpointError(_adapter(paths[_ADAPTER_FILE]))
    if "config.json" not in paths:
        raise CheckpointError(f"{folder} has no config.json: is it a model in Hugging Face format?")
    if not weights:
        raise CheckpointError(f"{folder} has no weights in safetensors or .bin format")
    check_complete(folder, weights)


def check_present(path: Path) -> None:
    """Raise `CheckpointError` where `path` only stands for a file: a link to one that is gone, or a git-lfs pointer."""
    if path.is_symlink() and not path.exists():
        repo_id = _repo_id(path.parent)
        remedy = f"run `hf download {repo_id}`, or prepare {repo_id} itself" if repo_id else "fetch it again"
        raise CheckpointError(f"{path}: a link to a file that is gone, perhaps from a cache that was pruned: {remedy}")
    try:
        with path.open("rb") as file:
            is_pointer = file.read(_MAX_POINTER_BYTES + 1).startswith(_POINTER)
    except OSError as exc:
        raise storage_error(path, exc) from exc
    if is_pointer:
        raise CheckpointError(f"{path}: a git-lfs pointer, not the file itself: run `git lfs pull` in {path.parent}")


def _adapter(path: Path) -> str:
    values = read_json(path, _MAX_ADAPTER_BYTES, CheckpointError, distinct=False)
    base = values.get("base_model_name_or_path") if isinstance(values, dict) else None
    of = f" for {one_line(base, 100)}" if isinstance(base, str) else ""
    return (
        f"{path.parent} is an adapter (LoRA){of}, not a model: merge the two, with peft's merge_and_unload() and"
        " save_pretrained(FOLDER), and prepare FOLDER"
    )
