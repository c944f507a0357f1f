"""Weights, gradients and optimiser states divided over processes, by torch's FSDP2.

Each process holds its part of every tensor; a block of the network gathers its own weights while it computes.
Checkpoints hold whole tensors, so that they are those of any other run.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.utils._pytree import tree_map_only

from .._processes import Processes


def shard(model: nn.Module, blocks: Iterable[nn.Module], processes: Processes) -> None:
    """Divide a model's parameters over the processes; its `loss` then gathers them.

    Args:
        model: The model.
        blocks: Modules in it that gather and free parameters of their own, one after another.
        processes: The processes, which all call this.
    """
    mesh = init_device_mesh(processes.device.type, (processes.count,))
    for block in blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    register_fsdp_forward_method(model, "loss")


def whole_weights(model: nn.Module) -> dict[str, Tensor]:
    """State of a sharded model in whole tensors on the CPU, in the main process; all must call this."""
    return get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))


def whole(tree: Any, *, keep: bool) -> Any:
    """A structure with sharded tensors gathered on the CPU, or None unless `keep`; every process calls it."""

    def gathered(tensor: DTensor) -> Tensor | None:
        full = tensor.full_tensor()
        return full.cpu() if keep else None

    return tree_map_only(DTensor, gathered, tree)


def load_optimizer(optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
    """Give the optimiser of sharded parameters its state, which has whole tensors."""
    optimizer.load_state_dict(state)
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            held = optimizer.state.get(parameter, {})
            for name, value in held.items():
                if isinstance(value, Tensor) and value.shape == parameter.shape and value.dim():
                    value = value.to(parameter.device)
                    held[name] = distribute_tensor(value, parameter.device_mesh, parameter.placements)
