"""The head of the ring: its own stage, the samples, and the loop that survives the loss of a ring."""

import contextlib
import logging
import signal
import socket
import threading
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from mdi import __version__
from mdi.checkpoint.cache import ChunkCache
from mdi.checkpoint.weights import Weights, digest_of, open_weights, select
from mdi.cluster.budget import free_for_a_session
from mdi.cluster.plan import Job, Plan
from mdi.cluster.rendezvous import nodes_on_host
from mdi.cluster.supervisor import MENDABLE, RingKeeper
from mdi.config.network import NetworkConfig
from mdi.config.options import StarterOptions
from mdi.control.routes import ControlServer
from mdi.control.session import SessionSpec
from mdi.control.status import InitAnswer, StarterStatus
from mdi.engine.engine import Observer, generate
from mdi.engine.sampler import Sampling, generator_for
from mdi.engine.scheduler import Scheduler
from mdi.errors import CheckpointError, ControlError
from mdi.model.build import Placement
from mdi.model.devices import free_memory_bytes, peak_memory_bytes, pick_device, pick_dtype, share_threads
from mdi.model.head import Ends
from mdi.model.quant import mode_of, resolve
from mdi.model.stage import Stage
from mdi.model.tensors import dtype_name
from mdi.net.sockets import listen
from mdi.net.timeouts import DEFAULT_TIMEOUTS, Timeouts
from mdi.trace import write_trace

log = logging.getLogger(__name__)


class Starter:
    """The starter of one job. Use it as a context: ports are bound on entry, everything is closed on exit.

    `prepare()` readies all nodes, `run()` generates. A ring that breaks meanwhile is mended, and the samples go on.
    Leaving the context tells the secondaries what became of the run: after one that finished or was interrupted
    they end (unless they are to be kept); after a failure they wait for the next starter.
    """

    def __init__(
        self, network: NetworkConfig, job: Job, options: StarterOptions, timeouts: Timeouts = DEFAULT_TIMEOUTS
    ) -> None:
        """Raises `ConfigError` where the device is not there."""
        self._network, self._job, self._options, self._timeouts = network, job, options, timeouts
        self._device = pick_device(options.device or network.starter.device)
        self._dtype = pick_dtype(options.dtype, self._device)
        self._resources = contextlib.ExitStack()
        self._weights: Weights = {}  # the starter's own, mapped
        self._stage: Stage | None = None
        self._ends: Ends | None = None
        self.scheduler = Scheduler(
            job.prompt_ids,
            n_tokens=options.n_tokens,
            context=job.context,
            stops=job.stops,
            n_nodes=len(network.nodes),
            max_rows=options.max_batch_tokens,
        )
        # They outlive a ring: a number is drawn for each token and never again, so a replay changes no text.
        self._generators = [generator_for(options.seed, sample.number) for sample in self.scheduler.samples]

    def __enter__(self) -> "Starter":
        """Raises `ConfigError` where a port is taken."""
        starter = self._network.starter
        with contextlib.ExitStack() as stack:
            listener = None
            if self._network.secondaries:
                listener = stack.enter_context(listen(starter.addr, starter.port_in))
            self._keeper = self._make_keeper(listener)
            if self._network.secondaries:
                control = ControlServer(starter.addr, starter.http_port, self, starter.access, self._timeouts)
                stack.callback(control.close)
                control.start()
            stack.callback(self._keeper.close)
            self._resources = stack.pop_all()
        return self

    def _make_keeper(self, listener: socket.socket | None) -> RingKeeper:
        return RingKeeper(
            self._network,
            self._job,
            self._options,
            wire_dtype=dtype_name(self._dtype),
            listener=listener,
            ready_stage=self._ready_stage,
            own_status=self.status,
            timeouts=self._timeouts,
        )

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, trace: object) -> None:
        failed = isinstance(exc, Exception) and not isinstance(exc, BrokenPipeError)
        with self._resources:
            if exc is not None or not self._options.keep_nodes:
                self._keeper.dismiss(stop=not failed and not self._options.keep_nodes)
        # The keeper and we refer to each other, so only a collection would free them.
        self._weights, self._stage, self._ends = {}, None, None

    # ---- what HTTP asks

    @property
    def cache(self) -> ChunkCache | None:
        return None

    def status(self) -> StarterStatus:
        keeper = self._keeper
        return StarterStatus(
            version=__version__,
            state=keeper.state,
            device=str(self._device),
            dtype=dtype_name(self._dtype),
            quantize=self._options.quantize,
            run=keeper.run,
            epoch=keeper.epoch,
            model=self._job.name,
            members=keeper.plan.names,
            span=keeper.plan.job.spans[0],
            samples=len(self.scheduler.samples),
            tokens=self.scheduler.n_generated,
            recoveries=keeper.n_recoveries,
            peak_memory_bytes=peak_memory_bytes(),
            free_memory_bytes=free_for_a_session(free_memory_bytes(self._device), self._stage, self._ends),
        )

    def request_init(self, spec: SessionSpec) -> "Future[InitAnswer]":
        raise ControlError("this is a starter; it takes no /init")

    def timeline(self) -> dict[str, Any]:
        return self._keeper.timeline.to_json()

    def request_release(self, run: int) -> None:
        pass

    def request_stop(self, run: int | None) -> None:
        """End the program as SIGTERM does; the signal goes to the main thread, to wake it."""
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)

    # ---- the run

    @property
    def n_recoveries(self) -> int:
        """How often the run went on after its ring broke."""
        return self._keeper.n_recoveries

    def prepare(self) -> None:
        """Load this node's weights while the secondaries get ready in parallel; then close the ring."""
        share_threads(nodes_on_host(self._network, self._network.starter))
        self._weights = self._own_weights(self._job)  # what is wrong with them is told before any node is waited for
        self._keeper.form()
        self._rewind()

    def run(self, observer: Observer) -> None:
        """Generate every sample, then say goodbye round the ring. A ring that breaks is mended on the way.

        Raises `MdiError` that names the node where the ring cannot be mended.
        """
        keeper, scheduler = self._keeper, self.scheduler
        sampling = Sampling(self._options.temperature, self._options.top_k, self._options.top_p)
        while not scheduler.done:
            n_before = scheduler.n_generated
            assert self._stage is not None and self._ends is not None
            try:
                generate(
                    keeper.ring,
                    self._stage,
                    self._ends,
                    scheduler,
                    sampling,
                    self._generators,
                    observer,
                    keeper.timeline,
                )
            except MENDABLE as exc:
                keeper.mend(exc, progressed=scheduler.n_generated > n_before, n_samples=scheduler.n_in_slots)
                self._rewind()
        try:
            keeper.ring.say_goodbye()
        except MENDABLE as exc:  # everything is generated; the nodes notice by themselves that the session is over
            log.info("the ring broke at its end: %s", exc)

    def write_timeline(self, path: Path) -> None:
        """Write what every node did when, as far as the nodes can still be asked."""
        write_trace(path, self._keeper.timelines())

    def _rewind(self) -> None:
        plan = self._keeper.plan
        self.scheduler.rewind(len(plan.members), plan.n_slots)

    # ---- this node's stage

    def _ready_stage(self, plan: Plan) -> None:
        """Hold the starter's span of `plan`, with empty slots. Weights that are here already stay."""
        job, span = plan.job, plan.job.spans[0]
        if self._stage is None or self._stage.span != span:
            self._stage = None  # the old weights go before the new ones come
            weights = self._weights if job is self._job else self._own_weights(job)
            placement = Placement(
                self._device,
                self._dtype,
                quantize=resolve(mode_of(weights), self._options.quantize, str(job.weights)),
                rows=-(-plan.n_slots // len(plan.members)),
            )
            if self._ends is None:  # before the blocks: while it is packed, the head is held twice
                self._ends = Ends(job.config, weights, placement)
            self._stage = Stage(job.config, span, weights, placement)
            if self._options.compile:
                self._stage.compile()
        self._stage.begin(plan.n_slots, job.context)

    def _own_weights(self, job: Job) -> Weights:
        given = self._options.chunk
        weights = select(open_weights(job.weights), job.config, 0, job.spans[0])
        if job.weights == given and job.manifest is not None and digest_of(weights) != job.manifest.files[0].digest:
            raise CheckpointError(f"--chunk {given}: not the chunk that the manifest of {job.folder} names")
        return weights
