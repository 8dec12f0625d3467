"""What comes before the first block, whoever computes the rest: tables in the CPU's memory, whose rows are looked up.

Shapes: N rows in the message, C = n_embd.
"""

from collections.abc import Sequence
from typing import Any

import torch

from mdi.model.architecture import ModelConfig, architecture_of
from mdi.model.build import ModuleBuilder
from mdi.model.tensors import mapped_empty


def kept_table(table: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """A table as it is kept: in the smaller of its own dtype and the one that is computed in."""
    if dtype.itemsize < table.itemsize:
        return mapped_empty(table.shape, dtype).copy_(table)
    return table


def position_table(config: ModelConfig, builder: ModuleBuilder, empty: Any, dtype: torch.dtype) -> torch.Tensor | None:
    """The learned positions (context, C); None where the model has none."""
    if (name := architecture_of(config).positions) is None:
        return None
    return kept_table(builder.find(name, empty["positions"].weight.shape), dtype)


def hidden_states(
    rows: torch.Tensor, positions: Sequence[int], table: torch.Tensor | None, config: ModelConfig
) -> torch.Tensor:
    """Rows (N, C) of the embedding, each at a position of its sequence -> hidden states (N, C).

    Args:
        table: of `position_table`.
    """
    x = architecture_of(config).embed(rows, config)
    return x if table is None else x + table[torch.tensor(positions)].to(x.device, x.dtype)
