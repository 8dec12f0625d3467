"""Make rotary_tables.json: cosines and sines as transformers computes them, for tests/convert/test_hf_rotary.py.

`make reference` runs it with the pinned transformers.
"""

import importlib
import json
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, __version__

SIZES = {"hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 6}
ORIGINAL = 32
CONTEXTS = (24, 100)  # within the original context, and beyond it
POSITIONS = (1, 23, 99)
LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": ORIGINAL}
LONGROPE = {"short_factor": [1.0 + 0.1 * i for i in range(8)], "long_factor": [1.5 + i for i in range(8)]}
YARN = {"factor": 4.0, "original_max_position_embeddings": ORIGINAL}
MSCALE = {"mscale": 0.707, "mscale_all_dim": 0.5}

SETTINGS: dict[str, dict[str, Any]] = {
    "default": {},
    "base": {"rope_theta": 500000.0},
    "linear": {"rope_scaling": {"type": "linear", "factor": 4.0}},
    "linear, 5": {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 100000.0}},
    "llama3": {"rope_theta": 500000.0, "rope_scaling": {"rope_type": "llama3", **LLAMA3}},
    "llama3, 5": {"rope_parameters": {"rope_type": "llama3", "rope_theta": 1e6, **LLAMA3}},
    "dynamic": {"max_position_embeddings": ORIGINAL, "rope_scaling": {"type": "dynamic", "factor": 4.0}},
    "dynamic, 5": {
        "max_position_embeddings": ORIGINAL,
        "rope_parameters": {"rope_type": "dynamic", "factor": 2.5, "rope_theta": 5000.0},
    },
    "yarn": {"max_position_embeddings": ORIGINAL, "rope_scaling": {"type": "yarn", "factor": 4.0}},
    "yarn, 5": {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e6, **YARN, **MSCALE}},
    "yarn, bounds": {
        "rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "beta_fast": 4, "beta_slow": 0.5, **YARN}
        | {"attention_factor": 1.25, "truncate": False}
    },
    "longrope": {
        "max_position_embeddings": 128,
        "original_max_position_embeddings": ORIGINAL,
        "rope_scaling": {"type": "longrope", **LONGROPE},
    },
    "longrope, 5": {
        "max_position_embeddings": 128,
        "rope_parameters": {"rope_type": "longrope", "rope_theta": 1e4, "original_max_position_embeddings": ORIGINAL}
        | LONGROPE,
    },
    "longrope, factor": {
        "rope_parameters": {"rope_type": "longrope", "rope_theta": 1e4, "original_max_position_embeddings": ORIGINAL}
        | LONGROPE
        | {"factor": 8.0},
    },
    "longrope, partial": {
        "model_type": "phi3",
        "partial_rotary_factor": 0.75,
        "max_position_embeddings": 128,
        "original_max_position_embeddings": ORIGINAL,
        "rope_scaling": {"type": "longrope", "short_factor": [1.0] * 6, "long_factor": [1.0, 1.2, 2.0, 3.0, 5.0, 8.0]},
    },
    "partial": {"model_type": "stablelm", "partial_rotary_factor": 0.5},
    "partial by default": {"model_type": "stablelm"},
    "partial, 5": {
        "model_type": "stablelm",
        "rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4, "partial_rotary_factor": 0.75},
    },
    "rotary_pct": {"model_type": "gpt_neox", "rotary_pct": 0.5, "rotary_emb_base": 5000},
    "mixtral": {"model_type": "mixtral"},
    "gemma3": {"model_type": "gemma3_text", "head_dim": 16, "rope_scaling": {"rope_type": "linear", "factor": 8.0}},
    "gemma3, 5": {
        "model_type": "gemma3_text",
        "head_dim": 16,
        "rope_parameters": {
            "full_attention": {"rope_type": "yarn", "rope_theta": 1e6, **YARN},
            "sliding_attention": {"rope_type": "default", "rope_theta": 5000.0},
        },
    },
}


def table(settings: dict[str, Any], context: int) -> list[Any]:
    """(cosines and sines) x positions within the context; Gemma 3: of the layers without, and with a window."""
    settings = {"model_type": "llama", "max_position_embeddings": 128} | SIZES | settings
    model_type = settings.pop("model_type")
    config = AutoConfig.for_model(model_type, **json.loads(json.dumps(settings)))
    family = model_type.removesuffix("_text")
    module = importlib.import_module(f"transformers.models.{family}.modeling_{family}")
    names = [name for name in vars(module) if name.endswith("RotaryEmbedding") and "Vision" not in name]
    embedding = getattr(module, names[0])(config)
    layers = ("full_attention", "sliding_attention") if family == "gemma3" else (None,)
    positions = [position for position in POSITIONS if position < context]
    tables = []
    for layer in layers:
        extra = () if layer is None else (layer,)
        cos, sin = embedding(torch.zeros(1), torch.arange(context)[None], *extra)
        tables.append([[[round(x, 6) for x in part[0, p].tolist()] for part in (cos, sin)] for p in positions])
    return tables


def main() -> None:
    cases = [
        {"name": name, "settings": settings, "context": context, "tables": table(settings, context)}
        for name, settings in SETTINGS.items()
        for context in CONTEXTS
    ]
    document = {"transformers": __version__, "sizes": SIZES, "positions": POSITIONS, "cases": cases}
    path = Path(__file__).with_name("rotary_tables.json")
    path.write_text(json.dumps(document, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
