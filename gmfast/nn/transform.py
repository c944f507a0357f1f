"""Invertible transforms with log-determinants, and how they are put together."""

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import _check


class Transform(nn.Module):
    """An invertible map of each sample of a batch.

    `forward(x, context=None) -> (z, log_det)` goes from data to noise, `inverse(z, context=None) ->
    (x, log_det)` back. `log_det (B,)`, in nats, is the log of the absolute Jacobian determinant of the
    direction called; that of `inverse` is minus that of `forward` at the same point. `context` is what the
    density is conditioned on; a transform that has no use for it ignores it.
    """

    def forward(self, x: Tensor, context=None) -> tuple[Tensor, Tensor]:
        raise NotImplementedError(f"{type(self).__name__} has no forward")

    def inverse(self, z: Tensor, context=None) -> tuple[Tensor, Tensor]:
        raise NotImplementedError(f"{type(self).__name__} has no inverse")


def no_log_det(x: Tensor) -> Tensor:
    """The log-determinant of a transform that keeps volumes: zeros (B,)."""
    return x.new_zeros(len(x), dtype=torch.float64 if x.dtype == torch.float64 else torch.float32)


class Sequential(Transform):
    """Transforms one after another; `inverse` runs them from the last to the first.

    With `reversible`, training stores no activations: backward recomputes each transform's input from its
    result by its inverse, through `Sequential`, `Split` and `Inverse` nested to any depth, so memory does not
    grow with the number of transforms (Dinh et al., 2014, arXiv:1410.8516, made it possible; Gomez et al.,
    2017, arXiv:1707.04585, do it). A training step takes about 1.3 times as long with wide conditioners,
    whose additional pass is what counts; up to twice as long with narrow ones, where the cost of calls
    counts (Glow and RealNVP, batch 16, on a CPU). What to know:

    - Gradients are those of the stored way to the rounding of `inverse`. Half-precision activations round
      too coarsely to be recomputed through many transforms; under autocast they stay float32.
    - Every transform must undo itself to rounding. `Permute`, `Squeeze2d` and `Split` do so exactly; scales
      near zero, as an unbounded scale map may learn, do not.
    - Gradients reach `x`, the tensors of `context` and the parameters of the transforms. A conditioner that
      is a function around parameters from elsewhere raises RuntimeError in the first backward.
    - Dropout draws the same numbers again, and BatchNorm counts a batch once.
    - Parameters must not change between forward and backward, and there are no second derivatives: both
      raise RuntimeError. `torch.compile` leaves it to plain Python, with a graph break.

    Args:
        transforms: as arguments of their own, or one iterable of them. None: the identity.
        reversible: recompute activations. An attribute, which may be set at any time; no part of the state
            dict.
    """

    def __init__(self, *transforms: Transform | Iterable[Transform], reversible: bool = False):
        super().__init__()
        self.reversible = reversible
        if len(transforms) == 1 and not isinstance(transforms[0], nn.Module):
            transforms = tuple(transforms[0])
        for transform in transforms:
            if not hasattr(transform, "inverse"):
                raise TypeError(
                    f"transforms: expected modules with forward and inverse, got {type(transform).__name__}"
                )
        self.transforms = nn.ModuleList(transforms)

    def __len__(self) -> int:
        return len(self.transforms)

    def __getitem__(self, index):
        chosen = self.transforms[index]
        return Sequential(*chosen, reversible=self.reversible) if isinstance(index, slice) else chosen

    def __iter__(self):
        return iter(self.transforms)

    def forward(self, x: Tensor, context=None) -> tuple[Tensor, Tensor]:
        return self._run(x, context, inverse=False)

    def inverse(self, z: Tensor, context=None) -> tuple[Tensor, Tensor]:
        return self._run(z, context, inverse=True)

    def _run(self, x, context, inverse):
        if self.reversible and torch.is_grad_enabled():
            from .reversible import run  # which knows the transforms defined here

            return run(self, x, context, inverse=inverse)
        return self._one_by_one(x, context, inverse)

    def _one_by_one(self, x, context, inverse):
        total = no_log_det(x)
        for transform in reversed(self.transforms) if inverse else self.transforms:
            x, log_det = (transform.inverse if inverse else transform)(x, context)
            total = total + log_det
        return x, total


class Inverse(Transform):
    """A transform with its directions exchanged, such as `Inverse(Squeeze2d())`."""

    def __init__(self, transform: Transform):
        super().__init__()
        self.transform = transform

    def forward(self, x: Tensor, context=None) -> tuple[Tensor, Tensor]:
        return self.transform.inverse(x, context)

    def inverse(self, z: Tensor, context=None) -> tuple[Tensor, Tensor]:
        return self.transform(z, context)


class Squeeze2d(Transform):
    """`(B, C, H, W)` to `(B, C·f², H/f, W/f)`: each f×f square of pixels becomes channels (Dinh et al., 2017,
    arXiv:1605.08803). The order is that of `torch.nn.functional.pixel_unshuffle`."""

    def __init__(self, factor: int = 2):
        super().__init__()
        _check.at_least(1, factor=factor)
        self.factor = factor

    def forward(self, x: Tensor, context=None) -> tuple[Tensor, Tensor]:
        if x.dim() != 4 or x.shape[2] % self.factor or x.shape[3] % self.factor:
            raise ValueError(
                f"x: expected (B, C, H, W) with H and W multiples of {self.factor}, got {tuple(x.shape)}"
            )
        if not len(x):  # whose shape pixel_unshuffle would leave as it is
            f = self.factor
            return x.reshape(0, x.shape[1] * f * f, x.shape[2] // f, x.shape[3] // f), no_log_det(x)
        return F.pixel_unshuffle(x, self.factor), no_log_det(x)

    def inverse(self, z: Tensor, context=None) -> tuple[Tensor, Tensor]:
        if z.dim() != 4 or z.shape[1] % self.factor**2:
            raise ValueError(
                f"z: expected (B, C, H, W) with C a multiple of {self.factor**2}, got {tuple(z.shape)}"
            )
        if not len(z):
            f = self.factor
            return z.reshape(0, z.shape[1] // f**2, z.shape[2] * f, z.shape[3] * f), no_log_det(z)
        return F.pixel_shuffle(z, self.factor), no_log_det(z)


class Permute(Transform):
    """Channel i of the result is channel `order[i]`.

    Args:
        order: a permutation of the channels' numbers, part of the state dict. `Permute.reverse(n)` turns n
            channels around, `Permute.random(n, seed)` draws an order.
    """

    def __init__(self, order: Iterable[int] | Tensor):
        super().__init__()
        order = torch.as_tensor(order if isinstance(order, Tensor) else list(order), dtype=torch.int64)
        if order.dim() != 1 or not (
            order.is_meta or torch.equal(order.sort().values, torch.arange(len(order), device=order.device))
        ):
            raise ValueError(
                f"order: expected a permutation of 0 to {order.numel() - 1}, got {order.tolist()}"
            )
        self.register_buffer("order", order)
        self.register_buffer("_inverse_order", order.argsort(), persistent=False)

    @classmethod
    def reverse(cls, channels: int) -> "Permute":
        return cls(range(channels - 1, -1, -1))

    @classmethod
    def random(cls, channels: int, seed: int = 0) -> "Permute":
        return cls(torch.randperm(channels, generator=torch.Generator().manual_seed(seed)))

    def forward(self, x: Tensor, context=None) -> tuple[Tensor, Tensor]:
        _check.channels("x", x, len(self.order))
        return x.index_select(1, self.order), no_log_det(x)

    def inverse(self, z: Tensor, context=None) -> tuple[Tensor, Tensor]:
        _check.channels("z", z, len(self.order))
        return z.index_select(1, self._inverse_order), no_log_det(z)

    def _load_from_state_dict(self, *args, **kwargs):
        super()._load_from_state_dict(*args, **kwargs)
        self._inverse_order = self.order.argsort()

    def extra_repr(self) -> str:
        return str(len(self.order) if self.order.is_meta or len(self.order) > 16 else self.order.tolist())


class Split(Transform):
    """Hands the first channels to a transform and leaves the others as they are: a level of a multi-scale
    flow (Dinh et al., 2017, arXiv:1605.08803), as a transform like any other.

    Nested, `Sequential(Squeeze2d(), …, Split(Sequential(Squeeze2d(), …, Inverse(Squeeze2d()))))` keeps the
    shape of its input. A prior of what is left given what goes on, as Glow has it, is an `AffineCoupling`
    before the split.

    Args:
        transform: keeps the shape of its input.
        kept: how many channels are left as they are; half of them (rounded down) if None.
    """

    def __init__(self, transform: Transform, kept: int | None = None):
        super().__init__()
        self.transform, self.kept = transform, kept

    def extra_repr(self) -> str:
        return "" if self.kept is None else f"kept={self.kept}"

    def forward(self, x: Tensor, context=None) -> tuple[Tensor, Tensor]:
        return self._apply_to_first(self.transform, x, context)

    def inverse(self, z: Tensor, context=None) -> tuple[Tensor, Tensor]:
        return self._apply_to_first(self.transform.inverse, z, context)

    def split(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The channels that the transform gets, and those that are left as they are."""
        if x.dim() < 2:
            raise ValueError(f"x: expected (B, C, *S), got {tuple(x.shape)}")
        kept = x.shape[1] // 2 if self.kept is None else self.kept
        if not 0 <= kept < x.shape[1]:
            raise ValueError(f"x: expected more than kept={kept} channels, got {x.shape[1]}")
        return x.split([x.shape[1] - kept, kept], 1)

    def _apply_to_first(self, function, x, context):
        first, rest = self.split(x)
        y, log_det = function(first, context)
        if y.shape != first.shape:
            raise ValueError(
                f"transform: expected a result of the shape of its input, {tuple(first.shape)}, got "
                f"{tuple(y.shape)}"
            )
        return torch.cat([y, rest], 1), log_det
