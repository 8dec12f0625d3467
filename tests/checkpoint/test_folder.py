"""Several sets of chunks in one model folder: which is used, and as what chunks are written anew."""

import json
import logging
from pathlib import Path

import pytest

from mdi.checkpoint.chunks import split_model
from mdi.checkpoint.folder import open_folder
from mdi.checkpoint.manifest import Manifest, read_manifest
from mdi.errors import CheckpointError
from mdi.formats import Mode
from mdi.model.span import spans_of
from support.models import make_model

SPANS = spans_of([2, 4])


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return make_model(tmp_path / "org" / "model")


def kind(manifest: Manifest | None) -> tuple[str, str, str]:
    assert manifest is not None
    return manifest.folder.name, manifest.dtype, manifest.quantization


def split_in_all_kinds(model: Path) -> None:
    for dtype, mode in ((None, "none"), (None, "int8"), ("bfloat16", "none"), ("bfloat16", "int4")):
        split_model(model, SPANS, dtype, quantization=mode)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("quantize", "dtype", "expected"),
    [
        (None, None, ("2nodes", "float32", "none")),
        ("none", None, ("2nodes", "float32", "none")),
        ("int8", None, ("2nodes-int8", "float32", "int8")),
        (None, "bfloat16", ("2nodes-bfloat16", "bfloat16", "none")),
        ("int4", "float32", ("2nodes-bfloat16-int4", "bfloat16", "int4")),
    ],
)
def test_of_several_sets_of_chunks_the_one_that_fits_is_used(
    quantize: Mode | None, dtype: str | None, expected: tuple[str, str, str], model: Path
) -> None:
    split_in_all_kinds(model)
    folder = open_folder(model, 2, quantize, dtype)
    assert kind(folder.ring_manifest(2)) == expected
    assert folder.with_chunks(SPANS, quantize) is folder, "it is fresh: nothing to write"
    assert folder.chunk(2, 1).parent.name == expected[0]


def test_which_set_is_used_is_said_where_there_are_several(model: Path, caplog: pytest.LogCaptureFixture) -> None:
    split_model(model, SPANS)
    open_folder(model, 2)
    assert caplog.messages == []
    split_model(model, SPANS, quantization="int8")
    open_folder(model, 2)
    assert caplog.messages == [f"{model}: using the chunks in 2nodes, not those in 2nodes-int8"]


def test_stale_chunks_are_made_anew_as_they_were(model: Path, caplog: pytest.LogCaptureFixture) -> None:
    split_model(model, SPANS, "bfloat16", quantization="int8")
    make_model(model, seed=1)
    folder = open_folder(model, 2).with_chunks(SPANS, None)
    assert kind(folder.ring_manifest(2)) == ("2nodes-bfloat16-int8", "bfloat16", "int8")
    assert not (model / "chunks" / "2nodes").exists()
    expected = "2nodes-bfloat16-int8 lacks a file, or was made from other weights; splitting it anew, as bfloat16, int8"
    assert caplog.messages == [f"{model}: {expected}"]


def test_another_split_is_made_of_the_same_kind(model: Path) -> None:
    split_model(model, SPANS, quantization="int8")
    folder = open_folder(model, 2).with_chunks(spans_of([3, 3]), None)
    assert kind(folder.ring_manifest(2)) == ("2nodes-int8", "float32", "int8")


def test_quantized_chunks_stay_where_plain_ones_are_asked_for(model: Path, caplog: pytest.LogCaptureFixture) -> None:
    split_model(model, SPANS, quantization="int8")
    folder = open_folder(model, 2, "none").with_chunks(SPANS, "none")
    assert kind(folder.ring_manifest(2)) == ("2nodes", "float32", "none")
    assert kind(open_folder(model, 2, "int8").ring_manifest(2)) == ("2nodes-int8", "float32", "int8")
    assert "2nodes-int8 holds int8 weights" in caplog.text


def test_a_ring_that_lost_a_node_gets_chunks_as_the_larger_ring_had(model: Path) -> None:
    split_model(model, spans_of([2, 2, 2]), quantization="int4")
    folder = open_folder(model, 3).with_chunks(SPANS, None)
    assert kind(folder.ring_manifest(2)) == ("2nodes-int4", "float32", "int4")


def test_a_larger_ring_is_not_quantized_unasked(model: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    split_model(model, SPANS, quantization="int4")
    folder = open_folder(model, 3).with_chunks(spans_of([2, 2, 2]), None)
    assert kind(folder.ring_manifest(3)) == ("3nodes", "float32", "none")
    assert caplog.messages == []


def test_a_whole_model_in_the_mode_asked_for_is_split_where_chunks_are_in_floating_point(
    model: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A GGUF file's own blocks, perhaps, which quantizing those chunks would not give back."""
    split_model(model, SPANS)
    split_model(model, spans_of([2, 2, 2]))
    whole = split_model(model, spans_of([6]), quantization="int8").folder / "model_starter.pth"
    whole.rename(model / "lit_model.int8.pth")
    folder = open_folder(model, 2, "int8").with_chunks(SPANS, "int8")
    assert kind(folder.ring_manifest(2)) == ("2nodes-int8", "float32", "int8")
    assert caplog.messages == [f"{model}: 2nodes holds float32 weights; splitting it anew, as stored, int8"]
    assert folder.starter_weights(SPANS, "int8").parent.name == "2nodes-int8"
    assert folder.with_chunks(SPANS, "int8") is folder
    others = (open_folder(model, 2, mode).with_chunks(SPANS, mode) for mode in (None, "none", "int4"))
    assert [kind(other.ring_manifest(2)) for other in others] == [("2nodes", "float32", "none")] * 3
    smaller = open_folder(model, 3, "int8").with_chunks(spans_of([3, 3]), "int8")
    assert kind(smaller.ring_manifest(2)) == ("2nodes-int8", "float32", "int8")


def make_former(manifest: Manifest) -> None:
    """Let chunks be of the version before this one."""
    path = manifest.folder / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format_version": 2}))


def test_quantized_chunks_of_an_earlier_version_are_made_anew_as_they_were(
    model: Path, caplog: pytest.LogCaptureFixture
) -> None:
    written = split_model(model, SPANS, "bfloat16", quantization="int8")
    make_former(written)
    folder = open_folder(model, 2).with_chunks(SPANS, None)
    assert "2nodes-bfloat16-int8 was quantized by an earlier version, in another format" in caplog.text
    assert folder.ring_manifest(2) == read_manifest(written.folder) == written


def test_quantized_chunks_of_an_earlier_version_are_refused_where_they_are_all_there_is(model: Path) -> None:
    written = split_model(model, SPANS, quantization="int8")
    make_former(written)
    (model / "lit_model.pth").unlink()
    with pytest.raises(CheckpointError, match=r"2nodes-int8: these int8 weights .* earlier version.* --quantize int8"):
        open_folder(model, 2)


def test_chunks_of_an_earlier_version_that_are_not_quantized_are_used(model: Path) -> None:
    make_former(split_model(model, SPANS))
    folder = open_folder(model, 2)
    assert folder.with_chunks(SPANS, None) is folder
