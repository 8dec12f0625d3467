"""Constrained answers: what may follow, in every kind of vocabulary, and grammars of strangers."""

import json
import random
from pathlib import Path
from typing import Any

import psutil
import pytest

from mdi.errors import ConfigError, GrammarError
from mdi.text.grammars import MAX_SCHEMA_BYTES, calls_grammar, schema_grammar, text_or_calls_grammar
from mdi.text.matchers import Matchers
from mdi.text.matching import MatchLimits
from mdi.text.tokenizer import Tokenizer, load_tokenizer
from mdi.text.tool_calls import Tool, parser_for
from mdi.text.worker_process import TextWorker
from support.scripts import wait_until
from support.vocabularies import VOCABULARIES, model_folder

pytest.importorskip("llguidance")

PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 12}, "age": {"type": "integer", "minimum": 0, "maximum": 9}},
    "required": ["name", "age"],
    "additionalProperties": False,
}
CITY = {
    "type": "object",
    "properties": {"city": {"enum": ["Rome", "Oslo"]}},
    "required": ["city"],
    "additionalProperties": False,
}
TOOLS = [Tool("weather", CITY), Tool("now", {"type": "object", "properties": {}, "additionalProperties": False})]


class Model:
    """A vocabulary, and the matchers for it."""

    def __init__(self, folder: Path, kind: str, worker: TextWorker) -> None:
        model_folder(folder, kind)
        self.folder, self.worker = folder, worker
        self.tokenizer: Tokenizer = load_tokenizer(folder, worker)
        eos = self.tokenizer.eos_id
        self.stop = self.tokenizer.n_ids - 1 if eos is None else eos
        self.matchers = Matchers(folder, self.tokenizer, [self.stop], worker)


@pytest.fixture(scope="module", params=VOCABULARIES)
def model(request: pytest.FixtureRequest, worker: TextWorker, tmp_path_factory: pytest.TempPathFactory) -> Model:
    return Model(tmp_path_factory.mktemp("model"), request.param, worker)


@pytest.fixture(scope="module")
def byte_level(worker: TextWorker, tmp_path_factory: pytest.TempPathFactory) -> Model:
    return Model(tmp_path_factory.mktemp("model"), "byte-level", worker)


def allowed(mask: bytes) -> list[int]:
    return [8 * place + bit for place, byte in enumerate(mask) if byte for bit in range(8) if byte >> bit & 1]


def random_text(model: Model, grammar: str, seed: int, max_tokens: int = 400) -> str:
    """An answer of tokens that are drawn from all that may follow."""
    draw, tokens = random.Random(seed), list[int]()
    matcher = model.matchers.begin(grammar)
    try:
        while len(tokens) < max_tokens:
            token = draw.choice(allowed(matcher.mask()))
            if token == model.stop:
                return model.tokenizer.decode(tokens, continues=True)
            tokens.append(token)
            matcher.accept(token)
    finally:
        matcher.close()
    raise AssertionError("the answer did not end")


def is_person(text: str) -> bool:
    value = json.loads(text)
    return set(value) == {"name", "age"} and len(value["name"]) <= 12 and value["age"] in range(10)


def test_whatever_is_drawn_has_the_schema(model: Model) -> None:
    grammar = schema_grammar(PERSON)
    texts = [random_text(model, grammar, seed) for seed in range(5)]
    assert all(map(is_person, texts)) and len(set(texts)) == 5


@pytest.mark.parametrize("kind", ["tagged", "bare"])
@pytest.mark.parametrize("parallel", [True, False])
def test_forced_calls_are_calls(kind: Any, parallel: bool, byte_level: Model) -> None:
    grammar = calls_grammar(TOOLS, kind, parallel=parallel)
    names = set()
    for seed in range(8):
        parser = parser_for(kind, ["weather", "now"], parallel=True)
        text = random_text(byte_level, grammar, seed)
        parsed, rest = parser.push(text), parser.finish()
        calls = parsed.calls + rest.calls
        assert parsed.text + rest.text == ""
        assert len(calls) == 1 or (parallel and kind == "tagged" and len(calls) > 1)
        for call in calls:
            names.add(call.name)
            value = json.loads(call.arguments)
            assert value == {} if call.name == "now" else value["city"] in ("Rome", "Oslo")
    assert names == {"weather", "now"}


def follows(model: Model, grammar: str, text: str) -> bool:
    """Whether a grammar allows a text as the vocabulary encodes it, and its end."""
    matcher = model.matchers.begin(grammar)
    try:
        for token in model.tokenizer.encode(text):
            if token not in allowed(matcher.mask()):
                return False
            matcher.accept(token)
        return model.stop in allowed(matcher.mask())
    finally:
        matcher.close()


@pytest.mark.parametrize(
    ("kind", "text", "is_allowed"),
    [
        ("tagged", "Just text.", True),
        ("tagged", 'I look: <tool_call>\n{"name": "weather", "arguments": {"city": "Oslo"}}\n</tool_call>', True),
        ("tagged", 'I look: <tool_call>\n{"name": "weather", "arguments": {"city": "Bonn"}}\n</tool_call>', False),
        ("tagged", 'I look: <tool_call>\n{"name": "other", "arguments": {}}\n</tool_call>', False),
        ("tagged", 'I look: <tool_call>{"name": "other", "arguments": {}}</tool_call>', False),
        ("tagged", "I <look> at the <tool", True),
        ("bare", "Just {text}.", True),
        ("bare", '{"name": "now", "parameters": {}}', True),
        ("bare", '{"name": "now", "parameters": {"a": 1}}', False),
        ("bare", ' {"name": "now", "parameters": {"a": 1}}', False),
        ("bare", '<|python_tag|>{"name": "now", "parameters": {"a": 1}}', False),
        ("bare", "<now>", True),
    ],
)
def test_what_begins_as_a_call_in_a_text_becomes_one(kind: Any, text: str, is_allowed: bool, byte_level: Model) -> None:
    assert follows(byte_level, text_or_calls_grammar(TOOLS, kind), text) is is_allowed


def test_texts_that_are_forced_are_encoded_as_the_vocabulary_does(model: Model) -> None:
    """Special names are text there, and no word begins with a space of the vocabulary's own."""
    for constant in ("hello ring", "<|im_end|></s>", "naïve café"):
        text = random_text(model, schema_grammar({"const": constant}), 0)
        assert json.loads(text) == constant
    hello = model.tokenizer.encode('"hello')[-1]
    matcher = model.matchers.begin(schema_grammar({"const": "hello"}))
    tokens = list[int]()
    while (token := allowed(matcher.mask())[0]) != model.stop:
        tokens.append(token)
        matcher.accept(token)
    matcher.close()
    assert hello in tokens


# ---- grammars of strangers


def with_key(name: str) -> dict[str, Any]:
    return {"type": "object", "properties": {name: {"type": "integer"}}}


REFUSED = {
    "an unknown type": {"type": "strnig"},
    "a keyword that cannot be followed": {"type": "string", "contentEncoding": "base64", "not": {"const": "x"}},
    "a reference to elsewhere": {"$ref": "https://example.com/schema.json"},
    "nothing has it": {"type": "integer", "minimum": 5, "maximum": 4},
    "a pattern that is none": {"type": "string", "pattern": "(("},
    "a million combinations": {"allOf": [{"anyOf": [with_key(f"{i}{j}") for j in range(4)]} for i in range(10)]},
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_schema_that_is_refused_is_one_line(case: str, byte_level: Model) -> None:
    with pytest.raises(GrammarError) as caught:
        byte_level.matchers.begin(schema_grammar(REFUSED[case]))
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 2100


def test_a_schema_that_takes_too_long_is_refused_and_harms_nobody(byte_level: Model) -> None:
    many = {"type": "object", "properties": {f"property {i}": {"type": "string"} for i in range(2000)}}
    quick = Matchers(byte_level.folder, byte_level.tokenizer, [byte_level.stop], byte_level.worker, MatchLimits(0.01))
    with pytest.raises(GrammarError, match=r"takes more than 0\.01 s"):
        quick.begin(schema_grammar(many))
    assert is_person(random_text(byte_level, schema_grammar(PERSON), 1))


def test_a_schema_that_is_too_long_is_refused_before_it_is_sent() -> None:
    with pytest.raises(ConfigError, match="are allowed"):
        schema_grammar({"enum": ["x" * MAX_SCHEMA_BYTES]})


def test_a_schemas_own_settings_do_not_count(byte_level: Model) -> None:
    loose = {"type": "string", "format": "no-such", "x-guidance": {"lenient": True}}
    with pytest.raises(GrammarError, match="no-such"):
        byte_level.matchers.begin(schema_grammar(loose))


def test_a_model_without_a_token_that_ends_an_answer_is_refused(byte_level: Model) -> None:
    with pytest.raises(ConfigError, match="no token that ends"):
        Matchers(byte_level.folder, byte_level.tokenizer, [], byte_level.worker).begin(schema_grammar(PERSON))


# ---- the processes


def copies(worker: TextWorker) -> list[psutil.Process]:
    return psutil.Process(worker.pid).children()


def test_each_answer_has_a_process_that_ends_with_it(byte_level: Model) -> None:
    begun = [byte_level.matchers.begin(schema_grammar(PERSON)) for _ in range(2)]
    assert len(copies(byte_level.worker)) == 2
    for matcher in begun:
        matcher.close()
        matcher.close()
    wait_until(lambda: not copies(byte_level.worker), 60, "the processes have ended")


def test_a_process_that_dies_ends_its_answer_alone(byte_level: Model) -> None:
    doomed, other = (byte_level.matchers.begin(schema_grammar(PERSON)) for _ in range(2))
    copies(byte_level.worker)[0].kill()
    doomed.mask()  # it was there already
    doomed.accept(allowed(other.mask())[0])
    with pytest.raises(GrammarError, match="takes more than"):
        doomed.mask()
    other.accept(byte_level.tokenizer.encode("{")[0])
    assert other.mask()
    for matcher in (doomed, other):
        matcher.close()


def test_answers_go_on_when_the_worker_is_replaced(tmp_path: Path) -> None:
    with TextWorker() as worker:
        model = Model(tmp_path, "byte-level", worker)
        matcher = model.matchers.begin(schema_grammar(PERSON))
        pid = psutil.Process(worker.pid).children()[0].pid
        worker.close()
        matcher.accept(allowed(matcher.mask())[0])
        assert allowed(matcher.mask())
        assert is_person(random_text(model, schema_grammar(PERSON), 1))
        matcher.close()
    wait_until(lambda: not psutil.pid_exists(pid) or psutil.Process(pid).status() == "zombie", 60, "it has ended")


def test_a_token_that_may_not_follow_ends_the_answer(byte_level: Model) -> None:
    matcher = byte_level.matchers.begin(schema_grammar(PERSON))
    matcher.mask()
    matcher.accept(byte_level.tokenizer.encode("x")[0])
    with pytest.raises(GrammarError):
        matcher.mask()
    matcher.close()
