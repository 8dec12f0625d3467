"""The native backend gives torch's hidden states; the same bits on every CPU, beside any rows and with any threads."""

import ctypes
import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from litgpt.config import Config
from litgpt.model import GPT

from mdi.errors import CheckpointError, LocalProtocolError, RemoteProtocolError
from mdi.formats import KV_DTYPES, KvDtype, Mode
from mdi.model.backends.native.blocks import unsupported
from mdi.model.backends.native.library import NUMERICS
from mdi.model.backends.native.memory import cache_bytes
from mdi.model.backends.native.native_head import NativeHead
from mdi.model.backends.native.native_span import NativeSpan
from mdi.model.backends.torch_span import TorchSpan
from mdi.model.build import Placement
from mdi.model.head import EmbeddingAndHead
from mdi.model.quant import dequantize, mode_for, quantize
from mdi.model.span import Span
from mdi.model.span_engine import SpanEngine
from mdi.segments import Segment, rows_of
from support.models import BASE, MOE, NEOX, ROUTER, TRAITS

CPU = Placement(torch.device("cpu"), torch.float32)
SPAN = Span(1, 5)
WIDE = {"n_embd": 64, "intermediate_size": 160, "head_size": 20}  # several blocks of 32, and sizes that none divides
MESSAGES = [
    (Segment(0, 0, 1, 1), Segment(1, 0, 3, 3), Segment(2, 0, 40, 40)),
    (Segment(2, 40, 1, 1), Segment(0, 1, 40, 40), Segment(1, 3, 3, 3)),
    (Segment(1, 6, 1, 1), Segment(2, 41, 1, 1), Segment(0, 41, 1, 1)),
    (Segment(3, 0, 64, 1),),  # up to the end of a slot
]

Weights = dict[str, torch.Tensor]
Make = Callable[..., NativeSpan]


def weights_of(config: Config, seed: int = 0) -> Weights:
    model, generator = GPT(config), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.0, 0.3, generator=generator)
    return dict(model.state_dict())


def rows(n: int, n_embd: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(n, n_embd, generator=torch.Generator().manual_seed(seed))


def run(engine: SpanEngine, n_embd: int) -> torch.Tensor:
    """The rows of all messages, one after the other."""
    engine.allocate(4, 64)
    return torch.cat([engine.forward(rows(rows_of(m), n_embd, seed), m) for seed, m in enumerate(MESSAGES)])


@pytest.fixture
def library(libraries: dict[str, ctypes.CDLL]) -> ctypes.CDLL:
    """The one that this CPU would use."""
    return next(iter(libraries.values()))


@pytest.mark.parametrize("trait", TRAITS)
def test_hidden_states_are_torchs_and_the_same_bits_on_every_cpu(trait: str, libraries: dict[str, ctypes.CDLL]) -> None:
    config = Config(**{**BASE, **TRAITS[trait]})
    weights = weights_of(config)
    found = {name: run(NativeSpan(config, SPAN, weights, CPU, one), 32) for name, one in libraries.items()}
    first, *others = found.values()
    expected = run(TorchSpan(config, SPAN, weights, CPU), 32)
    torch.testing.assert_close(first, expected, atol=2e-5 * float(expected.abs().max()), rtol=1e-4)
    assert all(torch.equal(first, other) for other in others), list(found)


def test_every_trait_is_computed_and_only_cpus_compute_it() -> None:
    reasons = [unsupported(Config(**{**BASE, **fields}), CPU) for fields in TRAITS.values()]
    assert reasons == [None] * len(TRAITS)
    assert unsupported(Config(**BASE), dataclasses.replace(CPU, device=torch.device("cuda"))) == "cuda is not a CPU"


@pytest.mark.parametrize(
    "fields",
    [
        {**MOE, "n_expert": 40, "n_expert_per_token": 19},
        {**MOE, "n_expert": 7, "n_expert_per_token": 7, "moe_intermediate_size": None},
        {**MOE, "n_shared_expert": 2, "routed_scaling_factor": 0.5, "norm_topk_prob": True},
        {**MOE, **ROUTER, "n_expert": 60, "n_expert_groups": 5, "n_topk_groups": 2, "n_expert_per_token": 18},
        {**MOE, **ROUTER, "n_expert": 12, "n_shared_expert": None, "norm_topk_prob": False},
        {**NEOX, **MOE, "parallel_residual": True, "shared_attention_norm": True},
    ],
)
def test_experts_are_chosen_and_weighed_as_litgpt_does(fields: dict[str, Any], library: ctypes.CDLL) -> None:
    config = Config(**{**BASE, **WIDE, **fields})
    weights = weights_of(config)
    for name in weights:
        if name.endswith("e_score_correction_bias"):
            weights[name] = 0.3 * rows(1, config.n_expert, seed=len(name))[0].abs()
    expected = run(TorchSpan(config, SPAN, weights, CPU), config.n_embd)
    found = run(NativeSpan(config, SPAN, weights, CPU, library), config.n_embd)
    torch.testing.assert_close(found, expected, atol=2e-5 * float(expected.abs().max()), rtol=1e-4)


@pytest.mark.parametrize("mode", ["int8", "int4"])
@pytest.mark.parametrize("sizes", [{}, WIDE, {**WIDE, **MOE, **ROUTER}], ids=["narrow", "wide", "experts"])
def test_quantized_weights_lose_little_and_give_the_same_bits_on_every_cpu(
    mode: Mode, sizes: dict[str, Any], libraries: dict[str, ctypes.CDLL]
) -> None:
    config = Config(**{**BASE, **sizes})
    weights = weights_of(config)
    exact = {
        name: dequantize(quantize(tensor, mode_for(name, tensor.shape, mode))) if tensor.dim() == 2 else tensor
        for name, tensor in weights.items()
    }
    placement = Placement(torch.device("cpu"), torch.float32, mode)
    first, *others = [
        run(NativeSpan(config, SPAN, weights, placement, one), config.n_embd) for one in libraries.values()
    ]
    expected = run(TorchSpan(config, SPAN, exact, CPU), config.n_embd)
    most = 0.05 if config.n_expert else 0.03  # a router may choose others, near a tie
    assert (first - expected).norm() < most * expected.norm()
    assert all(torch.equal(first, other) for other in others)


@pytest.mark.parametrize(("kv_dtype", "most"), [("float32", 1e-6), ("float16", 1e-3), ("int8", 1e-2)])
@pytest.mark.parametrize("head_size", [20, 64])
def test_keys_and_values_of_fewer_bits_lose_little_and_give_the_same_bits_on_every_cpu(
    kv_dtype: KvDtype, most: float, head_size: int, libraries: dict[str, ctypes.CDLL]
) -> None:
    config = Config(**{**BASE, **WIDE, "head_size": head_size})
    weights, placement = weights_of(config), dataclasses.replace(CPU, kv_dtype=kv_dtype)
    spans = [NativeSpan(config, SPAN, weights, placement, one) for one in libraries.values()]
    first, *others = [run(span, 64) for span in spans]
    expected = run(TorchSpan(config, SPAN, weights, CPU), 64)
    assert (first - expected).norm() < most * expected.norm()
    assert all(torch.equal(first, other) for other in others)


@pytest.mark.parametrize("kv_dtype", KV_DTYPES)
@pytest.mark.parametrize("head_size", [8, 20, 33, 64])
def test_slots_take_what_plans_count(kv_dtype: KvDtype, head_size: int, library: ctypes.CDLL) -> None:
    config = Config(**{**BASE, "head_size": head_size, "rotary_percentage": 0.0})
    placement = dataclasses.replace(CPU, kv_dtype=kv_dtype)
    for span in (Span(0, 1), Span(1, 3)):
        engine = NativeSpan(config, span, weights_of(config), placement, library)
        assert engine.cache_bytes == 0
        engine.allocate(3, 21)
        assert engine.cache_bytes == 3 * len(span) * sum(cache_bytes(config, 21, kv_dtype))


@pytest.mark.parametrize(
    ("dtype", "mode", "usual", "others"),
    [
        (torch.float32, "none", "float32", {"float16", "int8"}),
        (torch.float32, "int8", "float16", {"float32", "int8"}),
        (torch.bfloat16, "none", "float16", {"float32", "int8"}),
    ],
)
def test_keys_and_values_are_as_exact_as_the_weights_or_else_named(
    dtype: torch.dtype, mode: Mode, usual: KvDtype, others: set[KvDtype], library: ctypes.CDLL
) -> None:
    config = Config(**BASE)
    weights, placement = weights_of(config), Placement(torch.device("cpu"), dtype, mode)

    def numerics(kv_dtype: KvDtype | None) -> str:
        own = dataclasses.replace(placement, kv_dtype=kv_dtype)
        return NativeSpan(config, Span(1, 2), weights, own, library).numerics

    assert numerics(None) == numerics(usual) == NUMERICS
    assert {numerics(kv_dtype) for kv_dtype in others} == {f"{NUMERICS}-kv-{kv_dtype}" for kv_dtype in others}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_of_16_bits_are_computed_with_as_if_they_were_float32(dtype: torch.dtype, library: ctypes.CDLL) -> None:
    config = Config(**{**BASE, **WIDE})
    stored = {name: tensor.to(dtype) for name, tensor in weights_of(config).items()}
    widened = {name: tensor.float() for name, tensor in stored.items()}
    spans = [NativeSpan(config, SPAN, weights, CPU, library) for weights in (stored, widened)]
    assert torch.equal(run(spans[0], 64), run(spans[1], 64))
    assert spans[0].weights_bytes < 0.6 * spans[1].weights_bytes
    near = run(NativeSpan(config, SPAN, widened, dataclasses.replace(CPU, dtype=dtype), library), 64)
    assert near.dtype == dtype
    assert (near.float() - run(spans[0], 64)).norm() < 0.02 * near.float().norm()


KINDS: dict[str, dict[str, Any]] = {
    "float32": {},
    "bfloat16": {"stored": torch.bfloat16},
    "int8": {"quantize": "int8"},
    "int4": {"quantize": "int4"},
    "bfloat16 experts": {"stored": torch.bfloat16, "fields": MOE | ROUTER},
    "int8 experts": {"quantize": "int8", "fields": MOE | ROUTER},
    "float16 slots": {"kv_dtype": "float16"},
    "int8 slots": {"kv_dtype": "int8"},
}


@pytest.fixture(params=KINDS)
def make(request: pytest.FixtureRequest, library: ctypes.CDLL) -> Make:
    """Makes spans of a model whose sizes no tile divides, with weights, keys and values of each kind."""
    kind = dict(KINDS[request.param])
    fields = {**WIDE, "sliding_window_size": 9, "sliding_window_indices": [0, 1] * 3, **kind.pop("fields", {})}
    config, stored = Config(**{**BASE, **fields}), kind.pop("stored", torch.float32)
    weights = {name: tensor.to(stored) for name, tensor in weights_of(config).items()}
    placement = dataclasses.replace(CPU, **kind)

    def made() -> NativeSpan:
        span = NativeSpan(config, SPAN, weights, placement, library)
        span.allocate(20, 64)
        return span

    return made


def test_a_row_does_not_depend_on_the_rows_it_travels_with_nor_on_pieces(make: Make) -> None:
    x, companions = rows(40, 64), rows(17, 64, seed=2)
    whole = make().forward(x, [Segment(3, 0, 40, 40)])
    span, pieces, start = make(), [], 0
    for n in (1, 2, 7, 3, 16, 11):
        others = [Segment(slot, start, 1, 1) for slot in range(4, 4 + n)]  # as many as the piece has rows
        message = [*others[: n // 2], Segment(3, start, n, n), *others[n // 2 :]]
        for other in others:
            if start:
                span.fork(3, other.slot, start)
        y = span.forward(torch.cat((companions[: n // 2], x[start : start + n], companions[n // 2 : n])), message)
        pieces.append(y[n // 2 : n // 2 + n])
        start += n
    assert torch.equal(torch.cat(pieces), whole)


def test_a_row_does_not_depend_on_threads(make: Make) -> None:
    x, message = rows(37, 64), [Segment(0, 0, 30, 30), *(Segment(slot, 0, 1, 1) for slot in range(1, 8))]
    alone = make().forward(x, message)
    n_threads = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        span = make()
        together = [span.forward(x, message) for _ in range(20)]
    finally:
        torch.set_num_threads(n_threads)
    assert all(torch.equal(y, alone) for y in together)


def test_a_row_that_is_not_finite_spoils_its_own_slot_alone(make: Make) -> None:
    x, message = rows(6, 64), [Segment(slot, 0, 2, 2) for slot in range(3)]
    sound = make().forward(x, message)
    for spoiler in (torch.nan, torch.inf, -torch.inf):
        spoiled = x.clone()
        spoiled[3, 5] = spoiler
        y = make().forward(spoiled, message)
        assert y[3].isnan().all()
        assert torch.equal(y[[0, 1, 4, 5]], sound[[0, 1, 4, 5]])
    for small in (1e-40, 1e-44, 0.0):
        assert make().forward(x * small, message).isfinite().all()


def test_what_a_slot_held_before_is_not_seen(make: Make) -> None:
    x, span = rows(20, 64), make()
    fresh = span.forward(x, [Segment(1, 0, 20, 20)])
    span.forward(torch.full((30, 64), torch.nan), [Segment(1, 0, 30, 30)])
    assert torch.equal(span.forward(x, [Segment(1, 0, 20, 20)]), fresh)


def test_a_fork_continues_from_a_shared_beginning(make: Make) -> None:
    x = rows(25, 64)
    whole = make().forward(x, [Segment(0, 0, 25, 25)])
    span = make()
    span.forward(x[:22], [Segment(0, 0, 22, 22)])
    span.fork(0, 2, 18)
    assert torch.equal(span.forward(x[18:], [Segment(2, 18, 7, 7)]), whole[18:])


def test_nothing_is_computed_for_rows_that_do_not_fit(make: Make) -> None:
    span = make()
    with pytest.raises(LocalProtocolError, match=r"rows of \(3, 64\) for 4 of 64"):
        span.forward(rows(3, 64), [Segment(0, 0, 4, 4)])
    for segment in (Segment(20, 0, 1, 1), Segment(-1, 0, 1, 1), Segment(0, 64, 1, 1), Segment(0, -1, 1, 1)):
        with pytest.raises(RemoteProtocolError):
            span.forward(rows(1, 64), [segment])
    for source, target, n in ((0, 20, 1), (0, 1, 65), (20, 0, 1)):
        with pytest.raises(RemoteProtocolError):
            span.fork(source, target, n)
    span.allocate(0, 0)
    with pytest.raises(RemoteProtocolError):
        span.forward(rows(1, 64), [Segment(0, 0, 1, 1)])


def test_a_missing_or_misshapen_tensor_is_named(library: ctypes.CDLL) -> None:
    config = Config(**BASE)
    weights = weights_of(config)
    name = "transformer.h.1.attn.qkv.weight"
    with pytest.raises(CheckpointError, match=r"layer 1 .*attn\.qkv\.weight is \(3, 3\)"):
        NativeSpan(config, SPAN, {**weights, name: torch.zeros(3, 3)}, CPU, library)
    del weights["transformer.h.1.norm_2.weight"]
    with pytest.raises(CheckpointError, match=r"layer 1 .*norm_2\.weight is missing"):
        NativeSpan(config, SPAN, weights, CPU, library)


@pytest.mark.parametrize("trait", ["llama", "head bias", "softcapping, scaled embeddings", "shared attention norm"])
def test_the_head_gives_torchs_logits(trait: str, libraries: dict[str, ctypes.CDLL]) -> None:
    config = Config(**{**BASE, **TRAITS[trait], "vocab_size": 330, "padded_vocab_size": 330})
    weights, x = weights_of(config), rows(5, 32)
    heads = [NativeHead(config, weights, CPU, one) for one in libraries.values()]
    expected = EmbeddingAndHead(config, weights, CPU)
    torch.testing.assert_close(heads[0].logits(x), expected.logits(x), atol=1e-5, rtol=1e-5)
    assert all(torch.equal(head.logits(x), heads[0].logits(x)) for head in heads)
    assert torch.equal(heads[0].embed([7, 329], [0, 1]), expected.embed([7, 329], [0, 1]))


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("mode", ["none", "int8"])
def test_an_embedding_that_is_tied_to_the_head_is_read_from_there(
    mode: Mode, stored: torch.dtype, library: ctypes.CDLL
) -> None:
    config = Config(**{**BASE, **WIDE})
    table = rows(config.padded_vocab_size, 64).to(stored)
    weights = {"transformer.wte.weight": table, "lm_head.weight": table, "transformer.ln_f.weight": torch.ones(64)}
    placement = Placement(torch.device("cpu"), torch.float32, mode)
    head = NativeHead(config, weights, placement, library)
    assert (head._table is None) == (mode == "none")  # a quantized head has lost what the embedding keeps
    assert torch.equal(head.embed([7, 0, 319], [0, 1, 2]), table[[7, 0, 319]].float())
    with pytest.raises((LocalProtocolError, IndexError)):
        head.embed([320], [0])
    with pytest.raises(LocalProtocolError):
        head.logits(rows(2, 32))
