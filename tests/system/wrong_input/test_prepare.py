"""What prepare_model.py refuses, and a disk that is full."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support.hub import StubHub, serve
from support.paths import ROOT
from support.scripts import (
    Scripts,
    free_ports,
    one_line_error,
)

pytestmark = pytest.mark.slow


def test_what_is_not_a_model_is_told(scripts: Scripts, tmp_path: Path, smollm2_gguf: Path) -> None:
    def prepare(*arguments: object) -> Any:
        return scripts.run("prepare_model.py", *arguments, "--ckpt-folder", tmp_path / "checkpoints")

    (tmp_path / "text.gguf").write_text("hello " * 99)
    (tmp_path / "short.gguf").write_bytes(smollm2_gguf.read_bytes()[: 1 << 21])
    (tmp_path / "empty").mkdir()
    one_line_error(prepare(tmp_path / "text.gguf"), 1, r"text\.gguf: not a GGUF file")
    one_line_error(prepare(tmp_path / "short.gguf"), 1, r"short\.gguf: damaged or cut-off GGUF file")
    one_line_error(prepare(tmp_path / "none.gguf"), 2, r"none\.gguf: no such file")
    one_line_error(prepare(tmp_path / "none"), 2, r"none: no such file or folder")
    one_line_error(prepare(tmp_path / "empty"), 1, r"empty.*config\.json")
    one_line_error(prepare("--random", "no-such-shape"), 2, r"no-such-shape")
    assert not list((tmp_path / "checkpoints").rglob("*.pth"))


def test_more_nodes_than_layers_are_refused(scripts: Scripts, tiny: Path) -> None:
    one_line_error(scripts.run("prepare_model.py", tiny, "--n-nodes", 7), 2, r"split over 1 to 6 nodes, not 7")
    one_line_error(scripts.run("prepare_model.py", tiny, "--n-nodes", 2, "--split", "x"), 2, r"--split 'x'")


def test_a_gated_model_without_a_token_says_what_to_do(scripts: Scripts, tmp_path: Path) -> None:
    files = {"config.json": b'{"model_type": "llama"}', "model.safetensors": b"x" * 100}
    with serve(StubHub("org/gated", files, gated=True)) as hub:
        env = {"HF_ENDPOINT": hub.url, "HF_TOKEN": "", "HF_HOME": str(tmp_path / "home"), "NO_PROXY": "*"}
        arguments = ("prepare_model.py", "org/gated", "--n-nodes", 3, "--ckpt-folder", tmp_path / "checkpoints")
        one_line_error(
            scripts.run(*arguments, env=env), 1, rf"org/gated is gated: .*{hub.url}/org/gated and pass --hf-token"
        )
        secret = "hf_SecretSecretSecret"
        result = scripts.run(*arguments, "--hf-token", secret, env=env)
        line = one_line_error(result, 1, r"your token has no access yet")
        assert secret not in line
    env["HF_ENDPOINT"] = f"http://127.0.0.1:{free_ports(1)[0]}"
    one_line_error(scripts.run(*arguments, env=env), 1, r"refuses connections: check HF_ENDPOINT")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of one megabyte."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(command, check=False, capture_output=True).returncode != 0:
        pytest.skip("only root may mount")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_full_disk_is_told_and_leaves_nothing_behind(scripts: Scripts, split: Path, small_disk: Path) -> None:
    result = scripts.run("prepare_model.py", "--random", "pythia-14m", "--ckpt-folder", small_disk)
    one_line_error(result, 1, rf"{small_disk}/.* take 28\.14 MB and 1\.05 MB are free", after="the weights take")
    assert [path for path in small_disk.rglob("*") if path.is_file()] == []
    filler = small_disk / "filler"
    filler.write_bytes(bytes((1 << 20) - (64 << 10)))
    model = shutil.copytree(split, small_disk.parent / "model")
    shutil.rmtree(model / "chunks")
    (model / "chunks").symlink_to(small_disk)
    result = scripts.run("prepare_model.py", model, "--n-nodes", 2)
    one_line_error(result, 1, r"2nodes: the chunks take .* are free", after="the chunks for 2 nodes take")


def test_a_file_that_cannot_grow_is_told(tmp_path: Path) -> None:
    """The disk fills while the file is written: a limit on the size of files fails the same way."""
    arguments = ["prepare_model.py", "--random", "pythia-14m", "--ckpt-folder", str(tmp_path / "checkpoints")]
    command = f"ulimit -f 1024; exec {sys.executable} src/{' '.join(arguments)}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 1, done.stderr
    size, error = done.stderr.splitlines()
    assert size.startswith("the weights take ") and error.startswith("error: "), done.stderr
    assert not list((tmp_path / "checkpoints").rglob("*.pth"))
