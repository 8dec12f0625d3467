"""What the native backend takes of a node's memory, as plans count it before there is a library to ask."""

from collections.abc import Mapping

import torch

from mdi.formats import KvDtype, Mode
from mdi.model.architecture import ModelConfig, architecture_of
from mdi.model.backends.native.packing import FILL
from mdi.model.quant import GROUP, mode_for, weight_bytes
from mdi.model.tensors import TORCH_DTYPES

POSITIONS = 16  # of a slot's keys, side by side: its positions, and the elements of a head's values, are multiples


def filled_up(n: int, multiple: int) -> int:
    """The next multiple, or `n` where it is one."""
    return n + -n % multiple


def default_kv_dtype(dtype: torch.dtype, *, is_quantized: bool) -> KvDtype:
    """What keys and values are kept in: they are as exact as the weights that they are made with."""
    return "float16" if is_quantized or dtype != torch.float32 else "float32"


def cache_bytes(config: ModelConfig, context: int, kv_dtype: KvDtype) -> tuple[int, int]:
    """What the keys of one slot take in a layer, and the values. In int8, `GROUP` numbers share a scale in float32."""
    n_positions = config.n_query_groups * filled_up(context, POSITIONS)
    item_bytes = 1 if kv_dtype == "int8" else TORCH_DTYPES[kv_dtype].itemsize
    scale_bytes = 4 * -(-config.head_size // GROUP) if kv_dtype == "int8" else 0
    value_size = filled_up(config.head_size, POSITIONS)
    return (
        n_positions * (config.head_size * item_bytes + scale_bytes),
        n_positions * (value_size * item_bytes + scale_bytes),
    )


def weights_bytes(
    config: ModelConfig, shapes: Mapping[str, torch.Size], dtype: torch.dtype, mode: Mode, *, is_tied: bool
) -> int:
    """What tensors of a model with these shapes take.

    Args:
        dtype: what they are held in where they are not quantized.
        is_tied: head and embedding are one weight, which is held once where it is not quantized.
    """
    architecture = architecture_of(config)
    tables = {architecture.embedding, architecture.positions}
    left_out = architecture.embedding if is_tied and mode == "none" else None
    return sum(
        _table_bytes(shape, dtype) if name in tables else _packed_bytes(name, shape, dtype, mode)
        for name, shape in shapes.items()
        if name != left_out
    )


def _table_bytes(shape: torch.Size, dtype: torch.dtype) -> int:
    return shape.numel() * dtype.itemsize


def _packed_bytes(name: str, shape: torch.Size, dtype: torch.dtype, mode: Mode) -> int:
    """Of a weight in tiles, or of a norm or a bias, which are float32."""
    filled = torch.Size(filled_up(n, FILL) for n in shape)
    if len(shape) < 2:
        return _table_bytes(filled, torch.float32)
    return weight_bytes(name, filled, dtype, mode_for(name, shape, mode))
