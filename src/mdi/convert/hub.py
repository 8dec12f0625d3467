"""A model's files from the Hugging Face hub.

Which files: `wanted_files`. How: one after the other through `huggingface_hub.hf_hub_download`, which
resumes a broken file with a Range request and leaves finished ones alone. Not `snapshot_download`: if the hub
cannot be reached it returns the folder with whatever an earlier attempt left there, a half model reported as
success, and on Ctrl-C it waits until its worker threads have finished their files.
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
from mdi.documents import Fields, read_json
from mdi.errors import CheckpointError, ConfigError, StorageError
from mdi.strings import format_bytes
from mdi.terminal import screen

if TYPE_CHECKING:
    from huggingface_hub.hf_api import ModelInfo

log = logging.getLogger(__name__)

_SMALL_FILES = ("config.json", "generation_config.json", "special_tokens_map.json", "tokenizer*", "chat_template*")
_WHOLE_TOKENIZERS = ("tokenizer.json", "tokenizer.model")
_TOKENIZER_PARTS = ("vocab.json", "merges.txt", "added_tokens.json")
_NOT_THE_MODEL = ("consolidated*", "adapter*", "optimizer*", "training_args*", "scheduler*", "flax*", "tf_*")
_SHARD = re.compile(r"-\d+-of-\d+\.")
_API_TIMEOUT_S = 30.0
MAX_CONFIG_BYTES = 4 << 20
_PARTS = ("text_config", "rope_scaling", "rope_parameters", "quantization_config")  # objects in config.json
# The hub serves larger files only through its xet protocol, which starts a broken file again from zero;
# up to here plain HTTP is used, because that resumes.
_PLAIN_HTTP_LIMIT_BYTES = 50 * 10**9


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
    token = _checked_token(token)
    with translated(repo_id, folder, token), _quiet(progress=False):
        info = _model_info(repo_id, token)
        if "config.json" not in _sizes(info):
            raise CheckpointError(f"{repo_id} has no config.json: is it a model in Hugging Face format?")
        _fetch(info, "config.json", folder, token)
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
    token = _checked_token(token)
    with translated(repo_id, folder, token), _quiet(progress=False):
        info = _model_info(repo_id, token)
        for name in wanted_files(_sizes(info)):
            if not is_weight_file(name):
                _fetch(info, name, folder, token)


def _check_parts(config: object, what: str) -> None:
    fields = Fields(config, what, CheckpointError)
    fields.get("model_type", lambda value: isinstance(value, str), "a text", None)
    for part in _PARTS:
        fields.get(part, lambda value: isinstance(value, dict), "an object", None)


def download(repo_id: str, folder: Path, *, token: str | None = None, progress: bool = True) -> None:
    """Fetch the files of `repo_id` that a model needs into the existing `folder`.

    What an interrupted attempt left in `folder` is completed, not fetched again. `token` defaults to
    `HF_TOKEN` or the one stored by `hf auth login`; `HF_ENDPOINT` chooses another hub. Progress bars are
    drawn if `progress` and stderr is a terminal.
    Raises `ConfigError` for a malformed id, token or endpoint, `StorageError` for a disk without room,
    `CheckpointError` for all that can go wrong between here and the hub; their text never holds the token.
    """
    download_chosen(repo_id, folder, lambda names: _with_weights(repo_id, names), token=token, progress=progress)


def _with_weights(repo_id: str, names: Sequence[str]) -> list[str]:
    """The files that a model needs, weights among them."""
    wanted = wanted_files(names)
    if not any(map(is_weight_file, wanted)):
        advice = f"; prepare one of its GGUF files, such as {repo_id}:Q4_K_M" if _has_gguf(names) else ""
        raise CheckpointError(f"{repo_id} has no weights in safetensors or .bin format{advice}")
    return wanted


def download_chosen(
    repo_id: str,
    folder: Path,
    choose: Callable[[Sequence[str]], list[str]],
    *,
    token: str | None = None,
    progress: bool = True,
) -> list[str]:
    """Fetch the files that `choose` picks from the names of all, and return their names. Otherwise as `download`."""
    token = _checked_token(token)
    with translated(repo_id, folder, token), _quiet(progress):
        info = _model_info(repo_id, token)
        sizes = _sizes(info)
        wanted = choose(list(sizes))
        total_bytes = sum(sizes[name] for name in wanted)
        log.warning("fetching %s from %s", format_bytes(total_bytes), repo_id)
        _check_space(repo_id, folder, total_bytes)
        with _plain_http(max(sizes[name] for name in wanted)):
            for name in wanted:
                log.info("Fetching %s (%d B)", name, sizes[name])
                _fetch(info, name, folder, token)
        _check_arrived(repo_id, folder, {name: sizes[name] for name in wanted})
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


def _model_info(repo_id: str, token: str | None) -> "ModelInfo":
    from huggingface_hub import HfApi

    api = HfApi(endpoint=endpoint(), token=token)
    return api.model_info(repo_id, files_metadata=True, timeout=_API_TIMEOUT_S)


def _sizes(info: "ModelInfo") -> dict[str, int]:
    """File name -> bytes (0 where the hub does not say), for all files of the repo."""
    return {sibling.rfilename: sibling.size or 0 for sibling in info.siblings or []}


def _fetch(info: "ModelInfo", name: str, folder: Path, token: str | None) -> None:
    from huggingface_hub import hf_hub_download

    hf_hub_download(info.id, name, revision=info.sha, local_dir=folder, token=token, endpoint=endpoint())


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


def _check_arrived(repo_id: str, folder: Path, sizes: dict[str, int]) -> None:
    """Compare with the hub's sizes: huggingface_hub trusts its own record of a finished file and looks at no size."""
    for name, size_bytes in sizes.items():
        path = folder / name
        arrived_bytes = path.stat().st_size if path.is_file() else -1
        if arrived_bytes != size_bytes and not (arrived_bytes >= 0 and size_bytes == 0):
            raise CheckpointError(
                f"{path} has {max(arrived_bytes, 0)} B where {repo_id} has {size_bytes} B: delete it and run again"
            )


@contextlib.contextmanager
def _quiet(progress: bool) -> Iterator[None]:
    """Keep huggingface_hub's log lines and warnings off stderr; draw its bars only where asked for."""
    from huggingface_hub.utils import logging as hub_logging
    from huggingface_hub.utils.tqdm import (
        are_progress_bars_disabled,
        disable_progress_bars,
        enable_progress_bars,
    )

    verbosity = hub_logging.get_verbosity()
    silence_bars = not (progress and screen.shows_bars) and not are_progress_bars_disabled()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        hub_logging.set_verbosity(logging.CRITICAL)
        if silence_bars:
            disable_progress_bars()
        try:
            yield
        finally:
            hub_logging.set_verbosity(verbosity)
            if silence_bars:
                enable_progress_bars()


@contextlib.contextmanager
def _plain_http(largest_bytes: int) -> Iterator[None]:
    """Fetch by HTTP with Range requests instead of xet, unless a file is too large for that.

    huggingface_hub has no argument for it. It reads the environment variable of this name once, when it is imported,
    and looks at its own constant for each file; whether plain HTTP will do is known only after the hub has told the
    sizes, so the constant is what can be set, for the time of the download. One thread downloads at a time here.
    """
    from huggingface_hub import constants

    before = constants.HF_HUB_DISABLE_XET
    constants.HF_HUB_DISABLE_XET = before or largest_bytes <= _PLAIN_HTTP_LIMIT_BYTES
    try:
        yield
    finally:
        constants.HF_HUB_DISABLE_XET = before
