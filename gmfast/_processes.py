"""Processes that divide one piece of work: those that torchrun started, or this one alone."""

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ._device import find_device

#: Seconds after which a process that waits for the others gives up. The main one may draw samples meanwhile.
TIMEOUT = 1800


@dataclass(frozen=True)
class Processes:
    """The processes of a job, as one of them sees it.

    Attributes:
        rank: Number of this process, from 0.
        count: Number of processes.
        device: Device of this process.
    """

    rank: int
    count: int
    device: torch.device

    @property
    def main(self) -> bool:
        """True for the process that writes files and shows progress."""
        return self.rank == 0

    def part(self, count: int) -> slice:
        """This process's part of `count` items, the parts following each other in the order of the ranks."""
        return slice(self.rank * count // self.count, (self.rank + 1) * count // self.count)

    def wait(self) -> None:
        """Wait until every process has come here."""
        if self.count > 1:
            dist.barrier()

    @contextmanager
    def main_first(self) -> Iterator[None]:
        """Run the block in the main process, then in the others: it may leave a cache for them."""
        if not self.main:
            self.wait()
        yield
        if self.main:
            self.wait()

    def any(self, flag: bool) -> bool:
        """True if `flag` is true in any process."""
        return (
            bool(self._reduced(torch.tensor([float(flag)]), dist.ReduceOp.MAX)[0]) if self.count > 1 else flag
        )

    def mean(self, numbers: Mapping[str, float]) -> dict[str, float]:
        """Mean of each number over the processes, which have the same names in the same order."""
        if self.count == 1:
            return dict(numbers)
        total = self._reduced(torch.tensor(list(numbers.values()), dtype=torch.float64), dist.ReduceOp.SUM)
        return dict(zip(numbers, (total / self.count).tolist(), strict=True))

    @torch.no_grad()
    def share(self, module: nn.Module) -> None:
        """Give every process the main one's parameters and buffers."""
        if self.count > 1:
            for tensor in (*module.parameters(), *module.buffers()):
                held = tensor.to(self.device).contiguous()
                dist.broadcast(held, 0)
                tensor.copy_(held)

    def gather(self, tensor: Tensor) -> Tensor:
        """Rows `(n, ...)` of all processes in the order of the ranks; n may differ between them."""
        if self.count == 1:
            return tensor
        parts: list[Tensor | None] = [None] * self.count
        dist.all_gather_object(parts, tensor.cpu())
        return torch.cat(parts).to(tensor.device)

    def union(self, names: Iterable[str]) -> list[str]:
        """Names that any process has, sorted."""
        everyone = [list(names)]
        if self.count > 1:
            everyone *= self.count
            dist.all_gather_object(everyone, everyone[0])
        return sorted(set().union(*everyone))

    def _reduced(self, tensor: Tensor, op: dist.ReduceOp) -> Tensor:
        tensor = tensor.to(self.device)
        dist.all_reduce(tensor, op)
        return tensor.cpu()


def gather_equal(tensor: Tensor) -> Tensor:
    """Rows `(n, ...)` of all processes of `torch.distributed`, n being the same in each."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return tensor
    parts = [torch.empty_like(tensor) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, tensor.contiguous())
    return torch.cat(parts)


def join(device: str | None = None) -> Processes:
    """Join the processes that torchrun started, or be the only one.

    Args:
        device: Where to run; None: a GPU where there is one, else the CPU. Of several processes on GPUs each
            has one of its own, by its local rank.

    Raises:
        ValueError: For a device that is not there, or the number of one where there are several processes.
    """
    found = find_device(device)
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 and not dist.is_initialized():
        return Processes(0, 1, found)
    if found.index is not None:
        raise ValueError(f"device: expected a name without a number for several processes, got {device!r}")
    if found.type == "cuda":
        local, there = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
        if local >= there:
            raise ValueError(
                f"processes: expected at most {there}, one for each GPU, got more; or --device cpu"
            )
        found = torch.device("cuda", local)
        torch.cuda.set_device(found)
    if not dist.is_initialized():
        timeout = timedelta(seconds=TIMEOUT)
        store, rank, count = next(dist.rendezvous("env://", timeout=timeout))
        # After an elastic restart the store may be the one of the processes that died, with their addresses.
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        store = dist.PrefixStore(f"gmfast/{attempt}", store)
        dist.init_process_group(store=store, rank=rank, world_size=count, timeout=timeout)
    return Processes(dist.get_rank(), dist.get_world_size(), found)
