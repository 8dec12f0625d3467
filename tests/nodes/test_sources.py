"""Where a secondary finds its weights, and that damaged ones are never used."""

import logging
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mdi.checkpoint.cache import ChunkCache
from mdi.checkpoint.chunks import split_model
from mdi.checkpoint.config import config_to_dict, load_config
from mdi.checkpoint.digests import content_digest, digest_of, record_digests
from mdi.checkpoint.manifest import Manifest, chunk_name, chunks_folder
from mdi.control.session import FIRST_EPOCH, SessionSpec
from mdi.errors import CheckpointError
from mdi.ids import Rank
from mdi.model.weights import Weights
from mdi.nodes.sources import WeightSources
from support.control import SPEC
from support.damage import DAMAGED, SPANS, flip_signs
from support.models import make_model


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return make_model(tmp_path / "org" / "model")


@pytest.fixture
def manifest(model: Path) -> Manifest:
    return split_model(model, SPANS)


@pytest.fixture
def spec(model: Path, manifest: Manifest) -> SessionSpec:
    config, digest = config_to_dict(load_config(model)), manifest.files[1].digest
    return replace(SPEC, config=config, span=SPANS[1], rank=Rank(1), n_nodes=2, chunk_digest=digest, epoch=FIRST_EPOCH)


@pytest.fixture
def cache(tmp_path: Path) -> ChunkCache:
    return ChunkCache(tmp_path / "cache", content_digest)


def chunk_of(folder: Path) -> Path:
    return chunks_folder(folder, 2) / chunk_name(1)


def receive(cache: ChunkCache, model: Path, digest: str) -> Path:
    """Put the chunk into the cache, as a starter does. Returns where it will lie."""
    chunk = chunk_of(model)
    with chunk.open("rb") as file:
        cache.append(digest, 0, n := chunk.stat().st_size, n, file)
    return cache._path(digest)


def loaded(sources: WeightSources, spec: SessionSpec, model: Path) -> dict[str, torch.Tensor] | None:
    """The tensors of the first source that holds them whole."""
    kept: dict[str, torch.Tensor] = {}

    def build(weights: Weights) -> None:
        tensors = dict(weights)
        weights.verify()
        kept.update(tensors)

    return kept if sources.load(spec, load_config(model), build) else None


def assert_right(tensors: dict[str, torch.Tensor] | None, spec: SessionSpec) -> None:
    assert tensors is not None
    assert digest_of(tensors) == spec.chunk_digest


def test_a_damaged_chunk_in_the_cache_is_removed_and_wanted_again(
    cache: ChunkCache, spec: SessionSpec, model: Path, caplog: pytest.LogCaptureFixture
) -> None:
    sources = WeightSources(cache)
    path = receive(cache, model, spec.chunk_digest)
    assert_right(loaded(sources, spec, model), spec)
    flip_signs(path, DAMAGED)
    assert loaded(sources, spec, model) is None
    assert not path.exists() and cache.held_bytes(spec.chunk_digest) == 0
    assert f"{path}: damaged" in caplog.text and "it was removed" in caplog.text
    receive(cache, model, spec.chunk_digest)
    assert_right(loaded(sources, spec, model), spec)


@pytest.mark.parametrize("n_bytes", [0, 10, 20_000])
def test_a_chunk_in_the_cache_that_was_cut_short_is_removed(
    n_bytes: int, cache: ChunkCache, spec: SessionSpec, model: Path
) -> None:
    path = receive(cache, model, spec.chunk_digest)
    assert_right(loaded(WeightSources(cache), spec, model), spec)
    path.write_bytes(path.read_bytes()[:n_bytes])
    assert loaded(WeightSources(cache), spec, model) is None
    assert not path.exists()


def test_another_models_chunk_in_the_cache_is_not_used_whatever_its_date(
    cache: ChunkCache, spec: SessionSpec, model: Path, tmp_path: Path
) -> None:
    path = receive(cache, model, spec.chunk_digest)
    assert cache.find(spec.chunk_digest) == path
    other = make_model(tmp_path / "org" / "other", seed=1)
    split_model(other, SPANS)
    path.write_bytes(chunk_of(other).read_bytes())
    os.utime(path, (1, 1))
    assert loaded(WeightSources(cache), spec, model) is None


def test_a_chunk_that_does_not_stay_whole_is_not_asked_for_without_end(
    cache: ChunkCache, spec: SessionSpec, model: Path
) -> None:
    """It arrived whole, and is damaged when it is read a moment later: a fault of this machine."""
    path = receive(cache, model, spec.chunk_digest)

    def build(weights: Weights) -> None:
        flip_signs(path, DAMAGED)
        weights.verify()

    with pytest.raises(CheckpointError, match=f"{path}: damaged"):
        WeightSources(cache).load(spec, load_config(model), build)
    assert not path.exists()


def test_of_a_folder_the_undamaged_file_is_used(
    cache: ChunkCache, spec: SessionSpec, model: Path, caplog: pytest.LogCaptureFixture
) -> None:
    sources = WeightSources(cache, folder=model)
    record_digests(model / "lit_model.pth")
    flip_signs(chunk_of(model), DAMAGED)
    assert_right(loaded(sources, spec, model), spec)
    assert f"--ckpt {model} is of no use ({chunk_of(model)}: not the chunk" in caplog.text
    flip_signs(model / "lit_model.pth", DAMAGED)
    assert loaded(sources, spec, model) is None
    assert "lit_model.pth: it is not the starter's chunk" in caplog.text


def test_a_part_of_another_model_is_refused_before_it_is_read(
    cache: ChunkCache, spec: SessionSpec, model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    other = make_model(tmp_path / "org" / "other", seed=1)
    record_digests(other / "lit_model.pth")
    with caplog.at_level(logging.INFO):
        assert loaded(WeightSources(cache, folder=other), spec, model) is None
    assert "it is not the starter's chunk" in caplog.text and "weights of layers" not in caplog.text


def test_a_given_chunk_that_is_damaged_is_an_error_at_first_and_a_warning_later(
    cache: ChunkCache, spec: SessionSpec, model: Path, caplog: pytest.LogCaptureFixture
) -> None:
    sources = WeightSources(cache, chunk=chunk_of(model))
    assert_right(loaded(sources, spec, model), spec)
    flip_signs(chunk_of(model), DAMAGED)
    with pytest.raises(CheckpointError, match=f"--chunk {chunk_of(model)}: not the chunk .* or damaged"):
        loaded(sources, spec, model)
    assert loaded(sources, replace(spec, epoch=FIRST_EPOCH + 1), model) is None
    assert "looking elsewhere" in caplog.text


def test_without_a_digest_of_the_starter_the_folders_own_counts(
    cache: ChunkCache, spec: SessionSpec, model: Path
) -> None:
    sources, unknown = WeightSources(cache, folder=model), replace(spec, chunk_digest="")
    record_digests(model / "lit_model.pth")
    assert_right(loaded(sources, unknown, model), spec)
    flip_signs(chunk_of(model), DAMAGED)
    assert_right(loaded(sources, unknown, model), spec)  # from the whole model
    flip_signs(model / "lit_model.pth", DAMAGED)
    assert loaded(sources, unknown, model) is None


def test_the_chunk_that_the_starter_has_is_found_among_several_kinds(
    cache: ChunkCache, spec: SessionSpec, model: Path
) -> None:
    quantized = split_model(model, SPANS, quantization="int8")
    (model / "lit_model.pth").unlink()
    sources = WeightSources(cache, folder=model)
    assert_right(loaded(sources, spec, model), spec)
    spec = replace(spec, chunk_digest=quantized.files[1].digest)
    assert_right(loaded(sources, spec, model), spec)
