"""The text worker's program: serves requests on its standard input, a socket, until that closes.

What takes longer than one request, a constrained answer, is served by a copy of this process.
"""

import contextlib
import fcntl
import gc
import json
import os
import signal
import socket
from array import array
from collections.abc import Callable, Mapping
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, NoReturn

from mdi.errors import CheckpointError, StorageError
from mdi.strings import one_line
from mdi.text.chat_template import ChatTemplate, load_chat_template
from mdi.text.frames import MAX_ERROR_CHARS, Frame, receive_frame, send_frame
from mdi.text.matching import library_tokenizer, serve_matches
from mdi.text.vocabulary import Backend, load_vocabulary
from mdi.text.worker_limits import limits

Operation = Callable[[Path, bytes], Frame]

_MAX_REQUEST_BYTES = (1 << 32) - 1  # the program that asks is trusted, and bounds what it sends


def main(lifeline_fd: int) -> None:
    """Serve until the program that started this one closes its sockets, or ends."""
    channel, lifeline = socket.socket(fileno=0), socket.socket(fileno=lifeline_fd)
    _be_expendable()
    _end_on_hangup(lifeline)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # no copy stays as a zombie
    operations = _OPERATIONS | {"match": partial(_match, channel, lifeline)}
    _import_libraries()
    with contextlib.suppress(EOFError, ConnectionError):
        while True:
            request = receive_frame(channel, _MAX_REQUEST_BYTES)
            answer = _answer(request, operations)
            send_frame(channel, answer)
            if "failure" in answer.header:  # whatever it was, the libraries may be in any state
                return


def _import_libraries() -> None:
    """What most requests need, while the program that starts this one has other things to do."""
    with contextlib.suppress(ImportError):  # missed where it is needed
        import jinja2.sandbox  # noqa: F401
        import tokenizers  # noqa: F401


# ---- limits


def _be_expendable() -> None:
    """Let signals end this process whatever its parent does with them, without a core dump, and let it go first."""
    for number in (signal.SIGALRM, signal.SIGIO):
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with contextlib.suppress(OSError):  # Linux: where memory runs out, the starter and its model stay
        Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")


def _end_on_hangup(lifeline: socket.socket) -> None:
    """Have the kernel send SIGIO for events on a socket that nothing is ever sent through: its end is the only one.

    The program that asked may be killed, and then nobody is left who would end a template that runs without end.
    """
    with contextlib.suppress(AttributeError, OSError):  # the timer is a bound of its own
        fcntl.fcntl(lifeline, fcntl.F_SETOWN, os.getpid())
        fcntl.fcntl(lifeline, fcntl.F_SETFL, fcntl.fcntl(lifeline, fcntl.F_GETFL) | os.O_ASYNC)


def _answer(request: Frame, operations: Mapping[str, Operation]) -> Frame:
    header = request.header
    with limits(header["seconds"], header["memory_bytes"]):
        try:
            return operations[header["operation"]](Path(header["folder"]), request.payload)
        except (CheckpointError, StorageError) as exc:
            return Frame({"error": one_line(exc, MAX_ERROR_CHARS), "kind": type(exc).__name__})
        except ModuleNotFoundError as exc:
            return Frame({"missing": exc.name or str(exc)})
        except MemoryError:
            return Frame({"failure": "memory"})
        except BaseException as exc:  # noqa: BLE001  (a panic of a Rust library is nothing more specific)
            return Frame({"failure": one_line(f"{type(exc).__name__}: {exc}")})


# ---- operations

# What was loaded for a description or a question serves the requests that follow; a new worker loads it again.
_vocabulary = lru_cache(maxsize=1)(load_vocabulary)
_template = lru_cache(maxsize=1)(load_chat_template)


@lru_cache(maxsize=1)
def _library_tokenizer(folder: Path, stop_ids: tuple[int, ...]) -> Any:
    tokenizer = library_tokenizer(_vocabulary(folder), stop_ids)
    gc.freeze()  # what copies of the process share is not to be touched by their collector
    return tokenizer


def _describe(folder: Path, payload: bytes) -> Frame:
    _vocabulary.cache_clear()
    _library_tokenizer.cache_clear()
    vocabulary: Backend = _vocabulary(folder)
    tokens = [vocabulary.token_bytes(token_id) for token_id in range(vocabulary.n_ids)]
    lengths = array("I", map(len, tokens))
    return Frame(
        {
            "vocab_size": vocabulary.vocab_size,
            "n_ids": vocabulary.n_ids,
            "bos_id": vocabulary.bos_id,
            "eos_id": vocabulary.eos_id,
            "prefix": list(vocabulary.prefix),
            "drops_leading_space": vocabulary.drops_leading_space,
        },
        lengths.tobytes() + b"".join(tokens),
    )


def _encode(folder: Path, payload: bytes) -> Frame:
    return Frame({}, array("I", _vocabulary(folder).encode(payload.decode("utf-8"))).tobytes())


def _token_id(folder: Path, payload: bytes) -> Frame:
    return Frame({"token_id": _vocabulary(folder).token_id(payload.decode("utf-8"))})


def _describe_template(folder: Path, payload: bytes) -> Frame:
    _template.cache_clear()
    template: ChatTemplate | None = _template(folder)
    return Frame({"exists": template is not None, "tool_format": template and template.tool_format})


def _render(folder: Path, payload: bytes) -> Frame:
    template: ChatTemplate | None = _template(folder)
    if template is None:
        raise CheckpointError(f"{folder}: there is no chat template any more")
    conversation: dict[str, Any] = json.loads(payload)
    return Frame({}, template.render(conversation["messages"], conversation["tools"]).encode("utf-8"))


def _match(channel: socket.socket, lifeline: socket.socket, folder: Path, payload: bytes) -> Frame:
    """Begin a copy of this process that serves one constrained answer on the socket that comes with the request."""
    _, descriptors, _, _ = socket.recv_fds(channel, 1, 1)
    with socket.socket(fileno=descriptors[0]) as matches:
        tokenizer = _library_tokenizer(folder, tuple(array("I", payload)))
        if os.fork() == 0:
            channel.close()
            lifeline.close()
            os.dup2(1, 2)  # nobody reads what it says: whoever asks why the worker ended waits for the end of that pipe
            _serve_and_exit(matches, tokenizer)
    return Frame({})


def _serve_and_exit(matches: socket.socket, tokenizer: Any) -> NoReturn:
    """Whatever happens: the rest of this program is not the copy's."""
    try:
        with contextlib.suppress(EOFError, OSError):
            serve_matches(matches, tokenizer)
    except BaseException as exc:  # noqa: BLE001  (a panic of a Rust library is nothing more specific)
        failure = "needs too much memory" if isinstance(exc, MemoryError) else one_line(f"{type(exc).__name__}: {exc}")
        with contextlib.suppress(OSError):
            send_frame(matches, Frame({"error": failure}))
    finally:
        os._exit(0)


_OPERATIONS: dict[str, Operation] = {
    "describe": _describe,
    "encode": _encode,
    "token_id": _token_id,
    "describe_template": _describe_template,
    "render": _render,
}
