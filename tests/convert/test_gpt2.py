"""GPT-2 in the forms that people have, and what its configuration becomes."""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from mdi.checkpoint.config import config_from_dict, load_config
from mdi.checkpoint.tensor_file import open_weights
from mdi.convert.gguf.convert import import_gguf
from mdi.convert.gpt2 import SIZES, published_config
from mdi.convert.hf_configs import resolve_config_name
from mdi.convert.huggingface import convert_folder
from mdi.convert.known_models import HubName, parse_hub_name
from mdi.convert.random import make_random
from mdi.errors import CheckpointError, ConfigError
from mdi.model.gpt2 import Gpt2Config
from mdi.model.shapes import model_shapes
from support.gguf_files import N_TOKENS, byte_level_tokenizer, write_gguf
from support.named_weights import write_folder

N_LAYER, WIDTH, VOCABULARY, CONTEXT = 2, 16, 30, 20
CONFIG = {"model_type": "gpt2", "n_layer": N_LAYER, "n_head": 2, "n_embd": WIDTH, "vocab_size": VOCABULARY}
CONFIG |= {"n_positions": CONTEXT, "n_ctx": CONTEXT}
Tensors = dict[str, torch.Tensor]


def stored_shapes() -> dict[str, tuple[int, ...]]:
    """Names and shapes as transformers writes them."""
    shapes: dict[str, tuple[int, ...]] = {"wte.weight": (VOCABULARY, WIDTH), "wpe.weight": (CONTEXT, WIDTH)}
    linear = {"attn.c_attn": (WIDTH, 3 * WIDTH), "attn.c_proj": (WIDTH, WIDTH)}
    linear |= {"mlp.c_fc": (WIDTH, 4 * WIDTH), "mlp.c_proj": (4 * WIDTH, WIDTH)}
    for layer in range(N_LAYER):
        for name, shape in linear.items():
            shapes |= {f"h.{layer}.{name}.weight": shape, f"h.{layer}.{name}.bias": shape[1:]}
        for norm in ("ln_1", "ln_2"):
            shapes |= {f"h.{layer}.{norm}.{kind}": (WIDTH,) for kind in ("weight", "bias")}
    return shapes | {"ln_f.weight": (WIDTH,), "ln_f.bias": (WIDTH,)}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "tiny", CONFIG, stored_shapes())


def converted(folder: Path, dtype: str | None = None) -> Tensors:
    config = json.loads((folder / "config.json").read_text())
    convert_folder(folder, model_name=resolve_config_name("me/tiny", config, None), dtype=dtype)
    weights = open_weights(folder / "lit_model.pth")
    return {name: weights[name] for name in weights}


def changed(folder: Path, change: Callable[[Tensors], Tensors]) -> None:
    file = folder / "model.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in change(load_file(file)).items()}, file)


def test_weights_of_linear_layers_are_turned_and_the_head_is_the_embedding(folder: Path) -> None:
    stored = load_file(folder / "model.safetensors")
    ours = converted(folder)
    assert torch.equal(ours["transformer.h.1.attn.qkv.weight"], stored["h.1.attn.c_attn.weight"].T)
    assert torch.equal(ours["transformer.h.0.mlp.proj.bias"], stored["h.0.mlp.c_proj.bias"])
    assert torch.equal(ours["transformer.wpe.weight"], stored["wpe.weight"])
    assert torch.equal(ours["lm_head.weight"], stored["wte.weight"])
    meta = open_weights(folder / "lit_model.pth").meta
    assert meta["lm_head.weight"] is meta["transformer.wte.weight"]
    assert {path.name for path in folder.iterdir()} >= {"model_config.yaml", "lit_model.pth", "config.json"}
    assert not (folder / "model.safetensors").exists()


def with_prefix(tensors: Tensors) -> Tensors:
    return {f"transformer.{name}": tensor for name, tensor in tensors.items()}


def with_masks(tensors: Tensors) -> Tensors:
    mask = {"h.0.attn.bias": torch.ones(1, 1, CONTEXT, CONTEXT), "h.1.attn.masked_bias": torch.tensor(-1e4)}
    return tensors | mask


def with_head(tensors: Tensors) -> Tensors:
    return tensors | {"lm_head.weight": tensors["wte.weight"].clone()}


@pytest.mark.parametrize("form", [with_prefix, with_masks, with_head])
def test_every_form_of_the_names_is_the_same_model(form: Callable[[Tensors], Tensors], tmp_path: Path) -> None:
    plain, other = (write_folder(tmp_path / name, CONFIG, stored_shapes()) for name in ("plain", "other"))
    changed(other, form)
    expected, found = converted(plain), converted(other)
    assert expected.keys() == found.keys()
    assert all(torch.equal(tensor, found[name]) for name, tensor in expected.items())


def test_a_pickled_file_of_weights(folder: Path, tmp_path: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    expected = converted(write_folder(tmp_path / "plain", CONFIG, stored_shapes()))
    assert all(torch.equal(tensor, expected[name]) for name, tensor in converted(folder).items())


def test_it_is_cast(folder: Path) -> None:
    assert {tensor.dtype for tensor in converted(folder, "bfloat16").values()} == {torch.bfloat16}


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda t: {n: v for n, v in t.items() if n != "h.1.ln_2.bias"}, "1 of 28 parameters .*h.1.norm_2.bias"),
        (lambda t: t | {"h.0.attn.rotary.weight": torch.ones(2)}, "holds 'h.0.attn.rotary.weight', which GPT-2 has no"),
        (lambda t: t | {"wpe.weight": torch.ones(CONTEXT + 1, WIDTH)}, r"wpe.weight is \(21, 16\)"),
        (lambda t: t | {"h.0.mlp.c_fc.weight": torch.ones(3)}, r"mlp.fc.weight is \(3,\)"),
        (lambda t: t | {"ln_f.weight": torch.ones(WIDTH, dtype=torch.int8)}, "int8: quantized weights"),
    ],
)
def test_weights_that_do_not_fit(folder: Path, change: Callable[[Tensors], Tensors], text: str) -> None:
    changed(folder, change)
    with pytest.raises(CheckpointError, match=text):
        converted(folder)


GGUF_NAMES = {
    "wte": "token_embd",
    "wpe": "position_embd",
    "ln_f": "output_norm",
    "ln_1": "attn_norm",
    "ln_2": "ffn_norm",
}
GGUF_NAMES |= {"attn.c_attn": "attn_qkv", "attn.c_proj": "attn_output", "mlp.c_fc": "ffn_up", "mlp.c_proj": "ffn_down"}


def write_gpt2_gguf(path: Path, stored: Tensors, **changes: Any) -> Path:
    """The GGUF file that llama.cpp's converter makes of the tensors that transformers writes."""
    tensors = {}
    for name, tensor in stored.items():
        *block, module, kind = re.fullmatch(r"(?:h\.(\d+)\.)?(.+)\.(\w+)", name).groups()  # type: ignore[union-attr]
        prefix = "" if block == [None] else f"blk.{block[0]}."
        is_linear = module.startswith(("attn", "mlp")) and kind == "weight"
        tensors[f"{prefix}{GGUF_NAMES[module]}.{kind}"] = (tensor.T if is_linear else tensor).numpy()
    values = {"block_count": N_LAYER, "embedding_length": WIDTH, "context_length": CONTEXT, "feed_forward_length": 64}
    values |= {"attention.head_count": 2, "attention.layer_norm_epsilon": 1e-5} | changes
    return write_gguf(path, "gpt2", {f"gpt2.{k}": v for k, v in values.items()} | byte_level_tokenizer(), tensors)


def gguf_folder(tmp_path: Path, **changes: Any) -> tuple[Path, Path]:
    """A folder in Hugging Face format, and a GGUF file of the same model."""
    shapes = stored_shapes() | {"wte.weight": (N_TOKENS, WIDTH)}
    folder = write_folder(tmp_path / "tiny", CONFIG | {"vocab_size": N_TOKENS}, shapes)
    return folder, write_gpt2_gguf(tmp_path / "tiny.gguf", load_file(folder / "model.safetensors"), **changes)


def test_a_gguf_file_is_the_same_model(tmp_path: Path) -> None:
    folder, file = gguf_folder(tmp_path)
    (target := tmp_path / "imported").mkdir()
    import_gguf(file, target)
    expected, found = converted(folder), open_weights(target / "lit_model.pth")
    assert expected.keys() == found.keys()
    assert all(torch.equal(tensor, found[name]) for name, tensor in expected.items())
    assert load_config(target) == replace(load_config(folder), name=load_config(target).name)


def test_a_gguf_file_whose_positions_do_not_fit(tmp_path: Path) -> None:
    _, file = gguf_folder(tmp_path, context_length=CONTEXT + 1)
    with pytest.raises(CheckpointError, match=r"position_embd.weight has the shape \[20, 16\], expected \[21, 16\]"):
        import_gguf(file, tmp_path)


def test_numbers_that_are_missing_are_those_of_the_smallest(folder: Path) -> None:
    name = resolve_config_name("openai-community/gpt2", {"model_type": "gpt2"}, None)
    assert name == "gpt2"
    (folder / "config.json").write_text(json.dumps(CONFIG | {"activation_function": "gelu"}))
    converted(folder)
    config = load_config(folder)
    assert isinstance(config, Gpt2Config)
    assert (config.gelu_approximate, config.block_size, config.rope_n_elem) == ("none", CONTEXT, 0)


@pytest.mark.parametrize(
    ("name", "n_parameters"),
    [("gpt2", 124_439_808), ("gpt2-medium", 354_823_168), ("gpt2-large", 774_030_080), ("gpt2-xl", 1_557_611_200)],
)
def test_published_sizes(name: str, n_parameters: int) -> None:
    shapes = model_shapes(published_config(name))
    assert sum(shape.numel() for shape in shapes.values()) - shapes["lm_head.weight"].numel() == n_parameters


def test_a_random_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SIZES, "gpt2", (2, 2, 8))  # type: ignore[index]
    make_random("openai-community/gpt2", tmp_path, seed=1, dtype="float32")
    weights = open_weights(tmp_path / "lit_model.pth")
    assert weights["transformer.wpe.weight"].shape == (1024, 8)
    assert weights["transformer.wpe.weight"].std() == pytest.approx(0.02, rel=0.1)
    assert (weights["transformer.h.1.norm_2.weight"] == 1).all()


def test_a_random_nanogpt_of_another_width_and_context(tmp_path: Path) -> None:
    make_random("nanoGPT-7", tmp_path, seed=1, dtype="bfloat16", n_embd=12, context_length=40)
    config = load_config(tmp_path)
    assert (config.n_layer, config.n_head, config.n_embd, config.block_size) == (7, 6, 12, 40)
    with pytest.raises(ConfigError, match="--n-embd 13: not a multiple of the 6 heads"):
        make_random("nanoGPT-9", tmp_path, seed=1, n_embd=13)
    with pytest.raises(ConfigError, match="are for nanoGPT-7, nanoGPT-9, nanoGPT-12, not for gpt2"):
        make_random("gpt2", tmp_path, seed=1, n_embd=12)


def test_the_hub_knows_it_by_two_names() -> None:
    assert (
        parse_hub_name("gpt2-xl") == parse_hub_name("openai-community/gpt2-xl") == HubName("openai-community/gpt2-xl")
    )


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"architecture": "gpt3"}, "architecture"),
        ({"rotary_percentage": 0.5}, "rotary_percentage is 0.5, where GPT-2 has 0.0"),
        ({"activation": "tanh"}, "activation is 'tanh', not gelu or relu"),
        ({"n_layer": "2"}, "n_layer is '2'"),
    ],
)
def test_a_configuration_that_cannot_be(change: dict[str, Any], text: str) -> None:
    fields = config_fields() | change
    with pytest.raises(CheckpointError, match=text):
        config_from_dict(fields)


def test_a_configuration_travels() -> None:
    assert config_from_dict(json.loads(json.dumps(config_fields()))) == replace(published_config("gpt2"))


def config_fields() -> dict[str, Any]:
    from mdi.checkpoint.config import config_to_dict

    return config_to_dict(published_config("gpt2"))
