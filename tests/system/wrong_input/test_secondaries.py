"""Secondaries that refuse and nodes that vanish: who and why stands in one line."""

import json
import shutil
import signal
from pathlib import Path

import pytest

from support.damage import flip_signs
from support.models import make_model
from support.runs import ENDLESS, NO_WAITING, assert_serves_again, start_run, wait_until_generating
from support.scripts import (
    Network,
    Process,
    Scripts,
    call,
    one_line_error,
    read_samples,
    state_of,
    wait_until,
    write_network,
)

pytestmark = pytest.mark.slow


def test_a_second_starter_is_told_whom_the_node_serves(
    kept: tuple[Network, list[Process]], scripts: Scripts, long_model: Path, tmp_path: Path
) -> None:
    network, _ = kept
    other = write_network(tmp_path / "net.json", 3)
    data = json.loads(other.path.read_text())
    data["nodes"]["secondary"] = network.nodes[1:]
    other.path.write_text(json.dumps(data))
    first = start_run(scripts, network, long_model, *ENDLESS)
    wait_until_generating(network, first)
    second = start_run(scripts, other, long_model, *NO_WAITING)
    address = rf"127\.0\.0\.1:{network.http_port(0)}"
    refusal = rf"secondary \d at .* refused: already serves the starter at {address} with"
    one_line_error(second.result(), 1, refusal, after="waiting for secondary")
    n_tokens = call(network.http_port(0))["tokens"]
    wait_until(lambda: call(network.http_port(0))["tokens"] > n_tokens + 5, 60, "the first run goes on")
    first.send_signal(signal.SIGINT)
    assert first.result().code == 130
    assert_serves_again(scripts, network, long_model)


def test_a_damaged_chunk_is_not_sent(kept: tuple[Network, list[Process]], scripts: Scripts, chunks: Path) -> None:
    """It is written anew from the whole model; without that the error names the file."""
    network, _ = kept
    chunk = chunks / "chunks" / "3nodes" / "model_secondary1.pth"
    flip_signs(chunk, "transformer.h.4.mlp.proj.weight")
    model = (chunks / "lit_model.pth").rename(chunks / "elsewhere")
    result = start_run(scripts, network, chunks, *NO_WAITING, "--keep-nodes").result()
    one_line_error(result, 1, rf"{chunk}: damaged: its tensors", after="no other can take")
    model.rename(chunks / "lit_model.pth")
    result = start_run(scripts, network, chunks, *NO_WAITING, "--keep-nodes").result()
    assert result.code == 0, result.stderr
    assert f"{chunk}: damaged" in result.stderr and "making it anew from lit_model.pth" in result.stderr


def test_a_chunk_of_another_model_is_refused_on_both_sides(scripts: Scripts, split: Path, tmp_path: Path) -> None:
    other = make_model(tmp_path / "org" / "other", seed=1)
    assert scripts.run("prepare_model.py", other, "--n-nodes", 2).code == 0
    assert scripts.run("prepare_model.py", split, "--n-nodes", 2).code == 0
    network = write_network(tmp_path / "net.json", 2)
    chunk = other / "chunks" / "2nodes" / "model_secondary0.pth"
    secondary = scripts.start("secondary.py", "--chunk", chunk, "--nodes-config", network.path, 0)
    secondary.wait_for("waiting for a starter")
    result = start_run(scripts, network, split, *NO_WAITING).result()
    one_line_error(result, 1, rf"secondary 0 at http.*: --chunk {chunk}: not the chunk \w+ that the starter's manifest")
    secondary.wait_for(f"--chunk {chunk}: not the chunk")
    assert state_of(network.http_port(1)) == "idle"
    assert "Traceback" not in secondary.stderr
    # A chunk of another shape, told by the first tensor that does not fit.
    wide = make_model(tmp_path / "org" / "wide", n_embd=64)
    assert scripts.run("prepare_model.py", wide, "--n-nodes", 2).code == 0
    result = start_run(scripts, network, wide, *NO_WAITING).result()
    one_line_error(result, 1, rf"secondary 0 at http.*: --chunk {chunk}: .* has the shape .* another model's file")


FINISHED_FIRST = "x" * 2000
UNEVEN = f"{FINISHED_FIRST}\n\nshort\n\nbrief\n"  # with a context of 2010 the first sample ends after 10 tokens


@pytest.fixture
def uneven(tmp_path: Path) -> list[object]:
    """Options of a run whose first sample ends early and whose others take long."""
    (tmp_path / "uneven.txt").write_text(UNEVEN)
    return ["--prompt", f"FILE:{tmp_path / 'uneven.txt'}", "--block-size", 2010, "--n-tokens", 2000, "--no-stream"]


without_model = shutil.ignore_patterns("lit_model.pth", "2nodes", "1nodes")


@pytest.mark.parametrize("lost", [0, 1])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGSTOP])
def test_a_node_lost_for_good_ends_the_run_with_its_name_where_nobody_can_take_over(
    lost: int, number: signal.Signals, scripts: Scripts, long_model: Path, tmp_path: Path, uneven: list[object]
) -> None:
    """The starter has its chunks and not the whole model."""
    chunks_alone = Path(shutil.copytree(long_model, tmp_path / "org" / "long", ignore=without_model))
    network = write_network(tmp_path / "net.json", 3)
    secondaries = scripts.secondaries(network)
    output = tmp_path / "out.jsonl"
    timeouts = ("--peer-timeout", 2, "--node-timeout", 1)
    starter = start_run(scripts, network, chunks_alone, *uneven, "--output", output, *timeouts)
    wait_until(lambda: output.exists() and output.read_text().count("\n") == 1, 60, f"a sample ends: {starter.stderr}")
    secondaries[lost].send_signal(number)
    result = starter.result()
    notes = rf"exceed the context|waiting for secondary|no other can take|the ring broke|secondary {lost} .*is lost: "
    one_line_error(result, 1, rf"secondary {lost} did not come back within 1 s", after=notes)
    assert FINISHED_FIRST in result.stdout
    assert result.stdout.count("[interrupted]") == 2
    samples, summary = read_samples(output)
    assert [sample["finish_reason"] for sample in samples] == ["length", "error", "error"]
    assert summary["n_tokens"] >= 10
    if number == signal.SIGTERM:
        assert secondaries[lost].result().code == 143
        assert "Traceback" not in secondaries[lost].stderr
    # The other one survives, and serves the next run beside a new process.
    survivor = secondaries[1 - lost]
    assert survivor.alive, survivor.stderr
    assert "Traceback" not in survivor.stderr
    secondaries[lost].kill()
    cache = tmp_path / "processes" / "cache"
    again = scripts.start("secondary.py", "--cache-dir", cache, "--nodes-config", network.path, lost)
    assert_serves_again(scripts, network, long_model)
    assert again.alive and survivor.alive


def test_a_killed_starter_leaves_secondaries_that_serve_the_next_one(
    kept: tuple[Network, list[Process]], scripts: Scripts, long_model: Path
) -> None:
    network, secondaries = kept
    starter = start_run(scripts, network, long_model, *ENDLESS)
    wait_until_generating(network, starter)
    starter.kill()
    assert_serves_again(scripts, network, long_model)
    assert all(secondary.alive and "Traceback" not in secondary.stderr for secondary in secondaries)
