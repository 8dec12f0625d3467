"""What can befall a process beside being killed: one thread of it frozen, its port taken over, its files damaged."""

import contextlib
import ctypes
import os
import random
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

# of <sys/ptrace.h>; with SEIZE a tracer stops a single thread, without a signal that the process could notice
_SEIZE, _INTERRUPT, _DETACH = 0x4206, 0x4207, 17
_WALL = 0x40000000  # of <sys/wait.h>: threads of others too


@contextlib.contextmanager
def frozen_main_thread(pid: int) -> Iterator[None]:
    """Within the block the main thread of a process does nothing; its other threads go on. Linux only.

    Raises `OSError` where a process may not be traced.
    """
    libc = ctypes.CDLL(None, use_errno=True)

    def ptrace(request: int) -> None:
        if libc.ptrace(request, pid, None, None) < 0:
            raise OSError(ctypes.get_errno(), "ptrace")

    ptrace(_SEIZE)
    try:
        ptrace(_INTERRUPT)
        os.waitpid(pid, _WALL)
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            ptrace(_DETACH)


class _Other(BaseHTTPRequestHandler):
    """A program that knows nothing of nodes."""

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        body = b"<html>It works!</html>"
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@contextlib.contextmanager
def other_program_at(port: int) -> Iterator[None]:
    """Within the block, another HTTP server answers at a port of loopback."""
    server = ThreadingHTTPServer(("127.0.0.1", port), _Other)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def damage_a_file(folder: Path, pattern: str, chance: random.Random) -> None:
    """Flip one bit in the second half of one of the files that match; does nothing where there is none."""
    for path in sorted(folder.glob(pattern), key=lambda _: chance.random())[:1]:
        with path.open("r+b") as file:
            size = path.stat().st_size
            file.seek(chance.randrange(size // 2, size))
            (byte,) = file.read(1)
            file.seek(-1, os.SEEK_CUR)
            file.write(bytes([byte ^ 1 << chance.randrange(8)]))
