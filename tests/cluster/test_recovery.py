"""Whatever breaks, the text is that of an undisturbed run, or the error names the node."""

import contextlib
import itertools
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import mdi.nodes.starter
from mdi.cluster.recovery import GiveUp, GoOnWithout, Recovery, Retry, RunState
from mdi.config.network import NetworkConfig
from mdi.config.options import StarterOptions
from mdi.control.client import ControlClient
from mdi.control.status import NodeState, Ready
from mdi.engine.sample import Outcome, Sample
from mdi.errors import ConfigError, ControlError, RingBroken
from mdi.ids import Rank
from mdi.model.span import Span
from mdi.model.stage import Stage
from mdi.net.sockets import listen
from mdi.net.timeouts import Timeouts
from mdi.nodes.starter import Starter
from support.logs import whenever_logged
from support.models import make_model
from support.relay import Fault, Relay
from support.rings import ANY_PORT, Machine, starter_for
from support.scripts import free_ports, wait_until

pytestmark = pytest.mark.slow

PROMPTS = [list(range(5, 65)), [9], list(range(40, 80)), [7, 8]]
N_TOKENS = 16
TIMEOUTS = Timeouts(handshake_s=0.5, answer_s=2.0, retry_s=0.1, ready_check_s=0.3)
PEER_TIMEOUT_S = 0.8  # shorter than a stall of the relay
GREEDY = {"temperature": 0.0}
SUPERVISOR = "mdi.cluster.supervisor"
SEEDED = {"temperature": 0.9, "seed": 7}


class Bench:
    """A starter's network with a relay in every link: `ring[k]` leads into node k, `http[k]` to its HTTP."""

    def __init__(self, n_nodes: int, cache: Path, stack: contextlib.ExitStack) -> None:
        self.machines = {number: Machine(cache, TIMEOUTS) for number in range(1, n_nodes)}
        http_port, port_in = free_ports(2)
        nodes = {0: replace(ANY_PORT, http_port=http_port, port_in=port_in)}
        nodes |= {number: machine.node for number, machine in self.machines.items()}
        for machine in self.machines.values():
            machine.start()
            stack.callback(machine.kill)
        self.ring = {number: stack.enter_context(Relay(node.port_in)) for number, node in nodes.items()}
        self.http = {number: stack.enter_context(Relay(node.http_port)) for number, node in nodes.items() if number}
        self.behind = {self.ring[0].port: port_in}  # where the starter really listens
        seen = {number: replace(node, port_in=self.ring[number].port) for number, node in nodes.items()}
        for number, relay in self.http.items():
            seen[number] = replace(seen[number], http_port=relay.port)
        self.network = NetworkConfig(seen[0], tuple(seen[number] for number in self.machines))
        self.starter: Starter | None = None

    def run(
        self, folder: Path, on_token: Callable[[int], None] | None = None, before: Callable[[], None] | None = None,
        **options: Any,
    ) -> list[list[int]]:  # fmt: skip
        """The tokens of each sample; `on_token` is told how many there are, `before` is called with the ring closed."""
        values = {
            "dtype": "float32", "ignore_eos": True, "keep_nodes": True, "n_tokens": N_TOKENS,
            "peer_timeout_s": PEER_TIMEOUT_S, "node_timeout_s": 20.0, **GREEDY, **options,
        }  # fmt: skip
        arguments = StarterOptions(ckpt=folder, **values)
        self.n_tokens = 0

        def count(sample: Sample, outcome: Outcome) -> None:
            self.n_tokens += outcome.n_accepted
            if on_token is not None:
                on_token(self.n_tokens)

        with starter_for(self.network, arguments, PROMPTS, sink=count, timeouts=TIMEOUTS) as (self.starter, samples):
            self.starter.prepare()
            if before is not None:
                before()
            self.starter.run()
        assert self.n_tokens == N_TOKENS * len(PROMPTS), "a token was shown twice, or not at all"
        return [sample.tokens for sample in samples]

    @property
    def n_recoveries(self) -> int:
        assert self.starter is not None
        return self.starter.n_recoveries

    def assert_at_rest(self) -> None:
        """All secondaries that live are idle and have given their slots back."""
        for machine in self.machines.values():
            if machine._secondary is not None:
                wait_until(lambda m=machine: m.secondary.status().state is NodeState.IDLE, 60, "a secondary is idle")
                assert machine.secondary.slots == (0, 0)


@pytest.fixture
def make_bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int], Bench]]:
    with contextlib.ExitStack() as stack:

        def make(n_nodes: int) -> Bench:
            bench = Bench(n_nodes, tmp_path / "cache", stack)
            monkeypatch.setattr(mdi.nodes.starter, "listen", lambda addr, port: listen(addr, bench.behind[port]))
            return bench

        yield make


@pytest.fixture(scope="module")
def lasting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    """Three nodes that live through all the faults of the matrix."""
    with contextlib.ExitStack() as stack:
        yield Bench(3, tmp_path_factory.mktemp("cache"), stack)


@pytest.fixture
def three(lasting: Bench, monkeypatch: pytest.MonkeyPatch) -> Bench:
    monkeypatch.setattr(mdi.nodes.starter, "listen", lambda addr, port: listen(addr, lasting.behind[port]))
    return lasting


@pytest.fixture(scope="module")
def expected(tiny: Path) -> dict[str, list[list[int]]]:
    """What an undisturbed run says: on one node, where nothing can break."""
    with contextlib.ExitStack() as stack:
        alone = Bench(1, Path(), stack)
        return {"greedy": alone.run(tiny, **GREEDY), "seeded": alone.run(tiny, **SEEDED)}


def once(at: int, action: Callable[[], object]) -> Callable[[int], None]:
    """Act when there are `at` tokens."""
    return lambda n_tokens: None if n_tokens != at else (action(), None)[1]


# ---- every fault in every phase

HARMLESS = (Fault.DELAY, Fault.THROTTLE)
MATRIX = [
    (fault, phase, (i + j) % 3)
    for i, fault in enumerate(Fault)
    for j, phase in enumerate(("handshake", "idle", "prefill", "shutdown"))
] + [(fault, "decode", node) for fault in Fault for node in range(3)]


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
                time.sleep(0.5)

        thread = threading.Thread(target=vanish)
        thread.start()
        stack.callback(thread.join)
        assert three.run(folder) == Bench(1, Path(), stack).run(folder)


# ---- nodes that are killed


@pytest.mark.parametrize("style", ["greedy", "seeded"])
@pytest.mark.parametrize("lost", [1, 2])
def test_a_node_that_comes_back_goes_on_from_where_it_was(
    lost: int, style: str, make_bench: Callable[[int], Bench], tiny: Path, expected: dict[str, list[list[int]]],
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    bench = make_bench(3)
    machine = bench.machines[lost]
    options = {"greedy": GREEDY, "seeded": SEEDED}[style]
    with whenever_logged(SUPERVISOR, "is lost: ", machine.start):
        assert bench.run(tiny, on_token=once(25, machine.kill), **options) == expected[style]
    assert bench.n_recoveries == 1
    messages = [record.getMessage() for record in caplog.records if record.name == SUPERVISOR]
    address = rf"secondary {lost - 1} (127.0.0.1:{bench.ring[lost].port})"
    assert messages[0].startswith(f"{address} is lost: ")
    assert messages[0].endswith("; waiting up to 20 s for it")
    assert messages[1:] == [f"secondary {lost - 1} is back: replaying 4 samples"]
    assert not list(bench.machines[lost].cache_dir.glob("*.partial"))
    bench.assert_at_rest()


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
    options = {"greedy": GREEDY, "seeded": SEEDED}[style] | {"node_timeout_s": 1.0}

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
    """The first is down; while it is waited for, the second goes down too; then both come back."""
    bench = make_bench(3)
    one, other = bench.machines[1], bench.machines[2]

    def disaster() -> None:
        one.kill()
        for delay_s, action in ((0.4, other.kill), (1.0, one.start), (1.6, other.start)):
            threading.Timer(delay_s, action).start()

    assert bench.run(tiny, on_token=once(20, disaster)) == expected["greedy"]
    assert bench.n_recoveries >= 1
    bench.assert_at_rest()


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


def test_where_nobody_can_take_over_all_that_was_generated_is_delivered(
    make_bench: Callable[[int], Bench], tiny: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(tiny, tmp_path / "org" / "tiny", ignore=shutil.ignore_patterns("chunks")))
    bench = make_bench(3)
    bench.run(folder)
    (folder / "lit_model.pth").unlink()
    seen: list[int] = []

    def kill(n_tokens: int) -> None:
        seen.append(n_tokens)
        if n_tokens == 20:
            bench.machines[2].kill()

    with pytest.raises(RingBroken, match=r"secondary 1 did not come back within 1 s \(--node-timeout\), and no other"):
        bench.run(folder, on_token=kill, node_timeout_s=1.0)
    assert len(seen) >= 20
    bench.assert_at_rest()


def test_a_node_that_has_no_room_for_more_layers_ends_the_run_and_is_named(
    make_bench: Callable[[int], Bench], tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = make_bench(3)

    allocate = Stage.allocate

    def allocate_little(stage: Stage, n_slots: int, context: int) -> None:
        if len(stage.span) > 3:
            raise ConfigError(f"out of memory for {n_slots} slots")
        allocate(stage, n_slots, context)

    monkeypatch.setattr(Stage, "allocate", allocate_little)
    with pytest.raises(ControlError, match=r"secondary 1 at .*: out of memory for 4 slots"):
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


# ---- the decisions


def recovery(n_nodes: int = 3) -> Recovery:
    """Of a run that has begun; a node is waited for 60 s."""
    decisions = Recovery(n_nodes, 60.0)
    decisions.formed()
    return decisions


def test_a_broken_link_between_nodes_that_live_is_tried_again_for_as_long_as_tokens_come() -> None:
    decisions = recovery()
    for i in range(100):
        assert decisions.broke(i, silent=[], suspect=1, progressed=True) == Retry()
        decisions.formed()
    assert decisions.n_recoveries == 100


@pytest.mark.parametrize(("suspect", "blamed"), [(1, 1), (2, 2), (0, 1), (None, 2)])
def test_a_ring_that_breaks_without_a_token_is_blamed_on_a_node(suspect: int | None, blamed: int) -> None:
    decisions = recovery()
    for _ in range(2):
        assert decisions.broke(0.0, silent=[], suspect=suspect, progressed=False) == Retry()
    decision = decisions.broke(0.0, silent=[], suspect=suspect, progressed=False)
    assert decision == GoOnWithout((blamed,), "failed 3 times in 10 minutes")
    assert decisions.members == tuple(node for node in (0, 1, 2) if node != blamed)


def test_failures_that_lie_ten_minutes_back_are_forgotten() -> None:
    decisions = recovery()
    for now_s in (0.0, 400.0, 601.0, 1002.0):
        assert decisions.broke(now_s, silent=[1], suspect=1, progressed=True) == Retry()
        decisions.formed()


def test_a_node_is_waited_for_from_when_it_was_missed_first() -> None:
    decisions = recovery()
    assert decisions.deadline_s(1, 5.0) == 65.0
    decisions.broke(10.0, silent=[1], suspect=1, progressed=True)
    assert decisions.deadline_s(1, 30.0) == 70.0
    decisions.broke(30.0, silent=[1, 2], suspect=2, progressed=False)  # it is blamed once for one absence
    assert (decisions.deadline_s(1, 40.0), decisions.deadline_s(2, 40.0)) == (70.0, 90.0)
    decisions.broke(50.0, silent=[2], suspect=2, progressed=False)
    assert decisions.deadline_s(1, 50.0) == 110.0  # it was back meanwhile
    assert decisions.expired([2]) == GoOnWithout((2,), "did not come back within 60 s (--node-timeout)")
    assert decisions.members == (0, 1)
    decisions.formed()
    assert (decisions.state, decisions.n_recoveries) == (RunState.RUNNING, 1)


def test_before_the_run_has_begun_nobody_is_left_out() -> None:
    decisions = Recovery(3, 60.0)
    assert isinstance(decisions.expired([1]), GiveUp)
    assert decisions.state is RunState.FAILED
    decisions = Recovery(3, 60.0)
    for _ in range(2):
        assert decisions.broke(0.0, silent=[], suspect=2, progressed=False) == Retry()
    assert isinstance(decisions.broke(0.0, silent=[], suspect=2, progressed=False), GiveUp)


def test_every_way_through_a_recovery_ends() -> None:
    """Whichever node is the suspect and whichever are silent: without a token, members or deadlines run out."""
    for silent, lost in itertools.product(([], [1], [2], [1, 2]), (None, 0, 1, 2)):
        decisions = recovery()
        for _ in range(20):
            if len(decisions.members) == 1:
                break
            here = [node for node in silent if node in decisions.members]
            suspect = lost if lost in decisions.members else None
            if isinstance(decisions.broke(0.0, silent=here, suspect=suspect, progressed=False), Retry) and here:
                decisions.expired(here)
        assert decisions.members == (0,)
