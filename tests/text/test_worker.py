"""Vocabularies and templates of strangers: whatever they ask for costs a bounded time and memory, and is one line."""

import json
import os
import subprocess
import sys
import textwrap
import threading
from array import array
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest
from hypothesis import given, settings

from mdi.errors import CheckpointError, ConfigError
from mdi.text.frames import Frame, FrameError
from mdi.text.tokenizer import Tokenizer, load_tokenizer
from mdi.text.worker_client import MAX_TEXT_BYTES, WorkerTemplate, WorkerVocabulary, find_template
from mdi.text.worker_process import Limits, Request, TextWorker
from support.paths import SRC
from support.scripts import wait_until
from support.vocabularies import (
    ALL_KINDS,
    byte_level_json,
    local_tokenizer,
    model_folder,
    shared_tokenizer,
    texts,
    vocabulary,
)

SMALL = Limits(base_bytes=96 << 20)
# Seconds for templates; a request that concerns a vocabulary has minutes, so it succeeds on a slow machine too.
QUICK = Limits(base_s=1.0, s_per_vocabulary_mb=30_000.0)
HI = [{"role": "user", "content": "Hi"}]
ENDLESS = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"


def render(folder: Path, template: str, worker: TextWorker) -> str:
    found = find_template(model_folder(folder, "byte-level", chat_template=template), worker)
    assert found is not None
    return found.render(HI)


def assert_serves(worker: TextWorker, folder: Path) -> None:
    """The worker, or the one that follows it, encodes with a good vocabulary."""
    good = folder / "good"
    good.mkdir()
    tokenizer = load_tokenizer(model_folder(good, "byte-level"), worker)
    assert tokenizer.encode("hello") == shared_tokenizer("byte-level").encode("hello")


def assert_one_line(caught: "pytest.ExceptionInfo[CheckpointError]", name: str) -> None:
    assert name in str(caught.value)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 1000


# ---- the same results


@ALL_KINDS
def test_a_vocabulary_is_the_same_through_the_worker(kind: str, worker: TextWorker, tmp_path: Path) -> None:
    folder = model_folder(tmp_path, kind, add_bos_token=True)
    ours, theirs = local_tokenizer(folder), load_tokenizer(folder, worker)
    for name in ("vocab_size", "bos_id", "eos_id", "drops_leading_space"):
        assert getattr(theirs, name) == getattr(ours, name)
    ids = range(-1, ours.vocab_size + 10)
    assert list(map(theirs.token_bytes, ids)) == list(map(ours.token_bytes, ids))
    for token in ("<s>", "<|im_end|>", "hello", "<|eot_id|>", "no such token", ""):
        assert theirs.token_id(token) == ours.token_id(token)


@pytest.fixture(scope="module")
def remote(worker: TextWorker, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Tokenizer]:
    loaded: dict[str, Tokenizer] = {}

    def tokenizer(kind: str) -> Tokenizer:
        if kind not in loaded:
            loaded[kind] = load_tokenizer(model_folder(tmp_path_factory.mktemp(kind), kind), worker)
        return loaded[kind]

    return tokenizer


@ALL_KINDS
@given(text=texts)
@settings(deadline=None, max_examples=25)
def test_a_text_has_the_same_ids_through_the_worker(kind: str, text: str, remote: Callable[[str], Tokenizer]) -> None:
    assert remote(kind).encode(text) == shared_tokenizer(kind).encode(text)


def test_a_long_text_has_the_same_ids(remote: Callable[[str], Tokenizer]) -> None:
    text = "a ring of small machines, naïve café " * 12_000
    assert remote("byte-level").encode(text) == shared_tokenizer("byte-level").encode(text)


def test_ids_that_are_left_out_have_no_bytes(worker: TextWorker, tmp_path: Path) -> None:
    content = json.loads(byte_level_json())
    content["model"]["vocab"]["far"] = 5000
    (tmp_path / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    tokenizer = load_tokenizer(tmp_path, worker)
    assert (tokenizer.token_bytes(5000), tokenizer.token_bytes(4999)) == (b"far", b"")
    assert tokenizer.token_id("far") == 5000


def test_tools_reach_the_template_through_the_worker(worker: TextWorker, tmp_path: Path) -> None:
    source = "<tool_call>{{ tools[0].function.name }} {{ messages[0].tool_calls[0].function.arguments.city }}"
    template = find_template(model_folder(tmp_path, "byte-level", chat_template=source), worker)
    assert template is not None and template.tool_format == "tagged"
    called = {"role": "assistant", "content": "", "tool_calls": [{"function": {"arguments": {"city": "Rome"}}}]}
    assert template.render([called], [{"function": {"name": "weather"}}]) == "<tool_call>weather Rome"


def test_a_folder_is_read_again_when_it_is_opened_again(worker: TextWorker, tmp_path: Path) -> None:
    assert render(tmp_path, "one", worker) == "one"
    assert render(tmp_path, "two {{ messages[0].content }}", worker) == "two Hi"


def test_several_threads_may_ask(remote: Callable[[str], Tokenizer]) -> None:
    tokenizer, local = remote("byte-level"), shared_tokenizer("byte-level")
    words = [f"hello ring {n}" for n in range(40)]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(tokenizer.encode, words)) == list(map(local.encode, words))


# ---- hostile templates

HOSTILE_TEMPLATES = {
    "doubling strings": (
        "{% set ns = namespace(x='ab') %}{% for i in range(60) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
        "needs more than",
    ),
    "doubling lists": (
        "{% set ns = namespace(x=[1]) %}{% for i in range(60) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
        "needs more than",
    ),
    "a long string": ("{{ 'x' * 10 ** 12 }}", "needs more than"),
    "a wide number": ("{{ '%0999999999d' | format(1) }}", "needs more than"),
    "a padded date": ("{{ strftime_now('%Y' * 999999999) }}", "needs more than"),
    "much output": ("{% for i in range(9999) %}{{ 'x' * 1000 }}{% endfor %}", "gives more than"),
    "a long range": ("{% for i in range(10 ** 9) %}{% endfor %}", "Range too big"),
    "recursion": ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "recursion"),
    "blocks in blocks": ("{% for i in [1] %}" * 40 + "{% endfor %}" * 40, "nested"),
    "brackets in brackets": ("{{ " + "(" * 20_000 + "1" + ")" * 20_000 + " }}", "recursion|nested|memory"),
}


@pytest.mark.parametrize("case", HOSTILE_TEMPLATES)
def test_a_hostile_template_is_one_line(case: str, tmp_path: Path) -> None:
    template, reason = HOSTILE_TEMPLATES[case]
    with TextWorker(SMALL) as worker:
        with pytest.raises(CheckpointError, match=f"(?i){reason}.*--prompt-style none") as caught:
            render(tmp_path, template, worker)
        assert_one_line(caught, "tokenizer_config.json: ")
        assert_serves(worker, tmp_path)


ENDLESS_TEMPLATES = {
    "loops in loops": ENDLESS,
    "lorem ipsum": "{{ lipsum(n=99999, min=9999, max=10000) }}",
    "a power that is computed when it is compiled": "{{ 9 ** (9 ** 9) }}",
    "a power that is computed when it is rendered": "{% set n = messages | length + 8 %}{{ n ** (n ** n) }}",
}


@pytest.mark.slow
@pytest.mark.parametrize("case", ENDLESS_TEMPLATES)
def test_a_template_without_end_is_one_line(case: str, tmp_path: Path) -> None:
    with TextWorker(QUICK) as worker:
        with pytest.raises(CheckpointError, match=r"took more than 1 s; try --prompt-style none") as caught:
            render(tmp_path, ENDLESS_TEMPLATES[case], worker)
        assert_one_line(caught, "tokenizer_config.json: the chat template ")
        assert_serves(worker, tmp_path)


def test_a_template_in_a_file_of_its_own_is_named(tmp_path: Path) -> None:
    (tmp_path / "chat_template.jinja").write_text(ENDLESS, encoding="utf-8")
    with TextWorker(QUICK) as worker, pytest.raises(CheckpointError, match=r"chat_template\.jinja: the chat template"):
        render(tmp_path, "", worker)


# ---- hostile vocabularies


def _splits(pattern: str) -> dict[str, Any]:
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    return {"type": "Sequence", "pretokenizers": [split, byte_level]}


def _replaces(old: str, new: str, times: int = 1) -> dict[str, Any]:
    return {
        "type": "Sequence",
        "normalizers": [{"type": "Replace", "pattern": {"String": old}, "content": new}] * times,
    }


def _puts_in_front(tokens: dict[str, Any]) -> dict[str, Any]:
    single = [{"SpecialToken": {"id": "X", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    return {"type": "TemplateProcessing", "single": single, "pair": [], "special_tokens": tokens}


MANY_X = {"X": {"id": "X", "ids": [7] * 10_000, "tokens": ["X"] * 10_000}}
HOSTILE_VOCABULARIES: dict[str, tuple[dict[str, Any], str]] = {
    "a normalizer that multiplies": ({"normalizer": _replaces("a", "a" * 100, times=6)}, "needs more than"),
    "a normalizer that gives too much": ({"normalizer": _replaces("a", "a " * 30)}, "gives more than"),
    "a regular expression that backtracks": ({"pre_tokenizer": _splits("(a+)+b")}, "failed|took more"),
    "a damaged table": ({"normalizer": {"type": "Precompiled", "precompiled_charsmap": "BAAAAP////8A"}}, "failed"),
    "a missing token": ({"post_processor": _puts_in_front({})}, "failed"),
    "many tokens in front": ({"post_processor": _puts_in_front(MANY_X)}, "10000 tokens in front"),
    "tokens that decode to much": (
        {"decoder": {"type": "Replace", "pattern": {"String": ""}, "content": "x" * 1_000_000}},
        "needs more than",
    ),
    "tokens that decode to too much": (
        {"decoder": {"type": "Replace", "pattern": {"String": "e"}, "content": "x" * 200_000}},
        "gives more than",
    ),
    "an id without bound": (
        {"model": {"type": "WordLevel", "vocab": {"a": 4_294_967_295}, "unk_token": "a"}, "added_tokens": []},
        "token id 4294967295",
    ),
}


@pytest.mark.parametrize("case", HOSTILE_VOCABULARIES)
def test_a_hostile_vocabulary_is_one_line(case: str, tmp_path: Path) -> None:
    changes, reason = HOSTILE_VOCABULARIES[case]
    content = json.dumps(json.loads(byte_level_json()) | changes)
    (tmp_path / "tokenizer.json").write_text(content, encoding="utf-8")
    with TextWorker(SMALL) as worker:
        with pytest.raises(CheckpointError, match=reason) as caught:
            load_tokenizer(tmp_path, worker).encode("a" * 2000)
        assert_one_line(caught, "tokenizer.json: ")
        assert_serves(worker, tmp_path)


def test_a_file_of_gigabytes_is_not_read(worker: TextWorker, tmp_path: Path) -> None:
    with (tmp_path / "tokenizer.model").open("wb") as file:
        file.truncate(3 << 30)
    with pytest.raises(CheckpointError, match=r"tokenizer\.model: 3\.22 GB"):
        load_tokenizer(tmp_path, worker)


def test_a_text_without_end_is_refused_before_it_is_sent(remote: Callable[[str], Tokenizer]) -> None:
    with pytest.raises(ConfigError, match=r"16\.78 MB are allowed"):
        remote("byte-level").encode("x" * (MAX_TEXT_BYTES + 1))


DAMAGED = [
    ("tokenizer.json", b""),
    ("tokenizer.json", b"[" * 200_000),
    ("tokenizer.json", b'{"model": {}}'),
    ("tokenizer.model", b""),
    ("tokenizer.model", vocabulary("sentencepiece")[1][:500]),
    ("tokenizer.model", vocabulary("llama3")[1][:200]),
]


@pytest.mark.parametrize(("name", "data"), DAMAGED)
def test_a_damaged_vocabulary_is_one_line(name: str, data: bytes, worker: TextWorker, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(CheckpointError) as caught:
        load_tokenizer(tmp_path, worker)
    assert_one_line(caught, name)


# ---- answers of a worker that a file has taken over


class Impostor(TextWorker):
    """Answers every request with one frame."""

    def __init__(self, answer: Frame) -> None:
        super().__init__()
        self.answer = answer

    def ask(self, request: Request, read: Callable[[Frame], Any]) -> Any:
        return read(self.answer)


TWO_TOKENS = array("I", [1, 1]).tobytes() + b"ab"
DESCRIPTION = {
    "vocab_size": 2,
    "n_ids": 2,
    "bos_id": None,
    "eos_id": 1,
    "prefix": [0],
    "drops_leading_space": False,
}


def impostor(changes: dict[str, object], payload: bytes, folder: Path) -> WorkerVocabulary:
    return WorkerVocabulary(model_folder(folder, "byte-level"), Impostor(Frame(DESCRIPTION | changes, payload)))


def test_a_description_of_the_right_shape_is_taken(tmp_path: Path) -> None:
    two = impostor({}, TWO_TOKENS, tmp_path)
    assert [two.token_bytes(i) for i in range(-1, 3)] == [b"", b"a", b"b", b""]


@pytest.mark.parametrize(
    ("changes", "payload"),
    [
        ({"vocab_size": "2"}, TWO_TOKENS),
        ({"vocab_size": 3}, TWO_TOKENS),
        ({"n_ids": 1 << 40}, TWO_TOKENS),
        ({"n_ids": -1, "vocab_size": -1}, TWO_TOKENS),
        ({"bos_id": 2}, TWO_TOKENS),
        ({"eos_id": -1}, TWO_TOKENS),
        ({"eos_id": True}, TWO_TOKENS),
        ({"prefix": [0, None]}, TWO_TOKENS),
        ({"prefix": 0}, TWO_TOKENS),
        ({"drops_leading_space": None}, TWO_TOKENS),
        ({}, TWO_TOKENS[:-1]),
        ({}, TWO_TOKENS + b"c"),
        ({}, TWO_TOKENS[:3]),
        ({}, b""),
    ],
)
def test_a_description_of_another_shape_is_refused(changes: dict[str, object], payload: bytes, tmp_path: Path) -> None:
    with pytest.raises(FrameError):
        impostor(changes, payload, tmp_path)


@pytest.mark.parametrize("payload", [array("I", [2]).tobytes(), array("I", [0, 1, 1 << 31]).tobytes(), b"\0\0\0\0\0"])
def test_ids_beyond_the_vocabulary_are_refused(payload: bytes, tmp_path: Path) -> None:
    two = impostor({}, TWO_TOKENS, tmp_path)
    two._worker.answer = Frame({}, payload)  # type: ignore[attr-defined]
    with pytest.raises(FrameError):
        two.encode("ab")


def test_a_rendered_text_is_utf_8(tmp_path: Path) -> None:
    with pytest.raises(FrameError):
        WorkerTemplate(tmp_path, Impostor(Frame({}, b"\xff"))).render(HI)


@pytest.mark.parametrize("answer", [{"exists": True, "tool_format": "xml"}, {"exists": 1, "tool_format": None}, {}])
def test_a_template_that_is_described_in_another_shape_is_refused(answer: dict[str, object], tmp_path: Path) -> None:
    with pytest.raises(FrameError):
        find_template(tmp_path, Impostor(Frame(answer)))


# ---- the process


def test_memory_stays_below_the_limit(tmp_path: Path) -> None:
    """In a process of its own, whose only child is the worker: the kernel keeps the peak of children together."""
    template, _ = HOSTILE_TEMPLATES["doubling lists"]
    code = (
        "import resource, sys; from pathlib import Path\n"
        "from mdi.errors import CheckpointError\n"
        "from mdi.text.worker_client import find_template; from mdi.text.worker_process import Limits, TextWorker\n"
        "with TextWorker(Limits(base_bytes=96 << 20)) as worker:\n"
        "    template = find_template(Path(sys.argv[1]), worker)\n"
        "    try: template.render([])\n"
        "    except CheckpointError as exc: assert 'needs more than' in str(exc)\n"
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
    )
    done = run_python(code, model_folder(tmp_path, "byte-level", chat_template=template))
    assert int(done) * 1024 < (96 << 20) + (64 << 20)  # the libraries' code is no data


def run_python(code: str, folder: Path, cwd: Path = SRC, **variables: str) -> str:
    environment = os.environ | {"PYTHONPATH": str(SRC)} | variables
    command = [sys.executable, "-c", code, str(folder)]
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


USE_BOTH = (
    "import sys; from pathlib import Path\n"
    "from mdi.text import prompts, styles; from mdi.text.tokenizer import load_tokenizer\n"
    "from mdi.text.worker_process import TextWorker\n"
    "with TextWorker() as worker:\n"
    "    folder = Path(sys.argv[1]); tokenizer = load_tokenizer(folder, worker)\n"
    "    style = styles.load_style(folder, 'x', tokenizer, worker, 'chat-template')\n"
    "    print(prompts.encode_prompt(tokenizer, style, 'hello'))\n"
)
SAYS_HELLO = "{{ messages[0].content }} hello"


@ALL_KINDS
def test_the_program_itself_imports_no_library_for_text(kind: str, tmp_path: Path) -> None:
    folder = model_folder(tmp_path, kind, chat_template=SAYS_HELLO)
    check = "print({'torch', 'litgpt', 'jinja2', 'tokenizers', 'sentencepiece', 'tiktoken'} & set(sys.modules))"
    ids, imported = run_python(USE_BOTH + check, folder).splitlines()
    assert json.loads(ids) == shared_tokenizer(kind).encode("hello hello")
    assert imported == "set()"


@pytest.mark.parametrize("locale", ["C", "C.UTF-8"])
def test_the_worker_starts_wherever_the_program_does(locale: str, tmp_path: Path) -> None:
    """Its packages are those of the program, whatever lies in the working directory."""
    folder = tmp_path / "Modèle \u6a21\u578b"
    folder.mkdir()
    for name in ("json.py", "tokenizers.py", "socket.py"):
        (folder / name).write_text("raise SystemExit('not this one')", encoding="utf-8")
    model_folder(folder, "byte-level", chat_template=SAYS_HELLO)
    variables = {"PYTHONSAFEPATH": "1", "LC_ALL": locale, "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    # Python before 3.11 knows no safe path, and would take its own modules from there.
    code = "import sys; sys.path = [p for p in sys.path if p]\n" + USE_BOTH
    cwd = folder if sys.version_info >= (3, 11) else tmp_path
    assert json.loads(run_python(code, folder, cwd, **variables)) == shared_tokenizer("byte-level").encode(
        "hello hello"
    )


def busy(pid: int | None) -> bool:
    """Whether a worker computes: starting it takes a third of this."""
    return pid is not None and psutil.Process(pid).cpu_times().user > 1.0


def test_a_worker_that_is_killed_is_one_line_and_the_next_request_works(tmp_path: Path) -> None:
    errors: list[str] = []

    def ask(worker: TextWorker) -> None:
        with pytest.raises(CheckpointError) as caught:
            render(tmp_path, ENDLESS, worker)
        errors.append(str(caught.value))

    with TextWorker() as worker:
        asking = threading.Thread(target=ask, args=(worker,))
        asking.start()
        pid = worker.pid
        assert pid is not None
        wait_until(lambda: busy(pid), 60, "the worker computes")
        os.kill(pid, 9)
        asking.join()
        assert "tokenizer_config.json: the chat template ended its process (signal SIGKILL); try" in errors[0]
        assert_serves(worker, tmp_path)
        assert worker.pid != pid


def test_a_worker_that_died_in_between_is_replaced(tmp_path: Path) -> None:
    with TextWorker() as worker:
        tokenizer = load_tokenizer(model_folder(tmp_path, "byte-level"), worker)
        pid = worker.pid
        assert pid is not None
        os.kill(pid, 9)
        wait_until(lambda: psutil.Process(pid).status() == psutil.STATUS_ZOMBIE, 60, "it is dead")
        assert tokenizer.encode("hello") == shared_tokenizer("byte-level").encode("hello")
        worker.close()
        assert worker.pid is None
        assert tokenizer.decode(tokenizer.encode("hello")) == "hello"


def test_closing_ends_a_request_of_another_thread(tmp_path: Path) -> None:
    with TextWorker() as worker:
        asking = ThreadPoolExecutor(1)
        answer = asking.submit(render, tmp_path, ENDLESS, worker)
        wait_until(lambda: busy(worker.pid), 60, "the worker computes")
        worker.close()
        with pytest.raises(CheckpointError, match="SIGKILL"):
            answer.result(60)
        asking.shutdown()


def test_a_busy_worker_ends_with_the_program_that_is_killed(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path\n"
        "from mdi.text.worker_client import find_template; from mdi.text.worker_process import TextWorker\n"
        "with TextWorker() as worker:\n"
        "    print(worker.pid, flush=True); find_template(Path(sys.argv[1]), worker).render([])"
    )
    folder = model_folder(tmp_path, "byte-level", chat_template=ENDLESS)
    program = subprocess.Popen([sys.executable, "-c", code, str(folder)], cwd=SRC, stdout=subprocess.PIPE)
    with program:
        assert program.stdout is not None
        pid = int(program.stdout.readline())
        wait_until(lambda: busy(pid), 60, "the worker computes")
        program.kill()
    wait_until(lambda: has_ended(pid), 20, "the worker has ended, long before its time is over")


def test_input_that_comes_while_a_request_is_served_does_not_end_the_worker(tmp_path: Path) -> None:
    """The kernel may be late with the signal for the request itself."""
    with TextWorker() as worker, ThreadPoolExecutor(1) as asking:
        answer = asking.submit(render, tmp_path, ENDLESS, worker)
        wait_until(lambda: busy(worker.pid), 60, "the worker computes")
        assert worker._process is not None
        worker._process._socket.send(b"\0")
        used_s = psutil.Process(worker.pid).cpu_times().user
        wait_until(lambda: psutil.Process(worker.pid).cpu_times().user > used_s + 0.1, 60, "the worker goes on")
        worker.close()
        with pytest.raises(CheckpointError, match="SIGKILL"):
            answer.result(60)


def has_ended(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE  # of whoever adopted it
    except psutil.NoSuchProcess:
        return True


def test_the_worker_has_a_session_of_its_own_dumps_no_core_and_goes_first_where_memory_is_short(
    worker: TextWorker, tmp_path: Path
) -> None:
    load_tokenizer(model_folder(tmp_path, "byte-level"), worker)
    pid = worker.pid
    assert pid is not None
    assert os.getsid(pid) == pid != os.getsid(0)
    if hasattr(psutil.Process, "rlimit"):
        assert psutil.Process(pid).rlimit(psutil.RLIMIT_CORE) == (0, 0)
        assert Path(f"/proc/{pid}/oom_score_adj").read_text() == "1000\n"


def test_a_missing_library_is_told_as_such(tmp_path: Path) -> None:
    """As the scripts tell it of a library that they import themselves."""
    shadow = tmp_path / "shadow"
    shadow.mkdir()
    (shadow / "tokenizers.py").write_text("raise ModuleNotFoundError('gone', name='tokenizers')", encoding="utf-8")
    code = "def use():\n" + textwrap.indent(USE_BOTH, "    ") + "try: use()\nexcept ImportError as exc: print(exc.name)"
    folder = model_folder(tmp_path, "byte-level")
    assert run_python(code, folder, PYTHONPATH=f"{SRC}{os.pathsep}{shadow}") == "tokenizers\n"
