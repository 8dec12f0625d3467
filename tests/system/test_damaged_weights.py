"""Damaged weights are noticed when they are loaded; where good ones are to be had, the run goes on."""

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from mdi.checkpoint.cache import ChunkCache
from mdi.checkpoint.digests import content_digest, record_digests
from mdi.checkpoint.manifest import chunk_name, chunks_folder, read_manifest
from mdi.checkpoint.tensor_file import open_weights
from mdi.control.session import SessionSpec
from mdi.errors import CheckpointError
from mdi.model.architecture import ModelConfig
from mdi.model.weights import Weights
from mdi.nodes.sources import WeightSources
from support.damage import flip_signs
from support.rings import ring_of
from support.scripts import Process, Scripts, samples_of, write_network

PROMPTS = [[1, 2, 3], [7, 8]]


@pytest.fixture
def model(tiny: Path, tmp_path: Path) -> Path:
    """A model to be damaged."""
    folder = Path(shutil.copytree(tiny, tmp_path / "org" / "mine", ignore=shutil.ignore_patterns("chunks")))
    record_digests(folder / "lit_model.pth")
    return folder


def cached_chunk(cache: Path) -> Path:
    (path,) = cache.glob("*.pth")
    return path


def a_matrix(chunk: Path) -> str:
    """The name of a tensor whose signs decide about the text."""
    return next(name for name in open_weights(chunk) if name.endswith("mlp.proj.weight"))


@pytest.mark.slow
def test_bit_rot_in_a_cached_chunk_does_not_change_the_text(scripts: Scripts, model: Path, tmp_path: Path) -> None:
    network, cache = write_network(tmp_path / "net.json", 2), tmp_path / "cache"
    command = ("--ckpt", model, "--nodes-config", network.path, "--n-tokens", 8, "--dtype", "float32", "--seed", 5)

    def run() -> tuple[str, Process]:
        secondary = scripts.start(
            "secondary.py", "--cache-dir", cache, "--dtype", "float32", "--nodes-config", network.path, 0
        )
        result = scripts.run("starter.py", *command)
        assert result.code == 0, result.stderr
        assert secondary.result().code == 0
        return samples_of(result.stdout), secondary

    first, undisturbed = run()
    assert "damaged" not in undisturbed.stderr
    chunk = cached_chunk(cache)
    flip_signs(chunk, a_matrix(chunk))
    assert content_digest(chunk) != chunk.stem
    for packed in cache.glob("*.packed"):  # with which the node would not read the chunk
        packed.unlink()
    second, secondary = run()
    assert second == first
    assert f"{chunk}: damaged" in secondary.stderr and "the starter sends it again" in secondary.stderr
    assert content_digest(chunk) == chunk.stem


def test_a_chunk_cut_short_while_a_node_loads_it_is_sent_again(model: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    with ring_of(2, cache) as ring:
        expected = ring.generate(model, PROMPTS)
    chunk, n_cut = cached_chunk(cache), 0

    @dataclass(frozen=True)
    class Cutting(WeightSources):
        """Cuts the chunk short as soon as the first tensor is read."""

        def load(
            self, spec: SessionSpec, config: ModelConfig, build: Callable[[Weights], None],
            tick: Callable[[], None] = lambda: None,
        ) -> bool:  # fmt: skip
            def cut() -> None:
                nonlocal n_cut
                if not n_cut:
                    n_cut += 1
                    os.truncate(chunk, 1000)
                tick()

            return super().load(spec, config, build, cut)

    with ring_of(2, cache) as ring:
        ring.secondaries[0]._sources = Cutting(ChunkCache(cache, content_digest))
        assert ring.generate(model, PROMPTS) == expected
    assert n_cut == 1
    assert content_digest(chunk) == chunk.stem


def test_a_starters_damaged_chunk_is_made_anew(model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with ring_of(2, tmp_path / "cache") as ring:
        expected = ring.generate(model, PROMPTS)
        chunk = chunks_folder(model, 2) / chunk_name(0)
        manifest = read_manifest(chunk.parent)
        assert manifest is not None
        flip_signs(chunk, a_matrix(chunk))
        assert ring.generate(model, PROMPTS) == expected
        assert f"{chunk}: damaged" in caplog.text and "making it anew from lit_model.pth" in caplog.text
        assert content_digest(chunk) == manifest.files[0].digest


def test_a_starter_whose_whole_model_is_damaged_too_says_so(model: Path, tmp_path: Path) -> None:
    with ring_of(2, tmp_path / "cache") as ring:
        ring.generate(model, PROMPTS)
        chunk = chunks_folder(model, 2) / chunk_name(0)
        name = a_matrix(chunk)
        for path in (chunk, model / "lit_model.pth"):
            flip_signs(path, name)
        with pytest.raises(CheckpointError, match=rf"lit_model\.pth: damaged: {name}"):
            ring.generate(model, PROMPTS)


def test_a_node_on_its_own_does_not_run_on_a_damaged_model(model: Path, tmp_path: Path) -> None:
    with ring_of(1, tmp_path / "cache") as ring:
        ring.generate(model, PROMPTS)
        flip_signs(model / "lit_model.pth", a_matrix(model / "lit_model.pth"))
        with pytest.raises(CheckpointError, match=r"lit_model\.pth: damaged"):
            ring.generate(model, PROMPTS)
