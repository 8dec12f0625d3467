"""SIGINT, SIGTERM and /stop end a program in order, whatever it is doing."""

import shutil
import signal
import threading
import time
from pathlib import Path

import psutil
import pytest

from mdi.cli.script import GRACE_S
from support.runs import ENDLESS, assert_serves_again, start_run, wait_until_generating
from support.scripts import (
    Network,
    Process,
    Scripts,
    call,
    ports_in_use,
    wait_until,
    write_network,
)

pytestmark = pytest.mark.slow

SIGNALS = [(signal.SIGINT, 130), (signal.SIGTERM, 143)]
END_S = GRACE_S - 1.0  # many times what a script takes; at the end of the grace it would end with the same code


def end_with(process: Process, number: signal.Signals, code: int) -> None:
    """Send a signal, again and again as a held key does, and check that the process ends in time and in order."""
    deadline = time.monotonic() + END_S
    while process.alive and time.monotonic() < deadline:
        process.send_signal(number)
        time.sleep(0.002)
    assert not process.alive, f"it does not end: {process.stderr}"
    result = process.result(0)
    assert result.code == code, result.stderr
    assert "Traceback" not in result.stderr and "Exception" not in result.stderr, result.stderr


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
