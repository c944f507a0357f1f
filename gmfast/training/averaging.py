"""Averaging of gradients over processes, by torch's DistributedDataParallel."""

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from .._processes import Processes


def averager(
    parameters: Sequence[nn.Parameter], loss: Tensor, processes: Processes
) -> DistributedDataParallel:
    """Make what averages the gradients of a player's losses while they are computed.

    DistributedDataParallel watches the parameters of an identity that the loss goes through last: models keep
    their methods and names, and each player has an average of its own.

    Args:
        parameters: The player's parameters, the same in all processes.
        loss: Its first loss: parameters that this does not reach may be missing in others too.
        processes: The processes, which all call this.
    """
    unused = processes.any(bool({id(p) for p in parameters} - _reached(loss)))
    ids = None if processes.device.type == "cpu" else [processes.device.index]
    return DistributedDataParallel(
        _Identity(parameters), device_ids=ids, find_unused_parameters=unused, init_sync=False
    )


class _Identity(nn.Module):
    """Returns what it is given; its parameters are those of a player."""

    def __init__(self, parameters: Sequence[nn.Parameter]):
        super().__init__()
        self.parameters_of_player = nn.ParameterList(parameters)

    def forward(self, loss: Tensor) -> Tensor:
        return loss


def _reached(loss: Tensor) -> set[int]:
    """Addresses of the parameters that the loss depends on."""
    reached, seen, nodes = set(), set(), [loss.grad_fn]
    while nodes:
        node = nodes.pop()
        if node is not None and node not in seen:
            seen.add(node)
            if hasattr(node, "variable"):
                reached.add(id(node.variable))
            nodes += [following for following, _ in node.next_functions]
    return reached
