"""Monotone splines: of all kinds, on any box, with linear, open or circular ends."""

import math
from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import _check
from .. import functional as GF
from .transform import Transform

#: Kinds of splines, and for each the ends that it may have.
KINDS = {
    "rational_quadratic": ("linear", None, "circular"),
    "linear": ("linear", None),
    "quadratic": ("linear", None),
    "cubic": ("linear", None),
}


class SplineFunction(nn.Module):
    """A spline of each element, given its raw parameters: what the spline transforms have in common.

    Args:
        num_bins: K.
        kind: "rational_quadratic" (Durkan et al., 2019, arXiv:1906.04032; a kernel), "linear" or "quadratic"
            (Müller et al., 2019, arXiv:1808.03856), or "cubic" (Durkan et al., 2019, arXiv:1906.02145; these
            three in plain PyTorch).
        bound: the spline maps [-bound, bound] onto itself.
        tails: outside, "linear" is the line through the corners of the box (the identity for [-bound,
            bound]), None goes on with the slope at the end, "circular" takes values as angles: they are
            wrapped into [left, right], and the slope is the same at both ends. A sequence has one of these
            for each column, dimension 1 of the elements. The last two are for "rational_quadratic".
        min_bin_width, min_bin_height, min_derivative: as in `gmfast.functional.rational_quadratic_spline`;
            "linear" splines use none of them, "quadratic" and "cubic" ones the first two.
        left, right, bottom, top: instead of `bound`, a box: [left, right] is mapped onto [bottom, top]. By
            default `bottom` and `top` are `left` and `right`, which are -bound and bound.

    Raises:
        ValueError: for values, naming the argument.
    """

    def __init__(
        self,
        num_bins: int,
        *,
        kind: str = "rational_quadratic",
        bound: float = 3.0,
        tails: str | Sequence[str | None] | None = "linear",
        min_bin_width: float = 1e-3,
        min_bin_height: float = 1e-3,
        min_derivative: float = 1e-3,
        left: float | None = None,
        right: float | None = None,
        bottom: float | None = None,
        top: float | None = None,
    ):
        super().__init__()
        _check.at_least(1, num_bins=num_bins)
        _check.one_of("kind", kind, tuple(KINDS))
        self.num_bins, self.kind, self.tails = num_bins, kind, tails
        self.columns = None
        if isinstance(tails, list | tuple):
            self.columns, self.tails = tuple(tails), None
            for each in self.columns:
                _check.one_of("tails", each, KINDS["rational_quadratic"])
            if kind != "rational_quadratic":
                raise ValueError(f"tails: expected one for all columns with kind={kind!r}, got {tails!r}")
        _check.one_of("tails", self.tails, KINDS[kind])
        if self.columns is not None:
            for name in ("linear", "circular"):
                mask = torch.tensor([each == name for each in self.columns])
                self.register_buffer(f"_{name}", mask, persistent=False)
        _check.number("bound", bound, 1e-30, 1e30)
        left, right = -bound if left is None else left, bound if right is None else right
        bottom, top = left if bottom is None else bottom, right if top is None else top
        ends = {"left": left, "right": right, "bottom": bottom, "top": top}
        for name, value in ends.items():
            _check.number(name, value, -1e30, 1e30)
        for low, high in (("left", "right"), ("bottom", "top")):
            if not ends[low] < ends[high]:
                raise ValueError(f"{low}: expected a number below {high}={ends[high]}, got {ends[low]}")
        self.box = float(left), float(right), float(bottom), float(top)
        #: Slope of the line through the corners.
        self.slope = (top - bottom) / (right - left)
        self.minima = float(min_bin_width), float(min_bin_height), float(min_derivative)
        self.centred = left == bottom == -right == -top
        if kind == "rational_quadratic":
            self._check_minima(min_bin_width, min_bin_height, min_derivative)
        elif kind == "quadratic" and self.tails == "linear" and num_bins < 2:
            raise ValueError(f"num_bins: expected at least 2 with kind='quadratic' and tails, got {num_bins}")
        elif kind != "linear":
            _check.number("min_bin_width", min_bin_width, 0, 1 / num_bins)
            _check.number("min_bin_height", min_bin_height, 0, 1 / num_bins)
        #: Whether the operation computes it as it is.
        self.is_operation = (
            kind == "rational_quadratic" and self.centred and self.tails != "circular" and not self.columns
        )
        #: Number of parameters of an element.
        self.num_params = self._num_params()

    def _check_minima(self, width, height, derivative) -> None:
        """Raise what the operation raises, by calling it with an empty batch."""
        nothing = torch.empty(0, 1, 3 * self.num_bins - 1, device="cpu")
        GF.rational_quadratic_spline(
            nothing[..., 0],
            nothing,
            None,
            None,
            packed=True,
            bound=self.box[1] if self.centred else 1.0,
            min_bin_width=width,
            min_bin_height=height,
            min_derivative=derivative,
        )

    def _num_params(self) -> int:
        bins = self.num_bins
        if self.kind == "linear":
            return bins
        if self.kind == "quadratic":
            return 2 * bins + (-1 if self.tails == "linear" else 1)
        if self.kind == "cubic":
            return 2 * bins + 2
        return 3 * bins + {"linear": -1, None: 1, "circular": 0}[self.tails]

    def identity(self) -> Tensor:
        """Return raw parameters, (num_params,), of the line through the corners of the box."""
        raw = torch.zeros(self.num_params)
        if self.kind == "rational_quadratic":
            slope = self.slope - self.minima[2]
            if slope <= 0:
                raise ValueError(f"min_derivative: expected less than {self.slope:g}, got {self.minima[2]:g}")
            raw[2 * self.num_bins :] = slope + math.log(-math.expm1(-slope))
        if self.kind == "cubic":
            raw[2 * self.num_bins :] = -math.log(2)
        return raw

    def start_near_identity(self, bias: Tensor) -> None:
        """Raise a conditioner's bias, (n * num_params,), in place: a bias of 0 becomes that of `identity`."""
        if self.kind != "rational_quadratic" or self.minima[2] < self.slope:
            with torch.no_grad():
                bias.view(-1, self.num_params).add_(self.identity().to(bias))

    def forward(
        self,
        x: Tensor,
        params: Tensor,
        inverse: bool = False,
        reduction: str = "sum",
        columns: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Apply the spline.

        Args:
            x: (B, C, *S).
            params: (B, C, *S, num_params): widths, heights and derivatives, in this order.
            inverse: the other direction.
            reduction: "sum" over each sample, or "none".
            columns: indices of the columns that `x` has, of those that `tails` has; None for all.

        Returns:
            The result and its log-derivative, (B,) or of the shape of `x`.
        """
        if self.is_operation:
            return self._operation(x, params, self.tails, self.box[1], inverse, reduction)
        if self.kind == "rational_quadratic":
            y, log_derivative = self._on_box(x, params, inverse, columns)
        else:
            function = {"linear": linear_spline, "quadratic": quadratic_spline, "cubic": cubic_spline}
            left, right, bottom, top = self.box
            raw = {
                "linear": (params,),
                "quadratic": (params[..., : self.num_bins], params[..., self.num_bins :]),
                "cubic": (
                    params[..., : self.num_bins],
                    params[..., self.num_bins : 2 * self.num_bins],
                    params[..., 2 * self.num_bins :],
                ),
            }[self.kind]
            minima = {} if self.kind == "linear" else self._sizes()
            box = {"left": left, "right": right, "bottom": bottom, "top": top}
            y, log_derivative = function[self.kind](
                x, *raw, tails=self.tails, inverse=inverse, reduction="none", **box, **minima
            )
        return y, log_derivative.flatten(1).sum(1) if reduction == "sum" else log_derivative

    def _sizes(self) -> dict[str, float]:
        return {"min_bin_width": self.minima[0], "min_bin_height": self.minima[1]}

    def _operation(self, x, params, tails, bound, inverse, reduction, min_derivative=None):
        return GF.rational_quadratic_spline(
            x,
            params,
            None,
            None,
            packed=True,
            tails=tails,
            bound=bound,
            min_derivative=self.minima[2] if min_derivative is None else min_derivative,
            inverse=inverse,
            reduction=reduction,
            **self._sizes(),
        )

    def _on_box(self, x, params, inverse, columns):
        """The rational-quadratic spline on a box or a circle, by way of [-1, 1], elementwise."""
        left, right, bottom, top = self.box
        start, stop, low, high = (bottom, top, left, right) if inverse else (left, right, bottom, top)
        dtype = torch.promote_types(x.dtype, torch.float32)
        u = (x.to(dtype) - (start + stop) / 2) / ((stop - start) / 2)
        wrapped = torch.remainder(u + 1, 2) - 1
        tails, minimum = self.tails, self.minima[2]
        sizes, raw = params.split([2 * self.num_bins, params.shape[-1] - 2 * self.num_bins], -1)
        if self.slope != 1:
            # The slopes of [-1, 1] are those of the box divided by that of its diagonal.
            raw, minimum = _scaled_softplus(raw.to(dtype), 1 / self.slope), minimum / self.slope
        if self.columns is not None:
            linear, circular = (
                (mask if columns is None else mask.index_select(0, columns)).view(-1, *[1] * (x.dim() - 2))
                for mask in (self._linear, self._circular)
            )
            if len(linear) != x.shape[1]:
                raise ValueError(f"tails: expected {x.shape[1]}, one for each column, got {len(linear)}")
            u = torch.where(circular, wrapped, u)
            inner, last = raw[..., :-1], raw[..., -1:]
            last = torch.where(circular[..., None], raw[..., :1], last)
            one = math.log(math.expm1(1 - minimum)) if minimum < 1 else -math.inf
            first = torch.where(linear[..., None], one, raw[..., :1])
            last = torch.where(linear[..., None], one, last)
            raw = torch.cat([first, inner[..., 1:], last], -1)
        elif tails == "circular":
            u, tails = wrapped, None
            raw = torch.cat([raw, raw[..., :1]], -1)
        if raw.shape[-1] != params.shape[-1] - 2 * self.num_bins or self.slope != 1 or self.columns:
            params = torch.cat([sizes.to(raw.dtype), raw], -1)
        v, log_derivative = self._operation(u, params, tails, 1.0, inverse, "none", minimum)
        y = (low + high) / 2 + (high - low) / 2 * v
        log_slope = math.log(self.slope)
        return y.to(x.dtype), log_derivative + (-log_slope if inverse else log_slope)

    def extra_repr(self) -> str:
        """Return the arguments for `repr`, without those that have their default."""
        left, right, bottom, top = self.box
        parts = [] if self.kind == "rational_quadratic" else [f"kind={self.kind!r}"]
        parts.append(f"num_bins={self.num_bins}")
        box = f"left={left:g}, right={right:g}, bottom={bottom:g}, top={top:g}"
        parts.append(f"bound={right}" if self.centred else box)
        tails = self.tails if self.columns is None else self.columns
        return ", ".join(parts + ([] if tails == "linear" else [f"tails={tails!r}"]))


class Spline(Transform):
    """A spline of each element with trainable parameters of its own, at first the identity.

    Args:
        shape: of one sample, or of its first dimensions: (C,) shares a spline between the positions of a
            channel.
        num_bins: K.
        identity_init: whether to start as the identity; else with raw parameters from a standard normal,
            drawn from torch's global generator.
        options: `kind`, `bound`, `tails`, `left`, `right`, `bottom`, `top` and the minima of
            `SplineFunction`.
    """

    def __init__(
        self, shape: int | Iterable[int], num_bins: int = 8, *, identity_init: bool = True, **options
    ):
        super().__init__()
        self.shape = (shape,) if isinstance(shape, int) else tuple(shape)
        self.spline = SplineFunction(num_bins, **options)
        raw = self.spline.identity() if identity_init else torch.randn(*self.shape, self.spline.num_params)
        self.params = nn.Parameter(raw.repeat(*self.shape, 1) if identity_init else raw)

    def forward(self, x: Tensor, context=None) -> tuple[Tensor, Tensor]:
        """Apply the splines to `x (B, *shape, …)`."""
        return self.spline(x, self._params("x", x))

    def inverse(self, z: Tensor, context=None) -> tuple[Tensor, Tensor]:
        """Apply the inverses of the splines."""
        return self.spline(z, self._params("z", z), inverse=True)

    def _params(self, name, x):
        _check.floating(name, x)
        count = len(self.shape)
        if tuple(x.shape[1 : 1 + count]) != self.shape:
            raise ValueError(
                f"{name}: expected (B, {', '.join(map(str, self.shape))}, *), got {tuple(x.shape)}"
            )
        params = self.params.view(*self.shape, *[1] * (x.dim() - 1 - count), -1)
        return params.expand(*x.shape, -1)


class PeriodicShift(Transform):
    """A rotation of angles: `z = x + shift`, wrapped into the period [left, right).

    Between circular splines it moves the ends, which splines leave where they are (Rezende et al., 2020,
    arXiv:2002.02428). Values outside the period are wrapped: the inverse gives them back modulo the period.

    Args:
        channels: C of `x (B, C, *S)`.
        columns: indices of the channels that are angles; None: all. The others pass unchanged.
        left, right: ends of the period.
        shift: initial shift of each angle, a number or (C,).
        trainable: whether the shifts are parameters; else they are buffers.
    """

    def __init__(
        self,
        channels: int,
        columns: Iterable[int] | None = None,
        *,
        left: float = -math.pi,
        right: float = math.pi,
        shift: float | Tensor = 0.0,
        trainable: bool = True,
    ):
        super().__init__()
        _check.at_least(1, channels=channels)
        if not left < right:
            raise ValueError(f"left: expected a number below right={right}, got {left}")
        self.left, self.period = left, right - left
        periodic = torch.ones(channels, dtype=torch.bool)
        if columns is not None:
            columns = list(columns)
            if not all(0 <= column < channels for column in columns):
                raise ValueError(f"columns: expected indices from 0 to {channels - 1}, got {columns}")
            periodic = torch.tensor([i in columns for i in range(channels)])
        self.register_buffer("_periodic", periodic, persistent=False)
        shift = torch.as_tensor(shift, dtype=torch.get_default_dtype()).detach().expand(channels).clone()
        if trainable:
            self.shift = nn.Parameter(shift)
        else:
            self.register_buffer("shift", shift)

    def forward(self, x: Tensor, context=None) -> tuple[Tensor, Tensor]:
        """Rotate `x (B, C, *S)`; the log-determinant is 0."""
        return self._rotated("x", x, self.shift)

    def inverse(self, z: Tensor, context=None) -> tuple[Tensor, Tensor]:
        """Rotate back."""
        return self._rotated("z", z, -self.shift)

    def _rotated(self, name, x, shift):
        _check.floating(name, x)
        _check.channels(name, x, len(self.shift))
        shape = (-1, *[1] * (x.dim() - 2))
        dtype = torch.promote_types(x.dtype, torch.float32)
        turned = torch.remainder(x.to(dtype) - self.left + shift.to(dtype).view(shape), self.period)
        y = torch.where(self._periodic.view(shape), (turned + self.left).to(x.dtype), x)
        return y, y.new_zeros(y.shape[0], dtype=dtype)

    def extra_repr(self) -> str:
        """Return the arguments for `repr`."""
        return f"{len(self.shift)}, left={self.left:g}, right={self.left + self.period:g}"


def linear_spline(
    x: Tensor,
    densities: Tensor,
    *,
    left: float = 0.0,
    right: float = 1.0,
    bottom: float = 0.0,
    top: float = 1.0,
    tails: str | None = None,
    inverse: bool = False,
    reduction: str = "sum",
) -> tuple[Tensor, Tensor]:
    """A piecewise linear spline of each element: the CDF of a histogram (Müller et al., arXiv:1808.03856).

    Args:
        x: (B, *D).
        densities: (B, *D, K), raw; their softmax is the share of each of K bins of equal width.
        left: lower end of the interval.
        right: its upper end.
        bottom: lower end of the interval that it is mapped onto.
        top: its upper end.
        tails: outside, "linear" is the line through the corners of the box, None goes on with the slope at
            that end.
        inverse: whether to map [bottom, top] to [left, right].
        reduction: "sum" of the log-derivatives over each sample, or "none".

    Returns:
        The result, as `x`, and the log-derivative of the direction called, (B,) or (B, *D).
    """

    def function(u, densities):
        heights = densities.softmax(-1)
        count = densities.shape[-1]
        ends = F.pad(heights.cumsum(-1), (1, 0))
        if inverse:
            bin = (u[..., None] >= ends[..., 1:-1]).sum(-1, keepdim=True)
        else:
            bin = (u * count).floor().clamp(0, count - 1).long()[..., None]
        start, height = (t.gather(-1, bin)[..., 0] for t in (ends, heights))
        knot = bin[..., 0] / count
        slope = height * count
        v = knot + (u - start) / slope if inverse else start + (u - knot) * slope
        return v, slope.log()

    box = left, right, bottom, top
    return _on_unit_square(function, x, (densities,), box, tails, inverse, reduction)


def quadratic_spline(
    x: Tensor,
    widths: Tensor,
    heights: Tensor,
    *,
    left: float = 0.0,
    right: float = 1.0,
    bottom: float = 0.0,
    top: float = 1.0,
    tails: str | None = None,
    min_bin_width: float = 1e-3,
    min_bin_height: float = 1e-3,
    inverse: bool = False,
    reduction: str = "sum",
) -> tuple[Tensor, Tensor]:
    """A piecewise quadratic spline of each element: the CDF of a density that is linear in each bin.

    From Müller et al., 2019, arXiv:1808.03856.

    Args:
        x: (B, *D).
        widths: (B, *D, K), raw: K bins, by softmax.
        heights: raw densities at the knots, by softplus: (B, *D, K+1), or (B, *D, K-1) without the ends,
            where the slope is then 1 in units of the box.
        left: lower end of the interval.
        right: its upper end.
        bottom: lower end of the interval that it is mapped onto.
        top: its upper end.
        tails: outside, "linear" is the line through the corners of the box, None goes on with the slope at
            that end.
        min_bin_width: smallest width, as a share of the interval.
        min_bin_height: smallest density.
        inverse: whether to map [bottom, top] to [left, right].
        reduction: "sum" of the log-derivatives over each sample, or "none".

    Returns:
        The result, as `x`, and the log-derivative of the direction called, (B,) or (B, *D).
    """

    def function(u, widths, heights):
        widths = _shares(widths, min_bin_width)
        density = F.softplus(heights) + 1e-3
        if heights.shape[-1] == widths.shape[-1] - 1:
            # The density at both ends that is 1 once the whole is divided by its area.
            first, last = widths[..., :1] / 2, widths[..., -1:] / 2
            inner = ((density[..., :-1] + density[..., 1:]) / 2 * widths[..., 1:-1]).sum(-1, keepdim=True)
            end = (first * density[..., :1] + last * density[..., -1:] + inner) / (1 - first - last)
            density = torch.cat([end, density, end], -1)
        area = ((density[..., :-1] + density[..., 1:]) / 2 * widths).sum(-1, keepdim=True)
        density = min_bin_height + (1 - min_bin_height) * density / area
        starts = F.pad(widths.cumsum(-1), (1, 0))
        ends = F.pad(((density[..., :-1] + density[..., 1:]) / 2 * widths).cumsum(-1), (1, 0))
        bin = (u[..., None] >= (ends if inverse else starts)[..., 1:-1]).sum(-1, keepdim=True)
        width, start, end, d0, d1 = (
            t.gather(-1, bin + i)[..., 0]
            for t, i in ((widths, 0), (starts, 0), (ends, 0), (density, 0), (density, 1))
        )
        if inverse:
            rest = (u - end).clamp(min=0) / width  # of the quadratic d0·θ + (d1 - d0)·θ²/2
            theta = 2 * rest / (d0 + (d0.square() + 2 * (d1 - d0) * rest).clamp(min=1e-30).sqrt())
            v = start + width * theta
        else:
            theta = (u - start) / width
            v = end + width * theta * (d0 + (d1 - d0) * theta / 2)
        return v, (d0 + (d1 - d0) * theta).log()

    box = left, right, bottom, top
    return _on_unit_square(function, x, (widths, heights), box, tails, inverse, reduction)


def cubic_spline(
    x: Tensor,
    widths: Tensor,
    heights: Tensor,
    derivatives: Tensor,
    *,
    left: float = 0.0,
    right: float = 1.0,
    bottom: float = 0.0,
    top: float = 1.0,
    tails: str | None = None,
    min_bin_width: float = 1e-3,
    min_bin_height: float = 1e-3,
    inverse: bool = False,
    reduction: str = "sum",
) -> tuple[Tensor, Tensor]:
    """A monotone cubic spline of each element (Durkan et al., 2019, arXiv:1906.02145), after Steffen, 1990.

    Args:
        x: (B, *D).
        widths: (B, *D, K), raw: K bins, by softmax.
        heights: (B, *D, K), raw, by softmax too.
        derivatives: (B, *D, 2), raw: the slopes at both ends are three times those of the first and the last
            bin, times their sigmoid.
        left: lower end of the interval.
        right: its upper end.
        bottom: lower end of the interval that it is mapped onto.
        top: its upper end.
        tails: outside, "linear" is the line through the corners of the box, None goes on with the slope at
            that end.
        min_bin_width: smallest width, as a share of the interval.
        min_bin_height: smallest height, as a share of the other interval.
        inverse: whether to map [bottom, top] to [left, right].
        reduction: "sum" of the log-derivatives over each sample, or "none".

    Returns:
        The result, as `x`, and the log-derivative of the direction called, (B,) or (B, *D).
    """

    def function(u, widths, heights, derivatives):
        widths, heights = _shares(widths, min_bin_width), _shares(heights, min_bin_height)
        slopes = heights / widths
        w0, w1, s0, s1 = widths[..., :-1], widths[..., 1:], slopes[..., :-1], slopes[..., 1:]
        inner = 2 * torch.minimum(torch.minimum(s0, s1), (w1 * s0 + w0 * s1) / (2 * (w0 + w1)))
        ends = 3 * torch.sigmoid(derivatives) * slopes[..., :: max(slopes.shape[-1] - 1, 1)]
        knots = torch.cat([ends[..., :1], inner, ends[..., 1:]], -1)
        starts, floors = (F.pad(t.cumsum(-1), (1, 0)) for t in (widths, heights))
        bin = (u[..., None] >= (floors if inverse else starts)[..., 1:-1]).sum(-1, keepdim=True)
        width, start, floor, slope, d0, d1 = (
            t.gather(-1, bin + i)[..., 0]
            for t, i in ((widths, 0), (starts, 0), (floors, 0), (slopes, 0), (knots, 0), (knots, 1))
        )
        cubic, square = d0 + d1 - 2 * slope, 3 * slope - 2 * d0 - d1  # of θ in [0, 1], times the width

        def value(t):
            return t * (d0 + t * (square + t * cubic))

        def derivative(t):
            return d0 + t * (2 * square + 3 * t * cubic)

        if inverse:
            target = (u - floor) / width
            theta = _bisected(value, target.detach())
            for _ in range(2):  # Newton's steps, which give the gradient, and its gradient
                theta = theta - (value(theta) - target) / derivative(theta)
            theta = theta.clamp(0, 1)
            v = start + width * theta
        else:
            theta = (u - start) / width
            v = floor + width * value(theta)
        return v, derivative(theta).log()

    if derivatives.shape[-1] != 2:
        raise ValueError(f"derivatives: expected shape (B, *D, 2), got {tuple(derivatives.shape)}")
    box = left, right, bottom, top
    raw = widths, heights, derivatives
    return _on_unit_square(function, x, raw, box, tails, inverse, reduction)


def _on_unit_square(function, x, raw, box, tails, inverse, reduction):
    """Apply `function(u, *raw) -> (v, log_derivative of the forward direction)` of [0, 1] to a box."""
    _check.floating("x", x)
    _check.one_of("tails", tails, ("linear", None))
    _check.one_of("reduction", reduction, ("sum", "none"))
    for name, tensor in zip(("widths", "heights", "derivatives"), raw, strict=False):
        if tensor.shape[:-1] != x.shape:
            raise ValueError(
                f"{name}: expected shape {(*x.shape, 'K')}, got {tuple(tensor.shape)}".replace("'", "")
            )
    left, right, bottom, top = box
    start, stop, low, high = (bottom, top, left, right) if inverse else (left, right, bottom, top)
    dtype = torch.promote_types(x.dtype, torch.float32)
    for tensor in raw:
        dtype = torch.promote_types(dtype, tensor.dtype)
    u = (x.to(dtype) - start) / (stop - start)
    at = u.clamp(0, 1)
    outside = at != u
    at = torch.where(outside, at.detach(), u)
    v, log_derivative = function(at, *(t.to(dtype) for t in raw))
    log_derivative = -log_derivative if inverse else log_derivative
    if tails == "linear":
        v, log_derivative = torch.where(outside, u, v), torch.where(outside, 0.0, log_derivative)
    else:
        v = v + torch.where(outside, (u - at) * log_derivative.exp(), 0.0)
    y = (low + (high - low) * v).to(x.dtype)
    log_derivative = log_derivative + math.log((high - low) / (stop - start))
    return y, log_derivative.flatten(1).sum(1) if reduction == "sum" and x.dim() > 1 else log_derivative


def _shares(raw, least):
    shares = raw.softmax(-1)
    # While torch.jit.trace records, the size is a tensor, whose product with a number would be a float32.
    return shares + least * (1 - raw.shape[-1] * shares)


def _bisected(function, target):
    """Return θ in [0, 1] with function(θ) = target, of an increasing function, to half its digits."""
    with torch.no_grad():
        low, high = torch.zeros_like(target), torch.ones_like(target)
        for _ in range(40 if target.dtype == torch.float64 else 20):
            middle = (low + high) / 2
            above = function(middle) > target
            low, high = torch.where(above, low, middle), torch.where(above, middle, high)
        return (low + high) / 2


def _scaled_softplus(raw, factor):
    """Return the number whose softplus is `factor·softplus(raw)`."""
    scaled = factor * F.softplus(raw)
    small = raw < -20  # where softplus is exp
    safe = torch.where(small, 1.0, scaled)
    return torch.where(small, raw + math.log(factor), safe + torch.log(-torch.expm1(-safe)))


def start_at_identity(conditioner: nn.Module, identity: Tensor) -> None:
    """Set the last layer of a conditioner, so that each element gets the parameters `identity`.

    Raises:
        ValueError: for a conditioner whose last linear or convolutional layer has not that many outputs.
    """
    modules = conditioner.modules() if isinstance(conditioner, nn.Module) else ()
    layers = [m for m in modules if isinstance(m, nn.Linear | nn.modules.conv._ConvNd)]
    last = layers[-1] if layers else None
    if last is None or last.bias is None or len(last.bias) % len(identity):
        raise ValueError(
            f"identity_init: expected a conditioner whose last layer is linear or a convolution with a bias "
            f"and a multiple of {len(identity)} outputs, got {last or type(conditioner).__name__}"
        )
    with torch.no_grad():
        last.weight.zero_()
        last.bias.copy_(identity.repeat(len(last.bias) // len(identity)))
