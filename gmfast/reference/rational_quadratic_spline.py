import torch
import torch.nn.functional as F


def _knots(raw, bound, min_bin):
    bins = raw.shape[-1]
    sizes = min_bin + (1 - min_bin * bins) * F.softmax(raw, -1)
    inner = 2 * bound * torch.cumsum(sizes, -1)[..., :-1] - bound
    ends = torch.full_like(raw[..., :1], bound)
    return torch.cat([-ends, inner, ends], -1)


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
):
    inside = (x >= -bound) & (x <= bound)
    at = x.clamp(-bound, bound).unsqueeze(-1)
    knots_x, knots_y = _knots(widths, bound, min_bin_width), _knots(heights, bound, min_bin_height)
    slopes = min_derivative + F.softplus(derivatives)
    if tails == "linear":
        slopes = F.pad(slopes, (1, 1), value=1.0)
    knots = knots_y if inverse else knots_x
    bin = ((at >= knots).sum(-1, keepdim=True) - 1).clamp(0, widths.shape[-1] - 1)
    left, right, below, above, d0, d1 = (
        t.gather(-1, bin + i).squeeze(-1) for t in (knots_x, knots_y, slopes) for i in (0, 1)
    )
    width, height, at = right - left, above - below, at.squeeze(-1)
    s = height / width
    if inverse:
        rise = at - below
        curvature = d0 + d1 - 2 * s
        a = height * (s - d0) + rise * curvature
        b = height * d0 - rise * curvature
        c = -s * rise
        root = (b * b - 4 * a * c).clamp(min=0).sqrt()
        theta = (2 * c / (-b - root)).clamp(0, 1)
        y = left + theta * width
    else:
        theta = (at - left) / width
    mixed = theta * (1 - theta)
    denominator = s + (d0 + d1 - 2 * s) * mixed
    log_derivative = (
        2 * s.log()
        + (d1 * theta.square() + 2 * s * mixed + d0 * (1 - theta).square()).log()
        - 2 * denominator.log()
    )
    if inverse:
        log_derivative = -log_derivative
    else:
        y = below + height * (s * theta.square() + d0 * mixed) / denominator
    if tails == "linear":
        y, log_derivative = torch.where(inside, y, x), torch.where(inside, log_derivative, 0.0)
    return y, log_derivative if reduction == "none" else log_derivative.flatten(1).sum(1)
