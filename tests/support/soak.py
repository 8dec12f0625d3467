"""Two nodes that live long under a stream of starters, some of which are cancelled, and what is measured of them.

The first secondary lives for the whole soak; the second is the one that is killed. Either may be stopped for a while.
"""

import os
import random
import signal
import statistics
import string
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from support.models import make_model
from support.scripts import (
    Process,
    Result,
    Scripts,
    call,
    read_samples,
    state_of,
    wait_until,
    write_network,
)

Blow = Literal["none", "kill", "stop"]

RUN_TIMEOUT_S, IDLE_TIMEOUT_S, CANCEL_TIMEOUT_S = 120.0, 30.0, 10.0
CANCELLED = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGHUP: 129}
FEWEST_TO_FIT = 100  # measurements of a life; shorter ones are all start
MOST_MB_PER_100_RUNS = 1.0


# ---- what is measured of a node


@dataclass(frozen=True)
class Measurement:
    """An idle process after so many runs of the soak."""

    n_runs: int
    resident_mb: float
    threads: int
    descriptors: int


def measure(pid: int, n_runs: int) -> Measurement:
    """What the kernel says of a process, once two looks in a row agree on threads and descriptors."""
    before, deadline_s = _look(pid, n_runs), time.monotonic() + 5.0
    while True:
        time.sleep(0.05)
        now = _look(pid, n_runs)
        if (now.threads, now.descriptors) == (before.threads, before.descriptors) or time.monotonic() > deadline_s:
            return now
        before = now


def _look(pid: int, n_runs: int) -> Measurement:
    status = _status(pid)
    resident_mb = int(status["VmRSS"].split()[0]) * 1024 / 1e6
    return Measurement(n_runs, resident_mb, int(status["Threads"]), len(os.listdir(f"/proc/{pid}/fd")))


def _status(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}


def ends_in_order(process: Process) -> bool:
    """Whether SIGTERM would find the script's own handler, or no script any more."""
    try:
        caught = int(_status(process.pid)["SigCgt"], 16)
    except (FileNotFoundError, ProcessLookupError):
        return True
    return bool(caught & 1 << (signal.SIGTERM - 1))


@dataclass
class Life:
    """One process of a node, from its start to its end."""

    process: Process
    measurements: list[Measurement] = field(default_factory=list)

    @property
    def second_half(self) -> list[Measurement]:
        return self.measurements[len(self.measurements) // 2 :]

    @property
    def slope(self) -> float:
        """MB of resident memory per 100 runs, fitted over the second half."""
        half = self.second_half
        return 100 * statistics.linear_regression([m.n_runs for m in half], [m.resident_mb for m in half]).slope

    def check(self) -> None:
        assert "Traceback" not in self.process.stderr, self.process.stderr
        if len(self.measurements) < FEWEST_TO_FIT:
            return
        assert self.slope < MOST_MB_PER_100_RUNS, f"memory grows: {self}"
        first = self.measurements[: len(self.measurements) // 2]
        for what in ("threads", "descriptors"):
            assert max(_values(self.second_half, what)) <= max(_values(first, what)), f"{what} grow: {self}"

    def __str__(self) -> str:
        if not self.measurements:
            return "never idle"
        resident = _values(self.measurements, "resident_mb")
        slope = f", {self.slope:+.2f} MB/100 runs" if len(self.measurements) >= FEWEST_TO_FIT else ""
        return (
            f"{len(resident)} measurements, resident {resident[0]:.1f} -> {resident[len(resident) // 2]:.1f}"
            f" -> {resident[-1]:.1f} MB (first, middle, last){slope},"
            f" threads {_counts(_values(self.measurements, 'threads'))},"
            f" descriptors {_counts(_values(self.measurements, 'descriptors'))}"
        )


def _values(measurements: list[Measurement], what: str) -> list[float]:
    return [getattr(measurement, what) for measurement in measurements]


def _counts(values: list[float]) -> str:
    return ", ".join(f"{value} ({n}x)" for value, n in sorted(Counter(values).items()))


# ---- what is asked of the nodes


@dataclass(frozen=True)
class Order:
    """What a starter is to generate. The number of slots is not part of it: it changes no token."""

    prompts: Path
    n_samples: int
    n_tokens: int
    seed: int | None  # None: greedy

    @property
    def options(self) -> tuple[object, ...]:
        sampling = ("--temperature", 0) if self.seed is None else ("--seed", self.seed)
        length = ("--n-samples", self.n_samples, "--n-tokens", self.n_tokens)
        return ("--prompt", f"FILE:{self.prompts}", *length, *sampling, "--dtype", "float32")


def draw_order(chance: random.Random, prompts: Path) -> Order:
    n_samples = chance.randint(1, 8)
    texts = [
        "".join(chance.choices(string.ascii_letters, k=chance.choice((1, 20, 150, 300)))) for _ in range(n_samples)
    ]
    prompts.write_text("\n\n".join(texts))
    return Order(prompts, n_samples, chance.randint(8, 120), chance.choice((None, chance.randrange(1000))))


@dataclass(frozen=True)
class Reference:
    """The tokens of an order on one node, and how long that took."""

    tokens: list[list[int]]
    seconds: float


# ---- the soak


class Soak:
    """Long-lived secondaries, and the runs that they have served."""

    def __init__(self, folder: Path, scripts: Scripts, seed: int, n_orders: int = 24) -> None:
        self._folder, self._scripts, self._chance = folder, scripts, random.Random(seed)
        self._model = make_model(folder / "org" / "soak", seed=11, block_size=512)
        self._alone = write_network(folder / "alone.json", 1)
        self._network = write_network(folder / "net.json", 3)
        self._orders = [draw_order(self._chance, folder / f"prompts{i}.txt") for i in range(n_orders)]
        self._references: dict[Order, Reference] = {}
        self.counts: Counter[str] = Counter()
        self.cancel_s: list[float] = []
        self.lives = [[Life(self._start_secondary(index))] for index in (0, 1)]

    def play_for(self, seconds: float) -> None:
        """Runs with random blows, some of them cancelled."""
        end_s = time.monotonic() + seconds
        while time.monotonic() < end_s:
            (blow,) = self._chance.choices(("none", "kill", "stop"), (0.75, 0.1, 0.15))
            self.play(blow, cancelled=self._chance.random() < 0.25)

    def play(self, blow: Blow, *, cancelled: bool) -> None:
        """One run, whose samples are compared, or which is cancelled. Afterwards the nodes are idle, and measured."""
        order, output = self._chance.choice(self._orders), self._folder / f"run{self.counts['runs']}.jsonl"
        reference = self._reference(order)
        slots = ("--max-slots", self._chance.randint(1, order.n_samples)) if self._chance.random() < 0.5 else ()
        timeouts = ("--peer-timeout", 2, "--node-timeout", 30, "--keep-nodes")
        starter = self._start_starter(self._network.path, order, output, *slots, *timeouts)
        self.counts["runs"] += 1
        if blow != "none":
            self._sleep_within(reference.seconds)
            self._kill_one() if blow == "kill" else self._stop_one()
        result = self._cancel(starter, reference.seconds) if cancelled else starter.result(RUN_TIMEOUT_S)
        self._check(result, output, reference)
        self._await_idle()
        for lives in self.lives:
            lives[-1].measurements.append(measure(lives[-1].process.pid, self.counts["runs"]))

    def check(self) -> None:
        """No life of a node has a traceback or grows."""
        for lives in self.lives:
            for life in lives:
                life.check()

    def __str__(self) -> str:
        names = ("runs", "cancels", "kills", "stops", "recoveries", "samples", "tokens")
        lines = [", ".join(f"{self.counts[name]} {name}" for name in names)]
        if self.cancel_s:
            median_s, most_s = statistics.median(self.cancel_s), max(self.cancel_s)
            lines.append(f"cancelled runs ended after {median_s:.2f} s (median), {most_s:.2f} s (most)")
        for index, lives in enumerate(self.lives):
            longest = max(lives, key=lambda life: len(life.measurements))
            lines.append(f"secondary {index}, the longest of {len(lives)} lives: {longest}")
        return "\n".join(lines)

    # ---- runs

    def _reference(self, order: Order) -> Reference:
        if order not in self._references:
            output = order.prompts.with_suffix(".jsonl")
            result = self._start_starter(self._alone.path, order, output).result(RUN_TIMEOUT_S)
            assert result.code == 0, result.stderr
            tokens = [sample["tokens"] for sample in read_samples(output)[0]]
            self._references[order] = Reference(tokens, result.seconds)
        return self._references[order]

    def _start_starter(self, network: Path, order: Order, output: Path, *options: object) -> Process:
        where = ("--ckpt", self._model, "--nodes-config", network, "--output", output)
        return self._scripts.start("starter.py", *where, *order.options, *options)

    def _cancel(self, starter: Process, most_s: float) -> Result:
        """Send a signal at a random moment from when the script handles it; it may come too late."""
        wait_until(lambda: ends_in_order(starter), 30, "the starter handles signals")
        self._sleep_within(most_s)
        number = self._chance.choice(list(CANCELLED))
        sent_s = time.monotonic()
        starter.send_signal(number)
        result = starter.result(CANCEL_TIMEOUT_S)
        assert result.code in (0, CANCELLED[number]), f"{number.name}: {result}"
        if result.code:
            self.counts["cancels"] += 1
            self.cancel_s.append(time.monotonic() - sent_s)
        return result

    def _sleep_within(self, run_s: float) -> None:
        time.sleep(self._chance.uniform(0, 1.5 * run_s))

    def _check(self, result: Result, output: Path, reference: Reference) -> None:
        """All samples are as they should be; of a cancelled run there may be less."""
        assert "Traceback" not in result.stderr, result.stderr
        if result.code in CANCELLED.values():
            return
        assert result.code == 0, result.stderr
        samples, summary = read_samples(output)
        assert {sample["finish_reason"] for sample in samples} <= {"length", "stop"}, samples
        assert [sample["tokens"] for sample in samples] == reference.tokens, result.stderr
        self.counts.update(samples=len(samples), tokens=summary["n_tokens"], recoveries=summary["recoveries"])

    # ---- nodes

    def _start_secondary(self, index: int) -> Process:
        options = ("-v", "--cache-dir", self._folder / "cache", "--dtype", "float32")
        return self._scripts.start("secondary.py", *options, "--nodes-config", self._network.path, index)

    def _kill_one(self) -> None:
        self.lives[1][-1].process.kill()
        time.sleep(self._chance.choice((0.0, 0.5, 2.0)))
        self.lives[1].append(Life(self._start_secondary(1)))
        self.counts["kills"] += 1

    def _stop_one(self) -> None:
        process = self._chance.choice(self.lives)[-1].process
        process.send_signal(signal.SIGSTOP)
        time.sleep(self._chance.uniform(1, 3))
        process.send_signal(signal.SIGCONT)
        self.counts["stops"] += 1

    def _await_idle(self) -> None:
        for node, lives in enumerate(self.lives, 1):
            port = self._network.http_port(node)
            wait_until(
                lambda port=port: state_of(port) == "idle",
                IDLE_TIMEOUT_S,
                f"idle: {call(port)} {lives[-1].process.stderr}",
            )
