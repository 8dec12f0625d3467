"""A model's files from the Hugging Face hub.

Which files: `wanted_files`. How: one after the other through `huggingface_hub.hf_hub_download`, which
resumes a broken file with a Range request and leaves finished ones alone. Not `snapshot_download`: if the hub
cannot be reached it returns the folder with whatever an earlier attempt left there, a half model reported as
success, and on Ctrl-C it waits until its worker threads have finished their files.
"""

import contextlib
import errno
import fnmatch
import json
import logging
import os
import re
import shutil
import socket
import ssl
import sys
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mdi.errors import CheckpointError, ConfigError, MdiError, StorageError
from mdi.files import storage_error
from mdi.strings import format_bytes

if TYPE_CHECKING:
    from huggingface_hub.hf_api import ModelInfo

log = logging.getLogger(__name__)

_SMALL_FILES = ("config.json", "generation_config.json", "tokenizer*", "chat_template*")
_NOT_THE_MODEL = ("consolidated*", "adapter*", "optimizer*", "training_args*", "scheduler*", "flax*", "tf_*")
_SHARD = re.compile(r"-\d+-of-\d+\.")
_API_TIMEOUT_S = 30.0
# The hub serves larger files only through its xet protocol, which starts a broken file again from zero;
# up to here plain HTTP is used, because that resumes.
_PLAIN_HTTP_LIMIT_BYTES = 50 * 10**9


def wanted_files(names: Iterable[str]) -> list[str]:
    """The files among `names` (of a repo, or a folder in Hugging Face format) that a model needs.

    Configuration, tokenizer and chat template, and one form of the weights: safetensors before .bin,
    sharded with its index or single. Files in sub-folders, GGUF, ONNX and `consolidated.*` are left out.
    """
    top = sorted(name for name in names if "/" not in name)
    small = [name for name in top if _matches(name, _SMALL_FILES)]
    return small + (_weights(top, "model", "safetensors") or _weights(top, "pytorch_model", "bin"))


def is_weight_file(name: str) -> bool:
    """Whether `name` holds weights in a Hugging Face format, or is the index of such files."""
    return name.removesuffix(".index.json").endswith((".safetensors", ".bin"))


def download_config(repo_id: str, folder: Path, *, token: str | None = None) -> dict[str, Any]:
    """Fetch only `config.json` into `folder` and return it, to be checked before gigabytes are fetched.

    Raises as `download` does.
    """
    token = _checked_token(token)
    with _translated(repo_id, folder, token), _quiet(progress=False):
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
    try:
        loaded = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as exc:
        raise CheckpointError(f"{path}: {exc.strerror}") from exc
    except OSError as exc:
        raise storage_error(path, exc) from exc
    except ValueError as exc:
        raise CheckpointError(f"{path} is not JSON: {str(exc).splitlines()[0]}") from exc
    if not isinstance(loaded, dict):
        raise CheckpointError(f"{path} is not a JSON object")
    return loaded


def download(repo_id: str, folder: Path, *, token: str | None = None, progress: bool = True) -> None:
    """Fetch the files of `repo_id` that a model needs into the existing `folder`.

    What an interrupted attempt left in `folder` is completed, not fetched again. `token` defaults to
    `HF_TOKEN` or the one stored by `hf auth login`; `HF_ENDPOINT` chooses another hub. Progress bars are
    drawn if `progress` and stderr is a terminal.
    Raises `ConfigError` for a malformed id, token or endpoint, `StorageError` for a disk without room,
    `CheckpointError` for all that can go wrong between here and the hub; their text never holds the token.
    """
    token = _checked_token(token)
    with _translated(repo_id, folder, token), _quiet(progress):
        info = _model_info(repo_id, token)
        sizes = _sizes(info)
        wanted = wanted_files(sizes)
        if not any(map(is_weight_file, wanted)):
            raise CheckpointError(
                f"{repo_id} has no weights in safetensors or .bin format"
                + ("; download one of its .gguf files and pass that" if _has_gguf(sizes) else "")
            )
        _check_space(repo_id, folder, sum(sizes[name] for name in wanted))
        with _plain_http(max(sizes[name] for name in wanted)):
            for name in wanted:
                log.info("Fetching %s (%d B)", name, sizes[name])
                _fetch(info, name, folder, token)
        _check_arrived(repo_id, folder, {name: sizes[name] for name in wanted})


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


def _endpoint() -> str | None:
    """`HF_ENDPOINT` as it is now; huggingface_hub itself reads it once, at import."""
    endpoint = os.environ.get("HF_ENDPOINT", "").rstrip("/")
    if endpoint and not endpoint.startswith(("http://", "https://")):
        raise ConfigError(f"HF_ENDPOINT is {endpoint!r}: it must begin with https:// or http://")
    return endpoint or None


def _model_info(repo_id: str, token: str | None) -> "ModelInfo":
    from huggingface_hub import HfApi

    api = HfApi(endpoint=_endpoint(), token=token)
    return api.model_info(repo_id, files_metadata=True, timeout=_API_TIMEOUT_S)


def _sizes(info: "ModelInfo") -> dict[str, int]:
    """File name -> bytes (0 where the hub does not say), for all files of the repo."""
    return {sibling.rfilename: sibling.size or 0 for sibling in info.siblings or []}


def _fetch(info: "ModelInfo", name: str, folder: Path, token: str | None) -> None:
    from huggingface_hub import hf_hub_download

    hf_hub_download(info.id, name, revision=info.sha, local_dir=folder, token=token, endpoint=_endpoint())


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
    silence_bars = not (progress and sys.stderr.isatty()) and not are_progress_bars_disabled()
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


@contextlib.contextmanager
def _translated(repo_id: str, folder: Path, token: str | None) -> Iterator[None]:
    """Turn what huggingface_hub and its transport raise into one line that says what to do."""
    import httpx
    from huggingface_hub.errors import HFValidationError

    try:
        yield
    except MdiError:
        raise
    except HFValidationError as exc:
        raise ConfigError(
            f"{repo_id!r} is neither a local folder or file nor a Hugging Face repo id such as org/name"
        ) from exc
    except (httpx.InvalidURL, httpx.UnsupportedProtocol) as exc:
        raise ConfigError(f"HF_ENDPOINT or a proxy variable is not a usable URL: {_endpoint()}") from exc
    except (httpx.HTTPError, OSError, ValueError) as exc:
        raise _explained(_root(exc), repo_id, folder, has_token=_has_token(token)) from exc


def _has_token(token: str | None) -> bool:
    from huggingface_hub import get_token

    return (token or get_token()) is not None


def _root(exc: BaseException) -> BaseException:
    """The error behind huggingface_hub's `LocalEntryNotFoundError`.

    If the hub cannot be reached, or HF_HUB_OFFLINE is set, it falls back to local files and reports only that the file
    is not there either; why the hub did not answer is in the cause.
    """
    from huggingface_hub.errors import LocalEntryNotFoundError

    while isinstance(exc, LocalEntryNotFoundError) and exc.__cause__ is not None:
        exc = exc.__cause__
    return exc


def _explained(exc: BaseException, repo_id: str, folder: Path, *, has_token: bool) -> MdiError:
    import httpx
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    host = _endpoint() or "https://huggingface.co"
    if isinstance(exc, HfHubHTTPError):
        return CheckpointError(_refusal(exc, repo_id, host, has_token))
    if isinstance(exc, OfflineModeIsEnabled):
        return CheckpointError(f"HF_HUB_OFFLINE is set, so {repo_id} cannot be fetched: unset it")
    if isinstance(exc, httpx.TransportError):
        return CheckpointError(_broken_connection(exc, repo_id, host))
    if isinstance(exc, OSError) and exc.errno is not None:
        return storage_error(folder, exc)
    return CheckpointError(
        f"{host} sent something unexpected for {repo_id} ({type(exc).__name__}): run the command again"
    )


def _refusal(exc: Any, repo_id: str, host: str, has_token: bool) -> str:
    """What a 4xx or 5xx answer means to the user. `exc` is a `HfHubHTTPError`."""
    from huggingface_hub import errors

    status = exc.response.status_code
    page = f"{host}/{repo_id}"
    if isinstance(exc, errors.GatedRepoError):
        if has_token:
            return f"{repo_id} is gated and your token has no access yet: accept its licence at {page}"
        return f"{repo_id} is gated: accept its licence at {page} and pass --hf-token or set HF_TOKEN"
    if isinstance(exc, errors.RepositoryNotFoundError):
        private = "your token may not read it" if has_token else "it is private: pass --hf-token or set HF_TOKEN"
        return f"{page} does not exist, or {private}"
    if isinstance(exc, errors.RevisionNotFoundError):
        return f"{page} has no such revision: it may have been changed meanwhile, run the command again"
    if isinstance(exc, errors.RemoteEntryNotFoundError):
        return f"{page} lists a file that it does not have: run the command again, or report it to its authors"
    if isinstance(exc, errors.DisabledRepoError):
        return f"{page} has been disabled by the hub"
    if status == 401:
        return f"{host} does not accept the token: it is mistyped or expired, pass a new --hf-token"
    if status == 403:
        return f"{host} refuses access to {repo_id} with this token: give it the permission to read this repo"
    if status == 429:
        return f"{host} answered 429, too many requests: wait some minutes and run the command again"
    if status == 416:
        return f"a partly fetched file of {repo_id} does not fit the one on {host}: delete the .partial folder"
    if status >= 500:
        return f"{host} answered {status}: the trouble is on its side, run the command again later to resume"
    return f"{host} answered {status} for {repo_id}"


def _broken_connection(exc: BaseException, repo_id: str, host: str) -> str:
    """What a failed or broken connection means to the user. `exc` is a `httpx.TransportError`."""
    import httpx

    causes = list(_chain(exc))
    if isinstance(exc, httpx.TimeoutException):
        return f"{host} did not answer in time for {repo_id}: check the network, run the command again to resume"
    if isinstance(exc, httpx.ProxyError):
        return f"the proxy in HTTPS_PROXY does not let us reach {host}: check it"
    if any(isinstance(cause, ssl.SSLError) for cause in causes):
        return f"no trusted connection to {host}: check the clock, the certificates and any proxy in between"
    if any(isinstance(cause, socket.gaierror) for cause in causes):
        return f"cannot find {host}: no network, or no such name; {repo_id} has to be fetched once"
    if any(isinstance(cause, OSError) and cause.errno == errno.ECONNREFUSED for cause in causes):
        return f"{host} refuses connections: check HF_ENDPOINT, the proxy and the firewall"
    if isinstance(exc, httpx.ConnectError):
        return f"cannot connect to {host}: check the network; {repo_id} has to be fetched once"
    return f"the connection to {host} broke off: run the command again, it resumes where it stopped"


def _chain(exc: BaseException | None) -> Iterator[BaseException]:
    """`exc` and everything that led to it."""
    while exc is not None:
        yield exc
        exc = exc.__cause__ or exc.__context__
