"""The scripts as processes of their own: on free ports, their output kept in files, always ended.

A process is *cold* (a new Python, which takes 4 s of CPU to import torch and litgpt) or *warm*: forked from
an interpreter that has imported them, with its own descriptors, arguments, signals and exit like any other.
"""

import contextlib
import fcntl
import json
import os
import random
import re
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SCRIPTS = Path(__file__).resolve().parents[2] / "src"
STARTERS = ("starter.py", "sample.py")
ERROR_LINE = re.compile(r"(?:[\w.]+: )?error: .+")
KILL_TIMEOUT_S = 60.0

# ---- networks

_taken: set[int] = set()
# A byte for each port: whoever has reserved the port has locked it.
_RESERVATIONS = os.open(
    Path(tempfile.gettempdir()) / f"mdi-ports-of-tests-{os.getuid()}", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600
)


def free_ports(n: int) -> list[int]:
    """Ports of loopback that nothing uses, below those that the kernel gives to outgoing connections."""
    ports: list[int] = []
    while len(ports) < n:
        port = random.SystemRandom().randrange(10_000, 30_000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            if port not in _taken:
                _reserve(port)
                _taken.add(port)
                ports.append(port)
    return ports


def _reserve(port: int) -> None:
    """Keep a port from all other processes of tests until this one ends: it is free again until its node listens.

    Raises `OSError` where another one has it.
    """
    fcntl.lockf(_RESERVATIONS, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, port)


def node_object(**changes: Any) -> dict[str, Any]:
    """A node of loopback on three free ports, as it stands in a nodes file."""
    http, port_in, port_out = free_ports(3)
    node = {
        "addr": "127.0.0.1",
        "communication": {"port": http},
        "inference": {"port_in": port_in, "port_out": port_out},
    }
    return node | changes


@dataclass(frozen=True)
class Network:
    """A nodes file and what it holds."""

    path: Path
    nodes: tuple[dict[str, Any], ...]

    def http_port(self, node: int) -> int:
        return int(self.nodes[node]["communication"]["port"])

    def ring_port(self, node: int) -> int:
        return int(self.nodes[node]["inference"]["port_in"])

    @property
    def ports(self) -> list[int]:
        """All ports that the nodes listen on."""
        return [port(node) for node in range(len(self.nodes)) for port in (self.http_port, self.ring_port)]


def write_network(path: Path, n_nodes: int) -> Network:
    """Write a nodes file of `n_nodes` nodes on free ports."""
    nodes = tuple(node_object() for _ in range(n_nodes))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"nodes": {"starter": nodes[0], "secondary": list(nodes[1:])}}))
    return Network(path, nodes)


# ---- processes


@dataclass(frozen=True)
class Result:
    """What became of a script."""

    code: int
    stdout: str
    stderr: str
    seconds: float


class Process:
    """A script that was started. `wait` gives its exit status, negative for a signal, or raises `TimeoutError`."""

    def __init__(self, pid: int, folder: Path, wait: Callable[[float], int]) -> None:
        self.pid, self._folder, self.wait = pid, folder, wait
        self._started_s = time.monotonic()

    @property
    def stdout(self) -> str:
        """What it printed so far."""
        return (self._folder / "stdout").read_text(encoding="utf-8", errors="replace")

    @property
    def stderr(self) -> str:
        return (self._folder / "stderr").read_text(encoding="utf-8", errors="replace")

    @property
    def alive(self) -> bool:
        try:
            self.wait(0)
        except TimeoutError:
            return True
        return False

    def send_signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def kill(self) -> None:
        """End it at once, whatever state it is in."""
        if self.alive:
            self.send_signal(signal.SIGKILL)
            self.wait(KILL_TIMEOUT_S)

    def result(self, timeout_s: float = 60.0) -> Result:
        """Wait for its end."""
        code = self.wait(timeout_s)
        return Result(code, self.stdout, self.stderr, time.monotonic() - self._started_s)

    def wait_for(self, text: str, timeout_s: float = 60.0) -> None:
        """Wait until it has said `text` on stderr, or fail with what it said instead."""
        wait_until(lambda: text in self.stderr or not self.alive, timeout_s, f"{text!r} in: {self.stderr}")
        assert text in self.stderr, f"it ended ({self.wait(0)}) without {text!r}: {self.stderr}"


class Scripts:
    """Starts scripts and, on exit, ends those that still run."""

    def __init__(self, folder: Path, warm: "WarmPython | None" = None) -> None:
        self._folder, self._warm = folder, warm
        self._processes: list[Process] = []

    def __enter__(self) -> "Scripts":
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes:
            process.kill()

    def start(
        self,
        name: str,
        *arguments: object,
        cold: bool = False,
        env: Mapping[str, str] | None = None,
        stdout: int | None = None,
    ) -> Process:
        """Start a script; `stdout` is a descriptor to be used instead of a file."""
        folder = self._folder / f"process{len(self._processes)}"
        folder.mkdir(parents=True)
        own_cache = ("--cache-dir", self._folder / "cache") if name in STARTERS else ()  # unless another one follows
        command = [str(SCRIPTS / name), *map(str, (*own_cache, *arguments))]
        environment = os.environ | {"OMP_NUM_THREADS": "1"} | dict(env or {})
        with (folder / "stdout").open("wb") as out, (folder / "stderr").open("wb") as err:
            target = out.fileno() if stdout is None else stdout
            start = _start_cold if cold or self._warm is None else self._warm.start
            pid, wait = start(command, environment, target, err.fileno())
        process = Process(pid, folder, wait)
        self._processes.append(process)
        return process

    def run(self, name: str, *arguments: object, timeout_s: float = 60.0, **options: Any) -> Result:
        """Run a script to its end."""
        return self.start(name, *arguments, **options).result(timeout_s)

    def secondaries(self, network: Network, *options: object, **how: Any) -> list[Process]:
        """Start all secondaries of a network, with one chunk cache for all."""
        cache = self._folder / "cache"
        return [
            self.start("secondary.py", "-v", "--cache-dir", cache, *options, "--nodes-config", network.path, i, **how)
            for i in range(len(network.nodes) - 1)
        ]


def _start_cold(
    command: list[str], environment: Mapping[str, str], out: int, err: int
) -> tuple[int, Callable[[float], int]]:
    popen = subprocess.Popen(
        [sys.executable, *command], env=environment, stdin=subprocess.DEVNULL, stdout=out, stderr=err
    )

    def wait(timeout_s: float) -> int:
        try:
            return popen.wait(timeout_s)
        except subprocess.TimeoutExpired as exc:
            raise TimeoutError(f"{command} did not end within {timeout_s:g} s") from exc

    return popen.pid, wait


# ---- warm processes


class WarmPython:
    """An interpreter that has imported torch and litgpt, and forks a process for each script that is started."""

    def __init__(self) -> None:
        self._channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(SCRIPTS)}
            self._python = subprocess.Popen(
                [sys.executable, __file__, str(theirs.fileno())],
                env=environment,
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
            )
        if self._channel.recv(16) != b"ready":
            self.__exit__()
            raise AssertionError("the warm interpreter did not start: its traceback is above")

    def __enter__(self) -> "WarmPython":
        return self

    def __exit__(self, *_: object) -> None:
        self._channel.close()
        self._python.wait(KILL_TIMEOUT_S)

    def start(
        self, command: list[str], environment: Mapping[str, str], out: int, err: int
    ) -> tuple[int, Callable[[float], int]]:
        """Fork a process that runs a script; returns its id, and a function that waits for its exit status."""
        news, theirs = os.pipe()
        try:
            request = json.dumps({"command": command, "environment": dict(environment), "folder": os.getcwd()})
            socket.send_fds(self._channel, [request.encode()], [out, err, theirs])
        finally:
            os.close(theirs)
        pid = int(os.read(news, 32))
        ended: list[int] = []

        def wait(timeout_s: float) -> int:
            if not ended:
                if not select.select([news], [], [], timeout_s)[0]:
                    raise TimeoutError(f"{command} did not end within {timeout_s:g} s")
                ended.append(int(os.read(news, 32)))
                os.close(news)
            return ended[0]

        return pid, wait


def _serve_forks(channel: socket.socket) -> None:
    """The warm interpreter: fork for each request, until the other end closes."""
    import gc

    import mdi.cli.prepare
    import mdi.cli.run  # noqa: F401

    gc.freeze()  # the end of each child would walk over all of it: 1 s
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel reaps the children, which have told what matters
    channel.send(b"ready")
    while True:
        request, descriptors, _, _ = socket.recv_fds(channel, 1 << 18, 3)
        if not request:
            return
        if os.fork() == 0:
            channel.close()
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            _report_on_child(json.loads(request), *descriptors)
            return  # as the script's own process, whose end is the interpreter's end
        for descriptor in descriptors:
            os.close(descriptor)


def _report_on_child(request: dict[str, Any], out: int, err: int, news: int) -> None:
    """Run the script in a child, and tell its id and then its exit status."""
    pid = os.fork()
    if pid == 0:
        os.close(news)
        _become(request["command"], request["environment"], request["folder"], out, err)
        return
    os.close(out)
    os.close(err)
    os.write(news, str(pid).encode())
    _, status = os.waitpid(pid, 0)
    os.write(news, str(os.waitstatus_to_exitcode(status)).encode())
    os._exit(0)


def _become(command: list[str], environment: dict[str, str], folder: str, out: int, err: int) -> None:
    for source, target in ((out, 1), (err, 2)):
        os.dup2(source, target)
        os.close(source)
    sys.stdout = os.fdopen(1, "w", closefd=False)  # the old one takes all files for seekable
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = command
    sys.path[0] = str(SCRIPTS)
    runpy.run_path(command[0], run_name="__main__")


# ---- what tests ask


def one_line_error(result: Result, code: int, *patterns: str, after: str | None = None) -> str:
    """Check that a script failed as it should and return its line on stderr.

    Nothing else stands on stderr, but for the first line of a node, and lines before it that match `after`.
    """
    *notes, line = without_announcement(result.stderr).splitlines() or [""]
    what = f"exit code {result.code}, stderr:\n{result.stderr}"
    assert result.code == code, what
    assert "Traceback" not in result.stderr, what
    assert ERROR_LINE.fullmatch(line), what
    assert all(after is not None and re.search(after, note) for note in notes), what
    for pattern in patterns:
        assert re.search(pattern, line), f"{pattern!r} is not in: {line}"
    return line


def without_announcement(stderr: str) -> str:
    """What a node wrote to stderr after its first line, with which it says that it loads torch."""
    return re.sub(r"\AMDI-LLM .*; loading torch\n", "", stderr)


def wait_until(condition: Callable[[], object], timeout_s: float, what: str) -> None:
    """Wait for a condition, or fail."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {timeout_s:g} s: {what}"
        time.sleep(0.01)


def call(port: int, method: str = "GET", path: str = "/") -> dict[str, Any]:
    """Ask a node over HTTP; {} where nobody answers."""
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", headers=headers, method=method)
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=5) as answer:
            return dict(json.load(answer))
    except OSError:
        return {}


def state_of(port: int) -> object:
    """The state that a node tells over HTTP; None where nobody answers."""
    return call(port).get("state")


def ports_in_use(ports: list[int]) -> list[int]:
    """The ports on which no program of ours could listen now."""
    taken = []
    for port in ports:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
                probe.listen()
            except OSError:
                taken.append(port)
    return taken


def read_samples(path: Path) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The samples of an `--output` file in order, and its summary."""
    *samples, last = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return sorted(samples, key=lambda sample: int(sample["sample"])), last["summary"]


def samples_of(stdout: str) -> str:
    """The part of a starter's stdout that does not depend on the time it took."""
    samples, _, _ = stdout.rpartition("Generated ")
    return samples


@contextlib.contextmanager
def removed_afterwards(*paths: Path) -> Iterator[None]:
    """Files of the source tree that a test writes."""
    try:
        yield
    finally:
        for path in paths:
            path.unlink(missing_ok=True)


if __name__ == "__main__":
    with socket.socket(fileno=int(sys.argv[1])) as forks:
        _serve_forks(forks)
