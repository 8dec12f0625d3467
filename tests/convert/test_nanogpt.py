"""Checkpoints of nanoGPT and of the published program, and the tokenizers that lie beside them."""

import json
import logging
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiktoken
import torch
import torch.nn.functional as F

from mdi.checkpoint.config import load_config
from mdi.checkpoint.tensor_file import open_weights
from mdi.convert.nanogpt import import_nanogpt, suggested_name
from mdi.convert.nanogpt_tokenizer import byte_pair_tokenizer, merges_of
from mdi.errors import CheckpointError
from mdi.model.backends.torch_span import TorchSpan
from mdi.model.build import Placement
from mdi.model.head import EmbeddingAndHead
from mdi.model.span import Span
from mdi.segments import Segment
from mdi.text.byte_level import GPT2_WORDS
from mdi.text.vocabulary import load_vocabulary

LAYERS, HEADS, WIDTH, CONTEXT = 2, 2, 8, 12
CHARACTERS = sorted("\n !abcdefgh")
VOCABULARY = len(CHARACTERS)
ARGUMENTS = {"n_layer": LAYERS, "n_head": HEADS, "n_embd": WIDTH, "block_size": CONTEXT, "vocab_size": VOCABULARY}
IDS = [3, 9, 1, 0, 7]
Tensors = dict[str, torch.Tensor]


def drawn(shapes: dict[str, tuple[int, ...]]) -> Tensors:
    generator = torch.Generator().manual_seed(5)
    return {name: torch.randn(shape, generator=generator) * 0.4 for name, shape in shapes.items()}


def nanogpt(bias: bool = True) -> Tensors:
    """The tensors of a model as nanoGPT trains it."""
    shapes: dict[str, tuple[int, ...]] = {"wte.weight": (VOCABULARY, WIDTH), "wpe.weight": (CONTEXT, WIDTH)}
    linear = {"attn.c_attn": (3 * WIDTH, WIDTH), "attn.c_proj": (WIDTH, WIDTH)}
    linear |= {"mlp.c_fc": (4 * WIDTH, WIDTH), "mlp.c_proj": (WIDTH, 4 * WIDTH)}
    for layer in range(LAYERS):
        for name, shape in linear.items():
            shapes |= {f"h.{layer}.{name}.weight": shape, f"h.{layer}.{name}.bias": shape[:1]}
        shapes |= {f"h.{layer}.{norm}.{kind}": (WIDTH,) for norm in ("ln_1", "ln_2") for kind in ("weight", "bias")}
    shapes |= {"ln_f.weight": (WIDTH,), "ln_f.bias": (WIDTH,)}
    tensors = {f"transformer.{name}": tensor for name, tensor in drawn(shapes).items()}
    tensors["lm_head.weight"] = tensors["transformer.wte.weight"]
    return tensors if bias else {name: tensor for name, tensor in tensors.items() if not name.endswith(".bias")}


def published(bias: bool = True) -> Tensors:
    """The tensors of a model as the published program trained it."""
    size = WIDTH // HEADS
    shapes: dict[str, tuple[int, ...]] = {"transformer.token_embedding.weight": (VOCABULARY, WIDTH)}
    shapes |= {"transformer.position_embedding.weight": (CONTEXT, WIDTH), "lm_head.bias": (VOCABULARY,)}
    for layer in range(LAYERS):
        block = f"transformer.layers.{layer}."
        heads = [f"{block}mha.heads.{head}." for head in range(HEADS)]
        shapes |= {f"{head}{part}.weight": (size, WIDTH) for head in heads for part in ("key", "query", "value")}
        shapes |= {f"{head}tril": (CONTEXT, CONTEXT) for head in heads}
        shapes |= {f"{block}mha.proj.weight": (WIDTH, WIDTH), f"{block}mha.proj.bias": (WIDTH,)}
        shapes |= {f"{block}ffwd.net.0.weight": (4 * WIDTH, WIDTH), f"{block}ffwd.net.0.bias": (4 * WIDTH,)}
        shapes |= {f"{block}ffwd.net.2.weight": (WIDTH, 4 * WIDTH), f"{block}ffwd.net.2.bias": (WIDTH,)}
        shapes |= {f"{block}{norm}.weight": (WIDTH,) for norm in ("ln1", "ln2")}
        shapes |= {f"{block}{norm}.bias": (WIDTH,) for norm in ("ln1", "ln2") if bias}
    shapes |= {f"transformer.ln_f.{kind}": (WIDTH,) for kind in ("weight", "bias") if bias or kind == "weight"}
    tensors = drawn(shapes)
    return tensors | {"lm_head.weight": tensors["transformer.token_embedding.weight"]}


def attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """One head, (T, D) each."""
    scores = q @ k.T / q.size(-1) ** 0.5
    return scores.masked_fill(torch.ones_like(scores).triu(1).bool(), -torch.inf).softmax(-1) @ v


def norm(x: torch.Tensor, tensors: Tensors, name: str) -> torch.Tensor:
    return F.layer_norm(x, (WIDTH,), tensors[f"{name}.weight"], tensors.get(f"{name}.bias"), 1e-5)


def linear(x: torch.Tensor, tensors: Tensors, name: str) -> torch.Tensor:
    return F.linear(x, tensors[f"{name}.weight"], tensors.get(f"{name}.bias"))


def nanogpt_logits(tensors: Tensors) -> torch.Tensor:
    """(T, V) of `IDS`, written down from its definition."""
    x = tensors["transformer.wte.weight"][IDS] + tensors["transformer.wpe.weight"][: len(IDS)]
    for layer in range(LAYERS):
        block = f"transformer.h.{layer}."
        q, k, v = linear(norm(x, tensors, f"{block}ln_1"), tensors, f"{block}attn.c_attn").split(WIDTH, dim=1)
        heads = [attention(*parts) for parts in zip(*(t.split(WIDTH // HEADS, dim=1) for t in (q, k, v)), strict=True)]
        x = x + linear(torch.cat(heads, 1), tensors, f"{block}attn.c_proj")
        x = x + linear(
            F.gelu(linear(norm(x, tensors, f"{block}ln_2"), tensors, f"{block}mlp.c_fc")), tensors, f"{block}mlp.c_proj"
        )
    return norm(x, tensors, "transformer.ln_f") @ tensors["transformer.wte.weight"].T


def published_logits(tensors: Tensors) -> torch.Tensor:
    """(T, V) of `IDS`, written down from its definition."""
    x = tensors["transformer.token_embedding.weight"][IDS]
    x = x + tensors["transformer.position_embedding.weight"][: len(IDS)]
    for layer in range(LAYERS):
        block = f"transformer.layers.{layer}."
        inner = norm(x, tensors, f"{block}ln1")
        parts = [
            [linear(inner, tensors, f"{block}mha.heads.{head}.{part}") for part in ("query", "key", "value")]
            for head in range(HEADS)
        ]
        x = x + linear(torch.cat([attention(*head) for head in parts], 1), tensors, f"{block}mha.proj")
        hidden = F.relu(linear(norm(x, tensors, f"{block}ln2"), tensors, f"{block}ffwd.net.0"))
        x = x + linear(hidden, tensors, f"{block}ffwd.net.2")
    return linear(norm(x, tensors, "transformer.ln_f"), tensors, "lm_head")


def save(path: Path, tensors: Tensors, **changes: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    values = {"model": tensors, "model_args": ARGUMENTS | {"bias": True, "dropout": 0.1}, "iter_num": 7}
    values |= {"optimizer": {"state": {0: {"step": torch.tensor(3.0)}}}, "config": {"device": "cpu"}}
    torch.save(values | changes, path)
    return path


def imported(source: Path) -> Path:
    folder = source.parent / "imported"
    folder.mkdir()
    import_nanogpt(source, folder)
    return folder


@torch.inference_mode()
def our_logits(folder: Path) -> torch.Tensor:
    config, weights = load_config(folder), open_weights(folder / "lit_model.pth")
    placement = Placement(torch.device("cpu"), torch.float32)
    span, head = TorchSpan(config, Span(0, LAYERS), weights, placement), EmbeddingAndHead(config, weights, placement)
    span.allocate(1, len(IDS))
    rows = head.embed(IDS, range(len(IDS)))
    return head.logits(span.forward(rows, [Segment(0, 0, len(IDS), len(IDS))]))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("make", "reference"), [(nanogpt, nanogpt_logits), (published, published_logits)])
def test_logits_are_those_of_the_model(
    make: Callable[[bool], Tensors], reference: Callable[[Tensors], torch.Tensor], bias: bool, tmp_path: Path
) -> None:
    tensors = make(bias)
    folder = imported(save(tmp_path / "ckpt.pt", tensors))
    torch.testing.assert_close(our_logits(folder), reference(tensors), rtol=0, atol=1e-5)
    meta = open_weights(folder / "lit_model.pth").meta
    assert meta["lm_head.weight"] is meta["transformer.wte.weight"]


def test_a_compiled_model_with_masks(tmp_path: Path) -> None:
    masks = {f"transformer.h.{layer}.attn.bias": torch.ones(1, 1, CONTEXT, CONTEXT) for layer in range(LAYERS)}
    tensors = {f"_orig_mod.{name}": tensor for name, tensor in (nanogpt() | masks).items()}
    folder = imported(save(tmp_path / "ckpt.pt", tensors))
    torch.testing.assert_close(our_logits(folder), nanogpt_logits(nanogpt()), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("path", "name"),
    [("shakespeare/ckpt.pt", "shakespeare"), ("out/poems.pt", "poems"), ("data/ckpt_upd.pt", "data")],
)
def test_the_name_is_the_files_or_its_folders(path: str, name: str, tmp_path: Path) -> None:
    assert suggested_name(tmp_path / path) == name


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"model_args": None}, "has no model_args: is it a checkpoint of nanoGPT"),
        ({"model_args": ARGUMENTS | {"n_layer": True}}, "model_args.* n_layer is True, not a count"),
        ({"model_args": ARGUMENTS | {"n_head": 3}}, "model_args: its numbers contradict each other"),
        ({"model_args": ARGUMENTS | {"n_embd": 16}}, r"ckpt.pt: .* is \(8,\), where this model has \(16,\)"),
        ({"model_args": ARGUMENTS | {"n_layer": 3}}, "parameters are missing: transformer.h.2"),
        ({"model": nanogpt() | {"transformer.h.0.rotary": torch.ones(2)}}, "holds transformer.h.0.rotary, which"),
        ({"model": {}}, "holds no tensors"),
    ],
)
def test_what_cannot_be_imported(change: dict[str, Any], text: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=text):
        imported(save(tmp_path / "ckpt.pt", nanogpt(), **change))


# ---- tokenizers


def stoi() -> dict[str, int]:
    return {character: i for i, character in enumerate(CHARACTERS)}


def as_pickle(folder: Path) -> None:
    itos = {i: character for character, i in stoi().items()}
    (folder / "meta.pkl").write_bytes(pickle.dumps({"vocab_size": VOCABULARY, "stoi": stoi(), "itos": itos}))


def as_json(folder: Path) -> None:
    (folder / "meta.json").write_text(json.dumps({"stoi": stoi()}))


@pytest.mark.parametrize("write", [as_pickle, as_json])
@pytest.mark.parametrize("place", ["run/ckpt.pt", "run/out/ckpt.pt"])
def test_characters(write: Callable[[Path], None], place: str, tmp_path: Path) -> None:
    source = save(tmp_path / place, nanogpt())
    write(tmp_path / "run")
    backend = load_vocabulary(imported(source))
    assert backend.encode("bad\ncab!") == [stoi()[character] for character in "bad\ncab!"]
    assert b"".join(map(backend.token_bytes, range(VOCABULARY))).decode() == "".join(CHARACTERS)


def test_a_character_that_the_model_does_not_know_is_named(tmp_path: Path) -> None:
    source = save(tmp_path / "ckpt.pt", nanogpt())
    as_json(tmp_path)
    with pytest.raises(CheckpointError, match="no token for 'ß'"):
        load_vocabulary(imported(source)).encode("aß")


class Attack:
    def __reduce__(self) -> tuple[Any, ...]:
        return (print, ("attacked",))


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ({"stoi": Attack()}, "stoi is .* not ids by character"),
        ({"stoi": {"ab": 0}}, "'ab' is no character"),
        ({"stoi": {"a": 0, "b": 2}}, "do not count from 0"),
        ({"stoi": {"a": "0"}}, "not ids by character"),
        ({"stoi": {chr(0x100 + i): i for i in range(VOCABULARY + 1)}}, "12 tokens, the model 11"),
        ({}, "stoi"),
        ([], "an object is expected"),
    ],
)
def test_a_pickle_is_data(value: object, text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = save(tmp_path / "ckpt.pt", nanogpt())
    (tmp_path / "meta.pkl").write_bytes(pickle.dumps(value))
    with pytest.raises(CheckpointError, match=text):
        imported(source)
    assert "attacked" not in capsys.readouterr().out


def test_the_published_byte_pairs(tmp_path: Path) -> None:
    """encoder.json holds each token's bytes as one number; the merges say all."""
    tensors, n_vocab = nanogpt(), 259
    tensors["transformer.wte.weight"] = tensors["lm_head.weight"] = torch.randn(n_vocab, WIDTH)
    source = save(tmp_path / "ckpt.pt", tensors, model_args=ARGUMENTS | {"vocab_size": n_vocab})
    (tmp_path / "encoder.json").write_text("{}")
    (tmp_path / "merges.bpe").write_text("116 104 256\n256 101 257\n32 257 258\n")
    backend = load_vocabulary(imported(source))
    assert backend.encode("the the THé") == [257, 258, 32, ord("T"), ord("H"), 0xC3, 0xA9]
    assert [backend.token_bytes(i) for i in (0, 65, 258)] == [b"\0", b"A", b" the"]


@pytest.mark.parametrize("line", ["1 2", "1 2 300", "1 999 256", "a b c", "-1 2 256"])
def test_damaged_byte_pairs(line: str, tmp_path: Path) -> None:
    source = save(tmp_path / "ckpt.pt", nanogpt())
    (tmp_path / "encoder.json").write_text("{}")
    (tmp_path / "merges.bpe").write_text(line + "\n")
    with pytest.raises(CheckpointError, match="is no pair of earlier tokens"):
        imported(source)


def test_no_tokenizer_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        folder = imported(save(tmp_path / "ckpt.pt", nanogpt()))
    assert "put tokenizer.json into" in caplog.text
    assert not (folder / "tokenizer.json").exists()


TOKENS = [bytes([byte]) for byte in range(256)] + [b"th", b" t", b" th", b"the", b" the", b"he", b"in", b"ing", b" \n"]
TEXT = "the thing, he'll sing THE\n\n  théâtre \n"


def gpt2_like() -> tiktoken.Encoding:
    ranks = {token: i for i, token in enumerate(TOKENS)}
    return tiktoken.Encoding(
        "gpt2", pat_str=GPT2_WORDS, mergeable_ranks=ranks, special_tokens={"<|endoftext|>": len(TOKENS)}
    )


def test_the_vocabulary_of_gpt2_gives_the_ids_of_tiktoken(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tiktoken, "get_encoding", lambda name: gpt2_like())
    tensors = nanogpt()
    tensors["transformer.wte.weight"] = tensors["lm_head.weight"] = torch.randn(50304, WIDTH)
    folder = imported(save(tmp_path / "ckpt.pt", tensors, model_args=ARGUMENTS | {"vocab_size": 50304}))
    backend = load_vocabulary(folder)
    assert backend.encode(TEXT) == gpt2_like().encode(TEXT)
    assert backend.token_id("<|endoftext|>") == len(TOKENS)


def test_without_a_network_the_file_to_give_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def unreachable(name: str) -> None:
        raise ConnectionError("no network")

    monkeypatch.setattr(tiktoken, "get_encoding", unreachable)
    tensors = nanogpt()
    tensors["transformer.wte.weight"] = tensors["lm_head.weight"] = torch.randn(50257, WIDTH)
    imported(save(tmp_path / "ckpt.pt", tensors, model_args=ARGUMENTS | {"vocab_size": 50257}))
    assert "tiktoken cannot fetch GPT-2's vocabulary (no network)" in caplog.text
    assert "put tokenizer.json into" in caplog.text


def test_merges_are_those_of_the_tokens() -> None:
    merges = merges_of(TOKENS)
    assert merges[:4] == [(b"t", b"h"), (b" ", b"t"), (b" ", b"th"), (b"th", b"e")]
    assert json.loads(byte_pair_tokenizer(TOKENS, merges, words=GPT2_WORDS))["model"]["merges"][4] == ["Ġth", "e"]
