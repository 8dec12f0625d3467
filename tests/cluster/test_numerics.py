"""Nodes that compute differently are named, each with what it computes as."""

from mdi.cluster.numerics import differing_numerics


def test_nodes_that_compute_alike_are_not_worth_a_word() -> None:
    assert differing_numerics({"starter": "native-1:float32", "secondary 0": "native-1:float32"}) is None
    assert differing_numerics({"starter": "native-1:float32"}) is None


def test_a_node_that_tells_nothing_is_not_compared() -> None:
    assert differing_numerics({"starter": "native-1:float32", "secondary 0": None}) is None


def test_one_line_names_every_node_and_its_numerics() -> None:
    told = differing_numerics(
        {"starter": "native-1:float32", "secondary 0": "torch-2.13:float32", "secondary 1": "native-1:float32"}
    )
    assert told == (
        "the nodes compute differently (starter, secondary 1: native-1:float32; secondary 0: torch-2.13:float32),"
        " so the text may change where layers move from one to another"
    )
