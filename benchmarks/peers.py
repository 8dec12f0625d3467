"""The peers: litgpt on one device, and llama.cpp through llama-cpp-python, with the same weights and prompts."""

import contextlib
import os
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.gguf_export import export_gguf
from benchmarks.rings import ON_CPU, NodeSettings, Run
from benchmarks.workers import BenchError, Worker, child_environment, python_module
from mdi.checkpoint.weights import MODEL_FILE

DRIVER = Path(__file__).with_name("llama_driver.py")


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


@contextlib.contextmanager
def litgpt(ckpt: Path, cores: Sequence[int], scratch: Path, settings: NodeSettings = ON_CPU) -> Iterator[Peer]:
    """litgpt with one thread, unquantized."""
    command = python_module("litgpt_driver", str(ckpt.resolve()), settings.device, settings.dtype)
    with Worker(command, cores, scratch / "logs" / "litgpt.log") as worker:
        yield Peer(worker)


class LlamaCpp:
    """llama.cpp as the package of some Python, and its model files, which are made once."""

    def __init__(self, python: str, scratch: Path) -> None:
        self._python, self._scratch = python, scratch

    def version(self) -> str | None:
        """The version of the package; None where it cannot be imported."""
        code = "import llama_cpp; print(llama_cpp.__version__)"
        try:
            result = subprocess.run([self._python, "-c", code], capture_output=True, text=True, check=False)
        except OSError:
            return None
        return result.stdout.strip() if result.returncode == 0 else None

    def require(self) -> None:
        """Raises `BenchError` where it cannot be measured."""
        if self.version() is None:
            raise BenchError(f"llama_cpp cannot be imported by {self._python}")

    def model(self, ckpt: Path, kind: str) -> Path:
        """The weights of `ckpt` as a GGUF file of `kind`: F32, Q8_0 or Q4_0."""
        path = self._scratch / f"{ckpt.resolve().name}-{kind}.gguf"
        if _is_newer(path, ckpt / MODEL_FILE):
            return path
        self._scratch.mkdir(parents=True, exist_ok=True)
        if kind == "F32":
            export_gguf(ckpt, path)
            return path
        return self._quantize(self.model(ckpt, "F32"), path, kind)

    def requantized(self, gguf: Path, kind: str) -> Path:
        """The weights of a GGUF file as another one of `kind`, with its vocabulary and its chat template."""
        path = self._scratch / f"{gguf.stem}-as-{kind}.gguf"
        return path if _is_newer(path, gguf) else self._quantize(gguf, path, kind)

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


def _is_newer(path: Path, source: Path) -> bool:
    return path.is_file() and path.stat().st_mtime_ns >= source.stat().st_mtime_ns
