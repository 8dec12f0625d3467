"""SIGINT, SIGTERM, SIGHUP and /stop end a program in order, whatever it is doing.

`SIGNAL_MOMENTS` (8) is how many starters get a signal at a random moment, drawn from `SIGNAL_SEED` (0).
"""

import contextlib
import json
import os
import random
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from mdi.cli.signals import GRACE_S
from support.runs import ENDLESS, assert_serves_again, start_run, wait_until_generating
from support.scripts import (
    Network,
    Process,
    Scripts,
    call,
    ports_in_use,
    read_samples,
    wait_until,
    write_network,
)
from support.soak import ends_in_order

pytestmark = pytest.mark.slow

SIGNALS = [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
N_MOMENTS, SEED = int(os.environ.get("SIGNAL_MOMENTS", "8")), int(os.environ.get("SIGNAL_SEED", "0"))
END_S = GRACE_S - 1.0  # many times what a script takes; at the end of the grace it would end with the same code


def end_with(process: Process, number: signal.Signals, code: int) -> None:
    """Send a signal, again and again as a held key does, and check that the process ends in time and in order."""
    deadline = time.monotonic() + END_S
    while process.alive and time.monotonic() < deadline:
        process.send_signal(number)
        time.sleep(0.002)
    assert not process.alive, f"it does not end: {process.stderr}"
    assert process.result(0).code == code, process.stderr
    assert_in_order(process)


def assert_in_order(process: Process) -> None:
    assert "Traceback" not in process.stderr and "Exception" not in process.stderr, process.stderr


@pytest.mark.parametrize(("number", "code"), SIGNALS)
def test_a_signal_ends_a_starter_that_waits(
    number: signal.Signals, code: int, scripts: Scripts, split: Path, tmp_path: Path
) -> None:
    network = write_network(tmp_path / "net.json", 3)
    starter = start_run(scripts, network, split)
    starter.wait_for("waiting for secondary 0")
    end_with(starter, number, code)
    assert ports_in_use(network.ports) == []


@pytest.mark.parametrize(("number", "code"), SIGNALS)
def test_a_signal_ends_a_starter_that_imports(
    number: signal.Signals, code: int, scripts: Scripts, split: Path, tmp_path: Path
) -> None:
    starter = start_cold(scripts, split, write_network(tmp_path / "net.json", 3))
    maps = Path(f"/proc/{starter.pid}/maps")
    wait_until(lambda: "libtorch_cpu" in maps.read_text(), 60, "torch is imported")
    end_with(starter, number, code)


def start_cold(scripts: Scripts, model: Path, network: Network) -> Process:
    return scripts.start("starter.py", "--ckpt", model, "--nodes-config", network.path, cold=True)


@pytest.mark.parametrize(("number", "code"), SIGNALS)
def test_a_signal_ends_a_starter_whose_template_runs_without_end(
    number: signal.Signals, code: int, scripts: Scripts, alone: Network, model: Path
) -> None:
    loop = "{% for i in range(99999) %}"
    (model / "chat_template.jinja").write_text(loop * 4 + "{% endfor %}" * 4)
    starter = start_run(scripts, alone, model)
    worker = wait_for_busy_child(starter)
    end_with(starter, number, code)
    assert not worker.is_running()


def wait_for_busy_child(process: Process) -> psutil.Process:
    """The one child of a process, once it computes: to start it takes a third of the time that is waited for."""

    def busy() -> list[psutil.Process]:
        assert process.alive, process.stderr
        return [child for child in psutil.Process(process.pid).children() if child.cpu_times().user > 1.0]

    wait_until(busy, 60, "a child of it computes")
    return busy()[0]


@pytest.mark.parametrize(("number", "code"), SIGNALS)
def test_a_signal_ends_a_starter_whose_nodes_load(
    number: signal.Signals,
    code: int,
    scripts: Scripts,
    tiny: Path,
    tmp_path: Path,
    loading_secondary: tuple[Network, threading.Event],
) -> None:
    network, loading = loading_secondary
    starter = start_run(scripts, network, Path(shutil.copytree(tiny, tmp_path / "org" / "copy")))
    assert loading.wait(60), starter.stderr
    end_with(starter, number, code)
    assert ports_in_use(network.ports[:2]) == []


@pytest.mark.parametrize(("number", "code"), SIGNALS)
def test_a_signal_ends_a_starter_that_generates(
    number: signal.Signals,
    code: int,
    kept: tuple[Network, list[Process]],
    scripts: Scripts,
    long_model: Path,
) -> None:
    network, secondaries = kept
    starter = start_run(scripts, network, long_model, *ENDLESS)
    wait_until_generating(network, starter)
    end_with(starter, number, code)
    assert ports_in_use(network.ports[:2]) == []
    assert starter.stdout.count("--- sample") == 3  # what there is of each sample is shown
    assert "Generated" in starter.stdout
    assert_serves_again(scripts, network, long_model)
    assert all(secondary.alive for secondary in secondaries)


def test_a_run_goes_on_without_its_terminal_and_a_hangup_ends_it_in_order(
    kept: tuple[Network, list[Process]], scripts: Scripts, long_model: Path, tmp_path: Path
) -> None:
    network, secondaries = kept
    terminal, theirs = os.openpty()
    output = tmp_path / "out.jsonl"
    where = ("--ckpt", long_model, "--nodes-config", network.path, "--output", output, "--stream")
    starter = scripts.start("starter.py", *where, *ENDLESS, stdout=theirs)
    os.close(theirs)
    wait_until_generating(network, starter)
    os.close(terminal)  # from now on the text cannot be written
    n_before = n_tokens(network)
    wait_until(lambda: n_tokens(network) > n_before + 30, 60, "it goes on")
    end_with(starter, signal.SIGHUP, 129)
    samples, summary = read_samples(output)
    assert [sample["finish_reason"] for sample in samples] == ["error"] * 3
    assert sum(len(sample["tokens"]) for sample in samples) == summary["n_tokens"] > n_before
    assert_serves_again(scripts, network, long_model)
    assert all(secondary.alive for secondary in secondaries)


def n_tokens(network: Network) -> int:
    return int(call(network.http_port(0)).get("tokens") or 0)


def test_a_killed_starter_loses_no_sample_that_was_finished(
    scripts: Scripts, long_model: Path, alone: Network, tmp_path: Path
) -> None:
    output = tmp_path / "out.jsonl"
    where = ("--nodes-config", alone.path, "--ckpt", long_model, "--output", output)
    starter = scripts.start("sample.py", *where, "--n-samples", 500, "--max-slots", 1, "--n-tokens", 20)
    wait_until(lambda: output.is_file() and output.read_bytes().count(b"\n") >= 3, 60, "three samples")
    starter.kill()
    lines = output.read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["sample"] for line in lines] == list(range(len(lines)))


def test_an_interrupted_run_ends_its_secondaries(scripts: Scripts, long_model: Path, tmp_path: Path) -> None:
    network = write_network(tmp_path / "net.json", 3)
    secondaries = scripts.secondaries(network)
    starter = start_run(scripts, network, long_model, "--n-tokens", 29_000)
    wait_until_generating(network, starter)
    starter.send_signal(signal.SIGINT)
    assert starter.result(END_S).code == 130
    for secondary in secondaries:
        result = secondary.result(END_S)
        assert result.code == 0
        assert "Traceback" not in result.stderr
    assert ports_in_use(network.ports) == []


@pytest.mark.parametrize(("number", "code"), SIGNALS)
def test_a_signal_ends_a_secondary_that_waits(
    number: signal.Signals, code: int, scripts: Scripts, tmp_path: Path
) -> None:
    network = write_network(tmp_path / "net.json", 2)
    (secondary,) = scripts.secondaries(network)
    secondary.wait_for("waiting for a starter")
    end_with(secondary, number, code)
    assert ports_in_use(network.ports) == []


@pytest.mark.parametrize(("number", "code"), SIGNALS)
def test_a_signal_ends_a_secondary_that_imports(
    number: signal.Signals, code: int, scripts: Scripts, tmp_path: Path
) -> None:
    network = write_network(tmp_path / "net.json", 2)
    (secondary,) = scripts.secondaries(network, cold=True)
    maps = Path(f"/proc/{secondary.pid}/maps")
    wait_until(lambda: "libtorch_cpu" in maps.read_text(), 60, "torch is imported")
    end_with(secondary, number, code)


@pytest.mark.parametrize(("number", "code"), SIGNALS)
def test_a_signal_ends_a_secondary_in_a_session(
    number: signal.Signals, code: int, scripts: Scripts, long_model: Path, tmp_path: Path
) -> None:
    network = write_network(tmp_path / "net.json", 3)
    secondaries = scripts.secondaries(network)
    starter = start_run(scripts, network, long_model, *ENDLESS)
    wait_until_generating(network, starter)
    end_with(secondaries[0], number, code)
    starter.wait_for("waiting up to 60 s for it")
    assert "it was stopped" in starter.stderr or "connection lost" in starter.stderr
    assert ports_in_use([network.http_port(1), network.ring_port(1)]) == []
    end_with(starter, signal.SIGTERM, 143)  # while it waits for that node
    assert starter.stdout.count("--- sample") == 3


# ---- at random moments


def test_a_signal_at_any_moment_ends_a_starter_in_order(
    kept: tuple[Network, list[Process]], scripts: Scripts, split: Path, tmp_path: Path
) -> None:
    network, secondaries = kept
    nowhere = write_network(tmp_path / "nowhere.json", 3)
    timeouts = ("--peer-timeout", 1, "--node-timeout", 30)
    run = (*timeouts, "--n-tokens", 30, "--keep-nodes", "--output", tmp_path / "out.jsonl")
    life_s = start_run(scripts, network, split, *run).result().seconds
    chance = random.Random(SEED)
    for _ in range(N_MOMENTS):
        with contextlib.ExitStack() as stack:
            phase = chance.choice(["forming", "whole life", "recovering"])
            starter = start_run(scripts, nowhere if phase == "forming" else network, split, *run)
            wait_until(lambda starter=starter: ends_in_order(starter), 30, "it handles signals")
            if phase == "recovering":
                time.sleep(life_s / 2)
                stack.enter_context(stopped(chance.choice(secondaries)))
            time.sleep(chance.uniform(0, 1.5 * life_s))
            number, code = chance.choice(SIGNALS)
            starter.send_signal(number)
            assert starter.wait(END_S) in (0, code), starter.stderr
            assert_in_order(starter)
    assert ports_in_use([*nowhere.ports, *network.ports[:2]]) == []
    assert_serves_again(scripts, network, split)


@contextlib.contextmanager
def stopped(process: Process) -> Iterator[None]:
    process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        process.send_signal(signal.SIGCONT)


# ---- over HTTP


def is_at_rest(process: Process) -> bool:
    """Whether the main thread has used no CPU in the last tenths of a second."""
    used = [main_thread_s(process)]
    for _ in range(3):
        time.sleep(0.1)
        used.append(main_thread_s(process))
    return used[0] == used[-1]


def main_thread_s(process: Process) -> float:
    main = next(thread for thread in psutil.Process(process.pid).threads() if thread.id == process.pid)
    return float(main.user_time + main.system_time)


def test_a_starter_is_stopped_over_http_too(scripts: Scripts, split: Path, tmp_path: Path) -> None:
    network = write_network(tmp_path / "net.json", 3)
    starter = start_run(scripts, network, split)
    starter.wait_for("waiting for secondary 1")
    wait_until(lambda: is_at_rest(starter), 60, "its main thread waits")
    call(network.http_port(0), "PUT", "/stop")
    assert starter.result(END_S).code == 143


def test_a_secondary_is_stopped_over_http(scripts: Scripts, tmp_path: Path) -> None:
    network = write_network(tmp_path / "net.json", 2)
    (secondary,) = scripts.secondaries(network)
    secondary.wait_for("waiting for a starter")
    assert call(network.http_port(1), "PUT", "/stop") == {"stopping": True}
    assert secondary.result(END_S).code == 0
