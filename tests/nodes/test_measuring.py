"""A secondary answers when it was timed, computes on for the sake of its neighbours, and is ready for what is next."""

import signal
from collections.abc import Callable, Iterator
from concurrent.futures import Future

import pytest
import torch

from mdi.cluster.node_meter import NodeMeter
from mdi.control.measurement import Measured, StageTimes
from mdi.inbox import Inbox, Stopped
from mdi.net.refusals import RefusalLog
from mdi.net.sockets import listen
from mdi.net.timeouts import Timeouts
from mdi.nodes.measuring import MAX_BUSY_S, MeasurementRequested, Measuring
from support.clocks import ManualClock
from support.rings import ANY_PORT
from support.timed_machine import Machine, measure_on, stage_request


class Node:
    """What measures of a secondary. After its answer it does what a test says with each message that it computes."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.machine, self.inbox, self.clock = Machine(on_pass=self._passed), Inbox(), ManualClock()
        measure_on(self.machine, monkeypatch)
        self.n_passes = self.n_ticks = 0  # after the answer
        self.on_pass: Callable[[int], object] = lambda n_passes: None
        self.answer: Future[Measured] = Future()
        meter = NodeMeter(torch.device("cpu"), backend="torch", free_bytes=lambda: 10**9, tick=self._tick)
        self.listener = listen("127.0.0.1", 0)
        timeouts = Timeouts(clock=self.clock)
        self.measuring = Measuring(ANY_PORT, meter, self.listener, self.inbox, RefusalLog(), timeouts)

    def _passed(self) -> None:
        if self.answer.done():
            self.n_passes += 1
            assert self.n_passes < 100, "it does not end"
            self.on_pass(self.n_passes)

    def _tick(self) -> None:
        self.n_ticks += self.answer.done()
        self.inbox.check()

    def ask(self, *, nodes_on_host: int = 2) -> None:
        self.answer = self.measuring.request(stage_request(nodes_on_host=nodes_on_host, again=True))

    def serve(self) -> None:
        """The next event, as the main thread would."""
        event = self.inbox.get(0.0)
        assert isinstance(event, MeasurementRequested)
        self.measuring.serve(event, is_idle=True)
        assert isinstance(self.answer.result(0), StageTimes)


@pytest.fixture
def node(monkeypatch: pytest.MonkeyPatch) -> Iterator[Node]:
    node = Node(monkeypatch)
    with node.listener:
        yield node


def test_it_computes_on_until_something_else_is_to_be_done(node: Node) -> None:
    node.on_pass = lambda n_passes: n_passes == 3 and node.inbox.post("a ring is to be formed")
    node.ask()
    node.serve()
    assert (node.n_passes, node.n_ticks) == (3, 3), "it is alive meanwhile, and ends after the message"
    assert not node.machine.stages, "its memory is free before the event is taken"
    assert node.inbox.get(0.0) == "a ring is to be formed"


def test_the_next_measurement_is_let_in_meanwhile_and_finds_the_memory_free(node: Node) -> None:
    asked: list[Future[Measured]] = []
    node.on_pass = lambda n_passes: asked or asked.append(node.measuring.request(stage_request(nodes_on_host=1)))
    node.ask()
    node.serve()
    assert node.n_passes == 1 and not node.machine.stages
    (node.answer,) = asked
    node.serve()


def test_it_computes_on_for_some_time_only(node: Node) -> None:
    def pass_time(n_passes: int) -> None:
        node.clock.now_s += 1.0

    node.on_pass = pass_time
    node.ask()
    node.serve()
    assert node.n_passes == MAX_BUSY_S
    assert not node.machine.stages


def test_it_does_not_begin_where_something_waits_already(node: Node) -> None:
    node.ask()
    node.inbox.post("what is next")
    node.serve()
    assert node.n_passes == 0 and not node.machine.stages


def test_a_signal_ends_it_and_the_answer_stands(node: Node) -> None:
    node.on_pass = lambda n_passes: node.inbox.interrupt(signal.SIGTERM)
    node.ask()
    with pytest.raises(Stopped):
        node.serve()
    assert isinstance(node.answer.result(0), StageTimes)
    assert node.n_passes == 1


def test_a_node_that_has_its_machine_for_itself_rests(node: Node) -> None:
    node.ask(nodes_on_host=1)
    node.serve()
    assert node.n_passes == 0
