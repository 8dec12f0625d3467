"""Texts and paths beyond ASCII on command lines, in locales that have few characters or none beyond it."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from support.hf_folders import make_hf_folder
from support.models import make_model
from support.paths import ROOT
from support.scripts import write_network

pytestmark = pytest.mark.slow

ASCII = {"LC_ALL": "C", "LANG": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
NAME = "Modèle-模型"
PROMPT = "Grüße, 世界"


def run(
    *arguments: object, env: dict[str, str], cwd: Path | None = None, code: int = 0
) -> "subprocess.CompletedProcess[bytes]":
    """A script, as a process in that environment alone."""
    script, *options = arguments
    variables = {"PATH": os.environ["PATH"], "HOME": str(cwd or ROOT), "OMP_NUM_THREADS": "1", **env}
    command = [sys.executable, f"src/{script}", *map(str, options)]
    done = subprocess.run(command, env=variables, cwd=ROOT, capture_output=True, check=False, timeout=300)
    assert done.returncode == code, done.stderr
    assert b"Traceback" not in done.stderr
    return done


def test_a_model_is_prepared_and_asked_in_the_c_locale(tmp_path: Path) -> None:
    source, home = make_hf_folder(tmp_path / NAME / "minute"), tmp_path / "Zuhause-ü"
    arguments = ("prepare_model.py", source, "--ckpt-folder", home, "--n-nodes", 1)
    for _ in range(2):  # what the first one wrote of paths, the second one reads
        done = run(*arguments, env=ASCII)
    model = home / "local" / "minute"
    assert done.stdout.decode() == f"{model}: layers per node 2\n"
    assert f"{model} is prepared already" in done.stderr.decode()
    network, output = write_network(tmp_path / "ä.json", 1), tmp_path / "ö.jsonl"
    timeline, times = tmp_path / "ß.json", tmp_path / "ü.csv"
    done = run(
        "starter.py", "--ckpt", model, "--nodes-config", network.path, "--prompt", PROMPT, "--prompt-style", "none",
        "--n-tokens", 2, "--n-samples", 1, "--output", output, "--timeline", timeline, "--time-run", times, env=ASCII,
    )  # fmt: skip
    assert PROMPT in done.stdout.decode()
    assert json.loads(output.read_text(encoding="utf-8").splitlines()[0])["prompt"] == PROMPT
    assert timeline.is_file() and times.is_file()


def test_an_error_names_the_path_as_it_was_typed(tmp_path: Path) -> None:
    done = run("prepare_model.py", tmp_path / NAME, env=ASCII, code=2)
    assert done.stderr.decode().startswith(f"error: {tmp_path}/{NAME}: no such file or folder")


def test_other_scripts_take_such_paths_too(tmp_path: Path) -> None:
    key, csv = tmp_path / "Schlüssel", tmp_path / "Speicher-ä.csv"
    assert f"{key}: a new key" in run("starter.py", "--make-key", key, env=ASCII).stdout.decode()
    run("mem_monitor.py", f"echo {PROMPT}", "-o", csv, "-i", "0.01", env=ASCII)
    assert csv.is_file()
    done = run("secondary.py", "--nodes-config", tmp_path / "nö.json", 0, env=ASCII, code=2)
    assert f"{tmp_path}/nö.json: " in done.stderr.decode()
    done = run("status.py", "--nodes-config", tmp_path / "nö.json", env=ASCII, code=2)
    assert f"{tmp_path}/nö.json: " in done.stderr.decode()


@pytest.fixture
def latin1(tmp_path: Path) -> dict[str, str]:
    """The environment of a terminal in ISO 8859-1."""
    if shutil.which("localedef") is None:
        pytest.skip("no localedef on this machine")
    locale = tmp_path / "locales" / "en_US.ISO-8859-1"
    locale.parent.mkdir()
    made = subprocess.run(
        ["localedef", "-i", "en_US", "-f", "ISO-8859-1", str(locale)], capture_output=True, check=False
    )
    if not locale.is_dir():
        pytest.skip(f"no such locale here: {made.stderr.decode(errors='replace')}")
    return {"LC_ALL": locale.name, "LOCPATH": str(locale.parent)}


def in_latin1(text: str) -> str:
    """The argument by which this process hands `text` to one in that locale."""
    return os.fsdecode(text.encode("iso8859-1"))


def test_a_model_is_prepared_and_asked_in_latin1(latin1: dict[str, str], tmp_path: Path) -> None:
    """Names of files are bytes: those of others, in UTF-8, look odd in this locale and mean the same file."""
    source, home = make_hf_folder(tmp_path / NAME / "minute"), tmp_path / "Zuhause-ü"
    run("prepare_model.py", source, "--ckpt-folder", home, "--n-nodes", 1, env=latin1)
    run("prepare_model.py", source, "--ckpt-folder", home, "--n-nodes", 1, env=latin1)
    network, output = write_network(tmp_path / "ä.json", 1), tmp_path / "ö.jsonl"
    done = run(
        "starter.py", "--ckpt", home / "local" / "minute", "--nodes-config", network.path, "--n-samples", 1,
        "--prompt", in_latin1("Grüße"), "--prompt-style", "none", "--n-tokens", 2, "--output", output, env=latin1,
    )  # fmt: skip
    assert "Grüße".encode("iso8859-1") in done.stdout
    assert json.loads(output.read_text(encoding="utf-8").splitlines()[0])["prompt"] == "Grüße"


def test_a_folder_whose_name_is_not_utf8_is_told(latin1: dict[str, str], tmp_path: Path) -> None:
    folder = make_model(tmp_path / "org" / "model").rename(in_latin1(f"{tmp_path}/org/Modèle"))
    done = run("prepare_model.py", folder, "--n-nodes", 2, env=latin1, code=1)
    assert "its name is not UTF-8: choose another" in done.stderr.decode("iso8859-1")


@pytest.mark.parametrize("env", [{"LC_ALL": "C.UTF-8"}, ASCII], ids=["UTF-8", "ASCII"])
def test_an_argument_that_is_no_text_is_one_line(env: dict[str, str]) -> None:
    done = run("starter.py", "--prompt", in_latin1("Grüße"), env=env, code=2)
    line = done.stderr.decode()
    assert line.endswith("is not UTF-8 text: type it in that encoding, or rename the file\n") and line.count("\n") == 1
