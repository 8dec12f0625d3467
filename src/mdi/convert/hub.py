"""A model's files from the Hugging Face hub.

Which files: `wanted_files`. How they come: `hub_files`. huggingface_hub tells which files there are, knows tokens and
mirrors, and understands refusals.
"""

import contextlib
import fnmatch
import logging
import os
import re
import shutil
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mdi.convert.hub_errors import endpoint, translated
from mdi.convert.hub_files import Download, HubFile, Repo
from mdi.documents import Fields, is_text, read_json
from mdi.errors import CheckpointError, ConfigError, StorageError
from mdi.progress import progress_bar
from mdi.strings import format_bytes

if TYPE_CHECKING:
    from huggingface_hub.hf_api import ModelInfo, RepoSibling

log = logging.getLogger(__name__)

_SMALL_FILES = ("config.json", "generation_config.json", "special_tokens_map.json", "tokenizer*", "chat_template*")
_WHOLE_TOKENIZERS = ("tokenizer.json", "tokenizer.model")
_TOKENIZER_PARTS = ("vocab.json", "merges.txt", "added_tokens.json")
_NOT_THE_MODEL = ("consolidated*", "adapter*", "optimizer*", "training_args*", "scheduler*", "flax*", "tf_*")
_SHARD = re.compile(r"-\d+-of-\d+\.")
_API_TIMEOUT_S = 30.0
MAX_CONFIG_BYTES = 4 << 20
_PARTS = ("text_config", "rope_scaling", "rope_parameters", "quantization_config")  # objects in config.json
_SHA256, _SHA1 = re.compile(r"[0-9a-f]{64}"), re.compile(r"[0-9a-f]{40}")


def wanted_files(names: Iterable[str]) -> list[str]:
    """The files among `names` (of a repo, or a folder in Hugging Face format) that a model needs.

    Configuration, tokenizer and chat template, and one form of the weights: safetensors before .bin,
    sharded with its index or single. Files in sub-folders, GGUF, ONNX and `consolidated.*` are left out.
    """
    top = sorted(name for name in names if "/" not in name)
    has_tokenizer = any(name in _WHOLE_TOKENIZERS for name in top)
    small = [name for name in top if _matches(name, _SMALL_FILES if has_tokenizer else _SMALL_FILES + _TOKENIZER_PARTS)]
    return small + (_weights(top, "model", "safetensors") or _weights(top, "pytorch_model", "bin"))


def is_weight_file(name: str) -> bool:
    """Whether `name` holds weights in a Hugging Face format, or is the index of such files."""
    return name.removesuffix(".index.json").endswith((".safetensors", ".bin"))


def download_config(repo_id: str, folder: Path, *, token: str | None = None) -> dict[str, Any]:
    """Fetch only `config.json` into `folder` and return it, to be checked before gigabytes are fetched.

    Raises as `download` does.
    """
    with _described(repo_id, folder, token) as (repo, files):
        if "config.json" not in files:
            raise CheckpointError(f"{repo_id} has no config.json: is it a model in Hugging Face format?")
        Download(repo, folder, [files["config.json"]]).run()
    return read_config(folder)


def read_config(folder: Path) -> dict[str, Any]:
    """`config.json` of `folder`. Raises `CheckpointError` where it is missing or not a JSON object, `StorageError`
    where it cannot be read.
    """
    path = folder / "config.json"
    config: dict[str, Any] = read_json(path, MAX_CONFIG_BYTES, CheckpointError, distinct=False)
    _check_parts(config, str(path))
    _check_parts(config.get("text_config") or {}, f"{path}: text_config")
    return config


def download_small_files(repo_id: str, folder: Path, *, token: str | None = None) -> None:
    """Fetch all but the weights into `folder`, to be checked before gigabytes are fetched. Raises as `download`."""
    with _described(repo_id, folder, token) as (repo, files):
        small = [files[name] for name in wanted_files(files) if not is_weight_file(name)]
        Download(repo, folder, small).run()


def _check_parts(config: object, what: str) -> None:
    fields = Fields(config, what, CheckpointError)
    fields.get("model_type", is_text, "a text", None)
    for part in _PARTS:
        fields.get(part, lambda value: isinstance(value, dict), "an object", None)


def download(repo_id: str, folder: Path, *, token: str | None = None) -> None:
    """Fetch the files of `repo_id` that a model needs into the existing `folder`.

    What an interrupted attempt left in `folder` is completed, not fetched again. `token` defaults to
    `HF_TOKEN` or the one stored by `hf auth login`; `HF_ENDPOINT` chooses another hub.
    Raises `ConfigError` for a malformed id, token or endpoint, `StorageError` for a disk without room,
    `CheckpointError` for all that can go wrong between here and the hub; their text never holds the token.
    """
    download_chosen(repo_id, folder, lambda names: _with_weights(repo_id, names), token=token)


def _with_weights(repo_id: str, names: Sequence[str]) -> list[str]:
    """The files that a model needs, weights among them."""
    wanted = wanted_files(names)
    if not any(map(is_weight_file, wanted)):
        advice = f"; prepare one of its GGUF files, such as {repo_id}:Q4_K_M" if _has_gguf(names) else ""
        raise CheckpointError(f"{repo_id} has no weights in safetensors or .bin format{advice}")
    return wanted


def download_chosen(
    repo_id: str, folder: Path, choose: Callable[[Sequence[str]], list[str]], *, token: str | None = None
) -> list[str]:
    """Fetch the files that `choose` picks from the names of all, and return their names. Otherwise as `download`."""
    with _described(repo_id, folder, token) as (repo, files):
        wanted = choose(list(files))
        arriving = Download(repo, folder, [files[name] for name in wanted])
        total_bytes, present_bytes = arriving.total_bytes, arriving.present_bytes
        already = f", of which {format_bytes(present_bytes)} are here" if present_bytes else ""
        log.warning("fetching %s from %s%s", format_bytes(total_bytes), repo_id, already)
        _check_space(repo_id, folder, total_bytes)
        with progress_bar(total_bytes, f"fetching {repo_id}", "B", initial=present_bytes) as advance:
            arriving.run(advance)
    return wanted


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def _weights(top: list[str], stem: str, suffix: str) -> list[str]:
    """The weight files with `suffix`: all shards and their index, or the single file."""
    found = [name for name in top if name.endswith(f".{suffix}") and not _matches(name, _NOT_THE_MODEL)]
    shards = [name for name in found if _SHARD.search(name)]
    index = f"{stem}.{suffix}.index.json"
    if shards:
        return shards + [name for name in top if name == index]
    single = f"{stem}.{suffix}"
    return [single] if single in found else found


def _has_gguf(names: Iterable[str]) -> bool:
    return any(name.endswith(".gguf") for name in names)


def _checked_token(token: str | None) -> str | None:
    """`token`, else `HF_TOKEN`, without surrounding whitespace; None where neither is set."""
    token = (token or os.environ.get("HF_TOKEN") or "").strip()
    if token and not (token.isascii() and token.isprintable() and " " not in token):
        raise ConfigError("--hf-token or HF_TOKEN holds blanks or characters that no token has: copy it again")
    return token or None


@contextlib.contextmanager
def _described(repo_id: str, folder: Path, token: str | None) -> Iterator[tuple[Repo, dict[str, HubFile]]]:
    """Yield what the hub tells of a repo: its current revision, and its files by name.

    What is raised in the block has one line that says what to do, and huggingface_hub says nothing on stderr.
    """
    token = _checked_token(token)
    with translated(repo_id, folder, token), _quiet():
        info = _model_info(repo_id, token)
        siblings = info.siblings or []
        if info.sha is None or any(sibling.size is None for sibling in siblings):
            raise CheckpointError(f"the hub tells no sizes of the files of {repo_id}: is HF_ENDPOINT a mirror of it?")
        yield Repo(info.id, info.sha, token), {sibling.rfilename: _file(sibling) for sibling in siblings}


def _model_info(repo_id: str, token: str | None) -> "ModelInfo":
    from huggingface_hub import HfApi

    api = HfApi(endpoint=endpoint(), token=token)
    return api.model_info(repo_id, files_metadata=True, timeout=_API_TIMEOUT_S)


def _file(sibling: "RepoSibling") -> HubFile:
    """What the hub tells of a file. Large ones are not in git, which has a pointer to them: its digest says nothing."""
    sha256 = sibling.lfs.sha256 if sibling.lfs else ""
    blob_sha1 = "" if sibling.lfs else sibling.blob_id or ""
    return HubFile(
        sibling.rfilename,
        sibling.size or 0,
        sha256 if _SHA256.fullmatch(sha256) else "",
        blob_sha1 if _SHA1.fullmatch(blob_sha1) else "",
    )


def _check_space(repo_id: str, folder: Path, total_bytes: int) -> None:
    """Room for what is still to be fetched, and as much again for the converted weights."""
    present_bytes = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    needed_bytes = 2 * total_bytes - min(present_bytes, total_bytes)
    free_bytes = shutil.disk_usage(folder).free
    if needed_bytes > free_bytes:
        raise StorageError(
            f"{repo_id} needs {format_bytes(needed_bytes)} for download and conversion, but {folder} has only "
            f"{format_bytes(free_bytes)} free: make room, or choose another --ckpt-folder"
        )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep huggingface_hub's log lines and warnings off stderr."""
    from huggingface_hub.utils import logging as hub_logging

    verbosity = hub_logging.get_verbosity()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        hub_logging.set_verbosity(logging.CRITICAL)
        try:
            yield
        finally:
            hub_logging.set_verbosity(verbosity)
