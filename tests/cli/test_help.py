"""`--help` answers at once, tells every option, and its defaults are those of the contract."""

import os
import re
import subprocess
import sys
import time

import pytest

from support.paths import SRC

NAMES = sorted(path.name for path in SRC.glob("*.py"))
SLOW = {
    "torch",
    "litgpt",
    "lightning",
    "numpy",
    "matplotlib",
    "cherrypy",
    "requests",
    "httpx",
    "zeroconf",
    "rich",
    "prompt_toolkit",
    "huggingface_hub",
    "transformers",
}
HELP_S = 3.0  # ten times what is promised; importing torch is seen by what is imported

OPTIONS = {
    "starter.py": """-v --verb -d --debug -p --plots -c --compile --ckpt --chunk --nodes-config --device --prompt
        --n-samples --n-tokens --sequence-length --context-length --block-size --dtype --time-run --seed --temperature
        --top-k --top-p --min-p --frequency-penalty --presence-penalty --repetition-penalty --logit-bias --logprobs
        --ignore-eos --keep-nodes --prompt-style --split --stream --output""",
    "secondary.py": """-v -d -c --verb --debug --compile --device --dtype --seed --chunk --nodes-config --ckpt
        --cache-dir""",
    "prepare_model.py": """MODEL --random --ckpt-folder --model-name --n-nodes --hf-token --dtype --device
        --nodes-config --split""",
    "prepare_data.py": "DATA --tokenizer --vocab-size --out",
    "sample.py": "--n-samples --n-tokens --ckpt --prompt",
    "plot_tok_time.py": "MODEL --n-samples",
    "chat.py": "-v --verb -c --compile --ckpt --device --seed --url --api-key --nodes-config",
    "mem_monitor.py": "CMD -o -i --img",
}
DEFAULTS = {
    "starter.py": {
        "--prompt": "Who are you?",
        "--n-samples": "3",
        "--n-tokens": "300",
        "--seed": "10137",
        "--temperature": "0.8",
        "--top-k": "200",
        "--top-p": "1.0",
        "--split": "auto",
        "--nodes-config": str(SRC / "settings_distr" / "configuration.json"),
    },
    "secondary.py": {"--seed": "10137", "--port": "8088"},
    "prepare_model.py": {
        "--ckpt-folder": str(SRC / "checkpoints"),
        "--device": "cpu",
    },
    "sample.py": {"--n-samples": "1", "--n-tokens": "800"},
}


def run_help(script: str, *python_options: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, *python_options, str(SRC / script), "--help"],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"COLUMNS": "400"},  # an entry of the help in one line
        cwd="/",
    )


def entries_of(script: str) -> list[str]:
    """The entries of a help text, each in one line."""
    _, _, options = run_help(script).stdout.partition("\n\n")
    return re.sub(r"\n {4,}(?=\S)", "  ", options).splitlines()


@pytest.mark.parametrize("script", NAMES)
def test_help_answers_at_once(script: str) -> None:
    def seconds() -> float:
        began = time.monotonic()
        done = run_help(script)
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.startswith("usage: ")
        return time.monotonic() - began

    assert seconds() < HELP_S


@pytest.mark.parametrize("script", NAMES)
def test_help_imports_nothing_slow(script: str) -> None:
    imported = re.findall(r"\| +([\w.]+)$", run_help(script, "-X", "importtime").stderr, re.M)
    assert "argparse" in imported
    assert SLOW & {name.partition(".")[0] for name in imported} == set()


@pytest.mark.parametrize("script", OPTIONS)
def test_every_option_of_the_contract_is_in_the_help(script: str) -> None:
    text = run_help(script).stdout
    told = set(re.findall(r"(?<![\w-])(--?[a-z][\w-]*|[A-Z]{3,})", text))
    assert set(OPTIONS[script].split()) <= told


@pytest.mark.parametrize("script", DEFAULTS)
def test_the_defaults_are_those_of_the_contract(script: str) -> None:
    entries = entries_of(script)
    for option, default in DEFAULTS[script].items():
        (entry,) = [line for line in entries if re.match(rf"  (-\w, )?(-.*, )?{option}[ ,]", line)]
        assert entry.endswith(f"(default: {default})"), entry


@pytest.mark.parametrize("script", ["starter.py", "secondary.py", "prepare_model.py", "chat.py"])
def test_every_option_has_a_help_text(script: str) -> None:
    entries = [entry for entry in entries_of(script) if entry.startswith("  -")]
    assert len(entries) > 8
    assert [entry for entry in entries if not re.search(r"\S {2,}\S", entry)] == []
