"""Whatever a link does, the text is that of an undisturbed run, or the error names the node."""

import contextlib
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mdi.control.client import ControlClient
from mdi.control.status import NodeState, Ready
from mdi.errors import ControlError, RingBroken
from mdi.ids import Rank
from support.bench import GREEDY, N_TOKENS, PROMPTS, SEEDED, Bench, once
from support.models import make_model
from support.relay import Fault
from support.scripts import wait_until

pytestmark = pytest.mark.slow

# ---- every fault in every phase

HARMLESS = (Fault.DELAY, Fault.THROTTLE)
FAULTS = [fault for fault in Fault if fault is not Fault.TRICKLE]  # which test_stalls.py is about
MATRIX = [
    (fault, phase, (i + j) % 3)
    for i, fault in enumerate(FAULTS)
    for j, phase in enumerate(("handshake", "idle", "prefill", "shutdown"))
] + [(fault, "decode", node) for fault in FAULTS for node in range(3)]


@pytest.mark.parametrize(("fault", "phase", "node"), MATRIX)
def test_a_fault_of_a_ring_link_changes_no_token(
    fault: Fault, phase: str, node: int, three: Bench, tiny: Path, expected: dict[str, list[list[int]]]
) -> None:
    relay = three.ring[node]
    hooks: dict[str, Any] = {}
    match phase:
        case "handshake":
            relay.strike(fault)
        case "idle":
            hooks["before"] = lambda: (relay.strike(fault), relay.struck.wait(60))
        case "prefill":
            hooks["before"] = lambda: relay.strike(fault, after_bytes=400)
        case "decode":
            hooks["on_token"] = once(20, lambda: relay.strike(fault))
        case "shutdown":
            hooks["on_token"] = once(N_TOKENS * len(PROMPTS), lambda: relay.strike(fault))
    style = {"greedy": GREEDY, "seeded": SEEDED}
    which = "seeded" if phase == "decode" and node == 1 else "greedy"
    assert three.run(tiny, **hooks, **style[which]) == expected[which]
    assert relay.struck.is_set(), "the fault did not happen"
    if phase in ("idle", "prefill", "decode") and fault not in HARMLESS:
        assert three.n_recoveries >= 1
    three.assert_at_rest()


@pytest.mark.parametrize("fault", Fault)
def test_a_fault_while_weights_travel(fault: Fault, three: Bench, tmp_path: Path) -> None:
    """Each time another model, of which no node has a chunk."""
    folder = make_model(tmp_path / "org" / "sent", seed=list(Fault).index(fault) + 1)
    relay = three.http[1]
    relay.strike(fault, after_bytes=30_000)  # the chunk has 50 kB
    if fault is Fault.CORRUPT:
        with pytest.raises(ControlError, match=r"secondary 0 at .* discarded"):
            three.run(folder)
    else:
        tokens = three.run(folder)
        with contextlib.ExitStack() as stack:
            assert tokens == Bench(1, Path(), stack).run(folder)
    assert relay.struck.is_set(), "the fault did not happen"
    three.assert_at_rest()


def test_a_link_that_drops_again_and_again_is_worth_keeping(
    three: Bench, tiny: Path, expected: dict[str, list[list[int]]]
) -> None:
    def drop(n_tokens: int) -> None:
        if n_tokens % 4 == 0:
            three.ring[n_tokens // 4 % 3].strike(Fault.RESET)

    assert three.run(tiny, on_token=drop) == expected["greedy"]
    assert three.n_recoveries >= 8
    assert three.starter is not None
    assert three.starter.status().members == ["starter", "secondary 0", "secondary 1"]
    three.assert_at_rest()


def test_a_node_that_is_gone_while_it_is_sent_its_weights_gets_the_rest_when_it_is_back(
    three: Bench, tmp_path: Path
) -> None:
    folder = make_model(tmp_path / "org" / "sent", seed=99)
    relay = three.http[2]
    relay.strike(Fault.RESET, after_bytes=30_000)
    with contextlib.ExitStack() as stack:

        def vanish() -> None:
            assert relay.struck.wait(60)
            with relay.refusing():
                assert relay.refused.wait(60)

        thread = threading.Thread(target=vanish)
        thread.start()
        stack.callback(thread.join)
        assert three.run(folder) == Bench(1, Path(), stack).run(folder)


def test_news_of_a_loss_names_the_node_as_the_configuration_does(
    three: Bench, tiny: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Secondary 0 notices, and secondary 1 learns it from there."""
    three.run(tiny, on_token=once(20, lambda: three.ring[1].strike(Fault.RESET)))
    assert "the ring of epoch 1 broke: starter is lost: " in caplog.text
    assert not any(three.machines[rank].secondary.status().last_error for rank in (1, 2))  # it was formed anew


# ---- a link that fails again, or never holds


@pytest.mark.parametrize("fault", [Fault.CUT, Fault.RESET, Fault.HALF_OPEN, Fault.CORRUPT])
def test_a_link_that_fails_while_the_ring_is_formed_anew(
    fault: Fault, three: Bench, tiny: Path, expected: dict[str, list[list[int]]]
) -> None:
    relay = three.ring[2]

    def twice() -> None:
        relay.strike(Fault.RESET)
        relay.struck.wait(60)
        relay.strike(fault)  # of the next connection: its handshake

    assert three.run(tiny, on_token=once(20, twice)) == expected["greedy"]
    assert relay.struck.is_set()
    assert three.n_recoveries == 1  # the second failure belongs to the first recovery
    three.assert_at_rest()


def test_a_link_that_never_holds_ends_the_run_with_what_was_seen(three: Bench, tiny: Path) -> None:
    """Before the run has begun nobody takes over; what each node says of itself stands in the error."""
    relay = three.ring[2]
    with relay.refusing(), pytest.raises(RingBroken, match=r"failed 3 times .*secondary 1 is ready"):
        three.run(tiny)
    three.assert_at_rest()


def test_a_node_that_cannot_be_reached_by_its_neighbour_is_left_out(
    three: Bench, tiny: Path, expected: dict[str, list[list[int]]]
) -> None:
    """Its HTTP answers all the time, but no ring closes over it."""
    relay = three.ring[2]
    with contextlib.ExitStack() as stack:

        def block() -> None:
            stack.enter_context(relay.refusing())
            relay.strike(Fault.RESET)

        assert three.run(tiny, on_token=once(20, block)) == expected["greedy"]
    assert three.starter is not None
    assert three.starter.status().members == ["starter", "secondary 0"]
    three.assert_at_rest()


# ---- what a secondary does


def spec_of(bench: Bench, epoch: int) -> Any:
    assert bench.starter is not None
    supervisor = bench.starter._supervisor
    return supervisor._rendezvous.spec(supervisor.plan, supervisor.model, Rank(1), epoch)


def test_an_earlier_epoch_of_a_run_is_refused_and_a_later_one_taken_in_any_state(three: Bench, tiny: Path) -> None:
    client = ControlClient("secondary 0", "127.0.0.1", three.machines[1].node.http_port)
    answers = []

    def ask(n_tokens: int) -> None:
        if n_tokens == 20:
            for epoch in (0, 1):  # of the past, and the one that runs
                with pytest.raises(ControlError, match=rf"epoch {epoch} of this run is over"):
                    client.init(spec_of(three, epoch))
            slots = three.machines[1].secondary.slots
            answers.append(client.init(spec_of(three, 2)))
            assert three.machines[1].secondary.slots == slots
            answers.append(client.init(spec_of(three, 3)))
            three.starter._supervisor.epoch = 3  # type: ignore[union-attr]

    tokens = three.run(tiny, on_token=ask)
    assert [type(answer) for answer in answers] == [Ready, Ready]
    assert three.n_recoveries >= 1  # the ring that the node left was formed anew
    assert len(tokens) == len(PROMPTS)


def test_a_ready_node_whose_starter_vanishes_frees_its_slots(three: Bench, tiny: Path) -> None:
    three.run(tiny)
    client = ControlClient("secondary 0", "127.0.0.1", three.machines[1].node.http_port)
    client.init(replace(spec_of(three, 1), run=77))  # the starter of this one has gone: see `run`
    three.assert_at_rest()
    assert "the starter is gone" in three.machines[1].secondary.status().last_error


def test_a_node_whose_session_broke_is_kept_for_its_starter(three: Bench, tiny: Path) -> None:
    """Another starter that waits for the node does not get it while the first one mends its ring."""
    refusals = []

    def steal() -> None:
        three.ring[2].strike(Fault.RESET)
        secondary = three.machines[1].secondary
        wait_until(lambda: secondary.status().state is NodeState.IDLE, 60, "the session broke")
        answer = secondary.request_init(replace(spec_of(three, 1), run=77))
        refusals.append(str(answer.exception(timeout=60)))

    three.run(tiny, on_token=once(20, steal))
    assert len(refusals) == 1
    assert refusals[0].startswith("already serves the starter at 127.0.0.1")
    assert three.n_recoveries == 1
