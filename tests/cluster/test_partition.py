"""Layers -> spans: the published table, the balanced split, and what a user may ask for."""

import itertools
import math
import random
from collections.abc import Iterator, Sequence

import pytest

from mdi.cluster.partition import PUBLISHED, TABLE_TOLERANCE, Load, balanced, explicit, published, split
from mdi.errors import ConfigError
from mdi.model.span import Span, spans_of

# Copied by hand from the contract: (layers, nodes) -> (starter, each secondary).
TABLE = {
    (5, 2): (2, 3), (5, 3): (1, 2),
    (7, 2): (3, 4), (7, 3): (1, 3),
    (9, 2): (4, 5), (9, 3): (1, 4),
    (12, 2): (5, 7), (12, 3): (2, 5),
    (22, 2): (10, 12), (22, 3): (6, 8), (22, 4): (4, 6), (22, 5): (2, 5),
    (24, 2): (10, 14), (24, 3): (4, 10),
    (32, 2): (14, 18), (32, 3): (8, 12), (32, 4): (5, 9), (32, 5): (4, 7),
    (36, 2): (16, 20), (36, 3): (10, 13),
    (48, 2): (22, 26), (48, 3): (14, 17),
}  # fmt: skip


def uniform(n_layer: int, n_nodes: int, head: float = 0.0) -> Load:
    return Load([1.0] * n_layer, head, [1.0] * n_nodes)


def layers_of(spans: Sequence[Span]) -> list[int]:
    return [layer for span in spans for layer in range(span.start, span.stop)]


def counts(spans: Sequence[Span]) -> list[int]:
    return [len(span) for span in spans]


def every_split(n_layer: int, n_nodes: int) -> Iterator[list[Span]]:
    for cuts in itertools.combinations(range(1, n_layer), n_nodes - 1):
        yield [Span(start, stop) for start, stop in itertools.pairwise([0, *cuts, n_layer])]


def test_the_table_is_the_published_one() -> None:
    ours = {(n_layer, n_nodes): pair for n_layer, row in PUBLISHED.items() for n_nodes, pair in row.items()}
    assert ours == TABLE


@pytest.mark.parametrize(("n_layer", "n_nodes"), TABLE)
def test_a_published_split_covers_every_layer_once(n_layer: int, n_nodes: int) -> None:
    starter, secondary = TABLE[n_layer, n_nodes]
    assert starter + secondary * (n_nodes - 1) == n_layer
    spans = published(n_layer, n_nodes)
    assert spans is not None
    assert counts(spans) == [starter] + [secondary] * (n_nodes - 1)
    assert layers_of(spans) == list(range(n_layer))
    assert split("table", uniform(n_layer, n_nodes)) == spans


def loads(n_layer: int, n_nodes: int) -> Iterator[Load]:
    """Varied heads, shares and layer weights of one size; whole numbers, so that sums are exact."""
    chance = random.Random(1000 * n_layer + n_nodes)
    for head in (0.0, 1.0, 3.0, 50.0):
        yield uniform(n_layer, n_nodes, head)
        shares = [chance.choice([0.25, 0.5, 1.0, 2.0, 8.0]) for _ in range(n_nodes)]
        yield Load([1.0] * n_layer, head, shares)
        yield Load([float(chance.randint(1, 9)) for _ in range(n_layer)], head, shares)


SMALL = [(n_layer, n_nodes) for n_layer in range(1, 13) for n_nodes in range(1, n_layer + 1)]


@pytest.mark.parametrize(("n_layer", "n_nodes"), SMALL)
def test_spans_joined_are_all_layers_for_every_small_case(n_layer: int, n_nodes: int) -> None:
    for load in loads(n_layer, n_nodes):
        for method in ("auto", ",".join(["1"] * (n_nodes - 1) + [str(n_layer - n_nodes + 1)])):
            spans = split(method, load)
            assert len(spans) == n_nodes
            assert min(counts(spans)) >= 1
            assert layers_of(spans) == list(range(n_layer))


@pytest.mark.parametrize(("n_layer", "n_nodes"), [case for case in SMALL if case[0] <= 9])
def test_the_balanced_split_is_the_best_of_all_splits(n_layer: int, n_nodes: int) -> None:
    def squares(load: Load, spans: Sequence[Span]) -> float:
        weights = [sum(load.layers[span.start : span.stop]) for span in spans]
        weights[0] += load.head
        return sum((weight / share) ** 2 for weight, share in zip(weights, load.shares, strict=True))

    for load in loads(n_layer, n_nodes):
        splits = list(every_split(n_layer, n_nodes))
        lightest = min(load.max_load(spans) for spans in splits)
        most_even = min(squares(load, spans) for spans in splits if load.max_load(spans) == lightest)
        spans = balanced(load)
        assert load.max_load(spans) == lightest
        assert squares(load, spans) == most_even


def test_fractional_weights_find_a_split_too() -> None:
    chance = random.Random(5)
    for _ in range(50):
        load = Load([chance.random() for _ in range(11)], chance.random(), [chance.uniform(0.1, 3) for _ in range(4)])
        lightest = min(load.max_load(spans) for spans in every_split(11, 4))
        assert math.isclose(load.max_load(balanced(load)), lightest)


def test_the_head_takes_layers_from_the_starter_and_a_share_gives_layers() -> None:
    assert counts(balanced(uniform(9, 3))) == [3, 3, 3]
    assert counts(balanced(uniform(9, 3, head=3))) == [1, 4, 4]
    assert counts(balanced(uniform(9, 3, head=100))) == [1, 4, 4]  # as even as it can be behind a heavy starter
    assert counts(balanced(Load([1.0] * 12, 0, [1.0, 1.0, 2.0]))) == [3, 3, 6]
    assert counts(balanced(Load([1.0] * 12, 0, [4.0, 1.0, 1.0]))) == [8, 2, 2]


def test_the_maximum_load_is_measured_per_share_and_with_the_head() -> None:
    spans = spans_of([2, 3])
    assert Load([1.0] * 5, 4.0, [1.0, 1.0]).max_load(spans) == 6.0
    assert Load([1.0] * 5, 4.0, [3.0, 1.0]).max_load(spans) == 3.0
    assert Load([1.0, 1.0, 5.0, 1.0, 1.0], 0.0, [1.0, 1.0]).max_load(spans) == 7.0


def test_auto_keeps_the_table_while_it_is_within_five_percent_of_the_best() -> None:
    # 22 layers on 2 nodes are published as 10 and 12. A head of 2 makes that the best split; as the
    # head shrinks, 11 and 11 becomes best and the table's 12 falls behind it.
    table = spans_of([10, 12])
    assert split("auto", uniform(22, 2, head=2)) == table
    kept = Load([1.0] * 22, 0.43, [1.0, 1.0])  # best 11.43, table 12: 4.99% more
    assert kept.max_load(table) / kept.max_load(balanced(kept)) <= TABLE_TOLERANCE == 1.05
    assert split("auto", kept) == table
    left = Load([1.0] * 22, 0.42, [1.0, 1.0])  # best 11.42, table 12: 5.08% more
    assert split("auto", left) == balanced(left) == spans_of([11, 11])


def test_auto_balances_what_the_table_does_not_hold_or_does_not_fit() -> None:
    assert published(30, 3) is None
    assert counts(split("auto", uniform(30, 3))) == [10, 10, 10]
    assert counts(split("auto", Load([1.0] * 22, 0, [1.0, 10.0]))) == [2, 20]
    assert split("auto", uniform(22, 1)) == [Span(0, 22)]


@pytest.mark.parametrize(
    ("text", "expected"), [("6,8,8", [6, 8, 8]), (" 6 , 8 , 8 ", [6, 8, 8]), ("1,1,20", [1, 1, 20])]
)
def test_an_explicit_split_is_taken_as_written(text: str, expected: list[int]) -> None:
    assert counts(split(text, uniform(22, 3, head=5))) == expected


@pytest.mark.parametrize("text", ["", "balanced", "6;8;8", "6,8,", "6,8,x", "6.0,8,8", "AUTO", "9" * 5000])
def test_what_is_no_split_at_all_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="expected auto, table, or layers per node such as 6,8,8"):
        split(text, uniform(22, 3))


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("6,8", "2 counts with the sum 14; this run needs 3 counts, each at least 1, with the sum 22"),
        ("6,8,9", "3 counts with the sum 23; this run needs 3 counts, each at least 1, with the sum 22"),
        ("0,11,11", "3 counts with the sum 22; this run needs 3 counts, each at least 1"),
        ("-2,12,12", "3 counts with the sum 22; this run needs 3 counts, each at least 1"),
    ],
)
def test_an_explicit_split_that_does_not_fit_is_refused_with_the_numbers(text: str, numbers: str) -> None:
    with pytest.raises(ConfigError) as caught:
        explicit(text, 22, 3)
    assert f"--split {text}: {numbers}" in str(caught.value)


def test_a_split_the_table_does_not_hold_is_refused_with_the_numbers() -> None:
    with pytest.raises(ConfigError, match="no split of 30 layers over 3 nodes; use --split auto"):
        split("table", uniform(30, 3))
    with pytest.raises(ConfigError, match="no split of 5 layers over 4 nodes"):
        split("table", uniform(5, 4))


@pytest.mark.parametrize("method", ["auto", "table", "1,1,1"])
def test_more_nodes_than_layers_are_refused_with_the_numbers(method: str) -> None:
    with pytest.raises(ConfigError, match="a model of 2 layers can be split over 1 to 2 nodes, not 3"):
        split(method, uniform(2, 3))
    with pytest.raises(ConfigError, match="over 1 to 2 nodes, not 0"):
        split(method, uniform(2, 0))
