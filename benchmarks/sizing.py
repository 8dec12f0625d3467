#!/usr/bin/env python3
"""The tables of docs/sizing.md: what models take on rings of one to four nodes, and how fast memory lets them be.

    python benchmarks/sizing.py

Computed from litGPT's configurations as a starter plans a run. Nothing is measured or downloaded.
"""

import functools
import sys
from dataclasses import dataclass
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "src")]

from mdi.checkpoint.chunks import StoredForm  # noqa: E402
from mdi.cluster.budget import SPARE, Need, NodeFacts, need_of, roomiest_split  # noqa: E402
from mdi.convert.hf_configs import config_by_name  # noqa: E402
from mdi.convert.known_models import KNOWN_MODELS  # noqa: E402
from mdi.formats import Mode  # noqa: E402
from mdi.model.architecture import ModelConfig, architecture_of  # noqa: E402
from mdi.model.quant import held_bytes  # noqa: E402
from mdi.model.shapes import model_shapes  # noqa: E402

# Of a node without weights and slots: 0.28 to 0.43 GB were measured on CPUs. What CUDA takes of a GPU is not free.
PROCESS_BYTES = {"cpu": 0.4e9, "cuda": 0.0}
CONTEXT, MAX_ROWS = 2048, 128  # positions of a slot, all of them filled; rows of the largest message
STORED = StoredForm("bfloat16")  # as nearly all models are published
NODES = (1, 2, 3, 4)


@dataclass(frozen=True)
class HeldAs:
    """What weights are held in, and what everything else is computed in."""

    dtype: torch.dtype
    mode: Mode
    device: str = "cpu"


FORMATS = {
    "float32": HeldAs(torch.float32, "none"),
    "bfloat16": HeldAs(torch.bfloat16, "none"),
    "int8": HeldAs(torch.float32, "int8"),
    "int4": HeldAs(torch.float32, "int4"),
}
GPU_FORMATS = {
    "bfloat16, float16": HeldAs(torch.bfloat16, "none", "cuda"),
    "int8": HeldAs(torch.bfloat16, "int8", "cuda"),
    "int4": HeldAs(torch.bfloat16, "int4", "cuda"),
}

# Groups of equal machines, and the memory in GB that is free on each of them before the program starts.
GROUPS = {
    "1 machine with 2 GB": (1, 1.6),
    "2 machines with 2 GB": (2, 1.6),
    "4 machines with 2 GB": (4, 1.6),
    "1 machine with 4 GB": (1, 3.4),
    "2 machines with 4 GB": (2, 3.4),
    "4 machines with 4 GB": (4, 3.4),
    "1 machine with 8 GB": (1, 7.2),
    "2 machines with 8 GB": (2, 7.2),
    "3 machines with 8 GB": (3, 7.2),
    "2 machines with 16 GB": (2, 14.5),
}
GPU_GROUPS = {
    "1 GPU with 8 GB": (1, 7.0),
    "2 GPUs with 8 GB": (2, 7.0),
    "1 GPU with 12 GB": (1, 11.0),
    "2 GPUs with 12 GB": (2, 11.0),
    "1 GPU with 24 GB": (1, 23.0),
}

# What the vendors give for a machine's memory, in GB/s.
BANDWIDTHS = {
    "Raspberry Pi 4 (LPDDR4-3200, 32 bits)": 12.8,
    "Raspberry Pi 5 (LPDDR4X-4267, 32 bits)": 17.1,
    "old laptop, two modules of DDR3-1600": 25.6,
    "laptop, two modules of DDR4-3200; with one module half of it": 51.2,
    "laptop, two modules of DDR5-5600": 89.6,
    "Jetson Orin Nano 8 GB": 68.0,
    "Jetson Orin Nano 8 GB in its `Super` mode, Orin NX": 102.0,
    "Jetson AGX Orin": 204.8,
    "GeForce RTX 4060": 272.0,
    "GeForce RTX 3060 12 GB": 360.0,
    "GeForce RTX 3090": 936.0,
    "GeForce RTX 4090": 1008.0,
}
TIMED = [("tinyllama", "int8"), ("llama3.2-3b", "int8"), ("llama3-8b", "int8"), ("llama3-8b", "bfloat16")]  # for them


@functools.cache
def config_of(name: str) -> ModelConfig:
    """The configuration of a model with a short name."""
    return config_by_name(KNOWN_MODELS[name].repo_id)


def weights_bytes(name: str, held: HeldAs) -> int:
    """What the weights of a whole model take."""
    return held_bytes(model_shapes(config_of(name)), held.dtype, held.mode, held.device)


def bytes_per_token(name: str, held: HeldAs) -> int:
    """What one token of one sample has to read: all weights but the embedding, of which it takes one row."""
    config = config_of(name)
    shapes = model_shapes(config)
    del shapes[architecture_of(config).embedding]
    return held_bytes(shapes, held.dtype, held.mode, held.device)


def cache_bytes(name: str, dtype: torch.dtype, positions: int) -> int:
    """The keys and values of one sample, of all nodes together."""
    config = config_of(name)
    return int(config.n_layer * 2 * config.n_query_groups * config.head_size * positions * dtype.itemsize)


def free_bytes_needed(name: str, held: HeldAs, n_nodes: int) -> float:
    """What has to be free on the node that needs most, with as many samples as nodes."""
    config = config_of(name)
    nodes = nodes_of(held, n_nodes)
    spans = roomiest_split(nodes, config, context=CONTEXT, n_slots=n_nodes, stored=STORED)
    needs = [
        need_of(node, config, span, has_ends=number == 0, context=CONTEXT, max_rows=MAX_ROWS, stored=STORED)
        for number, (node, span) in enumerate(zip(nodes, spans, strict=True))
    ]
    return PROCESS_BYTES[held.device] + max(_taken(need, n_nodes) for need in needs) / (1 - SPARE)


def nodes_of(held: HeldAs, n_nodes: int, free_bytes: int | None = None) -> list[NodeFacts]:
    """Equal machines, each of which has so much memory free."""
    return [
        NodeFacts(str(i), str(i), held.device, held.dtype, held.mode, free_bytes, has_kernels=held.device == "cpu")
        for i in range(n_nodes)
    ]


def _taken(need: Need, n_slots: int) -> int:
    return need.weights + n_slots * need.slot + need.message


def largest(held: HeldAs, n_nodes: int, free_gb: float) -> str:
    """The model with the most weights that fits on so many equal machines; `-` where none does."""
    fitting = [name for name in KNOWN_MODELS if free_bytes_needed(name, held, n_nodes) <= free_gb * 1e9]
    return max(fitting, key=lambda name: weights_bytes(name, held), default="-")


# ---- Markdown


def table(header: list[str], rows: list[list[str]]) -> str:
    lines = ["| " + " | ".join(cells) + " |" for cells in [header, *rows]]
    return "\n".join([lines[0], "|---" * len(header) + "|", *lines[1:]])


def _gb(n_bytes: float) -> str:
    return f"{n_bytes / 1e9:.1f}" if n_bytes >= 1e9 else f"{n_bytes / 1e9:.2f}"


def sizes_table() -> str:
    """Whole models: weights in each format, and the cache of a sample."""
    rows = [
        [
            f"`{name}`",
            str(config_of(name).n_layer),
            *(_gb(weights_bytes(name, held)) for held in FORMATS.values()),
            *(f"{cache_bytes(name, dtype, 1000) / 1e6:.0f}" for dtype in (torch.float32, torch.bfloat16)),
        ]
        for name in KNOWN_MODELS
    ]
    return table(["model", "layers", *FORMATS, "cache, float32", "cache, bfloat16"], rows)


def needs_table() -> str:
    """What has to be free on each of one to four equal machines."""
    rows = [
        [f"`{name}`", *(" / ".join(_gb(free_bytes_needed(name, held, n)) for n in NODES) for held in FORMATS.values())]
        for name in KNOWN_MODELS
    ]
    return table(["model", *FORMATS], rows)


def groups_table() -> str:
    """The largest model for groups of machines that people have."""
    return _largest_table("machines", GROUPS, FORMATS)


def gpus_table() -> str:
    """The same for GPUs, each of which is a node."""
    return _largest_table("GPUs", GPU_GROUPS, GPU_FORMATS)


def _largest_table(what: str, groups: dict[str, tuple[int, float]], formats: dict[str, HeldAs]) -> str:
    rows = [
        [group, f"{free_gb:.1f}", *(_code(largest(held, n_nodes, free_gb)) for held in formats.values())]
        for group, (n_nodes, free_gb) in groups.items()
    ]
    return table([what, "free on each, GB", *formats], rows)


def _code(name: str) -> str:
    return name if name == "-" else f"`{name}`"


def speed_table() -> str:
    """Tokens/s of one sample that no program can exceed where it reads each weight once per token."""
    read_gb = [bytes_per_token(name, FORMATS[held]) / 1e9 for name, held in TIMED]
    rows = [
        [machine, f"{gb_per_s:g}", *(f"{gb_per_s / gb:.{0 if gb_per_s / gb >= 10 else 1}f}" for gb in read_gb)]
        for machine, gb_per_s in BANDWIDTHS.items()
    ]
    models = [f"`{name}` {held}: {gb:.1f} GB" for (name, held), gb in zip(TIMED, read_gb, strict=True)]
    return table(["memory", "GB/s", *models], rows)


TABLES = {"sizes": sizes_table, "needs": needs_table, "groups": groups_table, "gpus": gpus_table, "speed": speed_table}


def main() -> None:
    for name, make in TABLES.items():
        print(f"<!-- {name} -->\n{make()}\n")


if __name__ == "__main__":
    main()
