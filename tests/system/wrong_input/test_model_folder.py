"""Damaged models, manifests and chunks: the file is named."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from support.config_files import with_key, without_key
from support.runs import NO_WAITING, run_alone
from support.scripts import (
    Network,
    Scripts,
    one_line_error,
    write_network,
)

pytestmark = pytest.mark.slow


def test_a_model_folder_that_is_not_there_lists_those_that_are(
    scripts: Scripts, alone: Network, tiny: Path, tmp_path: Path
) -> None:
    result = run_alone(scripts, alone, tmp_path / "none")
    one_line_error(result, 2, r"none: no prepared model there; (choose one of these|prepare one)")
    # A folder of models, such as src/checkpoints itself.
    one_line_error(run_alone(scripts, alone, tiny.parents[1]), 2, rf"choose one of these with --ckpt: {tiny}$")


def test_a_folder_without_models_says_how_to_make_one(scripts: Scripts, alone: Network, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "lit_model.pth").touch()
    for name in ("empty", "other"):
        one_line_error(run_alone(scripts, alone, tmp_path / name), 2, rf"{name}: no prepared model.*prepare_model\.py")


def _truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


DOUBLES = "{% set ns.x = ns.x + ns.x %}"
MULTIPLIES = {
    "type": "Sequence",
    "normalizers": [{"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 100}] * 6,
}
DAMAGES: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "weights cut off": ("lit_model.pth", _truncate, r"lit_model\.pth: damaged"),
    "weights empty": ("lit_model.pth", lambda path: path.write_bytes(b""), r"lit_model\.pth: damaged"),
    "weights of text": ("lit_model.pth", lambda path: path.write_text("hello\n" * 99), r"lit_model\.pth: damaged"),
    "weights missing": ("lit_model.pth", Path.unlink, r"neither lit_model\.pth nor chunks"),
    "configuration cut off": ("model_config.yaml", _truncate, r"model_config\.yaml"),
    "configuration empty": ("model_config.yaml", lambda path: path.write_bytes(b""), r"model_config\.yaml: not a"),
    "configuration binary": ("model_config.yaml", lambda path: path.write_bytes(b"\0\xff"), r"model_config\.yaml"),
    "configuration not YAML": (
        "model_config.yaml",
        lambda path: path.write_text("name: tiny\n\tn_layer: [3\nx: : y\n"),
        r"model_config\.yaml",
    ),
    "configuration with an unknown key": (
        "model_config.yaml",
        lambda path: path.write_text(path.read_text() + "colour: red\n"),
        r"model_config\.yaml: .*colour",
    ),
    "configuration of another model": (
        "model_config.yaml",
        lambda path: path.write_text(path.read_text().replace("n_embd: 32", "n_embd: 64")),
        r"has the shape .* another model's file",
    ),
    "vocabulary cut off": ("tokenizer.json", _truncate, r"tokenizer\.json"),
    "vocabulary missing": ("tokenizer.json", Path.unlink, r"tokenizer"),
    "a normalizer that multiplies": (
        "tokenizer.json",
        lambda path: path.write_text(json.dumps(json.loads(path.read_text()) | {"normalizer": MULTIPLIES})),
        r"tokenizer\.json: the tokenizer needs more than .* of memory; prepare the model again",
    ),
    "a chat template that takes all memory": (
        "chat_template.jinja",
        lambda path: path.write_text("{% set ns = namespace(x='ab') %}" + DOUBLES * 60),
        r"chat_template\.jinja: the chat template needs more than .* of memory; try --prompt-style none",
    ),
    "a chat template without a bottom": (
        "chat_template.jinja",
        lambda path: path.write_text("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}"),
        r"chat_template\.jinja: the chat template failed \(.*recursion.*\); try --prompt-style none",
    ),
    "tokenizer configuration cut off": ("tokenizer_config.json", _truncate, r"tokenizer_config\.json: not valid JSON"),
}


@pytest.mark.parametrize("case", DAMAGES)
def test_a_damaged_model_folder_names_the_file(case: str, scripts: Scripts, alone: Network, model: Path) -> None:
    name, damage, pattern = DAMAGES[case]
    damage(model / name)
    one_line_error(run_alone(scripts, alone, model), 1, pattern)


def _manifest(change: Callable[[Any], Any]) -> Callable[[Path], object]:
    return lambda path: path.write_text(json.dumps(change(json.loads(path.read_text()))))


MANIFEST_DAMAGES: dict[str, Callable[[Path], object]] = {
    "cut off": _truncate,
    "a list": lambda path: path.write_text("[]"),
    "another format": _manifest(with_key(99, "format_version")),
    "no spans": _manifest(without_key("spans")),
    "an unknown key": _manifest(with_key(1, "colour")),
    "spans too few": _manifest(lambda data: data | {"spans": data["spans"][:2]}),
    "spans with a gap": _manifest(lambda data: data | {"spans": [[0, 1], [2, 3], [3, 6]]}),
    "spans that end early": _manifest(lambda data: data | {"spans": [[0, 1], [1, 3], [3, 5]]}),
    "spans of text": _manifest(lambda data: data | {"spans": [["a", "b"]] * 3}),
    "spans that are numbers": _manifest(lambda data: data | {"spans": [1, 2, 3]}),
    "files too few": _manifest(lambda data: data | {"files": data["files"][:1]}),
    "files that are numbers": _manifest(lambda data: data | {"files": [1, 2, 3]}),
    "a digest that is a number": _manifest(
        lambda data: data | {"files": [file | {"digest": 7} for file in data["files"]]}
    ),
}


@pytest.mark.parametrize("case", MANIFEST_DAMAGES)
def test_a_damaged_manifest_is_named(case: str, scripts: Scripts, chunks: Path, tmp_path: Path) -> None:
    MANIFEST_DAMAGES[case](chunks / "chunks" / "3nodes" / "manifest.json")
    network = write_network(tmp_path / "net.json", 3)
    result = scripts.run("starter.py", "--ckpt", chunks, "--nodes-config", network.path, *NO_WAITING)
    one_line_error(result, 1, r"manifest\.json: ")


def test_a_damaged_chunk_of_the_starter_is_named(scripts: Scripts, chunks: Path, tmp_path: Path) -> None:
    network = write_network(tmp_path / "net.json", 3)
    _truncate(chunks / "chunks" / "3nodes" / "model_starter.pth")
    result = scripts.run("starter.py", "--ckpt", chunks, "--nodes-config", network.path, *NO_WAITING)
    one_line_error(result, 1, r"model_starter\.pth: damaged", after="waiting for secondary")


def test_a_chunk_that_lies_outside_any_model_folder_is_told(scripts: Scripts, alone: Network) -> None:
    result = scripts.run("starter.py", "--nodes-config", alone.path, "--chunk", "/etc/passwd")
    one_line_error(result, 2, r"no model given; |no prepared model")
