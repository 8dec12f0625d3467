"""The rendezvous of a ring's members: all get ready in parallel, those without weights are sent them, the ring closes.

The first ring of a run and the one after a failure are formed alike; only the plan and the epoch differ.
"""

import logging
import socket
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch

from mdi.checkpoint.config import config_to_dict
from mdi.checkpoint.folder import ModelFolder
from mdi.cluster.locations import Locations, ask_location
from mdi.cluster.member_setup import MemberSetup, Patience, PeersTimedOut
from mdi.cluster.plan import Plan
from mdi.cluster.roster import Roster
from mdi.config.network import NetworkConfig, node_name
from mdi.config.options import RingOptions
from mdi.control.client import ControlClient
from mdi.control.session import SessionSpec
from mdi.control.status import NodeStatus, SecondaryStatus
from mdi.engine.ring import LinkRing, LocalRing, Ring
from mdi.errors import ControlError
from mdi.ids import NodeId, Rank
from mdi.inbox import Inbox
from mdi.model.quant import held_bytes
from mdi.model.shapes import stage_shapes
from mdi.net.refusals import RefusalLog
from mdi.net.timeouts import Timeouts
from mdi.progress import progress_bar
from mdi.ring.link import Link
from mdi.trace import NodeTimeline, Timeline, from_json

log = logging.getLogger(__name__)
T = TypeVar("T")

Statuses = Mapping[NodeId, NodeStatus | None]  # None: the node did not answer, or not with a status


@dataclass(frozen=True, eq=False)
class Call(Generic[T]):
    """A call that runs in a thread of its own; it is posted to the inbox when it is finished."""

    future: "Future[T]"


class Rendezvous:
    """Forms the rings of one run. All methods are called from the main thread."""

    def __init__(
        self,
        roster: Roster,
        options: RingOptions,
        inbox: Inbox,
        timeline: Timeline,
        *,
        run: int,
        wire_dtype: str,
        refusals: RefusalLog,
        timeouts: Timeouts,
    ) -> None:
        self._roster, self._options, self._inbox, self._timeline = roster, options, inbox, timeline
        self._refusals, self._timeouts = refusals, timeouts
        self._run, self._wire_dtype = run, wire_dtype
        self._asked: set[NodeId] = set()  # secondaries that may be in our session
        self._locations = Locations(roster.network)
        self._undamaged: set[Path] = set()  # chunks that were read whole in this run
        self._sent_to: set[NodeId] = set()  # secondaries that were sent chunks in this run
        self._closing = threading.Event()

    @property
    def clients(self) -> Mapping[NodeId, ControlClient]:
        """Of all secondaries."""
        return self._roster.clients

    @property
    def _network(self) -> NetworkConfig:
        return self._roster.network

    def wait_until_up(self, nodes: Sequence[NodeId], patience: Patience) -> Statuses:
        """What each secondary says of itself, once it is up. Raises `PeersTimedOut`."""
        return wait_until_up({node: self._setup(node, patience) for node in nodes}, self._inbox)

    def initialize(self, plan: Plan, model: ModelFolder, epoch: int, patience: Patience) -> list[Call[SecondaryStatus]]:
        """Begin to configure all secondaries of the plan, each in a thread of its own until it is ready."""
        self._asked.update(plan.members[1:])  # from now on they may be loading for us, whatever becomes of it
        self._locations = locations = Locations(self._network)
        return [
            self._call(self._configure, plan, model, Rank(rank), epoch, self._setup(node, patience), locations)
            for rank, node in enumerate(plan.members)
            if rank
        ]

    def _setup(self, node: NodeId, patience: Patience) -> MemberSetup:
        return MemberSetup(node, self.clients[node], patience, self._timeouts, self._closing)

    def await_all(self, calls: Sequence[Call[Any]]) -> None:
        """See `await_calls`."""
        await_calls(calls, self._inbox)

    def close_ring(self, plan: Plan, model: ModelFolder, epoch: int, listener: socket.socket | None) -> Ring:
        """Connect the members, which are all ready. Raises `RingBroken`."""
        if len(plan.members) == 1 or listener is None:
            return LocalRing(self._inbox)
        starter = self._network.starter
        link = Link(
            self.spec(plan, model, Rank(0), epoch).link_config(starter.port_out, self._timeouts),
            listener=listener,
            post=self._inbox.post,
            access=starter.access,
            timeline=self._timeline,
            refusals=self._refusals,
        )
        ring = LinkRing(link, self._inbox, plan.names, len(plan.spans[0]) / model.config.n_layer)
        try:
            ring.connect(self._timeouts.handshake_s * len(plan.members))
        except BaseException:
            ring.close()
            raise
        return ring

    def statuses(self, nodes: Sequence[NodeId]) -> Statuses:
        """What each secondary says of itself, None for those that do not answer in time."""
        futures = {node: in_background(self.clients[node].status) for node in nodes}
        wait(futures.values(), self._timeouts.status_s)
        return {node: _answer_of(future) for node, future in futures.items()}

    def timelines(self, plan: Plan) -> list[NodeTimeline]:
        """What every member did when; one that does not answer is missing."""
        calls = [self._call(self._timeline_of, node) for node in plan.members[1:]]
        self.await_all(calls)
        found = [call.future.result() for call in calls]
        return [NodeTimeline(node_name(0), self._timeline.events), *filter(None, found)]

    def send_ahead(self, plan: Plan, model: ModelFolder) -> None:
        """Send the chunks of a plan to those of its nodes that needed one before, and to those that are new.

        They may be in a ring meanwhile. Called from a thread of its own. Raises `MdiError`.
        """
        for rank, node in enumerate(plan.members):
            if rank and (node in self._sent_to or not self.has_asked(node)):
                self._sent_to.add(node)
                path, digest = self._chunk(self.clients[node], model, len(plan.members), Rank(rank))
                self.clients[node].send_chunk(path, digest)

    def has_asked(self, node: NodeId) -> bool:
        """Whether a node was asked to take part in a session of this run, or told that it does not."""
        return node in self._asked

    def drop_members(self, nodes: Sequence[NodeId]) -> None:
        """Tell nodes that are left out, if they can hear it, that no ring will be closed over them."""
        for node in nodes:
            in_background(self.clients[node].release, self._run)

    def leave_out(self, nodes: Sequence[NodeId]) -> None:
        """These take no part, and are told with the others when the run is over."""
        self._asked.update(nodes)
        self._roster.leave_out(nodes)

    def dismiss(self, action: Callable[[ControlClient, int], None], timeout_s: float) -> None:
        """Tell each node that may be in our session, in parallel; one that cannot be told in time is gone anyway."""
        self._closing.set()
        nodes = self._asked.union(self._roster.joined)
        wait([in_background(action, self.clients[node], self._run) for node in nodes], timeout_s)

    def spec(
        self, plan: Plan, model: ModelFolder, rank: Rank, epoch: int, locations: Locations | None = None
    ) -> SessionSpec:
        """The part of one member in a session. Waits until it is known where it and its neighbours are."""
        nodes = [self._network.nodes[node] for node in plan.members]
        before, own, after = (plan.members[(rank + step) % len(nodes)] for step in (-1, 0, 1))
        locations = locations or self._locations
        manifest = model.ring_manifest(len(nodes))
        return SessionSpec(
            run=self._run,
            epoch=epoch,
            rank=rank,
            n_nodes=len(nodes),
            names=plan.names,
            starter=locations.starter(seen_from=own),
            model=model.name,
            model_digest=manifest.model_digest if manifest else "",
            config=config_to_dict(model.config),
            span=plan.spans[rank],
            chunk_digest=manifest.files[rank].digest if manifest else "",
            n_slots=plan.n_slots,
            context=plan.context,
            max_rows=self._options.max_batch_tokens,
            wire_dtype=self._wire_dtype,
            dtype=self._options.dtype,
            quantize=plan.modes[rank],
            kv_dtype=self._options.kv_dtype,
            peer_timeout_s=self._options.peer_timeout_s,
            timeline=self._timeline.on,
            nodes_on_host=self._roster.n_on_host(own),
            predecessor=locations.ring_peer(before, seen_from=own),
            successor=locations.ring_peer(after, seen_from=own),
        )

    def _call(self, action: Callable[..., T], *arguments: Any) -> Call[T]:
        return begin_call(self._inbox, action, *arguments)

    # ---- one member, in a thread of its own

    def _timeline_of(self, node: NodeId) -> NodeTimeline | None:
        asked_s = time.perf_counter()
        try:
            answer = self.clients[node].timeline()
            return from_json(node_name(node), answer, asked_s, time.perf_counter())
        except ControlError as exc:
            log.warning("the timeline lacks %s: %s", node_name(node), exc)
            return None

    def _configure(
        self, plan: Plan, model: ModelFolder, rank: Rank, epoch: int, setup: MemberSetup, locations: Locations
    ) -> SecondaryStatus:
        node = plan.members[rank]
        client = self.clients[node]
        locations.locate(node, lambda: setup.ask(lambda: ask_location(self._network, node, client)))
        spec = self.spec(plan, model, rank, epoch, locations)

        def send_chunk() -> None:
            self._sent_to.add(node)
            self._send_chunk(client, *self._chunk(client, model, len(plan.members), rank))

        weights_bytes = held_bytes(stage_shapes(model.config, spec.span), torch.float32, "none", "cpu")
        ready = setup.configure(spec, weights_bytes, send_chunk)
        status = ready.status
        log.info("%s is ready: %s; memory: %s", client.name, status.computes, status.memory)
        return status

    def _chunk(self, client: ControlClient, model: ModelFolder, n_nodes: int, rank: Rank) -> tuple[Path, str]:
        """A chunk that is not damaged, and its digest."""
        path, manifest = model.chunk(n_nodes, rank), model.ring_manifest(n_nodes)
        if manifest is None or not path.is_file():
            raise ControlError(f"{client.name} at {client.url} has no chunk and neither has this machine ({path})")
        if path not in self._undamaged:  # once: a transfer that breaks is resumed again and again
            self._undamaged.add(model.undamaged_chunk(n_nodes, rank))
        return path, manifest.files[rank].digest

    def _send_chunk(self, client: ControlClient, path: Path, digest: str) -> None:
        log.info("sending %s to %s", path.name, client.name)
        with progress_bar(path.stat().st_size, f"chunk for {client.name}", "B") as advance:
            client.send_chunk(path, digest, advance)


def describe(statuses: Statuses) -> str:
    """What each secondary says of itself, in words: only they may know what happened."""
    return "; ".join(_describe(node_name(node), status) for node, status in statuses.items())


def _describe(name: str, status: NodeStatus | None) -> str:
    if status is None:
        return f"{name} does not answer"
    error = status.last_error if isinstance(status, SecondaryStatus) else ""
    return f"{name} is {status.state.value}" + (f" ({error})" if error else "")


def begin_call(inbox: Inbox, action: Callable[..., T], *arguments: Any) -> Call[T]:
    """Run `action` in a thread of its own; the inbox is told when it is finished."""
    call = Call(in_background(action, *arguments))
    call.future.add_done_callback(lambda _: inbox.post(call))
    return call


def await_calls(calls: Sequence[Call[Any]], inbox: Inbox) -> None:
    """Wait until all calls are finished.

    Raises at once what cannot be helped by waiting, and `PeersTimedOut` with all who are missing once no other is due.
    """
    missing: list[PeersTimedOut] = []
    unfinished = set(calls)
    while unfinished:
        call = inbox.wait_for(Call)
        if call not in unfinished:
            continue  # of an attempt that was given up
        unfinished.remove(call)
        try:
            call.future.result()
        except PeersTimedOut as exc:
            missing.append(exc)
    if missing:
        nodes = dict.fromkeys(node for exc in missing for node in exc.nodes)  # others wait to learn where one is
        raise PeersTimedOut(str(missing[0]), list(nodes))


def wait_until_up(setups: Mapping[NodeId, MemberSetup], inbox: Inbox) -> Statuses:
    """What each secondary says of itself, once it is up; all are waited for at once. Raises as `await_calls` does."""
    pending = {node: begin_call(inbox, setup.await_status) for node, setup in setups.items()}
    await_calls(list(pending.values()), inbox)
    return {node: call.future.result() for node, call in pending.items()}


def in_background(action: Callable[..., T], *arguments: Any) -> "Future[T]":
    """Run `action` in a daemon thread: unlike a pool's, it does not hold up a program that is interrupted."""
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(action(*arguments))
        except BaseException as exc:  # noqa: BLE001  it is raised where the result is asked for
            future.set_exception(exc)

    threading.Thread(target=run, name=f"call-{getattr(action, '__name__', 'call')}", daemon=True).start()
    return future


def _answer_of(future: "Future[NodeStatus]") -> NodeStatus | None:
    return None if not future.done() or future.exception() is not None else future.result()
