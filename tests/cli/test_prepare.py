"""Preparing a model that is prepared already."""

from pathlib import Path

import pytest

from mdi.checkpoint.manifest import chunks_folder
from mdi.cli.prepare import prepare
from mdi.config.options import PrepareOptions
from mdi.errors import CheckpointError
from support.hub import StubHub, serve
from support.models import make_model


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


def test_a_tokenizer_that_cannot_be_used_is_told_before_anything_is_converted(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "config.json").write_text("{}")
    (source / "tokenizer.json").write_text("{")
    with pytest.raises(CheckpointError, match=rf"{source}/tokenizer\.json: not a tokenizer"):
        prepare(PrepareOptions(model=str(source), model_name="pythia-14m", ckpt_folder=tmp_path / "checkpoints"))
    assert list((tmp_path / "checkpoints").rglob("*.json")) == []
