"""The official client against a ring of three processes: the texts of the batch program, and a lost node."""

import concurrent.futures
import contextlib
import json
import os
import shutil
import signal
import threading
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
import torch
from pydantic import BaseModel, Field
from tokenizers import Tokenizer

from support.models import generate_cached, reference_model
from support.scripts import Network, Process, Scripts, WarmPython, free_ports, wait_until, write_network

openai = pytest.importorskip("openai")

pytestmark = pytest.mark.slow

MODEL = "SmolLM2-135M-Instruct"
KEY = "a-key-for-the-tests"
PROMPTS = [f"Count from {i} to ten." for i in range(16)]
N_TOKENS = 12

# The model's own template knows no tools; this is how Qwen's tells of them.
TOOLS_TEMPLATE = """\
{% if tools %}<|im_start|>system
You may call these functions:
{% for tool in tools %}{{ tool | tojson }}
{% endfor %}
For each call, write JSON within tags:
<tool_call>
{"name": <function-name>, "arguments": <args-json-object>}
</tool_call><|im_end|>
{% endif %}\
{% for message in messages %}<|im_start|>{{ message.role }}
{{ message.content }}{% for call in message.tool_calls or [] %}<tool_call>
{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}
</tool_call>{% endfor %}<|im_end|>
{% endfor %}<|im_start|>assistant
"""
needs_library = pytest.mark.skipif(find_spec("llguidance") is None, reason="llguidance is not installed")


@dataclass(frozen=True)
class Served:
    """A ring that serves users."""

    port: int
    network: Network
    starter: Process
    secondaries: list[Process]
    scripts: Scripts
    expected: dict[str, str]  # greedy completions of the batch program, by prompt

    @contextlib.contextmanager
    def client(self, key: str = KEY) -> Iterator[Any]:
        url = f"http://127.0.0.1:{self.port}/v1"
        with openai.OpenAI(base_url=url, api_key=key, max_retries=0, timeout=120) as client:
            yield client

    def chat(self, prompt: str, **values: Any) -> Any:
        messages = [{"role": "user", "content": prompt}]
        options: dict[str, Any] = {"model": MODEL, "temperature": 0, "max_tokens": N_TOKENS, **values}
        with self.client() as client:
            return client.chat.completions.create(messages=messages, **options)

    def get(self, path: str) -> str:
        """What a route answers that is not OpenAI's."""
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}{path}", headers={"Authorization": f"Bearer {KEY}"}
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            return str(answer.read().decode())

    @property
    def nodes(self) -> list[dict[str, Any]]:
        """The nodes as `/ring` shows them."""
        return list(json.loads(self.get("/ring"))["nodes"])

    @contextlib.contextmanager
    def stream(self, prompt: str, **values: Any) -> Iterator[Iterator[Any]]:
        """The chunks of a chat; the connection is closed behind the block."""
        messages = [{"role": "user", "content": prompt}]
        options: dict[str, Any] = {"model": MODEL, "temperature": 0, "max_tokens": N_TOKENS, **values}
        with (
            self.client() as client,
            client.chat.completions.create(messages=messages, stream=True, **options) as chunks,
        ):
            yield iter(chunks)


def batch_texts(scripts: Scripts, model: Path, folder: Path) -> dict[str, str]:
    """What the batch program answers, greedily, on one node."""
    (folder / "prompts.txt").write_text("\n\n".join(PROMPTS))
    output = folder / "output.jsonl"
    alone = write_network(folder / "alone.json", 1)
    result = scripts.run(
        "starter.py", "--ckpt", model, "--nodes-config", alone.path, "--prompt", f"FILE:{folder / 'prompts.txt'}",
        "--n-samples", len(PROMPTS), "--n-tokens", N_TOKENS, "--temperature", 0, "--dtype", "float32",
        "--output", output, timeout_s=300,
    )  # fmt: skip
    assert result.code == 0, result.stderr
    records = [json.loads(line) for line in output.read_text().splitlines()]
    return {record["prompt"]: record["completion"] for record in records if "prompt" in record}


def with_tools(model: Path, folder: Path) -> Path:
    """The same model with another template."""
    copy = Path(shutil.copytree(model, folder / model.name, copy_function=os.link))
    (copy / "chat_template.jinja").write_text(TOOLS_TEMPLATE)
    return copy


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, warm: WarmPython, smollm2: Path) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("served")
    with Scripts(folder / "processes", warm) as scripts:
        model = with_tools(smollm2, folder)
        expected = batch_texts(scripts, model, folder)
        network = write_network(folder / "three.json", 3)
        (port,) = free_ports(1)
        secondaries = scripts.secondaries(network, "--dtype", "float32")
        starter = scripts.start(
            "starter.py", "-v", "--ckpt", model, "--nodes-config", network.path, "--dtype", "float32",
            "--serve", f"127.0.0.1:{port}", "--api-key", KEY, "--max-slots", 6, "--sequence-length", 512,
            "--log-format", "json",
        )  # fmt: skip
        starter.wait_for("serving ", 300)
        yield Served(port, network, starter, secondaries, scripts, expected)


def test_many_chats_at_once_have_the_texts_of_the_batch_program(served: Served) -> None:
    with concurrent.futures.ThreadPoolExecutor(len(PROMPTS)) as users:
        answers = list(users.map(served.chat, PROMPTS))
    assert {p: a.choices[0].message.content for p, a in zip(PROMPTS, answers, strict=True)} == served.expected
    assert all(answer.usage.completion_tokens <= N_TOKENS for answer in answers)


def test_a_stream_has_the_same_text(served: Served) -> None:
    with served.stream(PROMPTS[0], n=2) as stream:
        chunks = list(stream)
    for index in range(2):
        parts = [c.delta.content or "" for chunk in chunks for c in chunk.choices if c.index == index]
        assert "".join(parts) == served.expected[PROMPTS[0]]


def test_completions_stop_where_they_are_told_to(served: Served) -> None:
    options: dict[str, Any] = {"model": MODEL, "temperature": 0, "max_tokens": 24}
    with served.client() as client:
        complete = client.completions.create
        whole = complete(prompt="The capital of France is", **options).choices[0].text
        stop = whole[len(whole) // 2 : len(whole) // 2 + 4]
        stopped = complete(prompt="The capital of France is", stop=stop, **options).choices[0]
    assert (stopped.text, stopped.finish_reason) == (whole[: whole.index(stop)], "stop")


def test_a_stop_string_may_begin_and_end_within_tokens(served: Served) -> None:
    whole = served.chat("Tell me a story.", max_tokens=24, logprobs=True).choices[0]
    text, tokens = whole.message.content, [token.token for token in whole.logprobs.content]
    middle = next(i for i in range(4, len(tokens) - 1) if min(len(tokens[i]), len(tokens[i + 1])) > 2)
    at = len("".join(tokens[: middle + 1])) - 2
    stop = text[at : at + 4]  # two characters of either token
    with served.stream("Tell me a story.", max_tokens=24, stop=["never said", stop]) as stream:
        choices = [choice for chunk in stream for choice in chunk.choices]
    assert "".join(choice.delta.content or "" for choice in choices) == text[: text.index(stop)]
    assert choices[-1].finish_reason == "stop"


def test_a_seed_repeats(served: Served) -> None:
    texts = [
        [choice.message.content for choice in served.chat("Tell me a story.", temperature=1, seed=seed, n=2).choices]
        for seed in (7, 7, 8)
    ]
    assert texts[0] == texts[1] != texts[2]
    assert texts[0][0] != texts[0][1]


def test_the_next_turn_of_a_chat_computes_only_what_is_new(served: Served) -> None:
    first = served.chat("Tell me a story.", max_tokens=30)
    turns = [
        {"role": "user", "content": "Tell me a story."},
        {"role": "assistant", "content": first.choices[0].message.content},
        {"role": "user", "content": "Go on."},
    ]
    with served.client() as client:
        second = client.chat.completions.create(model=MODEL, messages=turns, temperature=0, max_tokens=5)
    assert second.usage.prompt_tokens_details.cached_tokens >= first.usage.prompt_tokens


def test_log_probabilities_are_told_as_the_api_does(served: Served) -> None:
    chat = served.chat(PROMPTS[0], logprobs=True, top_logprobs=2).choices[0]
    tokens = chat.logprobs.content
    assert "".join(token.token for token in tokens) == chat.message.content
    assert all(len(token.top_logprobs) == 2 and token.top_logprobs[0].logprob <= 0 for token in tokens)
    assert all(token.token == token.top_logprobs[0].token for token in tokens), "greedy is the most likely"
    with served.client() as client:
        completion = client.completions.create(model=MODEL, prompt="Water", max_tokens=4, temperature=0, logprobs=1)
    found = completion.choices[0].logprobs
    assert "".join(found.tokens) == completion.choices[0].text
    assert len(found.token_logprobs) == len(found.top_logprobs) == len(found.text_offset) == 4


@torch.inference_mode()
def test_log_probabilities_are_those_of_litgpt(served: Served, smollm2: Path) -> None:
    """Of a prompt given as ids, so that the two compute the same thing."""
    ids = Tokenizer.from_file(str(smollm2 / "tokenizer.json")).encode("The capital of France is").ids
    with served.client() as client:
        found = client.completions.create(model=MODEL, prompt=ids, max_tokens=8, temperature=0, logprobs=3)
    logprobs = found.choices[0].logprobs
    reference = reference_model(smollm2)
    tokens = generate_cached(reference, ids, 8)
    reference.clear_kv_cache()
    rows = reference(torch.tensor([[*ids, *tokens]]))[0, len(ids) - 1 : -1].log_softmax(-1)
    expected = [float(row[token]) for row, token in zip(rows, tokens, strict=True)]
    assert logprobs.token_logprobs == pytest.approx(expected, abs=1e-3)
    for row, top in zip(rows, logprobs.top_logprobs, strict=True):
        assert sorted(top.values(), reverse=True) == pytest.approx(row.topk(3).values.tolist(), abs=1e-3)


def test_responses(served: Served) -> None:
    options: dict[str, Any] = {"model": MODEL, "input": PROMPTS[1], "temperature": 0, "max_output_tokens": N_TOKENS}
    with served.client() as client:
        assert client.responses.create(**options).output_text == served.expected[PROMPTS[1]]
        events = list(client.responses.create(**options, stream=True))
    text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    assert text == served.expected[PROMPTS[1]]


def test_refusals_are_the_clients_own_errors(served: Served) -> None:
    with served.client("another-key") as client, pytest.raises(openai.AuthenticationError):
        client.models.list()
    with pytest.raises(openai.NotFoundError):
        served.chat("Hi", model="gpt-4")
    with pytest.raises(openai.BadRequestError, match="leaves no room"):
        served.chat("word " * 600)
    with pytest.raises(openai.BadRequestError, match="functions"):
        served.chat("Hi", extra_body={"functions": []})


class Person(BaseModel):
    name: Annotated[str, Field(max_length=20)]
    age: Annotated[int, Field(ge=0, le=120)]
    colors: Annotated[list[Literal["red", "green", "blue"]], Field(max_length=3)]


class Event(BaseModel):
    when: date
    code: Annotated[str, Field(pattern="^[A-Z]{3}-[0-9]{4}$")]
    guest: Person | None


class Weather(BaseModel):
    """The weather of a city"""

    city: Annotated[str, Field(max_length=20)]
    days: Annotated[int, Field(ge=1, le=7)]


@needs_library
def test_answers_have_the_schema_that_was_asked_for(served: Served) -> None:
    messages: Any = [{"role": "user", "content": "Invent one, as JSON."}]
    with served.client() as client:
        chat = client.chat.completions.parse(
            model=MODEL, messages=messages, temperature=1, n=3, max_tokens=400, response_format=Event
        )
        response = client.responses.parse(
            model=MODEL, input="Invent one, as JSON.", temperature=1, max_output_tokens=400, text_format=Person
        )
    parsed = [choice.message.parsed for choice in chat.choices]
    assert all(isinstance(value, Event) for value in parsed) and isinstance(response.output_parsed, Person)
    assert len({repr(value) for value in parsed}) > 1


@needs_library
def test_an_answer_may_be_any_json_object_and_is_told_where_it_was_cut(served: Served) -> None:
    whole = served.chat("Invent one, as JSON.", response_format={"type": "json_object"}, max_tokens=400, stop="}")
    assert whole.choices[0].message.content.startswith("{")
    cut = served.chat("A list, please.", response_format={"type": "json_object"}, max_tokens=2).choices[0]
    assert cut.finish_reason == "length"


@needs_library
def test_forced_calls_have_arguments_of_their_schema(served: Served) -> None:
    tools = [openai.pydantic_function_tool(Weather)]
    options: dict[str, Any] = {"model": MODEL, "tools": tools, "temperature": 1, "max_tokens": 200, "seed": 5}
    messages: Any = [{"role": "user", "content": "How is the weather in Rome?"}]
    with served.client() as client:
        whole = client.chat.completions.parse(
            messages=messages, tool_choice="required", parallel_tool_calls=False, n=2, **options
        )
        named = {"type": "function", "function": {"name": "Weather"}}
        with client.chat.completions.stream(messages=messages, tool_choice=named, **options) as stream:
            streamed = stream.get_final_completion()
        for choice in (*whole.choices, *streamed.choices):
            assert choice.finish_reason == "tool_calls" and not choice.message.content
            for made in choice.message.tool_calls:
                assert isinstance(made.function.parsed_arguments, Weather)
        answer = client.chat.completions.create(messages=messages, tool_choice=named, **options)
        message = answer.choices[0].message
        result = {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": "Rain."}
        after = client.chat.completions.create(messages=[*messages, message, result], **options | {"max_tokens": 8})
    assert after.usage.prompt_tokens > answer.usage.prompt_tokens


def test_a_stream_that_is_closed_frees_its_slot(served: Served) -> None:
    with contextlib.ExitStack() as stack:
        for _ in range(6):  # all that there are
            next(stack.enter_context(served.stream("Tell me a long story.", max_tokens=200)))
    assert served.chat(PROMPTS[2]).choices[0].message.content == served.expected[PROMPTS[2]]


@contextlib.contextmanager
def busy(served: Served) -> Iterator[None]:
    """One sample after another is generated inside the block."""
    over = threading.Event()

    def generate() -> None:
        while not over.is_set():
            with served.stream("Tell me a long story.", max_tokens=200) as chunks:
                while not over.is_set() and next(chunks, None) is not None:
                    pass

    with concurrent.futures.ThreadPoolExecutor(1) as user:
        done = user.submit(generate)
        try:
            yield
        finally:
            over.set()
    done.result()


def test_the_ring_at_work_is_shown(served: Served) -> None:
    ring: dict[str, Any] = {}

    def is_at_work() -> bool:
        ring.update(json.loads(served.get("/ring")))
        return bool(ring["tokens_per_s"] and ring["slots"]["used"]) and all(node["compute"] for node in ring["nodes"])

    with busy(served):
        wait_until(is_at_work, 120, "all nodes compute")
        metrics = served.get("/metrics")
    assert (ring["state"], ring["n_layers"], ring["slots"]["total"]) == ("ready", 30, 6)
    assert [node["state"] for node in ring["nodes"]] == ["running"] * 3
    assert sum(node["layers"][1] - node["layers"][0] for node in ring["nodes"]) == 30
    for node in ring["nodes"]:
        assert node["compute"] + node["transfer"] + node["idle"] == pytest.approx(1, abs=0.01)
        assert node["rows_per_s"] > 0 and 0 < node["memory_bytes"] <= node["peak_memory_bytes"]
        assert f'mdi_node_up{{node="{node["name"]}"}} 1.0' in metrics
    assert {sample["max_tokens"] for sample in ring["samples"]} == {200}
    assert all(message["rows"] > 0 and message["age_s"] >= 0 for message in ring["messages"])


def test_requests_are_logged_as_json(served: Served) -> None:
    answer = served.chat(PROMPTS[3])
    wait_until(lambda: answer.id in served.starter.stderr, 60, "it is logged")
    lines = [json.loads(line) for line in served.starter.stderr.splitlines()]
    (line,) = [line for line in lines if line.get("answer_id") == answer.id]
    assert (line["outcome"], line["generated_tokens"]) == ("finished", answer.usage.completion_tokens)
    assert 0 < line["first_token_s"] < line["seconds"]
    assert PROMPTS[3] not in served.starter.stderr


def test_a_lost_secondary_changes_no_text_and_a_signal_lets_answers_end(served: Served) -> None:
    """The last test of this ring, which has another process as its second secondary from here on, and then none."""
    undisturbed = served.chat("Tell me a long story.", max_tokens=60).choices[0].message.content
    held: dict[str, Any] = {"temperature": 1, "seed": 3, "max_tokens": 40}
    if find_spec("llguidance") is not None:
        held["response_format"] = {"type": "json_object"}
    held_text = served.chat("A list, please.", **held).choices[0].message.content
    pieces = []
    with (
        concurrent.futures.ThreadPoolExecutor(1) as other,
        served.stream("Tell me a long story.", max_tokens=60) as stream,
    ):
        held_answer = other.submit(served.chat, "A list, please.", **held)
        for chunk in stream:
            pieces.append(chunk.choices[0].delta.content or "")
            if len(pieces) == 10:
                served.secondaries[1].kill()
                wait_until(lambda: served.nodes[2]["state"] == "missing", 60, "the loss is shown")
                again = ("--dtype", "float32", "--nodes-config", served.network.path, 1)
                served.secondaries[1] = served.scripts.start("secondary.py", "-v", *again)
        assert held_answer.result(300).choices[0].message.content == held_text
    assert "".join(pieces) == undisturbed
    assert "is back" in served.starter.stderr
    wait_until(lambda: [node["state"] for node in served.nodes] == ["running"] * 3, 60, "its return is shown")

    with served.stream("Tell me a long story.", max_tokens=40) as stream:
        next(stream)
        served.starter.send_signal(signal.SIGTERM)
        wait_until(lambda: "ending: " in served.starter.stderr, 60, "the signal has come")
        with pytest.raises((openai.InternalServerError, openai.APIConnectionError)):
            served.chat("Hi")
        assert len(list(stream)) > 10
    assert served.starter.result(120).code == 0
    for secondary in served.secondaries:
        assert secondary.result(60).code == 0
