"""What a server counts, in the text format of Prometheus: https://prometheus.io/docs/instrumenting/exposition_formats/"""

import time
from collections.abc import Callable, Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from mdi.engine.sample import Outcome, Sample
from mdi.serve.node_metrics import NodeMetrics
from mdi.serve.served_ring import ServedRing

CONTENT_TYPE = CONTENT_TYPE_LATEST
_FIRST_S = (0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60, 120)
_BETWEEN_S = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 30)
_OUTCOMES = {"stop": "finished", "length": "finished", "abort": "cancelled"}


class Metrics:
    """Counters of one server. Any thread may call it."""

    def __init__(self, ring: ServedRing, n_open: Callable[[], int]) -> None:
        """`n_open` tells how many samples wait or are generated."""
        self.registry = registry = CollectorRegistry()
        self._samples = Counter("mdi_samples", "Answers by what became of them", ["outcome"], registry=registry)
        self._refused = Counter("mdi_refused_requests", "Requests that were refused", ["status"], registry=registry)
        self._prompt = Counter("mdi_prompt_tokens", "Tokens of prompts", registry=registry)
        self._cached = Counter("mdi_cached_tokens", "Of those, what a slot held already", registry=registry)
        self._generated = Counter("mdi_generated_tokens", "Tokens of answers", registry=registry)
        self._first = Histogram(
            "mdi_time_to_first_token_seconds",
            "From the request to its first token",
            buckets=_FIRST_S,
            registry=registry,
        )
        self._between = Histogram(
            "mdi_time_between_tokens_seconds", "Between two tokens of an answer", buckets=_BETWEEN_S, registry=registry
        )
        self._add_gauges(ring, n_open)
        registry.register(NodeMetrics(ring))

    def _add_gauges(self, ring: ServedRing, n_open: Callable[[], int]) -> None:
        for name, what, value in (
            ("mdi_slots", "Samples that the ring holds at once", lambda: ring.n_slots),
            ("mdi_running_samples", "Samples that are generated", lambda: min(n_open(), ring.n_slots)),
            ("mdi_waiting_samples", "Samples that wait for a slot", lambda: max(0, n_open() - ring.n_slots)),
            ("mdi_ring_ready", "Whether the ring runs", lambda: ring.condition.is_running),
            ("mdi_missing_nodes", "Nodes that it is waited for", lambda: len(ring.condition.missing)),
            ("mdi_recoveries", "How often the ring was formed anew", lambda: ring.condition.n_recoveries),
        ):
            Gauge(name, what, registry=self.registry).set_function(value)

    def begun(self, samples: Sequence[Sample]) -> None:
        """Samples were taken."""
        self._prompt.inc(sum(len(sample.prompt) for sample in samples))

    def refused(self, status: int) -> None:
        """A request was refused."""
        self._refused.labels(str(status)).inc()

    def render(self) -> bytes:
        """All of it."""
        return generate_latest(self.registry)

    def watching(self, sink: Callable[[Sample, Outcome], None]) -> Callable[[Sample, Outcome], None]:
        """The sink of a sample that begins now, with its tokens counted on their way."""
        last_s, is_first = time.monotonic(), True

        def watched(sample: Sample, outcome: Outcome) -> None:
            nonlocal last_s, is_first
            if outcome.n_accepted:
                now_s = time.monotonic()
                (self._first if is_first else self._between).observe(now_s - last_s)
                self._generated.inc(outcome.n_accepted)
                last_s, is_first = now_s, False
            if outcome.finish_reason is not None:
                self._cached.inc(sample.n_cached)
                self._samples.labels(_OUTCOMES[outcome.finish_reason]).inc()
            sink(sample, outcome)

        return watched
