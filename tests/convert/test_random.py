"""Seeded random models and their tokenizer."""

from pathlib import Path
from typing import Any

import pytest
import torch
from litgpt.config import Config
from litgpt.model import GPT
from litgpt.tokenizer import Tokenizer

from mdi.convert import hf_configs
from mdi.convert.random import NANO_LLAMA, make_random
from mdi.errors import ConfigError, StorageError
from mdi.model.tensors import TORCH_DTYPES
from support.files import small_files_only

ENTRY = {
    "name": "Tiny-Test",
    "hf_config": {},
    "block_size": 64,
    "vocab_size": 300,
    "padded_vocab_size": 320,
    "n_layer": 2,
    "n_embd": 32,
    "n_head": 4,
    "n_query_groups": 2,
    "intermediate_size": 48,
    "rotary_percentage": 1.0,
    "parallel_residual": False,
    "bias": True,
    "norm_class_name": "RMSNorm",
    "mlp_class_name": "LLaMAMLP",
}


@pytest.fixture(autouse=True)
def _registered(monkeypatch: pytest.MonkeyPatch) -> None:
    register(monkeypatch)


def register(monkeypatch: pytest.MonkeyPatch, **changes: Any) -> None:
    monkeypatch.setattr("mdi.convert.hf_configs.configs", [*hf_configs.configs, ENTRY | changes])


def state_of(folder: Path, **options: Any) -> dict[str, torch.Tensor]:
    folder.mkdir(exist_ok=True)
    make_random(options.pop("name", "Tiny-Test"), folder, **({"seed": 1} | options))
    state: dict[str, torch.Tensor] = torch.load(folder / "lit_model.pth", weights_only=True, mmap=True)
    return state


def test_it_is_a_whole_model_that_litgpt_loads(tmp_path: Path) -> None:
    state = state_of(tmp_path, dtype="float32")
    model = GPT(Config.from_checkpoint(tmp_path))
    model.load_state_dict(state, strict=True)
    with torch.no_grad():
        assert model(torch.arange(5).view(1, 5)).isfinite().all()


def test_values(tmp_path: Path) -> None:
    state = state_of(tmp_path, dtype="float32")
    for name, tensor in state.items():
        if name.endswith(".bias"):
            assert (tensor == 0).all(), name
        elif "norm" in name or "ln_f" in name:
            assert (tensor == 1).all(), name
        else:
            assert tensor.std() == pytest.approx(0.02, rel=0.1), name
            assert abs(tensor.mean()) < 0.003, name


def test_norms_of_gemma_are_the_identity_with_their_offset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    register(monkeypatch, name="Gemma-tiny")
    state = state_of(tmp_path, name="Gemma-tiny")
    assert (state["transformer.ln_f.weight"] == 0).all()


def test_the_seed_decides_and_nothing_else(tmp_path: Path) -> None:
    one = state_of(tmp_path / "a", seed=7)
    n_threads = torch.get_num_threads()
    torch.manual_seed(0)
    torch.set_num_threads(2)
    try:
        same = state_of(tmp_path / "b", seed=7)
    finally:
        torch.set_num_threads(n_threads)
    other = state_of(tmp_path / "c", seed=8)
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one["lm_head.weight"], other["lm_head.weight"])
    assert (tmp_path / "a/lit_model.pth").read_bytes() == (tmp_path / "b/lit_model.pth").read_bytes()


def test_a_tensor_does_not_depend_on_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    two = state_of(tmp_path / "two")
    register(monkeypatch, name="Tiny-Deep", n_layer=5)
    five = state_of(tmp_path / "five", name="Tiny-Deep")
    assert len(five) > len(two)
    assert all(torch.equal(two[name], five[name]) for name in two)
    assert not torch.equal(five["transformer.h.0.mlp.fc_1.weight"], five["transformer.h.1.mlp.fc_1.weight"])


def test_making_a_model_leaves_the_global_generator_alone(tmp_path: Path) -> None:
    before = torch.get_rng_state()
    state_of(tmp_path)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("dtype", [None, "float32", "float16", "bfloat16"])
def test_dtypes(tmp_path: Path, dtype: str | None) -> None:
    state = state_of(tmp_path / "cast", dtype=dtype)
    assert {tensor.dtype for tensor in state.values()} == {TORCH_DTYPES[dtype or "bfloat16"]}
    full = state_of(tmp_path / "full", dtype="float32")
    name = "transformer.h.1.attn.qkv.weight"
    assert torch.equal(state[name], full[name].to(state[name].dtype))


def test_nano_llama_is_the_published_model() -> None:
    with torch.device("meta"):
        model = GPT(NANO_LLAMA)
    assert sum(parameter.numel() for parameter in model.parameters()) == 304_636_928
    shape = (NANO_LLAMA.n_layer, NANO_LLAMA.n_embd, NANO_LLAMA.n_head, NANO_LLAMA.block_size, NANO_LLAMA.vocab_size)
    assert shape == (12, 1024, 16, 2048, 32000)
    assert not any(name.endswith(".bias") for name, _ in model.named_parameters())


@pytest.mark.parametrize(
    "text",
    [
        "Who are you?",
        "  two  spaces\n\tand\r\n",
        "日本語 и кириллица",
        "🤖👩‍👩‍👧🏳️‍🌈",
        "<|bos|> t300 Ġt300",
        "\x00\x7f\ufeff",
        "",
    ],
)
def test_the_tokenizer_gives_back_any_text(tmp_path: Path, text: str) -> None:
    state_of(tmp_path)
    tokenizer = Tokenizer(tmp_path)
    ids = tokenizer.encode(text)
    assert ids.tolist() == list(text.encode())
    assert tokenizer.decode(ids) == text


def test_every_id_that_the_model_can_produce_has_a_text(tmp_path: Path) -> None:
    state_of(tmp_path)
    tokenizer = Tokenizer(tmp_path)
    assert tokenizer.processor.get_vocab_size() == ENTRY["padded_vocab_size"]
    texts = [tokenizer.decode(torch.tensor(i)) for i in range(256, 320)]
    assert len(set(texts)) == 64
    assert texts[0] == "<|bos|>"
    assert texts[300 - 256] == " t300"
    assert (tokenizer.bos_id, tokenizer.eos_id) == (256, None)


def test_unknown_names_and_dtypes(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--random 'Nano' is not .*nearest names: .*NanoLlama"):
        make_random("Nano", tmp_path, seed=0)
    with pytest.raises(ConfigError, match=r"--random 'pythia-14' is not .*nearest names: pythia-14m"):
        make_random("pythia-14", tmp_path, seed=1)
    with pytest.raises(ConfigError, match="unknown dtype 'int8'"):
        make_random("NanoLlama", tmp_path, seed=1, dtype="int8")


def test_shapes_that_cannot_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    register(monkeypatch, name="Deep-Tiny", latent_attention={"kv_lora_rank": 4})
    with pytest.raises(ConfigError, match="--random 'Deep-Tiny' uses latent attention"):
        make_random("Deep-Tiny", tmp_path, seed=1)
    register(monkeypatch, name="Few-Tiny", vocab_size=64, padded_vocab_size=64)
    with pytest.raises(ConfigError, match="Few-Tiny has 64 tokens"):
        make_random("Few-Tiny", tmp_path, seed=1)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk(tmp_path: Path) -> None:
    with small_files_only(), pytest.raises(StorageError, match=r"lit_model\.pth cannot be written"):
        make_random("Tiny-Test", tmp_path, seed=1)
