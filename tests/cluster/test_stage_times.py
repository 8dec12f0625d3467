"""What is timed of a stage, against an engine whose clock is its own."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from litgpt.config import Config

from mdi.cluster import stage_times
from mdi.cluster.stage_times import ROWS, StageTimer
from mdi.control.measurement import LayerTime
from mdi.formats import BackendChoice, Mode
from mdi.model.backends.select import make_head, make_span_engine
from mdi.model.build import Placement
from mdi.model.span import Span
from mdi.model.span_engine import SpanEngine
from mdi.model.weights import Weights
from mdi.segments import Segment
from support.models import BASE
from support.timed_machine import LOGITS_S, MESSAGE_S, POSITION_S, ROW_S, Engine, Machine


def timer_on(machine: Machine, **fields: Any) -> StageTimer:
    config = Config(**{**BASE, "block_size": 4096, **fields})
    placement = Placement(torch.device("cpu"), torch.float32)
    return StageTimer(config, torch.float32, placement, machine.make_engine, machine.make_head, machine.clock)


def listing_timer() -> tuple[StageTimer, list[tuple[int, int]]]:
    """A timer, and what passes through its engines: layers and rows."""
    machine, passes = Machine(), list[tuple[int, int]]()

    class Listed(Engine):
        def forward(self, x: torch.Tensor, segments: Sequence[Segment]) -> torch.Tensor:
            passes.append((len(self.span), len(x)))
            return super().forward(x, segments)

    return replace(timer_on(machine), make_engine=lambda config, span, *_: Listed(machine, span)), passes


def test_layers_are_timed_alone_for_all_rows_and_contexts() -> None:
    timer = timer_on(Machine())
    message_s = timer.message_s()
    assert message_s == pytest.approx(MESSAGE_S, rel=1e-3)
    times = {(time.rows, time.context): time.seconds for time in timer.layers(message_s)}
    assert set(times) == {(rows, context) for rows in (1, 4, 8, 16, 128) for context in (128, 512)}
    for (rows, context), seconds in times.items():
        positions = context if rows == 128 else rows * context  # of a piece of a prompt, in one slot
        assert seconds == pytest.approx(ROW_S * rows + POSITION_S * positions, rel=1e-3)


def test_what_a_message_takes_besides_is_timed_behind_all_layers() -> None:
    """They leave none of it in the caches. Nor do they before the frames of a message are timed."""
    timer, passes = listing_timer()
    assert timer.message_s() == pytest.approx(MESSAGE_S, rel=1e-3)
    few = [i for i, (n, _) in enumerate(passes) if n == 1]
    assert len(few) > 2 and all(passes[i - 1][0] == 6 for i in few[1:])
    passes.clear()
    assert 0 < timer.frame_s() < 10
    assert passes and {n for n, _ in passes} == {6}


def test_a_piece_is_timed_on_one_layer_behind_all_layers() -> None:
    """It takes as long as dozens of messages, and asks little of the memory."""
    timer, passes = listing_timer()
    timer.layers(MESSAGE_S)
    pieces = [i for i, (_, rows) in enumerate(passes) if rows == 128]
    assert {passes[i] for i in pieces} == {(1, 128)}
    assert sum(passes[i - 1] == (6, 1) for i in pieces) == len(pieces) - 2, "but before the first, of each context"


def test_of_a_single_layer_it_is_what_a_node_without_layers_takes() -> None:
    timer = replace(timer_on(Machine()), room_bytes=1)
    assert timer._n_layers == 1 and timer.message_s() == pytest.approx(MESSAGE_S, rel=1e-3)


def test_a_layer_takes_some_time_however_busy_the_machine_was() -> None:
    assert all(time.seconds > 0 for time in timer_on(Machine()).layers(3600.0))


def test_a_short_context_is_timed_as_it_is() -> None:
    times = timer_on(Machine(), block_size=64).layers(0.0)
    assert {(time.rows, time.context) for time in times} == {(rows, 64) for rows in (1, 4, 8, 16, 64)}


def test_a_slow_machine_does_not_compute_pieces() -> None:
    """It would take a minute, and is in proportion to the rows."""
    machine = Machine(slowness=1000)
    times = timer_on(machine).layers(1000 * MESSAGE_S)
    by_rows = {(time.rows, time.context): time.seconds for time in times}
    assert by_rows[128, 512] == pytest.approx(8 * by_rows[16, 512])


def test_of_a_large_vocabulary_a_part_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = {time.rows: time.seconds for time in timer_on(Machine()).head()}
    assert whole == pytest.approx({rows: LOGITS_S * rows for rows in (1, 4, 8, 16)}, rel=1e-3)
    monkeypatch.setattr(stage_times, "HEAD_BYTES", 100_000)
    machine = Machine()
    large = timer_on(machine, vocab_size=32_000, padded_vocab_size=32_000)
    assert large._head_config.padded_vocab_size == 1024
    assert {time.rows: time.seconds for time in large.head()} == pytest.approx(
        {rows: LOGITS_S * rows * 32_000 / 320 for rows in (1, 4, 8, 16)}, rel=1e-3
    )


@pytest.mark.parametrize(("room_bytes", "n_layers"), [(1, 1), (3_600_000, 2), (10**9, 6)])
def test_as_many_layers_are_timed_as_the_memory_allows(room_bytes: int, n_layers: int) -> None:
    timer, alone = (replace(timer_on(Machine()), room_bytes=n) for n in (room_bytes, 1))
    assert timer._n_layers == n_layers
    assert timer.needed_bytes - alone.needed_bytes >= (n_layers - 1) * 30_000
    assert timer.needed_bytes <= room_bytes or n_layers == 1


@pytest.mark.parametrize(("cache_bytes", "n_layers"), [(1, 1), (6_000, 3), (10**9, 6)])
def test_as_many_layers_are_timed_as_no_cache_holds(cache_bytes: int, n_layers: int) -> None:
    """A layer takes 30 kB, and sixteen times as much as the caches hold is enough."""
    assert replace(timer_on(Machine()), cache_bytes=cache_bytes)._n_layers == n_layers


def test_no_more_is_timed_than_there_is_room_for() -> None:
    """Of the head, too: here embedding and head are 65 MB."""
    large = timer_on(Machine(), vocab_size=256_000, padded_vocab_size=256_000)
    for room_bytes in (2_000_000, 10_000_000, 50_000_000, 10**9):
        assert replace(large, room_bytes=room_bytes).needed_bytes <= room_bytes


def test_the_layers_pass_through_the_caches_before_each_time_of_the_head() -> None:
    machine = Machine()
    timer_on(machine).head()
    assert machine.n_passes == machine.n_heads - len(ROWS), "the first time of each is not timed"


def test_a_node_computes_usual_messages_while_others_need_it() -> None:
    """It looks before each of them, and ticks after each."""
    machine, ticks, answers = Machine(), [], iter([True, True, False])
    placement = Placement(torch.device("cpu"), torch.float32, rows=4, tick=lambda: ticks.append(machine.n_passes))
    timer = replace(timer_on(machine), placement=placement)
    timer.layers(0.0)
    ticks.clear()
    n_before, began_s = machine.n_passes, machine.now_s
    timer.keep_busy(lambda: next(answers))
    assert ticks == [n_before + 1, n_before + 2]
    pass_s = MESSAGE_S + BASE["n_layer"] * (4 * ROW_S + 4 * 128 * POSITION_S)
    assert machine.now_s - began_s == pytest.approx(2 * pass_s)


class RealEngine(Engine):
    """Computes as well."""

    def __init__(self, machine: Machine, span: Span, real: SpanEngine) -> None:
        super().__init__(machine, span)
        self.real = real

    def allocate(self, n_slots: int, context: int) -> None:
        super().allocate(n_slots, context)
        self.real.allocate(n_slots, context)

    def fork(self, source: int, target: int, n: int) -> None:
        super().fork(source, target, n)
        self.real.fork(source, target, n)

    def forward(self, x: torch.Tensor, segments: Sequence[Segment]) -> torch.Tensor:
        return self.real.forward(super().forward(x, segments), segments)


class RealMachine(Machine):
    """Its engines compute, and take what they are told to take: how fast this machine is decides nothing."""

    def make_engine(self, config: Config, span: Span, weights: Mapping[str, torch.Tensor], placement: Any) -> Engine:
        return RealEngine(self, span, make_span_engine(config, span, Weights.of(weights), placement))


@pytest.mark.parametrize("mode", ["none", "int8"])
@pytest.mark.parametrize("backend", ["native", "torch"])
def test_real_engines_are_timed(backend: BackendChoice, mode: Mode, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stage_times, "TIMING_S", 0.0)
    machine = RealMachine()
    placement = Placement(torch.device("cpu"), torch.float32, mode, backend=backend)
    timer = StageTimer(Config(**BASE), torch.float32, placement, machine.make_engine, make_head, machine.clock)
    message_s = timer.message_s()
    assert message_s == pytest.approx(MESSAGE_S, rel=1e-2)
    times = timer.layers(message_s)
    assert [time[:2] for time in times] == [(1, 128), (4, 128), (8, 128), (16, 128), (128, 128)]
    assert max(times, key=lambda time: time.seconds) == LayerTime(128, 128, times[-1].seconds)
    assert all(time.seconds > 0 for time in timer.head())
    answers = iter([True, False])
    timer.keep_busy(lambda: next(answers))
