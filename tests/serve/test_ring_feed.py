"""The ring for those who watch it: as JSON, as events, for many at once, and to the end of the server."""

import contextlib
import http.client
import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from mdi.control.status import NodeState
from mdi.engine.trips import Travelling
from mdi.serve import ring_feed
from mdi.serve.ring_feed import RingFeed
from mdi.serve.schemas import Sampling
from mdi.serve.server import UserServer
from mdi.serve.service import Ask, Service
from support.clocks import ManualClock
from support.scripts import wait_until

from .browser.ring_snapshots import snapshot
from .conftest import MAX_QUEUE, N_SLOTS, Engine

ServerOf = Callable[..., UserServer]


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ring_feed, "EVERY_S", 0.001)
    monkeypatch.setattr(ring_feed, "AT_LEAST_EVERY_S", 60.0)


@contextlib.contextmanager
def get(server: UserServer, path: str, method: str = "GET") -> Iterator[http.client.HTTPResponse]:
    """The answer; its connection is closed behind the block."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    connection.request(method, path)
    with contextlib.closing(connection), connection.getresponse() as response:
        yield response


def states(response: http.client.HTTPResponse) -> Iterator[dict[str, Any]]:
    """What the events of a stream say."""
    while line := response.readline():
        assert line == b"event: ring\n"
        yield json.loads(response.readline().removeprefix(b"data: "))
        assert response.readline() == b"\n"


def test_the_ring_its_nodes_and_its_messages(server_of: ServerOf, engine: Engine) -> None:
    engine.messages = [Travelling(3, 2, 0.01234567, None)]
    with get(server_of(), "/ring") as response:
        state = json.load(response)
    assert (state["model"], state["state"], state["state_s"], state["recoveries"]) == ("tiny", "ready", 2.0, 0)
    assert (state["epoch"], state["n_layers"], state["tokens_per_s"]) == (1, 4, 12.5)
    assert (state["predicted_tokens_per_s"], state["reached_tokens_per_s"]) == (48.0, 40.0)
    assert state["messages"] == [{"rows": 3, "prompt_rows": 2, "age_s": 0.0123, "expected_s": None}]
    starter, lost = state["nodes"]
    assert starter == {
        "name": "starter", "rank": 0, "role": "starter", "address": "127.0.0.1:8088", "state": "running",
        "missing_s": None, "layers": [0, 2], "device": "cpu", "dtype": "float32", "weights": "none",
        "weights_bytes": 1 << 20, "memory_bytes": 1 << 29, "peak_memory_bytes": 1 << 30, "free_memory_bytes": 1 << 33,
        "queue": 2, "rows_per_s": 120.0, "compute": 0.5, "transfer": 0.125, "idle": 0.375, "slowness": 1.3,
    }  # fmt: skip
    assert starter.keys() == lost.keys()
    assert (lost["role"], lost["state"], lost["missing_s"], lost["layers"]) == ("secondary", "missing", 3.2, [2, 4])
    assert (lost["device"], lost["dtype"]) == ("cpu", "float32"), "what does not change is kept"
    gone = ("memory_bytes", "peak_memory_bytes", "queue", "rows_per_s", "compute", "transfer", "idle", "slowness")
    assert [lost[name] for name in gone] == [None] * len(gone)


def test_samples_and_how_far_they_are(service: Service, engine: Engine) -> None:
    service.begin(Ask([[5, 6, 7]], Sampling(), max_tokens=9, n=2, answer_id="cmpl-1"))
    service.begin(Ask([[5]], Sampling(), answer_id="cmpl-2"))
    for slot, sample in enumerate(engine.samples[:2]):
        sample.slot, sample.n_cached = slot, 2
    engine.samples[0].tokens = [8, 9]
    state = service.ring_state()
    assert state["slots"] == {"total": N_SLOTS, "used": 2}
    assert state["queue"] == {"waiting": 1, "limit": MAX_QUEUE}
    first, second, third = state["samples"]
    assert first.pop("seconds") >= 0
    assert first == {
        "id": "cmpl-1", "index": 0, "slot": 0, "phase": "generating",
        "n_prompt": 3, "n_cached": 2, "n_generated": 2, "max_tokens": 9,
    }  # fmt: skip
    assert (second["id"], second["index"], second["phase"]) == ("cmpl-1", 1, "prompt")
    assert (third["id"], third["slot"], third["phase"]) == ("cmpl-2", None, "waiting")


def test_the_page_is_tested_with_what_a_server_tells(service: Service, engine: Engine) -> None:
    service.begin(Ask([[5]], Sampling(), answer_id="cmpl-1"))
    engine.messages = [Travelling(3, 2, 0.01, 0.04)]
    told, tested = service.ring_state(), snapshot()
    assert told.keys() == tested.keys()
    for part in ("nodes", "messages", "samples"):
        assert told[part][0].keys() == tested[part][0].keys()


def test_events_come_at_once_and_when_something_changes(
    server_of: ServerOf, engine: Engine, service: Service, soon: None
) -> None:
    with get(server_of(), "/ring/events") as response:
        assert response.headers["Content-Type"] == "text/event-stream"
        events = states(response)
        assert next(events)["state"] == "ready"
        engine.state = NodeState.RECOVERING
        assert next(events)["state"] == "recovering"
        engine.messages = [Travelling(1, 0, 0.5, 0.7)]
        assert next(events)["messages"]
        service.feed.close()
        assert list(events) == [], "nothing else has changed; the end of the server is the end of the stream"


def test_where_nothing_changes_an_event_is_a_sign_of_life(engine: Engine, service: Service, soon: None) -> None:
    clock = ManualClock()

    def passing_s() -> float:
        clock.now_s += 5.0
        return clock.now_s

    events = RingFeed(service.ring_state, passing_s).stream(lambda: False)
    next(events)
    shown_s = clock.now_s
    engine.state_s = 9.0
    assert b'"state_s": 9.0' in next(events)
    assert clock.now_s >= shown_s + ring_feed.AT_LEAST_EVERY_S


def test_many_watch_one_picture(engine: Engine, service: Service) -> None:
    clock = ManualClock()
    feed = RingFeed(service.ring_state, clock)
    pictures = [feed.latest() for _ in range(10)]
    assert engine.n_views == 1
    clock.now_s += ring_feed.EVERY_S
    assert feed.latest() is not pictures[0]
    assert engine.n_views == 2


def test_streams_are_bounded_and_those_that_are_closed_make_room(
    server_of: ServerOf, service: Service, monkeypatch: pytest.MonkeyPatch, soon: None
) -> None:
    monkeypatch.setattr(ring_feed, "MAX_STREAMS", 1)
    server = server_of()
    with get(server, "/ring/events", method="HEAD") as head:
        assert head.status == 200
    with get(server, "/ring/events") as response:
        next(states(response))
        with get(server, "/ring/events") as refused:
            assert (refused.status, refused.headers["Retry-After"]) == (503, "5")
            assert json.load(refused)["error"]["code"] == "unavailable"
    wait_until(lambda: not service.feed._n_streams, 60, "the server has noticed that the client is gone")
    with get(server, "/ring/events") as response:
        next(states(response))


def test_a_server_that_ends_does_not_wait_for_those_who_watch(server_of: ServerOf, service: Service) -> None:
    server = server_of()
    with get(server, "/ring/events") as response:
        events = states(response)
        next(events)
        server.close()
        assert list(events) == []
    assert service.feed._n_streams == 0


def test_a_stream_that_was_never_read_leaves_once(service: Service) -> None:
    stream = service.feed.stream(lambda: True)
    assert service.feed._n_streams == 1
    assert list(stream) == [], "nobody is there"
    stream.close()
    stream.close()
    assert service.feed._n_streams == 0
