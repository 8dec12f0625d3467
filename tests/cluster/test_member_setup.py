"""Who is waited for, and until when: every kind of failure of one member, at every moment of a run."""

import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from mdi.cluster.member_setup import MIN_LOAD_BYTES_S, MemberSetup, Patience, PeersTimedOut
from mdi.cluster.recovery import Recovery
from mdi.control.client import ControlClient
from mdi.control.protocol import UPLOAD_BYTES, NoAnswer, NodeBusy, Unreachable
from mdi.control.session import SessionSpec
from mdi.control.status import InitAnswer, NeedsChunk
from mdi.errors import ControlError, StorageError
from mdi.ids import NodeId
from mdi.net.timeouts import Timeouts
from support.clocks import ManualClock
from support.control import CHUNK, DIGEST, SPEC
from support.stand_ins import ABSENT, STAND_INS, stand_in
from support.statuses import READY

NODE_TIMEOUT_S = 60.0
NODE = NodeId(1)


class ScriptedClient(ControlClient):
    """A node whose /init takes `call_s` seconds and then does what it is told to."""

    def __init__(self, clock: ManualClock, call_s: float, *acts: object) -> None:
        self.name, self.url = "secondary 0", "http://nowhere"
        self._clock, self._acts = clock, list(acts)
        self.calls_s = [call_s]
        self.n_calls = 0

    def init(self, spec: SessionSpec, *_: object, **__: object) -> InitAnswer:
        self.n_calls += 1
        self._clock.now_s += self.calls_s.pop(0) if len(self.calls_s) > 1 else self.calls_s[0]
        act = self._acts.pop(0) if len(self._acts) > 1 else self._acts[0]
        if isinstance(act, Exception):
            raise type(act)(*act.args)
        assert isinstance(act, InitAnswer)
        return act


def starting() -> Recovery:
    return Recovery(3, NODE_TIMEOUT_S)


def recovering() -> Recovery:
    decisions = starting()
    decisions.formed()
    decisions.broke(1000.0, silent=[], suspect=NODE, progressed=True)
    return decisions


def recovering_again() -> Recovery:
    decisions = recovering()
    decisions.broke(1000.0, silent=[], suspect=NODE, progressed=False)
    return decisions


def taking_over() -> Recovery:
    decisions = recovering()
    decisions.expired(0.0, [NodeId(2)])
    return decisions


MOMENTS: dict[str, Callable[[], Recovery]] = {
    "start": starting,
    "recovering": recovering,
    "recovering again": recovering_again,
    "take-over": taking_over,
}


def setup_of(
    client: ControlClient,
    clock: ManualClock,
    decisions: Recovery,
    report: Callable[[ControlError], object] = str,
    silence_s: float = 15.0,
) -> MemberSetup:
    patience = Patience(
        node_timeout_s=NODE_TIMEOUT_S,
        deadline_s=lambda node: decisions.deadline_s(node, clock()),
        waits_for=decisions.waits_for,
        on_missing=lambda node, error: report(error),
    )
    timeouts = Timeouts(answer_s=silence_s, retry_s=0.0, max_retry_s=0.0, clock=clock)
    return MemberSetup(NODE, client, patience, timeouts, threading.Event())


def send_nothing() -> None:
    pass


@pytest.mark.slow
@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("kind", [kind for kind in STAND_INS if kind != "endless"])  # which takes its time
def test_what_is_not_the_node_counts_as_missing_once_a_ring_has_run(kind: str, moment: str, tmp_path: Path) -> None:
    """Before that it is an error at once, which names the node; only what is not there yet is waited for."""
    clock, reported = ManualClock(), list[str]()
    (tmp_path / "chunk").write_bytes(CHUNK)

    def report(error: ControlError) -> None:
        reported.append(str(error))
        clock.now_s += NODE_TIMEOUT_S / 2  # the fourth answer comes after the deadline

    with stand_in(kind) as port:
        client = ControlClient("secondary 0", "127.0.0.1", port, timeouts=Timeouts(answer_s=60.0))
        silence_s = 0.2 if kind == "silent" else 60.0
        setup = setup_of(client, clock, MOMENTS[moment](), report, silence_s)
        with pytest.raises(ControlError, match="secondary 0 at ") as caught:
            setup.configure(SPEC, 0, lambda: client.send_chunk(tmp_path / "chunk", DIGEST))
    waited = moment != "start" or kind in ABSENT
    assert isinstance(caught.value, PeersTimedOut) is waited
    assert len(reported) == (3 if waited else 0)
    assert "\n" not in str(caught.value)
    if isinstance(caught.value, PeersTimedOut):
        assert str(caught.value).endswith("Waited 60 s (--node-timeout)")
        assert caught.value.nodes == (NODE,)


@pytest.mark.parametrize("moment", MOMENTS)
def test_the_starters_own_failures_are_never_waited_for(moment: str) -> None:
    clock = ManualClock()
    setup = setup_of(ScriptedClient(clock, 1.0, NeedsChunk(0)), clock, MOMENTS[moment]())

    def fail() -> None:
        raise StorageError("chunk.pth cannot be read")

    with pytest.raises(StorageError):
        setup.configure(SPEC, 0, fail)


# ---- until when


def test_a_node_that_loads_for_minutes_is_waited_for() -> None:
    clock = ManualClock()
    client = ScriptedClient(clock, 600.0, READY)
    assert setup_of(client, clock, recovering()).configure(SPEC, 0, send_nothing) == READY


def test_a_node_that_breaks_off_while_it_loads_counts_as_missing_from_then_on() -> None:
    """It was there for minutes: it may be back within the time that any node has."""
    clock, weights_bytes = ManualClock(), int(MIN_LOAD_BYTES_S * 1000)
    client = ScriptedClient(clock, 200.0, NoAnswer("gone"), Unreachable("away"), READY)
    client.calls_s = [200.0, 10.0]
    assert setup_of(client, clock, recovering()).configure(SPEC, weights_bytes, send_nothing) == READY
    clock.now_s = 1000.0
    client = ScriptedClient(clock, 200.0, NoAnswer("gone"), Unreachable("away"))
    client.calls_s = [200.0, 10.0]
    with pytest.raises(PeersTimedOut, match="away"):
        setup_of(client, clock, recovering()).configure(SPEC, weights_bytes, send_nothing)
    assert 1000.0 + 200.0 + NODE_TIMEOUT_S - 15.0 < clock.now_s <= 1000.0 + 200.0 + NODE_TIMEOUT_S


def test_a_node_that_shows_signs_of_life_for_ever_is_given_up() -> None:
    """Each call lasts longer than a silent one, so there were some; but nothing loads as slowly as that."""
    clock = ManualClock()
    client = ScriptedClient(clock, 100.0, NoAnswer("it took too long"))
    with pytest.raises(PeersTimedOut):
        setup_of(client, clock, recovering()).configure(SPEC, int(MIN_LOAD_BYTES_S * 300), send_nothing)
    assert clock.now_s - 1000.0 == 400.0  # a node timeout and 300 s of loading, in calls of 100 s


def test_a_transfer_that_gets_on_extends_the_wait_and_one_that_does_not_does_not() -> None:
    clock = ManualClock()
    more = [NeedsChunk(n * UPLOAD_BYTES) for n in range(5)]
    client = ScriptedClient(clock, 50.0, *more, READY)
    assert setup_of(client, clock, recovering()).configure(SPEC, 0, send_nothing) == READY
    crumbs = [NeedsChunk(n) for n in range(5)]

    def break_off() -> None:
        raise NoAnswer("broke off")

    client = ScriptedClient(clock, 50.0, *crumbs)
    with pytest.raises(PeersTimedOut, match="broke off"):
        setup_of(client, clock, recovering()).configure(SPEC, 0, break_off)
    assert client.n_calls == 3


def test_nobody_is_waited_for_once_the_run_ends() -> None:
    clock = ManualClock()
    setup = setup_of(ScriptedClient(clock, 0.0, NoAnswer("away")), clock, starting())
    setup._closing.set()
    with pytest.raises(PeersTimedOut):
        setup.configure(SPEC, 0, send_nothing)


def test_a_node_that_is_gone_after_it_served_another_run_may_have_ended_with_it() -> None:
    clock = ManualClock()
    client = ScriptedClient(
        clock, NODE_TIMEOUT_S / 2, NodeBusy("refused: serves another run"), Unreachable("it is gone")
    )
    with pytest.raises(PeersTimedOut) as caught:
        setup_of(client, clock, starting()).configure(SPEC, 0, send_nothing)
    served = "It was busy; a node ends with the run that it serves unless that starter has --keep-nodes."
    assert str(caught.value) == f"it is gone: is secondary.py running there? {served} Waited 60 s (--node-timeout)"
