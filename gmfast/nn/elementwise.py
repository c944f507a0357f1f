"""Elementwise transforms: fixed functions of each value, with the log-determinant of all."""

import math
from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import _check
from .transform import Transform


class Elementwise(Transform):
    """Base class of elementwise transforms of `x (B, *S)`; they compute in float32 or better.

    A subclass defines `function` and `inverse_function`.
    """

    def forward(self, x: Tensor, context=None) -> tuple[Tensor, Tensor]:
        """Apply the function to each value of `x`."""
        _check.floating("x", x)
        y, log_derivative = self.function(_wide(x))
        return y.to(x.dtype), _summed(log_derivative)

    def inverse(self, z: Tensor, context=None) -> tuple[Tensor, Tensor]:
        """Apply the inverse function to each value of `z`; NaN outside of the function's range."""
        _check.floating("z", z)
        x = self.inverse_function(_wide(z))
        return x.to(z.dtype), -_summed(self.function(x)[1])

    def function(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the values and the logarithms of the derivatives."""
        raise NotImplementedError(f"{type(self).__name__} has no function")

    def inverse_function(self, z: Tensor) -> Tensor:
        """Return the values of the inverse function."""
        raise NotImplementedError(f"{type(self).__name__} has no inverse_function")


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _summed(log_derivative: Tensor) -> Tensor:
    return log_derivative.flatten(1).sum(1) if log_derivative.dim() > 1 else log_derivative


class Affine(Elementwise):
    """`z = x·scale + shift`, with trainable scale and shift of each value.

    Args:
        shape: of the parameters, which broadcast over a sample's last dimensions; (C, 1, 1) for the channels
            of images, () for one of all values.
        shift: at first, a number or of the shape.
        scale: at first; not 0. Its sign is kept.
        trainable: whether shift and log|scale| are parameters; else they are buffers.

    Raises:
        ValueError: for a scale of 0.
    """

    def __init__(
        self,
        shape: Iterable[int] = (),
        *,
        shift: float | Tensor = 0.0,
        scale: float | Tensor = 1.0,
        trainable: bool = True,
    ):
        super().__init__()
        dtype = torch.get_default_dtype()
        shift, scale = (torch.as_tensor(t, dtype=dtype).detach().expand(tuple(shape)) for t in (shift, scale))
        if not scale.is_meta and not (scale != 0).all():
            raise ValueError("scale: expected numbers other than 0, got 0")
        log_scale = scale.abs().log()
        self.register_buffer("sign", scale.sign())
        if trainable:
            self.shift, self.log_scale = nn.Parameter(shift.clone()), nn.Parameter(log_scale)
        else:
            self.register_buffer("shift", shift.clone())
            self.register_buffer("log_scale", log_scale)

    def function(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Scale and shift."""
        scale = self.sign * self.log_scale.to(x.dtype).exp()
        return x * scale + self.shift, self.log_scale.to(x.dtype).expand(x.shape)

    def inverse_function(self, z: Tensor) -> Tensor:
        """Undo the shift and the scale."""
        return (z - self.shift) * self.sign * torch.exp(-self.log_scale.to(z.dtype))

    def extra_repr(self) -> str:
        """Return the shape for `repr`."""
        return str(tuple(self.shift.shape))


class Sigmoid(Elementwise):
    """`z = 1 / (1 + exp(-temperature·x))`, to (0, 1).

    Args:
        temperature: positive.
        eps: the inverse clamps its input to [eps, 1 - eps].
    """

    def __init__(self, temperature: float = 1.0, eps: float = 1e-6):
        super().__init__()
        _check.positive("temperature", temperature)
        _check.number("eps", eps, 0, 0.5)
        self.temperature, self.eps = temperature, eps

    def function(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Apply the sigmoid."""
        x = x * self.temperature
        return torch.sigmoid(x), math.log(self.temperature) + F.logsigmoid(x) + F.logsigmoid(-x)

    def inverse_function(self, z: Tensor) -> Tensor:
        """Apply the logit."""
        z = z.clamp(self.eps, 1 - self.eps)
        return (z.log() - torch.log1p(-z)) / self.temperature

    def extra_repr(self) -> str:
        """Return the arguments for `repr`."""
        return f"temperature={self.temperature}, eps={self.eps}"


class Logit(Sigmoid):
    """`z = log(x / (1 - x)) / temperature` of values in (0, 1): the inverse of `Sigmoid`.

    Args:
        temperature: positive.
        eps: values are clamped to [eps, 1 - eps].
    """

    def forward(self, x: Tensor, context=None) -> tuple[Tensor, Tensor]:
        """Apply the logit to each value of `x`."""
        return super().inverse(x)

    def inverse(self, z: Tensor, context=None) -> tuple[Tensor, Tensor]:
        """Apply the sigmoid to each value of `z`."""
        return super().forward(z)


class Tanh(Elementwise):
    """`z = tanh(x)`, to (-1, 1)."""

    def function(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Apply the hyperbolic tangent."""
        return torch.tanh(x), 2 * (math.log(2) - x - F.softplus(-2 * x))

    def inverse_function(self, z: Tensor) -> Tensor:
        """Apply the inverse hyperbolic tangent; infinite at ±1."""
        return torch.atanh(z)


class Exp(Elementwise):
    """`z = exp(x)`, to the positive numbers; `Inverse(Exp())` is the logarithm."""

    def function(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Apply the exponential function."""
        return x.exp(), x

    def inverse_function(self, z: Tensor) -> Tensor:
        """Apply the logarithm."""
        return z.log()


class Softplus(Elementwise):
    """`z = log(1 + exp(x))`, to the positive numbers."""

    def function(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Apply the softplus function."""
        # Not F.softplus, which is the identity above 20 in float64 too.
        return x.clamp(min=0) + torch.log1p(torch.exp(-x.abs())), F.logsigmoid(x)

    def inverse_function(self, z: Tensor) -> Tensor:
        """Apply the inverse of softplus."""
        return z + torch.log(-torch.expm1(-z))


class LeakyReLU(Elementwise):
    """`z = x` of positive values, `negative_slope·x` of negative ones.

    Args:
        negative_slope: positive.
    """

    def __init__(self, negative_slope: float = 0.01):
        super().__init__()
        _check.positive("negative_slope", negative_slope)
        self.negative_slope = negative_slope

    def function(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Apply the leaky rectifier."""
        log_slope = math.log(self.negative_slope)
        return F.leaky_relu(x, self.negative_slope), torch.where(x < 0, log_slope, torch.zeros_like(x))

    def inverse_function(self, z: Tensor) -> Tensor:
        """Apply the inverse, the leaky rectifier of the inverse slope."""
        return F.leaky_relu(z, 1 / self.negative_slope)

    def extra_repr(self) -> str:
        """Return the arguments for `repr`."""
        return f"negative_slope={self.negative_slope}"


class Cubic(Elementwise):
    """`z = x + strength·x³`; the inverse is in closed form.

    Args:
        strength: positive.
    """

    def __init__(self, strength: float = 1.0):
        super().__init__()
        _check.positive("strength", strength)
        self.strength = strength

    def function(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Apply the polynomial."""
        square = self.strength * x.square()
        return x * (1 + square), torch.log1p(3 * square)

    def inverse_function(self, z: Tensor) -> Tensor:
        """Solve the cubic equation."""
        c = math.sqrt(3 * self.strength)
        return 2 / c * torch.sinh(torch.asinh(1.5 * c * z) / 3)

    def extra_repr(self) -> str:
        """Return the arguments for `repr`."""
        return f"strength={self.strength}"


class SignedPower(Elementwise):
    """`z = sign(x)·|x|^exponent`. At 0 the log-derivative is infinite, unless the exponent is 1.

    Args:
        exponent: positive.
    """

    def __init__(self, exponent: float):
        super().__init__()
        _check.positive("exponent", exponent)
        self.exponent = exponent

    def function(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Apply the power."""
        power = self.exponent
        return x.sign() * x.abs().pow(power), math.log(power) + (power - 1) * x.abs().log()

    def inverse_function(self, z: Tensor) -> Tensor:
        """Apply the inverse power."""
        return z.sign() * z.abs().pow(1 / self.exponent)

    def extra_repr(self) -> str:
        """Return the arguments for `repr`."""
        return f"exponent={self.exponent}"


class CauchyCDF(Elementwise):
    """`z = atan(x)/π + 1/2`, the CDF of the standard Cauchy distribution, to (0, 1)."""

    def function(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Apply the CDF."""
        return torch.atan(x) / math.pi + 0.5, -math.log(math.pi) - torch.log1p(x.square())

    def inverse_function(self, z: Tensor) -> Tensor:
        """Apply the quantile function."""
        return torch.tan(math.pi * (z - 0.5))


class Softclip(Elementwise):
    """`z = x / (1 + |x/bound|)`, to (-bound, bound).

    Args:
        bound: positive.
    """

    def __init__(self, bound: float = 1.0):
        super().__init__()
        _check.positive("bound", bound)
        self.bound = bound

    def function(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Apply the function."""
        ratio = (x / self.bound).abs()
        return x / (1 + ratio), -2 * torch.log1p(ratio)

    def inverse_function(self, z: Tensor) -> Tensor:
        """Apply the inverse function."""
        return z / (1 - (z / self.bound).abs())

    def extra_repr(self) -> str:
        """Return the arguments for `repr`."""
        return f"bound={self.bound}"
