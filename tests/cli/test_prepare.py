"""Preparing a model: from which source, under which name, and when it is prepared already."""

import json
import os
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mdi.checkpoint.config import load_config
from mdi.checkpoint.digests import content_digest
from mdi.checkpoint.manifest import chunks_folder
from mdi.checkpoint.tensor_file import open_weights
from mdi.cli.prepare import prepare
from mdi.config.paths import SETTINGS_DIR
from mdi.config.prepare_options import PrepareOptions
from mdi.errors import CheckpointError, ConfigError, StorageError
from support.damage import flip_signs
from support.gguf_files import byte_level_tokenizer, hyperparameters, tensors, tiny_model, write_parts
from support.hf_folders import make_hf_folder, put_into_cache, register_minute_llama
from support.hub import StubHub, serve
from support.models import make_model


@pytest.fixture(autouse=True)
def _minute_llama(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    register_minute_llama(monkeypatch)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return make_hf_folder(tmp_path / "minute")


def prepared(model: Path | str, tmp_path: Path, dtype: str | None = None) -> Path:
    """The folder that a model is prepared in."""
    return prepare(PrepareOptions(model=str(model), ckpt_folder=tmp_path / "checkpoints", dtype=dtype))[0]


def embedding(folder: Path) -> torch.Tensor:
    weight: torch.Tensor = torch.load(folder / "lit_model.pth", weights_only=True)["transformer.wte.weight"]
    return weight


def test_a_folder_of_chunks_without_the_model_is_left_as_it_is(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "org" / "model")
    first = prepare(PrepareOptions(model=str(folder), n_nodes=2))
    before = {path: path.stat().st_ino for path in chunks_folder(folder, 2).iterdir()}
    (folder / "lit_model.pth").unlink()
    assert prepare(PrepareOptions(model=str(folder), n_nodes=2)) == first
    assert {path: path.stat().st_ino for path in chunks_folder(folder, 2).iterdir()} == before
    with pytest.raises(CheckpointError, match=r"no lit_model\.pth here, so nothing to split"):
        prepare(PrepareOptions(model=str(folder), n_nodes=3))


@pytest.mark.parametrize(
    ("config", "problem"),
    [(b"{}", r"tokenizer\.json: not a tokenizer"), (b'{"num_hidden_layers": 3}', "num_hidden_layers 3")],
)
def test_no_weights_are_fetched_of_a_model_whose_small_files_cannot_be_used(
    config: bytes, problem: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {"config.json": config, "tokenizer.json": b"{", "model.safetensors": b"gigabytes"}
    with serve(StubHub("org/tiny", files)) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        with pytest.raises(CheckpointError, match=problem):
            prepare(PrepareOptions(model="org/tiny", model_name="pythia-14m", ckpt_folder=tmp_path))
        assert not hub.seen("GET", "model.safetensors")


def test_chunks_of_several_kinds_lie_side_by_side(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "org" / "model")
    kinds = [PrepareOptions(model=str(folder), n_nodes=2, quantize=mode) for mode in ("none", "int8")]  # type: ignore[arg-type]
    kinds.append(PrepareOptions(model=str(folder), n_nodes=2, dtype="bfloat16"))
    manifests = [manifest for _, manifest in map(prepare, kinds) if manifest is not None]
    assert [manifest.folder.name for manifest in manifests] == ["2nodes", "2nodes-int8", "2nodes-bfloat16"]
    before = {path: path.stat().st_ino for path in folder.rglob("*.pth")}
    assert [manifest for _, manifest in map(prepare, kinds)] == manifests, "they are there already"
    assert {path: path.stat().st_ino for path in folder.rglob("*.pth")} == before


def test_chunks_of_any_split_will_do_unless_one_is_asked_for(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "org" / "model")
    options = PrepareOptions(model=str(folder), n_nodes=2, split="1,5")
    first = prepare(options)
    assert prepare(replace(options, split="auto")) == first
    network = json.loads((SETTINGS_DIR / "configuration_2.json").read_text())
    network["nodes"]["starter"]["share"] = 100
    (tmp_path / "network.json").write_text(json.dumps(network))
    for asked in (
        replace(options, split="5,1"),
        replace(options, n_nodes=None, nodes_config=tmp_path / "network.json", split="auto"),
    ):
        _, manifest = prepare(asked)
        assert manifest is not None and [len(span) for span in manifest.spans] == [5, 1]
        prepare(options)


def test_a_tokenizer_that_cannot_be_used_is_told_before_anything_is_converted(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "config.json").write_text("{}")
    (source / "tokenizer.json").write_text("{")
    (source / "model.safetensors").write_bytes(b"not looked at")
    with pytest.raises(CheckpointError, match=rf"{source}/tokenizer\.json: not a tokenizer"):
        prepare(PrepareOptions(model=str(source), model_name="pythia-14m", ckpt_folder=tmp_path / "checkpoints"))
    assert list((tmp_path / "checkpoints").rglob("*.json")) == []


# ---- the same source, and another


@pytest.mark.slow
def test_a_folder_that_was_trained_further_is_converted_anew(
    source: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = prepared(source, tmp_path)
    (folder / "prompt_style.yaml").write_text("class_path: litgpt.prompts.Default")
    before = embedding(folder)
    make_hf_folder(source, seed=1)
    assert prepared(source, tmp_path) == folder
    assert not torch.equal(embedding(folder), before)
    assert (folder / "prompt_style.yaml").is_file(), "the user's own file stays"
    assert f"{source} has changed since {folder} was made from it" in caplog.text


@pytest.mark.slow
def test_a_folder_that_was_only_touched_or_moved_is_not_converted_again(source: Path, tmp_path: Path) -> None:
    folder = prepared(source, tmp_path)
    inode = (folder / "lit_model.pth").stat().st_ino
    os.utime(source / "model.safetensors", (1, 1))
    prepared(source, tmp_path)
    moved = shutil.move(source, tmp_path / "elsewhere" / "minute")
    assert prepared(moved, tmp_path) == folder
    assert (folder / "lit_model.pth").stat().st_ino == inode


@pytest.mark.slow
def test_another_dtype_the_second_time_is_honoured(source: Path, tmp_path: Path) -> None:
    assert embedding(prepared(source, tmp_path)).dtype == torch.bfloat16
    folder = prepared(source, tmp_path, "float32")
    assert embedding(folder).dtype == torch.float32
    inode = (folder / "lit_model.pth").stat().st_ino
    prepared(source, tmp_path)
    assert (folder / "lit_model.pth").stat().st_ino == inode, "nothing else was asked for"


@pytest.mark.slow
def test_a_prepared_model_whose_file_is_damaged_is_made_anew(source: Path, tmp_path: Path) -> None:
    folder = prepared(source, tmp_path)
    before = embedding(folder)
    (folder / "lit_model.pth").write_bytes(b"x" * 1000)
    prepared(source, tmp_path)
    assert torch.equal(embedding(folder), before)


def rotten(folder: Path, file: str = "lit_model.pth") -> Path:
    """Flip the signs of a matrix; size and date of the file stay."""
    path = folder / file
    name = next(name for name in open_weights(path) if name.endswith("mlp.proj.weight"))
    flip_signs(path, name)
    return path


@pytest.mark.slow
def test_a_prepared_model_with_bit_rot_is_made_anew(
    source: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = prepared(source, tmp_path, "float32")
    digest = content_digest(folder / "lit_model.pth")
    model = rotten(folder)
    prepared(source, tmp_path)
    assert f"{model}: damaged: " in caplog.text and "making it anew" in caplog.text
    assert content_digest(prepared(source, tmp_path, "float32") / "lit_model.pth") == digest


@pytest.mark.slow
def test_weights_that_somebody_else_put_there_are_not_replaced(source: Path, tmp_path: Path) -> None:
    folder = prepared(source, tmp_path, "float32")
    model = rotten(folder)
    os.utime(model)
    digest = content_digest(model)
    with pytest.raises(ConfigError, match=r"if you replaced it, remove lit_model\.digests\.json, otherwise lit_model"):
        prepared(source, tmp_path)
    assert content_digest(model) == digest
    (folder / "lit_model.digests.json").unlink()
    assert content_digest(prepared(source, tmp_path) / "lit_model.pth") == digest
    model.unlink()
    assert content_digest(prepared(source, tmp_path, "float32") / "lit_model.pth") != digest


@pytest.mark.slow
@pytest.mark.parametrize("file", ["model_config.yaml", "tokenizer.json", "lit_model.digests.json"])
def test_a_prepared_model_with_another_damaged_file_is_made_anew(file: str, source: Path, tmp_path: Path) -> None:
    folder = prepared(source, tmp_path)
    before = (folder / file).read_bytes()
    (folder / file).write_text("{")
    prepared(source, tmp_path)
    assert (folder / file).read_bytes() == before


@pytest.mark.slow
@pytest.mark.parametrize("chunks_only", [False, True])
def test_a_damaged_chunk_is_written_anew(
    chunks_only: bool, source: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    options = PrepareOptions(
        model=str(source), ckpt_folder=tmp_path / "checkpoints", n_nodes=2, dtype="float32", chunks_only=chunks_only
    )
    _, manifest = prepare(options)
    assert manifest is not None
    chunk = rotten(manifest.folder, "model_secondary0.pth")
    _, again = prepare(options)
    assert again is not None and again.files == manifest.files
    assert f"{chunk}: damaged: " in caplog.text and "anew" in caplog.text
    assert content_digest(chunk) == manifest.files[1].digest


@pytest.mark.slow
def test_chunks_whose_manifest_is_damaged_are_written_anew(source: Path, tmp_path: Path) -> None:
    options = PrepareOptions(model=str(source), ckpt_folder=tmp_path / "checkpoints", n_nodes=2)
    folder, manifest = prepare(options)
    assert manifest is not None
    (manifest.folder / "manifest.json").write_text("{}")
    assert prepare(options) == (folder, manifest)


def test_a_damaged_model_that_is_named_by_its_folder_tells_what_it_was_made_from(source: Path, tmp_path: Path) -> None:
    folder = prepared(source, tmp_path, "float32")
    rotten(folder)
    with pytest.raises(CheckpointError, match=rf"damaged: .*; it was made from folder:{source}: prepare that"):
        prepared(folder, tmp_path)


def test_a_damaged_record_of_the_source_says_what_to_do(source: Path, tmp_path: Path) -> None:
    folder = prepared(source, tmp_path)
    (folder / "source.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"source\.json: not valid JSON: .*; remove it"):
        prepared(source, tmp_path)
    (folder / "source.json").unlink()
    assert prepared(source, tmp_path) == folder


@pytest.mark.slow
def test_another_model_of_the_same_name_is_refused(source: Path, tmp_path: Path) -> None:
    folder = prepared(source, tmp_path)
    other = make_hf_folder(tmp_path / "other" / "minute", seed=1)
    with pytest.raises(ConfigError, match=f"{folder} was made from folder:{source}, not from folder:{other}"):
        prepared(other, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["hub:org/minute", "folder:{source}"])
def test_a_model_that_an_earlier_version_prepared_is_ready(name: str, source: Path, tmp_path: Path) -> None:
    folder = prepared(source, tmp_path)
    (folder / "source.json").write_text(f'{{"source": "{name.format(source=source)}"}}')
    if name.startswith("folder"):
        assert prepared(source, tmp_path) == folder
    else:
        with pytest.raises(ConfigError, match="was made from hub:org/minute"):
            prepared(source, tmp_path)


@pytest.mark.slow
def test_a_repo_is_taken_from_the_cache_under_its_own_name(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshot = put_into_cache(tmp_path / "hub", "org/minute", source)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    folder = prepared("org/minute", tmp_path)
    assert folder == tmp_path / "checkpoints" / "org" / "minute"
    inode = (folder / "lit_model.pth").stat().st_ino
    assert prepared(snapshot, tmp_path) == prepared("org/minute", tmp_path) == folder
    assert (folder / "lit_model.pth").stat().st_ino == inode
    (tmp_path / "mine").symlink_to(snapshot)
    assert prepared(tmp_path / "mine", tmp_path) == tmp_path / "checkpoints" / "local" / "mine"


def test_an_error_of_the_conversion_names_the_users_folder(source: Path, tmp_path: Path) -> None:
    (source / "model.safetensors").write_bytes(b"x" * 1000)
    with pytest.raises(CheckpointError) as caught:
        prepared(source, tmp_path)
    assert str(source) in str(caught.value) and ".partial" not in str(caught.value)


@pytest.mark.parametrize(("dtype", "n_bytes"), [(None, 2), ("float32", 4)])
def test_the_size_is_said_before_a_folder_is_converted(
    dtype: str | None, n_bytes: int, source: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = prepared(source, tmp_path, dtype) / "lit_model.pth"
    size = sum(tensor.numel() for tensor in torch.load(model, weights_only=True).values()) * n_bytes
    assert f"the weights take {size} B in {dtype or 'bfloat16'}" in caplog.text


def test_a_disk_without_room_is_told_before_a_folder_is_converted(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage._replace(free=1000))
    monkeypatch.setattr("mdi.cli.prepare.link_or_copy", lambda *_: pytest.fail("nothing is to be written"))
    with pytest.raises(StorageError, match=r"the weights take \d+ B and 1000 B are free on this disk"):
        prepared(source, tmp_path)
    assert list((tmp_path / "checkpoints").rglob("*.*")) == []


@pytest.mark.slow
def test_the_whole_model_is_not_kept_where_chunks_are_enough(
    source: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    options = PrepareOptions(
        model=str(source), ckpt_folder=tmp_path / "checkpoints", n_nodes=2, quantize="int8", chunks_only=True
    )
    folder, manifest = prepare(options)
    assert manifest is not None and not (folder / "lit_model.pth").exists()
    assert re.search(r"the chunks for 2 nodes take [0-9.]+ M?B$", caplog.text, re.MULTILINE)
    inode = (manifest.folder / "model_starter.pth").stat().st_ino
    assert prepare(options) == (folder, manifest)
    assert (manifest.folder / "model_starter.pth").stat().st_ino == inode, "they are there already"
    _, plain = prepare(replace(options, quantize="none"))
    assert plain is not None and plain.quantization == "none" and (manifest.folder / "model_starter.pth").is_file()
    prepared(source, tmp_path)
    assert (folder / "lit_model.pth").is_file(), "the whole model was asked for"


def test_a_whole_model_that_was_not_made_here_is_not_removed(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "org" / "model")
    with pytest.raises(ConfigError, match=r"lit_model\.pth was not made by this program: remove it yourself"):
        prepare(PrepareOptions(model=str(folder), n_nodes=2, chunks_only=True))
    assert (folder / "lit_model.pth").is_file() and not (folder / "chunks").exists()


# ---- from the hub, by a GGUF file's name


def test_a_gguf_in_several_parts_is_fetched_and_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    architecture, model = tiny_model("llama")
    values = hyperparameters(architecture, model.config) | byte_level_tokenizer()
    (tmp_path / "parts").mkdir()
    parts = write_parts(tmp_path / "parts", architecture, values, tensors(architecture, model), 2)
    files = {f"Q4_0/{path.name.replace('tiny', 'tiny-Q4_0')}": path.read_bytes() for path in parts}
    with serve(StubHub("org/tiny-GGUF", files | {"README.md": b"never"})) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        folder = prepared("org/tiny-GGUF:Q4_0", tmp_path)
        n_requests = len(hub.requests)
        assert prepared("org/tiny-GGUF:Q4_0", tmp_path) == folder == tmp_path / "checkpoints" / "org" / "tiny"
        assert len(hub.requests) == n_requests, "it is ready"
        with pytest.raises(ConfigError, match="was made from hub:org/tiny-GGUF:Q4_0, not from hub:org/tiny-GGUF:Q8_0"):
            prepared("org/tiny-GGUF:Q8_0", tmp_path)
    assert not hub.seen("GET", "README")
    assert [path for path in folder.rglob("*") if path.suffix == ".gguf" or path.is_dir()] == []
    assert load_config(folder).n_layer == model.config.n_layer


@pytest.mark.parametrize("name", ["none", "./org/none.gguf", "a/b/c", "/nowhere/x"])
def test_what_is_neither_here_nor_a_name_on_the_hub_is_told(name: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=rf"{name}: no such file or folder, nor a name on the hub.*--list"):
        prepared(name, tmp_path)
