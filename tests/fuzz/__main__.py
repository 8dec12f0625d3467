"""`make fuzz`: each target in a process of its own, one line of figures each; exit code 1 where one failed.

python -m fuzz [TARGET ...] [--seconds 40] [--seed 1] [--crashes DIR]
python -m fuzz --quick              all targets in this process, some hundred inputs each
python -m fuzz TARGET --replay FILE
"""

import argparse
import json
import os
import re
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from fuzz import engine
from fuzz.watch import Guard, Watch

QUICK_INPUTS = {"frames": 6000, "ledger": 4000, "session": 400, "http": 500, "users": 300, "network": 800,
                "manifest": 800, "documents": 300, "gguf": 60, "chunk": 150}  # fmt: skip
SPARE_S = 1200  # beyond its time, for a target to start and to see as many units as it has to
TESTS = Path(__file__).resolve().parents[1]


def main() -> int:
    options = _options()
    os.environ["OMP_NUM_THREADS"] = "1"
    for name in ("MDI_KEY", "MDI_KEY_FILE", "MDI_KEY_OLD", "MDI_KEY_OLD_FILE"):
        os.environ.pop(name, None)
    with tempfile.TemporaryDirectory(prefix="mdi-fuzz-", dir=_fast_folder()) as folder:
        scratch = Path(folder)
        if options.child:
            return _child(options, scratch)
        if options.replay:
            return _replay(options, scratch)
        if options.quick:
            return _quick(options, scratch)
    return _all(options)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m fuzz", description="Fuzz what reads foreign bytes.")
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"of {', '.join(engine.TARGETS)}; default: all")
    parser.add_argument("--seconds", type=float, default=float(os.environ.get("FUZZ_SECONDS", "40")),
                        help="for a target of ordinary share (%(default)s; FUZZ_SECONDS)")  # fmt: skip
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--crashes", type=Path, default=TESTS.parent / "fuzz-crashes", help="where failing inputs go")
    parser.add_argument("--quick", action="store_true", help="a few seconds in all, unguided")
    parser.add_argument("--replay", type=Path, help="run one target on one file")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.crashes = options.crashes.resolve()
    options.targets = options.targets or list(engine.TARGETS)
    if unknown := set(options.targets) - set(engine.TARGETS):
        parser.error(f"no target {', '.join(unknown)}")
    return options


def _fast_folder() -> str | None:
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


def _child(options: argparse.Namespace, scratch: Path) -> int:
    engine.run(options.targets[0], scratch, options.crashes, options.seconds, options.seed, options.child)
    return 0


def _replay(options: argparse.Namespace, scratch: Path) -> int:
    target = engine.load(options.targets[0], scratch)
    engine.warmed_up(target)
    Watch(target, Guard(scratch), 1.0)(options.replay.read_bytes())
    print("nothing wrong")
    return 0


def _quick(options: argparse.Namespace, scratch: Path) -> int:
    guard = Guard(scratch)
    for name in options.targets:
        folder = scratch / name
        folder.mkdir()
        target = engine.load(name, folder)
        seeds = engine.warmed_up(target)
        watch = Watch(target, guard, 1.0)
        figures = engine.run_blind(target, watch, seeds, options.crashes, options.seed, QUICK_INPUTS[name])
        print(f"{name}: {figures['inputs']} inputs in {figures['seconds']:.1f} s", flush=True)
    return 0


def _all(options: argparse.Namespace) -> int:
    print("guided by coverage (atheris)" if engine.is_guided() else "unguided: atheris is not installed")
    print(
        f"{'target':9} {'inputs':>9} {'units':>20} {'per s':>7} {'corpus':>6} {'branches':>8} {'RSS MiB':>13} slowest"
    )
    failed = [name for name in options.targets if not _one(name, options)]
    print(f"failed: {', '.join(failed)}" if failed else "nothing found")
    return int(bool(failed))


def _one(name: str, options: argparse.Namespace) -> bool:
    """Run a target as a process and print its line. Where it fails, print the end of its log and how to replay it."""
    began = time.time()
    with tempfile.TemporaryDirectory(prefix="mdi-fuzz-") as folder:
        figures, log = Path(folder) / "figures.json", Path(folder) / "log"
        command = [sys.executable, "-m", "fuzz", name, "--seconds", str(options.seconds), "--seed", str(options.seed),
                   "--crashes", str(options.crashes), "--child", str(figures)]  # fmt: skip
        with log.open("wb") as output:
            try:
                subprocess.run(
                    command, stdout=output, stderr=output, check=False, timeout=3 * options.seconds + SPARE_S
                )
            except subprocess.TimeoutExpired:
                output.write(b"\nit did not end in time\n")
        text = log.read_text(errors="replace")
        if figures.is_file():
            print(_line(name, json.loads(figures.read_text()), text), flush=True)
            return True
    print(f"{name}: failed\n{text[-3000:]}")
    for path in sorted(options.crashes.glob(f"{name}-*")):
        if path.stat().st_mtime >= began:
            print(f"replay: PYTHONPATH=src:tests {sys.executable} -m fuzz {name} --replay {shlex.quote(str(path))}")
    return False


def _line(name: str, figures: dict[str, Any], log: str) -> str:
    progress = re.findall(r"cov: (\d+) ft: \d+ corp: (\d+)/", log)
    branches, corpus = progress[-1] if progress else ("-", "-")
    memory = f"{figures['rss_before'] / 2**20:.0f} to {figures['rss_after'] / 2**20:.0f}"
    units = f"{figures['units']} {figures['unit']}"
    per_s = figures["inputs"] / figures["seconds"]
    return (f"{name:9} {figures['inputs']:9} {units:>20} {per_s:7.0f} {corpus:>6} {branches:>8} {memory:>13}"
            f" {figures['slowest_s']:.2f} s")  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
