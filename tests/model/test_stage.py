"""A stage is a function of messages: any mix of segments gives litgpt's hidden states, row for row."""

import dataclasses
import gc
import weakref
from itertools import chain, product
from pathlib import Path

import pytest
import torch
from litgpt.config import Config
from litgpt.model import GPT

from mdi.checkpoint.config import load_config
from mdi.checkpoint.tensor_file import open_weights
from mdi.errors import CheckpointError, ConfigError, RemoteProtocolError
from mdi.model.attention import make_plan
from mdi.model.backends import torch_compile
from mdi.model.backends.select import BACKENDS, Backend, make_span_engine
from mdi.model.backends.torch_span import TorchSpan
from mdi.model.build import Placement
from mdi.model.devices import memory_errors
from mdi.model.head import EmbeddingAndHead
from mdi.model.ops import rms_norm
from mdi.model.shapes import head_shapes, layer_shapes, stage_shapes
from mdi.model.span import Span
from mdi.model.stage import Stage, kept_rows
from mdi.model.tensors import from_buffer
from mdi.segments import Segment, rows_of
from support.models import BASE, TRAITS, make_model

CPU = Placement(torch.device("cpu"), torch.float32)
IDS = torch.randint(0, 320, (3, 60), generator=torch.Generator().manual_seed(3))


class Model:
    """Two stages and the head, driven without a ring, beside litgpt's whole model."""

    def __init__(self, folder: Path, placement: Placement = CPU, **traits: object) -> None:
        make_model(folder, **traits)
        self.config = load_config(folder)
        weights = open_weights(folder / "lit_model.pth")
        self.engines = [TorchSpan(self.config, span, weights, placement) for span in (Span(0, 2), Span(2, 6))]
        self.stages = [Stage(engine) for engine in self.engines]
        self.head = EmbeddingAndHead(self.config, weights, CPU)
        self.reference = GPT(self.config)
        self.reference.load_state_dict(dict(weights))
        self.allocate()

    def allocate(self, n_slots: int = 4, context: int = 64) -> None:
        for stage in self.stages:
            stage.allocate(n_slots, context)

    def logits(self, *segments: Segment, ids: torch.Tensor = IDS) -> torch.Tensor:
        """Run one message; slot s holds sequence s of `ids`."""
        tokens = [int(t) for s in segments for t in ids[s.slot, s.start : s.stop]]
        positions = [p for s in segments for p in range(s.start, s.stop)]
        x = self.head.embed(tokens, positions)
        for stage in self.stages:
            x = stage.forward(x, segments)
        return self.head.logits(kept_rows(x, segments))

    @torch.inference_mode()
    def expected(self, *segments: Segment, ids: torch.Tensor = IDS) -> torch.Tensor:
        rows = [self.reference(ids[s.slot : s.slot + 1, : s.stop])[0, s.stop - s.keep :] for s in segments]
        return torch.cat(rows)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return Model(tmp_path_factory.mktemp("model"))


@pytest.mark.parametrize(
    "trait",
    ["llama", "sliding window", "dual rope", "softcapping, scaled embeddings", "mixture of experts", "partial rotary"],
)
def test_1_3_and_40_rows_of_three_slots_in_one_message(trait: str, tmp_path: Path) -> None:
    model = Model(tmp_path, **TRAITS[trait])
    messages = [
        (Segment(0, 0, 1, 1), Segment(1, 0, 3, 3), Segment(2, 0, 40, 40)),  # three prefills
        (Segment(2, 40, 1, 1), Segment(0, 1, 40, 40), Segment(1, 3, 3, 3)),  # decode beside prefill, other order
        (Segment(1, 6, 1, 1), Segment(2, 41, 1, 1), Segment(0, 41, 1, 1)),  # decode only
    ]
    for segments in messages:
        torch.testing.assert_close(model.logits(*segments), model.expected(*segments), atol=2e-5, rtol=1e-4)


def test_only_the_kept_rows_return(model: Model) -> None:
    model.allocate()
    segments = (Segment(0, 0, 5, 1), Segment(1, 0, 4, 0), Segment(2, 0, 3, 2))
    assert kept_rows(torch.arange(12.0)[:, None], segments).flatten().tolist() == [4.0, 10.0, 11.0]
    torch.testing.assert_close(model.logits(*segments), model.expected(Segment(0, 0, 5, 1), Segment(2, 0, 3, 2)))


def test_a_stage_that_is_reset_has_empty_slots_in_the_same_memory(model: Model) -> None:
    model.allocate()
    model.logits(Segment(0, 0, 10, 1))
    before = model.engines[0].blocks[0].attn.k_slots.data_ptr()
    for one in model.stages:
        one.reset()
    assert model.engines[0].blocks[0].attn.k_slots.data_ptr() == before
    with pytest.raises(RemoteProtocolError, match="no segment may start at 10"):
        model.logits(Segment(0, 10, 1, 1))
    torch.testing.assert_close(model.logits(Segment(0, 0, 4, 4)), model.expected(Segment(0, 0, 4, 4)))


def test_a_stage_that_is_freed_keeps_its_weights_and_nothing_else(model: Model) -> None:
    stage = model.stages[0]
    model.allocate()
    stage.free()
    assert stage.slots == (0, 0)
    blocks = model.engines[0].blocks.values()
    assert all(block.attn.k_slots.nbytes + block.attn.v_slots.nbytes == 0 for block in blocks)
    with pytest.raises(RemoteProtocolError):
        model.logits(Segment(0, 0, 1, 1))
    model.allocate()
    torch.testing.assert_close(model.logits(Segment(0, 0, 4, 4)), model.expected(Segment(0, 0, 4, 4)))


def test_a_wrong_guess_is_overwritten_by_a_lower_start(model: Model) -> None:
    model.allocate()
    model.logits(Segment(0, 0, 10, 1))
    guess = IDS.clone()
    guess[0, 10:14] = 7
    model.logits(Segment(0, 10, 4, 4), ids=guess)
    segment = Segment(0, 10, 4, 4)
    torch.testing.assert_close(model.logits(segment), model.expected(segment))


@pytest.mark.parametrize("n_shared", [0, 1, 20, 29])
def test_a_slot_serves_another_sequence_from_where_they_part(model: Model, n_shared: int) -> None:
    model.allocate()
    other = IDS.flip(1)
    other[0, :n_shared] = IDS[0, :n_shared]
    model.logits(Segment(0, 0, 30, 1), ids=other)
    segment = Segment(0, n_shared, 4, 4)
    torch.testing.assert_close(model.logits(segment), model.expected(segment))
    with pytest.raises(RemoteProtocolError, match=f"holds {n_shared + 4} positions"):
        model.logits(Segment(0, 36, 1, 1))


def test_a_fork_continues_from_a_shared_beginning(model: Model) -> None:
    model.allocate()
    shared = IDS.clone()
    shared[2, :20] = shared[0, :20]
    model.logits(Segment(0, 0, 25, 1), ids=shared)
    for stage in model.stages:
        stage.fork(0, 2, 20)
    segments = (Segment(2, 20, 5, 5), Segment(0, 25, 1, 1))
    torch.testing.assert_close(model.logits(*segments, ids=shared), model.expected(*segments, ids=shared))


def test_illegal_segments_change_nothing(model: Model) -> None:
    model.allocate()
    model.logits(Segment(0, 0, 5, 1))
    for bad in (Segment(0, 6, 1, 1), Segment(4, 0, 1, 1), Segment(0, 5, 60, 1)):
        with pytest.raises(RemoteProtocolError):
            model.stages[0].forward(torch.zeros(bad.n, 32), [Segment(1, 0, 1, 1), bad])
    segments = (Segment(0, 5, 2, 2), Segment(1, 0, 2, 2))
    torch.testing.assert_close(model.logits(*segments), model.expected(*segments))


def test_a_row_does_not_depend_on_the_allocated_context(model: Model) -> None:
    outputs = []
    for context in (64, 128):
        model.allocate(context=context)
        outputs.append(model.logits(Segment(1, 0, 20, 20)))
    assert torch.equal(*outputs)


@pytest.mark.parametrize("trait", ["llama", "sliding window", "softcapping, scaled embeddings"])
def test_a_row_does_not_depend_on_what_was_left_in_its_neighbours_slots(trait: str, tmp_path: Path) -> None:
    model = Model(tmp_path, **TRAITS[trait])
    prompts = [Segment(0, 0, 30, 1), Segment(1, 0, 12, 1), Segment(2, 0, 3, 1)]
    message = [Segment(0, 30, 1, 1), Segment(1, 12, 1, 1), Segment(2, 3, 1, 1)]
    plan = make_plan(message, model.config, CPU.device, CPU.dtype)
    assert [(piece.slots, piece.stop) for piece in plan.full] == [(slice(0, 3), 31)]  # one call, which hides a part
    outputs = []
    for stale in (0.0, 300.0, -300.0):
        model.allocate()
        model.logits(*prompts)
        for segment, block in product(message, chain(*(engine.blocks.values() for engine in model.engines))):
            block.attn.k_slots[segment.slot, :, segment.start :] = stale
            block.attn.v_slots[segment.slot, :, segment.start :] = stale
        outputs.append(model.logits(*message))
    assert torch.equal(outputs[0], outputs[1]) and torch.equal(outputs[0], outputs[2])
    torch.testing.assert_close(outputs[0], model.expected(*message), atol=2e-5, rtol=1e-4)


def test_a_long_segment_is_cut_into_pieces(tmp_path: Path) -> None:
    model = Model(tmp_path, block_size=512, sliding_window_size=50, sliding_window_indices=[1, 0] * 3)
    model.allocate(context=512)
    ids = torch.randint(0, 320, (1, 400), generator=torch.Generator().manual_seed(1))
    model.logits(Segment(0, 0, 90, 1), ids=ids)
    segment = Segment(0, 90, 310, 310)
    torch.testing.assert_close(model.logits(segment, ids=ids), model.expected(segment, ids=ids), atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("trait", ["llama", "softcapping, scaled embeddings", "mixture of experts, grouped router"])
def test_half_precision_stays_near(dtype: torch.dtype, trait: str, tmp_path: Path) -> None:
    model = Model(tmp_path, **TRAITS[trait])
    weights = open_weights(tmp_path / "lit_model.pth")
    stage = Stage(TorchSpan(model.config, Span(0, 2), weights, Placement(torch.device("cpu"), dtype)))
    stage.allocate(2, 64)
    x = torch.randn(5, 32, generator=torch.Generator().manual_seed(0))
    near = stage.forward(x, [Segment(0, 0, 5, 1)])
    assert near.dtype == dtype
    exact = model.stages[0].forward(x, [Segment(0, 0, 5, 1)])
    assert torch.nn.functional.cosine_similarity(near.float(), exact).min() > 0.97


def test_a_head_tied_to_the_embedding_is_held_once(tmp_path: Path) -> None:
    config = Config(**BASE)
    table = torch.randn(config.padded_vocab_size, config.n_embd)
    weights = {"transformer.wte.weight": table, "lm_head.weight": table, "transformer.ln_f.weight": torch.ones(32)}
    head = EmbeddingAndHead(config, weights, Placement(torch.device("cpu"), torch.bfloat16))
    assert head._embedding.data_ptr() == head._head.weight.data_ptr()
    assert torch.equal(head.embed([7], [0]), table[7:8].bfloat16())


def test_the_embedding_is_kept_in_the_smaller_dtype() -> None:
    config = Config(**BASE)
    table = torch.randn(config.padded_vocab_size, config.n_embd)
    for stored, computed, kept in (
        (torch.float32, torch.bfloat16, torch.bfloat16),
        (torch.bfloat16, torch.float32, torch.bfloat16),
        (torch.float32, torch.float32, torch.float32),
    ):
        weights = {"transformer.wte.weight": table.to(stored), "transformer.ln_f.weight": torch.ones(32)}
        weights["lm_head.weight"] = table.to(stored)
        head = EmbeddingAndHead(config, weights, Placement(torch.device("cpu"), computed))
        assert head._embedding.dtype == kept
        assert torch.equal(head.embed([7], [0]), table[7:8].to(stored).to(computed))


def test_a_missing_or_misshapen_tensor_is_named(tmp_path: Path) -> None:
    config = load_config(make_model(tmp_path))
    weights = open_weights(tmp_path / "lit_model.pth")
    lacking = {name: tensor for name, tensor in weights.items() if name != "transformer.h.1.norm_2.weight"}
    with pytest.raises(CheckpointError, match=r"layer 1 .*norm_2\.weight"):
        TorchSpan(config, Span(0, 2), lacking, CPU)
    with pytest.raises(CheckpointError, match=r"embedding.*lm_head\.weight"):
        EmbeddingAndHead(config, {**weights, "lm_head.weight": torch.zeros(3, 3)}, CPU)


def test_weights_and_slots_go_with_the_stage(tmp_path: Path) -> None:
    model = Model(tmp_path)
    packed = weakref.ref(model.engines[0].blocks[0].mlp)
    gc.disable()
    try:
        model.stages.clear()
        model.engines.clear()
        assert packed() is None
    finally:
        gc.enable()


def test_out_of_memory_is_an_error_with_advice(model: Model) -> None:
    with pytest.raises(ConfigError, match=r"out of memory for .*fewer samples"):
        model.stages[0].allocate(10**6, 10**7)
    assert model.stages[0].slots == (0, 0)
    with pytest.raises(RuntimeError, match="something else"), memory_errors("x"):
        raise RuntimeError("something else")


def test_the_shapes_of_a_model() -> None:
    config = Config(**{**BASE, **TRAITS["mixture of experts, grouped router"]})
    model = GPT(config)
    shapes = stage_shapes(config, Span(0, config.n_layer)) | head_shapes(config)
    assert shapes == {name: tensor.shape for name, tensor in model.state_dict().items()}
    for layer, (own, block) in enumerate(zip(layer_shapes(config), model.transformer.h, strict=True)):
        path = f"transformer.h.{layer}."
        assert own == {path + name: tensor.shape for name, tensor in block.state_dict().items()}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch, about itself
@pytest.mark.parametrize("pays", [True, False])
def test_compiling_changes_no_result(pays: bool, model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = iter(2 * [1.0, 9.0, 9.0, 0.5 if pays else 1.0])
    monkeypatch.setattr(torch_compile, "step_s", lambda *_: next(seconds))
    placement = Placement(torch.device("cpu"), torch.float32, compile_ops=True)
    compiled = Model(tmp_path, placement)
    assert (placement.ops.rms_norm is not rms_norm) == pays
    compiled.allocate()
    model.allocate()
    for segments in ((Segment(0, 0, 9, 9),), (Segment(0, 9, 1, 1), Segment(1, 0, 2, 2))):
        torch.testing.assert_close(compiled.logits(*segments), model.logits(*segments), atol=2e-5, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_few_graphs_are_compiled_in_many_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch._dynamo.reset()
    before = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    monkeypatch.setattr(torch_compile, "MIN_COMPILE_SPEEDUP", 0.0)
    stage = Model(tmp_path, Placement(torch.device("cpu"), torch.float32, compile_ops=True)).stages[0]
    stage.allocate(16, 300)
    for step in range(200):
        segments = [Segment(slot, step, 1 + (step + slot) % 3, 1) for slot in range(step % 16 + 1)]
        stage._ledger._filled = [299] * 16  # any segment may come next
        stage.forward(from_buffer(memoryview(bytearray(rows_of(segments) * 128)), "float32", 32), segments)
    assert 0 < torch._dynamo.utils.counters["stats"]["unique_graphs"] - before < 8


def test_a_compiler_that_fails_is_logged_and_not_fatal(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(function: object, **_: object) -> object:
        def call(*_: object) -> None:
            raise RuntimeError("no compiler")

        return call

    monkeypatch.setattr(torch, "compile", fail)
    uncompiled = Model(tmp_path, Placement(torch.device("cpu"), torch.float32, compile_ops=True))
    assert "compiling the small operations is not possible here (no compiler): left as they were" in caplog.text
    uncompiled.allocate()
    model.allocate()
    assert torch.equal(uncompiled.logits(Segment(0, 0, 9, 9)), model.logits(Segment(0, 0, 9, 9)))


def test_a_model_that_no_backend_supports_is_refused_with_the_reasons() -> None:
    config = Config(**BASE)
    config.latent_attention = {"q_lora_rank": 1}
    with pytest.raises(
        ConfigError, match=r"no backend .* on cpu \(native: latent attention; torch: latent attention is not"
    ):
        make_span_engine(config, Span(0, 1), {}, CPU)


def test_the_first_backend_that_supports_a_model_is_chosen(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    never = pytest.fail
    native = Backend(
        "native", lambda *_: "float32 only", lambda *_: never("not supported"), lambda *_: never("nor this")
    )
    monkeypatch.setattr("mdi.model.backends.select.BACKENDS", (native, BACKENDS[-1]))
    weights = {name: torch.ones(shape) for name, shape in stage_shapes(model.config, Span(0, 1)).items()}
    assert isinstance(make_span_engine(model.config, Span(0, 1), weights, CPU), TorchSpan)


def test_torch_says_where_it_keeps_keys_and_values_in_another_dtype_than_asked(
    model: Model, caplog: pytest.LogCaptureFixture
) -> None:
    weights = model.reference.state_dict()
    engines = [
        TorchSpan(model.config, Span(0, 2), weights, dataclasses.replace(CPU, kv_dtype=kv_dtype))
        for kv_dtype in ("float32", "int8")
    ]
    assert caplog.messages == ["--kv-dtype int8: torch keeps keys and values in float32 all the same"]
    assert engines[1].cache_bytes == 0
    engines[1].allocate(3, 21)
    assert engines[1].cache_bytes == sum(
        block.attn.k_slots.nbytes + block.attn.v_slots.nbytes for block in engines[1].blocks.values()
    )


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU is there")
def test_a_gpu_computes_the_same_with_kernels_that_plan_for_no_length(model: Model) -> None:
    weights = model.reference.state_dict()
    stage = Stage(TorchSpan(model.config, Span(0, 2), weights, Placement(torch.device("cuda"), torch.float32)))
    stage.allocate(2, 64)
    x = torch.randn(6, 32, generator=torch.Generator().manual_seed(0))
    segments = [Segment(0, 0, 5, 5), Segment(1, 0, 1, 1)]
    expected = model.stages[0].forward(x, segments)
    torch.testing.assert_close(stage.forward(x, segments).cpu(), expected, atol=2e-5, rtol=1e-4)
    assert not torch.backends.cuda.cudnn_sdp_enabled()
