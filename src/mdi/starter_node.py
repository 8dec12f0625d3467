"""The head of the ring: configure the secondaries, close the ring, run the job, say goodbye."""

import contextlib
import logging
import queue
import secrets
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, as_completed, wait
from typing import Any, TypeVar

from mdi import __version__
from mdi.assemble import Placement
from mdi.checkpoint import Weights, config_to_dict, digest_of, open_weights, select
from mdi.chunk_cache import ChunkCache
from mdi.config import NetworkConfig, NodeConfig, StarterOptions, node_name
from mdi.control import ControlClient, ControlServer, Refused, Unreachable
from mdi.devices import peak_memory_bytes, pick_device, pick_dtype, share_threads
from mdi.engine import LinkRing, LocalRing, Observer, Ring, generate
from mdi.errors import CheckpointError, ControlError, LinkTimeout, MdiError
from mdi.job import Job
from mdi.link import HANDSHAKE_TIMEOUT_S, Link, LinkDown, LinkEvent, Peer, PreviousConnected, listen
from mdi.quant import mode_of, resolve
from mdi.report import progress_bar
from mdi.sampler import Sampling
from mdi.scheduler import Scheduler
from mdi.session import SessionSpec, open_link
from mdi.stage import Ends, Stage
from mdi.tensors import dtype_name

log = logging.getLogger(__name__)
T = TypeVar("T")

DISMISS_TIMEOUT_S = 1.5
RETRY_S = 0.5  # between two calls of a node that is not up yet


class Starter:
    """The starter of one job. Use it as a context: ports are bound on entry, everything is closed on exit.

    `prepare()` readies all nodes, `run()` generates. Leaving the context tells the secondaries what
    became of the session: after a run that finished or was interrupted they end (unless they are to be
    kept); after a failure they wait for the next starter.
    """

    def __init__(self, network: NetworkConfig, job: Job, options: StarterOptions) -> None:
        """Raises `ConfigError` where a port is taken or the device is not there."""
        self._network, self._job, self._options = network, job, options
        self._device = pick_device(options.device or network.starter.device)
        self._dtype = pick_dtype(options.dtype, self._device)
        self._n_slots = min(len(job.prompts), options.max_slots or len(job.prompts))
        self._max_rows = max(options.prefill_rows, -(-self._n_slots // len(network.nodes)))
        self._epoch = secrets.randbits(63)
        self._inbox: queue.Queue[LinkEvent] = queue.Queue()  # bounded by what the scheduler lets travel
        self._clients = [
            ControlClient(f"{node_name(index)}", node.addr, node.http_port, network.starter.access)
            for index, node in enumerate(network.nodes)
            if index
        ]
        self._asked: list[ControlClient] = []  # secondaries that may be in our session
        self._resources = contextlib.ExitStack()
        self._state = "starting"
        self._ring: Ring = LocalRing()
        self.scheduler = Scheduler(
            job.prompt_ids,
            n_tokens=options.n_tokens,
            context=job.context,
            stops=job.stops,
            n_nodes=len(network.nodes),
            n_slots=self._n_slots,
            max_rows=self._max_rows,
        )

    def __enter__(self) -> "Starter":
        if self._network.secondaries:
            starter = self._network.starter
            with contextlib.ExitStack() as stack:
                self._listener = listen(starter.addr, starter.port_in)
                stack.callback(self._listener.close)
                control = ControlServer(starter.addr, starter.http_port, self, starter.access)
                stack.callback(control.close)
                control.start()
                self._resources = stack.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, trace: object) -> None:
        with self._resources:
            if isinstance(exc, Exception) and not isinstance(exc, BrokenPipeError):
                self._dismiss(self._release)
            elif not self._options.keep_nodes:
                self._dismiss(self._stop)

    def _release(self, client: ControlClient) -> None:
        client.release(self._epoch)

    def _stop(self, client: ControlClient) -> None:
        client.stop(self._epoch)

    # ---- what HTTP asks

    @property
    def cache(self) -> ChunkCache | None:
        return None

    def status(self) -> dict[str, Any]:
        return {
            "role": "starter",
            "version": __version__,
            "state": self._state,
            "device": str(self._device),
            "dtype": dtype_name(self._dtype),
            "epoch": self._epoch,
            "model": self._job.name,
            "span": list(self._job.spans[0]),
            "samples": len(self.scheduler.samples),
            "tokens": self.scheduler.n_generated,
            "peak_memory_bytes": peak_memory_bytes(),
        }

    def request_init(self, spec: SessionSpec) -> "Future[dict[str, Any]]":
        raise ControlError("this is a starter; it takes no /init")

    def request_release(self, epoch: int) -> None:
        pass

    def request_stop(self, epoch: int | None) -> None:
        """End the program as SIGTERM does; the signal goes to the main thread, to wake it."""
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)

    # ---- start-up

    def prepare(self) -> None:
        """Load this node's weights while the secondaries get ready in parallel; then close the ring."""
        job = self._job
        share_threads(_nodes_on_host(self._network, self._network.starter))
        pending = [_in_background(self._initialize, node) for node in range(1, len(self._network.nodes))]
        weights = self._own_weights()
        placement = Placement(
            self._device,
            self._dtype,
            quantize=resolve(mode_of(weights), self._options.quantize, str(job.weights)),
            rows=-(-self._n_slots // len(self._network.nodes)),
        )
        self._stage = Stage(job.config, job.spans[0], weights, placement)
        self._ends = Ends(job.config, weights, placement)
        if self._options.compile:
            self._stage.compile()
        self._stage.allocate(self._n_slots, job.context)
        for future in as_completed(pending):
            future.result()
        if self._clients:
            with self._naming_nodes():
                self._ring = LinkRing(self._close_ring(), self._inbox)
        self._state = "running"

    def _own_weights(self) -> Weights:
        job, given = self._job, self._options.chunk
        weights = select(open_weights(job.weights), job.config, 0, job.spans[0])
        if given is not None and job.manifest is not None and digest_of(weights) != job.manifest.files[0].digest:
            raise CheckpointError(f"--chunk {given}: not the chunk that the manifest of {job.folder} names")
        return weights

    def _initialize(self, node: int) -> None:
        """Configure one secondary, sending it its chunk if it has none. Runs in a thread of its own."""
        client, spec = self._clients[node - 1], self._spec(node)
        self._asked.append(client)  # from now on it may be loading for us, whatever becomes of this call
        answer = self._await_node(client, spec)
        if answer.get("state") == "needs chunk":
            self._send_chunk(client, node)
            answer = client.init(spec)
        if answer.get("state") != "ready":
            raise ControlError(f"{client.name} at {client.url} did not get ready: {answer}")
        log.info("%s is ready: layers %s, %s on %s", client.name, answer["span"], answer["dtype"], answer["device"])

    def _await_node(self, client: ControlClient, spec: SessionSpec) -> dict[str, Any]:
        deadline = time.monotonic() + self._options.node_timeout_s
        told = False
        while True:
            try:
                return client.init(spec)
            except (Unreachable, Refused) as exc:
                if time.monotonic() > deadline:
                    advice = ": is secondary.py running there?" if isinstance(exc, Unreachable) else "."
                    waited = f"{self._options.node_timeout_s:g} s (--node-timeout)"
                    raise ControlError(f"{exc}{advice} Waited {waited}") from exc
                if not told:
                    busy = "" if isinstance(exc, Unreachable) else f": {exc}"
                    log.warning("waiting for %s at %s%s", client.name, client.url, busy)
                    told = True
            time.sleep(RETRY_S)

    def _send_chunk(self, client: ControlClient, node: int) -> None:
        job = self._job
        path = job.chunk_of(node)
        if job.manifest is None or not path.is_file():
            raise ControlError(f"{client.name} at {client.url} has no chunk and neither has this machine ({path})")
        digest = job.manifest.files[node].digest
        log.info("sending %s to %s", path.name, client.name)
        with progress_bar(path.stat().st_size, f"chunk for {client.name}", "B") as advance:
            client.send_chunk(path, digest, advance)

    def _spec(self, node: int) -> SessionSpec:
        job, nodes = self._job, self._network.nodes
        manifest, n_nodes = job.manifest, len(nodes)
        return SessionSpec(
            epoch=self._epoch,
            node=node,
            n_nodes=n_nodes,
            starter=Peer("starter", nodes[0].addr, nodes[0].http_port),
            model=job.name,
            model_digest=manifest.model_digest if manifest else "",
            config=config_to_dict(job.config),
            span=job.spans[node],
            chunk_digest=manifest.files[node].digest if manifest else "",
            n_slots=self._n_slots,
            context=job.context,
            max_rows=self._max_rows,
            wire_dtype=dtype_name(self._dtype),
            quantize=self._options.quantize,
            peer_timeout_s=self._options.peer_timeout_s,
            nodes_on_host=_nodes_on_host(self._network, nodes[node]),
            previous=_ring_peer(nodes, node - 1),
            following=_ring_peer(nodes, node + 1),
        )

    def _close_ring(self) -> Link:
        """Call the first secondary, which calls the next one, and so on until the last one calls us."""
        spec = self._spec(0)
        link = open_link(
            spec,
            listener=self._listener,
            source_port=self._network.starter.port_out,
            returning=True,
            post=self._inbox.put_nowait,
            access=self._network.starter.access,
        )
        self._resources.callback(link.close)
        link.accept()
        link.connect()
        try:
            event = self._inbox.get(timeout=HANDSHAKE_TIMEOUT_S * len(self._network.nodes))
        except queue.Empty as exc:
            raise LinkTimeout("the ring did not close") from exc
        match event:
            case PreviousConnected():
                return link
            case LinkDown(_, _, error):
                raise error
        raise AssertionError(f"{event} before the ring closed")

    @contextlib.contextmanager
    def _naming_nodes(self) -> Iterator[None]:
        """Add to an error what each secondary says of itself: only they may know what happened."""
        try:
            yield
        except MdiError as exc:
            if not self._clients:
                raise
            pending = [_in_background(_describe, client) for client in self._clients]
            states = "; ".join(future.result() for future in pending)
            raise type(exc)(f"{exc}; {states}") from exc

    # ---- the run

    def run(self, observer: Observer) -> None:
        """Generate every sample, then say goodbye round the ring.

        Raises `MdiError` naming the node where the ring breaks.
        """
        options = self._options
        sampling = Sampling(options.temperature, options.top_k, options.top_p)
        with self._naming_nodes():
            generate(self._ring, self._stage, self._ends, self.scheduler, sampling, options.seed, observer)
            if isinstance(self._ring, LinkRing):
                self._ring.say_goodbye()

    def _dismiss(self, action: Callable[[ControlClient], None]) -> None:
        """Tell each node that may be in our session, in parallel; one that cannot be told in time is gone anyway."""
        wait([_in_background(action, client) for client in self._asked], DISMISS_TIMEOUT_S)


def _in_background(action: Callable[..., T], *arguments: Any) -> "Future[T]":
    """Run `action` in a daemon thread: unlike a pool's, it does not hold up a program that is interrupted."""
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(action(*arguments))
        except BaseException as exc:  # noqa: BLE001  it is raised where the result is asked for
            future.set_exception(exc)

    threading.Thread(target=run, name=f"starter-{action.__name__}", daemon=True).start()
    return future


def _describe(client: ControlClient) -> str:
    try:
        status = client.status()
    except ControlError:
        return f"{client.name} does not answer"
    return f"{client.name} is {status.get('state')}" + (f" ({error})" if (error := status.get("last_error")) else "")


def _ring_peer(nodes: tuple[NodeConfig, ...], node: int) -> Peer:
    index = node % len(nodes)
    return Peer(node_name(index), nodes[index].addr, nodes[index].port_in)


def _nodes_on_host(network: NetworkConfig, node: NodeConfig) -> int:
    return sum(other.host == node.host for other in network.nodes)
