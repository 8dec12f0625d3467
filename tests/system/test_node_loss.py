"""Whichever nodes are lost, the text is that of an undisturbed run, or the error names the node."""

import random
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

import mdi.cluster.recovery
import mdi.cluster.rendezvous
from mdi.errors import ConfigError, RingBroken
from mdi.model.span import Span
from mdi.model.stage import Stage
from support.bench import STYLES, TIMEOUTS, Bench, once
from support.logs import before_log, whenever_logged
from support.rings import Machine
from support.scripts import wait_until

pytestmark = pytest.mark.slow

SUPERVISOR = "mdi.cluster.supervisor"
RETURNING = replace(TIMEOUTS, return_check_s=0.1)


@pytest.mark.parametrize(
    ("lost", "style"), [(1, "greedy"), (2, "greedy"), (1, "seeded"), (2, "seeded"), (1, "penalized")]
)
def test_a_node_that_comes_back_goes_on_from_where_it_was(
    lost: int, style: str, make_bench: Callable[[int], Bench], tiny: Path, expected: dict[str, list[list[int]]],
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    bench = make_bench(3)
    machine = bench.machines[lost]
    options = STYLES[style]
    with whenever_logged(SUPERVISOR, "is lost: ", machine.start):
        assert bench.run(tiny, on_token=once(25, machine.kill), **options) == expected[style]
    assert bench.n_recoveries == 1
    messages = [record.getMessage() for record in caplog.records if record.name == SUPERVISOR]
    address = rf"secondary {lost - 1} (127.0.0.1:{bench.ring[lost].port})"
    assert messages[0].startswith(f"{address} is lost: ")
    assert messages[0].endswith("; waiting up to 20 s for it")
    assert messages[1:] == [f"secondary {lost - 1} is back: replaying 4 samples"]
    assert bench.starter is not None
    assert [i.text for i in bench.starter.incidents] == [f"secondary {lost - 1} lost", f"secondary {lost - 1} back"]
    assert not list(bench.machines[lost].cache_dir.glob("*.partial"))
    bench.assert_at_rest()


def test_slots_of_8_bits_are_filled_again_as_they_were(make_bench: Callable[[int], Bench], tiny: Path) -> None:
    """Prompts in pieces, tokens one by one, or all of them at once in a replay: the same bits."""
    bench, told = make_bench(3), set[str | None]()
    undisturbed = bench.run(tiny, kv_dtype="int8")
    machine = bench.machines[2]

    def restart(n_tokens: int) -> None:
        if n_tokens == 25:
            told.update(one.secondary.status().numerics for one in bench.machines.values())
            machine.kill()
            machine.start()

    assert bench.run(tiny, on_token=restart, kv_dtype="int8", max_batch_tokens=16) == undisturbed
    assert bench.n_recoveries == 1
    assert len(told) == 1
    assert str(told.pop()).startswith(("native-1-kv-int8:", "torch-"))


def test_a_node_that_is_killed_again_and_again_does_no_harm_within_the_limit(
    make_bench: Callable[[int], Bench], tiny: Path, expected: dict[str, list[list[int]]]
) -> None:
    bench = make_bench(3)

    def restart(n_tokens: int) -> None:
        if n_tokens in (9, 31):
            machine = bench.machines[2]
            machine.kill()
            machine.start()

    assert bench.run(tiny, on_token=restart) == expected["greedy"]
    assert bench.n_recoveries == 2


@pytest.mark.parametrize("style", ["greedy", "seeded"])
def test_the_other_nodes_take_over_down_to_the_starter_alone(
    style: str, make_bench: Callable[[int], Bench], tiny: Path, expected: dict[str, list[list[int]]],
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    bench = make_bench(3)
    kills = {15: 1, 40: 2}
    options = STYLES[style] | {"node_timeout_s": 1.0}

    def kill(n_tokens: int) -> None:
        if n_tokens in kills:
            bench.machines[kills[n_tokens]].kill()

    assert bench.run(tiny, on_token=kill, **options) == expected[style]
    assert bench.n_recoveries == 2
    assert bench.starter is not None
    assert bench.starter.status().members == ["starter"]
    assert bench.starter.status().span == Span(0, 6)
    said = [record.getMessage() for record in caplog.records if record.getMessage().startswith("going on without")]
    gone = "which did not come back within 1 s (--node-timeout)"
    assert said[0].startswith(f"going on without secondary 0, {gone}: layers 0 to ")
    assert said[0].endswith("to 5 on secondary 1")
    assert said[1] == f"going on without secondary 1, {gone}: layers 0 to 5 on starter"


def returning(bench: Bench, plays: dict[int, Callable[[], object]]) -> Callable[[int], None]:
    """Plays at numbers of tokens; one that returns something lasts until a node can be taken back, or all are there."""

    def is_better() -> bool:
        assert bench.starter is not None
        is_whole = len(bench.starter.status().members) == len(bench.machines) + 1
        return is_whole or bench.starter._supervisor.has_next

    def play(n_tokens: int) -> None:
        if n_tokens in plays and plays[n_tokens]() is not None:
            wait_until(is_better, 60, "a node can be taken back")

    return play


def start_all(*machines: Machine) -> bool:
    for machine in machines:
        machine.start()
    return True


@pytest.mark.parametrize("style", ["greedy", "seeded"])
def test_nodes_that_were_left_out_are_taken_back(
    style: str, make_bench: Callable[..., Bench], tiny: Path, expected: dict[str, list[list[int]]],
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    bench = make_bench(3, RETURNING)
    one, other = bench.machines[1], bench.machines[2]
    play = returning(bench, {9: one.kill, 20: other.kill, 34: lambda: start_all(one, other), 50: lambda: True})
    assert bench.run(tiny, on_token=play, node_timeout_s=1.0, **STYLES[style]) == expected[style]
    assert bench.starter is not None
    assert bench.starter.status().members == ["starter", "secondary 0", "secondary 1"]
    assert bench.n_recoveries in (3, 4), "both at once, or one after the other"
    assert "secondary 1 can take part again: layer" in caplog.text
    assert bench.starter.incidents[-1].text.endswith("back")
    bench.assert_at_rest()


def test_a_node_that_is_taken_back_and_lost_at_once_does_no_harm(
    make_bench: Callable[..., Bench], tiny: Path, expected: dict[str, list[list[int]]],
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    bench = make_bench(3, RETURNING)
    machine = bench.machines[1]
    play = returning(bench, {9: machine.kill, 34: lambda: start_all(machine)})
    with before_log(SUPERVISOR, "can take part again", machine.kill):
        assert bench.run(tiny, on_token=play, node_timeout_s=1.0) == expected["greedy"]
    assert "going on without secondary 0, which did not get ready after all: layers" in caplog.text


def test_ten_nodes_leave_and_come_back_at_random(
    make_bench: Callable[..., Bench], tiny: Path, expected: dict[str, list[list[int]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mdi.cluster.recovery, "MAX_FAILURES", 100)
    bench, chance = make_bench(3, RETURNING), random.Random(5)
    gone: list[Machine] = []

    def turn() -> object:
        if not gone or (len(gone) == 1 and chance.random() < 0.3):
            gone.append(chance.choice([machine for machine in bench.machines.values() if machine not in gone]))
            return gone[-1].kill()
        back, gone[:] = gone[:], []
        return start_all(*back)

    play = returning(bench, dict.fromkeys(range(4, 64, 6), turn))
    assert bench.run(tiny, on_token=play, node_timeout_s=1.0) == expected["greedy"]
    assert bench.n_recoveries >= 8


def test_two_nodes_that_vanish_at_once(
    make_bench: Callable[[int], Bench], tiny: Path, expected: dict[str, list[list[int]]]
) -> None:
    bench = make_bench(3)
    kill = once(20, lambda: [machine.kill() for machine in bench.machines.values()])
    assert bench.run(tiny, on_token=kill, node_timeout_s=1.0) == expected["greedy"]
    assert bench.n_recoveries == 1


def test_a_node_given_the_chunk_of_its_first_span_takes_over_too(
    make_bench: Callable[[int], Bench], tiny: Path, expected: dict[str, list[list[int]]]
) -> None:
    bench = make_bench(3)
    bench.run(tiny)
    machine = bench.machines[2]
    machine.kill()
    machine.give_chunk(tiny / "chunks" / "3nodes" / "model_secondary1.pth")
    machine.start()
    assert bench.run(tiny, on_token=once(20, bench.machines[1].kill), node_timeout_s=1.0) == expected["greedy"]
    assert bench.starter is not None
    assert bench.starter.status().members == ["starter", "secondary 1"]


def test_a_node_that_fails_three_times_is_left_out(
    make_bench: Callable[[int], Bench], tiny: Path, expected: dict[str, list[list[int]]],
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    bench = make_bench(3)
    machine = bench.machines[1]

    def fail(n_tokens: int) -> None:
        if n_tokens in (10, 20, 30):
            machine.kill()

    with whenever_logged(SUPERVISOR, "is lost: ", machine.start):
        assert bench.run(tiny, on_token=fail) == expected["greedy"]
    assert bench.n_recoveries == 3
    assert "going on without secondary 0, which failed 3 times in 10 minutes: layers" in caplog.text


def test_a_second_node_that_is_lost_during_the_recovery(
    make_bench: Callable[[int], Bench], tiny: Path, expected: dict[str, list[list[int]]]
) -> None:
    """The first is down; while it is waited for, the second goes down too; then both come back, one by one."""
    bench = make_bench(3)
    one, other = bench.machines[1], bench.machines[2]

    def second_loss() -> None:
        other.kill()
        one.start()

    with (
        whenever_logged(SUPERVISOR, "secondary 0 (", second_loss),
        whenever_logged(SUPERVISOR, "secondary 1 (", other.start),
    ):
        assert bench.run(tiny, on_token=once(20, one.kill)) == expected["greedy"]
    assert bench.n_recoveries >= 1
    bench.assert_at_rest()


@pytest.mark.parametrize("n_nodes", [2, 3])
def test_where_nobody_can_take_over_all_that_was_generated_is_delivered(
    n_nodes: int, make_bench: Callable[[int], Bench], tiny: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(tiny, tmp_path / "org" / "tiny", ignore=shutil.ignore_patterns("chunks")))
    bench = make_bench(n_nodes)
    bench.run(folder)
    (folder / "lit_model.pth").unlink()
    seen: list[int] = []

    def kill(n_tokens: int) -> None:
        seen.append(n_tokens)
        if n_tokens == 20:
            bench.machines[n_nodes - 1].kill()

    lost = rf"secondary {n_nodes - 2} did not come back within 1 s \(--node-timeout\), and no other"
    with pytest.raises(RingBroken, match=lost):
        bench.run(folder, on_token=kill, node_timeout_s=1.0)
    assert len(seen) >= 20
    bench.assert_at_rest()


def test_a_starter_that_has_no_room_for_all_layers_ends_the_run(
    make_bench: Callable[[int], Bench], tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its own failure: there is nobody left who could take over."""
    bench = make_bench(3)
    allocate = Stage.allocate

    def allocate_little(stage: Stage, n_slots: int, context: int) -> None:
        span = stage.engine.span
        if n_slots and len(span) > (2 if span.start else 3):
            raise ConfigError(f"out of memory for {n_slots} slots")
        allocate(stage, n_slots, context)

    monkeypatch.setattr(Stage, "allocate", allocate_little)
    with pytest.raises(ConfigError, match=r"^out of memory for 4 slots"):
        bench.run(tiny, on_token=once(20, bench.machines[1].kill), node_timeout_s=1.0)
    bench.assert_at_rest()


def test_a_starter_with_chunks_alone_says_at_once_that_nobody_can_take_over(
    three: Bench, tiny: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    three.run(tiny)
    assert "no other can take over" not in caplog.text
    folder = Path(shutil.copytree(tiny, tmp_path / "org" / "tiny"))
    (folder / "lit_model.pth").unlink()
    shutil.rmtree(folder / "chunks" / "2nodes", ignore_errors=True)
    three.run(folder)
    assert caplog.text.count("no other can take over its layers") == 1


def test_an_interrupt_during_a_recovery_ends_the_run_at_once(
    make_bench: Callable[[int], Bench], tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = make_bench(3)

    def interrupt(rendezvous: object, calls: object) -> None:
        raise KeyboardInterrupt

    def kill() -> None:
        bench.machines[1].kill()
        monkeypatch.setattr(mdi.cluster.rendezvous.Rendezvous, "await_all", interrupt)

    began_s = [0.0]
    with pytest.raises(KeyboardInterrupt):
        bench.run(tiny, on_token=once(20, lambda: (kill(), began_s.__setitem__(0, time.monotonic()))))
    assert time.monotonic() - began_s[0] < 15.0  # --node-timeout is 20 s here
    bench.assert_at_rest()
