"""What huggingface_hub and its transport raise -> one line that says what to do."""

import contextlib
import errno
import os
import socket
import ssl
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mdi.convert.hub_environment import check_connection, check_numbers, proxy_variable, trust_advice
from mdi.errors import CheckpointError, ConfigError, MdiError
from mdi.files import storage_error
from mdi.net.validity import utc


def endpoint() -> str | None:
    """`HF_ENDPOINT` as it is now; huggingface_hub itself reads it once, at import."""
    url = os.environ.get("HF_ENDPOINT", "").rstrip("/")
    if url and not url.startswith(("http://", "https://")):
        raise ConfigError(f"HF_ENDPOINT is {url!r}: it must begin with https:// or http://")
    return url or None


@contextlib.contextmanager
def translated(repo_id: str, folder: Path, token: str | None) -> Iterator[None]:
    """Turn what huggingface_hub and its transport raise into one line that says what to do.

    Variables of the environment that neither of them could work with are refused first.
    """
    check_numbers()
    check_connection()
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
        raise ConfigError(f"HF_ENDPOINT is not a usable URL: {endpoint()}") from exc
    except (httpx.HTTPError, OSError, ValueError) as exc:
        raise _explained(exc, repo_id, folder, has_token=_has_token(token)) from exc


def _has_token(token: str | None) -> bool:
    from huggingface_hub import get_token

    try:
        return (token or get_token()) is not None
    except OSError:  # what is wrong with the file of the token is the error that is being explained
        return False


def _explained(exc: BaseException, repo_id: str, folder: Path, *, has_token: bool) -> MdiError:
    import httpx
    from huggingface_hub import constants
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    host = endpoint() or "https://huggingface.co"
    if isinstance(exc, HfHubHTTPError):
        return CheckpointError(_refusal(exc, repo_id, host, has_token))
    if isinstance(exc, OfflineModeIsEnabled):
        return CheckpointError(
            f"HF_HUB_OFFLINE is set, so {repo_id} cannot be fetched, and the Hugging Face cache holds no whole copy of"
            " it: unset it"
        )
    if isinstance(exc, httpx.TransportError):
        return CheckpointError(_broken_connection(exc, repo_id, host))
    if isinstance(exc, OSError) and exc.errno is not None:
        if exc.filename == constants.HF_TOKEN_PATH:
            return ConfigError(
                f"{storage_error(Path(exc.filename), exc)}: HF_HOME or HF_TOKEN_PATH says that a token is there"
            )
        return storage_error(Path(exc.filename or folder), exc)
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
    proxy = proxy_variable(host)
    to = f"the proxy that {proxy} names" if proxy else host
    if isinstance(exc, httpx.TimeoutException):
        return f"{to} did not answer in time for {repo_id}: check the network, run the command again to resume"
    if isinstance(exc, httpx.ProxyError):
        return f"{to} does not let us reach {host}: check it"
    if any(isinstance(cause, ssl.SSLError) for cause in causes):
        return f"no trusted connection to {host}: the clock says {utc(time.time())}, check it; {trust_advice()}"
    if any(isinstance(cause, socket.gaierror) for cause in causes):
        return f"cannot find {to}: no network, or no such name; {repo_id} has to be fetched once"
    if any(isinstance(cause, OSError) and cause.errno == errno.ECONNREFUSED for cause in causes):
        return f"{to} refuses connections: check {proxy or 'HF_ENDPOINT'} and the firewall"
    if isinstance(exc, httpx.ConnectError):
        return f"cannot connect to {to}: check the network; {repo_id} has to be fetched once"
    return f"the connection to {host} broke off: run the command again, it resumes where it stopped"


def _chain(exc: BaseException | None) -> Iterator[BaseException]:
    """`exc` and everything that led to it."""
    while exc is not None:
        yield exc
        exc = exc.__cause__ or exc.__context__
