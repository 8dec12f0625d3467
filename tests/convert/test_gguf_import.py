import gzip
import json
import os
import random
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from litgpt.config import Config
from litgpt.model import GPT
from tokenizers import Tokenizer

from mdi.checkpoint.config import load_config
from mdi.convert.gguf import file as gguf_file
from mdi.convert.gguf.convert import import_gguf, suggested_name
from mdi.convert.hf_rotary import rotary_fields
from mdi.errors import CheckpointError, ConfigError, StorageError
from support.gguf_files import (
    CASES,
    LLAMA3_ROPE,
    N_TOKENS,
    byte_level_tokenizer,
    hyperparameters,
    shape_of,
    tensors,
    tiny_model,
    write_gguf,
    write_tiny,
)
from support.paths import DATA

IDS = torch.tensor([[5, 100, 37, 200, 9, 9, 258, 77, 31, 64, 12, 240, 3, 18]])
Q = gguf.GGMLQuantizationType


@pytest.fixture(scope="module")
def smollm2_folder(smollm2_gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("smollm2")
    import_gguf(smollm2_gguf, folder, name=suggested_name(smollm2_gguf))
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "out").mkdir()
    return tmp_path / "out"


def load(folder: Path) -> tuple[Config, GPT]:
    config = Config.from_checkpoint(folder)
    model = GPT(config).eval()
    model.load_state_dict(weights(folder), strict=True)
    return config, model


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return torch.load(folder / "lit_model.pth", weights_only=True, mmap=True)


def logits(model: GPT, ids: torch.Tensor = IDS) -> torch.Tensor:
    with torch.inference_mode():
        return model(ids)


def assert_refused(source: Path, folder: Path, *words: str) -> None:
    """One line that names the file and says `words`, with its cause chained where there was one."""
    with pytest.raises(CheckpointError) as caught:
        import_gguf(source, folder)
    text = str(caught.value)
    assert text.startswith(str(source)) and "\n" not in text
    for word in words:
        assert word in text


def rewritten(tmp_path: Path, case: str = "llama", **changes: Any) -> Path:
    """The tiny model of `case` with other metadata: a value of None removes the key."""
    architecture, model = tiny_model(case)
    values = hyperparameters(architecture, model.config) | byte_level_tokenizer() | changes
    values = {key: value for key, value in values.items() if value is not None}
    return write_gguf(tmp_path / "changed.gguf", architecture, values, tensors(architecture, model))


# ---- the numbers


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_imported_model_computes_what_the_original_does(case: str, tied: bool, tmp_path: Path, folder: Path) -> None:
    original = write_tiny(tmp_path / "tiny.gguf", case, tied=tied)
    import_gguf(tmp_path / "tiny.gguf", folder)
    config, model = load(folder)
    assert shape_of(config) == shape_of(original.config)
    torch.testing.assert_close(model.cos, original.cos, rtol=0, atol=1e-6)
    torch.testing.assert_close(logits(model), logits(original), rtol=1e-5, atol=1e-5)


def test_every_convention_of_the_samples_matters(tmp_path: Path, folder: Path) -> None:
    """Were q and k taken as they are stored, the test above would have to fail."""
    original = write_tiny(tmp_path / "tiny.gguf", "llama")
    import_gguf(tmp_path / "tiny.gguf", folder)
    _, model = load(folder)
    stored = tensors("llama", original)
    qkv = torch.from_numpy(np.concatenate([stored[f"blk.0.attn_{letter}.weight"] for letter in "qkv"]))
    with torch.no_grad():
        model.transformer.h[0].attn.qkv.weight.copy_(qkv)
    assert not torch.allclose(logits(model), logits(original), rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize(("kind", "tolerance"), [(Q.Q8_0, 0.01), (Q.Q5_1, 0.06), (Q.Q4_0, 0.12)])
def test_quantized_weights_are_close(kind: Q, tolerance: float, tmp_path: Path, folder: Path) -> None:
    architecture, model = tiny_model("mixtral")
    values = hyperparameters(architecture, model.config) | byte_level_tokenizer()
    write_gguf(tmp_path / "q.gguf", architecture, values, tensors(architecture, model), lambda name: kind)
    import_gguf(tmp_path / "q.gguf", folder, dtype="float32")
    for name, weight in weights(folder).items():
        expected = model.state_dict()[name]
        assert weight.dtype == torch.float32
        assert (weight - expected).norm() <= tolerance * expected.norm(), name


@pytest.mark.parametrize(("kind", "dtype"), [(Q.F16, torch.float16), (Q.BF16, torch.bfloat16), (Q.F32, torch.float32)])
def test_dtype_is_that_of_the_file(kind: Q, dtype: torch.dtype, tmp_path: Path, folder: Path) -> None:
    architecture, model = tiny_model("llama")
    values = hyperparameters(architecture, model.config) | byte_level_tokenizer()
    write_gguf(tmp_path / "half.gguf", architecture, values, tensors(architecture, model), lambda name: kind)
    import_gguf(tmp_path / "half.gguf", folder)
    for name, weight in weights(folder).items():
        assert torch.equal(weight, model.state_dict()[name].to(dtype)), name


@pytest.mark.parametrize("kind", [Q.Q8_0, Q.Q4_0])
def test_a_quantized_file_becomes_bfloat16(kind: Q, tmp_path: Path, folder: Path) -> None:
    """Its routers and norms are in float32 all the same."""
    architecture, model = tiny_model("mixtral")
    values = hyperparameters(architecture, model.config) | byte_level_tokenizer()
    types = lambda name: Q.F32 if "gate_inp" in name else kind  # noqa: E731
    write_gguf(tmp_path / "q.gguf", architecture, values, tensors(architecture, model), types)
    import_gguf(tmp_path / "q.gguf", folder)
    assert {weight.dtype for weight in weights(folder).values()} == {torch.bfloat16}


def test_dtype_can_be_chosen(tmp_path: Path, folder: Path) -> None:
    original = write_tiny(tmp_path / "tiny.gguf", "gemma2")
    import_gguf(tmp_path / "tiny.gguf", folder, dtype="bfloat16")
    for name, weight in weights(folder).items():
        torch.testing.assert_close(weight, original.state_dict()[name].bfloat16(), rtol=0.01, atol=1e-3)
    with pytest.raises(ConfigError, match="float32, float16, bfloat16"):
        import_gguf(tmp_path / "tiny.gguf", folder, dtype="int8")


def test_tied_weights_are_stored_once(tmp_path: Path, folder: Path) -> None:
    write_tiny(tmp_path / "tiny.gguf", "gemma", tied=True)
    import_gguf(tmp_path / "tiny.gguf", folder)
    loaded = weights(folder)
    assert loaded["lm_head.weight"].data_ptr() == loaded["transformer.wte.weight"].data_ptr()
    numbers = sum(weight.numel() for name, weight in loaded.items() if name != "lm_head.weight")
    assert (folder / "lit_model.pth").stat().st_size < 4 * numbers + 20_000


def test_large_tensors_are_put_together_from_blocks(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mdi.convert.gguf.convert.BLOCK_ELEMENTS", 64 * 5)  # five rows: no tensor is a multiple of it
    original = write_tiny(tmp_path / "tiny.gguf", "mixtral")
    import_gguf(tmp_path / "tiny.gguf", folder)
    for name, weight in weights(folder).items():
        assert torch.equal(weight, original.state_dict()[name]), name


def test_progress_counts_every_tensor(tmp_path: Path, folder: Path) -> None:
    seen: list[int] = []
    write_tiny(tmp_path / "tiny.gguf", "llama", n_layer=1)
    import_gguf(tmp_path / "tiny.gguf", folder, advance=seen.append)
    assert seen == [1] * len(weights(folder))


# ---- the configuration


@pytest.mark.parametrize(
    ("head_size", "base", "rope"),
    [
        (128, 500000, LLAMA3_ROPE),
        (64, 500000, LLAMA3_ROPE | {"factor": 32.0}),
        (128, 500000, LLAMA3_ROPE | {"factor": 4.0, "original_max_seq_len": 4096, "high_freq_factor": 2.5}),
        (64, 10000, LLAMA3_ROPE | {"original_max_seq_len": 16384, "high_freq_factor": 8.0}),
        (16, 500000, LLAMA3_ROPE),
    ],
)
def test_llama3_rope_is_recovered_from_its_factors(
    head_size: int, base: int, rope: dict[str, float], tmp_path: Path, folder: Path
) -> None:
    write_tiny(tmp_path / "l3.gguf", "llama3", n_layer=1, head_size=head_size, rope_base=base, rope_adjustments=rope)
    import_gguf(tmp_path / "l3.gguf", folder)
    assert Config.from_checkpoint(folder).rope_adjustments == rope


def test_rope_factors_of_another_kind_are_refused(tmp_path: Path, folder: Path) -> None:
    architecture, model = tiny_model("llama3")
    values = hyperparameters(architecture, model.config) | byte_level_tokenizer()
    stored = tensors(architecture, model)
    for factors in (np.linspace(1, 3, 8), np.array([1, 2, 1, 2, 1, 2, 1, 2]), np.full(8, np.nan), np.zeros(8)):
        stored["rope_freqs.weight"] = factors.astype(np.float32)
        source = write_gguf(tmp_path / "odd.gguf", architecture, values, stored)
        assert_refused(source, folder, "rope_freqs.weight", "Llama 3")
    stored["rope_freqs.weight"] = np.ones(8, dtype=np.float32)
    import_gguf(write_gguf(tmp_path / "ones.gguf", architecture, values, stored), folder)
    assert Config.from_checkpoint(folder).rope_adjustments is None


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"llama.rope.scaling.type": "longrope"}, ["'longrope'"]),
        ({"llama.rope.scaling.type": "yarn"}, ["rope.scaling.factor is missing"]),
        ({"llama.rope.scaling.type": "yarn", "llama.rope.scaling.factor": 0.5}, ["'yarn' with the factor 0.5"]),
        ({"llama.rope.scaling.yarn_log_multiplier": 0.1}, ["yarn_log_multiplier"]),
        ({"llama.logit_scale": 0.5}, ["llama.logit_scale", "0.5"]),
        ({"llama.attention.causal": False}, ["llama.attention.causal"]),
        ({"llama.rope.dimension_count": 8}, ["rope.dimension_count"]),
        ({"llama.attention.head_count_kv": 3}, ["4 heads with 3"]),
        ({"llama.attention.head_count": [4, 2]}, ["differs between layers"]),
        ({"llama.attention.head_count": 0}, ["head_count is 0"]),
        ({"llama.context_length": None}, ["llama.context_length is missing"]),
        ({"llama.context_length": "64"}, ["llama.context_length is not an integer"]),
        ({"llama.attention.layer_norm_rms_epsilon": True}, ["not a number"]),
        ({"llama.embedding_length": 63}, ["embedding_length = 63"]),
        ({"llama.feed_forward_length": 95}, ["blk.0.ffn_gate.weight", "[96, 64]", "[95, 64]"]),
        ({"llama.block_count": 3}, ["blk.2.attn_norm.weight is missing"]),
        ({"llama.block_count": 1}, ["no place", "blk.1."]),
        ({"llama.block_count": 2**31 - 1}, ["llama.block_count"]),
        ({"llama.expert_count": 8}, ["ffn_gate_inp"]),
        ({"split.count": 4}, ["it says that it is part 1 of 4", "model-00001-of-00003.gguf"]),
        ({"tokenizer.ggml.model": "bert"}, ["'bert'"]),
        ({"tokenizer.ggml.pre": "alien"}, ["'alien'", "smollm"]),
        ({"tokenizer.ggml.model": None}, ["tokenizer.ggml.model is missing"]),
        ({"tokenizer.ggml.tokens": None}, ["tokenizer.ggml.tokens is missing"]),
        ({"tokenizer.ggml.tokens": ["a", "b", "a"]}, ["holds a token twice"]),
        ({"tokenizer.ggml.tokens": [f"t{i}" for i in range(N_TOKENS + 1)]}, ["token_type", str(N_TOKENS + 1)]),
        ({"tokenizer.ggml.merges": None}, ["tokenizer.ggml.merges is missing"]),
        ({"tokenizer.ggml.merges": ["a b"]}, ["merges do not fit"]),
        ({"tokenizer.ggml.merges": ["ab"]}, ["no two halves"]),
    ],
)
def test_what_cannot_be_converted_is_refused(
    changes: dict[str, Any], words: list[str], tmp_path: Path, folder: Path
) -> None:
    assert_refused(rewritten(tmp_path, **changes), folder, *words)


def test_yarn_is_computed_as_from_a_hugging_face_folder(tmp_path: Path, folder: Path) -> None:
    scaling = {"type": "yarn", "factor": 4.0, "original_context_length": 32, "yarn_beta_fast": 8.0}
    import_gguf(rewritten(tmp_path, **{f"llama.rope.scaling.{key}": value for key, value in scaling.items()}), folder)
    config = load_config(folder)
    theirs = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32, "beta_fast": 8.0}
    flat = {"model_type": "llama", "rope_theta": config.rope_base, "rope_scaling": theirs}
    assert rotary_fields(flat, "config.json", [0], config.block_size)["rope_adjustments"] == config.rope_adjustments


def test_a_part_of_each_head_may_be_rotated(tmp_path: Path, folder: Path) -> None:
    model = write_tiny(tmp_path / "half.gguf", "qwen2", rotary_percentage=0.5)
    import_gguf(tmp_path / "half.gguf", folder)
    assert shape_of(load_config(folder)) == shape_of(model.config)


def test_per_layer_lists_that_agree_are_one_number(tmp_path: Path, folder: Path) -> None:
    changes = {"llama.attention.head_count_kv": [2, 2], "llama.feed_forward_length": [96, 96]}
    import_gguf(rewritten(tmp_path, **changes), folder)
    assert Config.from_checkpoint(folder).n_query_groups == 2


def test_sliding_layers_follow_the_pattern_of_the_file(tmp_path: Path, folder: Path) -> None:
    import_gguf(rewritten(tmp_path, "gemma3", **{"gemma3.attention.sliding_window_pattern": 3}), folder)
    config = Config.from_checkpoint(folder)
    assert config.sliding_window_indices == config.rope_indices == [1, 1, 0, 1, 1, 0, 1]


def test_gemma3_without_a_window_has_one_rotary_base(tmp_path: Path, folder: Path) -> None:
    import_gguf(rewritten(tmp_path, "gemma3", **{"gemma3.attention.sliding_window": None}), folder)
    config = Config.from_checkpoint(folder)
    assert config.sliding_window_size is config.rope_indices is config.rope_local_base_freq is None


def test_an_unknown_architecture_is_refused_by_name(tmp_path: Path, folder: Path) -> None:
    _, model = tiny_model("llama")
    values = hyperparameters("mamba", model.config) | byte_level_tokenizer()
    source = write_gguf(tmp_path / "m.gguf", "mamba", values, tensors("llama", model))
    assert_refused(source, folder, "'mamba'", "qwen2")


@pytest.mark.parametrize(
    ("case", "given", "general", "expected"),
    [
        ("llama", "SmolLM2-135M-Instruct", "anything", "SmolLM2-135M-Instruct"),
        ("llama", "org/My Model", "anything", "My-Model"),
        ("llama", None, "Smollm2 135M Instruct", "SmolLM2-135M-Instruct"),
        ("llama", None, "Llama 3.2 1B Instruct", "Llama-3.2-1B-Instruct"),
        ("llama", None, "Not A Gemma", "Not-A-gemma"),
        ("llama", "Gemma-2b", "x", "gemma-2b"),
        ("gemma", None, "gemma 2b It", "Gemma-2b-it"),
        ("gemma", None, "Shield 2b", "Gemma-Shield-2b"),
        ("qwen2", None, "", "model"),
    ],
)
def test_config_name_is_recognisable_and_safe(
    case: str, given: str | None, general: str, expected: str, tmp_path: Path, folder: Path
) -> None:
    source = rewritten(tmp_path, case, **{"general.name": general})
    import_gguf(source, folder, name=given)
    config, model = load(folder)
    assert config.name == expected
    torch.testing.assert_close(logits(model), logits(tiny_model(case)[1]), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("file", "expected"),
    [
        ("SmolLM2-135M-Instruct.Q4_1.gguf", "SmolLM2-135M-Instruct"),
        ("Qwen2.5-0.5B-Instruct-Q4_K_M.gguf", "Qwen2.5-0.5B-Instruct"),
        ("gemma-2-2b-it-IQ3_XXS.gguf", "gemma-2-2b-it"),
        ("model-bf16.GGUF", "model"),
        ("f16.gguf", "f16"),
        ("plain", "plain"),
    ],
)
def test_suggested_name_drops_the_quantization(file: str, expected: str) -> None:
    assert suggested_name(Path("some") / file) == expected


# ---- damaged files


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("small") / "small.gguf"
    write_tiny(path, "llama", n_layer=1)
    return path.read_bytes()


def header_size(data: bytes) -> int:
    return min(tensor.data_offset for tensor in _tensors_of(data))


def _tensors_of(data: bytes) -> list[gguf.ReaderTensor]:
    import tempfile

    with tempfile.NamedTemporaryFile() as file:
        file.write(data)
        file.flush()
        return list(gguf.GGUFReader(file.name).tensors)


def damaged(tmp_path: Path, data: bytes) -> Path:
    (tmp_path / "damaged.gguf").write_bytes(data)
    return tmp_path / "damaged.gguf"


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", ["not a GGUF file", "0 bytes"]),
        (b"GGUF", ["not a GGUF file"]),
        (b"PK\x03\x04" + bytes(100), ["not a GGUF file"]),
        (b"GGUF" + struct.pack("<IQQ", 1, 0, 0), ["version 1"]),
        (b"GGUF" + struct.pack("<IQQ", 4, 0, 0), ["version 4"]),
        (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), ["big-endian"]),
        (b"GGUF" + struct.pack("<IQQ", 3, 2**63, 0), ["tensors"]),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 2**63), ["metadata keys"]),
        (b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 2**62) + b"a" * 40, ["bytes in a string"]),
        (b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 1) + b"a" + struct.pack("<IIQ", 9, 4, 2**24), ["cut-off"]),
        (b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 1) + b"a" + struct.pack("<IIQ", 9, 0, 2**60), ["items in a list"]),
        (b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 1) + b"a" + struct.pack("<IIQ", 9, 9, 1), ["value type 9"]),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 0), ["tokenizer.ggml.model"]),
    ],
)
def test_files_that_are_no_model(data: bytes, words: list[str], tmp_path: Path, folder: Path) -> None:
    assert_refused(damaged(tmp_path, data), folder, *words)


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path, folder: Path) -> None:
    assert_refused(tmp_path / "nothing.gguf", folder, "no such file")
    assert_refused(folder, folder, "no such file")


def test_a_cut_off_file_is_refused_wherever_it_ends(small: bytes, tmp_path: Path, folder: Path) -> None:
    ends = {*range(0, len(small), len(small) // 60), header_size(small), len(small) - 1}
    for end in sorted(ends):
        assert_refused(damaged(tmp_path, small[:end]), folder)


def test_a_file_that_is_cut_short_while_its_header_is_read(
    small: bytes, tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a mapped file that would be SIGBUS."""
    path = damaged(tmp_path, small)

    def cut(path: Path) -> int:
        size = path.stat().st_size
        os.truncate(path, 30)
        return size

    monkeypatch.setattr(gguf_file, "_file_size", cut)
    assert_refused(path, folder, "it was cut short at byte 30 while it was read")


def mutations(data: bytes, n: int, seed: int) -> Iterator[bytes]:
    """`data` with one to four bytes of its header replaced, by random ones or by the extremes."""
    draw, size = random.Random(seed), header_size(data)
    for _ in range(n):
        copy = bytearray(data)
        for _ in range(draw.randint(1, 4)):
            copy[draw.randrange(size)] = draw.choice([0, 1, 0x7F, 0x80, 0xFF, draw.randrange(256)])
        yield bytes(copy)


@pytest.mark.slow
def test_flipped_bytes_in_the_header_never_surprise(small: bytes, tmp_path: Path, folder: Path) -> None:
    errors, slowest = [], 0.0
    for data in mutations(small, 1500, seed=3):
        start = time.monotonic()
        try:
            import_gguf(damaged(tmp_path, data), folder)
        except CheckpointError as exc:
            errors.append(str(exc))
        slowest = max(slowest, time.monotonic() - start)
    assert len(errors) > 150 and not any("\n" in text for text in errors)
    assert slowest < 20


def test_a_missing_or_misshapen_tensor_is_named(tmp_path: Path, folder: Path) -> None:
    architecture, model = tiny_model("llama")
    values = hyperparameters(architecture, model.config) | byte_level_tokenizer()
    for name, stored in tensors(architecture, model).items():
        if name == "output.weight":
            continue  # its absence means a tied head
        others = {key: value for key, value in tensors(architecture, model).items() if key != name}
        assert_refused(write_gguf(tmp_path / "a.gguf", architecture, values, others), folder, name, "missing")
        others[name] = np.concatenate([stored, stored], axis=-1)
        assert_refused(write_gguf(tmp_path / "b.gguf", architecture, values, others), folder, name)


def test_a_tensor_without_a_place_is_named(tmp_path: Path, folder: Path) -> None:
    architecture, model = tiny_model("llama")
    values = hyperparameters(architecture, model.config) | byte_level_tokenizer()
    stored = tensors(architecture, model) | {"blk.0.attn_output.bias": np.zeros(64, dtype=np.float32)}
    source = write_gguf(tmp_path / "extra.gguf", architecture, values, stored)
    assert_refused(source, folder, "one tensor has no place", "blk.0.attn_output.bias")


def test_values_that_are_not_finite_are_refused(tmp_path: Path, folder: Path) -> None:
    architecture, model = tiny_model("llama")
    values = hyperparameters(architecture, model.config) | byte_level_tokenizer()
    stored = tensors(architecture, model)
    stored["blk.1.ffn_up.weight"] = stored["blk.1.ffn_up.weight"] * np.float32(1e6)
    source = write_gguf(tmp_path / "big.gguf", architecture, values, stored)
    with pytest.raises(CheckpointError, match=r"blk\.1\.ffn_up\.weight holds values too large for torch\.float16"):
        import_gguf(source, folder, dtype="float16")
    (folder / "lit_model.pth").unlink()
    stored["blk.1.ffn_up.weight"][7, 7] = np.nan
    source = write_gguf(tmp_path / "nan.gguf", architecture, values, stored)
    assert_refused(source, folder, "blk.1.ffn_up.weight", "infinite or undefined")


def test_a_tensor_type_that_cannot_be_read_is_refused(tmp_path: Path, folder: Path) -> None:
    path = tmp_path / "ints.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tensor("token_embd.weight", np.zeros((4, 32), dtype=np.int32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert_refused(path, folder, "I32")


def test_a_full_disk_is_noticed_before_anything_is_written(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_tiny(tmp_path / "tiny.gguf", "llama")
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 1000})())
    with pytest.raises(StorageError, match=r"take 0\.38 MB and 1000 B are free"):
        import_gguf(tmp_path / "tiny.gguf", folder)
    assert not (folder / "lit_model.pth").exists()


def test_a_failing_writer_is_an_error_of_ours(tmp_path: Path) -> None:
    write_tiny(tmp_path / "tiny.gguf", "llama")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "lit_model.pth").mkdir()
    with pytest.raises(StorageError, match=r"lit_model\.pth cannot be written"):
        import_gguf(tmp_path / "tiny.gguf", tmp_path / "out")


# ---- a real model


@pytest.mark.slow
def test_smollm2_has_litgpts_own_configuration(smollm2_folder: Path) -> None:
    config = Config.from_checkpoint(smollm2_folder)
    assert config.name == "SmolLM2-135M-Instruct"
    assert shape_of(config) == shape_of(Config.from_name("SmolLM2-135M-Instruct"))


@pytest.mark.slow
def test_smollm2_knows_the_capital_of_france(smollm2_folder: Path) -> None:
    _, model = load(smollm2_folder)
    tokenizer = Tokenizer.from_file(str(smollm2_folder / "tokenizer.json"))
    ids = tokenizer.encode("The capital of France is").ids
    for _ in range(2):
        ids.append(int(logits(model, torch.tensor([ids]))[0, -1].argmax()))
    assert tokenizer.decode(ids) == "The capital of France is Paris."


@pytest.mark.slow
def test_smollm2_token_ids_are_those_of_llama_cpp(smollm2_folder: Path) -> None:
    stored = json.loads(gzip.decompress((DATA / "smollm2_token_ids.json.gz").read_bytes()))
    tokenizer = Tokenizer.from_file(str(smollm2_folder / "tokenizer.json"))
    assert len(stored["strings"]) == len(stored["ids"]) == 1000
    for text, ids in zip(stored["strings"], stored["ids"], strict=True):
        assert tokenizer.encode(text).ids == ids, text
        assert tokenizer.decode(ids, skip_special_tokens=False) == text


@pytest.mark.slow
def test_smollm2_companion_files(smollm2_folder: Path) -> None:
    config = json.loads((smollm2_folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    assert config["bos_token"] == "<|im_start|>" and config["eos_token"] == "<|im_end|>"
    assert config["add_bos_token"] is False and config["add_eos_token"] is False
    assert "You are a helpful AI assistant named SmolLM" in config["chat_template"]
    generation = json.loads((smollm2_folder / "generation_config.json").read_text(encoding="utf-8"))
    assert generation["eos_token_id"] == [2, 0]  # <|im_end|>, <|endoftext|>
