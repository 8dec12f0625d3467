"""A server under random users while its nodes are killed: `make soak-serve`, and a short form of it.

`SOAK_SECONDS` (3600) is how long, `SOAK_SEED` (0) what happens.
"""

import asyncio
import os
import random
import re
import statistics
import time
import urllib.request
from collections import Counter
from pathlib import Path

import pytest

from support.models import generate_cached, make_model, reference_model
from support.scripts import Network, Process, Scripts, WarmPython, call, free_ports, wait_until, write_network
from support.soak import Measurement, measure
from support.user_soak import KEY, MODEL, Answer, Site, User
from support.vocabularies import local_tokenizer

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="measured in /proc")]

SECONDS, SEED = float(os.environ.get("SOAK_SECONDS", "3600")), int(os.environ.get("SOAK_SEED", "0"))
N_USERS, N_SLOTS, MAX_QUEUE = 16, 6, 8  # now and then more than there is room for
ROUND_S, KILL_EVERY_S = 20.0, 120.0
IDLE_TIMEOUT_S, READY_TIMEOUT_S = 60.0, 120.0
FEWEST_TO_FIT = 20  # measurements: in fewer all is start
MAX_GROWTH_MB = 8.0  # of resident memory, over the second half


class ServingSoak:
    """A ring of three processes that serves, its users, and what is measured of the process that serves."""

    def __init__(self, folder: Path, scripts: Scripts, seed: int, n_users: int = N_USERS) -> None:
        self._n_users, self._chance, self._scripts, self._folder = n_users, random.Random(seed), scripts, folder
        model = make_model(folder / "org" / MODEL, seed=11, block_size=256)
        self._network: Network = write_network(folder / "net.json", 3)
        (port,) = free_ports(1)
        self._site = Site(port, answers_of(model, self._chance))
        self._secondaries = [self._start_secondary(index) for index in (0, 1)]
        self._starter: Process = scripts.start(
            "starter.py", "-v", "--ckpt", model, "--nodes-config", self._network.path, "--dtype", "float32",
            "--serve", f"127.0.0.1:{port}", "--api-key", KEY, "--max-slots", N_SLOTS, "--max-queue", MAX_QUEUE,
            "--peer-timeout", 2, "--node-timeout", 30,
        )  # fmt: skip
        self.counts: Counter[str] = Counter()
        self.measurements: list[Measurement] = []
        self._starter.wait_for("serving ", READY_TIMEOUT_S)

    def play_for(self, seconds: float, round_s: float = ROUND_S, kill_every_s: float = KILL_EVERY_S) -> None:
        """Rounds of users, after each of which the server is idle, and measured."""
        end_s, kill_s = time.monotonic() + seconds, time.monotonic() + kill_every_s / 2
        while time.monotonic() < end_s:
            is_deadly = time.monotonic() >= kill_s
            asyncio.run(self._round(round_s, is_deadly))
            if is_deadly:
                kill_s += kill_every_s
            self._await_idle()
            self.counts["rounds"] += 1
            self.measurements.append(measure(self._starter.pid, self.counts["rounds"]))

    def check(self) -> None:
        """Nothing grows, and no process has a traceback. What users see they check themselves."""
        for process in (self._starter, *self._secondaries):
            assert process.alive and "Traceback" not in process.stderr, process.stderr[-5000:]
        if len(self.measurements) < FEWEST_TO_FIT:
            return
        half = len(self.measurements) // 2
        first, second = self.measurements[:half], self.measurements[half:]
        for what in ("threads", "descriptors"):
            assert max(getattr(m, what) for m in second) <= max(getattr(m, what) for m in first), f"{what} grow: {self}"
        assert self.growth_mb < MAX_GROWTH_MB, f"memory grows: {self}"

    @property
    def growth_mb(self) -> float:
        """Of resident memory over the second half of the soak, along a fitted line."""
        half = self.measurements[len(self.measurements) // 2 :]
        rounds, resident_mb = [m.n_runs for m in half], [m.resident_mb for m in half]
        return statistics.linear_regression(rounds, resident_mb).slope * (rounds[-1] - rounds[0])

    def __str__(self) -> str:
        lines = [", ".join(f"{n} {name.replace('_', ' ')}" for name, n in sorted(self.counts.items()))]
        if len(self.measurements) > 1:
            resident_mb = [measurement.resident_mb for measurement in self.measurements]
            told = (resident_mb[0], resident_mb[len(resident_mb) // 2], resident_mb[-1])
            resident = " -> ".join(f"{value:.1f}" for value in told) + " MB (first, middle, last)"
            if len(self.measurements) >= FEWEST_TO_FIT:
                resident += f", {self.growth_mb:+.2f} MB over the second half"
            threads, descriptors = (
                f"{min(values)} to {max(values)}"
                for values in ([m.threads for m in self.measurements], [m.descriptors for m in self.measurements])
            )
            lines.append(f"the starter: resident {resident}, {threads} threads, {descriptors} descriptors")
        return "\n".join(lines)

    # ---- what happens

    async def _round(self, seconds: float, is_deadly: bool) -> None:
        end_s = time.monotonic() + seconds

        async def act(user: User) -> None:
            while time.monotonic() < end_s:
                await user.act()

        is_patient = seconds >= ROUND_S
        users = [
            User(self._site, random.Random(self._chance.random()), self.counts, is_patient=is_patient)
            for _ in range(self._n_users)
        ]
        acts = [asyncio.create_task(act(user)) for user in users]
        if is_deadly:
            await asyncio.sleep(self._chance.uniform(0.1, 0.5) * seconds)
            await self._kill_one()
        await asyncio.gather(*acts)

    async def _kill_one(self) -> None:
        index = self._chance.randrange(len(self._secondaries))
        assert "Traceback" not in self._secondaries[index].stderr, self._secondaries[index].stderr
        self._secondaries[index].kill()
        await asyncio.sleep(self._chance.choice((0.0, 0.5, 2.0)))
        self._secondaries[index] = self._start_secondary(index)
        self.counts["kills"] += 1

    def _start_secondary(self, index: int) -> Process:
        options = ("-v", "--cache-dir", self._folder / "cache", "--dtype", "float32")
        return self._scripts.start("secondary.py", *options, "--nodes-config", self._network.path, index)

    def _await_idle(self) -> None:
        """Whoever left has been noticed, and the ring is well."""
        wait_until(
            lambda: call(self._site.port, path="/health").get("status") == "ready", IDLE_TIMEOUT_S, "the ring is well"
        )
        wait_until(lambda: n_open(self._site.port) == 0, IDLE_TIMEOUT_S, "no sample is left")


def n_open(port: int) -> float:
    """Samples that wait or are generated, as the server's counters say."""
    request = urllib.request.Request(f"http://127.0.0.1:{port}/metrics", headers={"Authorization": f"Bearer {KEY}"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        found = re.findall(r"^mdi_(?:running|waiting)_samples (.+)$", answer.read().decode(), re.MULTILINE)
    assert len(found) == 2
    return sum(map(float, found))


def answers_of(model: Path, chance: random.Random, n: int = 12) -> list[Answer]:
    """Prompts, with what litgpt generates from them greedily: none ends early."""
    tokenizer, reference = local_tokenizer(model), reference_model(model)
    answers: list[Answer] = []
    while len(answers) < n:
        prompt = [chance.randrange(3, 100) for _ in range(chance.choice((3, 20, 150)))]
        tokens = generate_cached(reference, prompt, chance.randint(8, 60))
        if tokenizer.eos_id not in tokens:
            answers.append(Answer(tuple(prompt), tokenizer.decode(tokens, continues=True), len(tokens)))
    return answers


@pytest.mark.soak
def test_a_server_that_random_users_use(tmp_path: Path, warm: WarmPython, capsys: pytest.CaptureFixture[str]) -> None:
    with Scripts(tmp_path / "processes", warm) as scripts:
        soak = ServingSoak(tmp_path, scripts, SEED)
        try:
            soak.play_for(SECONDS)
        finally:
            with capsys.disabled():
                print(f"\n{soak}")
        soak.check()


def test_a_short_soak_of_a_server(tmp_path: Path, scripts: Scripts) -> None:
    soak = ServingSoak(tmp_path, scripts, seed=3, n_users=6)
    soak.play_for(0.1, round_s=1.0, kill_every_s=0.0)
    soak.check()
    assert soak.counts["kills"] == 1 and soak.counts["right_texts"]
