"""A checkpoint of nanoGPT, or of the program that was published before this one -> a litGPT folder.

Both are one file of torch.save with `model`, the tensors, and `model_args`, the numbers. Training wrote more into it,
which is not looked at. nanoGPT names its tensors as GPT-2 does, but stores linear layers as torch does, and its GELU is
the exact one. The published program has one projection without bias for each head, ReLU, and a head with bias.
https://github.com/karpathy/nanoGPT
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from mdi.checkpoint.config import save_config
from mdi.checkpoint.disk_space import announce_weights
from mdi.checkpoint.tensor_file import open_weights, read_values
from mdi.checkpoint.weights import MODEL_FILE
from mdi.convert.gpt2 import consistent_config, located, our_name, write_model
from mdi.convert.nanogpt_tokenizer import write_tokenizer
from mdi.documents import Fields
from mdi.errors import CheckpointError
from mdi.model.gpt2 import Gpt2Config
from mdi.model.shapes import model_shapes
from mdi.model.tensors import TORCH_DTYPES, dtype_name
from mdi.model.weights import Weights

SUFFIXES = (".pt", ".ckpt")
_ANONYMOUS = ("ckpt", "ckpt_upd", "model")  # what training calls its file
_PUBLISHED = "transformer.position_embedding.weight"  # in checkpoints of the published program alone

_OUTSIDE = {
    "transformer.token_embedding": "transformer.wte",
    "transformer.position_embedding": "transformer.wpe",
    "transformer.ln_f": "transformer.ln_f",
    "lm_head": "lm_head",
}
_IN_BLOCK = {
    "ln1": "norm_1",
    "ln2": "norm_2",
    "mha.proj": "attn.proj",
    "ffwd.net.0": "mlp.fc",
    "ffwd.net.2": "mlp.proj",
}
_LAYER = re.compile(r"transformer\.layers\.(\d+)\.(.+)\.(weight|bias)")
_HEAD = re.compile(r"transformer\.layers\.\d+\.mha\.heads\.\d+\.(?:(?:query|key|value)\.weight|tril)")

Recipe = tuple[str, ...]  # the stored tensors that lie in ours one below the other; none: zeros


def suggested_name(source: Path) -> str:
    """The model's name after its file, or after the folder of a file that is only called `ckpt.pt`."""
    return source.resolve().parent.name if source.stem in _ANONYMOUS else source.stem


def import_nanogpt(source: Path, folder: Path, *, dtype: str | None = None, name: str | None = None) -> None:
    """Convert `source` into the existing empty `folder`: configuration, lit_model.pth and tokenizer.json.

    The tokenizer is looked for beside `source`: see `write_tokenizer`. `dtype` is one of `DTYPES`, None for the stored
    one. Raises `CheckpointError` for a file that is damaged or another model's, `StorageError`.
    """
    weights = open_weights(source)
    if not weights:
        raise CheckpointError(f"{source} holds no tensors")
    config = _config_of(source, weights, name or suggested_name(source))
    recipes = _published_recipes(config) if _PUBLISHED in weights else _recipes(config)
    recipes = _checked(recipes, weights, config, source)
    found = located(config, [_assembled(recipes, weights, config)], source, tied=True)
    torch_dtype = TORCH_DTYPES[dtype] if dtype else next(iter(weights.meta.values())).dtype
    shapes = model_shapes(config)
    n_parameters = sum(shapes[name].numel() for name in found)
    announce_weights(folder, n_parameters * torch_dtype.itemsize, dtype_name(torch_dtype))
    write_model(folder / MODEL_FILE, config, found, dtype)
    save_config(config, folder)
    write_tokenizer(source, folder, config.vocab_size)


def _config_of(source: Path, weights: Weights, name: str) -> Gpt2Config:
    values = read_values(source)
    arguments = values.get("model_args") if isinstance(values, dict) else None
    if not isinstance(arguments, dict):
        raise CheckpointError(f"{source} has no model_args: is it a checkpoint of nanoGPT?")
    what = f"{source}: model_args"
    fields = Fields(arguments, what, CheckpointError)
    kind: Mapping[str, Any] = {"gelu_approximate": "none"}
    if _PUBLISHED in weights:
        kind = {"activation": "relu", "lm_head_bias": True}
    sizes = {field: fields.count(field) for field in ("n_layer", "n_head", "n_embd", "block_size", "vocab_size")}
    return consistent_config(name, what, **sizes, **kind)


def _recipes(config: Gpt2Config) -> dict[str, Recipe]:
    """nanoGPT's names for each of our tensors."""
    stored = ["transformer.wte.weight", "transformer.wpe.weight", "transformer.ln_f.weight", "transformer.ln_f.bias"]
    modules = ("ln_1", "attn.c_attn", "attn.c_proj", "ln_2", "mlp.c_fc", "mlp.c_proj")
    for layer in range(config.n_layer):
        stored += [f"transformer.h.{layer}.{module}.{kind}" for module in modules for kind in ("weight", "bias")]
    return {our_name(name) or name: (name,) for name in stored}


def _published_recipes(config: Gpt2Config) -> dict[str, Recipe]:
    """The published program's names for each of our tensors."""
    recipes: dict[str, Recipe] = {
        f"{ours}.{kind}": (f"{theirs}.{kind}",) for theirs, ours in _OUTSIDE.items() for kind in ("weight", "bias")
    }
    for layer in range(config.n_layer):
        block, stored = f"transformer.h.{layer}.", f"transformer.layers.{layer}."
        for theirs, ours in _IN_BLOCK.items():
            recipes |= {f"{block}{ours}.{kind}": (f"{stored}{theirs}.{kind}",) for kind in ("weight", "bias")}
        recipes[f"{block}attn.qkv.weight"] = tuple(
            f"{stored}mha.heads.{head}.{part}.weight"
            for part in ("query", "key", "value")
            for head in range(config.n_head)
        )
        recipes[f"{block}attn.qkv.bias"] = ()
    return recipes


def _checked(recipes: dict[str, Recipe], weights: Weights, config: Gpt2Config, source: Path) -> dict[str, Recipe]:
    """The recipes of the model's tensors, with zeros for biases that are not there.

    Raises `CheckpointError` for a tensor that has no place in the model.
    """
    used = {name for recipe in recipes.values() for name in recipe}
    foreign = [name for name in weights if name not in used and not _is_left_out(name)]
    if foreign:
        raise CheckpointError(f"{source} holds {foreign[0]}, which nanoGPT has no place for ({len(foreign)} such)")
    wanted = {name: recipes.get(name, ()) for name in model_shapes(config)}
    return {
        name: recipe if any(part in weights for part in recipe) or not name.endswith(".bias") else ()
        for name, recipe in wanted.items()
    }


def _is_left_out(name: str) -> bool:
    """Masks, and the head, which is the embedding."""
    return name == "lm_head.weight" or name.endswith(".tril") or re.search(r"\.attn\.(masked_)?bias$", name) is not None


def _assembled(recipes: Mapping[str, Recipe], weights: Weights, config: Gpt2Config) -> Weights:
    """The model's tensors under our names; what is missing is missing here too."""
    shapes, dtype = model_shapes(config), next(iter(weights.meta.values())).dtype
    meta = {}
    for name, recipe in recipes.items():
        if all(part in weights for part in recipe):
            parts = [weights.meta[part] for part in recipe]
            meta[name] = torch.cat(parts) if parts else torch.empty(shapes[name], dtype=dtype, device="meta")

    def read(name: str) -> torch.Tensor:
        parts = [weights[part] for part in recipes[name]]
        return torch.cat(parts) if parts else torch.zeros(shapes[name], dtype=dtype)

    return Weights(meta, read)
