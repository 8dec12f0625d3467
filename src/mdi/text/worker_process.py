"""The process that does what a model's files ask for: its limits, its requests, its end.

Templates are programs, and the libraries that read vocabularies are native code: a file can make either run without
end, take all memory, or crash. In a process of their own that costs one request, and an error of one line.
"""

import contextlib
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from mdi.config.paths import SOURCE_DIR
from mdi.errors import CheckpointError, MdiError, StorageError
from mdi.files import storage_error
from mdi.strings import format_bytes, one_line
from mdi.text.frames import MAX_ERROR_CHARS, Frame, FrameError, FrameTooLarge, receive_frame, send_frame

# Not by `-m`, which would look into the working directory first. The package may lie outside of Python's own folders.
_PROGRAM = (
    "import sys; sys.path = [sys.argv[1], *filter(None, sys.path)]; from mdi.text.worker_main import main;"
    " main(int(sys.argv[2]))"
)
_END_TIMEOUT_S = 10.0  # for the kernel to end a process that has closed its socket by itself
_OUT_OF_MEMORY = re.compile(rb"memory allocation of|bad_alloc|MemoryError")  # the last words of Rust, C++ and Python
Answer = TypeVar("Answer")

_ERRORS: dict[object, type[MdiError]] = {"CheckpointError": CheckpointError, "StorageError": StorageError}


@dataclass(frozen=True)
class Limits:
    """What one request may take. It grows with the vocabulary file and with the text, for a Raspberry Pi's sake.

    Measured on a desktop processor: a vocabulary of 10 MB takes 0.04 s and 9 times its size per MB, a text of one token
    per byte 1.3 s per MB and 260 times its size.
    """

    base_s: float = 30.0
    s_per_vocabulary_mb: float = 2.0
    s_per_text_mb: float = 100.0
    base_bytes: int = 256 << 20
    memory_per_vocabulary_byte: int = 32
    memory_per_text_byte: int = 512

    def seconds(self, vocabulary_bytes: int, text_bytes: int) -> float:
        """From sending a request to having its answer, the start of the process included."""
        return self.base_s + (self.s_per_vocabulary_mb * vocabulary_bytes + self.s_per_text_mb * text_bytes) / 1e6

    def memory_bytes(self, vocabulary_bytes: int, text_bytes: int) -> int:
        """Of the process's data."""
        per_file, per_text = self.memory_per_vocabulary_byte, self.memory_per_text_byte
        return self.base_bytes + per_file * vocabulary_bytes + per_text * text_bytes


@dataclass(frozen=True)
class Request:
    """What the worker is to do with one file of a model folder."""

    operation: str
    folder: Path
    subject: str  # what an error is about: the file, and what it holds
    advice: str  # what to do about it
    max_answer_bytes: int
    payload: bytes = b""
    vocabulary_bytes: int = 0
    text_bytes: int = 0
    end_of_socket: socket.socket | None = None  # for the worker, behind the request


class TextWorker:
    """A process that renders templates and encodes texts, started at need and again after one that failed.

    May be called from any thread; one request is served at a time. Use it as a context: it starts on entry, so that its
    imports overlap with what the program does meanwhile, and no process is left on exit.
    """

    def __init__(self, limits: Limits | None = None) -> None:
        self._limits = limits or Limits()
        self._lock = threading.Lock()
        self._process: _Process | None = None

    def __enter__(self) -> "TextWorker":
        with self._lock:
            self._running()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the process, whatever it does, and free its memory. A later request starts another."""
        if (process := self._process) is not None:
            process.kill()  # a thread that waits for an answer holds the lock until then
        with self._lock:
            self._end()

    @property
    def pid(self) -> int | None:
        """The id of the process, None where there is none."""
        process = self._process
        return None if process is None else process.pid

    def ask(self, request: Request, read: Callable[[Frame], Answer]) -> Answer:
        """What `read` makes of the worker's answer; it raises `FrameError` where that has not the right shape.

        Raises `CheckpointError` or `StorageError` with the reason why there is no answer.
        """
        seconds = self._limits.seconds(request.vocabulary_bytes, request.text_bytes)
        memory_bytes = self._limits.memory_bytes(request.vocabulary_bytes, request.text_bytes)
        with self._lock:
            try:
                return read(self._running().ask(request, seconds, memory_bytes))
            except (CheckpointError, StorageError):  # found by the worker, which is well
                raise
            except (_Failure, FrameError) as exc:
                self._end()
                reason = exc if isinstance(exc, _Failure) else f"gives no valid answer ({exc})"
                raise CheckpointError(f"{request.subject} {reason}; {request.advice}") from exc
            except BaseException:  # a signal, too: nobody will read the answer
                self._end()
                raise

    def memory_bytes(self, vocabulary_bytes: int, text_bytes: int) -> int:
        """What a request may take."""
        return self._limits.memory_bytes(vocabulary_bytes, text_bytes)

    def _running(self) -> "_Process":
        """Requires holding the lock."""
        if self._process is not None and not self._process.is_alive:
            self._end()
        if self._process is None:
            self._process = _Process()
        return self._process

    def _end(self) -> None:
        """Requires holding the lock."""
        process, self._process = self._process, None
        if process is not None:
            process.end()


class _Failure(Exception):
    """What became of a request, as the predicate of a sentence."""


class _Process:
    """One life of the worker, with the socket that is its standard input, and one that tells it when we are gone.

    The second is silent. On the first one the kernel wakes the worker before it signals that there is input, so a
    signal for it can come when the request is being served.
    """

    def __init__(self) -> None:
        self._socket, theirs = socket.socketpair()
        self._lifeline, their_lifeline = socket.socketpair()
        with theirs, their_lifeline:
            try:
                # In a session of its own, so that Ctrl-C in the terminal is for the program alone; in this process's
                # UTF-8 mode, so that paths mean the same.
                mode = ["-X", f"utf8={sys.flags.utf8_mode}"]
                self._popen = subprocess.Popen(
                    [sys.executable, *mode, "-c", _PROGRAM, str(SOURCE_DIR), str(their_lifeline.fileno())],
                    stdin=theirs.fileno(),
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.PIPE,
                    pass_fds=[their_lifeline.fileno()],
                    start_new_session=True,
                )
            except OSError as exc:
                self._close_sockets()
                raise storage_error(Path(sys.executable), exc) from exc

    @property
    def pid(self) -> int:
        return self._popen.pid

    @property
    def is_alive(self) -> bool:
        return self._popen.poll() is None

    def ask(self, request: Request, seconds: float, memory_bytes: int) -> Frame:
        """Raises `_Failure` where the process is of no use any more."""
        deadline_s = time.monotonic() + seconds
        header = {"operation": request.operation, "folder": str(request.folder)}
        limits = {"seconds": seconds, "memory_bytes": memory_bytes}
        try:
            send_frame(self._socket, Frame(header | limits, request.payload), deadline_s)
            if request.end_of_socket is not None:
                socket.send_fds(self._socket, [b"\0"], [request.end_of_socket.fileno()])
            answer = receive_frame(self._socket, request.max_answer_bytes, deadline_s)
        except TimeoutError as exc:
            raise _Failure(f"took more than {seconds:.0f} s") from exc
        except FrameTooLarge as exc:
            raise _Failure(f"gives more than it may for an input of this size ({exc})") from exc
        except (EOFError, OSError) as exc:
            raise _Failure(self._cause_of_end(seconds, memory_bytes)) from exc
        if missing := answer.header.get("missing"):
            raise ModuleNotFoundError(f"No module named {missing!r}", name=str(missing))
        if failure := answer.header.get("failure"):
            raise _Failure(self._out_of(memory_bytes) if failure == "memory" else f"failed ({one_line(str(failure))})")
        if error := answer.header.get("error"):
            raise _ERRORS.get(answer.header.get("kind"), CheckpointError)(one_line(str(error), MAX_ERROR_CHARS))
        return answer

    def _cause_of_end(self, seconds: float, memory_bytes: int) -> str:
        """Why a process that has closed its socket has ended."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._popen.wait(_END_TIMEOUT_S)
        self.kill()
        code = self._popen.returncode
        if code == -signal.SIGALRM:
            return f"took more than {seconds:.0f} s"
        assert self._popen.stderr is not None
        last_words = self._popen.stderr.read()  # a pipe of a process that has ended: as much as the system buffers
        if _OUT_OF_MEMORY.search(last_words):
            return self._out_of(memory_bytes)
        lines = last_words.decode("utf-8", "replace").strip().splitlines()
        cause = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit status {code}"
        return f"ended its process ({one_line(': '.join([cause, *lines[-1:]]))})"

    @staticmethod
    def _out_of(memory_bytes: int) -> str:
        return f"needs more than {format_bytes(memory_bytes)} of memory"

    def end(self) -> None:
        """Kill the process and wait for its end."""
        self.kill()
        self._close_sockets()
        if self._popen.stderr is not None:
            self._popen.stderr.close()

    def kill(self) -> None:
        """May be called from any thread."""
        self._popen.kill()
        self._popen.wait()

    def _close_sockets(self) -> None:
        self._socket.close()
        self._lifeline.close()
