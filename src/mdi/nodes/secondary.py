"""A secondary: wait for a starter, load a span, pass messages through it, wait again.

Everything that happens arrives in one inbox, and the main thread handles it. HTTP threads only post and wait.
"""

import contextlib
import functools
import logging
import queue
import signal
import time
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from mdi import __version__
from mdi.checkpoint.cache import ChunkCache
from mdi.checkpoint.config import config_from_dict
from mdi.cluster.node_meter import NodeMeter
from mdi.cluster.rendezvous import in_background
from mdi.config.network import NodeConfig
from mdi.control.client import ControlClient
from mdi.control.join import JoinRequest
from mdi.control.measurement import Measured, MeasureRequest
from mdi.control.protocol import NodeBusy
from mdi.control.routes import ControlServer
from mdi.control.session import SessionSpec
from mdi.control.status import InitAnswer, NeedsChunk, Ready, SecondaryStatus
from mdi.errors import ControlError, MdiError, RingError
from mdi.formats import BackendChoice, KvDtype, Mode
from mdi.identity import Identity
from mdi.ids import Rank
from mdi.inbox import Inbox, Stopped
from mdi.liveness import StepCounter
from mdi.machine import memory_bytes, peak_memory_bytes
from mdi.model.backends.select import make_head, make_span_engine, prepare
from mdi.model.devices import pick_device, pick_dtype
from mdi.model.packed import IN_MEMORY, PackedFiles
from mdi.model.runner import StageRunner, StageSpec
from mdi.model.stage import kept_rows
from mdi.model.tensors import dtype_name, from_buffer, to_buffer
from mdi.model.threads import CoreShare
from mdi.net.access import Access
from mdi.net.refusals import RefusalLog
from mdi.net.sockets import Peer, listen
from mdi.net.timeouts import DEFAULT_TIMEOUTS, Timeouts
from mdi.nodes.measuring import MeasurementRequested, Measuring
from mdi.nodes.session_state import Action, Admit, AskStarter, Event, Phase, Refuse, Session, admission, busy_with
from mdi.nodes.session_work import SessionWork
from mdi.nodes.sources import WeightSources
from mdi.ring.link import Link, LinkDown, PredecessorConnected, Received
from mdi.ring.messages import Activation, Fault, Goodbye, Message
from mdi.segments import Fork
from mdi.strings import format_bytes, one_line
from mdi.trace import Timeline

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class InitRequested:
    """A starter wants this node in its session."""

    spec: SessionSpec
    answer: "Future[InitAnswer]"


@dataclass(frozen=True)
class ReleaseRequested:
    """The starter gave up the session before it ran."""

    run: int


@dataclass(frozen=True)
class StopRequested:
    """The node is to end, unless it serves another run than `run` by now."""

    run: int | None


@dataclass(frozen=True, eq=False)
class StarterAnswered:
    """Whether the starter of a session still works on it, asked because of a request or for want of news."""

    spec: SessionSpec
    is_wanted: "Future[bool]"
    because_of: InitRequested | None


class Secondary:
    """One secondary node. Use it as a context: ports are bound on creation, everything is closed on exit."""

    def __init__(
        self,
        config: NodeConfig,
        sources: WeightSources,
        *,
        device: str | None = None,
        dtype: str | None = None,
        quantize: Mode | None = None,
        kv_dtype: KvDtype | None = None,
        backend: BackendChoice = "auto",
        compile_stage: bool = False,
        memory_limit_bytes: int | None = None,
        timeouts: Timeouts = DEFAULT_TIMEOUTS,
        packed_files: PackedFiles = IN_MEMORY,
    ) -> None:
        """Raises `ConfigError` where a port is taken or the device is not there.

        Args:
            memory_limit_bytes: that the node may take for a model; None: as the configuration says.
            packed_files: where packed weights are kept for the next start.
        """
        self.config = config
        self._memory_limit_bytes = memory_limit_bytes or config.memory_limit_bytes
        self._sources, self._timeouts = sources, timeouts
        self._own_dtype, self._quantize, self._kv_dtype = dtype, quantize, kv_dtype
        torch_device = pick_device(device or config.device)
        self._default_dtype = dtype_name(pick_dtype(dtype, torch_device))
        self._has_kernels = prepare(torch_device, backend)
        self._steps, self._inbox = StepCounter(), Inbox()
        self._runner = StageRunner(
            torch_device,
            make_span_engine,
            make_head,
            backend=backend,
            compile_ops=compile_stage,
            tick=self._tick,
            packed_files=packed_files,
        )
        self._timeline = Timeline()
        self._session = Session()
        self._identity = Identity.new()
        self._link: Link | None = None
        self._n_refusals = 0  # in a row, by a starter that was asked whether it wants this node
        self._n_messages = 0  # computed since it was started
        self._work = SessionWork()
        self._computing_since_s: float | None = None
        self._last_error = ""
        self._refusals = RefusalLog()
        self._listener = listen(config.listen_addr, config.port_in)
        meter = NodeMeter(
            torch_device,
            dtype,
            quantize,
            kv_dtype,
            backend,
            folder=sources.cache.measurements,
            memory_limit_bytes=self._memory_limit_bytes,
            free_bytes=self._runner.free_memory_bytes,
            make_room=self._runner.unload,
            tick=self._tick,
        )
        self._measuring = Measuring(config, meter, self._listener, self._inbox, self._refusals, timeouts)
        try:
            self._control = ControlServer(
                config.listen_addr, config.http_port, self, config.access, timeouts, self._refusals, config.hosts
            )
        except MdiError:
            self._listener.close()
            raise

    def __enter__(self) -> "Secondary":
        self._control.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, trace: object) -> None:
        if self._session.phase is Phase.RUNNING and self._session.spec is not None and self._link is not None:
            reason = f"it failed: {one_line(exc)}" if isinstance(exc, Exception) else "it was stopped"
            self._link.send(Fault(self._session.spec.rank, reason))
        self._drop_link(self._timeouts.stop_drain_s)
        self._runner.free()
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

    @property
    def slots(self) -> tuple[int, int]:
        """The number of slots that have memory, and the positions of each."""
        return self._runner.slots

    # ---- called from HTTP threads

    @property
    def cache(self) -> ChunkCache:
        return self._sources.cache

    @property
    def n_steps(self) -> int:
        return self._steps.n_steps

    def status(self) -> SecondaryStatus:
        session, runner, link, since_s = self._session, self._runner, self._link, self._computing_since_s
        spec = session.current
        return SecondaryStatus(
            version=__version__,
            state=session.phase.state,
            device=str(runner.device),
            dtype=self._dtype_in(spec),
            own_dtype=self._own_dtype,
            quantize=self._quantize,
            kv_dtype=self._kv_dtype,
            weights=runner.quantization,
            weights_bytes=runner.weights_bytes,
            cache_bytes=runner.cache_bytes,
            has_kernels=self._has_kernels,
            numerics=runner.numerics,
            starter=f"{spec.starter.addr}:{spec.starter.port}" if spec else None,
            run=spec.run if spec else None,
            epoch=spec.epoch if spec else None,
            rank=spec.rank if spec else None,
            model=spec.model if spec else None,
            span=spec.span if spec else None,
            wire_dtype=spec.wire_dtype if spec else None,
            messages=self._n_messages,
            last_error=self._last_error,
            received=link.n_received if link else 0,
            computed=self._work.n_messages,
            sent=link.n_sent if link else 0,
            computing_s=None if since_s is None else max(0.0, self._timeouts.clock() - since_s),
            memory_bytes=memory_bytes(),
            peak_memory_bytes=peak_memory_bytes(),
            free_memory_bytes=runner.free_memory_bytes(),
            memory_limit_bytes=self._memory_limit_bytes,
            waiting=max(0, link.n_received - link.n_sent - (since_s is not None)) if link else 0,
            work=self._timeline.meter.total,
            name=self._identity.name,
            boot=self._identity.boot,
            process=self._identity.process,
            ring_port=self.port_in,
            time_s=time.time(),
        )

    def request_init(self, spec: SessionSpec) -> "Future[InitAnswer]":
        """The answer comes when the node is ready; it is the error `NodeBusy` where the session is not let in."""
        answer: Future[InitAnswer] = Future()
        self._inbox.post(InitRequested(spec, answer))
        return answer

    def request_measurement(self, request: MeasureRequest) -> "Future[Measured]":
        return self._measuring.request(request)

    def request_join(self, request: JoinRequest, addr: str) -> str:
        raise ControlError("this is a secondary: ask its starter")

    def timeline(self) -> dict[str, Any]:
        return self._timeline.to_json()

    def request_release(self, run: int) -> None:
        self._inbox.post(ReleaseRequested(run))

    def request_stop(self, run: int | None) -> None:
        if self._serves_another(run):
            raise ControlError(f"this node serves another run than {run} by now")
        self._inbox.post(StopRequested(run))

    def interrupt(self, number: signal.Signals) -> None:
        """End as a signal asks, as soon as the main thread looks at its inbox. Called from any thread."""
        self._inbox.interrupt(number)

    # ---- the loop

    def serve(self) -> None:
        """Serve one session after another until a stop is requested. Raises `Stopped` after a signal."""
        while not self._is_stop(event := self._next_event()):
            self._handle(event)

    def _next_event(self) -> object:
        """Wait for what happens next. A node that waits for its ring to close keeps asking whether it is wanted."""
        while self._session.phase is Phase.READY and self._session.spec is not None:
            try:
                return self._inbox.get(self._timeouts.ready_check_s)
            except queue.Empty:
                self._ask_starter(self._session.spec, None)
        with self._timeline.during("idle"):
            return self._inbox.get()

    def _is_stop(self, event: object) -> bool:
        return isinstance(event, StopRequested) and not self._serves_another(event.run)

    def _serves_another(self, run: int | None) -> bool:
        current = self._session.current
        return run is not None and current is not None and current.run != run

    def _handle(self, event: object) -> None:
        self._steps.tick()
        match event:
            case InitRequested():
                self._admit(event)
            case StarterAnswered():
                self._weigh(event)
            case MeasurementRequested():
                self._measuring.serve(event, is_idle=self._session.current is None)
            case ReleaseRequested(run):
                if self._session.spec is not None and self._session.spec.run == run:
                    self._apply(Event.RELEASED)
            case PredecessorConnected(link) if link is self._link:
                self._apply(Event.CONNECTED)
            case Received(link, message) if link is self._link:
                self._take(message)
            case LinkDown(link, peer, error) if link is self._link:
                self._lose(peer, error)
            case _:
                log.debug("an event of an earlier session: %s", event)

    # ---- who is let in

    def _admit(self, request: InitRequested) -> None:
        match admission(self._session, request.spec):
            case Admit():
                self._initialize(request)
            case Refuse(reason):
                request.answer.set_exception(NodeBusy(reason))
            case AskStarter(spec):
                self._ask_starter(spec, request)

    def _ask_starter(self, spec: SessionSpec, request: InitRequested | None) -> None:
        """Ask in a thread of its own: an answer may take seconds, and the ring may close meanwhile."""
        epoch = spec.epoch if request is None else None
        is_wanted = in_background(_wants, spec, self.config.access, self._timeouts, epoch)
        is_wanted.add_done_callback(lambda answer: self._inbox.post(StarterAnswered(spec, answer, request)))

    def _weigh(self, answered: StarterAnswered) -> None:
        """Act on what the starter of a session said, if the node is still in that session."""
        request, session, is_wanted = answered.because_of, self._session, answered.is_wanted.result()
        if request is None:
            if session.current is answered.spec:
                self._count_refusals(is_wanted)
        elif session.spec is not answered.spec or session.phase is Phase.RUNNING:
            self._admit(request)  # things have changed meanwhile
        elif is_wanted:
            request.answer.set_exception(NodeBusy(busy_with(answered.spec).reason))
        else:
            self._initialize(request)

    def _count_refusals(self, is_wanted: bool) -> None:
        self._n_refusals = 0 if is_wanted else self._n_refusals + 1
        if self._n_refusals == 2:  # a starter that is busy may leave one question unanswered
            self._fail(Event.UNWANTED, "the starter is gone, or has formed its ring without this node")

    def _initialize(self, request: InitRequested) -> None:
        spec, answer = request.spec, request.answer
        if self._session.spec is None or self._session.spec.run != spec.run:
            self._timeline.begin(spec.timeline)
        self._n_refusals = 0
        starter = f"{spec.starter.addr}:{spec.starter.port}"
        log.info("the starter at %s asks for %s of %s, epoch %d", starter, spec.span, spec.model, spec.epoch)
        try:
            self._apply(Event.ADMITTED, spec=spec)
        except MdiError as exc:
            self._fail(Event.LOAD_FAILED, str(exc))
            answer.set_exception(exc)
        except Stopped:
            answer.set_exception(NodeBusy("the node was stopped"))  # to its starter as if it had been killed
            raise
        except BaseException as exc:
            answer.set_exception(ControlError(f"the node failed: {exc!r}"))
            raise
        else:
            answer.set_result(self._init_answer(spec))

    def _init_answer(self, spec: SessionSpec) -> InitAnswer:
        if self._session.phase is Phase.READY:
            status = self.status()
            log.info("ready: %s; memory: %s", status.computes, status.memory)
            return Ready(status)
        held_bytes = self.cache.held_bytes(spec.chunk_digest)
        log.info("the starter is to send the weights; %s of them are here", format_bytes(held_bytes))
        return NeedsChunk(held_bytes)

    # ---- a session

    def _apply(self, event: Event, message: Message | None = None, spec: SessionSpec | None = None) -> None:
        """Move to the next phase, and do what belongs to it.

        HTTP threads read the phase. So a session that ends does so when its slots have been freed, and not before.
        """
        session, actions = self._session.after(event, spec)
        if session.current is not None:
            self._session = session
        for action in actions:
            self._do(action, message)
        if session.current is None:
            self._session = session

    def _do(self, action: Action, message: Message | None) -> None:
        spec, link = self._session.spec, self._link
        if spec is None:
            return
        match action:
            case Action.DROP_LINK:
                self._drop_link()
            case Action.LOAD:
                self._apply(Event.LOADED if self._load(spec) else Event.NEEDS_CHUNK)
            case Action.OPEN_LINK:
                self._open_link(spec)
            case Action.CONNECT if link is not None:
                self._last_error = ""
                link.connect()
            case Action.COMPUTE if link is not None and message is not None:
                link.send(self._compute(spec, message))
            case Action.FORWARD if link is not None and message is not None:
                link.send(message)
            case Action.END:
                self._drop_link(self._timeouts.fault_drain_s)
                self._runner.free()
                self._report_work()

    def _report_work(self) -> None:
        if self._work.n_messages:
            log.info("the session is over: %s", self._work)
        self._work = SessionWork()

    def _tick(self) -> None:
        """Within long work: it gets on, unless a signal is to end it."""
        self._steps.tick()
        self._inbox.check()

    def _load(self, spec: SessionSpec) -> bool:
        """Make the stage ready; False where the starter has to send the weights first."""
        config = config_from_dict(spec.config)
        cores = CoreShare(spec.nodes_on_host)
        stage = StageSpec(
            config=config,
            span=spec.span,
            has_head=False,
            weights_id=(spec.chunk_digest or spec.run, spec.rank),
            dtype=self._dtype_in(spec),
            quantize=self._quantize or spec.quantize,
            kv_dtype=self._kv_dtype or spec.kv_dtype,
            rows=-(-spec.n_slots // spec.n_nodes),
        )
        if not self._runner.holds(stage):
            build = functools.partial(self._runner.load, stage, source="the chunk")
            if not self._sources.load(spec, config, build, self._tick):
                return False
        cores.settle()
        self._runner.begin(spec.n_slots, spec.context)
        return True

    def _dtype_in(self, spec: SessionSpec | None) -> str:
        """What this node computes in: the dtype that it was started with, else that of the session's starter."""
        return self._own_dtype or (spec and spec.dtype) or self._default_dtype

    def _open_link(self, spec: SessionSpec) -> None:
        self._link = Link(
            spec.link_config(self.config.port_out, self._timeouts),
            listener=self._listener,
            post=self._inbox.post,
            access=self.config.access,
            timeline=self._timeline,
            refusals=self._refusals,
        )
        self._link.accept()

    def _take(self, message: Message) -> None:
        """Handle what the predecessor sent."""
        match message:
            case Fault(rank, reason):
                self._fail(Event.FAULT, f"{self._name_of(rank)} is lost: {reason}", message)
            case Goodbye():
                self._apply(Event.GOODBYE, message)
            case _:
                try:
                    self._apply(Event.MESSAGE, message)
                except MdiError as exc:
                    rank = self._session.spec.rank if self._session.spec else Rank(0)
                    self._fail(Event.STAGE_FAILED, str(exc), Fault(rank, str(exc)))

    def _name_of(self, rank: Rank) -> str:
        """What the node of a rank of this session is called; any number may come over the ring."""
        names = self._session.spec.names if self._session.spec else []
        return names[rank] if 0 <= rank < len(names) else f"a node of rank {rank}"

    def _compute(self, spec: SessionSpec, message: Message) -> Message:
        """Apply a message to the stage; returns what goes on to the successor."""
        match message:
            case Fork():
                self._runner.fork(message)
            case Activation(segments, data):
                x, began_s = from_buffer(data, spec.wire_dtype, spec.config["n_embd"]), self._timeouts.clock()
                with self._timeline.computing(segments), self._computing():
                    y = self._runner.forward(x, segments)
                is_last = spec.rank == spec.n_nodes - 1
                rows = to_buffer(kept_rows(y, segments) if is_last else y, spec.wire_dtype)
                self._n_messages += 1
                self._work.add(segments, rows.nbytes, began_s, self._timeouts.clock())
                return Activation(segments, rows)
        return message

    @contextlib.contextmanager
    def _computing(self) -> Iterator[None]:
        """Let the status tell for how long the block has been at work."""
        self._computing_since_s = self._timeouts.clock()
        try:
            yield
        finally:
            self._computing_since_s = None

    def _lose(self, peer: Peer, error: Exception) -> None:
        """One side of the link failed. Nobody but this node can see that its predecessor is gone, so it says so."""
        link, spec = self._link, self._session.spec
        if not isinstance(error, MdiError):
            raise error
        fault = None
        if link is not None and spec is not None and peer is link.config.predecessor:
            fault = Fault(spec.predecessor_rank, error.reason if isinstance(error, RingError) else str(error))
        self._fail(Event.LINK_DOWN, str(error), fault)

    def _fail(self, event: Event, reason: str, fault: Message | None = None) -> None:
        spec = self._session.spec
        if spec is not None and self._session.phase is Phase.RUNNING and event in (Event.LINK_DOWN, Event.FAULT):
            # Whoever closed our connection may have done so because the ring broke elsewhere.
            reason = f"the ring of epoch {spec.epoch} broke: {reason}"
            log.warning("%s; waiting for its starter to form it anew", reason)
        else:
            log.warning("the session ended: %s", reason)
        self._last_error = reason
        self._apply(event, fault)

    def _drop_link(self, drain_s: float = 0.0) -> None:
        if self._link is not None:
            self._link.close(drain_s)
        self._link = None


def _wants(spec: SessionSpec, access: Access, timeouts: Timeouts, epoch: int | None) -> bool:
    """Whether the starter of a session still works on that run, and on that `epoch` where it is given."""
    try:
        status = ControlClient("the starter", spec.starter.addr, spec.starter.port, access, timeouts).status()
    except ControlError:
        return False
    return status.run == spec.run and epoch in (None, status.epoch)
