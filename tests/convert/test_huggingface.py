"""Hugging Face folders become litGPT folders; the checkpoints are written here by hand."""

import io
import json
import pickle
import re
import sys
import threading
from pathlib import Path
from typing import Any

import litgpt.config
import pytest
import torch
from litgpt.config import Config
from litgpt.model import GPT
from safetensors.torch import save_file

from mdi.checkpoint.config import load_config
from mdi.convert import hf_configs, litgpt_conversion
from mdi.convert.hf_configs import build_config, config_by_name, resolve_config_name
from mdi.convert.huggingface import convert_folder, link_or_copy
from mdi.errors import CheckpointError, ConfigError, MdiError, StorageError
from mdi.model.tensors import TORCH_DTYPES
from mdi.model.weights import Weights
from support.files import small_files_only

# L layers, C = n_embd, H heads, G key/value heads, D head size, F = intermediate_size, V = vocabulary
L, C, H, G, D, F, V = 3, 32, 4, 2, 8, 48, 96
ENTRY = {
    "name": "Tiny-Test",
    "hf_config": {"org": "test-org", "name": "Tiny-Test-HF"},
    "block_size": 64,
    "vocab_size": 90,
    "padded_vocab_size": V,
    "n_layer": L,
    "n_embd": C,
    "n_head": H,
    "n_query_groups": G,
    "intermediate_size": F,
    "rotary_percentage": 1.0,
    "parallel_residual": False,
    "bias": False,
    "norm_class_name": "RMSNorm",
    "mlp_class_name": "LLaMAMLP",
}
HF_CONFIG = {
    "model_type": "llama",
    "num_hidden_layers": L,
    "hidden_size": C,
    "num_attention_heads": H,
    "num_key_value_heads": G,
    "intermediate_size": F,
    "vocab_size": V,
    "rope_theta": 10000.0,
    "rope_scaling": None,
}


@pytest.fixture(autouse=True)
def _registered(monkeypatch: pytest.MonkeyPatch) -> None:
    """litgpt knows the tiny configuration for the length of a test."""
    register(monkeypatch, ENTRY)


def register(monkeypatch: pytest.MonkeyPatch, entry: dict[str, Any]) -> None:
    monkeypatch.setattr("mdi.convert.hf_configs.configs", [*hf_configs.configs, entry])
    monkeypatch.setitem(litgpt.config.name_to_config, entry["name"], entry)


def llama_tensors(*, head: bool = True, bias: bool = False) -> dict[str, torch.Tensor]:
    """Random weights under the names of a llama-family checkpoint."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator).to(torch.bfloat16)

    tensors = {"model.embed_tokens.weight": draw(V, C), "model.norm.weight": draw(C)}
    for i in range(L):
        block = f"model.layers.{i}."
        for name, shape in {
            "input_layernorm": (C,),
            "post_attention_layernorm": (C,),
            "self_attn.q_proj": (H * D, C),
            "self_attn.k_proj": (G * D, C),
            "self_attn.v_proj": (G * D, C),
            "self_attn.o_proj": (C, H * D),
            "mlp.gate_proj": (F, C),
            "mlp.up_proj": (F, C),
            "mlp.down_proj": (C, F),
        }.items():
            tensors[f"{block}{name}.weight"] = draw(*shape)
            if bias and name.endswith(("q_proj", "k_proj", "v_proj")):
                tensors[f"{block}{name}.bias"] = draw(shape[0])
    return tensors | ({"lm_head.weight": draw(V, C)} if head else {})


def write_config(folder: Path, **changes: Any) -> None:
    (folder / "config.json").write_text(json.dumps(HF_CONFIG | changes))


def write_shards(folder: Path, tensors: dict[str, torch.Tensor], *, n: int, suffix: str, index: bool = True) -> None:
    """Spread `tensors` over `n` files, the q, k, v of a layer on purpose not together."""
    stem = "model" if suffix == "safetensors" else "pytorch_model"
    names, weight_map = list(tensors), {}
    for i in range(n):
        file = f"{stem}-{i + 1:05d}-of-{n:05d}.{suffix}"
        part = {name: tensors[name] for name in names[i * len(names) // n : (i + 1) * len(names) // n]}
        weight_map |= dict.fromkeys(part, file)
        if suffix == "safetensors":
            save_file(part, folder / file)
        else:
            torch.save(part, folder / file)
    if index:
        (folder / f"{stem}.{suffix}.index.json").write_text(json.dumps({"weight_map": weight_map}))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A working folder with a configuration and a tokenizer, still without weights."""
    target = tmp_path / "Tiny-Test.partial"
    target.mkdir()
    write_config(target)
    (target / "tokenizer.json").write_text("{}")
    return target


def loaded(folder: Path) -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = torch.load(folder / "lit_model.pth", weights_only=True, mmap=True)
    return state


def assert_converted(folder: Path, tensors: dict[str, torch.Tensor], dtype: torch.dtype = torch.bfloat16) -> None:
    state = loaded(folder)
    expected = {
        "transformer.wte.weight": tensors["model.embed_tokens.weight"],
        "lm_head.weight": tensors.get("lm_head.weight", tensors["model.embed_tokens.weight"]),
        "transformer.ln_f.weight": tensors["model.norm.weight"],
    }
    for i in range(L):
        theirs, ours = f"model.layers.{i}.", f"transformer.h.{i}."
        for kind in ("weight", "bias"):
            if f"{theirs}self_attn.q_proj.{kind}" in tensors:
                parts = [tensors[f"{theirs}self_attn.{part}_proj.{kind}"] for part in "qkv"]
                expected[f"{ours}attn.qkv.{kind}"] = torch.cat(parts)  # ((H + 2 G) D, C): all q, all k, all v
        for their_name, our_name in {
            "input_layernorm": "norm_1",
            "post_attention_layernorm": "norm_2",
            "self_attn.o_proj": "attn.proj",
            "mlp.gate_proj": "mlp.fc_1",
            "mlp.up_proj": "mlp.fc_2",
            "mlp.down_proj": "mlp.proj",
        }.items():
            expected[f"{ours}{our_name}.weight"] = tensors[f"{theirs}{their_name}.weight"]
    assert state.keys() == expected.keys()
    for name, tensor in expected.items():
        assert state[name].dtype == dtype
        assert torch.equal(state[name], tensor.to(dtype)), name


def refused(folder: Path, *, model_name: str = "Tiny-Test") -> str:
    with pytest.raises(MdiError) as caught:
        convert_folder(folder, model_name=model_name)
    text = str(caught.value)
    assert "\n" not in text
    return text


# ---- conversion -----------------------------------------------------------------------------------


def test_a_single_file(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    tensors = llama_tensors()
    save_file(tensors, folder / "model.safetensors")
    convert_folder(folder, model_name="Tiny-Test")
    assert_converted(folder, tensors)
    assert {path.name for path in folder.iterdir()} == {
        "config.json",
        "lit_model.pth",
        "model_config.yaml",
        "tokenizer.json",
    }
    assert Config.from_checkpoint(folder).name == "Tiny-Test"
    assert capfd.readouterr() == ("", "")


def test_the_result_is_a_model_that_runs(folder: Path) -> None:
    save_file(llama_tensors(), folder / "model.safetensors")
    convert_folder(folder, model_name="Tiny-Test", dtype="float32")
    model = GPT(Config.from_checkpoint(folder))
    model.load_state_dict(loaded(folder), strict=True)
    with torch.no_grad():
        assert model(torch.arange(5).view(1, 5)).isfinite().all()


@pytest.mark.slow
@pytest.mark.parametrize("index", [True, False])
@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_shards(folder: Path, suffix: str, index: bool) -> None:
    tensors = llama_tensors()
    write_shards(folder, tensors, n=5, suffix=suffix, index=index)
    convert_folder(folder, model_name="Tiny-Test")
    assert_converted(folder, tensors)


@pytest.mark.slow
def test_biases_of_q_k_v(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    register(monkeypatch, ENTRY | {"name": "Qwen2.5-tiny", "attn_bias": True})
    write_config(folder, model_type="qwen2")
    tensors = llama_tensors(bias=True)
    write_shards(folder, tensors, n=4, suffix="safetensors")
    convert_folder(folder, model_name="Qwen2.5-tiny")
    assert_converted(folder, tensors)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_dtypes(folder: Path, dtype: str) -> None:
    tensors = llama_tensors()
    write_shards(folder, tensors, n=2, suffix="safetensors")
    convert_folder(folder, model_name="Tiny-Test", dtype=dtype)
    assert_converted(folder, tensors, TORCH_DTYPES[dtype])


@pytest.mark.slow
@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_a_tied_head_is_stored_once(folder: Path, suffix: str) -> None:
    tensors = llama_tensors(head=False)
    if suffix == "bin":  # torch files hold the tied head as a second name of one storage
        torch.save(tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"]}, folder / "pytorch_model.bin")
    else:
        save_file(tensors, folder / "model.safetensors")
    convert_folder(folder, model_name="Tiny-Test")
    assert_converted(folder, tensors)
    state = loaded(folder)
    assert state["lm_head.weight"].data_ptr() == state["transformer.wte.weight"].data_ptr()


@pytest.mark.slow
def test_views_and_old_formats_of_bin_files(folder: Path) -> None:
    tensors = llama_tensors()
    wide = torch.zeros(V + 4, C, dtype=torch.bfloat16)
    wide[2:-2] = tensors["model.embed_tokens.weight"]
    odd = tensors | {
        "model.embed_tokens.weight": wide[2:-2],
        "lm_head.weight": tensors["lm_head.weight"].t().contiguous().t(),
    }
    torch.save(odd, folder / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    convert_folder(folder, model_name="Tiny-Test")
    assert_converted(folder, tensors)


@pytest.mark.slow
def test_interleaved_q_k_v_of_gpt_neox(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    neox = {"mlp_class_name": "GptNeoxMLP", "norm_class_name": "LayerNorm", "bias": True, "attn_bias": True}
    register(monkeypatch, ENTRY | neox | {"name": "neox-tiny", "n_query_groups": H, "parallel_residual": True})
    write_config(folder, model_type="gpt_neox", num_key_value_heads=H)
    generator = torch.Generator().manual_seed(1)
    tensors = {"gpt_neox.embed_in.weight": (V, C), "embed_out.weight": (V, C)}
    tensors |= {f"gpt_neox.final_layer_norm.{kind}": (C,) for kind in ("weight", "bias")}
    for i in range(L):
        for name, rows, columns in [
            ("attention.query_key_value", 3 * C, C),
            ("attention.dense", C, C),
            ("mlp.dense_h_to_4h", F, C),
            ("mlp.dense_4h_to_h", C, F),
        ]:
            tensors[f"gpt_neox.layers.{i}.{name}.weight"] = (rows, columns)
            tensors[f"gpt_neox.layers.{i}.{name}.bias"] = (rows,)
        for name in ("input_layernorm", "post_attention_layernorm"):
            tensors |= {f"gpt_neox.layers.{i}.{name}.{kind}": (C,) for kind in ("weight", "bias")}
    values = {name: torch.randn(shape, generator=generator) for name, shape in tensors.items()}
    save_file(values | {"gpt_neox.layers.0.attention.masked_bias": torch.tensor(-1e9)}, folder / "model.safetensors")
    convert_folder(folder, model_name="neox-tiny")
    theirs = values["gpt_neox.layers.1.attention.query_key_value.weight"].view(H, 3, D, C)
    ours = loaded(folder)["transformer.h.1.attn.qkv.weight"].view(3, H, D, C)
    assert torch.equal(ours, theirs.transpose(0, 1))  # per head q, k, v -> all q, all k, all v


@pytest.mark.slow
def test_the_text_part_of_a_multimodal_gemma_3(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gemma = {"mlp_class_name": "GemmaMLP", "norm_qk": True, "post_attention_norm": True, "post_mlp_norm": True}
    gemma |= {"scale_embeddings": True, "name": "Gemma-3-tiny", "vocab_size": V, "sliding_window_size": 8}
    register(monkeypatch, ENTRY | gemma)
    text = HF_CONFIG | {"model_type": "gemma3_text", "vocab_size": V + 8}
    (folder / "config.json").write_text(json.dumps({"model_type": "gemma3", "text_config": text}))
    tensors = {f"language_model.{name}": tensor for name, tensor in llama_tensors(head=False).items()}
    tensors["language_model.model.embed_tokens.weight"] = torch.randn(V + 8, C)
    for i in range(L):
        block = f"language_model.model.layers.{i}."
        tensors |= {f"{block}self_attn.{part}_norm.weight": torch.ones(D) for part in "qk"}
        tensors |= {f"{block}{part}_feedforward_layernorm.weight": torch.ones(C) for part in ("pre", "post")}
    save_file(tensors | {"vision_tower.x.weight": torch.zeros(3)}, folder / "model.safetensors")
    convert_folder(folder, model_name="Gemma-3-tiny", dtype="float32")
    embedding = loaded(folder)["transformer.wte.weight"]
    assert torch.equal(embedding, tensors["language_model.model.embed_tokens.weight"][:V])
    assert embedding.untyped_storage().nbytes() == embedding.nbytes  # the rows for image tokens are gone


@pytest.mark.slow
def test_what_an_interrupted_attempt_left_is_replaced(folder: Path) -> None:
    tensors = llama_tensors()
    save_file(tensors, folder / "model.safetensors")
    (folder / "lit_model.pth").write_bytes(b"half")
    convert_folder(folder, model_name="Tiny-Test")
    assert_converted(folder, tensors)


@pytest.mark.slow
def test_other_forms_of_the_same_weights_are_left_out(folder: Path) -> None:
    tensors = llama_tensors()
    save_file(tensors, folder / "model.safetensors")
    save_file({"layers.0.wq": torch.zeros(2)}, folder / "consolidated.safetensors")
    (folder / "pytorch_model.bin").write_bytes(b"not read")
    (folder / "pytorch_model.bin.index.json").write_text('{"weight_map": {"x": "pytorch_model.bin"}}')
    convert_folder(folder, model_name="Tiny-Test")
    assert_converted(folder, tensors)


@pytest.mark.slow
def test_fused_tensors_do_not_pile_up_in_memory(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """litgpt's own state dict must hold no tensor once a file has been read."""
    seen = []
    copy = litgpt_conversion.litgpt_convert.copy_weights_hf_llama

    def watch(config: Any, qkv: Any, state: Any, weights: Any, **options: Any) -> None:
        copy(config, qkv, state, weights, **options)
        seen.append(any(isinstance(value, torch.Tensor) for value in state.values()))

    monkeypatch.setattr(litgpt_conversion.litgpt_convert, "copy_weights_hf_llama", watch)
    write_shards(folder, llama_tensors(), n=3, suffix="safetensors")
    convert_folder(folder, model_name="Tiny-Test", dtype="float32")
    assert seen == [False] * 3
    assert litgpt_conversion.litgpt_convert.copy_weights_hf_llama is watch
    assert "print" not in vars(litgpt_conversion.litgpt_convert)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.slow
def test_a_conversion_draws_our_bar_and_no_other(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr("mdi.terminal.REDRAW_S", 0.0)
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setattr(sys, "stdout", terminal)
    write_shards(folder, llama_tensors(), n=3, suffix="safetensors")
    convert_folder(folder, model_name="Tiny-Test")
    *drawn, _ = terminal.getvalue().split("\x1b[K")
    assert all(text.startswith("\rconverting Tiny-Test: ") or text == "\r" for text in drawn), drawn
    (result,) = terminal.getvalue().splitlines(keepends=True)[-1:]
    assert f"converting Tiny-Test: {sum(tensor.nbytes for tensor in llama_tensors().values())} B in " in result
    assert terminal.getvalue().count("\n") == 1


@pytest.mark.slow
def test_what_other_threads_say_during_a_conversion_is_heard(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    copy = litgpt_conversion.litgpt_convert.copy_weights_hf_llama

    def talk(*args: Any, **options: Any) -> None:
        thread = threading.Thread(target=lambda: [print("out"), print("err", file=sys.stderr)])
        thread.start()
        thread.join()
        copy(*args, **options)

    monkeypatch.setattr(litgpt_conversion.litgpt_convert, "copy_weights_hf_llama", talk)
    save_file(llama_tensors(), folder / "model.safetensors")
    convert_folder(folder, model_name="Tiny-Test")
    assert capfd.readouterr() == ("out\n", "err\n")


# ---- damage and mismatch --------------------------------------------------------------------------


@pytest.mark.parametrize("index", [True, False])
@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_a_missing_shard_is_named(folder: Path, suffix: str, index: bool) -> None:
    write_shards(folder, llama_tensors(), n=3, suffix=suffix, index=index)
    stem = "model" if suffix == "safetensors" else "pytorch_model"
    (folder / f"{stem}-00002-of-00003.{suffix}").unlink()
    text = refused(folder)
    assert f"lacks 1 of 3 weight files: {stem}-00002-of-00003.{suffix}" in text
    assert not (folder / "lit_model.pth").exists()


@pytest.mark.parametrize("kept", [0, 4, 100, -1])
def test_a_truncated_safetensors_file_is_named(folder: Path, kept: int) -> None:
    file = folder / "model.safetensors"
    save_file(llama_tensors(), file)
    file.write_bytes(file.read_bytes()[:kept])
    assert f"{file}: damaged, or not a safetensors file: " in refused(folder)


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_weights_that_are_cut_short_while_they_are_converted(
    name: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a mapped file that would be SIGBUS."""
    file = folder / name
    (save_file if file.suffix == ".safetensors" else torch.save)(llama_tensors(), file)

    def cut_and_read(opened: Weights, name: str) -> torch.Tensor:
        file.write_bytes(b"")
        return read(opened, name)

    read = Weights.__getitem__
    monkeypatch.setattr(Weights, "__getitem__", cut_and_read)
    assert f"{file}: damaged: it was cut short while it was read" in refused(folder)


@pytest.mark.parametrize("kept", [0, 4, 5000, -1])
def test_a_truncated_bin_file_is_named(folder: Path, kept: int) -> None:
    file = folder / "pytorch_model.bin"
    torch.save(llama_tensors(), file)
    file.write_bytes(file.read_bytes()[:kept])
    text = refused(folder)
    assert text.startswith(f"{file} is damaged")


class Payload:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.target,))


@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_a_bin_file_is_not_executed(folder: Path, tmp_path: Path, zipped: bool) -> None:
    proof = tmp_path / "executed"
    file = folder / "pytorch_model.bin"
    torch.save(llama_tensors() | {"x": Payload(proof)}, file, _use_new_zipfile_serialization=zipped)
    text = refused(folder)
    if zipped:
        assert text.startswith(f"{file}: damaged, or not a file of torch.save: it refers to ")
    else:
        assert f"{file} is damaged, or holds more than plain tensors and could run code: refused" in text
    assert not proof.exists()
    pickle.loads(pickle.dumps(Payload(proof)))
    assert proof.exists()  # the payload does work where it is allowed to


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("content", [[1, 2], {"state_dict": {"a": torch.zeros(1)}}])
def test_a_bin_file_that_is_no_state_dict(folder: Path, content: object, zipped: bool) -> None:
    torch.save(content, folder / "pytorch_model.bin", _use_new_zipfile_serialization=zipped)
    assert re.search("is not a plain dictionary of tensors|is not a tensor|something else than named", refused(folder))


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize(
    "odd",
    [torch.zeros(1).expand(750_000_000), torch.zeros(2, dtype=torch.complex64).conj(), torch.zeros(2).to_sparse()],
)
def test_a_bin_file_with_an_odd_tensor_is_refused_before_memory_is_taken(
    folder: Path, odd: torch.Tensor, zipped: bool
) -> None:
    torch.save(llama_tensors() | {"odd": odd}, folder / "pytorch_model.bin", _use_new_zipfile_serialization=zipped)
    assert "pytorch_model.bin" in refused(folder)
    assert not (folder / "pytorch_model.safetensors").exists()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["model.layers.1.self_attn.k_proj.weight", "model.norm.weight"])
def test_a_missing_tensor_is_an_error(folder: Path, name: str) -> None:
    """litgpt drops a layer's q, k and v without a word if one of them is missing."""
    tensors = llama_tensors()
    del tensors[name]
    save_file(tensors, folder / "model.safetensors")
    assert "1 of 24 parameters are missing" in refused(folder)
    assert (folder / "model.safetensors").exists()


def test_a_missing_head_that_is_not_tied_is_an_error(folder: Path) -> None:
    write_config(folder, tie_word_embeddings=False)
    save_file(llama_tensors(head=False), folder / "model.safetensors")
    assert "lacks lm_head.weight, which config.json does not tie" in refused(folder)


def test_a_tensor_that_litgpt_does_not_know(folder: Path) -> None:
    save_file(llama_tensors() | {"model.layers.0.extra.weight": torch.zeros(1)}, folder / "model.safetensors")
    assert "stumbles over the tensor model.layers.{}.extra.weight" in refused(folder)


@pytest.mark.slow
def test_a_tensor_of_another_shape(folder: Path) -> None:
    tensors = llama_tensors()
    tensors["model.layers.2.mlp.up_proj.weight"] = torch.zeros(F + 1, C)
    save_file(tensors, folder / "model.safetensors")
    assert f"transformer.h.2.mlp.fc_2.weight is ({F + 1}, {C}), Tiny-Test has ({F}, {C})" in refused(folder)


@pytest.mark.slow
def test_quantized_tensors(folder: Path) -> None:
    tensors = llama_tensors()
    tensors["model.layers.2.mlp.up_proj.weight"] = torch.zeros(F, C, dtype=torch.int8)
    save_file(tensors, folder / "model.safetensors")
    assert "is torch.int8: quantized weights cannot be converted" in refused(folder)
    write_config(folder, quantization_config={"quant_method": "gptq"})
    assert "is quantized (gptq): take the model it was made from" in refused(folder)


def test_a_folder_without_weights(folder: Path) -> None:
    assert "has no weights in safetensors or .bin format" in refused(folder)


@pytest.mark.parametrize("text", ["", "[]", '{"weight_map": 3}', '{"weight_map": {"x": "../../secret.safetensors"}}'])
def test_a_malformed_index_is_refused(folder: Path, text: str) -> None:
    write_shards(folder, llama_tensors(), n=2, suffix="safetensors")
    (folder / "model.safetensors.index.json").write_text(text)
    assert "model.safetensors.index.json" in refused(folder)


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_a_full_disk_during_the_conversion(name: str, folder: Path) -> None:
    (save_file if name.endswith(".safetensors") else torch.save)(llama_tensors(), folder / name)
    with small_files_only():
        assert "lit_model.pth cannot be written" in refused(folder)


def test_unknown_dtype(folder: Path) -> None:
    with pytest.raises(ConfigError, match="unknown dtype 'int8': use one of float32, float16, bfloat16"):
        convert_folder(folder, model_name="Tiny-Test", dtype="int8")


# ---- the user's own folder ------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
@pytest.mark.parametrize("links", [True, False])
def test_the_users_folder_stays_as_it_is(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, suffix: str, links: bool
) -> None:
    source = tmp_path / "mine"
    source.mkdir()
    write_config(source)
    (source / "tokenizer.model").write_bytes(b"t")
    (source / "notes.txt").write_text("private")
    write_shards(source, llama_tensors(), n=2, suffix=suffix)
    if not links:
        monkeypatch.setattr(Path, "symlink_to", _no_links)
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in source.iterdir()}
    link_or_copy(source, folder)
    link_or_copy(source, folder)  # an interrupted attempt is taken up again
    convert_folder(folder, model_name="Tiny-Test")
    assert {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in source.iterdir()} == before
    assert_converted(folder, llama_tensors())
    assert (folder / "tokenizer.model").read_bytes() == b"t"
    assert not any(path.is_symlink() for path in folder.iterdir())
    assert not (folder / "notes.txt").exists()


def _no_links(*_args: object) -> None:
    raise OSError("no links here")


def test_a_source_that_is_gone(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(StorageError, match="nowhere"):
        link_or_copy(tmp_path / "nowhere", folder)


# ---- which configuration --------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["test-org/Tiny-Test-HF", "Tiny-Test", "someone/tiny-test-hf", "/path/Tiny-Test"])
def test_known_names(name: str) -> None:
    assert resolve_config_name(name, HF_CONFIG, None) == "Tiny-Test"


@pytest.mark.parametrize(
    ("name", "resolved"),
    [
        ("meta-llama/Meta-Llama-3-8B-Instruct", "Llama-3-8B-Instruct"),
        ("TinyLlama/TinyLlama-1.1B-Chat-v1.0", "tiny-llama-1.1b-chat"),
        ("google/gemma-2-2b-it", "Gemma-2-2b-it"),
    ],
)
def test_names_of_the_hub_become_litgpts_own(name: str, resolved: str) -> None:
    """RMSNorm's offset and OLMo's norm depend on litgpt's spelling."""
    assert resolve_config_name(name, {}, None) == resolved


@pytest.mark.slow
def test_a_model_with_an_unknown_name_is_called_after_its_folder(folder: Path) -> None:
    assert resolve_config_name("me/my-finetune", HF_CONFIG, None) == "my-finetune"
    assert resolve_config_name("me/my-finetune", HF_CONFIG, "Tiny-Test") == "Tiny-Test"
    write_config(folder)
    save_file(llama_tensors(), folder / "model.safetensors")
    convert_folder(folder, model_name="my-finetune")
    assert_converted(folder, llama_tensors())
    assert load_config(folder).name == "my-finetune"


def test_neither_name_nor_kind_is_known() -> None:
    with pytest.raises(ConfigError, match=r"me/tinytest.*model_type 'bloom'.*--model-name; nearest names: .*Tiny-Test"):
        resolve_config_name("me/tinytest", {"model_type": "bloom", "n_layer": 12, "hidden_size": 768}, None)


def test_an_unknown_model_name_lists_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"--model-name 'Lama-3-8B' is not .*nearest names: .*Llama-3-8B"):
        resolve_config_name("me/x", HF_CONFIG, "Lama-3-8B")


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"model_type": "new", "hidden_size": 64}, "hidden_size 64, but litgpt's Tiny-Test has 32"),
        ({"model_type": "new", "vocab_size": "96"}, "vocab_size '96', but litgpt's Tiny-Test has 96"),
        ({"rope_theta": "500000.0"}, "rope_theta is '500000.0', not a number above 1"),
        ({"rope_scaling": {"rope_type": "new"}}, "rotary scaling of the kind 'new' is not supported"),
        ({"model_type": "qwen3"}, "model_type qwen3, so norm_qk True, but litgpt's Tiny-Test has False"),
    ],
)
def test_a_config_that_contradicts_is_refused(folder: Path, change: dict[str, Any], text: str) -> None:
    with pytest.raises(CheckpointError, match=text):
        resolve_config_name("Tiny-Test", HF_CONFIG | change, None)
    write_config(folder, **change)
    with pytest.raises(CheckpointError, match=text):
        convert_folder(folder, model_name="Tiny-Test")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "fields"),
    [
        ({"rope_theta": 500000.0}, {"rope_base": 500000}),
        ({"rope_parameters": {"rope_theta": 5e5}}, {"rope_base": 500000}),
        ({"rope_scaling": {"type": "linear", "factor": 4.0}}, {"rope_adjustments": {"factor": 4.0}}),
        (
            {"max_position_embeddings": 32, "rope_scaling": {"type": "dynamic", "factor": 4.0}},
            {"rope_adjustments": {"rope_type": "dynamic", "factor": 4.0, "original_max_position_embeddings": 32}
             | {"attention_factor": 1.0}, "block_size": 128},
        ),
    ],
)  # fmt: skip
def test_rotary_settings_come_from_the_folder(folder: Path, change: dict[str, Any], fields: dict[str, Any]) -> None:
    write_config(folder, **change)
    save_file(llama_tensors(), folder / "model.safetensors")
    convert_folder(folder, model_name="Tiny-Test")
    config = load_config(folder)
    assert {name: getattr(config, name) for name in fields} == fields


def test_latent_attention_is_refused_by_name(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    register(monkeypatch, ENTRY | {"name": "Deep-Tiny", "latent_attention": {"kv_lora_rank": 4}})
    for refuse in (
        lambda: config_by_name("Deep-Tiny"),
        lambda: convert_folder(folder, model_name="Deep-Tiny"),
        lambda: resolve_config_name("deepseek-ai/DeepSeek-V3", {"model_type": "deepseek_v3"}, None),
        lambda: resolve_config_name("me/x", HF_CONFIG | {"kv_lora_rank": 512}, "Tiny-Test"),
    ):
        with pytest.raises(ConfigError, match="latent attention"):
            refuse()


@pytest.mark.parametrize(
    ("name", "hf_config"),
    [
        # numbers as published in each repo's config.json
        ("Llama-3.1-8B", {"model_type": "llama", "num_hidden_layers": 32, "hidden_size": 4096, "vocab_size": 128256}
         | {"num_key_value_heads": 8, "rope_theta": 500000.0, "rope_scaling": {"rope_type": "llama3", "factor": 8.0}
         | {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}}),
        ("LLaMA-2-7B-32K", {"model_type": "llama", "rope_scaling": {"type": "linear", "factor": 8.0}}),
        ("Mixtral-8x7B-v0.1", {"model_type": "mixtral", "num_local_experts": 8, "rope_theta": 1000000.0}),
        ("Gemma-3-4b-it", {"model_type": "gemma3", "text_config": {"model_type": "gemma3_text", "hidden_size": 2560}
         | {"vocab_size": 262208, "rope_scaling": {"rope_type": "linear", "factor": 8.0}}}),
        ("Qwen3-30B-A3B", {"model_type": "qwen3_moe", "num_experts": 128, "moe_intermediate_size": 768}),
        ("OLMo-2-1124-7B", {"model_type": "olmo2", "num_hidden_layers": 32}),
        ("pythia-14m", {"model_type": "gpt_neox", "hidden_size": 128, "vocab_size": 50304, "rotary_emb_base": 10000}),
        ("phi-2", {"model_type": "phi", "num_hidden_layers": 32, "vocab_size": 51200, "head_dim": None}),
        ("Phi-4-mini-instruct", {"model_type": "phi3", "vocab_size": 200064, "partial_rotary_factor": 0.75}),
        ("falcon-7b", {"model_type": "falcon", "num_attention_heads": 71, "num_kv_heads": 71}),
    ],
)  # fmt: skip
def test_published_configs_fit_their_entries(name: str, hf_config: dict[str, Any]) -> None:
    assert build_config(hf_config, name).name == name
