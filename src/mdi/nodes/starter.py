"""The head of the ring: its own stage, the engine, and the loop that survives the loss of a ring."""

import contextlib
import logging
import signal
import time
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from mdi import __version__
from mdi.checkpoint.cache import ChunkCache
from mdi.checkpoint.digests import Check, checked, expect_digest
from mdi.checkpoint.folder import ModelFolder
from mdi.checkpoint.tensor_file import open_weights
from mdi.checkpoint.weights import select
from mdi.cluster.condition import Incident, RingCondition
from mdi.cluster.measured_network import MeasuredNetwork
from mdi.cluster.measured_split import MeasuredSplit
from mdi.cluster.newcomers import Newcomers
from mdi.cluster.node_watch import NodeWatch
from mdi.cluster.plan import Plan, PlanOptions
from mdi.cluster.ring_view import RingView, ring_view
from mdi.cluster.roster import Roster
from mdi.cluster.speed_watch import SpeedWatch
from mdi.cluster.supervisor import RECOVERABLE, RingSupervisor
from mdi.config.network import NetworkConfig, node_name
from mdi.config.options import StarterOptions
from mdi.config.paths import measurements_dir
from mdi.control.join import JoinRequest
from mdi.control.measurement import Measured, MeasureRequest
from mdi.control.routes import ControlServer
from mdi.control.session import SessionSpec
from mdi.control.status import InitAnswer, StarterStatus
from mdi.engine.engine import AddRequested, CancelRequested, Engine, Wake
from mdi.engine.sample import Sample
from mdi.engine.scheduler import Scheduler
from mdi.engine.speed import Comparison
from mdi.errors import CheckpointError, ControlError
from mdi.identity import Identity
from mdi.ids import NodeId, Rank
from mdi.inbox import Inbox
from mdi.machine import memory_bytes, peak_memory_bytes
from mdi.model.backends.select import make_head, make_span_engine, prepare
from mdi.model.devices import pick_device, pick_dtype
from mdi.model.packed import IN_MEMORY, PackedFiles
from mdi.model.runner import StageRunner, StageSpec
from mdi.model.tensors import dtype_name
from mdi.model.threads import CoreShare
from mdi.model.weights import Weights
from mdi.net.refusals import RefusalLog
from mdi.net.sockets import listen
from mdi.net.timeouts import DEFAULT_TIMEOUTS, Timeouts
from mdi.trace import Timeline
from mdi.trace_file import busy_shares, write_trace

log = logging.getLogger(__name__)


class Starter:
    """The starter of one run. Use it as a context: ports are bound on entry, everything is closed on exit.

    `prepare()` readies all nodes, `run()` generates what was added. A ring that breaks meanwhile is formed anew, and
    the samples go on. Leaving the context tells the secondaries what became of the run: after one that finished or was
    interrupted they end (unless they are to be kept); after a failure they wait for the next starter.
    """

    def __init__(
        self,
        network: NetworkConfig,
        model: ModelFolder,
        options: StarterOptions,
        *,
        context: int,
        n_slots: int,
        timeouts: Timeouts = DEFAULT_TIMEOUTS,
        packed_files: PackedFiles = IN_MEMORY,
    ) -> None:
        """
        Args:
            context: positions per sample.
            n_slots: samples that are to be in the ring at once, as far as memory allows.
            packed_files: where packed weights are kept for the next start.

        Raises `ConfigError` where the device is not there.
        """
        self._network, self._model, self._options, self._timeouts = network, model, options, timeouts
        self._plan_options = PlanOptions(
            context=context,
            n_slots=min(n_slots, options.max_slots or n_slots),
            max_batch_tokens=options.max_batch_tokens,
            split=options.split,
            dtype=options.dtype,
            quantize=options.quantize,
            kv_dtype=options.kv_dtype,
            is_fixed=options.max_slots is not None,
        )
        device = pick_device(options.device or network.starter.device)
        self._dtype = dtype_name(pick_dtype(options.dtype, device))
        self._has_kernels = prepare(device, options.backend)
        self._memory_limit_bytes = options.memory_limit_bytes or network.starter.memory_limit_bytes
        self._inbox = Inbox()
        self._identity = Identity.new()
        self._runner = StageRunner(
            device,
            make_span_engine,
            make_head,
            backend=options.backend,
            compile_ops=options.compile,
            tick=self._inbox.check,
            packed_files=packed_files,
        )
        self._timeline = Timeline()
        self._timeline.begin(options.timeline is not None)
        scheduler = Scheduler(context=context, max_batch_tokens=options.max_batch_tokens)
        self.engine = Engine(scheduler, self._runner, self._inbox, self._timeline, timeouts)
        self._resources = contextlib.ExitStack()

    def __enter__(self) -> "Starter":
        """Raises `ConfigError` where a port is taken, or where the split that was asked for cannot be had."""
        starter = self._network.starter
        refusals = RefusalLog()
        with contextlib.ExitStack() as stack:
            listener = control = None
            if self._network.secondaries:
                listener = stack.enter_context(listen(starter.listen_addr, starter.port_in))
                control = self._control_server(refusals)
                stack.callback(control.close)
                self._network = self._network.with_starter_ports(control.port, listener.getsockname()[1])
            self._roster = Roster(self._network, self._timeouts)
            measured = MeasuredSplit(self._measured_network())
            self._supervisor = RingSupervisor(
                self._roster,
                self._model,
                self._options.ring,
                self._plan_options,
                self._inbox,
                self._timeline,
                measured=measured,
                slowness=lambda: self._speed_watch.slowness,
                wire_dtype=self._dtype,
                listener=listener,
                refusals=refusals,
                timeouts=self._timeouts,
            )
            stack.callback(self._supervisor.close)
            statuses = {node: client.status for node, client in self._roster.clients.items()}
            self._watch = NodeWatch({NodeId(0): self.status, **statuses}, self._timeouts)
            stack.callback(self._watch.close)
            self._newcomers = Newcomers(
                self._roster,
                lambda: self._supervisor.state,
                measured,
                self._supervisor.may_take_part,
                self._expect,
                self._timeouts,
            )
            stack.callback(self._newcomers.close)
            if control is not None:
                control.start()
            self._speed_watch = SpeedWatch(
                lambda: {NodeId(0): self.status(), **self._supervisor.statuses()},
                lambda: self.engine.speed.expected_s,
                self._timeouts,
            )
            stack.callback(self._speed_watch.close)
            self._resources = stack.pop_all()
        return self

    def _measured_network(self) -> MeasuredNetwork:
        return MeasuredNetwork(
            network=self._network,
            model=self._model,
            device=self._runner.device,
            context=self._plan_options.context,
            n_samples=self._plan_options.n_slots,
            max_rows=self._options.max_batch_tokens,
            dtype=self._options.dtype,
            quantize=self._options.quantize,
            allow_quantize=self._options.allow_quantize,
            kv_dtype=self._options.kv_dtype,
            backend=self._options.backend,
            memory_limit_bytes=self._memory_limit_bytes,
            folder=measurements_dir(),
        )

    def _control_server(self, refusals: RefusalLog) -> ControlServer:
        starter = self._network.starter
        return ControlServer(
            starter.listen_addr,
            starter.http_port,
            self,
            starter.access,
            self._timeouts,
            refusals,
            starter.hosts,
        )

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, trace: object) -> None:
        failed = isinstance(exc, Exception) and not isinstance(exc, BrokenPipeError)
        with self._resources:
            if exc is not None or not self._options.keep_nodes:
                self._supervisor.dismiss(stop=not failed and not self._options.keep_nodes)
        self._runner.unload()

    # ---- called from threads that serve users

    @property
    def n_slots(self) -> int:
        """Samples that the ring holds at once."""
        return self._supervisor.plan.n_slots

    def submit(self, sample: Sample) -> None:
        """Have a sample generated."""
        self._inbox.post(AddRequested(sample))

    def cancel(self, sample: Sample) -> None:
        """End a sample, in any phase of its life."""
        self._inbox.post(CancelRequested(sample))

    def wake(self) -> None:
        """Have `serve` ask whether it is over."""
        self._inbox.post(Wake())

    @property
    def condition(self) -> RingCondition:
        """How the ring is."""
        return self._supervisor.condition

    def view(self) -> RingView:
        """The ring and its nodes, which are asked about once a second as long as this is called now and then."""
        news = self._watch.news()  # asked first: a node that joins is in the roster before it is watched
        supervisor = self._supervisor
        messages = supervisor.ring.under_way if supervisor.condition.is_running else ()
        now_s, recent, slowness = self._timeouts.clock(), self.engine.speed.recent, self._speed_watch.slowness
        return ring_view(
            self._roster.network, supervisor.plan, supervisor.epoch, messages, news, now_s, recent, slowness
        )

    # ---- called from HTTP threads

    @property
    def cache(self) -> ChunkCache | None:
        return None

    @property
    def n_steps(self) -> int:
        return 0  # it is never waited for

    def status(self) -> StarterStatus:
        supervisor, runner = self._supervisor, self._runner
        return StarterStatus(
            version=__version__,
            state=supervisor.state,
            device=str(runner.device),
            dtype=self._dtype,
            own_dtype=self._options.dtype,
            quantize=self._options.quantize,
            kv_dtype=self._options.kv_dtype,
            weights=runner.quantization,
            weights_bytes=runner.weights_bytes,
            cache_bytes=runner.cache_bytes,
            has_kernels=self._has_kernels,
            numerics=runner.numerics,
            run=supervisor.run,
            epoch=supervisor.epoch,
            model=self._model.name,
            members=supervisor.plan.names,
            span=supervisor.plan.spans[0],
            samples=self.engine.scheduler.n_added,
            tokens=self.engine.scheduler.n_generated,
            recoveries=supervisor.n_recoveries,
            memory_bytes=memory_bytes(),
            peak_memory_bytes=peak_memory_bytes(),
            free_memory_bytes=runner.free_memory_bytes(),
            memory_limit_bytes=self._memory_limit_bytes,
            waiting=supervisor.ring.n_waiting,
            work=self._timeline.meter.total,
            name=self._identity.name,
            boot=self._identity.boot,
            process=self._identity.process,
            ring_port=self._network.starter.port_in if self._network.secondaries else None,
            time_s=time.time(),
        )

    def request_init(self, spec: SessionSpec) -> "Future[InitAnswer]":
        raise ControlError("this is a starter; it takes no /init")

    def request_measurement(self, request: MeasureRequest) -> "Future[Measured]":
        raise ControlError("this is a starter; it is measured by whoever plans its ring")

    def request_join(self, request: JoinRequest, addr: str) -> str:
        return node_name(self._newcomers.admit(request, addr))

    def _expect(self, node: NodeId) -> None:
        self._watch.add(node, self._roster.clients[node].status)
        self._supervisor.expect(node)

    def timeline(self) -> dict[str, Any]:
        return self._timeline.to_json()

    def request_release(self, run: int) -> None:
        raise ControlError("this is a starter; it takes no /release")

    def request_stop(self, run: int | None) -> None:
        if run not in (None, self._supervisor.run):
            raise ControlError(f"this starter works on run {self._supervisor.run}, not on {run}")
        self.interrupt(signal.SIGTERM)

    def interrupt(self, number: signal.Signals) -> None:
        """End as a signal asks, as soon as the main thread looks at its inbox. Called from any thread."""
        self._inbox.interrupt(number)

    # ---- the run

    @property
    def n_recoveries(self) -> int:
        """How often the run went on after its ring broke."""
        return self._supervisor.n_recoveries

    @property
    def incidents(self) -> list[Incident]:
        """What befell the ring, in order."""
        return self._supervisor.incidents

    @property
    def speed(self) -> Comparison:
        """What was generated, and what was predicted for it."""
        return self.engine.speed.total

    def add(self, sample: Sample) -> None:
        """Queue a sample; see `Scheduler.add`."""
        self.engine.add(sample)

    def prepare(self) -> None:
        """Load this node's weights while the secondaries get ready in parallel; then close the ring."""
        self._check_weights()  # what is wrong with them is reported before any node is waited for
        self._form_ring()

    def run(self) -> None:
        """Generate every sample that was added, then say goodbye round the ring. A ring that breaks is formed anew.

        Raises `MdiError` that names the node where no ring can be formed.
        """
        self.serve(lambda: not self.engine.has_unfinished)

    def serve(self, is_over: Callable[[], bool]) -> None:
        """Generate what was added, and what is submitted meanwhile, until `is_over`; otherwise as `run`.

        `is_over` is asked after each event; `wake` has it asked again.
        """
        engine, supervisor = self.engine, self._supervisor
        while not is_over():
            n_before = engine.scheduler.n_generated
            try:
                while not is_over() and not supervisor.is_change_due(engine.scheduler.n_running):
                    engine.step()
            except RECOVERABLE as exc:
                supervisor.report_failure(exc, progressed=engine.scheduler.n_generated > n_before)
                self._form_ring()
            else:
                if not is_over():
                    supervisor.take_over()
                    self._form_ring()
        try:
            supervisor.ring.close_gracefully()
        except RECOVERABLE as exc:  # everything is generated; the nodes notice by themselves that the session is over
            log.info("the ring broke at its end: %s", exc)

    def write_timeline(self, path: Path) -> str:
        """Write what every node did when, as far as the nodes can still be asked; returns how busy they were."""
        timelines = self._supervisor.timelines()
        write_trace(path, timelines)
        return busy_shares(timelines)

    def _form_ring(self) -> None:
        """Form a ring that holds, with this node's part of the plan loaded."""
        supervisor, n_running = self._supervisor, self.engine.scheduler.n_running
        formed = False
        while not formed:
            with supervisor.attempt(self.status(), n_running) as attempt:
                self._load(attempt.plan, attempt.model)
                ring = supervisor.close_ring(attempt, self._runner.numerics)
                self.engine.begin(ring, len(attempt.plan.members), attempt.plan.n_slots, supervisor.expectation)
                formed = True
        if supervisor.expectation is not None:
            self._speed_watch.start()

    # ---- this node's stage

    def _load(self, plan: Plan, model: ModelFolder) -> None:
        """Hold the starter's span of `plan`, with empty slots. Weights that are here already stay."""
        path = self._weights_path(plan, model)
        spec = StageSpec(
            config=model.config,
            span=plan.spans[0],
            has_head=True,
            weights_id=model.path,
            dtype=self._dtype,
            quantize=plan.modes[0],
            kv_dtype=self._options.kv_dtype,
            rows=-(-plan.n_slots // len(plan.members)),
        )
        cores = CoreShare(self._roster.n_on_host(NodeId(0)))
        if not self._runner.holds(spec):
            self._load_undamaged(spec, path, plan, model)
        cores.settle()
        self._runner.begin(plan.n_slots, plan.context)
        status = self.status()
        log.info("starter is ready: %s; memory: %s", status.computes, status.memory)

    def _load_undamaged(self, spec: StageSpec, path: Path, plan: Plan, model: ModelFolder) -> None:
        """Load the stage from `path`; where that is a damaged chunk, from one that is made anew of the whole model."""
        try:
            self._load_from(spec, path, plan, model)
        except CheckpointError as problem:
            model.remake(path, len(plan.members), Rank(0), problem, self._inbox.check)
            self._load_from(spec, path, plan, model)

    def _load_from(self, spec: StageSpec, path: Path, plan: Plan, model: ModelFolder) -> None:
        weights = checked(self._open(path, plan, model), self._check(path, plan, model))
        self._runner.load(spec, weights, str(path))

    def _check_weights(self) -> None:
        plan, model = self._supervisor.plan, self._supervisor.model
        self._open(self._weights_path(plan, model), plan, model)

    def _weights_path(self, plan: Plan, model: ModelFolder) -> Path:
        """--chunk serves the plan that it was given for; after a take-over the layers are others."""
        is_first = self._roster.are_initial(plan.members)
        given = self._options.chunk if is_first else None
        return given or model.starter_weights(plan.spans, self._options.quantize)

    def _open(self, path: Path, plan: Plan, model: ModelFolder) -> Weights:
        return select(open_weights(path, lambda n_bytes: self._inbox.check()), model.config, 0, plan.spans[0])

    def _check(self, path: Path, plan: Plan, model: ModelFolder) -> Check | None:
        """What is known of the weights in `path`, before they are read."""
        n_nodes = len(plan.members)
        if path == self._options.chunk:
            manifest = model.ring_manifest(n_nodes)
            otherwise = f"--chunk {path}: not the chunk that the manifest of {model.path} names, or damaged"
            return expect_digest(manifest.files[0].digest if manifest else "", otherwise)
        return model.check(path, n_nodes)
