"""The line of each request in the log, for people and for programs."""

import http.client
import json
from collections.abc import Callable
from typing import Any

import pytest

from mdi.engine.sample import Sample
from mdi.serve import answering
from mdi.serve.server import UserServer
from mdi.serve.service import Service
from support.scripts import wait_until

from .conftest import Engine

SECRET = "a-text-that-nobody-may-log"
COMPLETION = {"model": "tiny", "prompt": SECRET}
JSON = {"Content-Type": "application/json"}
KEY = "a-key-of-the-tests"

ServerOf = Callable[..., UserServer]


@pytest.fixture(autouse=True)
def logging_is_on(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "mdi.serve.access_log")


@pytest.fixture
def hello(engine: Engine, service: Service) -> None:
    """Each sample found a token of its prompt, and says `Hello` in two steps."""

    def script(sample: Sample) -> None:
        sample.n_cached = 1
        engine.say(sample, *service.model.tokenizer.encode("Hel"))
        engine.end(sample, "stop", *service.model.tokenizer.encode("lo"))

    engine.script = script


def ask(server: UserServer, path: str, body: Any = None, **headers: str) -> tuple[http.client.HTTPResponse, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    connection.request("GET" if body is None else "POST", path, body and json.dumps(body), JSON | headers)
    with connection.getresponse() as response:
        body = response.read()
    connection.close()
    return response, body


def only(caplog: pytest.LogCaptureFixture) -> tuple[str, dict[str, Any]]:
    """The one line that a request is logged with: as text, and as what programs read."""
    wait_until(lambda: caplog.records, 60, "the request is logged")
    (record,) = caplog.records
    return record.getMessage(), getattr(record, "fields", {})


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_is_logged_with_what_it_took(
    stream: bool, server_of: ServerOf, service: Service, hello: None, caplog: pytest.LogCaptureFixture
) -> None:
    response, body = ask(server_of(), "/v1/completions", COMPLETION | {"stream": stream})
    text, fields = only(caplog)
    n_prompt = len(service.model.tokenizer.encode(SECRET))
    n_generated = sum(len(service.model.tokenizer.encode(part)) for part in ("Hel", "lo"))
    line = f"POST /v1/completions from 127.0.0.1: 200 OK, finished, {n_prompt} + {n_generated} tokens in "
    assert text.startswith(line)
    assert 0 <= fields.pop("first_token_s") <= fields.pop("seconds")
    assert fields.pop("answer_id").encode() in body
    assert fields == {
        "request_id": response.headers["X-Request-Id"], "remote": "127.0.0.1", "method": "POST",
        "route": "/v1/completions", "model": "tiny", "status": 200, "outcome": "finished",
        "prompt_tokens": n_prompt, "cached_tokens": 1, "generated_tokens": n_generated,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("path", "body", "status", "outcome", "model"),
    [
        ("/v1/models", None, 200, "finished", None),
        ("/nothing%0aat%0aall", None, 404, "refused", None),
        ("/v1/completions", COMPLETION | {"model": "x" * 300}, 404, "refused", "x" * 100),
        ("/v1/completions", COMPLETION | {"functions": []}, 400, "refused", None),
    ],
)
def test_what_generates_nothing_is_logged_too(
    path: str,
    body: Any,
    status: int,
    outcome: str,
    model: str | None,
    server_of: ServerOf,
    caplog: pytest.LogCaptureFixture,
) -> None:
    ask(server_of(), path, body)
    text, fields = only(caplog)
    assert (fields["status"], fields["outcome"], fields["model"]) == (status, outcome, model)
    assert fields["route"] == path.replace("%0a", " ")
    assert fields["answer_id"] is fields["prompt_tokens"] is fields["first_token_s"] is None
    assert SECRET not in f"{text} {fields}" and "\n" not in text


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_went_away_is_told_from_an_answer_that_failed(
    stream: bool,
    server_of: ServerOf,
    engine: Engine,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(answering, "SIGN_OF_LIFE_S", 0.05)
    connection = http.client.HTTPConnection("127.0.0.1", server_of().port, timeout=60)
    connection.request("POST", "/v1/completions", json.dumps(COMPLETION | {"stream": stream}), JSON)
    wait_until(lambda: bool(engine.samples), 60, "the request has come")
    engine.say(engine.samples[0], 5)
    connection.close()
    _, fields = only(caplog)
    assert (fields["outcome"], fields["generated_tokens"]) == ("cancelled", 1)


@pytest.mark.parametrize(("stream", "status"), [(False, 503), (True, 200)])
def test_an_answer_that_cannot_go_on_has_failed(
    stream: bool,
    status: int,
    server_of: ServerOf,
    engine: Engine,
    service: Service,
    caplog: pytest.LogCaptureFixture,
) -> None:
    engine.script = lambda sample: service.fail("the ring is gone")
    ask(server_of(), "/v1/completions", COMPLETION | {"stream": stream})
    _, fields = only(caplog)
    assert (fields["status"], fields["outcome"]) == (status, "failed")


def test_what_other_programs_ask_all_the_time_is_not_logged(
    server_of: ServerOf, caplog: pytest.LogCaptureFixture
) -> None:
    server = server_of()
    for path in ("/health", "/metrics", "/ring", "/v1/models"):
        ask(server, path)
    assert only(caplog)[1]["route"] == "/v1/models"


def test_a_flood_without_the_key_is_a_few_lines(server_of: ServerOf, caplog: pytest.LogCaptureFixture) -> None:
    server = server_of(KEY)
    for _ in range(20):
        assert ask(server, "/v1/models")[0].headers["X-Request-Id"]
    fields = [vars(record)["fields"] for record in caplog.records]
    assert 1 <= len(fields) < 10
    assert {(each["status"], each["outcome"]) for each in fields} == {(401, "refused")}
