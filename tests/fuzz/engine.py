"""One target, many inputs: guided by atheris where it is installed, else blind mutations of the seeds."""

import contextlib
import hashlib
import importlib
import importlib.util
import json
import os
import random
import sys
from pathlib import Path
from typing import Any

from fuzz.mutations import change_bytes
from fuzz.target import Target
from fuzz.watch import Guard, Watch

TARGETS = {
    "frames": "ring_targets.FrameTarget",
    "ledger": "ring_targets.LedgerTarget",
    "session": "control_targets.SessionTarget",
    "http": "control_targets.HttpTarget",
    "users": "user_targets.UserTarget",
    "documents": "document_targets.DocumentTarget",
    "network": "file_targets.NetworkTarget",
    "manifest": "file_targets.ManifestTarget",
    "gguf": "file_targets.GgufTarget",
    "chunk": "file_targets.ChunkTarget",
}
HANG_S = 60  # libFuzzer ends a process in which one input takes as long, wherever it hangs


def is_guided() -> bool:
    """Whether coverage guides the mutations."""
    return importlib.util.find_spec("atheris") is not None


def load(name: str, scratch: Path, *, instrumented: bool = False) -> Target:
    """The target, with `mdi` imported by it, instrumented or not."""
    module, _, kind = TARGETS[name].partition(".")
    instrument = contextlib.nullcontext()
    if instrumented:
        import atheris

        instrument = atheris.instrument_imports(include=["mdi"], enable_loader_override=False)
    with instrument:
        target: Target = getattr(importlib.import_module(f"fuzz.{module}"), kind)(scratch)
    return target


def warmed_up(target: Target) -> list[bytes]:
    """The seeds; each has been read once, so that what is imported and cached on first use is."""
    seeds = target.seeds()
    for seed in seeds:
        target.check(seed)
    assert 3 * target.accepted >= len(seeds), f"{target.accepted} of {len(seeds)} seeds of {target.name} are valid"
    target.accepted = 0
    return seeds


def mutated(target: Target, data: bytes, seeds: list[bytes], rng: random.Random) -> bytes:
    """One to four changes, most of which know the format; now and then of a seed, as libFuzzer keeps what is short."""
    if rng.random() < 0.2:
        data = rng.choice(seeds)
    for _ in range(rng.choice((1, 1, 1, 2, 2, 3, 4))):
        data = target.mutate(data, rng) if rng.random() < 0.7 else target.repair(change_bytes(data, rng), rng)
    return data[: target.max_bytes]


def run_blind(
    target: Target, watch: Watch, seeds: list[bytes], crashes: Path, seed: int, inputs: int | None = None
) -> dict[str, Any]:
    """Mutate seeds until the time is over, or for a number of inputs. An input that raises is kept in `crashes`."""
    rng = random.Random(seed)
    while not watch.is_over if inputs is None else watch.inputs < inputs:
        data = mutated(target, rng.choice(seeds), seeds, rng)
        try:
            watch(data)
        except BaseException:
            keep(crashes, target.name, data)
            raise
    return watch.finish()


def keep(crashes: Path, name: str, data: bytes) -> Path:
    """Write an input to `crashes`."""
    crashes.mkdir(parents=True, exist_ok=True)
    path = crashes / f"{name}-crash-{hashlib.sha256(data).hexdigest()[:16]}"
    path.write_bytes(data)
    return path


def run_guided(target: Target, watch: Watch, seeds: list[bytes], crashes: Path, seed: int, figures: Path) -> None:
    """Let libFuzzer choose. It never returns: the process ends when the time is over, or at the first failure."""
    import atheris

    corpus = target.scratch / "corpus"
    corpus.mkdir()
    for i, data in enumerate(seeds):
        (corpus / f"seed-{i}").write_bytes(data)
    crashes.mkdir(parents=True, exist_ok=True)

    def one_input(data: bytes) -> None:
        watch(data)
        if watch.is_over:
            figures.write_text(json.dumps(watch.finish()))
            sys.stderr.flush()
            os._exit(0)

    def mutate(data: bytes, max_size: int, seed: int) -> bytes:
        rng = random.Random(seed)
        if rng.random() < 0.5:
            return mutated(target, data, seeds, rng)[:max_size]
        return target.repair(bytes(atheris.Mutate(data, max_size)), rng)[:max_size]

    options = [
        f"-max_len={target.max_bytes}",
        f"-seed={seed}",
        f"-timeout={HANG_S}",
        f"-artifact_prefix={crashes}/{target.name}-",
        "-rss_limit_mb=8192",  # the watch has a closer one
        "-len_control=0",
        "-detect_leaks=0",
    ]
    atheris.Setup([sys.argv[0], *options, str(corpus)], one_input, custom_mutator=mutate)
    atheris.Fuzz()


def run(name: str, scratch: Path, crashes: Path, seconds: float, seed: int, figures: Path) -> None:
    """A full run of one target in this process, which is good for nothing else afterwards."""
    guided = is_guided()
    target = load(name, scratch, instrumented=guided)
    seeds = warmed_up(target)
    watch = Watch(target, Guard(scratch), seconds * target.share, target.least_units)
    if guided:
        run_guided(target, watch, seeds, crashes, seed, figures)
    figures.write_text(json.dumps(run_blind(target, watch, seeds, crashes, seed)))
