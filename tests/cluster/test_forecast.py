"""What is foretold of a ring, and the advice: given when it is true, and only then."""

from dataclasses import replace

import pytest

from mdi.cluster.device_classes import DEVICE_CLASSES, LINK_CLASSES, estimate, network_of, parse_devices
from mdi.cluster.forecast import Costs, advise, behind_plan, forecast_of, shortage
from mdi.cluster.network_times import NetworkTimes
from mdi.cluster.planner import LinkCosts
from mdi.cluster.ring_costs import costs_of, layer_points, memory_bytes
from mdi.config.network import NetworkConfig
from mdi.control.measurement import HeadTime, LayerTime
from mdi.errors import ConfigError
from mdi.ids import NodeId
from support.measured import CONFIG, JOB, NEAR, THIN, network_with, times_of
from support.paths import ROOT


def advice_for(*slowness: float, link: LinkCosts = NEAR, n_samples: int = 2) -> list[str]:
    network, times = network_with(*slowness, link=link)
    costs = Costs(network, times, replace(JOB, n_samples=n_samples))
    return advise(costs, forecast_of(costs, costs.plan()))


def test_a_forecast_says_what_each_node_holds_and_how_fast_the_ring_is() -> None:
    network, times = network_with(1, 1)
    found = forecast_of(costs := Costs(network, times, JOB), costs.plan())
    assert found.ring.split == "6,6"
    assert [(part.name, tuple(part.span)) for part in found.parts] == [("starter", (0, 6)), ("secondary 0", (6, 12))]
    # A message takes 6 ms on each node and 1 ms for the head: 13 ms round; two of them overlap.
    assert found.tokens_s == pytest.approx({1: 1 / 13.2e-3, 2: 2 / 14e-3}, rel=0.01)
    assert found.parts[0].busy == pytest.approx(1.0) and found.parts[1].busy == pytest.approx(6 / 7, rel=0.01)
    assert found.parts[0].memory_bytes > found.parts[1].memory_bytes > 0
    assert found.first_token_s == pytest.approx(5 * 6 * 0.128, rel=0.02)  # four pieces, the last through both nodes


def test_a_node_that_slows_the_ring_down_is_named_with_the_gain() -> None:
    (sentence, *_) = advice_for(1, 1, 20, n_samples=2)
    assert sentence == "without secondary 1 it is 2.9 times as fast (143 instead of 50 tokens/s)"
    assert not any("without" in sentence for sentence in advice_for(1, 1, 1.5, n_samples=3))


def test_one_machine_alone_is_advised_for_a_single_chat_where_it_is_faster() -> None:
    assert any("starter alone holds the model, and is" in s for s in advice_for(1, 4, n_samples=8))
    network, times = network_with(1, 4)
    times = replace(times, nodes=(times_of(1, has_head=True, free_bytes=1_200_000), times_of(4)))
    costs = Costs(network, times, JOB)
    assert 0 < costs.nodes[0].max_layers < 12
    assert not any("alone" in s for s in advise(costs, forecast_of(costs, costs.plan())))
    assert not any("alone" in s for s in advice_for(4, 1, n_samples=8))


def test_a_link_is_named_where_it_is_the_bottleneck() -> None:
    network, times = network_with(1, 1)
    row = [[NEAR, THIN], [NEAR, NEAR]]
    costs = Costs(network, NetworkTimes(times.nodes, row), replace(JOB, n_samples=8))
    found = forecast_of(costs, costs.plan(use_all=True))
    assert any(s.startswith("the link from starter to secondary 0 (5000 B/s, 0.2 ms there and back) is") for s in
               advise(costs, found))  # fmt: skip
    assert not any("link" in s for s in advice_for(1, 1, n_samples=8))


def test_links_that_only_delay_are_named_for_few_samples() -> None:
    network, times = network_with(1, 1, link=LinkCosts(0.05, 1e9))
    costs = Costs(network, times, replace(JOB, n_samples=1))
    found = forecast_of(costs, costs.plan(use_all=True))
    assert any("ms of a trip pass on the links" in s for s in advise(costs, found))


def test_latency_is_the_trip_of_a_single_sample() -> None:
    network, times = network_with(1, 1)
    costs = Costs(network, times, replace(JOB, n_samples=8))
    assert costs.plan("latency").order == (0,)
    assert costs.plan("throughput").order == (0, 1)


def test_a_split_that_is_far_behind_the_plan_is_told() -> None:
    network, times = network_with(1, 4)
    costs = Costs(network, times, replace(JOB, n_samples=8))
    line = behind_plan(costs, (0, 1), (6, 6), "the split 6,6 of the chunks")
    assert line is not None and line.startswith("the split 6,6 of the chunks makes ")
    best = costs.plan()
    assert behind_plan(costs, best.order, best.layers, "it") is None


def test_share_and_the_limit_of_layers_scale_a_node_by_hand() -> None:
    network, times = network_with(1, 1)
    slow = NetworkConfig(network.starter, (replace(network.secondaries[0], share=0.5, max_layers=3),))
    costs = costs_of(slow, times, JOB)
    assert [node.layer.at(1) for node in costs] == pytest.approx([1e-3, 2e-3])
    assert [node.max_layers for node in costs] == [12, 3]
    assert Costs(slow, times, JOB).plan().layers == (9, 3)


def test_costs_are_those_of_the_context() -> None:
    layers = (LayerTime(1, 128, 1e-3), LayerTime(4, 128, 2e-3), LayerTime(1, 512, 2e-3), LayerTime(4, 512, 6e-3))
    times = replace(times_of(1), layers=layers)
    assert layer_points(times, 320) == [(1, pytest.approx(1.5e-3)), (4, pytest.approx(4e-3))]
    assert layer_points(times, 64) == [(1, 1e-3), (4, 2e-3)]


def test_noise_between_two_contexts_does_not_grow_with_the_context() -> None:
    """A GPU that waits for its launches takes as long for any context: some are measured shorter."""
    layers = (LayerTime(1, 128, 2e-3), LayerTime(4, 128, 2e-3), LayerTime(1, 512, 1e-3), LayerTime(4, 512, 1.5e-3))
    network, times = network_with(1, 1)
    nodes = tuple(replace(node, layers=layers, head=(HeadTime(1, 3e-3), HeadTime(16, 1e-3))) for node in times.nodes)
    costs = costs_of(network, replace(times, nodes=nodes), replace(JOB, context=8192))
    assert [costs[0].layer.at(rows) for rows in (1, 4)] == pytest.approx([1.5e-3, 1.75e-3])
    assert costs[0].head.at(400) == pytest.approx(2e-3)


def test_nodes_of_one_machine_share_its_memory() -> None:
    network, times = network_with(1, 1)
    near = NetworkConfig(network.starter, (replace(network.starter, http_port=9),))
    times = replace(times, nodes=tuple(replace(node, free_memory_bytes=1_300_000) for node in times.nodes))
    apart = [node.max_layers for node in costs_of(network, times, JOB)]
    shared = [node.max_layers for node in costs_of(near, times, JOB)]
    assert all(0 <= less < more for less, more in zip(shared, apart, strict=True))


def test_what_is_missing_is_told_and_what_would_make_it_fit() -> None:
    network, times = network_with(1, 1)
    job = replace(JOB, n_samples=20, context=2048)
    small = replace(times, nodes=tuple(replace(node, free_memory_bytes=30_000_000) for node in times.nodes))
    with pytest.raises(ConfigError, match=r"memory for .* of 12 on 2 nodes"):
        Costs(network, small, job).plan()
    said = shortage(Costs(network, small, job))
    assert "are missing; it would fit with " in said
    assert "at a time (--n-samples)" in said and "--sequence-length 512" in said and "another node with" in said
    tiny = replace(times, nodes=tuple(replace(node, free_memory_bytes=170_000) for node in times.nodes))
    only = replace(JOB, n_samples=1, context=16, max_rows=1)
    assert "--quantize int8" in shortage(Costs(network, tiny, only))


def test_a_limit_of_memory_is_a_limit_of_layers_and_a_larger_one_is_advised_where_it_helps() -> None:
    network, times = network_with(1, 1)
    free = replace(times, nodes=tuple(replace(node, free_memory_bytes=10**9) for node in times.nodes))
    limited = free.with_limit(0, 1_200_000).with_limit(1, 500_000)
    costs = Costs(network, limited, JOB)
    assert all(0 < few.max_layers < all_.max_layers for few, all_ in zip(costs.nodes, Costs(network, free, JOB).nodes,
               strict=True))  # fmt: skip
    with pytest.raises(ConfigError, match="it would fit with a larger memory limit of starter and secondary 0"):
        costs.plan()
    enough = Costs(network, free.with_limit(1, 500_000), JOB)
    found = forecast_of(enough, enough.plan())
    assert found.ring.layers[1] <= costs.nodes[1].max_layers
    assert [part.free_bytes for part in found.parts] == [10**9, 500_000]


def held_as_int8(times: NetworkTimes, *speedups: float) -> NetworkTimes:
    """The same nodes in int8, so many times as fast."""
    nodes = [
        replace(node, mode="int8", layers=tuple(time._replace(seconds=time.seconds / by) for time in node.layers))
        for node, by in zip(times.nodes, speedups, strict=True)
    ]
    return replace(times, nodes=tuple(nodes))


def test_a_plan_may_choose_how_each_node_holds_its_weights() -> None:
    """The first one is slower in int8, as a GPU is, and the second one faster."""
    network, times = network_with(1, 4)
    costs = Costs(network, times, JOB, (held_as_int8(times, 0.5, 4),))
    best = costs.with_best_modes()
    assert [node.mode for node in best.times.nodes] == ["none", "int8"]
    assert best.plan().layers == (6, 6)
    assert best.plan().prediction.tokens_s > 1.2 * costs.plan().prediction.tokens_s
    plain = Costs(network, times, JOB)
    assert plain.with_best_modes() is plain


def test_what_fits_in_no_mode_is_told_with_what_is_missing() -> None:
    network, times = network_with(1, 1)
    small = replace(times, nodes=tuple(replace(node, free_memory_bytes=200_000) for node in times.nodes))
    with pytest.raises(ConfigError, match=r"it would fit with"):
        Costs(network, small, JOB, (held_as_int8(small, 1, 1),)).with_best_modes()


def test_a_starter_that_has_no_room_needs_more_of_its_own() -> None:
    network, times = network_with(1, 1)
    nodes = (replace(times.nodes[0], free_memory_bytes=100_000), times.nodes[1])
    with pytest.raises(ConfigError, match=r"starter has no memory .*it would fit with a starter with .* free$"):
        Costs(network, replace(times, nodes=nodes), JOB).plan()


def test_machines_that_are_not_here_are_estimated() -> None:
    names = parse_devices("4x pi5-8gb, orin-nano")
    assert names == ["pi5-8gb"] * 4 + ["orin-nano"]
    times = estimate(names, "gigabit", CONFIG, "none", None)
    assert [node.dtype for node in times.nodes] == ["float32"] * 4 + ["bfloat16"]
    costs = Costs(network_of(names), times, JOB)
    assert costs.plan().prediction.tokens_s > 0
    small = estimate(names, "gigabit", CONFIG, "none", kv_dtype="int8")
    on_cpu, on_gpu = ([node[i] for node in (times.nodes, small.nodes)] for i in (0, 4))
    assert on_cpu[1].layers[-2].seconds < on_cpu[0].layers[-2].seconds
    assert memory_bytes(on_cpu[1], JOB, 2, has_ends=False) < memory_bytes(on_cpu[0], JOB, 2, has_ends=False)
    assert on_gpu[1].layers == on_gpu[0].layers


@pytest.mark.parametrize("text", ["", "toaster", "0x pi5-8gb", "200x pi5-8gb", "pi5-8gb,", "-1x pi5-8gb", "4y pi5-8gb"])
def test_machines_that_nobody_knows_are_an_error_of_one_line(text: str) -> None:
    with pytest.raises(ConfigError, match="--what-if: "):
        parse_devices(text)


def test_a_misspelled_machine_is_answered_with_the_one_that_was_meant() -> None:
    with pytest.raises(ConfigError, match="did you mean pi5-8gb"):
        parse_devices("2x pi5-8bg")


def test_every_class_has_its_source_and_every_link_is_an_option() -> None:
    from mdi.config.options import LINKS

    assert all("memory: " in device.source and "arithmetic: " in device.source for device in DEVICE_CLASSES.values())
    assert set(LINK_CLASSES) == set(LINKS)


def test_the_page_on_planning_has_every_class() -> None:
    page = (ROOT / "docs" / "planning.md").read_text(encoding="utf-8")
    for name, device in DEVICE_CLASSES.items():
        row = next(line for line in page.splitlines() if f"`{name}`" in line and line.startswith("| `"))
        assert f"{device.bandwidth_bytes_s / 1e9:g}" in row and device.dtype in row
        assert f"{device.memory_bytes / 1e9:g}" in row
        size, unit = (1e12, "TFLOP/s") if device.flops >= 1e12 else (1e9, "GFLOP/s")
        assert f"{device.flops / size:g}" in row and unit in row
        assert row.rstrip(" |").rpartition("|")[2].strip(), f"{name} has no source"


def test_a_ring_of_some_nodes_names_them_as_the_network_does() -> None:
    costs = Costs(*network_with(1, 9, 2), JOB)
    ring = costs.ring_of([0, 2])
    assert (ring.order, ring.split) == ((0, 2), "8,4")
    assert costs.tokens_s(ring.order, ring.layers, 2) == pytest.approx(ring.prediction.tokens_s)


def test_a_node_that_was_measured_later_has_links_like_the_slowest_known() -> None:
    network, times = network_with(1, 1)
    rows = [[NEAR, LinkCosts(1e-3, 1e9)], [LinkCosts(1e-4, 7e6), NEAR]]
    costs = Costs(network, NetworkTimes(times.nodes, rows), JOB, alternatives=(times,))
    larger = network_with(1, 1, 3)[0]
    more = costs.with_node(larger, times_of(3))
    assert not costs.has([0, 2]) and more.has([0, 2])
    assert [row[2] for row in more.links[:2]] == list(more.links[2][:2]) == [LinkCosts(1e-3, 7e6)] * 2
    assert more.links[2][2].latency_s == 0 and [list(row[:2]) for row in more.links[:2]] == rows
    assert (more.network, more.alternatives) == (larger, ())
    ring = more.ring_of([0, 1, 2])
    assert dict(zip(ring.order, ring.layers, strict=True))[2] < 3


def test_a_starter_that_is_faster_without_the_others_of_its_machine_is_planned_alone() -> None:
    """Beside the other node a layer takes 1 ms, and alone a third of that."""
    network, times = network_with(1, 1)
    beside, apart = (
        Costs(network, replace(times, alone=alone), JOB) for alone in (None, times_of(1 / 3, has_head=True))
    )
    assert beside.plan().order == (0, 1)
    ring = apart.plan()
    assert (ring.order, ring.layers) == ((0,), (12,))
    assert ring.prediction.tokens_s == pytest.approx(2 / (2 * (4e-3 + 1e-3)), rel=0.01)
    assert apart.tokens_s((0,), (12,), 2) == pytest.approx(ring.prediction.tokens_s)
    found = forecast_of(apart, ring)
    assert found.tokens_s[2] == pytest.approx(ring.prediction.tokens_s)
    assert found.first_token_s < forecast_of(beside, ring).first_token_s / 2
    assert any(line.startswith("without secondary 0 it is 1.4 times as fast") for line in advise(apart, found))
    assert apart.plan(use_all=True).order == (0, 1)
    slowed = replace(apart, times=apart.times.slowed({NodeId(0): 3.0}))
    assert slowed.tokens_s((0,), (12,), 1) == pytest.approx(1 / (12e-3 + 3e-3), rel=0.01)


def test_a_starter_that_has_no_room_for_all_layers_is_not_planned_alone() -> None:
    network, times = network_with(1, 1)
    small = replace(times, nodes=(times_of(1, has_head=True, free_bytes=1_200_000), times_of(1)))
    costs = Costs(network, replace(small, alone=times_of(0.1, has_head=True)), JOB)
    assert costs.plan().order == (0, 1)


def test_what_a_message_takes_besides_counts_with_its_frames() -> None:
    network, times = network_with(1, 1)
    nodes = tuple(replace(node, message_s=2e-3, frame_s=1e-3) for node in times.nodes)
    costs = Costs(network, replace(times, nodes=nodes), JOB)
    assert [node.message_s for node in costs.nodes] == pytest.approx([3e-3, 3e-3])
    assert costs.of_starter.nodes[0].message_s == pytest.approx(2e-3), "alone it sends no frames"
