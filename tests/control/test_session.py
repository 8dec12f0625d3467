"""The session that a starter describes to a secondary: checked field by field when it arrives."""

import dataclasses
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mdi.control.session import SessionSpec
from mdi.errors import ControlError
from mdi.ids import Rank
from mdi.model.span import Span
from mdi.net.sockets import Peer
from support.control import SPEC
from support.wire import few_examples


def wire_json(**changes: Any) -> dict[str, Any]:
    """SPEC as it arrives, with some fields changed."""
    return json.loads(json.dumps(SPEC.to_json() | changes))


def error_of(data: Any) -> str:
    with pytest.raises(ControlError) as caught:
        SessionSpec.from_json(data)
    return str(caught.value)


def test_a_session_survives_the_way_through_json() -> None:
    received = SessionSpec.from_json(wire_json())
    assert received == SPEC
    assert isinstance(received.span, Span)
    assert isinstance(received.predecessor, Peer)


def test_the_ring_gets_its_numbers_from_the_session() -> None:
    session = SPEC.session
    assert (session.epoch, session.n_embd, session.wire_dtype) == (2**63 + 5, 64, "bfloat16")
    assert (session.n_slots, session.context, session.max_rows) == (3, 128, 512)


def test_each_node_expects_what_the_one_before_it_says() -> None:
    nodes = [dataclasses.replace(SPEC, rank=Rank(rank)) for rank in range(3)]
    for node in nodes:
        assert node.expected == nodes[node.rank - 1].hello
        assert node.expected != node.hello
        assert json.loads(json.dumps(node.hello)) == node.hello


@pytest.mark.parametrize("changed", ["run", "n_slots", "context", "max_rows"])
def test_a_session_of_other_numbers_says_another_hello(changed: str) -> None:
    assert dataclasses.replace(SPEC, **{changed: 7}).hello != SPEC.hello


PEER = {"name": "starter", "addr": "127.0.0.1", "port": 8088}
BAD_PEERS = [
    None, "127.0.0.1:5088", {}, PEER | {"port": 0}, PEER | {"port": 65536}, PEER | {"port": "80"},
    PEER | {"port": True}, PEER | {"addr": None}, PEER | {"addr": "x" * 2000}, PEER | {"name": 1}, PEER | {"x": 1},
]  # fmt: skip
BAD_NUMBERS = [None, "1", 1.0, True, -1, 0, 10**30, [1]]
BAD_VALUES: dict[str, list[Any]] = {
    "run": [None, "1", 1.5, True, -1, 2**64],
    "epoch": [None, "1", 1.5, True, -1, 2**64],
    "rank": BAD_NUMBERS,
    "n_nodes": [*BAD_NUMBERS, 1],
    "names": [None, "abc", {"0": "starter"}, ["starter", "secondary 0", 1], ["starter", "secondary 0", "a\nb"]],
    "starter": BAD_PEERS,
    "model": [None, 1, "x" * 2000],
    "model_digest": [None, "ab", "AB" * 32, "zz" * 32, "../" * 21 + "x", ["a"] * 64],
    "config": [
        None, [], {}, {"n_embd": 64}, {"n_layer": 6}, {"n_embd": "64", "n_layer": 6}, {"n_embd": 0, "n_layer": 6},
    ],
    "span": [
        None, [], [1], [1, 2, 3], [2, 2], [3, 2], [-1, 2], [0, 1.0], [False, True], ["0", "1"], {"0": 0, "1": 1}, "01",
    ],
    "chunk_digest": [None, 1, "a" * 63, "a" * 65, "A" * 64, "/" * 64],
    "n_slots": BAD_NUMBERS,
    "context": BAD_NUMBERS,
    "max_rows": BAD_NUMBERS,
    "wire_dtype": [None, "", "float64", "int8", ["float32"], {}],
    "dtype": ["", "float64", "int8", ["float32"], {}],
    "quantize": ["", "int2", 8, ["int8"], {}],
    "kv_dtype": ["", "bfloat16", "int4", 8, ["int8"], {}],
    "peer_timeout_s": [None, "5", True, 0, -1, 0.01, 1e9, float("nan"), float("inf")],
    "timeline": [None, 0, 1, "true"],
    "nodes_on_host": BAD_NUMBERS,
    "predecessor": BAD_PEERS,
    "successor": BAD_PEERS,
}  # fmt: skip


def test_every_field_is_checked() -> None:
    assert {*BAD_VALUES, "protocol", "version"} == {item.name for item in dataclasses.fields(SessionSpec)}


@pytest.mark.parametrize("name", BAD_VALUES)
def test_a_bad_value_is_refused_with_the_name_of_its_field(name: str) -> None:
    for value in BAD_VALUES[name]:
        assert f"the session's {name} is not acceptable" in error_of(wire_json(**{name: value}))


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("rank", {"rank": 3, "n_nodes": 3}),
        ("names", {"n_nodes": 4}),
        ("span", {"span": [4, 7], "config": {"n_embd": 64, "n_layer": 6}}),
    ],
)
def test_fields_that_contradict_each_other_are_refused(name: str, changes: dict[str, Any]) -> None:
    assert f"the session's {name} is not acceptable" in error_of(wire_json(**changes))


def test_a_refusal_stays_readable_whatever_was_sent() -> None:
    assert len(error_of(wire_json(model="x" * 100_000))) < 1000
    text = error_of(wire_json(**{"a\nb" * 10_000: 1}))
    assert len(text) < 1000
    assert "\n" not in text


@pytest.mark.parametrize("name", [item.name for item in dataclasses.fields(SessionSpec)])
def test_a_missing_field_is_named(name: str) -> None:
    data = wire_json()
    del data[name]
    text = error_of(data)
    assert name in text


def test_an_unknown_field_is_named() -> None:
    assert error_of(wire_json(colour="red")) == "the session has wrong fields: colour"


@pytest.mark.parametrize(("name", "value"), [("protocol", 1), ("protocol", None), ("version", "99.0"), ("version", 1)])
def test_another_version_is_refused_before_anything_else_is_looked_at(name: str, value: object) -> None:
    text = error_of(
        {name: value} | {"protocol": SPEC.protocol, "version": SPEC.version, "new_field": 1} | {name: value}
    )
    assert text.startswith("the starter runs version ")
    assert str(value) in text
    assert f"this node {SPEC.version} (protocol {SPEC.protocol})" in text


@pytest.mark.parametrize("data", [None, [], "x", 1, 1.5, True])
def test_what_is_no_object_is_refused(data: object) -> None:
    assert error_of(data) == "the session is not a JSON object"


json_values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=3)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=4), inner, max_size=3)),
    max_leaves=6,
)


@few_examples
@given(st.dictionaries(st.sampled_from([*BAD_VALUES, "protocol", "version", "x"]), json_values, min_size=1))
def test_arbitrary_fields_raise_nothing_but_control_errors(changes: dict[str, Any]) -> None:
    try:
        spec = SessionSpec.from_json(wire_json(**changes))
    except ControlError:
        return
    assert SessionSpec.from_json(json.loads(json.dumps(spec.to_json()))) == spec


@few_examples
@given(json_values)
def test_arbitrary_json_raises_nothing_but_control_errors(data: Any) -> None:
    with pytest.raises(ControlError):
        SessionSpec.from_json(data)
