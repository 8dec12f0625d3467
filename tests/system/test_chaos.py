"""Real processes to which anything happens at random moments; the text is that of a run in which nothing happened.

`make chaos` plays `CHAOS_RUNS` games (50), from the seed `CHAOS_SEED` (0) on; each game's number is its seed.
"""

import contextlib
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from support.faults import damage_a_file, frozen_main_thread, other_program_at
from support.models import make_model
from support.scripts import (
    Network,
    Process,
    Scripts,
    WarmPython,
    call,
    ports_in_use,
    read_samples,
    wait_until,
    write_network,
)

pytestmark = pytest.mark.slow

N_RUNS, FIRST_SEED = int(os.environ.get("CHAOS_RUNS", "50")), int(os.environ.get("CHAOS_SEED", "0"))
N_TOKENS, N_SAMPLES = 120, 3
RUN_TIMEOUT_S = 90.0
PAUSE_S = {"brief": 0.7, "long": 3.0}  # shorter and longer than the peer timeout


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("models") / "org" / "chaos", seed=11, block_size=512)


@pytest.fixture(scope="module")
def undisturbed(model: Path, warm: WarmPython, tmp_path_factory: pytest.TempPathFactory) -> dict[bool, list[list[int]]]:
    """The tokens of each sample, greedy (True) and seeded, on one node, where nothing can break."""
    folder = tmp_path_factory.mktemp("undisturbed")
    network = write_network(folder / "net.json", 1)
    with Scripts(folder / "processes", warm) as scripts:
        return {
            greedy: tokens_of(start(scripts, network, model, folder / f"{greedy}.jsonl", greedy))
            for greedy in (True, False)
        }


def start(scripts: Scripts, network: Network, model: Path, output: Path, greedy: bool) -> tuple[Process, Path]:
    sampling = ("--temperature", 0) if greedy else ("--seed", 21)
    timeouts = ("--peer-timeout", 1.5, "--node-timeout", 5)
    run = ("--n-samples", N_SAMPLES, "--n-tokens", N_TOKENS, "--ignore-eos", "--dtype", "float32", "--keep-nodes")
    where = ("--ckpt", model, "--nodes-config", network.path, "--output", output)
    return scripts.start("starter.py", *where, *run, *sampling, *timeouts), output


def tokens_of(run: tuple[Process, Path]) -> list[list[int]]:
    process, output = run
    result = process.result(RUN_TIMEOUT_S)
    assert result.code == 0, result.stderr
    assert "Traceback" not in result.stderr
    return [sample["tokens"] for sample in read_samples(output)[0]]


@dataclass
class Game:
    """One run on three processes, and what happens to them."""

    seed: int
    network: Network
    scripts: Scripts
    secondaries: list[Process]
    starter: Process
    events: list[str]

    def play(self) -> None:
        """One to three blows, at random moments of the generation."""
        chance = random.Random(self.seed)
        at = sorted(chance.sample(range(1, N_SAMPLES * N_TOKENS * 3 // 4), chance.randint(1, 3)))
        for n_tokens in at:
            if not self._wait_for_tokens(n_tokens):
                return
            chance.choice(self._blows())(chance)

    def _blows(self) -> list[Callable[[random.Random], None]]:
        return [
            self.kill_and_restart,
            self.hang_up_and_restart,
            self.kill_and_impersonate,
            self.kill_and_damage,
            self.kill_for_good,
            self.stop_secondary,
            self.stop_starter,
            *([self.freeze_secondary] if sys.platform == "linux" else []),
        ]

    def _wait_for_tokens(self, n_tokens: int) -> bool:
        while self.starter.alive:
            if int(call(self.network.http_port(0)).get("tokens") or 0) >= n_tokens:
                return True
            time.sleep(0.005)
        return False

    def kill_and_restart(self, chance: random.Random) -> None:
        index = chance.randrange(len(self.secondaries))
        self.events.append(f"secondary {index} killed, and started again")
        self.secondaries[index].kill()
        time.sleep(chance.choice([0.0, 0.5, 2.0]))
        self.secondaries[index] = start_secondary(self.scripts, self.network, index)

    def hang_up_and_restart(self, chance: random.Random) -> None:
        index = chance.randrange(len(self.secondaries))
        self.events.append(f"secondary {index} ended by a hangup, and started again")
        if self.secondaries[index].alive:
            self.secondaries[index].send_signal(signal.SIGHUP)
            assert self.secondaries[index].wait(RUN_TIMEOUT_S) == 129
        self.secondaries[index] = start_secondary(self.scripts, self.network, index)

    def kill_and_impersonate(self, chance: random.Random) -> None:
        index = chance.randrange(len(self.secondaries))
        self.events.append(f"secondary {index} killed, another program at its HTTP port, and started again")
        self.secondaries[index].kill()
        with other_program_at(self.network.http_port(index + 1)):
            time.sleep(chance.choice([0.5, 2.0]))
        self.secondaries[index] = start_secondary(self.scripts, self.network, index)

    def kill_and_damage(self, chance: random.Random) -> None:
        index = chance.randrange(len(self.secondaries))
        self.events.append(f"secondary {index} killed, a chunk of the cache damaged, and started again")
        self.secondaries[index].kill()
        damage_a_file(self.network.path.parent / "cache", "*.pth", chance)
        self.secondaries[index] = start_secondary(self.scripts, self.network, index)

    def freeze_secondary(self, chance: random.Random) -> None:
        process = self.secondaries[chance.randrange(len(self.secondaries))]
        seconds = chance.choice([0.7, 8.0])  # shorter and longer than until a message counts as overdue
        self.events.append(f"the main thread of a secondary frozen for {seconds} s")
        with contextlib.suppress(PermissionError):  # a container may forbid to trace processes
            if process.alive:
                with frozen_main_thread(process.pid):
                    time.sleep(seconds)

    def kill_for_good(self, chance: random.Random) -> None:
        index = chance.randrange(len(self.secondaries))
        self.events.append(f"secondary {index} killed")
        self.secondaries[index].kill()

    def stop_secondary(self, chance: random.Random) -> None:
        self._pause(self.secondaries[chance.randrange(len(self.secondaries))], chance, "a secondary")

    def stop_starter(self, chance: random.Random) -> None:
        self._pause(self.starter, chance, "the starter")

    def _pause(self, process: Process, chance: random.Random, name: str) -> None:
        how = chance.choice(sorted(PAUSE_S))
        self.events.append(f"{name} stopped for a {how} moment")
        process.send_signal(signal.SIGSTOP)
        time.sleep(PAUSE_S[how])
        process.send_signal(signal.SIGCONT)


def start_secondary(scripts: Scripts, network: Network, index: int) -> Process:
    cache = network.path.parent / "cache"
    options = ("-v", "--cache-dir", cache, "--dtype", "float32")
    return scripts.start("secondary.py", *options, "--nodes-config", network.path, index)


def play(seed: int, model: Path, undisturbed: dict[bool, list[list[int]]], warm: WarmPython, folder: Path) -> None:
    network = write_network(folder / "net.json", 3)
    with contextlib.ExitStack() as stack:
        scripts = stack.enter_context(Scripts(folder / "processes", warm))
        secondaries = [start_secondary(scripts, network, index) for index in (0, 1)]
        greedy = seed % 2 == 0
        starter, output = start(scripts, network, model, folder / "out.jsonl", greedy)
        game = Game(seed, network, scripts, secondaries, starter, [])
        game.play()
        tokens = tokens_of((starter, output))
        assert game.events, "nothing happened"
        assert tokens == undisturbed[greedy], f"game {seed}: {game.events}"
        for process in game.secondaries:
            assert "Traceback" not in process.stderr, process.stderr
    assert ports_in_use(network.ports) == []


@pytest.mark.chaos
@pytest.mark.parametrize("seed", range(FIRST_SEED, FIRST_SEED + N_RUNS))
def test_processes_killed_and_stopped_at_random_change_no_token(
    seed: int, model: Path, undisturbed: dict[bool, list[list[int]]], warm: WarmPython, tmp_path: Path
) -> None:
    play(seed, model, undisturbed, warm, tmp_path)


@pytest.mark.parametrize("seed", [1000, 1001, 1002])
def test_three_quick_games(
    seed: int, model: Path, undisturbed: dict[bool, list[list[int]]], warm: WarmPython, tmp_path: Path
) -> None:
    play(seed, model, undisturbed, warm, tmp_path)


@pytest.mark.parametrize("moment", ["generating", "recovering"])
def test_a_starter_that_is_killed_leaves_secondaries_that_wait(
    moment: str, model: Path, warm: WarmPython, undisturbed: dict[bool, list[list[int]]], tmp_path: Path
) -> None:
    network = write_network(tmp_path / "net.json", 3)
    with Scripts(tmp_path / "processes", warm) as scripts:
        secondaries = [start_secondary(scripts, network, index) for index in (0, 1)]
        starter, _ = start(scripts, network, model, tmp_path / "lost.jsonl", greedy=True)
        wait_until(lambda: int(call(network.http_port(0)).get("tokens") or 0) > 20, 60, "it generates")
        if moment == "recovering":
            secondaries[0].kill()
            starter.wait_for("secondary 0 (")
        starter.kill()
        if moment == "recovering":
            secondaries[0] = start_secondary(scripts, network, 0)
        for node in (1, 2):
            wait_until(lambda node=node: call(network.http_port(node)).get("state") == "idle", 60, f"node {node} waits")
        assert tokens_of(start(scripts, network, model, tmp_path / "out.jsonl", greedy=True)) == undisturbed[True]
        assert all(process.alive for process in secondaries)
    assert ports_in_use(network.ports) == []


def test_a_node_that_wakes_after_the_others_took_over_is_refused_and_waits(
    model: Path, warm: WarmPython, undisturbed: dict[bool, list[list[int]]], tmp_path: Path
) -> None:
    network = write_network(tmp_path / "net.json", 3)
    with Scripts(tmp_path / "processes", warm) as scripts:
        secondaries = [start_secondary(scripts, network, index) for index in (0, 1)]
        run = start(scripts, network, model, tmp_path / "out.jsonl", greedy=True)
        wait_until(lambda: int(call(network.http_port(0)).get("tokens") or 0) > 20, 60, "it generates")
        secondaries[1].send_signal(signal.SIGSTOP)
        run[0].wait_for("going on without secondary 1, which did not come back within 5 s")
        secondaries[1].send_signal(signal.SIGCONT)
        assert tokens_of(run) == undisturbed[True]
        summary = read_samples(run[1])[1]
        assert summary["recoveries"] == 1
        for node in (1, 2):
            wait_until(lambda node=node: call(network.http_port(node)).get("state") == "idle", 60, f"node {node} waits")
        assert tokens_of(start(scripts, network, model, tmp_path / "again.jsonl", greedy=True)) == undisturbed[True]
        assert "Traceback" not in secondaries[1].stderr
