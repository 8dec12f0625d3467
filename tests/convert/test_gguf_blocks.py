"""A GGUF file prepared for int8 or int4: the file's own blocks, through the whole model into the chunks."""

from pathlib import Path

import gguf
import numpy as np
import pytest
import torch

from mdi.checkpoint.chunks import split_model
from mdi.checkpoint.digests import record_digests
from mdi.checkpoint.folder import open_folder
from mdi.checkpoint.manifest import Manifest, chunks_folder, read_manifest
from mdi.checkpoint.tensor_file import open_weights
from mdi.checkpoint.weights import whole_models
from mdi.cli.prepare import prepare
from mdi.config.prepare_options import PrepareOptions
from mdi.convert.gguf.convert import import_gguf
from mdi.convert.gguf.file import open_gguf
from mdi.errors import CheckpointError, ConfigError
from mdi.formats import Mode
from mdi.model.backends.select import make_span_engine
from mdi.model.build import Placement
from mdi.model.head import EmbeddingAndHead
from mdi.model.quant import dequantize, is_quantized_name, load_weight, mode_of
from mdi.model.span import Span, spans_of
from mdi.model.stage import Stage
from mdi.model.weights import Weights
from mdi.segments import Segment
from support.gguf_files import byte_level_tokenizer, hyperparameters, tensors, tiny_model, write_gguf

Q = gguf.GGMLQuantizationType
KINDS = [(Q.Q8_0, "int8"), (Q.Q4_0, "int4"), (Q.Q4_1, "int4"), (Q.Q4_0, "int8")]
N_SCALE_BYTES = {Q.Q8_0: 2, Q.Q4_0: 2, Q.Q4_1: 4}
SPANS = spans_of([1, 1])


def write_model(path: Path, kind: Q, case: str = "mixtral", *, tied: bool = False) -> Path:
    """A file whose blocks no reference quantizer makes: their integers need not reach the ends, as with an imatrix."""
    architecture, model = tiny_model(case)
    values = hyperparameters(architecture, model.config) | byte_level_tokenizer()
    stored = tensors(architecture, model, tied=tied)
    write_gguf(path, architecture, values, stored, lambda name: Q.F32 if "gate_inp" in name else kind)
    rng = np.random.default_rng(0)
    with path.open("rb+") as file:
        for info in open_gguf(path).tensors.values():
            if info.kind != kind:
                continue
            block_bytes = gguf.GGML_QUANT_SIZES[kind][1]
            file.seek(info.offset)
            blocks = np.frombuffer(file.read(info.n_rows * info.row_bytes), np.uint8).reshape(-1, block_bytes).copy()
            n_scale = N_SCALE_BYTES[kind]
            blocks[:, n_scale:] = rng.integers(0, 256, (len(blocks), block_bytes - n_scale))
            file.seek(info.offset)
            file.write(blocks.tobytes())
    return path


def converted(source: Path, folder: Path, mode: Mode) -> Weights:
    folder.mkdir()
    import_gguf(source, folder, dtype="float32", quantization=mode)
    [model] = whole_models(folder)
    record_digests(model)
    return open_weights(model)


@pytest.mark.parametrize(("kind", "mode"), KINDS)
def test_blocks_get_into_the_chunks_as_they_are_in_the_file(kind: Q, mode: Mode, tmp_path: Path) -> None:
    source = write_model(tmp_path / "tiny.gguf", kind)
    exact = converted(source, tmp_path / "exact", "none")
    whole = converted(source, tmp_path / "model", mode)
    assert (tmp_path / "model" / f"lit_model.{mode}.pth").is_file()
    for name, values in exact.items():
        if not is_quantized_name(name):
            assert torch.equal(whole[name], values), name
            continue
        weight, is_head = load_weight(whole, name), name == "lm_head.weight"
        assert weight.mode == ("int8" if is_head else mode), name
        if not (is_head and kind == Q.Q4_1):  # whose values int8 has not all
            assert torch.equal(dequantize(weight), values), name
    manifest = split_model(tmp_path / "model", SPANS, quantization=mode)
    assert manifest.quantization == mode
    for file in manifest.files:
        for name, part in open_weights(manifest.folder / file.name).items():
            assert torch.equal(part, whole[name]) and part.dtype == whole[name].dtype, name


def test_integers_and_scales_are_those_of_the_file(tmp_path: Path) -> None:
    source = write_model(tmp_path / "tiny.gguf", Q.Q8_0)
    weight = load_weight(converted(source, tmp_path / "model", "int8"), "transformer.h.1.attn.proj.weight")
    file = open_gguf(source)
    info = file.tensors["blk.1.attn_output.weight"]
    blocks = torch.from_numpy(file.stored_rows(info, 0, info.n_rows)).view(info.n_rows, -1, 34)
    assert weight.scale is not None
    assert torch.equal(weight.scale.view(torch.uint8).view(info.n_rows, -1, 2), blocks[..., :2])
    assert torch.equal(weight.data.view(torch.uint8).view(info.n_rows, -1, 32), blocks[..., 2:])


def test_other_types_are_rounded_once_from_what_they_stand_for(tmp_path: Path) -> None:
    source = write_model(tmp_path / "tiny.gguf", Q.Q8_0, "llama")
    exact = converted(source, tmp_path / "exact", "none")
    whole = converted(source, tmp_path / "model", "int4")
    name = "transformer.h.0.mlp.fc_1.weight"
    wanted = gguf.dequantize(gguf.quantize(exact[name].numpy(), Q.Q4_1), Q.Q4_1)
    assert torch.equal(dequantize(load_weight(whole, name)), torch.from_numpy(wanted))


def test_a_tied_head_is_quantized_and_the_embedding_is_not(tmp_path: Path) -> None:
    source = write_model(tmp_path / "tiny.gguf", Q.Q8_0, "gemma", tied=True)
    whole = converted(source, tmp_path / "model", "int8")
    embedding, head = load_weight(whole, "transformer.wte.weight"), load_weight(whole, "lm_head.weight")
    assert [embedding.mode, head.mode] == ["none", "int8"]
    assert torch.equal(dequantize(head), embedding.data)


@pytest.mark.parametrize("kind", [Q.Q8_0, Q.Q4_1])
def test_scales_that_are_no_numbers_are_refused(kind: Q, tmp_path: Path) -> None:
    source = write_model(tmp_path / "tiny.gguf", kind, "llama")
    info = open_gguf(source).tensors["blk.1.ffn_up.weight"]
    with source.open("rb+") as file:
        file.seek(info.offset)
        file.write(np.array([np.inf], dtype=np.float16).tobytes())
    for mode in ("int8", "int4"):
        (tmp_path / mode).mkdir()
        with pytest.raises(CheckpointError, match=r"blk\.1\.ffn_up\.weight holds infinite or undefined values"):
            import_gguf(source, tmp_path / mode, quantization=mode)  # type: ignore[arg-type]


def test_a_whole_model_and_its_chunks_compute_the_same(tmp_path: Path) -> None:
    source = write_model(tmp_path / "tiny.gguf", Q.Q8_0, "llama")
    whole = converted(source, tmp_path / "model", "int8")
    folder = open_folder(tmp_path / "model", 2, None).with_chunks(SPANS, None)
    manifest = folder.ring_manifest(2)
    assert manifest is not None and manifest.quantization == folder.stored_mode(1, None) == "int8"
    assert folder.starter_weights([Span(0, 2)], None).name == "lit_model.int8.pth"
    with pytest.raises(ConfigError, match=r"--quantize int4: .*lit_model\.int8\.pth holds int8 weights already"):
        open_folder(tmp_path / "model", 2, "int4").with_chunks(SPANS, "int4")
    placement = Placement(torch.device("cpu"), torch.float32, rows=2)
    x, segments = torch.randn(3, 64, generator=torch.Generator().manual_seed(0)), [Segment(0, 0, 3, 3)]
    outputs = []
    for parts in ([(Span(0, 2), whole)], list(zip(SPANS, map(open_weights, chunk_files(manifest)), strict=True))):
        y = x
        for span, weights in parts:
            assert mode_of(weights.meta) == "int8"
            stage = Stage(make_span_engine(folder.config, span, weights, placement))
            stage.allocate(1, 16)
            y = stage.forward(y, segments)
        outputs.append(EmbeddingAndHead(folder.config, parts[0][1], placement).logits(y))
    assert torch.equal(*outputs)


def chunk_files(manifest: Manifest) -> list[Path]:
    return [manifest.folder / file.name for file in manifest.files]


@pytest.mark.parametrize("name", ["org/name", "tinyllama", "/nowhere/model.pt"])
def test_only_gguf_files_are_quantized_without_chunks(name: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--quantize needs --n-nodes or --nodes-config"):
        prepare(PrepareOptions(model=name, ckpt_folder=tmp_path, quantize="int8"))


@pytest.mark.slow
def test_a_file_is_prepared_in_the_form_of_its_chunks_and_other_forms_stay(tmp_path: Path) -> None:
    source = write_model(tmp_path / "tiny.Q8_0.gguf", Q.Q8_0, "llama")
    options = {"model": str(source), "ckpt_folder": tmp_path / "checkpoints"}
    assert prepare(PrepareOptions(**options, quantize="int8"))[1] is None  # type: ignore[arg-type]
    options["n_nodes"] = 2
    folder, manifest = prepare(PrepareOptions(**options, quantize="int8"))  # type: ignore[arg-type]
    assert manifest is not None and manifest.folder == chunks_folder(folder, 2, "int8")
    [model] = whole_models(folder)
    assert model.name == "lit_model.int8.pth"
    written = model.stat().st_mtime_ns
    assert prepare(PrepareOptions(**options, quantize="int8")) == (folder, manifest)  # type: ignore[arg-type]

    _, plain = prepare(PrepareOptions(**options))  # type: ignore[arg-type]
    assert plain is not None and plain.folder == chunks_folder(folder, 2) and plain.quantization == "none"
    assert [path.name for path in whole_models(folder)] == ["lit_model.pth", "lit_model.int8.pth"]
    assert model.stat().st_mtime_ns == written
    assert read_manifest(manifest.folder) == manifest
    for mode, wanted in (("int8", manifest), (None, plain)):
        ring = open_folder(folder, 2, mode)  # type: ignore[arg-type]
        assert ring.with_chunks(SPANS, mode) is ring and ring.ring_manifest(2) == wanted  # type: ignore[arg-type]

    prepare(PrepareOptions(**options, quantize="int8", chunks_only=True))  # type: ignore[arg-type]
    assert whole_models(folder) == []
    assert prepare(PrepareOptions(**options, quantize="int8")) == (folder, manifest)  # type: ignore[arg-type]
