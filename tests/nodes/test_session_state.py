"""A secondary's session as a table: every phase, every event, and who is let in."""

import itertools
from dataclasses import replace

import pytest

from mdi.control.status import NodeState
from mdi.nodes.session_state import Action, Admit, AskStarter, Event, Phase, Refuse, Session, admission
from support.control import SPEC

OTHER_RUN = replace(SPEC, run=SPEC.run + 1)
IN_SESSION = (Phase.LOADING, Phase.READY, Phase.RUNNING)
EXPECTED = {
    # what becomes of each phase, in the order idle, loading, ready, running, broken; "" is no change
    Event.ADMITTED: ("loading", "loading", "loading", "loading", "loading"),
    Event.LOADED: ("", "ready", "", "", ""),
    Event.NEEDS_CHUNK: ("", "idle", "", "", ""),
    Event.LOAD_FAILED: ("", "broken", "broken", "", ""),
    Event.CONNECTED: ("", "", "running", "", ""),
    Event.MESSAGE: ("", "", "", "running", ""),
    Event.GOODBYE: ("", "", "", "idle", ""),
    Event.FAULT: ("", "", "", "broken", ""),
    Event.LINK_DOWN: ("", "", "idle", "broken", ""),
    Event.STAGE_FAILED: ("", "", "", "broken", ""),
    Event.RELEASED: ("", "", "idle", "", "idle"),
    Event.UNWANTED: ("", "", "idle", "", ""),
}
PAIRS = list(itertools.product(Phase, Event))


def test_the_expectation_covers_every_pair() -> None:
    assert set(EXPECTED) == set(Event)
    assert all(len(row) == len(Phase) for row in EXPECTED.values())


@pytest.mark.parametrize(("phase", "event"), PAIRS)
def test_every_pair_of_phase_and_event(phase: Phase, event: Event) -> None:
    before = Session(phase, SPEC)
    after, actions = before.after(event, SPEC if event is Event.ADMITTED else None)
    expected = EXPECTED[event][list(Phase).index(phase)]
    assert after.phase is (Phase[expected.upper()] if expected else phase)
    if not expected:
        assert (after, actions) == (before, ())
    if expected and after.phase not in IN_SESSION and phase in IN_SESSION:
        assert actions[-1] is Action.END, "a session that is over gives its slots back"
    if after.phase in IN_SESSION:
        assert Action.END not in actions


@pytest.mark.parametrize(("phase", "event"), PAIRS)
def test_news_of_a_fault_travels_before_the_link_is_dropped(phase: Phase, event: Event) -> None:
    _, actions = Session(phase, SPEC).after(event)
    if Action.FORWARD in actions:
        assert actions.index(Action.FORWARD) < actions.index(Action.END)


def test_a_spec_is_current_while_the_node_is_in_the_session() -> None:
    assert [phase for phase in Phase if Session(phase, SPEC).current is SPEC] == list(IN_SESSION)
    assert Session().current is None


def test_others_see_a_broken_session_as_idle() -> None:
    seen = [phase.state for phase in Phase]
    assert seen == [NodeState.IDLE, NodeState.LOADING, NodeState.READY, NodeState.RUNNING, NodeState.IDLE]


@pytest.mark.parametrize("phase", Phase)
def test_a_run_may_begin_a_newer_epoch_in_any_phase(phase: Phase) -> None:
    assert admission(Session(phase, SPEC), replace(SPEC, epoch=SPEC.epoch + 1)) == Admit()


@pytest.mark.parametrize("phase", Phase)
def test_an_epoch_that_is_over_is_refused(phase: Phase) -> None:
    late = admission(Session(phase, replace(SPEC, epoch=5)), replace(SPEC, epoch=4))
    assert late == Refuse("epoch 4 of this run is over: this node has been in epoch 5")
    again = admission(Session(phase, replace(SPEC, epoch=5)), replace(SPEC, epoch=5))
    assert isinstance(again, Refuse if phase is Phase.RUNNING else Admit)


def test_another_run_waits_while_this_one_is_at_work() -> None:
    answers = {phase: admission(Session(phase, SPEC), OTHER_RUN) for phase in Phase}
    busy = Refuse(
        f"already serves the starter at {SPEC.starter.addr}:{SPEC.starter.port} with {SPEC.model} (run {SPEC.run})"
        "; it ends with that run unless that starter has --keep-nodes"
    )
    assert answers == {
        Phase.IDLE: Admit(),
        Phase.LOADING: busy,
        Phase.READY: AskStarter(SPEC),
        Phase.RUNNING: busy,
        Phase.BROKEN: AskStarter(SPEC),
    }


def test_a_node_that_was_never_in_a_session_lets_anyone_in() -> None:
    assert admission(Session(), SPEC) == Admit()
