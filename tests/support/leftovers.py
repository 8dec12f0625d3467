"""What a test leaves behind in its process: threads, child processes, sockets; and ending them."""

import contextlib
import gc
import os
import socket
import subprocess
import threading
import time
from dataclasses import dataclass, field

import psutil

_PATIENCE_S = 30.0  # of threads and children that are about to end; only a test that fails waits this long
_LIBRARY_THREADS = ("tqdm", "pymonitor")  # live as long as the process
_BROWSERS = ("chrom", "google-chrome")  # one for all tests, which starts helpers when it needs them


def own_threads() -> set[threading.Thread]:
    """The threads that a test may have started: not those of libraries that stay."""
    return {thread for thread in threading.enumerate() if not thread.name.startswith(_LIBRARY_THREADS)}


def _children() -> set[psutil.Process]:
    """Of this process alone: other workers' children are not among them."""
    if not _has_children():
        return set()
    return {child for child in psutil.Process().children(recursive=True) if not _is_browser(child)}


def _has_children() -> bool:
    """Asked of the system in a moment; looking through its processes takes a millisecond, twice a test."""
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    return True


def _is_browser(process: psutil.Process) -> bool:
    try:
        return process.name().startswith(_BROWSERS)
    except psutil.NoSuchProcess:
        return False


def _sockets() -> set[str]:
    found = set()
    for descriptor in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{descriptor}")
        except FileNotFoundError:
            continue
        if target.startswith("socket:"):
            found.add(target)
    return found


@dataclass(frozen=True)
class Inventory:
    """What the process holds at one moment."""

    threads: set[threading.Thread] = field(default_factory=own_threads)
    children: set[psutil.Process] = field(default_factory=_children)
    sockets: set[str] = field(default_factory=_sockets)

    def leftovers(self) -> list[str]:
        """What came since and does not end; waits for what is about to."""
        deadline_s = time.monotonic() + _PATIENCE_S
        while (left := self._since()) and time.monotonic() < deadline_s:
            time.sleep(0.01)
        return left

    def _since(self) -> list[str]:
        threads = sorted(thread.name for thread in own_threads() - self.threads)
        children = sorted(str(child) for child in _children() - self.children)
        return [*threads, *children, *sorted(_sockets() - self.sockets)]

    def end_leftovers(self) -> None:
        """Kill new children and close new sockets, so that no later test fails for them.

        An object that is collected while its process runs or its socket is open warns, and a warning fails
        whichever test runs at that moment: so objects are closed, not descriptors. Threads cannot be ended; most
        end with the sockets that they read.
        """
        children = _children() - self.children
        for child in children:
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()
        pids, sockets = {child.pid for child in children}, _sockets() - self.sockets
        for thing in gc.get_objects():
            kind = type(thing)  # `isinstance` asks for `__class__`, at which some objects of torch warn
            if issubclass(kind, subprocess.Popen) and thing.pid in pids:
                _reap(thing)
            elif issubclass(kind, socket.socket) and _name_of(thing) in sockets:
                _close(thing)


def _reap(process: "subprocess.Popen[bytes]") -> None:
    process.wait()
    for pipe in (process.stdin, process.stdout, process.stderr):
        if pipe is not None:
            with contextlib.suppress(OSError):
                pipe.close()


def _close(sock: socket.socket) -> None:
    """`shutdown` first: it wakes a thread that is blocked in `recv`, which `close` alone does not."""
    with contextlib.suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)
    with contextlib.suppress(OSError):
        sock.close()


def _name_of(sock: socket.socket) -> str:
    """The name of its descriptor, as the system lists it; empty for a closed socket."""
    with contextlib.suppress(OSError):
        return os.readlink(f"/proc/self/fd/{sock.fileno()}")
    return ""
