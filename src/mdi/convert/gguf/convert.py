"""A GGUF file -> a litGPT folder: configuration, weights and tokenizer, all from the file's own metadata.

Tensors are dequantized a few rows at a time into one litGPT tensor, which is written and forgotten: memory holds the
largest tensor of the model and no second one. For a quantized model the blocks of the file are kept where they are of
its format, and made of the dequantized rows elsewhere.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from mdi.checkpoint.config import save_config
from mdi.checkpoint.disk_space import announce_weights
from mdi.checkpoint.manifest import kind_of
from mdi.checkpoint.tensor_writer import Stored, TensorWriter
from mdi.checkpoint.weights import model_file, write_errors
from mdi.convert.gguf.blocks import take_over
from mdi.convert.gguf.config import Architecture, architecture_of, build_config
from mdi.convert.gguf.file import GgufFile, TensorInfo, dequantized
from mdi.convert.gguf.parts import open_model, without_part
from mdi.convert.gguf.tokenizer import write_tokenizer
from mdi.errors import CheckpointError, ConfigError
from mdi.formats import Mode
from mdi.model.litgpt_modules import Config
from mdi.model.quant import Weight, join, mode_for, quantize, weight_bytes
from mdi.model.shapes import model_shapes
from mdi.model.tensors import TORCH_DTYPES, dtype_name
from mdi.strings import one_line

BLOCK_ELEMENTS = 2**22  # dequantized at a time: 16 MiB as float32

_QUANTIZATION_SUFFIX = re.compile(r"[.-](I?Q\d\w*|TQ\d\w*|MXFP4\w*|F16|F32|BF16|FP16|FP32)$", re.IGNORECASE)

_EMBEDDING, _HEAD = "token_embd.weight", "output.weight"
_TOP = {
    "transformer.wte.weight": _EMBEDDING,
    "transformer.wpe.weight": "position_embd.weight",
    "transformer.ln_f.weight": "output_norm.weight",
    "transformer.ln_f.bias": "output_norm.bias",
    "lm_head.weight": _HEAD,
}
_IN_BLOCK = {
    "norm_1.weight": "attn_norm.weight",
    "post_attention_norm.weight": "post_attention_norm.weight",
    "norm_2.weight": "ffn_norm.weight",
    "post_mlp_norm.weight": "post_ffw_norm.weight",
    "attn.proj.weight": "attn_output.weight",
    "attn.norm_q.weight": "attn_q_norm.weight",
    "attn.norm_k.weight": "attn_k_norm.weight",
    "mlp.gate.weight": "ffn_gate_inp.weight",
    "mlp.fc_1.weight": "ffn_gate.weight",
    "mlp.fc_2.weight": "ffn_up.weight",
    "mlp.proj.weight": "ffn_down.weight",
}
_IN_GPT2_BLOCK = {
    f"{ours}.{kind}": f"{theirs}.{kind}"
    for ours, theirs in {
        "norm_1": "attn_norm",
        "attn.qkv": "attn_qkv",
        "attn.proj": "attn_output",
        "norm_2": "ffn_norm",
        "mlp.fc": "ffn_up",
        "mlp.proj": "ffn_down",
    }.items()
    for kind in ("weight", "bias")
}
_IN_EXPERT = {
    "fc_1.weight": "ffn_gate_exps.weight",
    "fc_2.weight": "ffn_up_exps.weight",
    "proj.weight": "ffn_down_exps.weight",
}
_FREQUENCIES = "rope_freqs.weight"  # goes into the configuration
_LEFT_OVER = re.compile(r"blk\.\d+\.attn_rot_embd(\.weight)?")  # written by old converters; unused


@dataclass(frozen=True)
class _Part:
    """Rows of one litGPT tensor: where in the GGUF file they come from, and how they are stored there."""

    info: TensorInfo
    first_row: int
    n_rows: int
    permuted_heads: int = 0  # number of heads whose rows are in the order of interleaved rotary, else 0
    added: float = 0.0  # what the converter added to every element

    @property
    def columns(self) -> int:
        """A vector is a matrix of one column here, though the file stores it as one row."""
        return 1 if len(self.info.shape) == 1 else self.info.shape[-1]


def suggested_name(source: Path) -> str:
    """The model's name after its file: without part, suffix and quantization, `Phi.Q4_K_M.gguf` is `Phi`."""
    name = without_part(source.name)
    stem = name[: -len(".gguf")] if name.lower().endswith(".gguf") else name
    return _QUANTIZATION_SUFFIX.sub("", stem) or stem


def import_gguf(
    source: Path,
    folder: Path,
    *,
    dtype: str | None = None,
    quantization: Mode = "none",
    name: str | None = None,
    advance: Callable[[int], object] = lambda n_tensors: None,
) -> None:
    """Convert `source` into the existing empty `folder`: configuration, the whole model and tokenizer files.

    Of a model in several files, `source` is any one; the others lie beside it.
    `dtype` is one of `DTYPES`; without it, float16 for a file of that, else bfloat16 where most of its numbers have at
    most 16 bits, else float32. `quantization` says how the weights of linear layers are written, and with that the
    file's name (see `model_file`). `name` labels the configuration (see `build_config`). `advance(1)` is called
    for each litGPT tensor that was written.

    Raises `CheckpointError` for a file that is damaged or unsupported, `StorageError` where the model does not fit on
    the disk, and `ConfigError` for an unknown `dtype`. What it has written by then is left to the caller.
    """
    if dtype is not None and dtype not in TORCH_DTYPES:
        raise ConfigError(f"unknown dtype {dtype!r}: choose one of {', '.join(TORCH_DTYPES)}")
    file = open_model(source)
    n_tokens = write_tokenizer(file, folder)
    config = build_config(file, n_tokens, name)
    recipes = _recipes(file, config)
    if quantization != "none":  # a head that is tied to the embedding is not what that is any more
        recipes.setdefault("lm_head.weight", recipes["transformer.wte.weight"])
    torch_dtype = TORCH_DTYPES[dtype] if dtype else _own_dtype(file)
    needed_bytes = sum(weight_bytes(name, _shape(parts), torch_dtype, quantization) for name, parts in recipes.items())
    announce_weights(folder, needed_bytes, kind_of(dtype_name(torch_dtype), quantization))
    _write_weights(file, folder / model_file(quantization), recipes, torch_dtype, quantization, advance)
    save_config(config, folder)


def _own_dtype(file: GgufFile) -> torch.dtype:
    n_elements: Counter[str] = Counter()
    for info in file.tensors.values():
        if len(info.shape) > 1:
            n_elements[info.kind.name] += info.n_rows * info.shape[-1]
    if n_elements.keys() == {"F16"}:
        return torch.float16
    n_wide = n_elements["F32"] + n_elements["F64"]  # routers of mixtures are in float32 in every file
    return torch.float32 if 2 * n_wide > n_elements.total() else torch.bfloat16


def _recipes(file: GgufFile, config: Config) -> dict[str, tuple[_Part, ...]]:
    """For each tensor of the litGPT model its parts, in the order of their rows. A tied head has no entry.

    Raises `CheckpointError` for a tensor that is missing, has another shape than the model, or is in the file without
    a place in the model.
    """
    architecture = architecture_of(file)
    recipes = {
        name: tuple(_parts(file, config, architecture, name, shape))
        for name, shape in _model_shapes(file, config).items()
        if name != "lm_head.weight" or _HEAD in file.tensors
    }
    used = {part.info.name for parts in recipes.values() for part in parts}
    used |= {_FREQUENCIES} if architecture.permuted else set()
    unknown = [name for name in file.tensors if name not in used and not _LEFT_OVER.fullmatch(name)]
    if unknown:
        count = f"{len(unknown)} tensors have" if len(unknown) > 1 else "one tensor has"
        raise CheckpointError(f"{file.path}: {count} no place in the litGPT model of this architecture: {unknown[0]}")
    return recipes


def _model_shapes(file: GgufFile, config: Config) -> dict[str, tuple[int, ...]]:
    try:
        return {name: tuple(shape) for name, shape in model_shapes(config).items()}
    except (RuntimeError, TypeError, ValueError) as exc:
        raise CheckpointError(f"{file.path}: litGPT cannot build the model it describes: {one_line(exc)}") from exc


def _parts(
    file: GgufFile, config: Config, architecture: Architecture, name: str, shape: tuple[int, ...]
) -> Iterator[_Part]:
    """Where the tensor `name` of the litGPT model comes from; `shape` is what the model expects of it."""
    is_norm = "norm" in name or name.startswith("transformer.ln_f.")
    added = 1.0 if architecture.gemma and is_norm else 0.0
    if name in _TOP:
        yield _whole(file, _TOP[name], shape, added)
        return
    block, in_block = name.removeprefix("transformer.h.").split(".", 1)
    prefix = f"blk.{block}."
    if architecture.learned_positions:
        yield _whole(file, prefix + _IN_GPT2_BLOCK[in_block], shape)
    elif in_block.startswith("attn.qkv."):
        yield from _qkv_parts(file, config, architecture, prefix, in_block.rsplit(".", 1)[-1])
    elif in_block.startswith("mlp.experts."):
        expert, matrix = in_block.removeprefix("mlp.experts.").split(".", 1)
        yield _expert(file, prefix + _IN_EXPERT[matrix], int(expert), config.n_expert, shape)
    else:
        yield _whole(file, prefix + _IN_BLOCK[in_block], shape, added)


def _qkv_parts(file: GgufFile, config: Config, architecture: Architecture, prefix: str, kind: str) -> Iterator[_Part]:
    """The rows of all query heads, then of all key heads, then of all value heads. `kind` is weight or bias."""
    for letter, heads in (("q", config.n_head), ("k", config.n_query_groups), ("v", config.n_query_groups)):
        rows = heads * config.head_size
        shape = (rows, config.n_embd) if kind == "weight" else (rows,)
        part = _whole(file, f"{prefix}attn_{letter}.{kind}", shape)
        permuted = heads if architecture.permuted and letter != "v" else 0
        yield _Part(part.info, part.first_row, part.n_rows, permuted_heads=permuted)


def _whole(file: GgufFile, name: str, shape: tuple[int, ...], added: float = 0.0) -> _Part:
    return _Part(_tensor(file, name, shape), 0, shape[0], added=added)


def _expert(file: GgufFile, name: str, expert: int, n_expert: int, shape: tuple[int, ...]) -> _Part:
    """Expert matrices of a block are stored as one tensor, (n_expert, rows, columns)."""
    info = _tensor(file, name, (n_expert, *shape))
    return _Part(info, expert * shape[0], shape[0])


def _tensor(file: GgufFile, name: str, shape: tuple[int, ...]) -> TensorInfo:
    info = file.tensors.get(name)
    if info is None:
        raise CheckpointError(f"{file.path}: the tensor {name} is missing")
    if info.shape != shape:
        raise CheckpointError(
            f"{file.path}: the tensor {name} has the shape {list(info.shape)}, expected {list(shape)}"
        )
    return info


def _write_weights(
    file: GgufFile,
    target: Path,
    recipes: dict[str, tuple[_Part, ...]],
    dtype: torch.dtype,
    quantization: Mode,
    advance: Callable[[int], object],
) -> None:
    """Write every tensor as soon as it is whole; tensors tied in the model share one storage in the file."""
    stored: dict[str, Stored] = {}
    try:
        with write_errors(target), TensorWriter(target) as writer:
            for name, parts in recipes.items():
                mode = mode_for(name, _shape(parts), quantization)
                weight = Weight(_assemble(file, parts, dtype)) if mode == "none" else _quantized(file, parts, mode)
                stored |= {name + suffix: writer.store(tensor) for suffix, tensor in weight.parts.items()}
                advance(1)
            stored.setdefault("lm_head.weight", stored["transformer.wte.weight"])
            writer.finish(stored)
    except (RuntimeError, MemoryError) as exc:  # of the allocators of torch and numpy
        raise CheckpointError(f"{file.path}: the weights cannot be converted: {one_line(exc)}") from exc


def _shape(parts: tuple[_Part, ...]) -> torch.Size:
    """Of the litGPT tensor; a vector counts as a matrix of one column."""
    return torch.Size((sum(part.n_rows for part in parts), parts[0].columns))


def _quantized(file: GgufFile, parts: tuple[_Part, ...], mode: Mode) -> Weight:
    """The weight of a linear layer: the rows of all `parts`, one below the other."""
    return join([_quantized_part(file, part, mode) for part in parts])


def _quantized_part(file: GgufFile, part: _Part, mode: Mode) -> Weight:
    pieces = []
    for first, n in _steps(part):
        stored = file.stored_rows(part.info, part.first_row + first, n)
        if (weight := take_over(torch.from_numpy(stored), part.info.kind, mode)) is not None:
            source = weight.scale
        else:
            source = torch.from_numpy(dequantized(part.info, stored))
            weight = quantize(source, mode)
        assert source is not None and weight.scale is not None
        _check_finite(file, part, weight.scale, source)
        pieces.append(weight)
    whole = join(pieces)
    return whole if not part.permuted_heads else _unpermuted_weight(whole, part.permuted_heads)


def _assemble(file: GgufFile, parts: tuple[_Part, ...], dtype: torch.dtype) -> torch.Tensor:
    """The rows of all `parts`, one below the other: (rows, columns), or (rows,) for vectors."""
    whole = torch.empty(sum(part.n_rows for part in parts), parts[0].columns, dtype=dtype)
    start = 0
    for part in parts:
        rows = whole[start : start + part.n_rows]
        for first, block in _blocks(file, part):
            _store(file, part, rows[first : first + len(block)], block)
        if part.permuted_heads:
            rows.copy_(_unpermuted(rows, part.permuted_heads))
        start += part.n_rows
    return whole.flatten() if len(parts[0].info.shape) == 1 else whole


def _blocks(file: GgufFile, part: _Part) -> Iterator[tuple[int, torch.Tensor]]:
    """(first row within the part, rows as float32 (n, columns)) for the whole part, block by block."""
    if len(part.info.shape) == 1:
        yield 0, torch.from_numpy(file.rows(part.info, 0, 1)).T
        return
    for first, n in _steps(part):
        yield first, torch.from_numpy(file.rows(part.info, part.first_row + first, n))


def _steps(part: _Part) -> Iterator[tuple[int, int]]:
    """(first row within the part, number of rows) of what is read at a time."""
    n = max(1, BLOCK_ELEMENTS // part.columns)
    return ((first, min(n, part.n_rows - first)) for first in range(0, part.n_rows, n))


def _store(file: GgufFile, part: _Part, target: torch.Tensor, block: torch.Tensor) -> None:
    target.copy_(block - part.added if part.added else block)
    _check_finite(file, part, target, block)


def _check_finite(file: GgufFile, part: _Part, target: torch.Tensor, block: torch.Tensor) -> None:
    """Raise `CheckpointError` unless all is finite that became of `block`."""
    if not torch.isfinite(target).all():
        reason = (
            f"values too large for {target.dtype}" if torch.isfinite(block).all() else "infinite or undefined values"
        )
        raise CheckpointError(f"{file.path}: the tensor {part.info.name} holds {reason}")


def _unpermuted_weight(weight: Weight, n_head: int) -> Weight:
    """A quantized weight whose rows get their place by `_unpermuted`: whole rows move, blocks stay as they are."""
    assert weight.scale is not None
    scale = _unpermuted(weight.scale.flatten(1), n_head).view(weight.scale.shape)
    return Weight(_unpermuted(weight.data, n_head), scale)


def _unpermuted(rows: torch.Tensor, n_head: int) -> torch.Tensor:
    """Rows in pairs (first half, second half of a head) -> each head's first half, then its second: (rows, columns)."""
    pairs = rows.view(n_head, -1, 2, rows.shape[1])  # (H, D / 2, 2, columns)
    return pairs.transpose(1, 2).reshape(rows.shape)
