#!/usr/bin/env python3
"""Tokens/s of rings of 1, 2 and 3 nodes on this machine beside litgpt on one device, in the same run.

Every node has one thread. The runs alternate; medians over the rounds are printed as a Markdown table,
with the ratio to litgpt of the same round, the time to the first token and the memory of each node.

    python benchmarks/ring_vs_litgpt.py --ckpt src/checkpoints/local/SmolLM2-135M-Instruct
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

SOURCE = Path(__file__).resolve().parents[1] / "src"
sys.path.insert(0, str(SOURCE))

from mdi.config import SETTINGS_DIR, load_network  # noqa: E402
from mdi.control import ControlClient  # noqa: E402
from mdi.local_ring import script, secondaries  # noqa: E402

CONFIGS = {1: "standalone.json", 2: "configuration_2.json", 3: "configuration.json"}
PROMPT = "The lighthouse stood at the end of the long pier, and every evening"

LITGPT = """
import sys, time
from pathlib import Path
import torch
from litgpt.config import Config
from litgpt.generate.base import generate_fn
from litgpt.model import GPT
from litgpt.tokenizer import Tokenizer
folder, n_tokens, prompt = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
torch.set_num_threads(1)
model = GPT(Config.from_file(folder / "model_config.yaml")).eval()
model.load_state_dict(torch.load(folder / "lit_model.pth", mmap=True, weights_only=True), assign=True)
model = model.float()
ids = Tokenizer(folder).encode(prompt)
model.max_seq_length = len(ids) + n_tokens
model.set_kv_cache(batch_size=1)
start = time.perf_counter()
n = len(list(generate_fn(model, ids, len(ids) + n_tokens, temperature=0.0, include_prompt=False, include_eos=True)))
print(n / (time.perf_counter() - start))
"""


@dataclass
class Result:
    """One run: tokens/s, seconds from the command to the first token, peak bytes of each node."""

    tokens_per_s: float
    first_token_s: float = 0.0
    peak_bytes: tuple[int, ...] = ()


def run_litgpt(folder: Path, n_tokens: int) -> Result:
    command = [sys.executable, "-c", LITGPT, str(folder), str(n_tokens), PROMPT]
    return Result(float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1]))


def run_ring(n_nodes: int, folder: Path, n_samples: int, n_tokens: int) -> Result:
    config = SETTINGS_DIR / CONFIGS[n_nodes]
    with tempfile.TemporaryDirectory() as scratch, secondaries(config):
        output = Path(scratch) / "out.jsonl"
        options = (
            f"--n-samples {n_samples} --n-tokens {n_tokens} --temperature 0 --ignore-eos --dtype float32 --keep-nodes"
        )
        command = script("starter.py", "--ckpt", str(folder), "--nodes-config", str(config), "--output", str(output))
        command += [*options.split(), "--stream", "--dtype", "float32", "--prompt-style", "none", "--prompt", PROMPT]
        start = time.perf_counter()
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        assert process.stdout is not None
        seen = b""
        while b">>> " not in seen or seen.endswith(b">>> "):
            seen += process.stdout.read1(1)  # type: ignore[attr-defined]
        first_token_s = time.perf_counter() - start
        process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        assert process.returncode == 0
        peaks = [usage.ru_maxrss * 1024]
        for index, node in enumerate(load_network(config).secondaries):
            client = ControlClient(f"secondary {index}", node.addr, node.http_port, node.access)
            peaks.append(client.status()["peak_memory_bytes"])
            client.stop()
        summary = json.loads(output.read_text().splitlines()[-1])["summary"]
    return Result(summary["tokens_per_s"], first_token_s, tuple(peaks))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ckpt", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--n-samples", type=int, default=3)
    parser.add_argument("--n-tokens", type=int, default=60)
    arguments = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    ckpt, n_samples, n_tokens = arguments.ckpt, arguments.n_samples, arguments.n_tokens
    rounds = [
        (run_litgpt(ckpt, n_tokens), [run_ring(n, ckpt, n_samples, n_tokens) for n in CONFIGS])
        for _ in range(arguments.rounds)
    ]
    print(f"{platform.machine()}, {os.cpu_count()} cores, {time.strftime('%Y-%m-%d')}, {arguments.rounds} rounds,")
    print(f"{ckpt.name}, {n_samples} samples x {n_tokens} tokens, float32, one thread per node\n")
    print("| | tokens/s, median (min-max) | over litgpt, same round | first token, s | peak memory per node, MB |")
    print("|---|---|---|---|---|")
    print(f"| litgpt, 1 sample | {_spread([litgpt.tokens_per_s for litgpt, _ in rounds])} | 1 | | |")
    for i, n_nodes in enumerate(CONFIGS):
        runs = [rings[i] for _, rings in rounds]
        ratios = [rings[i].tokens_per_s / litgpt.tokens_per_s for litgpt, rings in rounds]
        memory = " + ".join(
            str(round(max(peaks) / 1e6)) for peaks in zip(*(run.peak_bytes for run in runs), strict=True)
        )
        first = statistics.median(run.first_token_s for run in runs)
        speed = _spread([run.tokens_per_s for run in runs])
        print(f"| {n_nodes} node{'s' * (n_nodes > 1)} | {speed} | {_spread(ratios)} | {first:.1f} | {memory} |")


def _spread(values: list[float]) -> str:
    return f"{statistics.median(values):.2f} ({min(values):.2f}-{max(values):.2f})"


if __name__ == "__main__":
    main()
