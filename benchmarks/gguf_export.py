"""A litGPT folder -> a float32 GGUF file, so that llama.cpp runs the very weights that we run.

For models of the Llama shape: RMS norms, gated SiLU, full rotary, no biases. The vocabulary is a made-up one of
the right size: measurements deal in token ids. Tensors are written one at a time.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

import gguf
import numpy as np
import numpy.typing as npt
import torch
from litgpt.config import Config

from mdi.checkpoint.config import load_config
from mdi.checkpoint.tensor_file import open_weights
from mdi.checkpoint.weights import MODEL_FILE
from mdi.files import atomic_path
from mdi.model.weights import Weights

Array = npt.NDArray[np.float32]
Make = tuple[str, torch.Tensor, int]  # a name of llama.cpp, its rows, and the heads they are interleaved in (0: none)

_IN_BLOCK = {
    "norm_1.weight": "attn_norm.weight",
    "attn.proj.weight": "attn_output.weight",
    "norm_2.weight": "ffn_norm.weight",
    "mlp.fc_1.weight": "ffn_gate.weight",
    "mlp.fc_2.weight": "ffn_up.weight",
    "mlp.proj.weight": "ffn_down.weight",
}
_N_BYTES = 256


def export_gguf(folder: Path, target: Path) -> None:
    """Write the model of `folder` to `target` in float32. Raises `ValueError` for a model of another shape."""
    config = load_config(folder)
    refuse_other_shapes(config)
    weights = open_weights(folder / MODEL_FILE)
    with atomic_path(target) as partial:
        writer = gguf.GGUFWriter(partial, "llama")
        _add_sizes(writer, config)
        _add_vocabulary(writer, config.padded_vocab_size)
        tensors = list(_tensors(config, weights))
        for name, rows, _ in tensors:
            writer.add_tensor_info(name, rows.shape, np.dtype(np.float32), rows.numel() * 4)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for _, rows, heads in tensors:
            writer.write_tensor_data(interleaved(rows.float().numpy(), heads))
        writer.close()


def refuse_other_shapes(config: Config) -> None:
    """Raise `ValueError` unless the model has the Llama shape."""
    wanted = {"norm_class_name": "RMSNorm", "mlp_class_name": "LLaMAMLP", "rotary_percentage": 1.0, "bias": False}
    wanted |= {"attn_bias": False, "norm_qk": False, "parallel_residual": False, "scale_embeddings": False}
    wanted |= {"rope_adjustments": None, "post_attention_norm": False, "sliding_window_size": None}
    for key, value in wanted.items():
        if getattr(config, key) != value:
            raise ValueError(f"{config.name}: {key} is {getattr(config, key)!r}; only {value!r} can be exported")


def _add_sizes(writer: gguf.GGUFWriter, config: Config) -> None:
    writer.add_name(config.name)
    writer.add_context_length(config.block_size)
    writer.add_embedding_length(config.n_embd)
    writer.add_block_count(config.n_layer)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.n_head)
    writer.add_head_count_kv(config.n_query_groups)
    writer.add_key_length(config.head_size)
    writer.add_value_length(config.head_size)
    writer.add_layer_norm_rms_eps(config.norm_eps)
    writer.add_rope_dimension_count(config.head_size)
    writer.add_rope_freq_base(config.rope_base)
    writer.add_vocab_size(config.padded_vocab_size)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)


def _add_vocabulary(writer: gguf.GGUFWriter, n_tokens: int) -> None:
    """A byte-level vocabulary whose tokens beyond the bytes stand for nothing."""
    from tokenizers import pre_tokenizers

    if n_tokens < _N_BYTES + 2:
        raise ValueError(f"a vocabulary of {n_tokens} has no room for the bytes")
    tokens = [*sorted(pre_tokenizers.ByteLevel.alphabet()), "Ġt"]
    tokens += [f"Ġt{i}" for i in range(len(tokens), n_tokens - 1)] + ["<|end|>"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([gguf.TokenType.NORMAL] * (n_tokens - 1) + [gguf.TokenType.CONTROL])
    writer.add_token_merges(["Ġ t"])
    writer.add_bos_token_id(n_tokens - 1)
    writer.add_eos_token_id(n_tokens - 1)
    writer.add_add_bos_token(False)


def _tensors(config: Config, weights: Weights) -> Iterator[Make]:
    embedding, head = weights["transformer.wte.weight"], weights.get("lm_head.weight")
    yield "token_embd.weight", embedding, 0
    yield "output_norm.weight", weights["transformer.ln_f.weight"], 0
    if head is not None and not _same(embedding, head):
        yield "output.weight", head, 0
    n_q, n_kv = config.n_head * config.head_size, config.n_query_groups * config.head_size
    for layer in range(config.n_layer):
        ours, theirs = f"transformer.h.{layer}.", f"blk.{layer}."
        q, k, v = torch.split(weights[f"{ours}attn.qkv.weight"], [n_q, n_kv, n_kv])
        yield f"{theirs}attn_q.weight", q, config.n_head
        yield f"{theirs}attn_k.weight", k, config.n_query_groups
        yield f"{theirs}attn_v.weight", v, 0
        for our_name, their_name in _IN_BLOCK.items():
            yield theirs + their_name, weights[ours + our_name], 0


def _same(embedding: torch.Tensor, head: torch.Tensor) -> bool:
    """Whether the two are tied: one memory, or at least one content."""
    return embedding.data_ptr() == head.data_ptr() or torch.equal(embedding, head)


def interleaved(rows: Array, n_heads: int) -> Array:
    """Each head's halves -> its pairs, which is the order of llama.cpp's rotary: (rows, columns)."""
    if n_heads == 0:
        return np.ascontiguousarray(rows)
    halves = rows.reshape(n_heads, 2, -1, rows.shape[1])  # (H, 2, D / 2, columns)
    return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(rows.shape)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="a litGPT folder")
    parser.add_argument("target", type=Path, help="the GGUF file to write")
    options = parser.parse_args()
    export_gguf(options.folder, options.target)


if __name__ == "__main__":
    main()
