"""What a node does once it was timed: for others on its machine it goes on, and then it holds nothing any more."""

from pathlib import Path
from typing import Any

import pytest
import torch

from mdi.cluster.node_meter import NodeMeter
from mdi.errors import ConfigError
from support.timed_machine import Machine, measure_on, stage_request

ALL_BYTES, STAGE_BYTES = 10**9, 10**8


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    machine = Machine()
    measure_on(machine, monkeypatch)
    return machine


def meter_on(machine: Machine, **fields: Any) -> NodeMeter:
    def free_bytes() -> int:
        return ALL_BYTES - STAGE_BYTES * len(machine.stages)

    return NodeMeter(torch.device("cpu"), backend="torch", free_bytes=free_bytes, **fields)


def never() -> bool:
    raise AssertionError("there is nobody to compute for")


def test_a_node_computes_on_until_others_of_its_machine_are_timed(machine: Machine) -> None:
    meter, answers = meter_on(machine), iter([True, True, True, False])
    meter.measure(stage_request())
    n_passes = machine.n_passes
    meter.keep_busy(lambda: next(answers))
    assert machine.n_passes == n_passes + 3
    assert not machine.stages, "its memory is free again"
    meter.keep_busy(never)


def test_a_node_that_has_its_machine_for_itself_holds_nothing(machine: Machine) -> None:
    meter = meter_on(machine)
    meter.measure(stage_request(nodes_on_host=1))
    assert not machine.stages
    meter.keep_busy(never)


def test_a_node_whose_times_were_kept_computes_nothing(machine: Machine, tmp_path: Path) -> None:
    meter = meter_on(machine, folder=tmp_path)
    meter.measure(stage_request())
    meter.keep_busy(lambda: False)
    n_passes = machine.n_passes
    meter.measure(stage_request())
    meter.keep_busy(never)
    assert machine.n_passes == n_passes


def test_what_a_node_is_timed_with_counts_as_free(machine: Machine, tmp_path: Path) -> None:
    meter = meter_on(machine, folder=tmp_path)
    assert meter.measure(stage_request(nodes_on_host=1)).free_memory_bytes == ALL_BYTES
    assert meter.measure(stage_request(has_head=True)).free_memory_bytes == ALL_BYTES
    assert len(machine.stages) == 2, "they are in memory while the node answers"
    assert meter.measure(stage_request(has_head=True)).free_memory_bytes == ALL_BYTES, "as it was kept"
    assert not machine.stages


def test_weights_of_an_earlier_session_are_given_back_before_memory_is_asked_for(machine: Machine) -> None:
    held = [machine.make_engine(None, range(2), {}, None)]  # type: ignore[arg-type]
    meter = meter_on(machine, make_room=held.clear)
    assert meter.measure(stage_request()).free_memory_bytes == ALL_BYTES


def test_a_measurement_that_fails_leaves_nothing_behind(machine: Machine) -> None:
    meter = meter_on(machine)
    meter.measure(stage_request())
    meter.memory_limit_bytes = 1000
    with pytest.raises(ConfigError, match="1000 B may be used"):
        meter.measure(stage_request())
    meter.keep_busy(never)
    assert not machine.stages
