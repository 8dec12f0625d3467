"""Options that do not fit the model or the machine are refused before the run begins."""

import shutil
from pathlib import Path

import pytest

from support.runs import NO_WAITING, run_alone
from support.scripts import (
    Network,
    Scripts,
    one_line_error,
    read_samples,
    write_network,
)

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    ("arguments", "code", "pattern"),
    [
        (["--prompt", "x" * 128], 2, r"longest prompt takes 128 tokens; the context of 128"),
        (["--prompt", "x" * 500], 2, r"longest prompt takes 500 tokens; the context of 128"),
        (["--prompt", "x" * 9, "--block-size", "9"], 2, r"takes 9 tokens; the context of 9"),
        (["--block-size", "129"], 2, r"--sequence-length 129: this model's context is 128"),
        (["--prompt", "FILE:{tmp}/no.txt"], 2, r"no\.txt: no such file"),
        (["--prompt", "FILE:{tmp}/empty.txt"], 2, r"empty\.txt: the prompt file holds no text"),
        (["--prompt", "FILE:{tmp}/binary.txt"], 2, r"binary\.txt: .*not UTF-8"),
        (["--prompt", "FILE:{tmp}/prompts.json"], 2, r"prompts\.json: a prompt file must end in"),
        (["--prompt-style", "victorian"], 2, r"--prompt-style victorian: unknown; choose one of none, "),
        (["--prompt-style", "chat-template"], 2, r"--prompt-style chat-template: .*no chat template"),
        (["--logit-bias", "320=1"], 2, r"--logit-bias 320: this model's token ids are 0 to 319"),
        (["--split", "2,2,2"], 2, r"--split 2,2,2: 3 counts"),
        (["--split", "evenly"], 2, r"--split 'evenly'"),
        (["--device", "cuda"], 2, r"device cuda: torch finds 0 CUDA devices"),
        (["--device", "cuda:7"], 2, r"device cuda:7: torch finds \d CUDA devices"),
        (["--device", "cuda:07"], 2, r"device cuda:07"),
        (["--device", "cuda:4096"], 2, r"device cuda:4096"),
        (["--device", "mps"], 2, r"device mps"),
        (["--time-run", "{tmp}/other.csv"], 2, r"other\.csv: begins with 'a,b"),
        (["--time-run", "{tmp}"], 2, r"is a folder"),
        (["--time-run", "{tmp}/empty.txt/runs.csv"], 2, r"runs\.csv"),
        (["--time-run", "/proc/none/runs.csv"], 2, r"/proc/none does not exist"),
        (["--output", "{tmp}"], 2, r"is a folder"),
        (["--output", "{tmp}/empty.txt/out.jsonl"], 2, r"out\.jsonl"),
        (["--output", "/proc/none/out.jsonl"], 2, r"/proc/none does not exist"),
    ],
    ids=str,
)
def test_a_run_that_cannot_work_is_refused_before_it_begins(
    arguments: list[str], code: int, pattern: str, scripts: Scripts, alone: Network, tiny: Path, tmp_path: Path
) -> None:
    if "cuda" in arguments[1] and shutil.which("nvidia-smi"):
        pytest.skip("this machine has what the test takes away")
    (tmp_path / "empty.txt").touch()
    (tmp_path / "binary.txt").write_bytes(b"abc\xff\xfe")
    (tmp_path / "prompts.json").write_text("[]")
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    filled = [str(argument).format(tmp=tmp_path) for argument in arguments]
    result = run_alone(scripts, alone, tiny, *filled)
    one_line_error(result, code, pattern)
    assert result.stdout == ""


def test_an_empty_prompt_becomes_bos_or_an_error(scripts: Scripts, alone: Network, model: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    assert run_alone(scripts, alone, model, "--prompt", "", "--output", output).code == 0
    samples, _ = read_samples(output)
    assert [sample["prompt_tokens"] for sample in samples] == [1]
    (model / "tokenizer_config.json").write_text("{}")
    (model / "generation_config.json").write_text("{}")
    one_line_error(run_alone(scripts, alone, model, "--prompt", ""), 2, r"the prompt is empty, and this model has no")


@pytest.mark.parametrize(
    ("n_nodes", "arguments", "pattern"),
    [
        (7, [], r"6 layers can be split over 1 to 6 nodes, not 7"),
        (3, ["--split", "table"], r"no split of 6 layers over 3 nodes; use --split auto"),
        (3, ["--split", "3,3"], r"--split 3,3: 2 counts with the sum 6; this run needs 3 counts"),
        (3, ["--split", "0,3,3"], r"--split 0,3,3"),
        (3, ["--split", "2,2,x"], r"--split '2,2,x'"),
    ],
)
def test_a_split_that_does_not_exist_is_refused(
    n_nodes: int, arguments: list[str], pattern: str, scripts: Scripts, tiny: Path, tmp_path: Path
) -> None:
    network = write_network(tmp_path / "net.json", n_nodes)
    result = scripts.run("starter.py", "--ckpt", tiny, "--nodes-config", network.path, *NO_WAITING, *arguments)
    one_line_error(result, 2, pattern)
