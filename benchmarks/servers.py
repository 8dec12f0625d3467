"""Servers of one model that are measured beside each other: a ring that serves, and llama.cpp's own server."""

import contextlib
import json
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.rings import NodeSettings, free_ports, secondaries
from benchmarks.workers import ROOT, Program, await_server, child_environment, end, start
from mdi.text.tokenizer_config import special_ids

READY_TIMEOUT_S = 180.0
N_SLOTS = 32  # answers at once
CONTEXT = 2048  # positions of each: ten turns of a chat take half of it


@dataclass(frozen=True)
class Served:
    """A server that is ready."""

    port: int
    model: str
    extra: dict[str, Any] = field(default_factory=dict)  # what keeps an answer from ending early


@contextlib.contextmanager
def served_ring(ckpt: Path, cores: Sequence[int], scratch: Path, settings: NodeSettings) -> Iterator[Served]:
    """A ring with a node on each of `cores`."""
    (port,) = free_ports(1)
    log = scratch / "logs" / "server.log"
    with secondaries(cores[1:], scratch, settings) as nodes_config, contextlib.ExitStack() as stack:
        command = [sys.executable, str(ROOT / "src" / "starter.py"), *settings.flags, "--ckpt", str(ckpt)]
        command += ["--nodes-config", str(nodes_config), "--serve", f"127.0.0.1:{port}"]
        command += ["--max-slots", str(N_SLOTS), "--sequence-length", str(CONTEXT)]
        process = start(command, cores[:1], log)
        stack.callback(end, process)
        _wait_until_ready(process, port, log)
        stops = {str(token): -100 for token in special_ids(ckpt, "eos_token_id")}
        yield Served(port, ckpt.resolve().name, {"logit_bias": stops} if stops else {})


class LlamaServer(Program):
    """llama.cpp's server: a program, and the model file that it is to serve."""

    def __init__(self, program: str, scratch: Path) -> None:
        super().__init__(program)
        self._scratch = scratch

    def version(self) -> str | None:
        """What it says of itself; None where it is not there."""
        if self.path is None:
            return None
        result = subprocess.run([self.path, "--version"], capture_output=True, text=True, check=False)
        lines = [line for line in (result.stdout + result.stderr).splitlines() if line.startswith("version")]
        return lines[0].partition(":")[2].strip() if lines else "unknown"

    @contextlib.contextmanager
    def serving(self, gguf: Path, cores: Sequence[int]) -> Iterator[Served]:
        """A server with a thread on each of `cores`, and as many slots of as many positions as ours."""
        program = self.require()
        (port,) = free_ports(1)
        log = self._scratch / "logs" / "llama-server.log"
        threads = str(len(cores))
        command = [
            program,
            "--model",
            str(gguf),
            "--alias",
            gguf.stem,
            "--host",
            "127.0.0.1",
            "--port",
            str(port),
        ]
        command += ["--threads", threads, "--threads-batch", threads]
        command += ["--parallel", str(N_SLOTS), "--ctx-size", str(N_SLOTS * CONTEXT)]
        process = start(command, cores, log, env=child_environment(None))
        try:
            _wait_until_ready(process, port, log)
            yield Served(port, gguf.stem, {"ignore_eos": True})
        finally:
            end(process)


def _wait_until_ready(process: "subprocess.Popen[bytes]", port: int, log: Path) -> None:
    await_server(process, lambda: _is_healthy(port), READY_TIMEOUT_S, log, "the server does not serve")


def _is_healthy(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5) as response:
            return bool(json.load(response))
    except (OSError, ValueError):
        return False
