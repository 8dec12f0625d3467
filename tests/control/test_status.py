"""What a node says of itself: checked field by field when it arrives."""

import json
from dataclasses import fields, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mdi.control.status import (
    MAX_ERROR_CHARACTERS,
    NeedsChunk,
    NodeState,
    NodeStatus,
    SecondaryStatus,
    StarterStatus,
    init_answer_from_json,
    init_answer_to_json,
)
from mdi.errors import ControlError
from mdi.model.span import Span
from mdi.work import Work
from support.statuses import IDLE, READY, RUNNING_STARTER, STARTING
from support.wire import few_examples

STATUSES = [IDLE, READY.status, STARTING, RUNNING_STARTER]


def through_json(value: Any) -> Any:
    return json.loads(json.dumps(value))


@pytest.mark.parametrize("status", STATUSES, ids=["idle", "ready", "starter", "running starter"])
def test_a_status_survives_the_way_through_json(status: NodeStatus) -> None:
    received = NodeStatus.from_json(through_json(status.to_json()))
    assert received == status
    assert type(received) is type(status)


@pytest.mark.parametrize("state", NodeState)
def test_every_state_has_a_name_on_the_wire(state: NodeState) -> None:
    data = through_json(replace(IDLE, state=state).to_json())
    assert data["state"] == state.name.lower()
    assert NodeStatus.from_json(data).state is state


def test_a_counter_that_is_not_known_yet_is_ignored() -> None:
    data = RUNNING_STARTER.to_json()
    assert NodeStatus.from_json(data | {"work": data["work"] | {"joules": 5.0}}) == RUNNING_STARTER


def test_a_key_that_is_not_known_yet_is_ignored() -> None:
    assert NodeStatus.from_json(IDLE.to_json() | {"temperature": 70, "x" * 5000: None}) == IDLE


def test_every_field_is_checked() -> None:
    for kind in (SecondaryStatus, StarterStatus):
        assert set(kind.checks) == {item.name for item in fields(kind)}


def test_what_an_earlier_version_does_not_tell_has_its_default() -> None:
    data = {name: value for name, value in READY.status.to_json().items() if name not in ("weights", "received")}
    assert NodeStatus.from_json(data) == READY.status
    for name in ("version", "last_error"):
        with pytest.raises(ControlError, match=f"lacks {name}"):
            NodeStatus.from_json({key: value for key, value in data.items() if key != name})


def test_what_runs_on_a_node_is_told_in_one_line() -> None:
    loaded = replace(READY.status, weights="int8", weights_bytes=269_000_000)
    assert loaded.computes == "layers 2 to 3, bfloat16 on cuda:1, int8 weights of 269.00 MB"
    assert loaded.memory == "1.07 GB at most so far, 8.59 GB free"
    limited = replace(loaded, memory_limit_bytes=3_000_000_000)
    assert limited.memory == "1.07 GB at most so far, 8.59 GB free, limited to 3.00 GB"
    assert [status.available_bytes for status in (limited, loaded, IDLE)] == [3_000_000_000, 1 << 33, None]
    assert (limited.room, IDLE.room) == ("8.59 GB free, limited to 3.00 GB", "-")
    unquantized = replace(loaded, span=Span(2, 3), weights="none")
    assert unquantized.computes == "layer 2, bfloat16 on cuda:1, weights of 269.00 MB"
    assert (IDLE.computes, IDLE.memory) == ("float32 on cpu", "1.07 GB at most so far")


BAD_SIZES = [None, "1", 1.0, True, -1, 10**30, [1]]
BAD_NUMBERS = ["1", 1.5, True, -1, 2**64]
BAD_STRINGS = [1, True, ["a"], {}, "x" * 2000]
WORK = Work(1.0, 0, 2.5, 7)._asdict()
BAD_VALUES: dict[str, list[Any]] = {
    "role": [None, 1, "", "server", ["secondary"], {}],
    "version": [None, *BAD_STRINGS],
    "state": [None, 1, "", "READY", "needs chunk", ["ready"], {}],
    "device": [None, *BAD_STRINGS],
    "dtype": [None, "", "int8", ["float32"], {}],
    "own_dtype": ["", "int8", ["float32"], {}],
    "quantize": ["", "int2", 8, ["int8"], {}],
    "kv_dtype": ["", "bfloat16", "int4", 8, ["int8"], {}],
    "weights": ["", "int2", 8, ["int8"], {}],
    "weights_bytes": BAD_SIZES,
    "cache_bytes": BAD_SIZES,
    "has_kernels": [None, 0, 1, "true", [True]],
    "run": BAD_NUMBERS,
    "epoch": BAD_NUMBERS,
    "model": BAD_STRINGS,
    "span": [[], [1], [1, 2, 3], [2, 2], [-1, 2], [0, 1.0], ["0", "1"], {"0": 0}, "01"],
    "peak_memory_bytes": BAD_SIZES,
    "free_memory_bytes": BAD_SIZES[1:],
    "memory_limit_bytes": BAD_SIZES[1:],
    "memory_bytes": BAD_SIZES[1:],
    "numerics": BAD_STRINGS,
    "waiting": BAD_SIZES[1:],
    "work": [
        5,
        "x",
        [],
        {},
        {"compute_s": 1.0},
        WORK | {"compute_s": -1},
        WORK | {"transfer_s": "1"},
        WORK | {"idle_s": float("nan")},
        WORK | {"idle_s": True},
        WORK | {"rows": 1.5},
        WORK | {"rows": -1},
    ],
    "starter": BAD_STRINGS,
    "rank": BAD_NUMBERS,
    "wire_dtype": ["", "int8", ["float32"]],
    "messages": BAD_SIZES,
    "last_error": [None, 1, ["a"], "x" * (MAX_ERROR_CHARACTERS + 1)],
    "members": [None, "starter", [1], ["x" * 2000], {}, ["x"] * 10_001],
    "samples": BAD_SIZES,
    "tokens": BAD_SIZES,
    "recoveries": BAD_SIZES,
}


@pytest.mark.parametrize("name", BAD_VALUES)
def test_a_wrong_value_is_an_error_that_names_it(name: str) -> None:
    status = STARTING if name in StarterStatus.checks.keys() - SecondaryStatus.checks.keys() else READY.status
    for value in BAD_VALUES[name]:
        with pytest.raises(ControlError) as caught:
            NodeStatus.from_json(through_json(status.to_json() | {name: value}))
        assert name in str(caught.value)
        assert len(str(caught.value)) < 300


@pytest.mark.parametrize("data", [None, 1, "ready", [], {}, {"error": "x"}, {"role": "secondary"}])
def test_what_is_not_a_status_is_an_error(data: Any) -> None:
    with pytest.raises(ControlError):
        NodeStatus.from_json(data)


@given(data=st.dictionaries(st.sampled_from(sorted(BAD_VALUES)), st.none() | st.booleans() | st.integers() | st.text()))
@few_examples
def test_whatever_arrives_is_a_status_or_an_error(data: dict[str, Any]) -> None:
    try:
        received = NodeStatus.from_json(READY.status.to_json() | data)
    except ControlError:
        return
    assert NodeStatus.from_json(received.to_json()) == received


def test_a_long_error_is_cut_so_that_the_other_side_takes_it() -> None:
    status = replace(IDLE, last_error="x" * 100_000)
    received = NodeStatus.from_json(through_json(status.to_json()))
    assert isinstance(received, SecondaryStatus)
    assert received.last_error == "x" * MAX_ERROR_CHARACTERS


@pytest.mark.parametrize("answer", [READY, NeedsChunk(0), NeedsChunk(2**40)])
def test_an_answer_to_init_survives_the_way_through_json(answer: Any) -> None:
    assert init_answer_from_json(through_json(init_answer_to_json(answer))) == answer


@pytest.mark.parametrize(
    "data",
    [
        None, [], {}, {"state": "ready"}, {"state": "needs chunk", "held_bytes": 5}, {"ready": {}}, {"ready": None},
        {"ready": STARTING.to_json()}, {"needs_chunk": {}}, {"needs_chunk": {"held_bytes": "5"}},
        {"needs_chunk": {"held_bytes": True}}, {"needs_chunk": {"held_bytes": -1}}, {"needs_chunk": 5},
    ],
)  # fmt: skip
def test_what_is_no_answer_to_init_is_an_error(data: Any) -> None:
    with pytest.raises(ControlError):
        init_answer_from_json(data)
