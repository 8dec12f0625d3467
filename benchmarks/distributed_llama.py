"""The peer distributed-llama: a root and its workers split every layer, and so compute each token together.

Its root is started for each run, because it ends with its sequence; its workers stay, and wait for the next root.
"""

import contextlib
import re
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.dllama_export import export_model, export_tokenizer, prompt_text
from benchmarks.peers import is_newer
from benchmarks.rings import Run, free_ports
from benchmarks.workers import ANSWER_TIMEOUT_S, BenchError, Program, end, start
from mdi.checkpoint.config import load_config
from mdi.checkpoint.weights import MODEL_FILE

READY_TIMEOUT_S = 20.0
ACTIVATIONS = {"F32": "f32", "Q40": "q80"}  # it has kernels for these pairs only
_PREDICTED = "\N{LARGE ORANGE DIAMOND}".encode()  # begins the line of a token that was generated
_TOKEN = re.compile(rb"\| <(\d+)>\s*$")


class DistributedLlama(Program):
    """The program, and its model files, which are made once."""

    def __init__(self, program: str, scratch: Path) -> None:
        super().__init__(program)
        self._scratch = scratch

    def version(self) -> str | None:
        """As git describes the source that it was built in; None where it is not there."""
        if self.path is None:
            return None
        folder = Path(self.path).resolve().parent
        if not (folder / ".git").exists():
            return "unknown"
        command = ["git", "-C", str(folder), "describe", "--tags", "--always"]
        git = subprocess.run(command, capture_output=True, text=True, check=False)
        return git.stdout.strip() or "unknown"

    def model(self, ckpt: Path, kind: str) -> Path:
        """The weights of `ckpt` as a file of `kind`, F32 or Q40, with a tokenizer (.t) beside it.

        Raises `BenchError` for a model that it cannot run.
        """
        path = self._scratch / f"{ckpt.resolve().name}-{kind}.m"
        if is_newer(path, ckpt / MODEL_FILE):
            return path
        try:
            export_tokenizer(load_config(ckpt).padded_vocab_size, path.with_suffix(".t"))
            export_model(ckpt, path, kind)
        except ValueError as exc:
            raise BenchError(f"distributed-llama: {exc}") from exc
        return path

    @contextlib.contextmanager
    def nodes(self, ckpt: Path, kind: str, cores: Sequence[int]) -> Iterator["DllamaNodes"]:
        """A node with one thread on each of `cores`: the root on the first one."""
        program, model, logs = self.require(), self.model(ckpt, kind), self._scratch / "logs"
        ports = free_ports(len(cores) - 1)
        with contextlib.ExitStack() as stack:
            for core, port in zip(cores[1:], ports, strict=True):
                command = [program, "worker", "--host", "127.0.0.1", "--port", str(port), "--nthreads", "1"]
                stack.callback(end, start(command, [core], logs / f"dllama_worker_{port}.log"))
            command = [program, "inference", "--model", str(model), "--tokenizer", str(model.with_suffix(".t"))]
            command += ["--buffer-float-type", ACTIVATIONS[kind], "--nthreads", "1", "--temperature", "0"]
            if ports:
                command += ["--workers", *(f"127.0.0.1:{port}" for port in ports)]
            yield DllamaNodes(command, cores[0], logs / f"dllama_root_of_{len(cores)}.log")


class DllamaNodes:
    """Workers that run, and how their root is started."""

    def __init__(self, command: Sequence[str], core: int, log: Path) -> None:
        self._command, self._core, self._log = command, core, log

    def run(self, prompt: Sequence[int], n_tokens: int) -> Run:
        """Greedy tokens of one sequence, stamped when their lines arrive; the run starts with the root's process.

        The program takes 0 for the last token of a prompt, whatever that is (v0.16.4 reads the one behind it). It does
        not write the last token of the vocabulary, which is -1 here.
        """
        positions = str(len(prompt) - 1 + n_tokens)
        command = [*self._command, "--prompt", prompt_text(prompt), "--steps", positions, "--max-seq-len", positions]
        deadline_s = time.monotonic() + READY_TIMEOUT_S
        while True:
            began_s = time.monotonic()
            lines, status = self._root(command)
            if status == 0:
                return _run_of(began_s, lines)
            # A worker needs a moment to start, and to listen again after a root has ended. One cannot ask it whether
            # it does: it ends with the first connection that is no root's.
            is_early = any(line.startswith(b"Cannot connect") for _, line in lines)
            if not is_early or time.monotonic() > deadline_s:
                raise BenchError(f"distributed-llama: {self._last_words(lines)} (exit {status}, see {self._log})")
            time.sleep(0.1)

    def _root(self, command: Sequence[str]) -> tuple[list[tuple[float, bytes]], int]:
        """Run a root to its end: its lines, when each arrived, and its exit status."""
        process = start(command, [self._core], self._log, stdout=subprocess.PIPE)
        watchdog = threading.Timer(ANSWER_TIMEOUT_S, process.kill)
        watchdog.start()
        assert process.stdout is not None
        try:
            with process.stdout:
                lines = [(time.monotonic(), line) for line in process.stdout]
            return lines, process.wait()
        finally:
            watchdog.cancel()
            end(process)

    def _last_words(self, lines: Sequence[tuple[float, bytes]]) -> str:
        """What it said last: an assertion of its own goes to stderr."""
        said = [line.decode(errors="replace") for _, line in lines]
        said += self._log.read_text(encoding="utf-8", errors="replace").splitlines()
        return next((line.strip() for line in reversed(said) if line.strip()), "no message")


def _run_of(began_s: float, lines: Sequence[tuple[float, bytes]]) -> Run:
    steps = [(arrived_s, _TOKEN.search(line)) for arrived_s, line in lines if line.startswith(_PREDICTED)]
    tokens = [-1 if found is None else int(found[1]) for _, found in steps]
    return Run(began_s, [[arrived_s for arrived_s, _ in steps]], [tokens])
