"""The server as HTTP clients meet it: routes, events, errors, keys, web pages, and clients that go away."""

import http.client
import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from mdi import __version__
from mdi.control.status import NodeState
from mdi.engine.sample import Sample
from mdi.serve import answering
from mdi.serve.schemas import Sampling
from mdi.serve.server import UserServer
from mdi.serve.service import Ask, Service
from support.scripts import wait_until

from .conftest import MAX_QUEUE, N_SLOTS, Engine

CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "Hi"}]}
COMPLETION = {"model": "tiny", "prompt": "Hi"}
RESPONSE = {"model": "tiny", "input": "Hi"}
JSON = {"Content-Type": "application/json"}
KEY = "a secret of mine".replace(" ", "-")

ServerOf = Callable[..., UserServer]


def connect(server: UserServer) -> http.client.HTTPConnection:
    return http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)


def call(server: UserServer, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, Any, Any]:
    """Status, headers, and the body as JSON."""
    connection = connect(server)
    data = body if body is None or isinstance(body, str | bytes) else json.dumps(body)
    sent = {name.replace("_", "-"): value for name, value in headers.items()}
    connection.request(method, path, data, (JSON if body is not None else {}) | sent)
    response = connection.getresponse()
    content = response.read()
    connection.close()
    return response.status, response.headers, json.loads(content) if content else None


def events(server: UserServer, path: str, body: dict[str, Any]) -> Iterator[Any]:
    """The data of each event of a stream, `None` for a comment; strings that are no JSON as they are."""
    connection = connect(server)
    connection.request("POST", path, json.dumps(body | {"stream": True}), JSON)
    response = connection.getresponse()
    assert response.headers["Content-Type"] == "text/event-stream"
    for block in response.read().decode().split("\n\n")[:-1]:
        data = [line.removeprefix("data: ") for line in block.split("\n") if line.startswith("data: ")]
        yield json.loads(data[0]) if data and data[0].startswith("{") else (data[0] if data else None)
    connection.close()


@pytest.fixture
def hello(engine: Engine, service: Service) -> None:
    """Each sample says `Hello`, in two steps."""

    def script(sample: Sample) -> None:
        engine.say(sample, *service.model.tokenizer.encode("Hel"))
        engine.end(sample, "stop", *service.model.tokenizer.encode("lo"))

    engine.script = script


def n_tokens_of_hello(service: Service) -> int:
    return sum(len(service.model.tokenizer.encode(text)) for text in ("Hel", "lo"))


def test_a_chat_in_one_piece(server_of: ServerOf, service: Service, hello: None) -> None:
    status, _, body = call(server_of(), "POST", "/v1/chat/completions", CHAT | {"n": 2})
    assert status == 200
    assert body["object"] == "chat.completion" and body["model"] == "tiny"
    assert [choice["message"]["content"] for choice in body["choices"]] == ["Hello", "Hello"]
    assert [choice["finish_reason"] for choice in body["choices"]] == ["stop", "stop"]
    assert body["usage"]["completion_tokens"] == 2 * n_tokens_of_hello(service)


def test_a_chat_as_events(server_of: ServerOf, hello: None) -> None:
    *chunks, done = events(server_of(), "/v1/chat/completions", CHAT | {"stream_options": {"include_usage": True}})
    assert done == "[DONE]"
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert "".join(c["delta"].get("content", "") for chunk in chunks for c in chunk["choices"]) == "Hello"
    assert chunks[-2]["choices"][0]["finish_reason"] == "stop"
    assert chunks[-1]["choices"] == [] and chunks[-1]["usage"]["total_tokens"] > 5
    assert len({chunk["id"] for chunk in chunks}) == 1


def test_completions_of_two_prompts(server_of: ServerOf, hello: None) -> None:
    server = server_of()
    _, _, body = call(server, "POST", "/v1/completions", COMPLETION | {"prompt": ["Hi", "Ho"]})
    assert [(choice["index"], choice["text"]) for choice in body["choices"]] == [(0, "Hello"), (1, "Hello")]
    *chunks, done = events(server, "/v1/completions", COMPLETION)
    assert done == "[DONE]"
    assert "".join(choice["text"] for chunk in chunks for choice in chunk["choices"]) == "Hello"


def test_a_response_in_one_piece_and_as_events(server_of: ServerOf, service: Service, hello: None) -> None:
    server = server_of()
    _, _, body = call(server, "POST", "/v1/responses", RESPONSE)
    assert body["status"] == "completed" and body["output"][0]["content"][0]["text"] == "Hello"
    received = list(events(server, "/v1/responses", RESPONSE))
    assert [event["sequence_number"] for event in received] == list(range(len(received)))
    assert [event["type"] for event in received][:2] == ["response.created", "response.in_progress"]
    assert "".join(event["delta"] for event in received if event["type"].endswith(".delta")) == "Hello"
    assert received[-1]["type"] == "response.completed"
    assert received[-1]["response"]["usage"]["output_tokens"] == n_tokens_of_hello(service)


def test_the_model_is_told(server_of: ServerOf) -> None:
    server = server_of()
    _, _, body = call(server, "GET", "/v1/models")
    assert [model["id"] for model in body["data"]] == ["tiny"]
    assert call(server, "GET", "/v1/models/tiny")[2]["id"] == "tiny"
    assert call(server, "GET", "/v1/models/org/tiny")[2]["id"] == "tiny"
    assert call(server, "GET", "/v1/models/other")[0] == 404


def test_health_is_that_of_the_ring(server_of: ServerOf, engine: Engine) -> None:
    server = server_of()
    assert call(server, "GET", "/health")[::2] == (200, {"status": "ready", "seconds": 2.0, "missing": []})
    engine.state, engine.missing = NodeState.RECOVERING, ("secondary 1",)
    recovering = {"status": "recovering", "seconds": 2.0, "missing": ["secondary 1"]}
    assert call(server, "GET", "/health")[::2] == (503, recovering)
    assert call(server, "GET", "/live")[::2] == (200, {"status": "live"})


def test_a_server_that_drains_is_not_healthy(server_of: ServerOf, service: Service) -> None:
    service.drain()
    status, _, body = call(server_of(), "GET", "/health")
    assert (status, body["status"]) == (503, "draining")


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("GET", "/nothing", None, 404),
        ("GET", "/v1/chat/completions", None, 405),
        ("POST", "/v1/models", {}, 405),
        ("GET", "/_service/model", None, 404),
        ("POST", "/v1/chat/completions", "no json", 400),
        ("POST", "/v1/chat/completions", "[" * 100_000, 400),
        ("POST", "/v1/chat/completions", CHAT | {"model": "other"}, 404),
        ("POST", "/v1/chat/completions", CHAT | {"functions": []}, 400),
        ("POST", "/v1/completions", COMPLETION | {"prompt": "word " * 300}, 400),
    ],
)
def test_errors_have_the_shape_of_the_api(method: str, path: str, body: Any, status: int, server_of: ServerOf) -> None:
    found, _, error = call(server_of(), method, path, body)
    assert found == status
    assert set(error["error"]) == {"message", "type", "param", "code"}
    assert error["error"]["message"]


@pytest.mark.parametrize(("path", "status"), [("/live", 200), ("/nothing", 404), ("/ring?x=1", 404)])
def test_all_answers_name_the_program(path: str, status: int, server_of: ServerOf) -> None:
    found, headers, _ = call(server_of(), "GET", path)
    assert (found, headers.get_all("Server")) == (status, [f"mdi-llm/{__version__}"])


def test_a_body_that_is_too_large_is_refused_before_it_comes(server_of: ServerOf) -> None:
    connection = connect(server_of())
    connection.putrequest("POST", "/v1/completions")
    for name, value in (JSON | {"Content-Length": str(17 << 20)}).items():
        connection.putheader(name, value)
    connection.endheaders()
    response = connection.getresponse()
    assert response.status == 413
    assert "are allowed" in json.loads(response.read())["error"]["message"]
    connection.close()


def test_a_full_queue_says_when_to_come_again(server_of: ServerOf, service: Service) -> None:
    service.drain()
    status, headers, _ = call(server_of(), "POST", "/v1/chat/completions", CHAT)
    assert status == 503
    assert int(headers["Retry-After"]) >= 1


def test_what_is_refused_is_not_encoded_first(
    server_of: ServerOf, service: Service, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that has too much to do must not work for those whom it sends away."""

    def encode(text: str) -> list[int]:
        raise AssertionError("encoded")

    for _ in range(N_SLOTS + MAX_QUEUE):
        service.begin(Ask([[5]], Sampling()))
    monkeypatch.setattr(service.model.tokenizer, "encode", encode)
    server = server_of()
    for path, body in (("chat/completions", CHAT), ("completions", COMPLETION), ("responses", RESPONSE)):
        status, headers, _ = call(server, "POST", f"/v1/{path}", body)
        assert (status, int(headers["Retry-After"]) >= 1) == (429, True)


def test_counters_are_told_to_whoever_has_the_key(server_of: ServerOf, hello: None) -> None:
    server = server_of(KEY)
    assert call(server, "GET", "/metrics")[0] == 401
    connection = connect(server)
    call(server, "POST", "/v1/chat/completions", CHAT | {"n": 0}, Authorization=f"Bearer {KEY}")
    connection.request("GET", "/metrics", headers={"Authorization": f"Bearer {KEY}"})
    text = connection.getresponse().read().decode()
    connection.close()
    assert 'mdi_refused_requests_total{status="400"} 1.0' in text


@pytest.mark.parametrize("authorization", ["", "Bearer", "Bearer wrong-key-of-mine", KEY, f"Basic {KEY}"])
def test_without_the_key_nothing_is_generated(authorization: str, server_of: ServerOf, hello: None) -> None:
    server = server_of(KEY)
    for method, path, body in (("POST", "/v1/chat/completions", CHAT), ("GET", "/v1/models", None)):
        status, headers, error = call(server, method, path, body, Authorization=authorization)
        assert (status, error["error"]["code"]) == (401, "invalid_api_key")
        assert headers["WWW-Authenticate"] == "Bearer"
    assert call(server, "GET", "/health")[0] == call(server, "GET", "/live")[0] == 200


@pytest.mark.parametrize("path", ["////v1/models", "/v1//models", "////ring", "/%761/models", "/nothing", "/health/"])
def test_no_spelling_of_a_path_goes_without_the_key(path: str, server_of: ServerOf) -> None:
    """To cheroot the first two slashes of four begin the name of a host; cherrypy leaves out empty parts of a path."""
    assert call(server_of(KEY), "GET", path)[0] == 401


def test_with_one_of_the_keys_all_works(server_of: ServerOf, hello: None) -> None:
    server = server_of("another-key", KEY)
    status, _, _ = call(server, "POST", "/v1/chat/completions", CHAT, Authorization=f"Bearer {KEY}")
    assert status == 200


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Origin": "https://elsewhere.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Host": "rebound.example:8000"}, 421),
        ({"Content_Type": "text/plain"}, 415),
        ({"Content_Type": "application/x-www-form-urlencoded"}, 415),
    ],
)
def test_a_web_page_cannot_use_the_server(headers: dict[str, str], status: int, server_of: ServerOf) -> None:
    assert call(server_of(), "POST", "/v1/chat/completions", CHAT, **headers)[0] == status


@pytest.mark.parametrize("origin", ["http://ring.example:8000", "https://ring.example:8000"])
def test_the_own_page_can_under_any_name_where_a_key_is_needed(origin: str, server_of: ServerOf, hello: None) -> None:
    """Behind a proxy, or by a name that the server does not know of. Another page has no key in its storage."""
    headers = {"Origin": origin, "Host": "ring.example:8000", "Authorization": f"Bearer {KEY}"}
    assert call(server_of(KEY), "POST", "/v1/chat/completions", CHAT, **headers)[0] == 200
    elsewhere = headers | {"Origin": "https://elsewhere.example"}
    assert call(server_of(KEY), "POST", "/v1/chat/completions", CHAT, **elsewhere)[0] == 403


def test_a_web_page_that_was_named_can(server_of: ServerOf, hello: None) -> None:
    server = server_of(origins=("https://here.example",))
    origin = {"Origin": "https://here.example"}
    connection = connect(server)
    connection.request("OPTIONS", "/v1/chat/completions", headers=origin)
    answer = connection.getresponse()
    assert (answer.status, answer.headers["Access-Control-Allow-Origin"]) == (204, "https://here.example")
    connection.close()
    status, headers, _ = call(server, "POST", "/v1/chat/completions", CHAT, **origin)
    assert (status, headers["Access-Control-Allow-Origin"]) == (200, "https://here.example")


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_goes_away_has_its_answer_cancelled(
    stream: bool, server_of: ServerOf, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answering, "SIGN_OF_LIFE_S", 0.05)
    connection = connect(server_of())
    connection.request("POST", "/v1/chat/completions", json.dumps(CHAT | {"stream": stream}), JSON)
    wait_until(lambda: bool(engine.samples), 60, "the request has come")
    connection.close()
    wait_until(lambda: bool(engine.cancelled), 60, "the answer is cancelled")


def test_a_silent_stream_shows_signs_of_life(
    server_of: ServerOf, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answering, "SIGN_OF_LIFE_S", 0.01)
    connection = connect(server_of())
    connection.request("POST", "/v1/chat/completions", json.dumps(CHAT | {"stream": True}), JSON)
    response = connection.getresponse()
    while response.readline() != b":\n":
        pass
    engine.end(engine.samples[0], "stop")
    assert response.read().endswith(b"data: [DONE]\n\n")
    connection.close()


def test_a_stream_that_cannot_go_on_says_so(server_of: ServerOf, engine: Engine, service: Service) -> None:
    engine.script = lambda sample: service.fail("the ring is gone")
    *_, error, done = events(server_of(), "/v1/chat/completions", CHAT)
    assert "the ring is gone" in error["error"]["message"]
    assert done == "[DONE]"


def test_health_is_told_while_all_streams_are_busy(server_of: ServerOf, engine: Engine) -> None:
    server = server_of()
    connections = [connect(server) for _ in range(4)]
    for connection in connections:
        connection.request("POST", "/v1/chat/completions", json.dumps(CHAT), JSON)
    wait_until(lambda: len(engine.samples) == len(connections), 60, "all requests have come")
    assert call(server, "GET", "/health")[0] == 200
    for sample in list(engine.samples):
        engine.end(sample, "stop")
    for connection in connections:
        assert connection.getresponse().status == 200
        connection.close()
