"""The rational-quadratic spline in plain PyTorch."""

import torch
import torch.nn.functional as F


def _bins(raw, bound, min_bin):
    """Return sizes of the bins, and their lower ends."""
    sizes = 2 * bound * (min_bin + (1 - min_bin * raw.shape[-1]) * F.softmax(raw, -1))
    return sizes, F.pad(sizes[..., :-1].cumsum(-1), (1, 0)) - bound


def _to_unit(t):
    """Clamp to [0, 1] against rounding, without changing the gradient."""
    return t + (t.clamp(0, 1) - t).detach()


def rational_quadratic_spline(
    x,
    widths,
    heights,
    derivatives,
    *,
    bound=3.0,
    tails="linear",
    min_bin_width=1e-3,
    min_bin_height=1e-3,
    min_derivative=1e-3,
    inverse=False,
    reduction="sum",
    packed=False,
):
    """Reference of `gmfast.functional.rational_quadratic_spline`."""
    if packed:
        bins = (widths.shape[-1] + (1 if tails == "linear" else -1)) // 3
        widths, heights, derivatives = widths.split([bins, bins, widths.shape[-1] - 2 * bins], -1)
    widths, lefts = _bins(widths, bound, min_bin_width)
    heights, floors = _bins(heights, bound, min_bin_height)
    slopes = min_derivative + F.softplus(derivatives)
    if tails == "linear":
        slopes = F.pad(slopes, (1, 1), value=1.0)

    at = x.clamp(-bound, bound)
    starts = floors if inverse else lefts
    bin = (at.unsqueeze(-1) >= starts[..., 1:]).sum(-1, keepdim=True)
    width, left, height, floor, d0, d1 = (
        t.gather(-1, bin + i).squeeze(-1)
        for t, i in ((widths, 0), (lefts, 0), (heights, 0), (floors, 0), (slopes, 0), (slopes, 1))
    )
    s = height / width
    if inverse:
        # The quadratic's root without cancellation: csrc/math/rational_quadratic_spline.h has why.
        t = _to_unit((at - floor) / height)
        u = d0 * (1 - t) - d1 * t
        big = u.abs() + (u.square() + 4 * s.square() * t * (1 - t)).sqrt()
        falling = u < 0
        a, b = torch.where(falling, big, 2 * s * t), torch.where(falling, 2 * s * (1 - t), big)
        theta, rest = a / (a + b), b / (a + b)
        y = left + width * theta
    else:
        theta = _to_unit((at - left) / width)
        rest = 1 - theta
    mixed = theta * rest
    denominator = s * (1 - 2 * mixed) + (d0 + d1) * mixed
    slope = s.square() * (d1 * theta.square() + 2 * s * mixed + d0 * rest.square()) / denominator.square()
    if not inverse:
        y = floor + height * theta * (s * theta + d0 * rest) / denominator

    # Outside the bounds, a line with the slope at the bound.
    low = x < -bound
    outside = low | (x > bound)
    if tails == "linear":
        slope = slope.masked_fill(outside, 1)
    else:
        slope = torch.where(outside, torch.where(low, d0, d1), slope)
    line = at.detach() + (x - at.detach()) * (1 / slope if inverse else slope)
    y = torch.where(outside, x if tails == "linear" else line, y)
    log_derivative = -slope.log() if inverse else slope.log()
    one_each = x.dim() == 1 or reduction == "none"
    return y, log_derivative if one_each else log_derivative.flatten(1).sum(1)
