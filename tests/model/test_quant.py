"""Quantized weights: what the formats keep, what the kernels make of them, and rows that stay independent."""

from pathlib import Path

import gguf
import numpy as np
import pytest
import torch

from mdi.checkpoint.chunks import split_model
from mdi.checkpoint.config import load_config
from mdi.checkpoint.manifest import read_manifest
from mdi.checkpoint.tensor_file import open_weights
from mdi.checkpoint.weights import select
from mdi.errors import CheckpointError, ConfigError
from mdi.formats import Mode
from mdi.model.backends.select import make_span_engine
from mdi.model.build import Placement
from mdi.model.head import EmbeddingAndHead
from mdi.model.linear import (
    PAD_ABOVE_ROWS,
    ROW_STEP,
    Int8Linear,
    PackedLinear,
    PlainLinear,
    _multiply_dynamic,
    _packs,
    make_linear,
)
from mdi.model.quant import (
    GROUP,
    Weight,
    dequantize,
    join,
    mode_for,
    mode_of,
    pack_int4,
    quantize,
    resolve,
    weight_bytes,
)
from mdi.model.span import Span
from mdi.model.stage import Stage
from mdi.segments import Segment
from support.models import TRAITS, make_model

CPU = torch.device("cpu")
SPANS = [Span(0, 2), Span(2, 6)]


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def linear(weight: Weight, bias: torch.Tensor | None = None, rows: int = 1) -> object:
    return make_linear(weight, bias, device=CPU, dtype=torch.float32, rows=rows)


def error(y: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """Of each row, relative to its length."""
    return (y - wanted).norm(dim=-1) / wanted.norm(dim=-1)


# Rows of what rounding may meet: ordinary, halves of a step, outliers, constants, and less than float16 can hold.
TRYING = torch.cat(
    (
        randn(200, 96) * torch.logspace(-7, 4, 200)[:, None],
        (torch.randint(-254, 255, (200, 96), generator=torch.Generator().manual_seed(1)) / 2).clamp(-127, 127),
        randn(200, 96) ** 5,
        torch.tensor([[0.0], [-0.0], [3.0], [-0.1], [1e-30], [1e-40]]).expand(6, 96),
    )
)


def ggml_blocks(rows: torch.Tensor, kind: gguf.GGMLQuantizationType) -> torch.Tensor:
    """What ggml's reference quantizer makes of rows: the bytes of their blocks, (O, B, bytes of a block)."""
    with np.errstate(all="ignore"):
        return torch.from_numpy(gguf.quantize(rows.numpy(), kind)).view(len(rows), rows.size(1) // GROUP, -1)


def same_values(stored: Weight, rows: torch.Tensor, kind: gguf.GGMLQuantizationType) -> bool:
    wanted = gguf.dequantize(ggml_blocks(rows, kind).flatten(1).numpy(), kind)
    return torch.equal(dequantize(stored), torch.from_numpy(wanted))


def test_int8_is_q8_0_bit_for_bit() -> None:
    stored, blocks = quantize(TRYING, "int8"), ggml_blocks(TRYING, gguf.GGMLQuantizationType.Q8_0)
    scale = blocks[..., :2].contiguous().view(torch.float16)[..., 0]
    assert torch.equal(stored.parts["_scale"].view(torch.int16), scale.view(torch.int16))
    counts = scale != 0  # of a block whose scale is 0, ggml's integers are what an infinity is on its processor
    integers = blocks[..., 2:].view(torch.int8)
    assert torch.equal(stored.data.view(integers.shape)[counts], integers[counts])
    assert same_values(stored, TRYING, gguf.GGMLQuantizationType.Q8_0)


def test_int4_is_q4_1_bit_for_bit() -> None:
    rows = TRYING[TRYING.abs().amax(dim=1) > 1e-6]
    stored, blocks = quantize(rows, "int4"), ggml_blocks(rows, gguf.GGMLQuantizationType.Q4_1)
    pairs = blocks[..., :4].contiguous().view(torch.float16)
    assert torch.equal(stored.parts["_scale"].view(torch.int16), pairs.view(torch.int16))
    integers = torch.cat((blocks[..., 4:] & 15, blocks[..., 4:] >> 4), dim=-1)  # ggml's halves lie one behind the other
    assert torch.equal(stored.data, pack_int4(integers.flatten(1)))
    assert same_values(stored, rows, gguf.GGMLQuantizationType.Q4_1)


@pytest.mark.parametrize(("mode", "most"), [("int8", 0.01), ("int4", 0.1)])
def test_a_format_keeps_the_weight_within_its_precision(mode: Mode, most: float) -> None:
    weight = randn(70, 96)
    stored = quantize(weight, mode)
    assert (stored.mode, stored.shape) == (mode, weight.shape)
    assert error(dequantize(stored), weight).max() < most


def test_int4_returns_sixteen_levels_exactly() -> None:
    levels = torch.arange(16).repeat(3, 4) * 0.25 - 1.5  # as a model that was int4 before
    assert torch.equal(dequantize(quantize(levels, "int4")), levels)


def test_the_last_block_of_a_width_that_32_does_not_divide_is_shorter() -> None:
    name, weight = "transformer.h.0.attn.qkv.weight", randn(4, 40)
    assert mode_for(name, weight.shape, "int4") == "int8"  # int4 has no such block
    stored = quantize(weight, "int8")
    assert [part.shape for part in stored.parts.values()] == [(4, 40), (4, 2)]
    assert error(dequantize(stored), weight).max() < 0.01
    assert torch.equal(stored.parts["_scale"][:, 1].float(), (weight[:, 32:].abs().amax(dim=1) / 127).half().float())


@pytest.mark.parametrize("n_inputs", [64, 40])
@pytest.mark.parametrize("mode", ["none", "int8", "int4"])
def test_what_a_weight_takes_is_known_beforehand(mode: Mode, n_inputs: int) -> None:
    name, weight = "transformer.h.0.attn.qkv.weight", randn(8, n_inputs)
    stored = quantize(weight, mode_for(name, weight.shape, mode))
    taken = sum(part.nbytes for part in stored.parts.values())
    assert weight_bytes(name, weight.shape, torch.float32, mode) == taken


@pytest.mark.parametrize("mode", ["int8", "int4"])
def test_a_weight_is_quantized_in_blocks_as_at_once(mode: Mode, monkeypatch: pytest.MonkeyPatch) -> None:
    weight = randn(64, 64)
    whole = quantize(weight, mode)
    monkeypatch.setattr("mdi.model.quant.STEP_ELEMENTS", 5 * 64)
    for part, other in zip(whole.parts.values(), quantize(weight, mode).parts.values(), strict=True):
        assert torch.equal(part, other)


@pytest.mark.parametrize("weight", [torch.zeros(8, 32), torch.full((8, 32), 3.0)])
@pytest.mark.parametrize("mode", ["int8", "int4"])
def test_constant_weights_are_kept(mode: Mode, weight: torch.Tensor) -> None:
    torch.testing.assert_close(dequantize(quantize(weight, mode)), weight, rtol=2**-11, atol=0)  # of the scale


@pytest.mark.parametrize(("mode", "most"), [("none", 1e-5), ("int8", 0.02), ("int4", 0.005)])
@pytest.mark.parametrize("n_rows", [1, 2, 5, 16, 17, 24])
def test_a_linear_layer_computes_what_its_weight_stands_for(mode: Mode, most: float, n_rows: int) -> None:
    stored, bias, x = quantize(randn(128, 96), mode), randn(128, seed=1), randn(n_rows, 96, seed=2)
    y = linear(stored, bias, rows=2)(x)
    assert error(y, torch.nn.functional.linear(x, dequantize(stored), bias)).max() < most


@pytest.mark.parametrize("dynamic", [False, True])
def test_int8_does_not_saturate(dynamic: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sums of two 8-bit products overflow where the processor has no VNNI; 28.80 came out as 14.57."""
    if dynamic:
        monkeypatch.setattr("mdi.model.linear._int8_kernel", lambda: _multiply_dynamic)
    for width in (7, 64):  # rows that make all products of one output as large, and of one sign, as can be
        weight = quantize(randn(32, width) ** 3, "int8")
        rows = dequantize(weight).sign()
        y, wanted = Int8Linear(weight, None)(torch.cat((rows, -rows))), dequantize(weight) @ rows.T
        torch.testing.assert_close(y, torch.cat((wanted.T, -wanted.T)), rtol=0.01, atol=0.02 * float(wanted.max()))
    layer = Int8Linear(quantize(torch.ones(16, 64), "int8"), None)
    for row in (torch.ones(1, 64), -torch.ones(1, 64), torch.rand(1, 64) * 0.1 + 0.9):
        torch.testing.assert_close(layer(row), row.sum().expand(1, 16), rtol=0.01, atol=0)


def test_int8_keeps_what_stands_beside_an_outlier() -> None:
    """One input of a real model is often 24 times the others. 7 bits lose 0.11 of such a row."""
    values, x = randn(128, 96), randn(4, 96, seed=1)
    x[:, 5] = 24
    values[:, 5] = 0  # so that what is seen is what is left of the others
    weight = quantize(values, "int8")
    y, wanted = Int8Linear(weight, None)(x), x @ dequantize(weight).T
    assert error(y, wanted).max() < 0.08


@pytest.mark.parametrize("dynamic", [False, True])
def test_a_row_does_not_depend_on_the_rows_it_travels_with(dynamic: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if dynamic:
        monkeypatch.setattr("mdi.model.linear._int8_kernel", lambda: _multiply_dynamic)
    for mode in ("int8", "int4"):
        layer = linear(quantize(randn(128, 96), mode), randn(128))
        x = randn(5, 96, seed=1)
        x[1] *= 1000  # an outlier
        x[2] = x[2].abs()
        x[3] = 0
        together = layer(x)
        for i in range(5):
            assert torch.equal(layer(x[i : i + 1])[0], together[i])
        assert layer(x[:0]).shape == (0, 128)


def test_the_layout_of_float32_weights_follows_the_rows_of_a_message() -> None:
    narrow, wide = Weight(randn(8, 64)), Weight(randn(8, 2048))
    kinds = {type(linear(narrow)), type(linear(wide, rows=2)), type(linear(narrow, rows=2))}
    assert kinds <= {PackedLinear, PlainLinear}
    assert isinstance(linear(wide), PlainLinear)
    for weight in (narrow, wide):
        x = randn(3, weight.shape[1])
        torch.testing.assert_close(linear(weight, rows=2)(x), x @ weight.data.T, rtol=1e-4, atol=1e-4)


@pytest.mark.skipif(not _packs(), reason="torch has no packed layout here")
def test_a_packed_layer_meets_few_numbers_of_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """oneDNN keeps code for each of them."""
    layer, met = PackedLinear(randn(8, 16), None), set()
    multiply = torch.ops.mkldnn._linear_pointwise

    def note_rows(x: torch.Tensor, *arguments: object) -> torch.Tensor:
        met.add(len(x))
        return multiply(x, *arguments)

    monkeypatch.setattr(torch.ops.mkldnn, "_linear_pointwise", note_rows)
    assert [len(layer(randn(n, 16))) for n in range(1, 129)] == list(range(1, 129))
    assert set(range(1, PAD_ABOVE_ROWS + 1)) < met  # decoding computes no row that nobody wants
    assert len(met) == PAD_ABOVE_ROWS + (128 - PAD_ABOVE_ROWS) // ROW_STEP


def test_a_device_without_a_kernel_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("no such kernel")

    monkeypatch.setattr("mdi.model.linear._prepack", fail)
    with pytest.raises(ConfigError, match=r"--quantize int8: torch .* has no kernel for it on cpu \(no such kernel\)"):
        linear(quantize(randn(8, 32), "int8"))


@pytest.mark.parametrize("mode", ["int8", "int4"])
def test_joined_weights_give_their_outputs_side_by_side(mode: Mode) -> None:
    first, second = quantize(randn(8, 32), mode), quantize(randn(4, 32, seed=1), mode)
    assert torch.equal(dequantize(join([first, second])), torch.cat((dequantize(first), dequantize(second))))


def test_embedding_norms_biases_and_routers_keep_their_precision() -> None:
    taken = ["lm_head.weight", "transformer.h.3.attn.qkv.weight", "transformer.h.0.mlp.experts.2.fc_1.weight"]
    kept = [
        "transformer.wte.weight",
        "transformer.ln_f.weight",
        "transformer.h.0.norm_1.weight",
        "transformer.h.0.attn.norm_q.weight",
        "transformer.h.0.attn.qkv.bias",
        "transformer.h.0.mlp.gate.weight",
    ]
    shape = (8, 32)
    assert {mode_for(name, shape, "int8") for name in taken} == {"int8"}
    assert [mode_for(name, shape, "int4") for name in taken] == ["int8", "int4", "int4"]  # the head suffers most
    assert {mode_for(name, shape, "int4") for name in kept} == {"none"}


@pytest.mark.parametrize("trait", ["llama", "head bias", "mixture of experts, grouped router"])
@pytest.mark.parametrize("mode", ["int8", "int4"])
def test_a_quantized_chunk_and_quantizing_while_loading_are_the_same(mode: Mode, trait: str, tmp_path: Path) -> None:
    make_model(tmp_path, **TRAITS[trait])
    config, weights = load_config(tmp_path), open_weights(tmp_path / "lit_model.pth")
    manifest = split_model(tmp_path, SPANS, quantization=mode)
    chunks = tmp_path / "chunks" / f"2nodes-{mode}"
    assert manifest == read_manifest(chunks)
    assert manifest.quantization == mode
    x, segments = randn(7, 32), [Segment(0, 0, 7, 7)]
    for node, span in enumerate(SPANS):
        stored = select(open_weights(chunks / manifest.files[node].name), config, node, span)
        assert mode_of(stored) == mode
        outputs = []
        for own, placement in ((stored, Placement(CPU, torch.float32)), (weights, Placement(CPU, torch.float32, mode))):
            stage = Stage(make_span_engine(config, span, own, placement))
            stage.allocate(1, 16)
            outputs.append(stage.forward(x, segments))
            if node == 0:
                outputs[-1] = EmbeddingAndHead(config, own, placement).logits(outputs[-1])
        assert torch.equal(*outputs)


def test_quantized_chunks_are_smaller(tmp_path: Path) -> None:
    make_model(tmp_path, n_embd=128, intermediate_size=512)
    sizes = {
        mode: split_model(tmp_path, SPANS, quantization=mode).files[1].n_bytes for mode in ("none", "int8", "int4")
    }
    assert sizes["int8"] < 0.3 * sizes["none"]
    assert sizes["int4"] < 0.2 * sizes["none"]


def test_what_is_quantized_already_cannot_be_made_finer() -> None:
    assert [resolve("none", None, ""), resolve("none", "int8", ""), resolve("int8", None, "")] == [
        "none",
        "int8",
        "int8",
    ]
    with pytest.raises(ConfigError, match="--quantize none: the chunk holds int8 weights already"):
        resolve("int8", "none", "the chunk")


def test_a_damaged_scale_is_named(tmp_path: Path) -> None:
    make_model(tmp_path)
    split_model(tmp_path, SPANS, quantization="int8")
    weights = open_weights(tmp_path / "chunks/2nodes-int8/model_secondary0.pth")
    name = "transformer.h.2.attn.qkv.weight"
    scale = weights[name + "_scale"]
    for bad in (torch.ones(3).half(), scale.bfloat16(), scale[:, :0], scale[..., None]):
        with pytest.raises(CheckpointError, match=r"h\.2\.attn\.qkv\.weight is not in one of the formats"):
            select({**weights, name + "_scale": bad}, load_config(tmp_path), 1, SPANS[1])


@pytest.mark.parametrize(
    ("data", "scale"),
    [
        (torch.zeros(96, 32, dtype=torch.int8), torch.ones(96)),
        (torch.zeros(96, 16, dtype=torch.uint8), torch.ones(1, 96, 2, dtype=torch.bfloat16)),
    ],
)
def test_formats_of_earlier_versions_are_refused_by_name(
    data: torch.Tensor, scale: torch.Tensor, tmp_path: Path
) -> None:
    make_model(tmp_path)
    name = "transformer.h.2.attn.qkv.weight"
    weights = {**open_weights(tmp_path / "lit_model.pth"), name: data, name + "_scale": scale}
    with pytest.raises(CheckpointError, match=r"was quantized by an earlier version .* again with .* --quantize int"):
        select(weights, load_config(tmp_path), 1, SPANS[1])
