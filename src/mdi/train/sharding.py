"""FSDP: each process has a part of every weight, of its gradient and of what the optimizer knows of it.

A file holds all of them whole, so a run may go on with another strategy or number of processes.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from lightning.fabric.strategies import ModelParallelStrategy
from torch.distributed.tensor import DTensor, distribute_tensor

from mdi.train.processes import whole


def sharding_strategy(n_processes: int) -> ModelParallelStrategy:
    """Fabric's strategy for torch's second implementation (`fully_shard`), which needs no GPU."""
    return ModelParallelStrategy(_shard, data_parallel_size=n_processes, tensor_parallel_size=1)


def _shard(model: Any, mesh: Any) -> Any:
    """A block's weights are whole while it computes."""
    from torch.distributed.fsdp import fully_shard

    for block in model.transformer.h:
        fully_shard(block, mesh=mesh["data_parallel"])
    return fully_shard(model, mesh=mesh["data_parallel"])


def whole_weights(model: Any, is_wanted: Callable[[str], bool]) -> dict[str, torch.Tensor]:
    """The wanted weights by their names; two names of one weight have one tensor. All processes have to ask."""
    gathered: dict[int, torch.Tensor] = {}
    weights = {name: weight for name, weight in model.state_dict(keep_vars=True).items() if is_wanted(name)}
    for weight in weights.values():
        if id(weight) not in gathered:
            gathered[id(weight)] = whole(weight)
    return {name: gathered[id(weight)] for name, weight in weights.items()}


def whole_optimizer(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """The state of the optimizer. All processes have to ask."""
    state = optimizer.state_dict()
    known = {
        number: {name: whole(value) for name, value in values.items()} for number, values in state["state"].items()
    }
    return {"state": known, "param_groups": state["param_groups"]}


def load_optimizer(optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
    """Give the optimizer what `whole_optimizer` returned, of which each process keeps its part."""
    optimizer.load_state_dict(dict(state))
    for parameter, values in optimizer.state.items():
        if isinstance(parameter, DTensor):
            for name, value in values.items():
                if value.shape == parameter.shape:
                    values[name] = distribute_tensor(value, parameter.device_mesh, parameter.placements)
