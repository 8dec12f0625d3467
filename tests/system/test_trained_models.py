"""Small models as their users get them: trained on the shipped text, split over three nodes, and used."""

import csv
import functools
import math
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mdi.cli.serve_options import served_url
from support.paths import ROOT, SRC
from support.scripts import Network, Process, Scripts, WarmPython, read_samples, wait_until, write_network

pytestmark = pytest.mark.slow

SHAKESPEARE = ROOT / "data" / "shakespeare"
TOKENIZERS = {"characters": ("character",), "byte pairs": ("bpe", "--vocab-size", 500)}
N_TOKENS_OF = {"characters": 63, "byte pairs": 500}  # of these vocabularies
GAIN = 1.0  # Weights that know nothing of the text lose the logarithm of the vocabulary's size at least.
STEPS = 24
# Six layers of 128 values, with the vocabulary of the text: a step takes some 0.04 s on one core.
SHAPE = ("--model", "pythia-14m", "--context-length", 32, "--batch-size", 8)
RUN = ("--max-iters", STEPS, "--ckpt-interval", STEPS // 2, "--eval-iters", 2, "--lr", 3e-3, "--device", "cpu")
GPT2 = ("--random", "nanoGPT-7", "--n-embd", 96)  # its architecture, untrained
PROMPT = "But hear me"
GREEDY = ("--temperature", 0, "--n-tokens", 20)  # prompt and tokens fit the context
PATIENCE_S = 300.0


@pytest.fixture(scope="module")
def programs(warm: WarmPython, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scripts]:
    with Scripts(tmp_path_factory.mktemp("programs"), warm) as running:
        yield running


@pytest.fixture(scope="module")
def model_of(programs: Scripts, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Makes each of the models once."""
    base = tmp_path_factory.mktemp("models")

    @functools.cache
    def make(kind: str) -> Path:
        if kind == "GPT-2":
            return Path(finished(programs, "prepare_model.py", *GPT2, "--ckpt-folder", base).strip())
        folder, dataset = base / kind, base / f"tokens of {kind}"
        tokenizer = ("--tokenizer", *TOKENIZERS[kind])
        finished(programs, "prepare_data.py", SHAKESPEARE, *tokenizer, "--out", dataset)
        finished(programs, "train.py", *SHAPE, *RUN, "--dataset", dataset, "--ckpt", folder)
        return folder

    return make


def finished(programs: Scripts, name: str, *arguments: object) -> str:
    """What a program printed that did its work."""
    result = programs.run(name, *arguments, timeout_s=PATIENCE_S)
    assert result.code == 0, result.stderr
    return result.stdout


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_training_on_the_shipped_text_teaches_more_than_chance(kind: str, model_of: Callable[[str], Path]) -> None:
    with (model_of(kind) / "training.csv").open(encoding="utf-8") as file:
        losses = [float(row["val_loss"]) for row in csv.DictReader(file) if row["val_loss"]]
    assert len(losses) == 2
    assert losses[-1] == min(losses) < math.log(N_TOKENS_OF[kind]) - GAIN


@pytest.mark.parametrize("kind", [*TOKENIZERS, "GPT-2"])
def test_a_chat_with_three_nodes_goes_on_as_sample_does_on_one(
    kind: str, model_of: Callable[[str], Path], scripts: Scripts, alone: Network, tmp_path: Path
) -> None:
    """None of these models has a chat template, which is said once."""
    folder = model_of(kind)
    completion = sampled(scripts, folder, alone, tmp_path / "samples.jsonl")
    printed = finished(scripts, "prepare_model.py", folder, "--n-nodes", 3)
    assert printed.startswith(f"{folder}: layers per node ")
    chat = chatted(serve(scripts, folder, write_network(tmp_path / "three.json", 3)))
    assert chat.returncode == 0, chat.stderr
    assert chat.stdout.decode() == completion + "\n" * (not completion.endswith("\n"))
    told = f"{folder.name} has no chat template: it goes on from what you type, as one text"
    assert chat.stderr.decode().splitlines() == [told]


def sampled(scripts: Scripts, folder: Path, alone: Network, output: Path) -> str:
    """What `sample.py` generates."""
    arguments = ("--ckpt", folder, "--nodes-config", alone.path, "--dtype", "float32", "--output", output, *GREEDY)
    finished(scripts, "sample.py", "--prompt", PROMPT, *arguments)
    ((sample,), _) = read_samples(output)
    assert len(sample["tokens"]) == GREEDY[-1]
    return str(sample["completion"])


def serve(scripts: Scripts, folder: Path, network: Network) -> str:
    """Serve the model on all nodes of the network; the URL of its API."""
    scripts.secondaries(network)
    starter = scripts.start(
        "starter.py", "--ckpt", folder, "--nodes-config", network.path, "--dtype", "float32", "--serve", "127.0.0.1:0"
    )
    wait_until(lambda: url_of(starter) or not starter.alive, PATIENCE_S, "the ring serves")
    url = url_of(starter)
    assert url is not None, starter.stderr
    return url


def url_of(starter: Process) -> str | None:
    return next(filter(None, map(served_url, starter.stderr.splitlines(keepends=True))), None)


def chatted(url: str) -> "subprocess.CompletedProcess[bytes]":
    """What `chat.py` says where one line comes through a pipe."""
    command = [sys.executable, str(SRC / "chat.py"), "--url", url, *map(str, GREEDY)]
    return subprocess.run(command, input=f"{PROMPT}\n".encode(), capture_output=True, timeout=PATIENCE_S, check=False)
