"""A ring that stays up, and the server that takes requests for it: composed, run, ended."""

import contextlib
import gc
import logging
import signal
import time

from mdi.checkpoint.folder import ModelFolder, find_folder, open_folder
from mdi.checkpoint.packed_cache import packed_files
from mdi.cli.networks import save_nodes
from mdi.cli.requests import context_of
from mdi.cli.serve_options import SERVING, site_url
from mdi.cli.signals import GRACE_S, Signals
from mdi.cli.speed_report import tell_speed
from mdi.config.network import NetworkConfig
from mdi.config.options import StarterOptions
from mdi.errors import MdiError
from mdi.inbox import Stopped
from mdi.nodes.starter import Starter
from mdi.serve.api_keys import ApiKeys
from mdi.serve.server import UserServer
from mdi.serve.service import ServedModel, Service
from mdi.strings import count
from mdi.text.matchers import Matchers
from mdi.text.styles import load_style, stop_sequences
from mdi.text.tokenizer import Tokenizer, load_tokenizer
from mdi.text.tool_calls import CLOSING, OPENING
from mdi.text.worker_client import find_template
from mdi.text.worker_process import TextWorker

log = logging.getLogger(__name__)

DEFAULT_SLOTS = 16
DEFAULT_CONTEXT = 4096
READ_TIMEOUT_S = 5.0  # for clients to read the last of their answers


def run_server(
    options: StarterOptions,
    network: NetworkConfig,
    signals: Signals,
    worker: TextWorker,
    address: tuple[str, int],
    keys: ApiKeys,
) -> None:
    """Serve users until a signal asks to end: then what was begun is finished, for `--drain-timeout` at most."""
    gc.freeze()
    folder = find_folder(options.ckpt, options.chunk)
    model = open_folder(folder, len(network.nodes), options.quantize, options.dtype)
    context = context_of(options, model.config.block_size, DEFAULT_CONTEXT)
    served = _served_model(model, worker, context)
    n_slots, files = options.max_slots or DEFAULT_SLOTS, packed_files(options.cache_dir)
    starter = Starter(network, model, options, context=context, n_slots=n_slots, packed_files=files)
    service = Service(served, starter, options.max_queue)
    drain = Drain(service, starter, signals, options.drain_timeout_s, options.drain_delay_s)
    signals.grace_s = options.drain_timeout_s + GRACE_S
    with contextlib.ExitStack() as stack:
        stack.enter_context(signals.passed_to(drain.ask))
        stack.enter_context(starter)
        host, port = address
        server = UserServer(
            host,
            port,
            service,
            keys=keys,
            n_streams=n_slots + options.max_queue,
            origins=options.cors,
        )
        stack.callback(server.close)
        server.start()  # /health tells that the ring is starting
        try:
            starter.prepare()
            save_nodes(options, network)
            site = site_url(host, server.port)
            log.warning(SERVING, served.name, f"{site}/v1", site)
            starter.serve(drain.is_over)
            tell_speed(starter.speed)
            service.wait_until_read(READ_TIMEOUT_S)
        except (MdiError, Stopped) as exc:
            service.fail(str(exc) if isinstance(exc, MdiError) else "this server ends")
            raise


class Drain:
    """The end in order: no new requests, and time for those that were begun."""

    def __init__(
        self, service: Service, starter: Starter, signals: Signals, timeout_s: float, delay_s: float = 0.0
    ) -> None:
        """
        Args:
            timeout_s: for the answers that were begun.
            delay_s: for a load balancer to see in `/health` that it must send no more. Until then what it sends is
                refused; afterwards nobody would be there, and what is on its way would be lost without an answer.
        """
        self._service, self._starter, self._signals = service, starter, signals
        self._timeout_s, self._delay_s = timeout_s, delay_s
        self._began_s: float | None = None
        self._n_signals = 0  # that asked for it

    def ask(self, number: signal.Signals) -> None:
        """Called by the thread of the signals, again and again."""
        if self._began_s is None:
            self._n_signals = self._signals.n_came
            self._service.drain()
            self._began_s = time.monotonic()  # from now on `is_over` may say so: nobody comes any more
            if n_open := self._service.n_open:
                within = f"within {self._timeout_s:g} s (--drain-timeout)"
                log.warning(
                    "ending: %s to be finished %s; a second signal ends at once", count(n_open, "answer"), within
                )
            self._starter.wake()
        elif self._signals.n_came > self._n_signals or time.monotonic() - self._began_s > self._timeout_s:
            self._starter.interrupt(number)
        else:
            self._starter.wake()  # the delay may be over

    def is_over(self) -> bool:
        """Asked by the compute thread."""
        if self._began_s is None or time.monotonic() - self._began_s < self._delay_s:
            return False
        return self._service.n_open == 0


def _served_model(model: ModelFolder, worker: TextWorker, context: int) -> ServedModel:
    tokenizer = load_tokenizer(model.path, worker)
    style = load_style(model.path, model.config.name, tokenizer, worker)
    template = find_template(model.path, worker)
    stops, n_ids = stop_sequences(model.path, tokenizer, style), model.config.padded_vocab_size
    stop_ids = [stop[0] for stop in stops if len(stop) == 1]
    return ServedModel(
        model.name,
        tokenizer,
        template,
        stops,
        context,
        n_ids,
        Matchers(model.path, tokenizer, stop_ids, worker),
        _special_tags(tokenizer) if template is not None and template.tool_format == "tagged" else {},
    )


def _special_tags(tokenizer: Tokenizer) -> dict[int, bytes]:
    """The names of the tags of calls that are special tokens of this vocabulary, and so have no text."""
    ids = {tag: tokenizer.token_id(tag) for tag in (OPENING, CLOSING)}
    return {i: tag.encode() for tag, i in ids.items() if i is not None and not tokenizer.token_bytes(i)}
