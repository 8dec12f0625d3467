"""The benchmark's users against a real server, and what is made of what they see."""

import asyncio
import random
from collections.abc import Callable
from typing import Any

import pytest

from benchmarks.load_driver import Call, Server, arrivals, message_of, turns, users
from benchmarks.report import Series, markdown
from benchmarks.servers import LlamaServer, Served
from benchmarks.serving import Played, cells, percentile, ratios, seeded
from benchmarks.workers import BenchError
from mdi.engine.sample import Sample
from mdi.serve.server import UserServer
from mdi.serve.service import Service

from .conftest import Engine

ServerOf = Callable[..., UserServer]


@pytest.fixture
def server(server_of: ServerOf, service: Service, engine: Engine) -> Server:
    """Each answer is `Hello`, in two pieces."""

    def script(sample: Sample) -> None:
        engine.say(sample, *service.model.tokenizer.encode("Hel"))
        engine.end(sample, "stop", *service.model.tokenizer.encode("lo"))

    engine.script = script
    return Server(server_of().port, "tiny", 16, {"logit_bias": {"3": -100}})


def test_a_chat_is_timed_piece_by_piece_and_its_tokens_counted(
    server: Server, service: Service, engine: Engine
) -> None:
    call = asyncio.run(server.chat([message_of(random.Random(1), 3)]))
    assert (call.error, call.text, len(call.times_s)) == ("", "Hello", 2)
    assert call.sent_s <= call.times_s[0] <= call.times_s[1]
    n_tokens = sum(len(service.model.tokenizer.encode(text)) for text in ("Hel", "lo"))
    assert (call.n_prompt, call.n_tokens) == (len(engine.samples[0].prompt), n_tokens)


def test_a_refused_chat_has_the_servers_words(server: Server) -> None:
    call = asyncio.run(Server(server.port, "other", 16, {}).chat([message_of(random.Random(1), 3)]))
    assert call.error.startswith("ValueError: status 404") and "other" in call.error


def test_nobody_there() -> None:
    assert asyncio.run(Server(1, "tiny", 16, {}).chat([])).error


def test_users_ask_again_until_the_time_is_over(server: Server) -> None:
    calls = asyncio.run(users(server.chat, random.Random(1), n=2, seconds=0.3, n_words=2))
    assert len(calls) > 2 and not any(call.error for call in calls)


def test_users_come_by_themselves_and_the_same_ones_with_the_same_seed(server: Server, engine: Engine) -> None:
    for _ in range(2):
        asyncio.run(arrivals(server.chat, random.Random(5), rate=20, seconds=0.3, n_words=2))
    prompts = [sample.prompt for sample in engine.samples]
    half = len(prompts) // 2
    assert half > 1 and sorted(prompts[:half]) == sorted(prompts[half:])


def test_a_conversation_grows_and_its_last_message_is_asked_alone(
    server: Server, service: Service, engine: Engine
) -> None:
    calls = asyncio.run(turns(server.chat, random.Random(1), n=3, n_words=2))
    assert len(calls) == 4
    texts = [service.model.tokenizer.decode(sample.prompt) for sample in engine.samples]
    assert [text.count("<user>") for text in texts] == [1, 2, 3, 1]
    assert texts[2].count("<assistant>Hello") == 2
    assert texts[2].endswith(texts[3])


# ---- arithmetic


@pytest.mark.parametrize(("percent", "value"), [(50, 3.0), (95, 5.0), (20, 1.0), (0, 1.0), (100, 5.0)])
def test_percentiles_are_values_that_were_measured(percent: float, value: float) -> None:
    assert percentile([5.0, 1.0, 4.0, 2.0, 3.0], percent) == value


def played(*calls: Call) -> Played:
    return Played(list(calls), began_s=100.0, seconds=10.0, cpu_s=1.0)


def test_tokens_count_while_users_come() -> None:
    """The second call's answer ends later: half of its pieces count, of three tokens each."""
    first = Call(100.0, [101.0, 102.0], n_tokens=2)
    second = Call(105.0, [109.0, 111.0], n_tokens=6)
    assert played(first, second).tokens_per_s == pytest.approx((2 + 3) / 10)
    assert played(first, second).first_ms == pytest.approx([1000, 4000])
    assert played(first, second).between_ms == pytest.approx([1000, 2000])
    assert played(first, second).cpu_percent == pytest.approx(100 / 11)


def test_a_row_and_what_it_is_compared_with() -> None:
    fast, slow = (played(Call(100.0, [101.0, 101.0 + gap_s], n_tokens=n)) for gap_s, n in ((0.1, 20), (0.2, 10)))
    ours, theirs = cells("16 users, ours", [fast], ""), cells("16 users, theirs", [slow], "")
    assert [(item.target, item.values) for item in ratios("16 users", ours, theirs)] == [
        ("serve tokens", (2.0,)), ("serve gap", (pytest.approx(0.5),))
    ]  # fmt: skip
    assert {item.target for item in ratios("4 users", ours, theirs)} == {""}
    text = markdown({}, [*ours, *theirs])
    assert "| serve | tokens/s, all users | first token p50, ms |" in text
    assert "| 16 users, theirs | 1.00 (1.00-1.00) | 1000 (1000-1000) |" in text


def test_what_was_not_measured_says_so_in_its_row() -> None:
    text = markdown({}, [Series("serve", "tokens/s", "all users", note="why", row="4 users")])
    assert "| 4 users | not measured |" in text


def test_each_round_has_other_users_and_every_server_the_same() -> None:
    def play(server: Served, seed: int) -> tuple[Any, int]:
        return server.port, seed

    one, other = (seeded(play, Served(port, "m"), 3) for port in (1, 2))
    assert [one(), other(), one(), other()] == [(1, 3), (2, 3), (1, 103), (2, 103)]


def test_without_llama_server_it_is_said(tmp_path: Any) -> None:
    server = LlamaServer("/no/llama-server", tmp_path)
    assert server.version() is None
    with pytest.raises(BenchError, match="/no/llama-server"):
        server.require()
