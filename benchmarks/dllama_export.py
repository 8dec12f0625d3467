"""A litGPT folder -> a model file (.m) and a tokenizer (.t) of distributed-llama, which then runs the weights we run.

For the models that `gguf_export` takes. The file is little-endian: a magic number, the bytes of the header with it,
pairs of a key and a value, then the tensors without names or gaps. Embedding and norms are float32; the rest is of one
kind: F32, or Q40, whose blocks are those of GGUF's Q4_0. The tokenizer writes each token as its number, `<17>`, so
that prompts are chosen, and answers read, as token ids.
"""

import argparse
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path

import gguf
import torch
from gguf.quants import quantize
from litgpt.config import Config

from benchmarks.gguf_export import interleaved, refuse_other_shapes
from mdi.checkpoint.config import load_config
from mdi.checkpoint.tensor_file import open_weights
from mdi.checkpoint.weights import MODEL_FILE
from mdi.files import atomic_path
from mdi.model.weights import Weights

_MODEL_MAGIC, _TOKENIZER_MAGIC = 0x0A00ABCD, 0x567124
_LLAMA, _SILU = 0xABCD00, 1
_KINDS = {"F32": 0, "Q40": 2}
_EPSILONS = {1e-5: 5, 1e-6: 6}  # it knows no others
_GGUF_KINDS = {"F32": gguf.GGMLQuantizationType.F32, "Q40": gguf.GGMLQuantizationType.Q4_0}

Tensor = tuple[torch.Tensor, str, int]  # (rows, columns) or (columns,), its kind, and the heads to interleave (0: none)


def export_model(folder: Path, target: Path, kind: str) -> None:
    """Write the model of `folder` to `target` in `kind`, F32 or Q40. Raises `ValueError` for one of another shape."""
    config = load_config(folder)
    refuse_other_shapes(config)
    header = _header(_MODEL_MAGIC, _facts(config, kind))
    weights = open_weights(folder / MODEL_FILE)
    with atomic_path(target) as partial, partial.open("wb") as file:
        file.write(header)
        for tensor, its_kind, heads in _tensors(config, weights, kind):
            rows = interleaved(tensor.float().numpy(), heads)
            file.write(quantize(rows, _GGUF_KINDS[its_kind]).tobytes())


def export_tokenizer(n_tokens: int, target: Path) -> None:
    """Write a vocabulary of `n_tokens` numbers; the last one is the token that would begin a text."""
    names = [token_text(token).encode() for token in range(n_tokens)]
    # No text ends a sequence, and none is added in front. The first tokens that it searches end before BOS.
    facts = {0: 1, 1: n_tokens, 2: max(map(len, names)), 3: n_tokens - 1, 9: 0, 10: 0}
    with atomic_path(target) as partial, partial.open("wb") as file:
        file.write(_header(_TOKENIZER_MAGIC, facts))
        for name in names:
            file.write(struct.pack("<fI", 0.0, len(name)) + name)


def token_text(token: int) -> str:
    """How the tokenizer writes a token. None begins like another one, so a text has one reading only."""
    return f"<{token}>"


def prompt_text(tokens: Sequence[int]) -> str:
    """The text that the tokenizer reads as `tokens`."""
    return "".join(map(token_text, tokens))


def _header(magic: int, facts: dict[int, int]) -> bytes:
    pairs = [number for pair in facts.items() for number in pair]
    return struct.pack(f"<{2 + len(pairs)}i", magic, 4 * (2 + len(pairs)), *pairs)


def _facts(config: Config, kind: str) -> dict[int, int]:
    """Keys and values of a model's header, all of them integers."""
    epsilon, theta = _EPSILONS.get(config.norm_eps), int(config.rope_base)
    if epsilon is None or theta != config.rope_base or config.rope_condense_ratio != 1:
        raise ValueError(f"{config.name}: norm_eps {config.norm_eps} or its rotary base cannot be exported")
    widths = config.n_embd, config.n_head * config.head_size, config.intermediate_size
    if kind == "Q40" and any(width % 32 for width in widths):
        raise ValueError(f"{config.name}: rows that are no multiple of 32 wide cannot be exported in Q40")
    sizes = [config.n_embd, config.intermediate_size, config.n_layer, config.n_head, config.n_query_groups]
    facts = {0: 0, 1: _LLAMA, **dict(enumerate(sizes, 2)), 9: config.padded_vocab_size, 10: config.block_size}
    return facts | {11: _SILU, 12: theta, 13: _KINDS[kind], 19: config.head_size, 20: epsilon}


def _tensors(config: Config, weights: Weights, kind: str) -> Iterator[Tensor]:
    """All tensors in the order of the file."""
    embedding = weights["transformer.wte.weight"]
    yield embedding, "F32", 0
    n_q, n_kv = config.n_head * config.head_size, config.n_query_groups * config.head_size
    for layer in range(config.n_layer):
        block = f"transformer.h.{layer}."
        q, k, v = torch.split(weights[f"{block}attn.qkv.weight"], [n_q, n_kv, n_kv])
        yield q, kind, config.n_head
        yield k, kind, config.n_query_groups
        yield v, kind, 0
        for name in ("attn.proj", "mlp.fc_1", "mlp.proj", "mlp.fc_2"):
            yield weights[f"{block}{name}.weight"], kind, 0
        for name in ("norm_1", "norm_2"):
            yield weights[f"{block}{name}.weight"], "F32", 0
    yield weights["transformer.ln_f.weight"], "F32", 0
    head = weights.get("lm_head.weight")
    yield embedding if head is None else head, kind, 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="a litGPT folder")
    parser.add_argument("target", type=Path, help="the .m file to write; the tokenizer is written beside it, as .t")
    parser.add_argument("--kind", choices=_KINDS, default="Q40")
    options = parser.parse_args()
    export_model(options.folder, options.target, options.kind)
    export_tokenizer(load_config(options.folder).padded_vocab_size, options.target.with_suffix(".t"))


if __name__ == "__main__":
    main()
