"""Forming a ring: all members get ready side by side, those that lack weights are sent them, the ring is closed.

The first ring of a run and the one after a failure are formed alike; only the plan and the epoch differ.
"""

import contextlib
import logging
import queue
import socket
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, as_completed, wait
from typing import Any, TypeVar

from mdi.checkpoint.config import config_to_dict
from mdi.cluster.plan import Job, Plan
from mdi.config.network import NetworkConfig, NodeConfig, node_name
from mdi.config.options import StarterOptions
from mdi.control.client import ControlClient, NoAnswer, Unreachable
from mdi.control.protocol import NodeBusy
from mdi.control.session import SessionSpec
from mdi.control.status import NeedsChunk, NodeStatus, SecondaryStatus
from mdi.engine.ring import LinkRing, LocalRing, Ring
from mdi.errors import ControlError
from mdi.ids import NodeId, Rank
from mdi.net.sockets import Peer
from mdi.net.timeouts import DEFAULT_TIMEOUTS, Timeouts
from mdi.progress import progress_bar
from mdi.ring.link import Link, LinkEvent
from mdi.trace import NodeTimeline, Timeline, from_json

log = logging.getLogger(__name__)
T = TypeVar("T")

Statuses = Mapping[NodeId, NodeStatus | None]  # None: the node did not answer, or not with a status
OnSilence = Callable[[NodeId, ControlError], None]


class Missing(ControlError):
    """Members that did not answer until their deadlines. The text is the first one's."""

    def __init__(self, text: str, nodes: Sequence[NodeId] = ()) -> None:
        super().__init__(text)
        self.nodes = tuple(nodes)


class Formation:
    """Forms the rings of one run. All methods are called from the main thread."""

    def __init__(
        self,
        network: NetworkConfig,
        options: StarterOptions,
        *,
        run: int,
        wire_dtype: str,
        timeouts: Timeouts = DEFAULT_TIMEOUTS,
    ) -> None:
        self._network, self._options, self._run, self._wire_dtype = network, options, run, wire_dtype
        self._timeouts = timeouts
        self.clients = {
            NodeId(number): ControlClient(
                node_name(number), node.addr, node.http_port, network.starter.access, timeouts
            )
            for number, node in enumerate(network.nodes)
            if number
        }
        self.timeline = Timeline()
        self.timeline.begin(options.timeline is not None)
        self._asked: set[NodeId] = set()  # secondaries that may be in our session
        self._closing = threading.Event()

    def survey(
        self, plan: Plan, deadlines_s: Mapping[NodeId, float], on_silence: OnSilence
    ) -> dict[NodeId, NodeStatus | None]:
        """What each secondary of the plan says of itself, once it is up. Raises `Missing`; see `initialize`."""
        pending = {
            number: in_background(self._await_status, number, deadlines_s[number], on_silence)
            for number in plan.members[1:]
        }
        await_members(list(pending.values()))
        return {number: future.result() for number, future in pending.items()}

    def initialize(
        self, plan: Plan, epoch: int, deadlines_s: Mapping[NodeId, float], on_silence: OnSilence
    ) -> list["Future[None]"]:
        """Begin to configure all secondaries of the plan, each in a thread of its own.

        Args:
            deadlines_s: until when to wait for the first answer of each member, by `time.monotonic`.
            on_silence: told from those threads, more than once, about a member that does not answer.
        """
        self._asked.update(plan.members[1:])  # from now on they may be loading for us, whatever becomes of it
        return [
            in_background(self._ready, plan, Rank(rank), epoch, deadlines_s[node], on_silence)
            for rank, node in enumerate(plan.members)
            if rank
        ]

    def close_ring(self, plan: Plan, epoch: int, listener: socket.socket | None) -> Ring:
        """Connect the members, which are all ready. Raises `RingBroken`."""
        if len(plan.members) == 1:
            return LocalRing()
        assert listener is not None
        inbox: queue.Queue[LinkEvent] = queue.Queue()  # bounded by what the scheduler lets travel
        starter = self._network.starter
        link = Link(
            self.spec(plan, Rank(0), epoch).link_config(starter.port_out, self._timeouts),
            listener=listener,
            post=inbox.put_nowait,
            access=starter.access,
            timeline=self.timeline,
        )
        ring = LinkRing(link, inbox, plan.names)
        try:
            ring.connect(self._timeouts.handshake_s * len(plan.members))
        except BaseException:
            ring.close()
            raise
        return ring

    def statuses(self, plan: Plan) -> Statuses:
        """What each secondary of the plan says of itself, None for those that do not answer in time."""
        pending = {number: in_background(self.clients[number].status) for number in plan.members[1:]}
        wait(pending.values(), self._timeouts.status_s)
        return {number: _answer_of(future) for number, future in pending.items()}

    def timelines(self, plan: Plan) -> list[NodeTimeline]:
        """What every member did when; one that does not answer is missing."""
        found = [NodeTimeline(node_name(0), self.timeline.spans)]
        for number in plan.members[1:]:
            asked_s = time.perf_counter()
            try:
                answer = self.clients[number].timeline()
                found.append(from_json(node_name(number), answer, asked_s, time.perf_counter()))
            except ControlError as exc:
                log.warning("the timeline lacks %s: %s", node_name(number), exc)
        return found

    def let_go(self, nodes: Sequence[NodeId]) -> None:
        """Tell nodes that are left out, if they can hear it, that no ring will be closed over them."""
        for number in nodes:
            in_background(self.clients[number].release, self._run)

    def dismiss(self, action: Callable[[ControlClient, int], None], timeout_s: float) -> None:
        """Tell each node that may be in our session, in parallel; one that cannot be told in time is gone anyway."""
        self._closing.set()
        wait([in_background(action, self.clients[number], self._run) for number in self._asked], timeout_s)

    def spec(self, plan: Plan, rank: Rank, epoch: int) -> SessionSpec:
        """The part of one member in a session."""
        job, nodes = plan.job, [self._network.nodes[number] for number in plan.members]
        manifest = job.manifest
        return SessionSpec(
            run=self._run,
            epoch=epoch,
            rank=rank,
            n_nodes=len(nodes),
            starter=Peer("starter", nodes[0].addr, nodes[0].http_port),
            model=job.name,
            model_digest=manifest.model_digest if manifest else "",
            config=config_to_dict(job.config),
            span=job.spans[rank],
            chunk_digest=manifest.files[rank].digest if manifest else "",
            n_slots=plan.n_slots,
            context=job.context,
            max_rows=self._options.max_batch_tokens,
            wire_dtype=self._wire_dtype,
            quantize=self._options.quantize,
            peer_timeout_s=self._options.peer_timeout_s,
            timeline=self.timeline.on,
            nodes_on_host=nodes_on_host(self._network, nodes[rank]),
            predecessor=self._ring_peer(plan, rank - 1),
            successor=self._ring_peer(plan, rank + 1),
        )

    def _ring_peer(self, plan: Plan, rank: int) -> Peer:
        number = plan.members[rank % len(plan.members)]
        node = self._network.nodes[number]
        return Peer(node_name(number), node.addr, node.port_in)

    # ---- one member, in a thread of its own

    def _await_status(self, number: NodeId, deadline_s: float, on_silence: OnSilence) -> NodeStatus | None:
        while True:
            try:
                return self.clients[number].status()
            except NoAnswer as exc:
                self._wait_or_give_up(number, exc, deadline_s, on_silence)
            except ControlError:  # whatever is wrong there, the answer to /init will tell
                return None

    def _ready(self, plan: Plan, rank: Rank, epoch: int, deadline_s: float, on_silence: OnSilence) -> None:
        """Configure one member, sending it its chunk if it has none."""
        number, spec = plan.members[rank], self.spec(plan, rank, epoch)
        client, most_held = self.clients[number], -1
        while True:
            try:
                answer = client.init(spec, self._response_timeout_s(deadline_s))
                if not isinstance(answer, NeedsChunk):
                    break
                if answer.held_bytes > most_held:  # the last transfer got somewhere
                    most_held = answer.held_bytes
                    deadline_s = self._timeouts.deadline_s(self._options.node_timeout_s)
                self._send_chunk(client, plan.job, rank)
            except (NoAnswer, NodeBusy) as exc:
                self._wait_or_give_up(number, exc, deadline_s, on_silence)
        status = answer.status
        log.info("%s is ready: layers %s, %s on %s", client.name, list(spec.span), status.dtype, status.device)

    def _wait_or_give_up(self, number: NodeId, exc: ControlError, deadline_s: float, on_silence: OnSilence) -> None:
        if self._timeouts.clock() > deadline_s or self._closing.is_set():
            advice = ": is secondary.py running there?" if isinstance(exc, Unreachable) else "."
            raise Missing(
                f"{exc}{advice} Waited {self._options.node_timeout_s:g} s (--node-timeout)", [number]
            ) from exc
        on_silence(number, exc)
        self._closing.wait(self._timeouts.retry_s)

    def _response_timeout_s(self, deadline_s: float) -> float:
        """How long to wait for a sign of life: a node that lives gives one every second."""
        return min(self._timeouts.answer_s, max(self._timeouts.min_answer_s, self._timeouts.left_s(deadline_s)))

    def _send_chunk(self, client: ControlClient, job: Job, rank: Rank) -> None:
        path = job.chunk_of(rank)
        if job.manifest is None or not path.is_file():
            raise ControlError(f"{client.name} at {client.url} has no chunk and neither has this machine ({path})")
        log.info("sending %s to %s", path.name, client.name)
        with progress_bar(path.stat().st_size, f"chunk for {client.name}", "B") as advance:
            client.send_chunk(path, job.manifest.files[rank].digest, advance)


def await_members(pending: Sequence["Future[Any]"]) -> None:
    """Wait until all members are ready.

    Raises at once what cannot be mended by waiting, and `Missing` with all who are missing once no other is due.
    """
    missing: list[Missing] = []
    for future in as_completed(pending):
        try:
            future.result()
        except Missing as exc:
            missing.append(exc)
    if missing:
        raise Missing(str(missing[0]), [number for exc in missing for number in exc.nodes])


def describe(statuses: Statuses) -> str:
    """What each secondary says of itself, in words: only they may know what happened."""
    return "; ".join(_describe(node_name(number), status) for number, status in statuses.items())


def _describe(name: str, status: NodeStatus | None) -> str:
    if status is None:
        return f"{name} does not answer"
    error = status.last_error if isinstance(status, SecondaryStatus) else ""
    return f"{name} is {status.state.value}" + (f" ({error})" if error else "")


def nodes_on_host(network: NetworkConfig, node: NodeConfig) -> int:
    """Nodes that share the cores of `node`'s machine."""
    return sum(other.host == node.host for other in network.nodes)


def in_background(action: Callable[..., T], *arguments: Any) -> "Future[T]":
    """Run `action` in a daemon thread: unlike a pool's, it does not hold up a program that is interrupted."""
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(action(*arguments))
        except BaseException as exc:  # noqa: BLE001  it is raised where the result is asked for
            future.set_exception(exc)

    threading.Thread(target=run, name=f"starter-{getattr(action, '__name__', 'call')}", daemon=True).start()
    return future


def _answer_of(future: "Future[NodeStatus]") -> NodeStatus | None:
    with contextlib.suppress(ControlError):
        return future.result() if future.done() else None
    return None
