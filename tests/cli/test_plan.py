"""The command that plans a ring."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mdi.checkpoint import disk_speed
from mdi.cli.commands.plan import build_parser
from mdi.cli.parser import options_from
from mdi.cli.planning import run_plan
from mdi.cluster import link_probe, stage_times
from mdi.cluster.member_setup import PeersTimedOut
from mdi.config.options import PlannerOptions
from mdi.errors import ConfigError
from support.rings import Ring, ring_of
from support.scripts import Scripts, write_network


@pytest.fixture(autouse=True)
def brief(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MDI_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(stage_times, "TIMING_S", 0.002)
    monkeypatch.setattr(link_probe, "TIMING_S", 0.002)
    monkeypatch.setattr(disk_speed, "_MAX_S", 0.0)


@pytest.fixture(scope="module")
def ring(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ring]:
    with ring_of(3, tmp_path_factory.mktemp("cache")) as ring:
        yield ring


def test_a_network_is_measured_and_planned(ring: Ring, tiny: Path) -> None:
    text = run_plan(PlannerOptions(ckpt=tiny, dtype="float32", n_samples=4), ring.network)
    heading, _, columns, *lines = text.splitlines()
    assert heading == "org/tiny, 6 layers, 4 samples of 128 positions; measured"
    assert columns.split() == ["node", "layers", "computes", "memory", "busy"]
    assert lines[0].startswith("starter ") and "float32 on cpu" in lines[0] and "%" in lines[0]
    assert any(line.startswith("bottleneck: ") for line in lines)
    assert any("tokens/s with 4 samples; first token of a 512-token prompt after" in line for line in lines)


def test_programs_get_the_same_as_json(ring: Ring, tiny: Path) -> None:
    value = json.loads(run_plan(PlannerOptions(ckpt=tiny, dtype="float32", json=True), ring.network))
    assert value["model"] == "org/tiny" and value["is_estimate"] is False
    assert sum(value["split"]) == value["n_layers"] == 6
    assert [node["layers"][1] - node["layers"][0] for node in value["nodes"]] == value["split"]
    assert value["nodes"][0]["id"] == 0 and {"1", "3"} <= set(value["tokens_s"])
    assert len(value["links"]) == 6 and all(link["bytes_s"] > 0 for link in value["links"])


def test_machines_that_are_not_here_are_planned_for() -> None:
    options = {"ckpt": Path("llama3.2-3b"), "what_if": "4x pi5-8gb,1x orin-nano", "quantize": "int8"}
    text = run_plan(PlannerOptions(**options), None)
    assert "estimated from published figures, for 4x pi5-8gb,1x orin-nano" in text
    value = json.loads(run_plan(PlannerOptions(**options, json=True), None))
    assert value["is_estimate"] and sum(value["split"]) == 28


def test_each_node_may_be_planned_in_a_mode_of_its_own() -> None:
    options = PlannerOptions(ckpt=Path("mistral-7b"), what_if="rtx4090,2x pi4-4gb", n_samples=16)
    alone = json.loads(run_plan(replace(options, json=True), None))
    allowed = json.loads(run_plan(replace(options, allow_quantize="int4", json=True), None))
    assert {node["quantization"] for node in alone["nodes"]} == {"none"}
    assert allowed["tokens_s"]["16"] >= alone["tokens_s"]["16"]
    small = PlannerOptions(ckpt=Path("mistral-7b"), what_if="2x pi5-8gb", allow_quantize="int8", json=True)
    value = json.loads(run_plan(small, None))
    assert "int8" in {node["quantization"] for node in value["nodes"]}
    with pytest.raises(ConfigError, match="too few"):
        run_plan(replace(small, allow_quantize=None), None)


def test_the_starter_may_be_given_less_than_it_has() -> None:
    options = PlannerOptions(ckpt=Path("llama3.2-3b"), what_if="2x pi5-8gb", quantize="int8", memory_limit="1.5GB")
    assert " of 1.50 GB " in run_plan(options, None)
    value = json.loads(run_plan(replace(options, json=True), None))
    assert [node["memory_limit_bytes"] for node in value["nodes"]] == [1_500_000_000, None]
    assert value["nodes"][0]["memory_bytes"] <= 1_500_000_000 < value["nodes"][0]["free_bytes"]


def test_a_model_that_fits_nowhere_says_what_is_missing() -> None:
    options = PlannerOptions(ckpt=Path("mistral-7b"), what_if="2x pi4-4gb", quantize="int8")
    with pytest.raises(ConfigError, match=r"too few: about .* GB are missing; it would fit with .*another node with"):
        run_plan(options, None)


def test_a_node_that_is_not_up_is_waited_for_and_named(tiny: Path, tmp_path: Path) -> None:
    from mdi.config.network import load_network

    network = load_network(write_network(tmp_path / "two.json", 2).path)
    with pytest.raises(PeersTimedOut, match=r"secondary 0 at http://.* cannot be reached.*Waited 1 s"):
        run_plan(PlannerOptions(ckpt=tiny, node_timeout_s=1), network)


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["--objective", "speed"], "--objective speed: expected one of throughput, latency"),
        (["--link", "string"], "--link string: expected one of gigabit"),
        (["--n-samples", "0"], "--n-samples 0"),
        (["--what-if", "pi5-8gb", "--measure"], "--what-if is for machines that are not there"),
        (["--sequence-length", "0"], "--sequence-length 0"),
        (["--device", "gpu"], "--device gpu"),
        (["--memory-limit", "3"], "--memory-limit: '3' is not a size"),
    ],
)
def test_a_wrong_option_is_named(arguments: list[str], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        options_from(PlannerOptions, build_parser().parse_args(arguments))


@pytest.mark.slow
def test_the_script_prints_a_plan_and_its_errors_are_one_line(scripts: Scripts, tiny: Path) -> None:
    done: Any = scripts.run("plan.py", "--ckpt", tiny, "--what-if", "2x pi5-8gb")
    assert "estimated from published figures" in done.stdout
    failed = scripts.run("plan.py", "--ckpt", tiny, "--what-if", "toaster")
    assert failed.code == 2 and failed.stderr.count("\n") == 1
    assert "--what-if: 'toaster' is none of" in failed.stderr
