"""What answers in the place of a node is not that node: before the first token an error, afterwards an absence."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mdi.cluster.member_setup import PeersTimedOut
from mdi.errors import ConfigError, ControlError
from mdi.model.stage import Stage
from support.bench import Bench, once
from support.logs import before_log
from support.relay import Fault
from support.stand_ins import ABSENT, STAND_INS, stand_in

pytestmark = pytest.mark.slow

SUPERVISOR = "mdi.cluster.supervisor"
MOMENTS = ("start", "running", "recovering", "take-over")
# Each kind at one moment; tests/cluster/test_member_setup.py has all pairs.
TABLE = [(kind, MOMENTS[(i + i // len(MOMENTS)) % len(MOMENTS)]) for i, kind in enumerate(STAND_INS)]


@contextlib.contextmanager
def in_place_of(bench: Bench, node: int, kind: str) -> Iterator[Callable[[], None]]:
    """What lets something else answer on the HTTP port of a node, from when it is called to the end of the block."""
    relay = bench.http[node]
    with stand_in(kind) as port:
        try:
            yield lambda: relay.redirect(port)
        finally:
            relay.redirect(bench.machines[node].node.http_port)


@pytest.mark.parametrize(("kind", "moment"), TABLE)
def test_what_answers_in_the_place_of_a_node(
    kind: str, moment: str, make_bench: Callable[[int], Bench], tiny: Path, expected: dict[str, list[list[int]]],
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    bench = make_bench(3)
    with in_place_of(bench, 1, kind) as replace:
        if moment == "start":
            replace()
            with pytest.raises(ControlError, match="secondary 0 at ") as caught:
                bench.run(tiny, node_timeout_s=1.0)
            assert isinstance(caught.value, PeersTimedOut) is (kind in ABSENT)
            return
        with contextlib.ExitStack() as stack:
            strike = strike_at(moment, bench, replace, stack)
            assert bench.run(tiny, on_token=once(20, strike), node_timeout_s=1.0) == expected["greedy"]
    assert bench.n_recoveries == 1
    assert bench.starter is not None
    assert "secondary 0" not in bench.starter.status().members
    told = [record.getMessage() for record in caplog.records if " is lost: secondary 0 at " in record.getMessage()]
    assert len(told) == (moment != "recovering" or kind not in ABSENT), "once, and once more where something answers"
    bench.assert_at_rest()


def strike_at(
    moment: str, bench: Bench, replace: Callable[[], None], stack: contextlib.ExitStack
) -> Callable[[], object]:
    """What happens at the twentieth token."""
    if moment == "running":
        return lambda: (replace(), bench.ring[1].strike(Fault.RESET))
    if moment == "recovering":
        stack.enter_context(before_log(SUPERVISOR, "secondary 0 (", replace))
        return bench.machines[1].kill
    stack.enter_context(before_log(SUPERVISOR, "going on without secondary 1", replace))
    return bench.machines[2].kill


def test_a_node_without_room_for_more_layers_counts_as_missing(
    make_bench: Callable[[int], Bench], tiny: Path, expected: dict[str, list[list[int]]],
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    """It was to take over the layers of another one; the starter does."""
    bench = make_bench(3)
    allocate = Stage.allocate

    def allocate_little(stage: Stage, n_slots: int, context: int) -> None:
        span = stage.engine.span
        if n_slots and span.start and len(span) > 2:
            raise ConfigError(f"out of memory for {n_slots} slots")
        allocate(stage, n_slots, context)

    monkeypatch.setattr(Stage, "allocate", allocate_little)
    assert bench.run(tiny, on_token=once(20, bench.machines[1].kill), node_timeout_s=1.0) == expected["greedy"]
    assert bench.starter is not None
    assert bench.starter.status().members == ["starter"]
    assert caplog.text.count("out of memory for 4 slots; waiting up to 1 s for it") == 1
