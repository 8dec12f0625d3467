"""Weights are compared with what is known of them while they are loaded."""

import gc
import json
from pathlib import Path

import psutil
import pytest
import torch

from mdi.checkpoint import digests
from mdi.checkpoint.chunks import remake_chunk, split_model
from mdi.checkpoint.config import load_config
from mdi.checkpoint.digests import (
    checked,
    content_digest,
    expect_digest,
    expect_lines,
    read_digests,
    record_digests,
    tensor_line,
)
from mdi.checkpoint.manifest import Manifest, chunk_name, chunks_folder, read_manifest
from mdi.checkpoint.tensor_file import open_weights
from mdi.checkpoint.weights import select
from mdi.errors import CheckpointError
from mdi.model.backends.select import make_head, make_span_engine
from mdi.model.runner import StageRunner, StageSpec
from mdi.model.weights import Weights
from support.damage import DAMAGED, SPANS, flip_signs
from support.models import make_model


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return make_model(tmp_path / "org" / "model")


@pytest.fixture
def manifest(model: Path) -> Manifest:
    return split_model(model, SPANS)


def load(path: Path, check: digests.Check | None) -> StageRunner:
    """Load the second node's stage from a file."""
    config = load_config(path.parents[2] if path.parent.name == "2nodes" else path.parent)
    runner = StageRunner(torch.device("cpu"), make_span_engine, make_head)
    spec = StageSpec(config, SPANS[1], has_head=False, weights_id=1, dtype="float32", quantize=None, rows=1)
    weights = checked(select(open_weights(path), config, 1, SPANS[1]), check)
    try:
        runner.load(spec, weights, "it")
    except CheckpointError:
        assert not runner.holds(spec) and runner.weights_bytes == 0
        raise
    return runner


def test_a_stage_of_damaged_weights_is_dropped(model: Path, manifest: Manifest) -> None:
    chunk = chunks_folder(model, 2) / chunk_name(1)
    check = expect_digest(manifest.files[1].digest, "damaged")
    assert load(chunk, check).weights_bytes > 0
    flip_signs(chunk, DAMAGED)
    with pytest.raises(CheckpointError, match=r"^damaged$"):
        load(chunk, check)
    assert load(chunk, None).weights_bytes > 0  # nothing is known of it


def test_a_part_of_the_whole_model_is_compared_tensor_by_tensor(model: Path) -> None:
    path = model / "lit_model.pth"
    assert read_digests(path) is None and expect_lines(path, None) is None
    record_digests(path)
    flip_signs(path, "transformer.h.1.mlp.proj.weight")  # which the second node does not read
    check = expect_lines(path, read_digests(path))
    assert load(path, check).weights_bytes > 0
    flip_signs(path, DAMAGED)
    with pytest.raises(CheckpointError, match=rf"lit_model\.pth: damaged: {DAMAGED} is not what lit_model\.digests"):
        load(path, check)


def test_a_file_cut_short_while_it_is_loaded_is_one_line(model: Path, manifest: Manifest) -> None:
    chunk = chunks_folder(model, 2) / chunk_name(1)
    config = load_config(model)
    weights = select(open_weights(chunk), config, 1, SPANS[1])

    def cut(name: str) -> torch.Tensor:
        if name == DAMAGED:
            chunk.write_bytes(b"")
        return weights[name]

    runner = StageRunner(torch.device("cpu"), make_span_engine, make_head)
    spec = StageSpec(config, SPANS[1], has_head=False, weights_id=1, dtype="float32", quantize=None, rows=1)
    checked_weights = checked(Weights(weights.meta, cut), expect_digest(manifest.files[1].digest, ""))
    with pytest.raises(CheckpointError, match=rf"{chunk}: damaged: it was cut short"):
        runner.load(spec, checked_weights, "it")
    assert runner.weights_bytes == 0


def test_tensors_that_nobody_read_count_too(model: Path, manifest: Manifest) -> None:
    chunk = chunks_folder(model, 2) / chunk_name(1)
    flip_signs(chunk, DAMAGED)
    weights = checked(open_weights(chunk), expect_digest(manifest.files[1].digest, "damaged"))
    with pytest.raises(CheckpointError, match="damaged"):
        weights.verify()


@pytest.mark.parametrize(
    "text", ["{", "[]", "{}", '{"format_version": 1, "tensors": {}}', '{"format_version": 2, "tensors": {"a": 1}}',
             '{"format_version": 2, "tensors": []}', "[" * 100_000]
)  # fmt: skip
def test_damaged_digests_of_a_model_are_one_line(text: str, model: Path) -> None:
    (model / "lit_model.digests.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"lit_model\.digests\.json: .*; remove it, or prepare the model again"):
        read_digests(model / "lit_model.pth")


def test_the_digests_of_a_model_are_those_of_its_tensors(model: Path) -> None:
    record_digests(model / "lit_model.pth")
    whole = open_weights(model / "lit_model.pth")
    assert read_digests(model / "lit_model.pth") == {name: tensor_line(tensor) for name, tensor in whole.items()}
    assert json.loads((model / "lit_model.digests.json").read_text())["format_version"] == 2


# ---- writing chunks


def test_a_split_of_a_damaged_model_writes_no_chunk(model: Path) -> None:
    record_digests(model / "lit_model.pth")
    flip_signs(model / "lit_model.pth", DAMAGED)
    with pytest.raises(CheckpointError, match=rf"lit_model\.pth: damaged: {DAMAGED}"):
        split_model(model, SPANS)
    assert read_manifest(chunks_folder(model, 2)) is None
    assert not (chunks_folder(model, 2) / chunk_name(1)).exists()


@pytest.mark.parametrize("mode", ["none", "int8"])
def test_one_chunk_is_made_anew_as_its_manifest_says(mode: str, model: Path) -> None:
    manifest = split_model(model, SPANS, "bfloat16", quantization=mode)  # type: ignore[arg-type]
    chunk = manifest.folder / chunk_name(1)
    chunk.write_bytes(b"damaged")
    remake_chunk(model, manifest, 1)
    assert content_digest(chunk) == manifest.files[1].digest


def test_a_chunk_of_another_model_is_not_made_in_its_place(model: Path, manifest: Manifest) -> None:
    before = (chunks_folder(model, 2) / chunk_name(1)).read_bytes()
    make_model(model, seed=1)
    with pytest.raises(CheckpointError, match=r"not what lit_model\.pth gives by now"):
        remake_chunk(model, manifest, 1)
    assert (chunks_folder(model, 2) / chunk_name(1)).read_bytes() == before


def test_the_file_is_closed_as_soon_as_nobody_uses_its_weights(model: Path) -> None:
    """Without waiting for the garbage collector: a node may load hundreds of chunks in its life."""
    path = model / "lit_model.pth"
    gc.collect()
    gc.disable()
    try:
        checked(open_weights(path), expect_digest(content_digest(path), "damaged")).verify()
        assert str(path) not in [file.path for file in psutil.Process().open_files()]
    finally:
        gc.enable()
