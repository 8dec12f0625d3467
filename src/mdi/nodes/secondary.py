"""The loop of a secondary: wait for a starter, load a span, pass messages through it, wait again.

Ring messages, control requests and faults all arrive in one inbox; the main thread handles them one
by one, so everything below runs on it, but for the few methods that HTTP threads call.
"""

import logging
import queue
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from mdi import __version__
from mdi.checkpoint.cache import ChunkCache
from mdi.checkpoint.config import config_from_dict, config_to_dict
from mdi.cluster.budget import free_for_a_session
from mdi.config.network import NodeConfig
from mdi.control.client import ControlClient
from mdi.control.protocol import NodeBusy
from mdi.control.routes import ControlServer
from mdi.control.session import SessionSpec
from mdi.control.status import InitAnswer, NeedsChunk, NodeState, Ready, SecondaryStatus
from mdi.errors import ControlError, MdiError, RingError
from mdi.formats import Mode
from mdi.ids import Rank
from mdi.model.build import Placement
from mdi.model.devices import free_memory_bytes, peak_memory_bytes, pick_device, pick_dtype, share_threads
from mdi.model.quant import mode_of, resolve
from mdi.model.stage import Stage, kept_rows
from mdi.model.tensors import dtype_name, from_buffer, to_buffer
from mdi.net.access import Access
from mdi.net.sockets import Peer, listen
from mdi.net.timeouts import DEFAULT_TIMEOUTS, Timeouts
from mdi.nodes.sources import WeightSources
from mdi.ring.link import Link, LinkDown, LinkEvent, PredecessorConnected, Received
from mdi.ring.messages import Activation, Fault, Goodbye, Message
from mdi.segments import Fork, Release, Segment
from mdi.strings import one_line
from mdi.trace import Timeline

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class InitRequested:
    """A starter wants this node in its session."""

    spec: SessionSpec
    replaces: int | None  # run that the node served when the request was let in
    answer: "Future[InitAnswer]"


@dataclass(frozen=True)
class ReleaseRequested:
    """The starter gave up the session before it ran."""

    run: int


@dataclass(frozen=True)
class StopRequested:
    """The node is to end, unless it serves another run than `run` by now."""

    run: int | None


Event = LinkEvent | InitRequested | ReleaseRequested | StopRequested


class Secondary:
    """One secondary node. Use it as a context: ports are bound on entry, everything is closed on exit."""

    def __init__(
        self,
        config: NodeConfig,
        sources: WeightSources,
        *,
        device: str | None = None,
        dtype: str | None = None,
        quantize: Mode | None = None,
        compile_stage: bool = False,
        timeouts: Timeouts = DEFAULT_TIMEOUTS,
    ) -> None:
        """Raises `ConfigError` where a port is taken or the device is not there."""
        self.config = config
        self._sources = sources
        self._device = pick_device(device or config.device)
        self._dtype = pick_dtype(dtype, self._device)
        self._quantize, self._compile, self._timeouts = quantize, compile_stage, timeouts
        self._inbox: queue.Queue[Event] = queue.Queue()  # bounded by what the scheduler lets travel
        self._timeline = Timeline()
        self._spec: SessionSpec | None = None
        self._last_spec: SessionSpec | None = None  # of the session that this node was in last
        self._broke = False  # whether that session broke: its starter is about to begin another one
        self._link: Link | None = None
        self._stage: Stage | None = None
        self._stage_of: tuple[object, ...] = ()  # what the stage was loaded for
        self._state = NodeState.IDLE
        self._n_messages = 0
        self._last_error = ""
        self._listener = listen(config.addr, config.port_in)
        try:
            self._control = ControlServer(config.addr, config.http_port, self, config.access, timeouts)
        except MdiError:
            self._listener.close()
            raise

    def __enter__(self) -> "Secondary":
        self._control.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, trace: object) -> None:
        if self._state is NodeState.RUNNING and self._spec is not None:
            failed = isinstance(exc, Exception)
            self._report_fault(self._spec.rank, f"it failed: {one_line(exc)}" if exc and failed else "it was stopped")
        self._end_session(drain_s=self._timeouts.stop_drain_s)
        self._control.close()
        self._listener.close()

    @property
    def port_in(self) -> int:
        """The ring port in use; of interest where the configuration says 0."""
        return int(self._listener.getsockname()[1])

    @property
    def http_port(self) -> int:
        """The HTTP port in use."""
        return self._control.port

    # ---- called from HTTP threads

    @property
    def cache(self) -> ChunkCache:
        return self._sources.cache

    def status(self) -> SecondaryStatus:
        spec = self._spec
        return SecondaryStatus(
            version=__version__,
            state=self._state,
            device=str(self._device),
            dtype=dtype_name(self._dtype),
            quantize=self._quantize,
            starter=f"{spec.starter.addr}:{spec.starter.port}" if spec else None,
            run=spec.run if spec else None,
            epoch=spec.epoch if spec else None,
            rank=spec.rank if spec else None,
            model=spec.model if spec else None,
            span=spec.span if spec else None,
            wire_dtype=spec.wire_dtype if spec else None,
            messages=self._n_messages,
            last_error=self._last_error,
            peak_memory_bytes=peak_memory_bytes(),
            free_memory_bytes=free_for_a_session(free_memory_bytes(self._device), self._stage),
        )

    def request_init(self, spec: SessionSpec) -> "Future[InitAnswer]":
        """Raises `NodeBusy` while another run is served, unless its ring waits to be closed and its starter is gone."""
        serving = self._spec or (self._last_spec if self._broke else None)
        if (
            serving is not None
            and serving.run != spec.run
            and (self._is_at_work or _wants(serving, self.config.access, self._timeouts))
        ):
            starter = f"{serving.starter.addr}:{serving.starter.port}"
            raise NodeBusy(f"already serves the starter at {starter} with {serving.model} (run {serving.run})")
        answer: Future[InitAnswer] = Future()
        self._inbox.put_nowait(InitRequested(spec, serving.run if serving else None, answer))
        return answer

    @property
    def _is_at_work(self) -> bool:
        return self._state in (NodeState.LOADING, NodeState.RUNNING)

    def timeline(self) -> dict[str, Any]:
        return self._timeline.to_json()

    def request_release(self, run: int) -> None:
        self._inbox.put_nowait(ReleaseRequested(run))

    def request_stop(self, run: int | None) -> None:
        self._inbox.put_nowait(StopRequested(run))

    # ---- the loop

    def serve(self) -> None:
        """Serve one session after another until a stop is requested."""
        while not self._ends(event := self._next_event()):
            self._handle(event)

    def _next_event(self) -> Event:
        """Wait for what happens next. A ring that waits to be closed is given up once its starter is gone."""
        n_unwanted = 0  # in a row: a starter that is busy may leave one question unanswered
        while self._state is NodeState.READY and self._spec is not None:
            try:
                return self._inbox.get(timeout=self._timeouts.ready_check_s)
            except queue.Empty:
                wanted = _wants(self._spec, self.config.access, self._timeouts, self._spec.epoch)
                n_unwanted = 0 if wanted else n_unwanted + 1
                if n_unwanted == 2:
                    self._fail("the starter is gone, or has formed its ring without this node")
        with self._timeline.during("idle"):
            return self._inbox.get()

    def _ends(self, event: Event) -> bool:
        return isinstance(event, StopRequested) and not (
            event.run is not None and self._spec is not None and self._spec.run != event.run
        )

    def _handle(self, event: Event) -> None:
        match event:
            case InitRequested(spec, replaces, answer):
                self._initialize(spec, replaces, answer)
            case ReleaseRequested(run):
                if self._state is NodeState.READY and self._spec is not None and self._spec.run == run:
                    self._end_session()
            case PredecessorConnected(link) if link is self._link:
                self._state = NodeState.RUNNING
                link.connect()
            case Received(link, message) if link is self._link:
                self._advance(link, message)
            case LinkDown(link, peer, error) if link is self._link:
                self._lose(link, peer, error)
            case _:
                log.debug("an event of an earlier session: %s", event)

    def _initialize(self, spec: SessionSpec, replaces: int | None, answer: "Future[InitAnswer]") -> None:
        if (refusal := self._refusal(spec, replaces)) is not None:
            answer.set_exception(NodeBusy(refusal))
            return
        self._drop_link()
        if self._last_spec is None or self._last_spec.run != spec.run:
            self._timeline.begin(spec.timeline)
        self._spec = self._last_spec = spec
        self._state, self._broke = NodeState.LOADING, False
        try:
            if not self._load(spec):
                self._end_session()
                answer.set_result(NeedsChunk(self.cache.held_bytes(spec.chunk_digest)))
                return
            self._open_link(spec)
        except MdiError as exc:
            self._fail(str(exc))
            answer.set_exception(exc)
            return
        except BaseException as exc:
            answer.set_exception(ControlError(f"the node failed: {exc!r}"))
            raise
        self._state = NodeState.READY
        answer.set_result(Ready(self.status()))

    def _refusal(self, spec: SessionSpec, replaces: int | None) -> str | None:
        """Why this node does not enter the session now. A run that is served may begin a new epoch at any time."""
        last = self._last_spec
        if last is not None and last.run == spec.run:
            # the request of an earlier attempt may arrive late, for one, after this node was stopped for a while
            if spec.epoch < last.epoch or (spec.epoch == last.epoch and self._state is NodeState.RUNNING):
                return f"epoch {spec.epoch} of this run is over: this node has been in epoch {last.epoch}"
            return None
        serving = self._spec.run if self._spec else None
        return (
            "already serves another run"
            if self._state is NodeState.RUNNING or serving not in (None, replaces)
            else None
        )

    def _load(self, spec: SessionSpec) -> bool:
        """Make the stage ready; False where the starter has to send the weights first."""
        config = config_from_dict(spec.config)
        wanted = self._quantize or spec.quantize
        stage_of = (config_to_dict(config), spec.span, spec.chunk_digest or spec.run, spec.rank, wanted)
        share_threads(spec.nodes_on_host)
        if self._stage is None or self._stage_of != stage_of:
            self._stage, self._stage_of = None, ()  # the old weights go before the new ones come
            weights = self._sources.find(spec, config)
            if weights is None:
                return False
            mode = resolve(mode_of(weights), wanted, "the chunk")
            rows = -(-spec.n_slots // spec.n_nodes)
            self._stage = Stage(config, spec.span, weights, Placement(self._device, self._dtype, mode, rows))
            self._stage_of = stage_of
            if self._compile:
                self._stage.compile()
        self._stage.begin(spec.n_slots, spec.context)
        return True

    def _open_link(self, spec: SessionSpec) -> None:
        self._link = Link(
            spec.link_config(self.config.port_out, self._timeouts),
            listener=self._listener,
            post=self._inbox.put_nowait,
            access=self.config.access,
            timeline=self._timeline,
        )
        self._link.accept()

    def _advance(self, link: Link, message: Message) -> None:
        assert self._stage is not None and self._spec is not None
        try:
            match message:
                case Activation(segments, data):
                    link.send(Activation(segments, self._compute(segments, data)))
                case Release(slot):
                    self._stage.release(slot)
                    link.send(message)
                case Fork(source, target, n):
                    self._stage.fork(source, target, n)
                    link.send(message)
                case Fault(rank, reason):
                    link.send(message)
                    self._fail(f"node {rank} of the ring is lost: {reason}", drain_s=self._timeouts.fault_drain_s)
                case Goodbye():
                    link.send(message)
                    self._end_session(drain_s=self._timeouts.fault_drain_s)
        except MdiError as exc:
            self._report_fault(self._spec.rank, str(exc))
            self._fail(str(exc), drain_s=self._timeouts.fault_drain_s)

    def _compute(self, segments: tuple[Segment, ...], data: memoryview) -> memoryview:
        assert self._stage is not None and self._spec is not None
        spec = self._spec
        x = from_buffer(data, spec.wire_dtype, spec.config["n_embd"])
        with self._timeline.during("compute", len(x)):
            y = self._stage.forward(x, segments)
        self._n_messages += 1
        if spec.rank == spec.n_nodes - 1:
            y = kept_rows(y, segments)
        return to_buffer(y, spec.wire_dtype)

    def _lose(self, link: Link, peer: Peer, error: Exception) -> None:
        if not isinstance(error, MdiError):
            raise error
        assert self._spec is not None
        if peer is link.config.predecessor:
            self._report_fault(
                self._spec.predecessor_rank, error.reason if isinstance(error, RingError) else str(error)
            )
        self._fail(str(error), drain_s=self._timeouts.fault_drain_s)

    def _report_fault(self, rank: Rank, reason: str) -> None:
        if self._link is not None:
            self._link.send(Fault(rank, reason))

    def _fail(self, reason: str, drain_s: float = 0.0) -> None:
        log.warning("the session ended: %s", reason)
        self._last_error = reason
        self._broke = self._is_at_work
        self._end_session(drain_s)

    def _end_session(self, drain_s: float = 0.0) -> None:
        """Give up the link and the slots; the weights stay for the next session."""
        self._drop_link(drain_s)
        if self._stage is not None:
            self._stage.free()
        self._spec = None
        self._state = NodeState.IDLE

    def _drop_link(self, drain_s: float = 0.0) -> None:
        if self._link is not None:
            self._link.close(drain_s)
        self._link = None


def _wants(spec: SessionSpec, access: Access, timeouts: Timeouts, epoch: int | None = None) -> bool:
    """Whether the starter of a session still works on that run, and on that `epoch` where it is given."""
    try:
        status = ControlClient("the starter", spec.starter.addr, spec.starter.port, access, timeouts).status()
    except ControlError:
        return False
    return status.run == spec.run and epoch in (None, status.epoch)
