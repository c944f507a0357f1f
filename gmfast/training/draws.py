"""Random draws of a part of a batch that are those of the whole one."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from .._seed import first_sample


@contextmanager
def part_of_batch(first: int, size: int, total: int) -> Iterator[None]:
    """Draw for samples `first` to `first + size` of a batch of `total` what a run with the whole batch draws.

    Seeded operations count their samples from `first`. Torch's own generators have no samples: what is drawn
    for each sample, that is, what has `size` as its first dimension, is drawn for the whole batch and cut,
    which leaves the generators as the whole batch would. Other draws are the same in every part; so are those
    that are not covered: dropout inside `F.scaled_dot_product_attention` and `nn.MultiheadAttention`, and
    `torch.randperm`.
    """
    if size == total:
        yield
        return
    with first_sample(first), _WholeDraws(first, size, total):
        yield


class _WholeDraws(TorchFunctionMode):
    """Torch functions that draw random numbers, for the whole batch, and then cut to the part."""

    def __init__(self, first: int, size: int, total: int):
        super().__init__()
        self.first, self.size, self.total = first, size, total

    def __torch_function__(
        self, func: Callable, types: Any, args: tuple = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        draw = _DRAWS.get(func)
        kwargs = kwargs or {}
        return func(*args, **kwargs) if draw is None else draw(self, func, *args, **kwargs)

    def is_part(self, shape: Any) -> bool:
        return len(shape) > 0 and shape[0] == self.size

    def cut(self, whole: Tensor) -> Tensor:
        return whole.narrow(0, self.first, self.size)

    def grown(self, value: Any) -> Any:
        """The value, or for a tensor of the part the whole batch's."""
        return self.whole(value) if isinstance(value, Tensor) and self.is_part(value.shape) else value

    def whole(self, tensor: Tensor) -> Tensor:
        """The tensor within zeros for the rest of the batch, in its own memory format."""
        order = sorted(range(tensor.dim()), key=tensor.stride, reverse=True)
        sizes = [self.total if d == 0 else tensor.shape[d] for d in order]
        zeros = tensor.new_zeros(sizes).permute([order.index(d) for d in range(tensor.dim())])
        return zeros.slice_scatter(tensor, 0, self.first, self.first + self.size)


def _by_size(mode: _WholeDraws, func: Callable, *args: Any, **kwargs: Any) -> Tensor:
    """`rand`, `randn`, `randint`: the size is a sequence, or all positional arguments."""
    place = next((i for i, value in enumerate(args) if isinstance(value, tuple | list)), None)
    size = kwargs.get("size", args if place is None else args[place])
    if not mode.is_part(size):
        return func(*args, **kwargs)
    size = (mode.total, *size[1:])
    if "size" in kwargs:
        kwargs["size"] = size
    else:
        args = size if place is None else (*args[:place], size, *args[place + 1 :])
    return mode.cut(func(*args, **kwargs))


def _by_input(mode: _WholeDraws, func: Callable, input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """`rand_like`, `dropout` and others: elementwise in the first argument."""
    if not mode.is_part(input.shape):
        return func(input, *args, **kwargs)
    return mode.cut(func(mode.whole(input), *args, **kwargs))


def _in_place(mode: _WholeDraws, func: Callable, input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """`Tensor.normal_` and others, which fill the tensor."""
    if not mode.is_part(input.shape):
        return func(input, *args, **kwargs)
    return input.copy_(mode.cut(func(mode.whole(input.detach()), *args, **kwargs)))


def _normal(mode: _WholeDraws, func: Callable, mean: Any, *args: Any, **kwargs: Any) -> Tensor:
    """`torch.normal`, of means, deviations or both for each sample, or of a size."""
    operands = [mean, *args]
    if any(isinstance(value, tuple | list) for value in operands) or "size" in kwargs:
        return _by_size(mode, func, *operands, **kwargs)
    kwargs = {name: mode.grown(value) for name, value in kwargs.items()}
    drawn = func(*map(mode.grown, operands), **kwargs)
    return mode.cut(drawn) if drawn.dim() and drawn.shape[0] == mode.total else drawn


def _dropout(
    mode: _WholeDraws,
    func: Callable,
    input: Tensor,
    p: float = 0.5,
    training: bool = True,
    inplace: bool = False,
) -> Tensor:
    if not training or not mode.is_part(input.shape):
        return func(input, p, training, inplace)
    dropped = mode.cut(func(mode.whole(input), p, True))
    return input.copy_(dropped) if inplace else dropped


def _multinomial(
    mode: _WholeDraws, func: Callable, input: Tensor, num_samples: int, *args: Any, **kwargs: Any
):
    """Draws of one distribution for each sample, or of a distribution for each."""
    if input.dim() == 1 and num_samples == mode.size:
        return mode.cut(func(input, mode.total, *args, **kwargs))
    if input.dim() == 2 and mode.is_part(input.shape):
        whole = torch.ones_like(input[:1]).repeat(mode.total, 1)
        whole[mode.first : mode.first + mode.size] = input
        return mode.cut(func(whole, num_samples, *args, **kwargs))
    return func(input, num_samples, *args, **kwargs)


_DRAWS: dict[Callable, Callable] = {
    **dict.fromkeys([torch.rand, torch.randn, torch.randint], _by_size),
    **dict.fromkeys(
        [
            torch.rand_like,
            torch.randn_like,
            torch.randint_like,
            torch.bernoulli,
            torch.poisson,
            Tensor.bernoulli,
            F.gumbel_softmax,
            F.rrelu,
        ],
        _by_input,
    ),
    torch.normal: _normal,
    **dict.fromkeys(
        [F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout, F.feature_alpha_dropout], _dropout
    ),
    **dict.fromkeys(
        [
            Tensor.uniform_,
            Tensor.normal_,
            Tensor.bernoulli_,
            Tensor.exponential_,
            Tensor.random_,
            Tensor.log_normal_,
            Tensor.cauchy_,
            Tensor.geometric_,
        ],
        _in_place,
    ),
    torch.multinomial: _multinomial,
}
