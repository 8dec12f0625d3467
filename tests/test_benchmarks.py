"""The benchmark's own arithmetic, its writers of other programs' files, its relay, and one measure from end to end."""

import contextlib
import io
import json
import os
import signal
import socket
import statistics
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from litgpt.config import Config

from benchmarks import planning, scaling, steal_time
from benchmarks.distributed_llama import DistributedLlama
from benchmarks.dllama_export import export_model, export_tokenizer, prompt_text
from benchmarks.gguf_export import export_gguf
from benchmarks.measures import Bench, alternate, contest, measure_rpc, prompt_of
from benchmarks.peers import LlamaCpp, RpcServer
from benchmarks.planning import Outcome, Sweep, Turn
from benchmarks.relay import Relay
from benchmarks.report import TARGETS, Series, markdown, plot, ratio, read_json, slug, spread, verdict_table, write_json
from benchmarks.ring_driver import network_of
from benchmarks.rings import Request, Run, decode_rate, ring, without_chunks, write_network, write_seen_as
from benchmarks.workers import BenchError, Worker, child_environment, own_cores, python_module
from mdi.checkpoint.tensor_file import open_weights
from mdi.cluster.locations import Locations
from mdi.convert.gguf.convert import import_gguf
from mdi.ids import NodeId
from support.models import generate_cached, make_model, reference_model
from support.paths import ROOT

pytestmark = pytest.mark.slow

RING = next(target for target in TARGETS if target.key == "ring")
HOP = next(target for target in TARGETS if target.key == "hop")
MACHINE = {"date": "2026-11-21", "machine": "a test"}


# ---- arithmetic


def test_every_link_of_a_relayed_ring_leads_through_a_relay(tmp_path: Path) -> None:
    path = write_network(tmp_path, 3)
    network = network_of({"nodes_config": path, "seen_as": write_seen_as(path, [7001, 7002, 7003])})
    nodes, locations = [NodeId(node) for node in range(3)], Locations(network)
    assert [locations.ring_peer(node, seen_from=node).port for node in nodes] == [7001, 7002, 7003]


def test_a_run_finds_no_chunks_of_another_one_and_leaves_none(tmp_path: Path) -> None:
    ckpt = tmp_path / "tiny"
    for folder in (ckpt, tmp_path / "scratch" / "models" / "tiny"):
        (folder / "chunks" / "2nodes").mkdir(parents=True)
    (ckpt / "lit_model.pth").write_bytes(b"weights")
    own = without_chunks(ckpt, tmp_path / "scratch")
    assert [(file.name, file.read_bytes()) for file in own.iterdir()] == [("lit_model.pth", b"weights")]


@pytest.mark.parametrize("name", ["bench", "planning", "recovery_time"])
def test_where_no_model_is_one_line_says_so(tmp_path: Path, name: str) -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / f"{name}.py"), "--ckpt", str(tmp_path / "none")]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 2
    last_line = result.stderr.splitlines()[-1]
    assert last_line.endswith("none: no prepared model there; `make model` prepares the default one")


@pytest.mark.parametrize("n_done", [0, 1])
def test_an_interrupted_run_keeps_what_it_has_or_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, n_done: int
) -> None:
    (tmp_path / "lit_model.pth").touch()
    output = tmp_path / "planning.json"
    output.write_text("of an earlier run")
    taken = [Outcome(planning.CONFIGURATIONS[0], (30,), (7.0,), (10.0,))][:n_done]

    def take(*arguments: object) -> Outcome:
        if not taken:
            raise KeyboardInterrupt
        return taken.pop()

    monkeypatch.setattr(planning, "take", take)
    command = ["planning.py", "--ckpt", tmp_path, "--scratch", tmp_path / "scratch", "--output", output]
    monkeypatch.setattr(sys, "argv", list(map(str, command)))
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO()))
    on_sigterm = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(KeyboardInterrupt):
            planning.main()
    finally:
        signal.signal(signal.SIGTERM, on_sigterm)
    if n_done:
        assert len(json.loads(output.read_text())["rings"]) == 1
    else:
        assert output.read_text() == "of an earlier run"


def test_predictions_are_held_against_what_was_reached(tmp_path: Path) -> None:
    two, one = planning.CONFIGURATIONS[3], planning.CONFIGURATIONS[0]
    outcomes = [
        Outcome(two, planning.layers_of(two.split, 31), (20.9, 22.0, 60.0), (19.0, 20.0, 30.0)),
        Outcome(one, planning.layers_of(one.split, 31), (7.0,), (10.0,)),
    ]
    turns = (
        Turn(12, False, {9: 20.0, 12: 19.4, 15: 9.7}, 20.5),
        Turn(12, True, {9: 40.0, 12: 38.8, 15: 19.4}, 39.0),
        Turn(9, False, {9: 20.0, 15: 10.0}, 20.0),
    )
    sweeps = [
        Sweep(planning.SWEPT[0], 30, {9: 23.0, 12: 19.0, 15: 9.7}, turns),
        Sweep(planning.SWEPT[1], 30, {9: 20.0, 15: 19.0}, (Turn(15, False, {9: 20.0, 15: 19.0}, 30.0),)),
    ]
    planning.write(outcomes, sweeps, tmp_path / "planning.json")
    written = (tmp_path / "planning.md").read_text()
    assert "| even, 1 sample | 16,15 | 22.0 (20.9-60.0) | 20.0 (19.0-30.0) | +10% |" in written
    assert "Median error 20.0% (goal 10%), worst 30.0% (goal 25%), of 2 configurations." in written
    ways = ["12,18 | 20.0 | 20.0 (9,21) | 97% | 2.00x | 20.5", "15,15 | 19.0 | 20.0 (9,21) | 95% | 1.00x | 30.0"]
    assert f"| nodes alike | {ways[0]} | without it in 1 of 3: right |" in written
    assert f"| second node half as fast | {ways[1]} | without it in 0 of 1: wrong |" in written
    assert json.loads((tmp_path / "planning.json").read_text())["sweeps"][0]["turns"][1]["reached"]["12"] == 38.8
    assert (tmp_path / "planning.png").stat().st_size > 0


class PlannedLayout:
    """Of nodes that a test says what to plan and what to reach of."""

    def __init__(self, planned: list[int], max_layers: tuple[int, int]) -> None:
        self._planned, self._max_layers = iter(planned), max_layers

    def predict(self) -> dict[str, Any]:
        first = next(self._planned)
        return {"planned": [first, 31 - first], "n_nodes": 2 - (first > 20), "max_layers": self._max_layers}

    def reach(self, split: tuple[int, ...]) -> float:
        return 31.0 / max(split)


def laid_out_as(layout: PlannedLayout, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "laid_out", lambda *_: contextlib.nullcontext(layout))
    monkeypatch.setattr(planning, "load_config", lambda _: Config(n_layer=31))


def test_a_sweep_plans_anew_before_each_turn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    laid_out_as(PlannedLayout([17, 14, 21], (31, 20)), monkeypatch)
    found = planning.sweep(planning.SWEPT[0], tmp_path, [0, 1], tmp_path, 1)
    assert sorted(found.reached) == [12, 16, 17, 19, 22, 25, 28], "those that the second node can hold"
    assert found.best == 16
    assert [sorted(turn.reached) for turn in found.turns] == [[14, 15, 16], [15, 16, 21]], "the even split among them"
    assert [(turn.planned, turn.is_dropped, turn.alone) for turn in found.turns] == [(14, False, 1.0), (21, True, 1.0)]


def test_an_even_split_that_does_not_fit_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    laid_out_as(PlannedLayout([16], (31, 15)), monkeypatch)
    with pytest.raises(BenchError, match="the even split does not fit"):
        planning.sweep(planning.SWEPT[0], tmp_path, [0, 1], tmp_path, 1)


def test_of_a_core_the_share_remains_that_was_asked_for(tmp_path: Path) -> None:
    with Worker(python_module("steal_time", "0.25"), own_cores()[:1], tmp_path / "thief.log") as thief:
        try:
            thief.hear()
        except BenchError as exc:
            pytest.skip(str(exc))
        process = psutil.Process(thief.pid)
        began_s, before = time.monotonic(), process.cpu_times()
        time.sleep(1.0)
        passed_s, after = time.monotonic() - began_s, process.cpu_times()
    stolen_s = after.user + after.system - before.user - before.system  # only their sum is counted exactly
    assert 0.6 < stolen_s / passed_s < 0.85


def test_without_the_right_to_steal_time_one_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "sched_setscheduler", refuse, raising=False)
    with pytest.raises(SystemExit, match="root on Linux"):
        steal_time.main()


@pytest.mark.parametrize(("n_nodes", "n_samples"), [(1, 3), (7, 1), (9, 9), (10, 25)])
@pytest.mark.parametrize("place", scaling.LINKS)
def test_simulated_messages_wait_for_each_other_as_the_planner_reckons(
    n_nodes: int, n_samples: int, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if n_nodes == 1:
        monkeypatch.setattr(scaling, "MODEL", "tiny-llama-1.1b")
    found = scaling.point(n_nodes, n_samples, scaling.LINKS[place])
    assert found is not None and found.simulated == pytest.approx(found.predicted, rel=0.02)


def test_a_model_that_no_ring_holds_has_no_speed() -> None:
    assert scaling.point(3, 1, scaling.LINKS["one room"]) is None


def test_decode_rate_of_one_sample_leaves_out_the_first_token() -> None:
    assert decode_rate([[10.0, 10.5, 11.0, 11.5]]) == pytest.approx(2.0)


def test_decode_rate_counts_only_while_all_samples_decode() -> None:
    """The first sample is alone, and twice as fast, before the second one begins and after it ends."""
    alone, together = [0.0, 0.5, 1.0], [2.0, 3.0, 4.0, 5.0]
    assert decode_rate([[*alone, *together, 5.5, 6.0], together]) == pytest.approx(2.0)


def test_decode_rate_does_not_depend_on_where_the_window_cuts() -> None:
    """Two samples that take turns: each makes a token a second, though the window holds 3.5 s."""
    assert decode_rate([[0.0, 1.0, 2.0, 3.0, 4.0], [0.5, 1.5, 2.5, 3.5, 4.5]]) == pytest.approx(2.0)


def test_decode_rate_refuses_samples_that_never_decode_together() -> None:
    with pytest.raises(BenchError, match="too few tokens"):
        decode_rate([[0.0, 1.0], [2.0, 3.0]])


def test_actions_alternate_and_a_failing_one_is_left_out() -> None:
    order: list[str] = []

    def note(name: str) -> int:
        order.append(name)
        return len(order)

    def fail() -> int:
        order.append("c")
        raise BenchError("no such thing")

    notes: dict[str, str] = {}
    results = alternate(3, {"a": lambda: note("a"), "b": lambda: note("b"), "c": fail}, notes)
    assert order == ["a", "b", "c", "b", "a", "a", "b"]
    assert results == {"a": [1, 5, 6], "b": [2, 4, 7], "c": []}
    assert notes == {"c": "no such thing"}


@pytest.mark.parametrize(("warms_up", "counted"), [(False, (0.25, 1.0)), (True, (1.0, 2.0))])
def test_a_first_run_that_warms_up_is_not_counted(tmp_path: Path, warms_up: bool, counted: tuple[float, ...]) -> None:
    steps = iter([4.0, 1.0, 0.5])  # seconds between two tokens
    tried = []

    def run() -> Run:
        seconds = next(steps)
        return Run(0.0, [[0.0, seconds, 2 * seconds]], [])

    def fail() -> Run:
        tried.append("b")
        raise BenchError("no such thing")

    bench = Bench(tmp_path, tmp_path, (), tmp_path, LlamaCpp("/no/python", tmp_path), rounds=2)
    openers = {"a": contextlib.nullcontext(run), "b": contextlib.nullcontext(fail)}
    speeds = contest(bench, "m", openers, warms_up=warms_up)
    assert speeds["a"].values == counted
    assert speeds["b"] == Series("m", "b", "tokens/s", note="no such thing")
    assert tried == ["b"]


def test_a_ratio_is_taken_round_by_round() -> None:
    over, under = Series("m", "a", "tokens/s", (2.0, 9.0)), Series("m", "b", "tokens/s", (1.0, 3.0))
    assert ratio("m", "a over b", over, under).values == (2.0, 3.0)


def test_a_ratio_over_what_was_not_measured_says_why() -> None:
    missing = Series("m", "b", "tokens/s", note="not installed")
    assert ratio("m", "a over b", Series("m", "a", "tokens/s", (1.0,)), missing).note == "not installed"


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ([0.95, 0.9, 1.0], "0.950 (0.900-1.000)"),
        ([1.0, 2.0, 4.0], "2.00 (1.00-4.00)"),
        ([10.0, 12.34, 13.0, 11.0], "11.7 (10.0-13.0)"),
        ([250.0], "250 (250-250)"),
    ],
)
def test_spread(values: list[float], text: str) -> None:
    assert spread(values) == text


@pytest.mark.parametrize(("value", "verdict"), [(0.94, "below the floor"), (0.95, "floor"), (0.98, "stretch")])
def test_more_is_better(value: float, verdict: str) -> None:
    assert RING.verdict(value) == verdict
    assert (RING.score(value) >= 1) == (verdict != "below the floor")


@pytest.mark.parametrize(("value", "verdict"), [(0.21, "below the floor"), (0.2, "floor"), (0.1, "stretch")])
def test_less_is_better(value: float, verdict: str) -> None:
    assert HOP.verdict(value) == verdict
    assert (HOP.score(value) >= 1) == (verdict != "below the floor")


# ---- reports


def test_what_was_not_measured_is_never_a_pass() -> None:
    table = verdict_table([Series("llama", "x", "x", note="llama_cpp cannot be imported", target="int8 one")])
    rows = table.splitlines()[2:]
    assert len(rows) == len(TARGETS)
    assert all("not measured" in row for row in rows)
    assert "not measured (llama_cpp cannot be imported)" in table


def test_the_verdict_is_that_of_the_median() -> None:
    table = verdict_table([Series("ring", "x", "x", (0.5, 0.96, 0.99), target="ring")])
    assert "| 0.95 | 0.98 | 0.960 (0.500-0.990) | floor, noisy |" in table


def test_a_verdict_says_where_the_rounds_are_far_apart() -> None:
    assert RING.judge([0.9, 0.96, 0.97]) == "floor"
    assert RING.judge([0.6, 1.2, 1.7]) == "stretch, noisy"


def test_results_are_written_and_read_back(tmp_path: Path) -> None:
    series = [Series("ring", "2 nodes, 2 samples", "tokens/s", (1.0, 2.0)), Series("llama", "x", "x", note="why")]
    series.append(Series("hops", "16 rows", "ms", (0.15,), target="hop"))
    write_json(tmp_path / "r.json", MACHINE, series)
    assert read_json(tmp_path / "r.json") == (MACHINE, series)
    verdicts = json.loads((tmp_path / "r.json").read_text())["verdicts"]
    assert [(item["target"]["key"], item["verdict"]) for item in verdicts] == [("hop", "floor")]
    assert "| 2 nodes, 2 samples | tokens/s | 1.50 (1.00-2.00) |" in markdown(MACHINE, series)
    plot(tmp_path / "r.png", series)
    assert (tmp_path / "r.png").read_bytes().startswith(b"\x89PNG")


def test_slug() -> None:
    assert slug("AMD EPYC (7 nm)") == "amd-epyc-7-nm"


# ---- GGUF


@pytest.mark.parametrize("tied", [False, True])
def test_the_exported_model_is_imported_as_it_was(tmp_path: Path, tied: bool) -> None:
    folder = make_model(tmp_path / "model")
    weights = open_weights(folder / "lit_model.pth")
    if tied:
        weights = {name: tensor.clone() for name, tensor in weights.items()}
        weights["lm_head.weight"] = weights["transformer.wte.weight"]
        torch.save(weights, folder / "lit_model.pth")
    export_gguf(folder, tmp_path / "model.gguf")
    (tmp_path / "back").mkdir()
    import_gguf(tmp_path / "model.gguf", tmp_path / "back")
    back = open_weights(tmp_path / "back" / "lit_model.pth")
    assert back.keys() == weights.keys()
    assert all(torch.equal(back[name], weights[name]) for name in weights)


def test_a_model_of_another_shape_is_not_exported(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "model", attn_bias=True)
    with pytest.raises(ValueError, match="attn_bias is True"):
        export_gguf(folder, tmp_path / "model.gguf")
    assert not (tmp_path / "model.gguf").exists()


# ---- distributed-llama


def header_of(content: bytes) -> tuple[int, dict[int, int], bytes]:
    """Its magic number, its pairs, and what comes behind it."""
    magic, size = struct.unpack_from("<2i", content)
    numbers = struct.unpack_from(f"<{size // 4 - 2}i", content, 8)
    return magic, dict(zip(numbers[::2], numbers[1::2], strict=True)), content[size:]


def test_a_model_of_distributed_llama_has_our_weights_in_its_order(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "model")
    export_model(folder, tmp_path / "model.m", "F32")
    magic, facts, rest = header_of((tmp_path / "model.m").read_bytes())
    assert magic == 0xA00ABCD
    assert facts == {
        **{0: 0, 1: 0xABCD00, 2: 32, 3: 48, 4: 6, 5: 4, 6: 2, 9: 320, 10: 128},
        **{11: 1, 12: 10000, 13: 0, 19: 8, 20: 5},
    }
    weights = open_weights(folder / "lit_model.pth")
    values = torch.from_numpy(np.frombuffer(rest, np.float32).copy())
    assert len(values) == sum(tensor.numel() for tensor in weights.values())
    embedding, q, k = torch.split(values[: 320 * 32 + 32 * 32 + 16 * 32], [320 * 32, 32 * 32, 16 * 32])
    assert torch.equal(embedding.view(320, 32), weights["transformer.wte.weight"])
    ours = weights["transformer.h.0.attn.qkv.weight"]
    pairs = [0, 4, 1, 5, 2, 6, 3, 7]  # of a head of 8 rows: those that one angle turns lie beside each other
    assert torch.equal(q.view(4, 8, 32), ours[:32].view(4, 8, 32)[:, pairs])
    assert torch.equal(k.view(2, 8, 32), ours[32:48].view(2, 8, 32)[:, pairs])
    assert torch.equal(values[-320 * 32 - 32 : -320 * 32], weights["transformer.ln_f.weight"])
    assert torch.equal(values[-320 * 32 :].view(320, 32), weights["lm_head.weight"])


def test_its_weights_of_4_bits_are_near_ours(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "model", intermediate_size=64)
    export_model(folder, tmp_path / "model.m", "Q40")
    _, facts, rest = header_of((tmp_path / "model.m").read_bytes())
    assert facts[13] == 2
    blocks = np.frombuffer(rest[-320 * 18 :], np.uint8).reshape(320, 18)  # the head: a row is a block of 32
    scales = blocks[:, :2].copy().view(np.float16).astype(np.float32)
    digits = np.concatenate([blocks[:, 2:] & 15, blocks[:, 2:] >> 4], axis=1).astype(np.float32) - 8
    head = open_weights(folder / "lit_model.pth")["lm_head.weight"].numpy()
    assert (np.abs(digits * scales - head) <= np.abs(scales) * 1.01).all()


@pytest.mark.parametrize("traits", [{"norm_eps": 1e-4}, {"rope_base": 10000.5}, {"rope_condense_ratio": 2}])
def test_a_model_that_it_cannot_run_is_not_exported(tmp_path: Path, traits: dict[str, float]) -> None:
    folder = make_model(tmp_path / "model", **traits)
    with pytest.raises(ValueError, match="cannot be exported"):
        export_model(folder, tmp_path / "model.m", "F32")
    assert not (tmp_path / "model.m").exists()


def test_a_model_whose_rows_are_no_blocks_is_not_measured_in_4_bits(tmp_path: Path, stand_in: DistributedLlama) -> None:
    folder = make_model(tmp_path / "model", intermediate_size=48)
    with pytest.raises(BenchError, match="no multiple of 32"):
        stand_in.model(folder, "Q40")


def test_its_tokenizer_writes_numbers(tmp_path: Path) -> None:
    export_tokenizer(12, tmp_path / "model.t")
    magic, facts, rest = header_of((tmp_path / "model.t").read_bytes())
    assert magic == 0x567124
    assert facts == {0: 1, 1: 12, 2: 4, 3: 11, 9: 0, 10: 0}
    assert rest.startswith(struct.pack("<fI", 0.0, 3) + b"<0>" + struct.pack("<fI", 0.0, 3) + b"<1>")
    assert rest.endswith(struct.pack("<fI", 0.0, 4) + b"<11>")
    assert prompt_text([3, 11]) == "<3><11>"


STAND_IN = r"""#!PYTHON
import json, pathlib, sys, time
sys.stdout.reconfigure(encoding="utf-8")
here = pathlib.Path(__file__).parent
if sys.argv[1] == "worker":
    time.sleep(600)
if not (here / "called").exists():
    (here / "called").touch()
    print("Cannot connect to 127.0.0.1:1 (Connection refused)")
    sys.exit("Critical error: Cannot connect")
(here / "arguments").write_text(json.dumps(sys.argv[1:]))
if "<9>" in sys.argv[sys.argv.index("--prompt") + 1]:
    print("a word\n")
    sys.exit("out of luck")
print("\N{LARGE BLUE DIAMOND} Eval  10 ms Sync   1 ms | Sent     1 kB Recv     2 kB | (2 tokens)")
for piece in ("<5>", "<310>", "~"):
    print("\N{LARGE ORANGE DIAMOND} Pred  10 ms Sync   1 ms | Sent     1 kB Recv     2 kB |", piece, flush=True)
print("\nPrediction\n   tokens/s: 90.00 (11.00 ms/tok)")
"""


@pytest.fixture
def stand_in(tmp_path: Path) -> DistributedLlama:
    """A program that answers as distributed-llama does, and whose worker is late at first."""
    program = tmp_path / "dllama"
    program.write_text(STAND_IN.replace("PYTHON", sys.executable))
    program.chmod(0o755)
    return DistributedLlama(str(program), tmp_path / "scratch")


def test_the_root_of_distributed_llama_is_started_again_until_its_worker_listens(
    tmp_path: Path, stand_in: DistributedLlama
) -> None:
    folder, cores = make_model(tmp_path / "model", intermediate_size=64), (own_cores() * 2)[:2]
    with stand_in.nodes(folder, "Q40", cores) as nodes:
        run = nodes.run([7, 8, 0], 3)
    assert run.tokens == [[5, 310, -1]]
    assert run.start <= run.times[0][0] <= run.times[0][1] <= run.times[0][2]
    arguments = json.loads((tmp_path / "arguments").read_text())
    options = dict(zip(arguments[1::2], arguments[2::2], strict=True))
    assert arguments[0] == "inference"
    assert options["--prompt"] == "<7><8><0>"
    assert options["--steps"] == options["--max-seq-len"] == "5"  # the first token comes from position 2
    assert options["--buffer-float-type"] == "q80"
    assert options["--workers"].startswith("127.0.0.1:")


def test_a_root_that_fails_leaves_its_last_words(tmp_path: Path, stand_in: DistributedLlama) -> None:
    folder = make_model(tmp_path / "model")
    with (
        stand_in.nodes(folder, "F32", own_cores()[:1]) as nodes,
        pytest.raises(BenchError, match=r"out of luck \(exit 1"),
    ):
        nodes.run([9, 0], 3)


# ---- the relay


def trips_through(relay: Relay, server: socket.socket, payload: bytes, n: int) -> list[float]:
    """Seconds of `n` round trips of `payload` to an echo at the other end."""
    seconds = []
    with socket.create_connection(("127.0.0.1", relay.port)) as near, server.accept()[0] as far:
        for _ in range(n):
            begin = time.monotonic()
            for source, sink in ((near, far), (far, near)):
                source.sendall(payload)
                received = b""
                while len(received) < len(payload):
                    received += sink.recv(1 << 16)
                assert received == payload
            seconds.append(time.monotonic() - begin)
    return seconds


@pytest.mark.parametrize("delay_s", [0.0, 0.02])
def test_the_relay_adds_its_delay_each_way(delay_s: float) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, Relay(0, server.getsockname(), delay_s) as relay:
        seconds = trips_through(relay, server, b"x" * 1000, 9)
    assert min(seconds) >= 2 * delay_s
    assert statistics.median(seconds) < 2 * delay_s + 0.2


def test_the_relay_limits_the_rate() -> None:
    """Two times 50 kB at 1 MB/s are 0.1 s."""
    with socket.create_server(("127.0.0.1", 0)) as server, Relay(0, server.getsockname(), 0.0, 1e6) as relay:
        seconds = trips_through(relay, server, bytes(50_000), 1)
    assert 0.1 <= seconds[0] < 1.0


# ---- processes


def test_a_child_finds_our_modules_and_what_its_parent_finds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site = tmp_path / "site"
    site.mkdir()
    (site / "carried.py").write_text("")
    monkeypatch.setenv("PYTHONPATH", str(site))
    command = [sys.executable, "-c", "import benchmarks.workers, mdi, carried"]
    subprocess.run(command, cwd=tmp_path, env=child_environment(), check=True)
    monkeypatch.delenv("PYTHONPATH")
    assert child_environment()["PYTHONPATH"] == os.pathsep.join([str(ROOT), str(ROOT / "src")])


def test_a_worker_that_dies_leaves_its_last_words(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "raise SystemExit('out of luck')"]
    with Worker(command, own_cores()[:1], tmp_path / "log") as worker, pytest.raises(BenchError, match="out of luck"):
        worker.hear()


def test_a_ring_of_one_node_generates_what_litgpt_generates(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "model")
    prompt = prompt_of(8)
    with ring(folder, own_cores()[:1], tmp_path / "scratch") as nodes:
        run = nodes.run(Request(prompt, n_samples=2, n_tokens=12))
        assert nodes.peak_bytes()[0] > 1e8
    assert run.tokens == [generate_cached(reference_model(folder), prompt, 12)] * 2
    assert 0 < run.first_token_s < run.times[0][-1] - run.start
    assert run.tokens_per_s > 0


RPC_SERVER = """#!{python}
import socket, sys, time
assert sys.argv[5:] == ["--threads", "1", "--device", "CPU"]
with socket.create_server((sys.argv[2], int(sys.argv[4]))) as server:
    while True:
        client = server.accept()[0]
        while client.recv(1):
            until_s = time.process_time() + {server_s}
            while time.process_time() < until_s:
                pass
            client.sendall(b"x")
"""
LLAMA_PYTHON = """#!{python}
import json, pathlib, socket, sys, time
if sys.argv[1] == "-c":
    print({supports_rpc} if "supports_rpc" in sys.argv[2] else "1.2.3")
elif sys.argv[2] == "quantize":
    pathlib.Path(sys.argv[4]).touch()
else:
    host, port = sys.argv[5].split(":")
    server = socket.create_connection((host, int(port)))
    print(json.dumps({{"ready": sys.argv[6]}}), flush=True)
    for line in sys.stdin:
        request, start = json.loads(line), time.monotonic()
        until_s = time.process_time() + 0.2
        while time.process_time() < until_s:
            pass
        server.sendall(b"x")
        server.recv(1)
        times = [[start + i for i in range(request["n_tokens"])]] * request["n_samples"]
        print(json.dumps({{"start": start, "times": times, "tokens": []}}), flush=True)
"""


def fake_llama(folder: Path, supports_rpc: bool = True, server_s: float = 0.2) -> tuple[LlamaCpp, RpcServer]:
    """A client and an RPC server that take 0.2 s and `server_s` of processor time for a run, a second for a token."""
    programs = {"python": LLAMA_PYTHON, "rpc-server": RPC_SERVER}
    for name, text in programs.items():
        path = folder / name
        path.write_text(text.format(python=sys.executable, supports_rpc=supports_rpc, server_s=server_s))
        path.chmod(0o755)
    return LlamaCpp(str(folder / "python"), folder), RpcServer(str(folder / "rpc-server"), folder)


def test_llama_cpp_over_two_processes_tells_how_they_share_the_work(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "model")
    llama, server = fake_llama(tmp_path)
    with llama.serving_with(server, folder, "Q8_0", (own_cores() * 2)[:2]) as peer:
        run = peer.run(prompt_of(8), 16, 3)
    assert run.tokens_per_s == pytest.approx(16.0)
    assert 0.25 < peer.server_share < 0.75


def test_an_rpc_server_that_computes_nothing_is_no_peer(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "model")
    llama, server = fake_llama(tmp_path, server_s=0.0)
    refused = pytest.raises(BenchError, match="the RPC server took only")
    with llama.serving_with(server, folder, "Q8_0", (own_cores() * 2)[:2]) as peer, refused:
        peer.run(prompt_of(8), 1, 3)


def test_an_rpc_server_that_ends_leaves_its_last_words(tmp_path: Path) -> None:
    _, server = fake_llama(tmp_path)
    (tmp_path / "rpc-server").write_text(f"#!{sys.executable}\nraise SystemExit('out of luck')")
    with pytest.raises(BenchError, match="does not listen: out of luck"), server.listening(own_cores()[0]):
        pass


def test_llama_cpp_without_its_rpc_backend_is_not_measured_by_rpc(tmp_path: Path) -> None:
    llama, server = fake_llama(tmp_path, supports_rpc=False)
    with pytest.raises(BenchError, match="built without its RPC backend"):
        measure_rpc(Bench(tmp_path, tmp_path, own_cores()[:1] * 2, tmp_path, llama, rpc_server=server))


def test_one_measure_from_end_to_end(tmp_path: Path) -> None:
    """Without llama.cpp and distributed-llama: the hops are measured, what needs a peer says that it is not there."""
    folder = make_model(tmp_path / "model")
    options = ["--ckpt", str(folder), "--rounds", "1", "--quick", "--llama-rpc-server", "/no/rpc-server"]
    options += [argument for name in ("hops", "large", "rpc", "dllama") for argument in ("--only", name)]
    options += ["--scratch", str(tmp_path / "scratch"), "--output", str(tmp_path / "r.json")]
    options += ["--cores", ",".join(str(core) for core in (own_cores() * 2)[:2]), "--llama-python", "/no/python"]
    options += ["--dllama", "/no/dllama"]
    command = [sys.executable, str(ROOT / "benchmarks" / "bench.py"), *options]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    machine, series = read_json(tmp_path / "r.json")
    assert machine["llama-cpp-python"] == "not there"
    assert next(item.values for item in series if item.target == "hop")[0] > 0
    assert machine["distributed-llama"] == "not there"
    assert "llama_cpp cannot be imported" in result.stdout
    assert "not measured: there is no program /no/rpc-server" in result.stdout
    assert "not measured: there is no program /no/dllama" in result.stdout
    assert (tmp_path / "r.md").read_text() in result.stdout
    assert (tmp_path / "r.png").is_file()
