"""Mixture of discretized logistics (Salimans et al., 2017) in plain PyTorch."""

import math

import torch
import torch.nn.functional as F

from .. import _philox, _seed
from .._mixture_params import split_params


def conditional_means(x, means, coeffs):
    """Return the means (B, C, K, *S) conditional on the previous colours."""
    if coeffs is None:
        return means
    weight = torch.tanh(coeffs)
    red, green = x[:, 0, None], x[:, 1, None]
    return torch.stack(
        [
            means[:, 0],
            means[:, 1] + weight[:, 0] * red,
            means[:, 2] + weight[:, 1] * red + weight[:, 2] * green,
        ],
        1,
    )


def log_prob_exact(x, means, log_scales, num_classes):
    """Log-probability of each level under each component, without cancellation."""
    delta = 1 / (num_classes - 1)
    inv_scale = torch.exp(-log_scales)
    a = (x - means + delta) * inv_scale
    b = (x - means - delta) * inv_scale
    h = 2 * delta * inv_scale
    lowest, highest = x < -1 + delta, x > 1 - delta
    # log(1 - e^-h) without cancellation, and without the logarithm of an h that has underflowed.
    tiny = h < 1e-4
    log_width = torch.where(
        tiny,
        math.log(2 * delta) - log_scales - h / 2 + h * h / 24,
        torch.log(-torch.expm1(-torch.where(tiny, 1.0, h))),
    )
    log_below, log_above = F.logsigmoid(a), F.logsigmoid(-b)
    return torch.where(lowest, log_below, torch.where(highest, log_above, log_below + log_above + log_width))


def log_prob_pixelcnnpp(x, means, log_scales, num_classes):
    """Log-probability of each level under each component, as PixelCNN++ computes it."""
    delta = 1 / (num_classes - 1)
    inv_scale = torch.exp(-log_scales)
    centred = x - means
    plus_in = inv_scale * (centred + delta)
    min_in = inv_scale * (centred - delta)
    mid_in = inv_scale * centred
    cdf_delta = torch.sigmoid(plus_in) - torch.sigmoid(min_in)
    log_pdf_mid = F.logsigmoid(mid_in) + F.logsigmoid(-mid_in) - log_scales
    return torch.where(
        x < -0.999,
        F.logsigmoid(plus_in),
        torch.where(
            x > 0.999,
            F.logsigmoid(-min_in),
            torch.where(
                cdf_delta > 1e-5,
                torch.log(cdf_delta.clamp(min=1e-12)),
                log_pdf_mid - math.log((num_classes - 1) / 2),
            ),
        ),
    )


def discretized_logistic_mixture_nll(
    x, params, *, num_classes=256, log_scale_min=-7.0, formulation="exact", reduction="none"
):
    """Reference of `gmfast.functional.discretized_logistic_mixture_nll`."""
    logits, means, log_scales, coeffs = split_params(params, x.shape[1])
    means = conditional_means(x, means, coeffs)
    # At the minimum itself the gradient passes, unlike that of clamp in some versions of torch.
    log_scales = torch.where(log_scales < log_scale_min, log_scale_min, log_scales)
    component = {"exact": log_prob_exact, "pixelcnnpp": log_prob_pixelcnnpp}[formulation]
    log_probs = component(x.unsqueeze(2), means, log_scales, num_classes).sum(1)
    nll = -torch.logsumexp(F.log_softmax(logits, 1) + log_probs, 1)
    if reduction == "none":
        return nll
    per_sample = nll.reshape(nll.shape[0], nll[:1].numel()).sum(1)
    if reduction == "batch":
        return per_sample
    if reduction == "sum":
        return per_sample.sum()
    if reduction == "mean":
        return per_sample.mean()
    return per_sample.sum() / (x.numel() * math.log(2))


def discretized_logistic_mixture_sample(
    params,
    *,
    channels=3,
    num_classes=256,
    log_scale_min=-7.0,
    temperature=1.0,
    quantize=True,
    seed=None,
):
    """Reference of `gmfast.functional.discretized_logistic_mixture_sample`.

    `seed` is a 0-dim int64 tensor.
    """
    logits, means, log_scales, coeffs = split_params(params, channels)
    if params.dtype in (torch.float16, torch.bfloat16):
        logits, means, log_scales = logits.float(), means.float(), log_scales.float()
        coeffs = None if coeffs is None else coeffs.float()
    # Draw 0 of a pixel chooses the component, draws 1 to C are the colours' logistic noise.
    shape = logits.shape[0], logits.shape[2:], 1 + channels
    uniform = _philox.uniform(seed, *shape, logits.dtype, params.device, first=_seed.first())

    # Inverse CDF: the first component whose cumulative weight exceeds the draw.
    temperature = max(temperature, 1e-30)
    scaled = (logits - logits.amax(1, keepdim=True)) / temperature
    cumulative = torch.exp(scaled).cumsum(1)
    threshold = uniform[:, :1] * cumulative[:, -1:]
    chosen = (cumulative <= threshold).sum(1, keepdim=True).clamp(max=logits.shape[1] - 1).unsqueeze(1)

    def pick(per_component):
        index = chosen.expand(-1, channels, -1, *chosen.shape[3:])
        return per_component.gather(2, index).squeeze(2)

    mean, log_scale = pick(means), pick(log_scales).clamp(min=log_scale_min)
    weight = None if coeffs is None else torch.tanh(pick(coeffs))
    noise = torch.log(uniform[:, 1:]) - torch.log1p(-uniform[:, 1:])
    colours = []
    for c in range(channels):
        centre = mean[:, c]
        if c == 1:
            centre = centre + weight[:, 0] * colours[0]
        elif c == 2:
            centre = centre + weight[:, 1] * colours[0] + weight[:, 2] * colours[1]
        value = (centre + torch.exp(log_scale[:, c]) * noise[:, c] * temperature).clamp(-1, 1)
        if quantize:
            value = torch.round((value + 1) * ((num_classes - 1) / 2)) * (2 / (num_classes - 1)) - 1
        colours.append(value)
    return torch.stack(colours, 1)
