"""The memory that is asked for beforehand is the memory that is used."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from litgpt.config import Config

from mdi.checkpoint.chunks import StoredForm, split_model
from mdi.checkpoint.config import load_config
from mdi.checkpoint.folder import open_folder
from mdi.checkpoint.tensor_file import open_weights
from mdi.cluster.budget import (
    Budget,
    Need,
    NodeFacts,
    budgets_of,
    facts_of,
    fit_slots,
    need_of,
    roomiest_split,
)
from mdi.control.status import NodeStatus
from mdi.errors import ConfigError
from mdi.formats import Mode
from mdi.model.backends.native.native_span import NativeSpan
from mdi.model.backends.select import make_head, make_span_engine, prepare
from mdi.model.runner import StageRunner, StageSpec
from mdi.model.span import Span
from mdi.model.tensors import dtype_name
from mdi.model.weights import Weights
from mdi.strings import count
from support.models import BASE, make_model
from support.rings import ring_of
from support.statuses import IDLE

MB = 1_000_000
CPU = torch.device("cpu")
CONFIG = Config(**{**BASE, "head_size": 16})


def budget(free: int | None, *, weights: int = 10 * MB, slot: int = MB, name: str = "starter") -> Budget:
    return Budget(name, Need(weights, slot, 0), free)


def facts(mode: Mode = "none", *, name: str = "starter", free: int | None = None) -> NodeFacts:
    return NodeFacts(name, name, "cpu", torch.float32, mode, free)


@pytest.mark.parametrize("mode", ["none", "int8", "int4"])
def test_the_weights_are_those_of_the_chunk(mode: Mode, tmp_path: Path) -> None:
    make_model(tmp_path, n_embd=64, intermediate_size=64)
    config = load_config(tmp_path)
    spans = [Span(0, 2), Span(2, 6)]
    chunks = split_model(tmp_path, spans, quantization=mode).folder
    for node, name in enumerate(("model_starter.pth", "model_secondary0.pth")):
        session = {"has_ends": node == 0, "context": 10, "max_rows": 1}
        need = need_of(facts(mode), config, spans[node], **session)
        on_a_gpu = need_of(replace(facts(mode), device="cuda:1"), config, spans[node], **session)
        weights = open_weights(chunks / name)
        assert need.weights == pytest.approx(sum(tensor.nbytes for tensor in weights.values()), rel=0.05)
        assert need.weights - on_a_gpu.weights == (config.padded_vocab_size * 64 * 4 if node == 0 else 0)
        assert need.slot == len(spans[node]) * 2 * 2 * 16 * 10 * 4  # layers, keys and values, groups, head size, ...


KINDS = [
    (torch.float32, "none", torch.float32),
    (torch.float32, "none", torch.bfloat16),
    (torch.bfloat16, "none", torch.float32),
    (torch.float32, "int8", torch.float32),
    (torch.bfloat16, "int4", torch.bfloat16),
]


@pytest.mark.parametrize(("dtype", "mode", "stored"), KINDS)
@pytest.mark.parametrize("is_tied", [False, True])
def test_what_is_counted_for_kernels_is_what_they_allocate(
    dtype: torch.dtype, mode: Mode, stored: torch.dtype, is_tied: bool, tmp_path: Path
) -> None:
    """In sizes that no tile divides; but int4 divides one of the widths."""
    if not prepare(CPU, "native"):
        pytest.skip("no C++ compiler is installed")
    make_model(tmp_path, n_embd=72, n_head=3, head_size=12, n_query_groups=3, intermediate_size=96, attn_bias=True)
    config = load_config(tmp_path)
    weights = {name: tensor.to(stored) for name, tensor in open_weights(tmp_path / "lit_model.pth").items()}
    if is_tied:
        weights["lm_head.weight"] = weights["transformer.wte.weight"]
    runner = StageRunner(CPU, make_span_engine, make_head, backend="native")
    runner.load(StageSpec(config, Span(0, 2), True, 0, dtype_name(dtype), mode, rows=1), Weights.of(weights), "it")
    runner.begin(3, 21)
    node = replace(facts(mode), dtype=dtype, has_kernels=True)
    session = {"has_ends": True, "context": 21, "max_rows": 1}
    need = need_of(node, config, Span(0, 2), **session, stored=StoredForm(dtype_name(stored), is_tied))
    norms = 4 * 96 * 5  # two in each layer and the last one, which a node does not count among its weights
    assert need.weights == runner.weights_bytes + norms
    engine = runner._loaded_stage.engine
    assert isinstance(engine, NativeSpan)
    assert 3 * need.slot == runner.cache_bytes


def test_kernels_take_less_than_torch_where_they_compute(tmp_path: Path) -> None:
    make_model(tmp_path / "a", n_embd=64, head_size=16)
    make_model(tmp_path / "b", n_embd=64, head_size=16, rotary_percentage=0.0625)  # which they do not compute
    supported, other = (load_config(tmp_path / name) for name in "ab")
    session = {"has_ends": False, "context": 16, "max_rows": 4}
    torch_node, native_node = replace(facts("int8")), replace(facts("int8"), has_kernels=True)
    on_torch, on_kernels = (need_of(node, supported, Span(0, 2), **session) for node in (torch_node, native_node))
    assert on_torch.slot == 2 * on_kernels.slot
    assert need_of(native_node, other, Span(0, 2), **session) == need_of(torch_node, other, Span(0, 2), **session)
    on_gpu = replace(native_node, device="cuda:0", dtype=torch.bfloat16)
    assert need_of(on_gpu, supported, Span(0, 2), **session).slot == on_kernels.slot
    halves = replace(torch_node, dtype=torch.bfloat16), replace(native_node, dtype=torch.bfloat16)
    messages = [need_of(node, supported, Span(0, 2), **session).message for node in halves]
    assert messages[1] == 2 * messages[0], "kernels compute in float32"


def test_slots_are_as_many_as_the_tightest_node_holds() -> None:
    budgets = [budget(None), budget(100 * MB), budget(20 * MB, name="secondary 0")]
    assert fit_slots(budgets, 3, fixed=False) == 3
    assert fit_slots(budgets, 100, fixed=False) == 8
    assert fit_slots([budget(None)], 100, fixed=True) == 100


def test_a_shortage_is_reported_with_numbers_and_advice() -> None:
    with pytest.raises(ConfigError, match=r"secondary 0: the weights take 10\.00 MB, 100 slots .*--max-slots.*int8"):
        fit_slots([budget(None), budget(20 * MB, name="secondary 0")], 100, fixed=True)
    with pytest.raises(ConfigError, match=r"starter: .* 1 slot of 1\.00 MB 1\.00 MB .* free memory of 5\.00 MB"):
        fit_slots([budget(5 * MB)], 100, fixed=False)


def test_the_roomiest_split_leaves_most_to_the_node_that_has_least(tmp_path: Path) -> None:
    make_model(tmp_path, n_layer=8, padded_vocab_size=4096)
    config = load_config(tmp_path)
    session = {"context": 10, "n_slots": 2}

    def counts(*free: int | None, place: str | None = None) -> list[int]:
        nodes = [replace(facts(name=str(i), free=room), place=place or str(i)) for i, room in enumerate(free)]
        return [len(span) for span in roomiest_split(nodes, config, **session)]

    def left(n_layers: int, free: int, *, has_ends: bool) -> float:
        need = need_of(facts(), config, Span(0, n_layers), has_ends=has_ends, context=10, max_rows=1)
        return (need.weights + 2 * need.slot) / free

    for starter, secondary in ((MB, MB), (4 * MB, MB), (MB, 9 * MB)):
        fullest = {n: max(left(n, starter, has_ends=True), left(8 - n, secondary, has_ends=False)) for n in range(1, 8)}
        assert counts(starter, secondary)[0] == min(fullest, key=lambda n: fullest[n])
    assert counts(MB, None) == counts(None, None) == counts(MB, MB, place="one machine") == counts(MB, MB)


def test_nodes_of_one_machine_share_its_memory(tmp_path: Path) -> None:
    make_model(tmp_path)
    config = load_config(tmp_path)
    status = replace(IDLE, free_memory_bytes=5 * MB)
    alone = [facts_of(name, name, status, "none", None) for name in ("starter", "secondary 0")]
    together = [facts_of(name, "here", status, "none", "int8") for name in ("starter", "secondary 0")]
    spans = [Span(0, 2), Span(2, 6)]
    first, second = budgets_of(alone, config, spans, context=10, max_rows=1)
    (both,) = budgets_of(together, config, spans, context=10, max_rows=1)
    assert both.name == "starter and secondary 0"
    assert both.free_bytes == 5 * MB
    assert both.need.slot == first.need.slot + second.need.slot
    assert both.need.weights < first.need.weights + second.need.weights


def test_a_node_has_no_more_than_its_limit(tmp_path: Path) -> None:
    """Also beside others on its machine, which have what is free."""
    make_model(tmp_path)
    config, status = load_config(tmp_path), replace(IDLE, free_memory_bytes=5 * MB)
    limited = replace(status, memory_limit_bytes=2 * MB)
    nodes = [facts_of(str(i), "here", told, "none", None) for i, told in enumerate((status, limited))]
    both, one = budgets_of(nodes, config, [Span(0, 2), Span(2, 6)], context=10, max_rows=1)
    assert (both.name, both.usable_bytes) == ("0 and 1", 4.5 * MB)
    assert (one.name, one.usable_bytes) == ("1", 2 * MB)  # all of it: nothing else is to have a part
    assert one.need.slot == both.need.slot * 4 / 6
    assert one.max_slots == (2 * MB - one.need.weights - one.need.message) // one.need.slot
    with pytest.raises(
        ConfigError, match=r"^1: the weights .* but its memory limit is 2\.00 MB \(--memory-limit\): try"
    ):
        fit_slots([both, one], 10**6, fixed=True)


def test_the_limit_that_a_node_tells_is_the_one_that_counts() -> None:
    told = replace(IDLE, memory_limit_bytes=2 * MB)
    assert facts_of("x", "x", told, "none", None, limit_bytes=3 * MB).limit_bytes == 2 * MB
    for status in (None, IDLE):
        assert facts_of("x", "x", status, "none", None, limit_bytes=3 * MB).limit_bytes == 3 * MB


def test_the_roomiest_split_heeds_limits(tmp_path: Path) -> None:
    make_model(tmp_path, n_layer=8, padded_vocab_size=64)
    config, node = load_config(tmp_path), facts(free=9 * MB)
    split = [node, replace(node, name="1", place="1", limit_bytes=MB)]
    assert len(roomiest_split(split, config, context=10, n_slots=2)[1]) == 1


@pytest.mark.parametrize("status", [None, IDLE])
def test_a_node_that_tells_nothing_is_no_obstacle(status: NodeStatus | None) -> None:
    known = facts_of("secondary 0", "x", status, "int8", None)
    assert (known.free_bytes, known.mode, known.dtype) == (None, "int8", torch.float32)


def test_a_node_counts_in_the_dtype_that_it_will_compute_in() -> None:
    untold, told = replace(IDLE, dtype="bfloat16"), replace(IDLE, dtype="bfloat16", own_dtype="bfloat16")
    found = [facts_of("x", "x", status, "none", None, "float32").dtype for status in (None, untold, told)]
    assert found == [torch.float32, torch.float32, torch.bfloat16]
    assert facts_of("x", "x", untold, "none", None).dtype == torch.bfloat16


def test_slots_count_as_what_keeps_them() -> None:
    native = replace(IDLE, has_kernels=True)

    def slot_bytes(status: NodeStatus, *wanted: Any) -> int:
        (budget,) = budgets_of([facts_of("x", "x", status, *wanted)], CONFIG, [Span(0, 2)], context=20, max_rows=1)
        return budget.need.slot

    keys_and_values = 2 * 2 * 2 * 16  # layers, both, groups, head size
    assert slot_bytes(IDLE, "none", "int8", "float32", "int8") == keys_and_values * 20 * 4  # torch
    assert slot_bytes(native, "none", None, "float32") == keys_and_values * 32 * 4  # positions are filled up
    assert slot_bytes(native, "none", "int8", "float32") == keys_and_values * 32 * 2
    assert slot_bytes(native, "none", "int8", "float32", "int8") == keys_and_values * 32 * 20 // 16  # with scales
    own = replace(native, kv_dtype="float16")
    assert slot_bytes(own, "none", "none", "float32", "int8") == keys_and_values * 32 * 2


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("checkpoints") / "org" / "tiny")


@pytest.mark.parametrize("n_fitting", [1, 2, 3])
def test_samples_wait_where_memory_is_short(
    n_fitting: int, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    prompts = [[1, 2, 3], [4, 5], [6], [7, 8, 9, 10], [11]]
    config = load_config(model)
    status = replace(IDLE, has_kernels=prepare(CPU, "auto"))
    nodes = [facts_of(name, "here", status, "none", None, "float32") for name in ("starter", "secondary 0")]
    stored = open_folder(model, 2).stored(2)
    with ring_of(2, tmp_path / "cache") as ring:
        wanted = ring.generate(model, prompts, split="2,4")
        (both,) = budgets_of(nodes, config, [Span(0, 2), Span(2, 6)], context=16, max_rows=128, stored=stored)
        free = int((both.need.weights + both.need.message + (n_fitting + 0.5) * both.need.slot) / 0.9)
        monkeypatch.setattr("mdi.model.runner.free_memory_bytes", lambda device: free)
        ring.secondaries[0]._runner.unload()  # its memory would count as free
        caplog.clear()
        assert ring.generate(model, prompts, split="2,4") == wanted
        assert f"memory allows {count(n_fitting, 'sample')} in the ring at once" in caplog.text


def test_a_limit_of_a_node_limits_the_samples_of_the_ring(
    model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    prompts = [[1, 2, 3], [4, 5], [6]]
    config, stored = load_config(model), open_folder(model, 2).stored(2)
    node = facts_of("starter", "here", replace(IDLE, has_kernels=prepare(CPU, "auto")), "none", None, "float32")
    need = need_of(node, config, Span(0, 2), has_ends=True, context=15, max_rows=128, stored=stored)
    limit = f"{(need.weights + need.message + 1.5 * need.slot) / MB:.6f}MB"
    with ring_of(2, tmp_path / "cache") as ring:
        wanted = ring.generate(model, prompts, split="2,4")
        caplog.clear()
        assert ring.generate(model, prompts, split="2,4", memory_limit=limit) == wanted
        assert "memory allows 1 sample in the ring at once" in caplog.text
        with pytest.raises(ConfigError, match=r"starter: the weights take .* but its memory limit is 1\.00 MB"):
            ring.generate(model, prompts * 100, split="2,4", memory_limit="1MB", max_slots=300)


@pytest.mark.parametrize(("options", "slots"), [({}, "1 slot of"), ({"max_slots": 5}, "5 slots of")])
def test_too_little_memory_is_reported_before_anything_is_loaded(
    options: dict[str, int], slots: str, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mdi.model.runner.free_memory_bytes", lambda device: 100_000)
    with ring_of(2, tmp_path / "cache") as ring:
        with pytest.raises(ConfigError, match=f"starter and secondary 0: the weights take .* {slots}.* 90000 B may"):
            ring.generate(model, [[1, 2, 3]] * 5, **options)
        assert ring.secondaries[0]._runner.weights_bytes == 0
        monkeypatch.undo()
        assert len(ring.generate(model, [[1, 2, 3]] * 5, **options)) == 5


def test_what_is_held_for_the_last_session_is_counted_as_weights(model: Path) -> None:
    """So a node that is asked before its next session can say what that would find free."""
    config, weights = load_config(model), open_weights(model / "lit_model.pth")
    runner = StageRunner(CPU, make_span_engine, make_head)
    assert runner.weights_bytes == 0
    spec = StageSpec(config, Span(0, 2), has_head=True, weights_id=0, dtype="float32", quantize="int8", rows=1)
    runner.load(spec, weights, "the model")
    assert runner.holds(spec)
    need = need_of(facts("int8"), config, Span(0, 2), has_ends=True, context=10, max_rows=1)
    assert need.weights <= runner.weights_bytes < 1.05 * need.weights  # native kernels fill up their tiles
