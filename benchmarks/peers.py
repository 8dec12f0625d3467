"""The peers: litgpt on one device, and llama.cpp through llama-cpp-python, with the same weights and prompts.

llama.cpp computes in one process, or in two with its RPC backend.
"""

import contextlib
import os
import socket
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil

from benchmarks.gguf_export import export_gguf
from benchmarks.rings import ON_CPU, NodeSettings, Run, free_ports
from benchmarks.workers import BenchError, Program, Worker, await_server, child_environment, end, python_module, start
from mdi.checkpoint.config import load_config
from mdi.checkpoint.weights import MODEL_FILE

DRIVER = Path(__file__).with_name("llama_driver.py")
LISTEN_TIMEOUT_S = 30.0
LEAST_SHARE = 0.1  # of the processor time: an RPC server with less has none of the layers


class Peer:
    """A peer that runs and answers requests."""

    def __init__(self, worker: Worker) -> None:
        """Waits until the peer has loaded its model."""
        self._worker = worker
        worker.hear()

    def run(self, prompt: list[int], n_samples: int, n_tokens: int, **options: Any) -> Run:
        """Greedy tokens of `n_samples` sequences that begin with the same prompt."""
        request = {"prompt": prompt, "n_samples": n_samples, "n_tokens": n_tokens}
        return Run(**self._worker.ask(request | options))


class RpcPeer(Peer):
    """llama.cpp in two processes."""

    def __init__(self, worker: Worker, server_pid: int) -> None:
        super().__init__(worker)
        self._processes = [psutil.Process(worker.pid), psutil.Process(server_pid)]
        self.server_share = 0.0  # of the processor time of both, in the last run

    def run(self, prompt: list[int], n_samples: int, n_tokens: int, **options: Any) -> Run:
        """As of every peer. Raises `BenchError` where the server has computed next to nothing."""
        before = [_processor_s(process) for process in self._processes]
        run = super().run(prompt, n_samples, n_tokens, **options)
        client_s, server_s = (
            _processor_s(process) - past for process, past in zip(self._processes, before, strict=True)
        )
        self.server_share = server_s / max(client_s + server_s, 1e-9)
        if self.server_share < LEAST_SHARE:
            raise BenchError(f"the RPC server took only {self.server_share:.0%} of the processor time")
        return run


def _processor_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


@contextlib.contextmanager
def litgpt(ckpt: Path, cores: Sequence[int], scratch: Path, settings: NodeSettings = ON_CPU) -> Iterator[Peer]:
    """litgpt with one thread, unquantized."""
    command = python_module("litgpt_driver", str(ckpt.resolve()), settings.device, settings.dtype)
    with Worker(command, cores, scratch / "logs" / "litgpt.log") as worker:
        yield Peer(worker)


class RpcServer(Program):
    """llama.cpp's program that lets others compute on its machine."""

    def __init__(self, program: str, scratch: Path) -> None:
        super().__init__(program)
        self._scratch = scratch

    @contextlib.contextmanager
    def listening(self, core: int) -> Iterator[tuple[int, str]]:
        """A server with one thread on `core`; yields its process id and where it listens."""
        program = self.require()
        (port,) = free_ports(1)
        log = self._scratch / "logs" / "ggml-rpc-server.log"
        command = [program, "--host", "127.0.0.1", "--port", str(port), "--threads", "1", "--device", "CPU"]
        process = start(command, [core], log, env=child_environment(None))
        try:
            await_server(process, lambda: _is_open(port), LISTEN_TIMEOUT_S, log, "the RPC server does not listen")
            yield process.pid, f"127.0.0.1:{port}"
        finally:
            end(process)


def _is_open(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=5).close()
    except OSError:
        return False
    return True


class LlamaCpp:
    """llama.cpp as the package of some Python, and its model files, which are made once."""

    def __init__(self, python: str, scratch: Path) -> None:
        self._python, self._scratch = python, scratch

    def version(self) -> str | None:
        """The version of the package; None where it cannot be imported."""
        return self._value("__version__")

    def require(self) -> None:
        """Raises `BenchError` where it cannot be measured."""
        if self.version() is None:
            raise BenchError(f"llama_cpp cannot be imported by {self._python}")

    def require_rpc(self) -> None:
        """Raises `BenchError` where it cannot compute on RPC servers either."""
        self.require()
        if self._value("llama_supports_rpc()") != "True":
            raise BenchError(f"llama_cpp of {self._python} was built without its RPC backend (GGML_RPC)")

    def _value(self, attribute: str) -> str | None:
        """What the package's `attribute` prints; None where there is no such thing."""
        code = f"import llama_cpp; print(llama_cpp.{attribute})"
        try:
            result = subprocess.run([self._python, "-c", code], capture_output=True, text=True, check=False)
        except OSError:
            return None
        return result.stdout.strip() if result.returncode == 0 else None

    def model(self, ckpt: Path, kind: str) -> Path:
        """The weights of `ckpt` as a GGUF file of `kind`: F32, Q8_0 or Q4_0."""
        path = self._scratch / f"{ckpt.resolve().name}-{kind}.gguf"
        if is_newer(path, ckpt / MODEL_FILE):
            return path
        self._scratch.mkdir(parents=True, exist_ok=True)
        if kind == "F32":
            export_gguf(ckpt, path)
            return path
        return self._quantize(self.model(ckpt, "F32"), path, kind)

    def requantized(self, gguf: Path, kind: str) -> Path:
        """The weights of a GGUF file as another one of `kind`, with its vocabulary and its chat template."""
        path = self._scratch / f"{gguf.stem}-as-{kind}.gguf"
        return path if is_newer(path, gguf) else self._quantize(gguf, path, kind)

    def _quantize(self, source: Path, path: Path, kind: str) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        command = [self._python, str(DRIVER), "quantize", str(source), str(partial), kind]
        result = subprocess.run(command, capture_output=True, text=True, check=False, env=child_environment(None))
        if result.returncode != 0:
            raise BenchError(f"llama.cpp could not make {path.name}: {result.stderr.strip()[-200:]}")
        os.replace(partial, path)
        return path

    def forget(self, ckpt: Path, kind: str) -> None:
        """Remove a model file that is large and no longer needed."""
        (self._scratch / f"{ckpt.resolve().name}-{kind}.gguf").unlink(missing_ok=True)

    @contextlib.contextmanager
    def serving(self, ckpt: Path, kind: str, cores: Sequence[int]) -> Iterator[Peer]:
        """llama.cpp with a thread on each of `cores`."""
        command = [self._python, str(DRIVER), "serve", str(self.model(ckpt, kind)), str(len(cores))]
        log = self._scratch / "logs" / f"llama_{kind}_{len(cores)}.log"
        with Worker(command, cores, log, child_environment(None)) as worker:
            yield Peer(worker)

    @contextlib.contextmanager
    def serving_with(self, server: RpcServer, ckpt: Path, kind: str, cores: Sequence[int]) -> Iterator[RpcPeer]:
        """llama.cpp on the first of two cores, with half of the layers and the head on `server` on the other."""
        mine, other = cores
        n_gpu_layers = load_config(ckpt).n_layer // 2 + 1  # the head is one of them
        command = [self._python, str(DRIVER), "serve", str(self.model(ckpt, kind)), "1"]
        log = self._scratch / "logs" / f"llama_rpc_{kind}.log"
        with server.listening(other) as (pid, endpoint):
            command += [endpoint, str(n_gpu_layers)]
            # A client whose server fails, or is of another version, aborts: its reason should be its last line.
            environment = child_environment(None) | {"GGML_NO_BACKTRACE": "1"}
            with Worker(command, [mine], log, environment) as worker:
                yield RpcPeer(worker, pid)


def is_newer(path: Path, source: Path) -> bool:
    """Whether `path`, which is made from `source`, is there and still good."""
    return path.is_file() and path.stat().st_mtime_ns >= source.stat().st_mtime_ns
