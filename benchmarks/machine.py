"""What figures are taken on: the processor, what else runs on it, and the state of the source."""

import platform
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parents[1]
BUSY_INTERVAL_S = 2.0
MOST_BUSY = 10.0  # percent


def processor() -> str:
    """What the machine computes with, as far as the system tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def int8_units() -> str:
    """What 8-bit products are computed with, as far as targets tell it apart: `VNNI`, or else `AVX2`."""
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace").split()
    except OSError:
        flags = []
    return "VNNI" if {"avx512_vnni", "avx_vnni"} & set(flags) else "AVX2"


def busy(cores: Sequence[int]) -> str:
    """What share of the cores other programs use before we begin."""
    shares = psutil.cpu_percent(interval=BUSY_INTERVAL_S, percpu=True)
    share = max(shares[core] for core in cores)
    if share > MOST_BUSY:
        print(f"warning: other programs use {share:.0f}% of a core: figures will be low and noisy", file=sys.stderr)
    return f"{share:.0f}%"


def commit() -> str:
    """The state of the source, as git describes it."""
    command = ["git", "describe", "--always", "--dirty"]
    git = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    return git.stdout.strip() or "unknown"
