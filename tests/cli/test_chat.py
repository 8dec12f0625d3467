"""The chat: what it asks and keeps, what it says of errors, and its commands; with a server that does as it is told."""

import contextlib
import io
import re
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mdi.cli.chat import run
from mdi.cli.chat.answer import Answer
from mdi.cli.chat.conversation import Turn, load
from mdi.cli.chat.display import Plain
from mdi.cli.chat.endpoint import Endpoint, RequestFailed
from mdi.cli.chat.keyboard import InputEnded, InputFailed, Typed, is_open, read_in_thread, unquoted
from mdi.cli.chat.session import COMMANDS, Chat, Interrupted
from mdi.config.options import ChatOptions
from mdi.errors import ConfigError
from mdi.inbox import Inbox
from support.scripts import free_ports
from support.stub_api import DONE, Reply, StubApi, broken, refusal, serve_api, stream


@pytest.fixture
def api() -> Iterator[StubApi]:
    with serve_api(StubApi()) as api:
        yield api


class Typist:
    """Types lines, one whenever it is asked."""

    def __init__(self, inbox: Inbox, lines: Iterable[str]) -> None:
        self._inbox, self._lines = inbox, iter(lines)

    def ask(self) -> None:
        line = next(self._lines, None)
        self._inbox.post(InputEnded() if line is None else Typed(line))

    def close(self) -> None:
        pass


class Session:
    """A chat with the stub, from its first line to its end."""

    def __init__(self, url: str, lines: Iterable[str], **options: Any) -> None:
        self.inbox, self.said, self.out = Inbox(), list[str](), io.StringIO()
        endpoint = Endpoint(url, options.get("api_key"))
        self.on_write: Callable[[str], None] = lambda text: None
        keyboard = Typist(self.inbox, lines)
        patience_s = options.pop("patience_s", 0.0)
        values = {"temperature": 0.5} | options
        self.chat = Chat(
            endpoint,
            "tiny",
            ChatOptions(**values),
            self.inbox,
            keyboard,
            self,
            say=self.said.append,
            patience_s=patience_s,
        )
        self._endpoint = endpoint

    @contextlib.contextmanager
    def answer(self) -> Iterator[Callable[[str], None]]:
        """The display: a plain one, and the test's own eyes on it."""
        with Plain(self.out).answer() as add:

            def watched(text: str) -> None:
                add(text)
                self.on_write(text)

            yield watched

    def run(self) -> "Session":
        self.chat.run()
        self.close()
        return self

    def close(self) -> None:
        self._endpoint.close()

    @property
    def shown(self) -> str:
        return self.out.getvalue()

    @property
    def turns(self) -> list[tuple[str, str]]:
        return [(turn.role, turn.text) for turn in self.chat._conversation.turns]


def contents(request: tuple[str, Any]) -> list[str]:
    return [message["content"] for message in request[1]["messages"]]


# ---- questions and answers


def test_each_question_carries_the_conversation(api: StubApi) -> None:
    api.replies += [stream("Hel", "lo"), stream("Bye")]
    session = Session(api.url, ["Hi", "", "And?"], system="Be brief.", n_tokens=9, top_k=4, seed=3).run()
    assert session.shown == "Hello\nBye\n"
    first, second = api.requests
    assert first[0] == "/v1/chat/completions"
    assert {name: value for name, value in first[1].items() if name != "messages"} == {
        "model": "tiny",
        "stream": True,
        "stream_options": {"include_usage": True},
        "max_tokens": 9,
        "temperature": 0.5,
        "top_k": 4,
        "seed": 3,
    }
    assert contents(first) == ["Be brief.", "Hi"]
    assert contents(second) == ["Be brief.", "Hi", "Hello", "And?"]
    assert (session.said, session.chat.n_failed) == ([], 0)


def test_ctrl_c_stops_the_answer_and_what_came_of_it_is_kept(api: StubApi) -> None:
    api.replies += [broken("A long", " story", held=threading.Event()), stream("Fine")]
    session = Session(api.url, ["Tell me", "Go on"])
    session.inbox.post(Interrupted())  # before there is an answer: it stops nothing
    session.on_write = lambda text: session.inbox.post(Interrupted()) if text == " story" else None
    session.run()
    assert session.shown == "A long story\nFine\n"
    assert session.said == ["stopped"]
    assert contents(api.requests[1]) == ["Tell me", "A long story", "Go on"]
    api.release()


@pytest.mark.parametrize(
    ("reply", "said"),
    [
        (
            refusal(401, "no API key"),
            "the server does not let us in: no API key; give its key by MDI_API_KEY or --api-key",
        ),
        (refusal(429, "it is full", Retry_After="7"), "the server is busy: it is full; try again in 7 s"),
        (
            refusal(429, "3 wait; try again in 2 s", Retry_After="2"),
            "the server is busy: 3 wait; try again in 2 s",
        ),
        (
            refusal(503, "the ring is recovering", Retry_After="1"),
            "the server cannot answer now: the ring is recovering; try again in 1 s",
        ),
        (refusal(503, "it ends", Retry_After="Fri, 27 Nov"), "the server cannot answer now: it ends"),
        (refusal(400, "too\nlong"), "the server refuses this (400): too long"),
        (Reply(502, b"<html>"), "the server refuses this (502): Bad Gateway"),
        (Reply(500, b"x" * (2 << 20)), "the server refuses this (500): Internal Server Error"),
        (Reply(events=('{"error": {"message": "no ring"}}',)), "the server could not go on: no ring"),
        (Reply(events=("{",)), "the server sent what is not of OpenAI's API (an event: not valid JSON"),
        (Reply(events=("[]",)), "the server sent what is not of OpenAI's API (an event that is no object)"),
        (Reply(events=('{"choices": 3}',)), "the server sent what is not of OpenAI's API (choices"),
        (Reply(events=('{"choices": [{"text": 3}]}',)), "the server sent what is not of OpenAI's API (a piece"),
        (Reply(events=('{"usage": {}}', DONE)), "the server sent what is not of OpenAI's API (usage: lacks prompt_"),
        (broken(), "the server ended the connection in the middle of the answer"),
        (broken(is_whole=False), "the connection to the server broke ("),
    ],
)
def test_an_error_is_one_line_and_loses_nothing_that_was_said(api: StubApi, reply: Reply, said: str) -> None:
    api.replies += [stream("Hello"), reply, stream("Yes")]
    session = Session(api.url, ["Hi", "And?", "Again"]).run()
    (line,) = session.said
    assert line.startswith(f"error: {said}") and "\n" not in line
    assert contents(api.requests[2]) == ["Hi", "Hello", "Again"]
    assert (session.shown, session.chat.n_failed) == ("Hello\nYes\n", 1)


def test_a_server_that_starts_is_waited_for(api: StubApi) -> None:
    starts = refusal(503, "the ring is starting", Retry_After="0")
    api.replies += [starts, starts, stream("Hello")]
    session = Session(api.url, ["Hi"], patience_s=60.0).run()
    assert (session.shown, session.chat.n_failed) == ("Hello\n", 0)
    assert session.said == [
        "the server cannot answer now: the ring is starting; try again in 0 s: waiting for it",
    ]
    assert [contents(request) for request in api.requests] == [["Hi"]] * 3


def test_ctrl_c_ends_the_wait_for_a_server_that_starts(api: StubApi) -> None:
    api.replies += [refusal(503, "the ring is starting", Retry_After="3600"), stream("Hello")]
    session = Session(api.url, ["Hi", "Hi?"], patience_s=3600.0)
    said = session.said.append

    def say(text: str) -> None:
        said(text)
        if text.endswith("waiting for it"):
            session.inbox.post(Interrupted())

    session.chat._say = say
    session.run()
    assert session.said[1:] == ["stopped"]
    assert (session.shown, session.chat.n_failed) == ("Hello\n", 0)


@pytest.mark.parametrize("is_whole", [True, False])
def test_of_an_answer_that_breaks_off_what_came_is_kept(api: StubApi, is_whole: bool) -> None:
    api.replies += [broken("Half an ans", is_whole=is_whole), stream("Yes")]
    session = Session(api.url, ["Hi", "Go on"]).run()
    assert session.shown == "Half an ans\nYes\n"
    assert contents(api.requests[1]) == ["Hi", "Half an ans", "Go on"]


def test_a_server_that_is_gone_and_back_loses_nothing() -> None:
    (port,) = free_ports(1)
    session = Session(f"http://127.0.0.1:{port}/v1", ["Hi", "Hi?"]).run()
    refused = f"error: nothing answers at http://127.0.0.1:{port}/v1 ([Errno 111] Connection refused)"
    assert session.said == [refused] * 2
    assert session.turns == []


def test_a_model_without_a_template_goes_on_from_one_text(api: StubApi) -> None:
    completion = Reply(events=('{"choices": [{"index": 0, "text": " a time", "finish_reason": "length"}]}', DONE))
    api.replies += [refusal(400, "no template", "no_chat_template"), completion, completion]
    session = Session(api.url, ["Once upon", "Then"]).run()
    assert session.said == ["tiny has no chat template: it goes on from what you type, as one text"]
    assert [path for path, _ in api.requests] == ["/v1/chat/completions", "/v1/completions", "/v1/completions"]
    assert [body["prompt"] for _, body in api.requests[1:]] == ["Once upon", "Once upon a time\nThen"]
    assert api.requests[1][1]["max_tokens"] == 200


def test_an_answer_that_the_context_cuts_off_says_so(api: StubApi) -> None:
    api.replies += [stream("Hello", reason="length"), stream("Hello", reason="length")]
    assert Session(api.url, ["Hi"]).run().said == [
        "the answer is cut off at the end of the context: /reset begins anew"
    ]
    assert Session(api.url, ["Hi"], n_tokens=2).run().said == []


def test_a_bug_in_a_thread_is_raised_on_the_main_thread(api: StubApi, monkeypatch: pytest.MonkeyPatch) -> None:
    def read(self: object) -> None:
        raise LookupError("a bug")

    monkeypatch.setattr(Answer, "_read", read)
    session = Session(api.url, ["Hi"])
    with pytest.raises(LookupError, match="a bug"):
        session.run()
    session.close()
    inbox = Inbox()
    read_in_thread(lambda: read(None), inbox)  # type: ignore[func-returns-value, arg-type, return-value]
    event = inbox.get(60)
    assert isinstance(event, InputFailed) and isinstance(event.error, LookupError)


# ---- commands


def test_commands_change_what_is_asked(api: StubApi, tmp_path: Path) -> None:
    api.replies += [stream("Hello") for _ in range(4)]
    path = tmp_path / "chat.json"
    lines = ["One", "/system Be brief.", f"/save {path}", "/reset", "Two", f"/load {path}", "Three", "/system", "Four"]
    session = Session(api.url, lines).run()
    assert list(map(contents, api.requests)) == [
        ["One"],
        ["Be brief.", "Two"],
        ["Be brief.", "One", "Hello", "Three"],
        ["One", "Hello", "Three", "Hello", "Four"],
    ]
    assert load(path).turns == [Turn("user", "One"), Turn("assistant", "Hello")]
    assert session.said == [f"2 messages saved to {path}", "2 messages loaded"]


def test_a_command_that_fails_changes_nothing(api: StubApi, tmp_path: Path) -> None:
    api.replies += [stream("Hello"), stream("Hello")]
    damaged = tmp_path / "damaged.json"
    damaged.write_text("{")
    lines = ["One", "/lod x", "/load", f"/load {damaged}", "/load no-such-file", f"/save {tmp_path}", "Two"]
    session = Session(api.url, lines).run()
    assert contents(api.requests[1]) == ["One", "Hello", "Two"]
    problems = [
        "'/lod' is no command; did you mean /load?",
        "/load needs the name of a file",
        f"{damaged}: not valid JSON",
        "no-such-file: no such file",
        str(tmp_path),
    ]
    assert session.chat.n_failed == len(session.said) == len(problems)
    assert all(line.startswith(f"error: {start}") for line, start in zip(session.said, problems, strict=True))


def test_quit_ends_the_chat_before_what_follows(api: StubApi) -> None:
    assert Session(api.url, ["/quit", "Hi"]).run().said == []
    assert api.requests == []


def test_help_tells_every_command(api: StubApi) -> None:
    said = Session(api.url, ["/help"]).run().said
    assert [line.split()[0] for line in said[:-1]] == list(COMMANDS)
    assert all(len(line.split(maxsplit=2)) == 3 for line in said[:-1])


def test_stats_are_those_of_the_server(api: StubApi) -> None:
    api.replies += [stream("Hello"), stream("Hello")]
    said = Session(api.url, ["/stats", "One", "Two", "/stats"], verbose=True).run().said
    one = r"7 prompt tokens \(5 cached\), 3 generated, first after \d+\.\d\d s, \d+\.\d tokens/s"
    patterns = [rf"tiny at {api.url}: 0 messages", one, one, rf"tiny at {api.url}: 4 messages", f"last answer: {one}"]
    patterns += ["all 2: 14 prompt tokens, 6 generated"]
    assert all(re.fullmatch(pattern, line) for pattern, line in zip(patterns, said, strict=True)), said


# ---- the server


def test_the_first_model_is_taken_unless_one_is_named(api: StubApi) -> None:
    endpoint = Endpoint(api.url, "a-key")
    assert run._model(endpoint, ChatOptions()) == "tiny"
    assert run._model(endpoint, ChatOptions(model="other")) == "other"
    with pytest.raises(ConfigError, match=f"--model third: {api.url} has tiny, other"):
        run._model(endpoint, ChatOptions(model="third"))
    assert api.keys == ["Bearer a-key"] * 3
    endpoint.close()


@pytest.mark.parametrize("body", [b"<html>", b"[]", b'{"data": 3}', b'{"data": [{}]}', b"x" * (2 << 20)])
def test_what_is_no_server_of_the_api_is_told(api: StubApi, body: bytes) -> None:
    api.models = Reply(body=body)
    endpoint = Endpoint(api.url, None)
    with pytest.raises(RequestFailed, match=r"does not list models|more than 1048576 bytes"):
        endpoint.models()
    endpoint.close()


@pytest.mark.parametrize("url", ["localhost:8000", "ftp://host/v1", "http://", "http://host:port"])
def test_what_is_no_url_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match=f"--url {url}: "):
        Endpoint(url, None)


def test_no_proxy_leads_to_this_machine(api: StubApi, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    endpoint = Endpoint(api.url, None)
    assert endpoint.models() == ["tiny", "other"]
    endpoint.close()


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"url": "http://h/v1", "ckpt": Path("m")}, "--url names a server, and --ckpt is for one that is started here"),
        ({"device": "cpu"}, "--device is for a server that is started here: give --ckpt too"),
        ({"compile": True, "url": "http://h/v1"}, "--compile is for a server that is started here"),
        ({"n_tokens": 0}, "--n-tokens"),
        ({"temperature": -1.0}, "--temperature"),
        ({"top_p": 1.5}, "--top-p 1.5: must be above 0 and at most 1"),
        ({"device": "gpu", "ckpt": Path("m")}, "--device gpu: expected cpu, mps, cuda or cuda:N"),
    ],
)
def test_options_that_do_not_go_together_are_refused(values: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        ChatOptions(**values)


# ---- messages


@pytest.mark.parametrize(
    ("typed", "goes_on", "message"),
    [
        ("one", False, "one"),
        ('"""one', True, '"""one'),
        ('"""\none\n\ntwo\n"""\n', False, "one\n\ntwo"),
        ('"""one"""', False, "one"),
        ('say """one""" twice', False, 'say """one""" twice'),
        ('"""', True, '"""'),
    ],
)
def test_a_quote_makes_one_message_of_several_lines(typed: str, goes_on: bool, message: str) -> None:
    assert is_open(typed) == goes_on
    assert unquoted(typed) == message
