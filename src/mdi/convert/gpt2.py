"""GPT-2 in Hugging Face format -> a litGPT folder.

litgpt has no conversion for it. Two things differ besides names: the weights of linear layers are stored as (inputs,
outputs), by a class called Conv1D; and positions are learned. The rows of queries, keys and values lie one below the
other, as in litgpt's own `qkv`.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from mdi.checkpoint.tensor_writer import Stored, TensorWriter
from mdi.checkpoint.weights import MODEL_FILE, write_errors
from mdi.convert.hf_numbers import is_small
from mdi.convert.weight_files import open_weight_file
from mdi.documents import Fields, is_text
from mdi.errors import CheckpointError
from mdi.model.gpt2 import LAYER_NORM_EPS, Gpt2Config, gpt2_config
from mdi.model.shapes import model_shapes
from mdi.model.tensors import TORCH_DTYPES, mapped_empty
from mdi.model.weights import Weights
from mdi.progress import progress_bar
from mdi.strings import one_line, quoted

MODEL_TYPE = "gpt2"
# Sizes as published: layers, heads, width.
SIZES: Mapping[str, tuple[int, int, int]] = {
    "gpt2": (12, 12, 768),
    "gpt2-medium": (24, 16, 1024),
    "gpt2-large": (36, 20, 1280),
    "gpt2-xl": (48, 25, 1600),
}

_TANH = ("gelu_new", "gelu_pytorch_tanh", "gelu_fast", "gelu_python_tanh")
_ACTIVATIONS = {name: {"gelu_approximate": "tanh"} for name in _TANH}
_ACTIVATIONS |= {"gelu": {"gelu_approximate": "none"}, "relu": {"activation": "relu"}}
# Fields that change the arithmetic in ways that a block has no field for, with the values that change nothing.
_REQUIRED: Mapping[str, tuple[Any, ...]] = {
    "add_cross_attention": (False,),
    "scale_attn_by_inverse_layer_idx": (False,),
    "scale_attn_weights": (True,),
}

_IN_BLOCK = {
    "ln_1": "norm_1",
    "ln_2": "norm_2",
    "attn.c_attn": "attn.qkv",
    "attn.c_proj": "attn.proj",
    "mlp.c_fc": "mlp.fc",
    "mlp.c_proj": "mlp.proj",
}
_OUTSIDE = {"wte": "transformer.wte", "wpe": "transformer.wpe", "ln_f": "transformer.ln_f", "lm_head": "lm_head"}
_NAME = re.compile(r"(?:transformer\.)?(?:h\.(?P<layer>\d+)\.)?(?P<module>[\w.]+)\.(?P<kind>weight|bias)")
_MASK = re.compile(r"(?:transformer\.)?h\.\d+\.attn\.(?:bias|masked_bias)")  # constants of transformers' own


def published_config(name: str) -> Gpt2Config:
    """The configuration of a published GPT-2. Raises `KeyError` for another name."""
    n_layer, n_head, n_embd = SIZES[name]
    return gpt2_config(name, n_layer=n_layer, n_head=n_head, n_embd=n_embd)


def config_of(hf_config: Mapping[str, Any], name: str, what: str) -> Gpt2Config:
    """The configuration in a config.json called `what`. Raises `CheckpointError` for what cannot be computed."""
    fields = Fields(dict(hf_config), what, CheckpointError)
    for field, values in _REQUIRED.items():
        if field in hf_config and hf_config[field] not in values:
            raise CheckpointError(f"{what}: {field} is {quoted(hf_config[field])}, which cannot be computed")
    activation = fields.get("activation_function", is_text, "a text", "gelu_new")
    if activation not in _ACTIVATIONS:
        raise CheckpointError(f"{what}: the activation {activation[:60]!r} is not supported for this kind of model")
    n_embd = fields.count("n_embd", 768)
    return consistent_config(
        name,
        what,
        n_layer=fields.count("n_layer", 12),
        n_head=fields.count("n_head", 12),
        n_embd=n_embd,
        block_size=fields.count("n_positions", fields.count("n_ctx", 1024)),
        vocab_size=fields.count("vocab_size", 50257),
        intermediate_size=fields.count("n_inner", 4 * n_embd),
        norm_eps=fields.get("layer_norm_epsilon", is_small, "a number above 0 and below 1", LAYER_NORM_EPS),
        **_ACTIVATIONS[activation],
    )


def consistent_config(name: str, what: str, **fields: Any) -> Gpt2Config:
    """A configuration of the numbers in `what`. Raises `CheckpointError` where they contradict each other."""
    try:
        return gpt2_config(name, **fields)
    except (AssertionError, ValueError) as exc:
        raise CheckpointError(f"{what}: its numbers contradict each other: {one_line(exc)}") from exc


def run_conversion(folder: Path, config: Gpt2Config, dtype: str | None, *, tied: bool) -> None:
    """Write lit_model.pth from the weight files in `folder`, as `litgpt_conversion.run_conversion` does."""
    files = sorted(path for path in folder.iterdir() if path.suffix in (".safetensors", ".bin"))
    total_bytes = sum(path.stat().st_size for path in files)
    with progress_bar(total_bytes, f"converting {folder.name.removesuffix('.partial')}", "B") as advance:
        sources = [_renamed(open_weight_file(path, advance), path) for path in files]
        write_model(folder / MODEL_FILE, config, located(config, sources, folder, tied=tied), dtype)


def _renamed(weights: Weights, path: Path) -> Weights:
    """The tensors of a file under our names and in our order of dimensions, none read yet."""
    stored = {}
    for name in weights:
        try:
            ours = our_name(name)
        except KeyError:
            raise CheckpointError(f"{path} holds {ascii(name)[:100]}, which GPT-2 has no place for") from None
        if ours is not None:
            stored[ours] = name
    meta = {ours: weights.meta[name] for ours, name in stored.items()}
    turned = {ours for ours in stored if _is_turned(ours) and meta[ours].dim() == 2}
    meta |= {ours: meta[ours].mT for ours in turned}

    def read(ours: str) -> torch.Tensor:
        tensor = weights[stored[ours]]
        return tensor.mT if ours in turned else tensor

    return Weights(meta, read)


def our_name(stored: str) -> str | None:
    """litgpt's name for a tensor of transformers'; None for a constant. Raises `KeyError` for any other."""
    if _MASK.fullmatch(stored):
        return None
    if (match := _NAME.fullmatch(stored)) is None:
        raise KeyError(stored)
    if match["layer"] is None:
        return f"{_OUTSIDE[match['module']]}.{match['kind']}"
    return f"transformer.h.{int(match['layer'])}.{_IN_BLOCK[match['module']]}.{match['kind']}"


def _is_turned(name: str) -> bool:
    """Whether a tensor of ours is stored as (inputs, outputs)."""
    return name.endswith(".weight") and (".attn." in name or ".mlp." in name)


def write_model(target: Path, config: Gpt2Config, weights: Mapping[str, Weights], dtype: str | None) -> None:
    """Write the model's tensors, one at a time, from where each of them is found under our name.

    `dtype` is one of `DTYPES`, None for the stored one. A head that is not among them is the embedding.
    """
    stored: dict[str, Stored] = {}
    target.unlink(missing_ok=True)
    with write_errors(target), TensorWriter(target) as writer:
        for name, source in weights.items():
            stored[name] = writer.store(_cast(source[name], dtype))
        stored.setdefault("lm_head.weight", stored["transformer.wte.weight"])
        writer.finish(stored)


def located(config: Gpt2Config, sources: Sequence[Weights], what: Path, *, tied: bool) -> dict[str, Weights]:
    """In which of `sources` each tensor of the model is, without the head where it is the embedding.

    Raises `CheckpointError`, naming `what` they are, for a tensor that is missing or of another shape.
    """
    where = {name: source for source in sources for name in source}
    shapes = {name: shape for name, shape in model_shapes(config).items() if not (tied and name == "lm_head.weight")}
    if missing := [name for name in shapes if name not in where]:
        raise CheckpointError(f"{what}: {len(missing)} of {len(shapes)} parameters are missing: {missing[0]}")
    for name, shape in shapes.items():
        if (found := where[name].meta[name].shape) != shape:
            raise CheckpointError(f"{what}: {name} is {tuple(found)}, where this model has {tuple(shape)}")
    return {name: where[name] for name in shapes}


def _cast(tensor: torch.Tensor, dtype: str | None) -> torch.Tensor:
    """In memory of its own, in our order of dimensions."""
    wanted = TORCH_DTYPES[dtype] if dtype and tensor.is_floating_point() else tensor.dtype
    return mapped_empty(tensor.shape, wanted).copy_(tensor)
