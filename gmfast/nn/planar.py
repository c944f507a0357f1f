"""Transforms along one direction of the space: planar and radial flows, Householder reflections."""

import math
from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import _check
from .transform import Transform, no_log_det


class _Whole(Transform):
    """A transform of all D values of a sample at once, in float32 or better."""

    def __init__(self, shape: int | Iterable[int]):
        super().__init__()
        self.shape = (shape,) if isinstance(shape, int) else tuple(shape)
        self.size = math.prod(self.shape)

    def _flat(self, name: str, x: Tensor) -> Tensor:
        _check.floating(name, x)
        if tuple(x.shape[1:]) != self.shape:
            expected = ", ".join(map(str, ("B", *self.shape)))
            raise ValueError(f"{name}: expected ({expected}), got {tuple(x.shape)}")
        return x.flatten(1).to(torch.promote_types(x.dtype, torch.float32))

    def extra_repr(self) -> str:
        """Return the shape for `repr`."""
        return str(self.shape)


class Planar(_Whole):
    """Planar transform `z = x + u·tanh(w·x + b)` (Rezende and Mohamed, 2015, arXiv:1505.05770).

    It is invertible, as `u` is shifted along `w` until `w·u` is -1 + softplus(w·u); the inverse solves one
    increasing equation a sample, by bisection and two Newton steps, which make it differentiable. The paper
    maps noise to data: `Inverse(Planar(…))`.

    Args:
        shape: of one sample, or the number of its values.
    """

    def __init__(self, shape: int | Iterable[int]):
        super().__init__(shape)
        self.u, self.w = (nn.Parameter(torch.empty(self.size)) for _ in range(2))
        self.b = nn.Parameter(torch.zeros(()))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw `u` and `w` from a normal distribution of deviation 0.1 and 1/√D, so near the identity."""
        nn.init.normal_(self.w, std=1 / math.sqrt(max(self.size, 1)))
        nn.init.normal_(self.u, std=0.1)
        nn.init.zeros_(self.b)

    def _parameters_in(self, dtype):
        """Return the shifted u, w, b and softplus(w·u), which is w·u + 1."""
        u, w, b = (p.to(dtype) for p in (self.u, self.w, self.b))
        inner = (u * w).sum()
        rise = F.softplus(inner)
        return u + (rise - 1 - inner) * w / w.square().sum().clamp(min=1e-30), w, b, rise

    @staticmethod
    def _log_det(a, rise):
        # 1 + (w·u)·tanh'(a), of terms that are not negative.
        square = torch.tanh(a).square()
        return (square + rise * (1 - square)).log()

    def forward(self, x: Tensor, context=None) -> tuple[Tensor, Tensor]:
        """Transform `x`."""
        flat = self._flat("x", x)
        u, w, b, rise = self._parameters_in(flat.dtype)
        a = (flat * w).sum(1) + b
        z = flat + u * torch.tanh(a)[:, None]
        return z.view(x.shape).to(x.dtype), self._log_det(a, rise)

    def inverse(self, z: Tensor, context=None) -> tuple[Tensor, Tensor]:
        """Transform `z` back."""
        flat = self._flat("z", z)
        u, w, b, rise = self._parameters_in(flat.dtype)
        target = (flat * w).sum(1) + b  # a + (rise - 1)·tanh(a) for a = w·x + b
        with torch.no_grad():
            reach = (rise - 1).abs()
            low, high = target - reach, target + reach
            for _ in range(50 if flat.dtype == torch.float64 else 25):
                a = (low + high) / 2
                above = a + (rise - 1) * torch.tanh(a) > target
                low, high = torch.where(above, low, a), torch.where(above, a, high)
            a = (low + high) / 2
        for _ in range(2):
            value = torch.tanh(a)
            slope = value.square() + rise * (1 - value.square())
            a = a - (a + (rise - 1) * value - target) / slope
        x = flat - u * torch.tanh(a)[:, None]
        return x.view(z.shape).to(z.dtype), -self._log_det(a, rise)


class Radial(_Whole):
    """Radial transform `z = x + β/(α + r)·(x - x0)`, r = |x - x0| (Rezende and Mohamed, 2015).

    It is invertible in closed form, as β = -α + softplus(raw β). From arXiv:1505.05770, which maps noise to
    data: `Inverse(Radial(…))`.

    Args:
        shape: of one sample, or the number of its values.
    """

    def __init__(self, shape: int | Iterable[int]):
        super().__init__(shape)
        self.centre = nn.Parameter(torch.empty(self.size))
        self.log_alpha, self.raw_beta = (nn.Parameter(torch.empty(())) for _ in range(2))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the centre from a standard normal, and start as the identity: α = 1, β = 0."""
        nn.init.normal_(self.centre)
        nn.init.zeros_(self.log_alpha)
        nn.init.constant_(self.raw_beta, math.log(math.expm1(1)))

    def _parameters_in(self, dtype):
        alpha = self.log_alpha.to(dtype).exp()
        rise = F.softplus(self.raw_beta.to(dtype))  # α + β, positive
        return self.centre.to(dtype), alpha, rise

    def _log_det(self, r, alpha, rise):
        # 1 + β/(α + r) and 1 + αβ/(α + r)², of terms that are not negative.
        reach = alpha + r
        tangential = ((r + rise) / reach).log()
        radial = ((r.square() + 2 * alpha * r + alpha * rise) / reach.square()).log()
        return (self.size - 1) * tangential + radial

    def forward(self, x: Tensor, context=None) -> tuple[Tensor, Tensor]:
        """Transform `x`."""
        flat = self._flat("x", x)
        centre, alpha, rise = self._parameters_in(flat.dtype)
        away = flat - centre
        r = torch.linalg.vector_norm(away, dim=1)
        z = centre + away * ((r + rise) / (alpha + r))[:, None]
        return z.view(x.shape).to(x.dtype), self._log_det(r, alpha, rise)

    def inverse(self, z: Tensor, context=None) -> tuple[Tensor, Tensor]:
        """Transform `z` back."""
        flat = self._flat("z", z)
        centre, alpha, rise = self._parameters_in(flat.dtype)
        away = flat - centre
        reach = torch.linalg.vector_norm(away, dim=1)
        # The positive root of r² + (rise - reach)·r - α·reach, without cancellation.
        half = (reach - rise) / 2
        root = (half.square() + alpha * reach).sqrt()
        r = torch.where(half > 0, half + root, alpha * reach / (root - half.clamp(max=0)))
        x = centre + away * ((alpha + r) / (r + rise))[:, None]
        return x.view(z.shape).to(z.dtype), -self._log_det(r, alpha, rise)


class Householder(Transform):
    """Householder reflections of the channels, an orthogonal matrix (Tomczak and Welling, 2016).

    From arXiv:1611.09630. Takes `(B, C)`, `(B, C, H, W)` and so on; the log-determinant is 0.

    Args:
        channels: C.
        num_reflections: number of reflections, applied in order; C of them make any orthogonal matrix of
            their sign.
    """

    def __init__(self, channels: int, num_reflections: int = 2):
        super().__init__()
        _check.at_least(1, channels=channels)
        _check.at_least(0, num_reflections=num_reflections)
        self.vectors = nn.Parameter(torch.empty(num_reflections, channels))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the vectors from a standard normal."""
        nn.init.normal_(self.vectors)

    def forward(self, x: Tensor, context=None) -> tuple[Tensor, Tensor]:
        """Reflect the channels of `x`."""
        return self._reflected("x", x, self.vectors)

    def inverse(self, z: Tensor, context=None) -> tuple[Tensor, Tensor]:
        """Reflect the channels of `z`, in reverse order."""
        return self._reflected("z", z, self.vectors.flip(0))

    def _reflected(self, name, x, vectors):
        _check.channels(name, x, self.vectors.shape[1])
        dtype = torch.promote_types(x.dtype, torch.float32)
        y = x.to(dtype)
        for vector in F.normalize(vectors.to(dtype), dim=1).unbind(0):
            vector = vector.view(-1, *[1] * (x.dim() - 2))
            y = y - 2 * (y * vector).sum(1, keepdim=True) * vector
        return y.to(x.dtype), no_log_det(x)

    def extra_repr(self) -> str:
        """Return the arguments for `repr`."""
        return f"{self.vectors.shape[1]}, num_reflections={len(self.vectors)}"
