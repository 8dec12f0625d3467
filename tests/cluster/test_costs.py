"""What a split is balanced by: the costs of a layer and of the head, as they were measured."""

import pytest

from mdi.cluster.costs import TOKEN, load_of
from mdi.cluster.partition import split
from mdi.convert.hf_configs import config_by_name
from mdi.formats import Mode
from mdi.model.architecture import ModelConfig

# Microseconds of 8 rows in a layer of SmolLM2-135M and in one of TinyLlama-1.1B, and the head of SmolLM2 in its layers.
MEASURED: dict[Mode, tuple[float, float, float]] = {
    "int8": (189, 1590, 5.67),
    "int4": (155, 1281, 7.09),
    "none": (663, 6588, 7.54),
}


@pytest.fixture(scope="module")
def small() -> ModelConfig:
    return config_by_name("HuggingFaceTB/SmolLM2-135M-Instruct")


@pytest.fixture(scope="module")
def large() -> ModelConfig:
    return config_by_name("TinyLlama/TinyLlama-1.1B-Chat-v1.0")


@pytest.mark.parametrize("mode", MEASURED)
def test_costs_are_in_proportion_to_what_was_measured(mode: Mode, small: ModelConfig, large: ModelConfig) -> None:
    small_us, large_us, head_layers = MEASURED[mode]
    load, larger = load_of(small, mode, [1.0]), load_of(large, mode, [1.0])
    assert len(load.layers) == small.n_layer == 30
    assert larger.layers[0] / load.layers[0] == pytest.approx(large_us / small_us, rel=0.15)
    assert (load.head - TOKEN) / load.layers[0] == pytest.approx(head_layers, rel=0.1)


def test_the_head_of_an_int4_model_counts_as_int8(small: ModelConfig) -> None:
    loads = {mode: load_of(small, mode, [1.0]) for mode in MEASURED}
    assert loads["int4"].head == loads["int8"].head < loads["none"].head
    assert loads["int4"].layers[0] < loads["int8"].layers[0] < loads["none"].layers[0]


@pytest.mark.parametrize(
    ("mode", "n_nodes", "counts"), [("int8", 2, [12, 18]), ("int8", 3, [6, 12, 12]), ("none", 2, [11, 19])]
)
def test_a_starter_gets_as_many_layers_as_its_head_leaves_time_for(
    mode: Mode, n_nodes: int, counts: list[int], small: ModelConfig
) -> None:
    assert [len(span) for span in split("auto", load_of(small, mode, [1.0] * n_nodes))] == counts


def test_the_published_split_of_a_published_model_stays(large: ModelConfig) -> None:
    for mode in MEASURED:
        assert [len(span) for span in split("auto", load_of(large, mode, [1.0, 1.0]))] == [10, 12]
