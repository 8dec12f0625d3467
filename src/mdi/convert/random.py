"""A seeded random model of any litgpt shape, with a tokenizer, so that measurements need no download.

Every tensor depends on the seed and its own name only: not on the other tensors, their order or the number
of threads. Memory stays flat: one tensor at a time is made and written.
"""

import hashlib
import json
from pathlib import Path

import torch

from mdi.checkpoint.config import save_config
from mdi.checkpoint.disk_space import announce_weights
from mdi.checkpoint.tensor_writer import TensorWriter
from mdi.checkpoint.weights import MODEL_FILE, write_errors
from mdi.convert import gpt2
from mdi.convert.hf_configs import config_by_name
from mdi.errors import ConfigError
from mdi.files import write_text
from mdi.model.gpt2 import gpt2_config
from mdi.model.litgpt_modules import Config
from mdi.model.shapes import model_shapes
from mdi.model.tensors import TORCH_DTYPES, dtype_name, mapped_empty
from mdi.text.byte_level import byte_alphabet, byte_level_tokenizer

# The model of the published measurements, 304.6 M parameters; litgpt's micro-llama-300M has this shape too.
NANO_LLAMA = Config(
    name="NanoLlama",
    block_size=2048,
    n_layer=12,
    n_embd=1024,
    n_head=16,
    n_query_groups=4,
    intermediate_size=5632,
    vocab_size=32000,
    padded_vocab_size=32000,
    rotary_percentage=1.0,
    parallel_residual=False,
    bias=False,
    norm_class_name="RMSNorm",
    mlp_class_name="LLaMAMLP",
)

# The toys of the published measurements, whose context and width varied: layers by name.
NANOGPT_LAYERS = {"nanoGPT-7": 7, "nanoGPT-9": 9, "nanoGPT-12": 12}
_NANOGPT_HEADS = 6
_NANOGPT_TOKENS = 10_000  # the largest vocabulary of byte pairs that was trained for them

_STD = 0.02
_PIECE = 1 << 20  # values drawn at a time: bounds the float32 scratch; part of what a seed means
_BOS_ID = 256


def make_random(
    config_name: str,
    folder: Path,
    *,
    seed: int,
    dtype: str | None = None,
    n_embd: int | None = None,
    context_length: int | None = None,
) -> None:
    """Write a random model of the shape `config_name` into the existing `folder`.

    Matrices are N(0, 0.02), norms the identity, biases zero. There is no stop token, so every sample runs to its full
    length.

    Args:
        config_name: a litgpt name, `NanoLlama`, one of the sizes of GPT-2, or one of `NANOGPT_LAYERS`.
        dtype: one of `DTYPES`; None is bfloat16.
        n_embd, context_length: width and positions of a nanoGPT, where they are not the usual ones.

    Raises `ConfigError` for unknown names, `StorageError` where `folder` cannot be written.
    """
    if dtype is not None and dtype not in TORCH_DTYPES:
        raise ConfigError(f"unknown dtype {dtype!r}: use one of {', '.join(TORCH_DTYPES)}")
    config = named_config(config_name, n_embd, context_length)
    if config.padded_vocab_size <= _BOS_ID:
        raise ConfigError(f"{config_name} has {config.padded_vocab_size} tokens; bytes and BOS need {_BOS_ID + 1}")
    target = folder / MODEL_FILE
    torch_dtype = TORCH_DTYPES[dtype or "bfloat16"]
    n_parameters = sum(shape.numel() for shape in model_shapes(config).values())
    announce_weights(folder, n_parameters * torch_dtype.itemsize, dtype_name(torch_dtype))
    with write_errors(target):
        target.unlink(missing_ok=True)
        save_config(config, folder)
        _write_weights(target, config, seed, torch_dtype)
    write_byte_tokenizer(folder, config.padded_vocab_size)


def named_config(
    name: str, n_embd: int | None = None, context_length: int | None = None, *, flag: str = "--random"
) -> Config:
    """The shape that a name stands for. Raises `ConfigError`, naming the `flag`, for an unknown one."""
    if name in NANOGPT_LAYERS:
        return _nanogpt(name, n_embd or 384, context_length or 256)
    if (n_embd, context_length) != (None, None):
        raise ConfigError(f"--n-embd and --context-length are for {', '.join(NANOGPT_LAYERS)}, not for {name}")
    if name == NANO_LLAMA.name:
        return NANO_LLAMA
    if (own := name.rpartition("/")[2]) in gpt2.SIZES:
        return gpt2.published_config(own)
    return config_by_name(name, flag=flag, others=[NANO_LLAMA.name, *gpt2.SIZES, *NANOGPT_LAYERS])


def _nanogpt(name: str, n_embd: int, context_length: int) -> Config:
    try:
        return gpt2_config(
            name,
            n_layer=NANOGPT_LAYERS[name],
            n_head=_NANOGPT_HEADS,
            n_embd=n_embd,
            block_size=context_length,
            vocab_size=_NANOGPT_TOKENS,
            gelu_approximate="none",
        )
    except (AssertionError, ValueError) as exc:
        raise ConfigError(f"--n-embd {n_embd}: not a multiple of the {_NANOGPT_HEADS} heads") from exc


def _write_weights(target: Path, config: Config, seed: int, dtype: torch.dtype) -> None:
    scratch = torch.empty(_PIECE)
    with TensorWriter(target) as writer:
        state = {}
        for name, shape in model_shapes(config).items():
            tensor = mapped_empty(shape, dtype)
            _fill(tensor, name, config, seed, scratch)
            state[name] = writer.store(tensor)
        writer.finish(state)


def _fill(tensor: torch.Tensor, name: str, config: Config, seed: int, scratch: torch.Tensor) -> None:
    """Give `tensor` the values that `name` and `seed` stand for."""
    if name.endswith(".bias"):
        tensor.zero_()
    elif _is_norm(name):
        # Gemma's norms add one to their weight.
        tensor.fill_(0.0 if config.norm_class_name == "RMSNorm" and "Gemma" in config.name else 1.0)
    else:
        digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
        for piece in torch.split(tensor.view(-1), _PIECE):
            piece.copy_(scratch[: piece.numel()].normal_(0.0, _STD, generator=generator))


def _is_norm(name: str) -> bool:
    module = name.split(".")[-2]
    return module == "ln_f" or "norm" in module


def write_byte_tokenizer(folder: Path, n_vocab: int) -> None:
    """A byte-level tokenizer.json and the two files that litgpt reads beside it."""
    write_text(folder / "tokenizer.json", _byte_tokenizer(n_vocab))
    write_text(
        folder / "tokenizer_config.json",
        _json({"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<|bos|>", "add_bos_token": False}),
    )
    write_text(folder / "generation_config.json", _json({"bos_token_id": _BOS_ID}))


def _byte_tokenizer(n_vocab: int) -> str:
    """tokenizer.json: id n < 256 is byte n, 256 is BOS, each further id has a string of its own.

    Without merges no text is ever encoded to the ids from 256 on; they exist so that whatever a random
    model generates can be decoded.
    """
    from tokenizers import models

    vocab = byte_alphabet()
    vocab["<|bos|>"] = _BOS_ID
    vocab.update((f"Ġt{i}", i) for i in range(_BOS_ID + 1, n_vocab))  # Ġ is the space in this alphabet
    return str(byte_level_tokenizer(models.BPE(vocab=vocab, merges=[]), patterns=()).to_str())


def _json(value: dict[str, object]) -> str:
    return json.dumps(value, indent=2) + "\n"
