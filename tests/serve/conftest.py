"""A service whose engine is the test's own hands."""

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mdi.cluster.condition import RingCondition
from mdi.cluster.ring_view import NodeView, Rates, RingView
from mdi.control.status import NodeState
from mdi.engine.sample import Outcome, Sample
from mdi.engine.speed import Comparison
from mdi.engine.trips import Travelling
from mdi.ids import Rank
from mdi.model.span import Span
from mdi.serve.api_keys import ApiKeys
from mdi.serve.server import UserServer
from mdi.serve.service import ServedModel, Service
from mdi.text.matchers import Matchers
from mdi.text.tokenizer import load_tokenizer
from mdi.text.worker_client import find_template
from mdi.text.worker_process import TextWorker
from support.statuses import IDLE, RUNNING_STARTER
from support.vocabularies import model_folder

TEMPLATE = (
    "{% for t in tools or [] %}<tool_call>{{ t.function.name }}{% endfor %}"
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}"
    "{% for c in m.tool_calls or [] %}{{ c.function | tojson }}{% endfor %}{% endfor %}<assistant>"
)
STOP = "<|im_end|>"
N_SLOTS, MAX_QUEUE, CONTEXT = 2, 3, 200
STARTER = NodeView(
    "starter", Rank(0), Span(0, 2), "127.0.0.1:8088", RUNNING_STARTER, None, Rates(0.5, 0.125, 0.375, 120.0), 1.304
)
LOST = NodeView("secondary 0", Rank(1), Span(2, 4), "127.0.0.1:8089", IDLE, 3.25, None)


class Engine:
    """Takes samples, and generates what the test says."""

    n_slots = N_SLOTS

    def __init__(self) -> None:
        self.samples: list[Sample] = []
        self.cancelled: list[Sample] = []
        self.state, self.missing = NodeState.RUNNING, tuple[str, ...]()
        self.script: Callable[[Sample], None] = lambda sample: None
        self.n_views, self.state_s = 0, 2.04
        self.messages: list[Travelling] = []
        self._lock = threading.Lock()

    def submit(self, sample: Sample) -> None:
        with self._lock:
            self.samples.append(sample)
        self.script(sample)

    def cancel(self, sample: Sample) -> None:
        with self._lock:
            if sample in self.cancelled or sample.finish_reason is not None:
                return
            self.cancelled.append(sample)
        self.end(sample, "abort")

    @property
    def condition(self) -> RingCondition:
        return RingCondition(self.state, self.state_s, self.missing)

    def view(self) -> RingView:
        self.n_views += 1
        return RingView(1, 4, 12.5, self.messages, [STARTER, LOST], Comparison(120, 3.0, 2.5))

    @staticmethod
    def say(sample: Sample, *tokens: int) -> None:
        sample.sink(sample, Outcome(tokens, len(tokens)))

    @staticmethod
    def end(sample: Sample, reason: str, *tokens: int) -> None:
        sample.finish_reason = reason  # type: ignore[assignment]
        sample.sink(sample, Outcome(tokens, len(tokens), sample.finish_reason))


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServedModel]:
    """A model with a vocabulary of bytes."""
    folder: Path = model_folder(tmp_path_factory.mktemp("served"), "byte-level", chat_template=TEMPLATE)
    with TextWorker() as worker:
        tokenizer, template = load_tokenizer(folder, worker), find_template(folder, worker)
        matchers = Matchers(folder, tokenizer, [tokenizer.token_id(STOP) or 0], worker)
        yield ServedModel("org/tiny", tokenizer, template, (), CONTEXT, n_ids=400, matchers=matchers)


@pytest.fixture
def engine() -> Engine:
    return Engine()


@pytest.fixture
def service(served: ServedModel, engine: Engine) -> Service:
    return Service(served, engine, MAX_QUEUE)


@pytest.fixture
def server_of(service: Service) -> Iterator[Callable[..., UserServer]]:
    servers: list[UserServer] = []

    def make(*keys: str, origins: tuple[str, ...] = ()) -> UserServer:
        servers.append(UserServer("127.0.0.1", 0, service, keys=ApiKeys(keys), n_streams=4, origins=origins))
        servers[-1].start()
        return servers[-1]

    yield make
    for server in servers:
        server.close()
