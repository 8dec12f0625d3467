"""A ring that is formed as its nodes were measured."""

import logging
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mdi.cli.speed_report import tell_speed
from mdi.cluster import rebalancing, returns
from mdi.cluster.network_times import NetworkMeter, NetworkTimes
from mdi.cluster.node_meter import NodeMeter
from mdi.cluster.planner import LinkCosts
from mdi.config.network import NodeConfig
from mdi.config.options import StarterOptions
from mdi.control.measurement import HeadTime, LayerTime, StageRequest, StageTimes
from mdi.engine.sample import Outcome, Sample
from mdi.errors import ConfigError
from mdi.formats import Mode
from mdi.ids import NodeId
from mdi.net.timeouts import Timeouts
from support.models import make_model
from support.rings import Ring, ring_of, starter_for
from support.scripts import wait_until

pytestmark = pytest.mark.slow

PROMPTS = [[5, 6, 7], [8], [9, 10]]
NEAR, FAR = LinkCosts(1e-4, 1e9), LinkCosts(0.3, 1e9)


@pytest.fixture(scope="module")
def ring(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ring]:
    with ring_of(3, tmp_path_factory.mktemp("cache")) as ring:
        yield ring


@pytest.fixture(autouse=True)
def own_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MDI_HOME", str(tmp_path))


def measured_as(monkeypatch: pytest.MonkeyPatch, slowness: list[float], links: list[list[LinkCosts]]) -> None:
    """Let the nodes take so many times ten milliseconds for a layer and row."""
    layers = [tuple(LayerTime(rows, 128, s * rows * 1e-2) for rows in (1, 16)) for s in slowness]
    alike = StageTimes("cpu", "float32", "none", None, 1, False, (), (), 0.0, 0.0, None, None, None)
    nodes = tuple(
        replace(alike, layers=times, head=(HeadTime(1, 1e-3),) if i == 0 else ()) for i, times in enumerate(layers)
    )
    monkeypatch.setattr(NetworkMeter, "measure", lambda self, *arguments: NetworkTimes(nodes, links))


def test_a_measured_ring_generates_the_same(ring: Ring, tiny: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "mdi")
    from mdi.cluster import link_probe, stage_times

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stage_times, "TIMING_S", 0.002)
        patch.setattr(link_probe, "TIMING_S", 0.002)
        tokens = ring.generate(tiny, PROMPTS, split="measured")
    assert tokens == ring.generate(tiny, PROMPTS)
    assert any("planned as measured: " in line for line in caplog.messages)


def test_nodes_and_their_order_are_chosen_by_what_was_measured(
    ring: Ring, tiny: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The first secondary is far too slow, and takes no part."""
    caplog.set_level(logging.WARNING, "mdi")
    expected = ring.generate(tiny, PROMPTS)
    counts = [secondary.status().messages for secondary in ring.secondaries]
    measured_as(monkeypatch, [1, 1000, 1], [[NEAR] * 3] * 3)
    assert ring.generate(tiny, PROMPTS, split="measured") == expected
    now = [secondary.status().messages for secondary in ring.secondaries]
    assert now[0] == counts[0] and now[1] > counts[1]
    assert any(line.startswith("without secondary 0 it is ") for line in caplog.messages)
    assert any(line.startswith("planned as measured: 3,3; ") for line in caplog.messages)


def test_nodes_hold_their_weights_as_the_plan_has_chosen(
    ring: Ring, tiny: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The second secondary is slow, and as fast as the others in int8; the first one would be slower in it."""
    caplog.set_level(logging.WARNING, "mdi")
    measured_as(monkeypatch, [1, 1, 10], [[NEAR] * 3] * 3)

    def held_as(meter: NetworkMeter, mode: Mode, request: StageRequest, times: NetworkTimes) -> NetworkTimes:
        layers = [tuple(LayerTime(rows, 128, s * rows * 1e-2) for rows in (1, 16)) for s in (2, 2, 1)]
        nodes = zip(times.nodes, layers, strict=True)
        return replace(times, nodes=tuple(replace(node, mode=mode, layers=own) for node, own in nodes))

    monkeypatch.setattr(NetworkMeter, "held_as", held_as)
    tokens = ring.generate(tiny, PROMPTS, split="measured", allow_quantize="int8")
    assert [len(each) for each in tokens] == [12, 12, 12]
    assert [secondary.status().weights for secondary in ring.secondaries] == ["none", "int8"]
    assert any(line.startswith("planned as measured: 2,2,2, int8 on secondary 1; ") for line in caplog.messages)
    assert any("int8 weights" in line and "secondary 1" in line for line in caplog.messages)  # they compute otherwise


def test_where_no_node_has_the_memory_it_is_told_what_would_fit(
    ring: Ring, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured_as(monkeypatch, [1, 1, 1], [[NEAR] * 3] * 3)
    measure = NetworkMeter.measure
    monkeypatch.setattr(NetworkMeter, "measure", lambda *arguments: measure(*arguments).with_limit(0, 1000))
    with pytest.raises(
        ConfigError, match=r"starter has no memory for a single layer .*: it would fit with a larger memory"
    ):
        ring.generate(tiny, PROMPTS, split="measured")


def test_slow_links_decide_the_order(ring: Ring, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    links = [[NEAR, FAR, NEAR], [NEAR, NEAR, FAR], [FAR, NEAR, NEAR]]
    measured_as(monkeypatch, [1, 1, 1], links)
    ranks: dict[int, int | None] = {}
    forward = type(ring.secondaries[0])._compute
    for index, secondary in enumerate(ring.secondaries):

        def compute(spec: Any, message: Any, index: int = index, secondary: Any = secondary) -> Any:
            ranks[index] = spec.rank
            return forward(secondary, spec, message)

        monkeypatch.setattr(secondary, "_compute", compute)
    ring.generate(tiny, PROMPTS, split="measured")
    assert ranks == {0: 2, 1: 1}


def test_auto_measures_nodes_that_may_differ_and_takes_all_of_them(
    ring: Ring, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "mdi")
    monkeypatch.setattr(NodeConfig, "host", property(lambda node: f"machine {node.http_port}"))
    model = make_model(tmp_path / "new")
    measured_as(monkeypatch, [1, 1000, 1], [[NEAR] * 3] * 3)
    tokens = ring.generate(model, PROMPTS)
    assert any(re.match(r"planned as measured: \d,(1,\d|\d,1); ", line) for line in caplog.messages)
    assert sum(" as measured, and --split measured " in line for line in caplog.messages) == 1  # better without it
    caplog.clear()
    measured_as(monkeypatch, [1000, 1, 1], [[NEAR] * 3] * 3)
    assert ring.generate(model, PROMPTS) == tokens
    assert not any("planned as measured" in line for line in caplog.messages)  # the chunks have a split


def test_where_nodes_cannot_be_measured_auto_goes_by_the_sizes(
    ring: Ring, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "mdi")
    monkeypatch.setattr(NodeConfig, "host", property(lambda node: f"machine {node.http_port}"))

    def measure(meter: NodeMeter, request: StageRequest) -> StageTimes:
        raise ConfigError("its clock stands still")

    monkeypatch.setattr(NodeMeter, "measure", measure)
    assert [len(each) for each in ring.generate(make_model(tmp_path / "new"), PROMPTS)] == [12, 12, 12]
    (line,) = [line for line in caplog.messages if line.startswith("splitting by the sizes of the layers, not as ")]
    assert line.endswith("its clock stands still")


def test_a_split_that_is_far_behind_what_was_measured_is_told(
    ring: Ring, tiny: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "mdi")
    ring.generate(tiny, PROMPTS, split="2,2,2")
    assert not any("as measured" in line for line in caplog.messages)  # nothing was
    measured_as(monkeypatch, [1, 4, 1], [[NEAR] * 3] * 3)
    ring.generate(tiny, PROMPTS, split="measured")
    caplog.clear()
    options = StarterOptions(ckpt=tiny, dtype="float32", temperature=0.0, ignore_eos=True, keep_nodes=True, n_tokens=12)
    elsewhere = replace(ring.network, starter=replace(ring.network.starter, http_port=0))  # at any free port
    with starter_for(elsewhere, replace(options, split="2,2,2"), PROMPTS) as (starter, _):
        starter.prepare()
        starter.run()
    assert any("tokens/s as measured, and --split measured " in line for line in caplog.messages)
    # Of 36 tokens, those that came from a prompt and what was beside one are not compared.
    assert 12 <= starter.speed.tokens <= 33
    assert starter.speed.predicted == pytest.approx(3 / 0.16, rel=0.6), "the second node computes 80 ms for each row"
    assert sorted(starter.engine.speed.expected_s) == [0, 1, 2]
    tell_speed(starter.speed)
    assert re.fullmatch(r"predicted [\d.]+, reached [\d.]+ tokens/s beside prompts", caplog.messages[-1])


def test_a_ring_is_formed_anew_on_a_better_split_and_no_token_changes(
    ring: Ring, tiny: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "mdi")
    expected = ring.generate(tiny, PROMPTS)
    measured_as(monkeypatch, [1, 1, 1], [[NEAR] * 3] * 3)
    monkeypatch.setattr(rebalancing, "SUSTAINED_S", 0.0)
    monkeypatch.setattr(returns, "QUIET_WAIT_S", 0.0)
    options = StarterOptions(ckpt=tiny, dtype="float32", temperature=0.0, ignore_eos=True, keep_nodes=True, n_tokens=12)
    options = replace(options, split="measured", rebalance=True)

    def slow_down(sample: Sample, outcome: Outcome) -> None:
        if sample.number == 0 and len(sample.tokens) == 5:
            starter._speed_watch._nodes.slowness = {NodeId(2): 4.0}
            wait_until(lambda: starter._supervisor.has_next, 60, "a better split is ready")

    timeouts = Timeouts(return_check_s=0.05)
    with starter_for(ring.network, options, PROMPTS, sink=slow_down, timeouts=timeouts) as (starter, samples):
        starter.prepare()
        assert [len(span) for span in starter._supervisor.plan.spans] == [2, 2, 2]
        starter.run()
        plan = starter._supervisor.plan
        layers = {node: len(span) for node, span in zip(plan.members, plan.spans, strict=True)}
    assert [sample.tokens for sample in samples] == expected
    assert layers[NodeId(2)] == 1 and starter.n_recoveries == 1
    assert any(line.startswith("forming the ring anew on a better split: layer") for line in caplog.messages)
