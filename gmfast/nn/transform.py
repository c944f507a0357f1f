"""Invertible transforms with log-determinants, and their composition."""

from collections.abc import Callable, Iterable, Iterator
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import _check, _library
from . import reversible as _reversible


class Transform(nn.Module):
    """An invertible map of each sample of a batch.

    `forward(x, context=None) -> (z, log_det)` maps data to noise, `inverse(z, context=None) -> (x, log_det)`
    maps back. `log_det (B,)`, in nats, is the log absolute determinant of the Jacobian of the direction
    called; that of `inverse` is minus that of `forward` at the same point. `context` is what the density is
    conditioned on; a transform that has no use for it ignores it.

    `gmfast.nn.reversible` describes the methods that a transform may define besides, for training that stores
    no activations.
    """

    def forward(self, x: Tensor, context=None) -> tuple[Tensor, Tensor]:
        """Map data `x` to noise; returns it and the log-determinant (B,)."""
        raise NotImplementedError(f"{type(self).__name__} has no forward")

    def inverse(self, z: Tensor, context=None) -> tuple[Tensor, Tensor]:
        """Map noise `z` to data; returns it and the log-determinant (B,)."""
        raise NotImplementedError(f"{type(self).__name__} has no inverse")


def no_log_det(x: Tensor) -> Tensor:
    """Return the log-determinant of a volume-preserving transform: zeros (B,), float32 or float64."""
    return x.new_zeros(x.shape[0], dtype=torch.float64 if x.dtype == torch.float64 else torch.float32)


class Sequential(Transform):
    """A composition of transforms; `inverse` applies their inverses from the last to the first.

    With `reversible`, training stores no activations: backward recomputes each transform's input from its
    output by its inverse, through `Sequential`, `Split` and `Inverse` nested to any depth, so memory does not
    grow with the number of transforms (Gomez et al., 2017, arXiv:1707.04585). A training step takes about 1.3
    times as long with wide conditioners, whose additional pass dominates; up to twice as long with narrow
    ones, where the overhead of calls does (Glow and RealNVP, batch 16, on a CPU). Notes:

    - Gradients equal those with stored activations up to the rounding of `inverse`. Half-precision
      activations round too coarsely to be recomputed through many transforms; under autocast they stay
      float32.
    - Every transform must be invertible to rounding. `Permute`, `Squeeze2d` and `Split` are exactly; scales
      near zero, as an unbounded scale map may learn, are not.
    - Gradients reach `x`, the tensors of `context` and the parameters of the transforms. A conditioner that
      is a function around parameters from elsewhere raises RuntimeError in the first backward.
    - Dropout draws the same numbers again, and BatchNorm counts a batch once.
    - Parameters must not change between forward and backward, and there are no second derivatives: both
      raise RuntimeError. `torch.compile` runs it in plain Python, with a graph break.

    Args:
        transforms: separate arguments, or one iterable. None: the identity.
        reversible: recompute activations. An attribute that may be set at any time; not part of the state
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

    def __getitem__(self, index: int | slice) -> Transform:
        chosen = self.transforms[index]
        return Sequential(*chosen, reversible=self.reversible) if isinstance(index, slice) else chosen

    def __iter__(self) -> Iterator[Transform]:
        return iter(self.transforms)

    def forward(self, x: Tensor, context=None) -> tuple[Tensor, Tensor]:
        """Apply the transforms in order; `log_det` is the sum of theirs."""
        return self._run(x, context, inverse=False)

    def inverse(self, z: Tensor, context=None) -> tuple[Tensor, Tensor]:
        """Apply the inverses in reverse order; `log_det` is the sum of theirs."""
        return self._run(z, context, inverse=True)

    def _run(self, x, context, inverse):
        _check.tensor("z" if inverse else "x", x)
        # Transforms of torch.func, traces and tensors without numbers store activations in their own ways.
        compiling = torch.compiler.is_compiling()
        if (
            self.reversible
            and torch.is_grad_enabled()
            and (compiling or (_check.known(x) and not _library.in_functorch()))
        ):
            run = _reversible.run
            if compiling:
                _library.leave_graph("reversible: expected fullgraph=False with gradients, got True")
                run = torch.compiler.disable(run)  # not a decorator, which imports the compiler, for seconds
            return run(self, x, context, inverse=inverse)
        return self.walk(partial(_reversible.apply, context=context), x, inverse)

    def walk(self, visit: Callable, x: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
        """Apply `visit` to the transforms in the order of the direction (see `gmfast.nn.reversible`)."""
        total = no_log_det(x)
        for transform in reversed(self.transforms) if inverse else self.transforms:
            x, log_det = visit(transform, x, inverse)
            total = total + log_det
        return x, total

    def rewind(self, visit: Callable, y: Tensor, grad: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
        """Apply `visit` to the transforms in the opposite order (see `gmfast.nn.reversible`)."""
        for transform in self.transforms if inverse else reversed(self.transforms):
            y, grad = visit(transform, y, grad, inverse)
        return y, grad


class Inverse(Transform):
    """The inverse of a transform, such as `Inverse(Squeeze2d())`.

    Args:
        transform: its `inverse` is this one's `forward`.
    """

    def __init__(self, transform: Transform):
        super().__init__()
        self.transform = transform

    def forward(self, x: Tensor, context=None) -> tuple[Tensor, Tensor]:
        """Apply the transform's inverse."""
        return self.transform.inverse(x, context)

    def inverse(self, z: Tensor, context=None) -> tuple[Tensor, Tensor]:
        """Apply the transform."""
        return self.transform(z, context)

    def walk(self, visit: Callable, x: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
        """Apply `visit` in the other direction (see `gmfast.nn.reversible`)."""
        return visit(self.transform, x, not inverse)

    def rewind(self, visit: Callable, y: Tensor, grad: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
        """Apply `visit` in the other direction (see `gmfast.nn.reversible`)."""
        return visit(self.transform, y, grad, not inverse)


class Squeeze2d(Transform):
    """Space to depth: `(B, C, H, W)` to `(B, C·f², H/f, W/f)` (Dinh et al., 2017, arXiv:1605.08803).

    The order of channels is that of `torch.nn.functional.pixel_unshuffle`.

    Args:
        factor: f.
    """

    def __init__(self, factor: int = 2):
        super().__init__()
        _check.at_least(1, factor=factor)
        self.factor = factor

    def forward(self, x: Tensor, context=None) -> tuple[Tensor, Tensor]:
        """Move each f×f square of pixels into channels."""
        _check.tensor("x", x)
        if x.dim() != 4 or x.shape[2] % self.factor or x.shape[3] % self.factor:
            raise ValueError(
                f"x: expected (B, C, H, W) with H and W multiples of {self.factor}, got {tuple(x.shape)}"
            )
        if x.shape[0] == 0:  # pixel_unshuffle does not change an empty batch's shape
            f = self.factor
            return x.reshape(0, x.shape[1] * f * f, x.shape[2] // f, x.shape[3] // f), no_log_det(x)
        return F.pixel_unshuffle(x, self.factor), no_log_det(x)

    def inverse(self, z: Tensor, context=None) -> tuple[Tensor, Tensor]:
        """Move channels back into squares of pixels."""
        _check.tensor("z", z)
        if z.dim() != 4 or z.shape[1] % self.factor**2:
            raise ValueError(
                f"z: expected (B, C, H, W) with C a multiple of {self.factor**2}, got {tuple(z.shape)}"
            )
        if z.shape[0] == 0:
            f = self.factor
            return z.reshape(0, z.shape[1] // f**2, z.shape[2] * f, z.shape[3] * f), no_log_det(z)
        return F.pixel_shuffle(z, self.factor), no_log_det(z)


class Permute(Transform):
    """A fixed permutation of the channels: channel i of the output is channel `order[i]` of the input.

    Args:
        order: a permutation of 0 to C - 1, part of the state dict.
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
        """Make the permutation that reverses the order of the channels."""
        return cls(range(channels - 1, -1, -1))

    @classmethod
    def random(cls, channels: int, seed: int = 0) -> "Permute":
        """Make a random permutation; the same for the same seed."""
        return cls(torch.randperm(channels, generator=torch.Generator().manual_seed(seed)))

    def forward(self, x: Tensor, context=None) -> tuple[Tensor, Tensor]:
        """Permute the channels."""
        _check.channels("x", x, len(self.order))
        return x.index_select(1, self.order), no_log_det(x)

    def inverse(self, z: Tensor, context=None) -> tuple[Tensor, Tensor]:
        """Undo the permutation."""
        _check.channels("z", z, len(self.order))
        return z.index_select(1, self._inverse_order), no_log_det(z)

    def _load_from_state_dict(self, *args, **kwargs):
        super()._load_from_state_dict(*args, **kwargs)
        self._inverse_order = self.order.argsort()

    def extra_repr(self) -> str:
        """Return the permutation, or the number of channels if there are many."""
        return str(len(self.order) if self.order.is_meta or len(self.order) > 16 else self.order.tolist())


class Split(Transform):
    """A level of a multi-scale flow (Dinh et al., 2017, arXiv:1605.08803): transforms the first channels.

    Nested, `Sequential(Squeeze2d(), …, Split(Sequential(Squeeze2d(), …, Inverse(Squeeze2d()))))` preserves
    the shape of its input. Glow's prior of the factored-out channels given the others is an `AffineCoupling`
    before the split.

    Args:
        transform: of the first channels; must preserve the shape of its input.
        kept: number of last channels that pass unchanged; half of them, rounded down, if None.
    """

    def __init__(self, transform: Transform, kept: int | None = None):
        super().__init__()
        self.transform, self.kept = transform, kept

    def extra_repr(self) -> str:
        """Return the number of channels that pass, if it was given."""
        return "" if self.kept is None else f"kept={self.kept}"

    def forward(self, x: Tensor, context=None) -> tuple[Tensor, Tensor]:
        """Transform the first channels."""
        return self.walk(partial(_reversible.apply, context=context), x, False)

    def inverse(self, z: Tensor, context=None) -> tuple[Tensor, Tensor]:
        """Transform the first channels back."""
        return self.walk(partial(_reversible.apply, context=context), z, True)

    def split(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Split `x` into the channels that are transformed and those that pass, as views."""
        _check.tensor("x", x)
        if x.dim() < 2:
            raise ValueError(f"x: expected (B, C, *S), got {tuple(x.shape)}")
        kept = x.shape[1] // 2 if self.kept is None else self.kept
        if not 0 <= kept < x.shape[1]:
            raise ValueError(f"x: expected more than kept={kept} channels, got {x.shape[1]}")
        return x.split([x.shape[1] - kept, kept], 1)

    def walk(self, visit: Callable, x: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
        """Apply `visit` to the first channels (see `gmfast.nn.reversible`)."""
        first, rest = self.split(x)
        y, log_det = visit(self.transform, first, inverse)
        if y.shape != first.shape:
            raise ValueError(
                f"transform: expected a result of the shape of its input, {tuple(first.shape)}, got "
                f"{tuple(y.shape)}"
            )
        return torch.cat([y, rest], 1), log_det

    def rewind(self, visit: Callable, y: Tensor, grad: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
        """Apply `visit` to the first channels (see `gmfast.nn.reversible`)."""
        (y, rest), (grad, grad_rest) = self.split(y), self.split(grad)
        x, grad = visit(self.transform, y, grad, inverse)
        return torch.cat([x, rest], 1), torch.cat([grad, grad_rest], 1)
