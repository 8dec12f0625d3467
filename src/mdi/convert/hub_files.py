"""Files of a repo on the Hugging Face hub -> a folder: a few at a time, resumed, and compared with what the hub says.

Not through `hf_hub_download`: it takes a file for whole because it has noted so, whatever lies on the disk; it draws a
bar of its own for each file; nothing ends it but its file's end; and it fetches files beyond 50 GB only by the xet
protocol, which starts a broken one again from zero.
"""

import contextlib
import hashlib
import logging
import shutil
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mdi.convert.hub_errors import endpoint
from mdi.errors import CheckpointError

if TYPE_CHECKING:
    import httpx

log = logging.getLogger(__name__)

RECORDS_FOLDER = ".cache"  # in the folder of a model: what has not arrived whole yet
_FILES_AT_ONCE = 4
# After a broken connection. What brings new bytes starts again with the first one.
_PAUSES_S = (0.0, 1.0, 4.0)
_TRANSIENT = (429, 500, 502, 503, 504)
# The hub's storage does not send more than 50 GB in one answer.
_MAX_ANSWER_BYTES = 40 * 10**9
_BLOCK_BYTES = 1 << 20


@dataclass(frozen=True)
class HubFile:
    """A file as the hub describes it. Of the two digests it knows one; none, if it is a mirror that leaves them out."""

    name: str  # its path in the repo
    n_bytes: int
    sha256: str = ""  # of the content, in hex
    blob_sha1: str = ""  # of the content as git stores it, in hex

    @property
    def version(self) -> str:
        """What another content of that name has not."""
        return (self.sha256 or self.blob_sha1)[:16]


@dataclass(frozen=True)
class Repo:
    """One revision of a repo."""

    repo_id: str
    revision: str
    token: str | None


class Download:
    """The files of a repo on their way into a folder. It is run once."""

    def __init__(self, repo: Repo, folder: Path, files: Sequence[HubFile]) -> None:
        self._repo, self._folder, self._files = repo, folder, files
        self._connections = _Connections()
        self._advance: Callable[[int], object] = lambda n_bytes: None

    @property
    def total_bytes(self) -> int:
        """What all files take."""
        return sum(file.n_bytes for file in self._files)

    @property
    def present_bytes(self) -> int:
        """What of them has arrived already."""
        return sum(
            min(file.n_bytes, max(_size(self._target(file)), _size(self._partial(file)))) for file in self._files
        )

    def run(self, advance: Callable[[int], object] = lambda n_bytes: None) -> None:
        """Fetch all files. `advance` is called by several threads, with the bytes that arrive.

        However it ends, no thread is left, and what has arrived is taken up by the next attempt.
        Raises `CheckpointError` for a file that is not what the hub says, and whatever huggingface_hub and its
        transport raise.
        """
        self._advance = advance
        pool = ThreadPoolExecutor(_FILES_AT_ONCE, thread_name_prefix="hub")
        try:
            for done in as_completed([pool.submit(self._obtain, file) for file in self._files]):
                done.result()
        finally:
            self._connections.end()
            pool.shutdown(cancel_futures=True)

    def _target(self, file: HubFile) -> Path:
        return self._folder / file.name

    def _partial(self, file: HubFile) -> Path:
        """Where a file is until it is whole. Another revision of the file does not go on with it."""
        version = file.version or self._repo.revision
        return self._folder / RECORDS_FOLDER / f"{file.name.replace('/', '--')}.{version}"

    # ---- each in one of the threads

    def _obtain(self, file: HubFile) -> None:
        log.info("Fetching %s (%d B)", file.name, file.n_bytes)
        target, partial = self._target(file), self._partial(file)
        for path in (target, partial):
            path.parent.mkdir(parents=True, exist_ok=True)
        if target.is_file():
            target.replace(partial)  # nothing is known of it but its name
        elif not partial.is_file():
            self._take_from_cache(file, partial)
        for is_last in (False, True):
            self._complete(file, partial)
            if (problem := self._mismatch(file, partial)) is None:
                partial.replace(target)
                return
            self._advance(-min(file.n_bytes, _size(partial)))
            partial.unlink()
            if not is_last:
                log.warning("%s: %s: fetching it again", file.name, problem)
        raise CheckpointError(
            f"{file.name} of {self._repo.repo_id}: {problem}, twice in a row: does a proxy change what passes,"
            " or is the memory or the disk defective?"
        )

    def _take_from_cache(self, file: HubFile, partial: Path) -> None:
        """Copy a file that the Hugging Face cache of this machine has: of a repo of many models, perhaps this one."""
        from huggingface_hub import try_to_load_from_cache

        cached = try_to_load_from_cache(self._repo.repo_id, file.name, revision=self._repo.revision)
        if isinstance(cached, str):
            shutil.copyfile(cached, partial)
            self._advance(min(file.n_bytes, _size(partial)))

    def _complete(self, file: HubFile, partial: Path) -> None:
        """Bring `partial` to the size of the file. A connection that breaks is made again while that helps."""
        import httpx
        from huggingface_hub.errors import HfHubHTTPError

        partial.touch()
        furthest, pauses = _size(partial), iter(_PAUSES_S)
        while (start := _size(partial)) < file.n_bytes:
            stop = min(file.n_bytes, start + _MAX_ANSWER_BYTES)
            try:
                self._request(file, partial, start, stop)
            except (httpx.TransportError, HfHubHTTPError) as exc:
                if isinstance(exc, HfHubHTTPError) and exc.response.status_code not in _TRANSIENT:
                    raise
                if (arrived := _size(partial)) > furthest:
                    furthest, pauses = arrived, iter(_PAUSES_S)
                pause_s = next(pauses, None)
                if pause_s is None or self._connections.wait_for_end(pause_s):
                    raise
            else:
                if _size(partial) != stop:  # a whole answer, which is not what was asked for
                    return

    def _request(self, file: HubFile, partial: Path, start: int, stop: int) -> None:
        """Ask for the bytes from `start` to `stop` of a file, and write what comes."""
        from huggingface_hub import get_session, hf_hub_url
        from huggingface_hub.utils import (  # type: ignore[attr-defined]  # both are in its reference
            build_hf_headers,
            hf_raise_for_status,
        )

        repo = self._repo
        url = hf_hub_url(repo.repo_id, file.name, revision=repo.revision, endpoint=endpoint())
        headers = build_hf_headers(token=repo.token) | {"Accept-Encoding": "identity"}
        if start > 0 or stop < file.n_bytes:
            headers["Range"] = f"bytes={start}-{stop - 1}"
        with (
            get_session().stream("GET", url, headers=headers, follow_redirects=True) as response,
            self._connections.reading(response),
        ):
            hf_raise_for_status(response)
            if start > 0 and not _continues(response, start):
                self._advance(-start)
                start = 0
            with partial.open("ab" if start > 0 else "wb") as out:
                for piece in response.iter_bytes():
                    out.write(piece)
                    self._advance(len(piece))
                    if out.tell() > stop:  # too long, perhaps without an end
                        return

    def _mismatch(self, file: HubFile, path: Path) -> str | None:
        """In what `path` differs from the file on the hub."""
        if (n_bytes := _size(path)) != file.n_bytes:
            return f"has {n_bytes} B where the hub has {file.n_bytes} B"
        if file.sha256:
            known, found = file.sha256, self._digest(path, hashlib.sha256())
        elif file.blob_sha1:
            header = b"blob %d\0" % n_bytes
            known, found = file.blob_sha1, self._digest(path, hashlib.sha1(header, usedforsecurity=False))
        else:
            return None
        return None if found == known else "damaged: its digest is not the one that the hub gives"

    def _digest(self, path: Path, digest: "hashlib._Hash") -> str:
        """The digest of what lies on the disk."""
        with path.open("rb") as content:
            while block := content.read(_BLOCK_BYTES):
                self._connections.check()
                digest.update(block)
        return digest.hexdigest()


class _Connections:
    """The connections that answers come on, to be ended all at once. Any thread may use it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._sockets: set[socket.socket] = set()
        self._ended = threading.Event()

    @contextlib.contextmanager
    def reading(self, response: "httpx.Response") -> Iterator[None]:
        """While the answer is read in the block, `end` wakes it up."""
        connection = response.extensions["network_stream"].get_extra_info("socket")
        with self._lock:
            self.check()
            self._sockets.add(connection)
        try:
            yield
        finally:
            with self._lock:
                self._sockets.discard(connection)

    def end(self) -> None:
        """Whoever waits for bytes has an error now."""
        with self._lock:
            self._ended.set()
            for connection in self._sockets:
                # Not TLS's own shutdown, which takes away from under a reader what it reads with.
                with contextlib.suppress(OSError):
                    socket.socket.shutdown(connection, socket.SHUT_RDWR)

    def wait_for_end(self, timeout_s: float) -> bool:
        """Whether `end` was called, or is within that time."""
        return self._ended.wait(timeout_s)

    def check(self) -> None:
        """Raise `CancelledError` if `end` was called."""
        if self._ended.is_set():
            raise CancelledError


def _continues(response: "httpx.Response", start: int) -> bool:
    """Whether an answer begins with byte `start`, as asked; not everything between us and a file knows ranges."""
    partial_content = 206
    return response.status_code == partial_content and response.headers.get("Content-Range", "").startswith(
        f"bytes {start}-"
    )


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0
