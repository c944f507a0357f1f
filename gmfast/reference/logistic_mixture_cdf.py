"""The transform of Flow++ in plain PyTorch."""

import math

import torch
import torch.nn.functional as F


def transform(x, logits, means, log_scales):
    """Compute the logit of the mixture's CDF, and its log-derivative."""
    log_pi = F.log_softmax(logits, -1)
    z = (x.unsqueeze(-1) - means) * torch.exp(-log_scales)
    below, above = F.logsigmoid(z), F.logsigmoid(-z)
    log_cdf = torch.logsumexp(log_pi + below, -1)
    log_survival = torch.logsumexp(log_pi + above, -1)
    log_density = torch.logsumexp(log_pi + below + above - log_scales, -1)
    return log_cdf - log_survival, log_density - log_cdf - log_survival


@torch.no_grad()
def _solve(y, logits, means, log_scales):
    """Solve `transform(x) = y` by bisection between the components' own solutions."""
    solutions = means + torch.exp(log_scales) * y.unsqueeze(-1)
    low, high = solutions.amin(-1), solutions.amax(-1)
    for _ in range(200):
        middle = 0.5 * (low + high)
        below = transform(middle, logits, means, log_scales)[0] < y
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    return 0.5 * (low + high)


def logistic_mixture_cdf(x, logits, means, log_scales, *, inverse=False, reduction="sum"):
    """Reference of `gmfast.functional.logistic_mixture_cdf`."""
    if not inverse:
        y, log_derivative = transform(x, logits, means, log_scales)
    else:
        y = _solve(x, logits, means, log_scales)
        # Newton steps without their values: the first gives the implicit function's first derivative, the
        # second its second.
        for _ in range(2):
            again, log_derivative = transform(y, logits, means, log_scales)
            log_largest = math.log(torch.finfo(y.dtype).max) - 1
            step = (x - again) * torch.exp(-log_derivative.clamp(min=-log_largest))
            y = y + (step - step.detach())
        log_derivative = -transform(y, logits, means, log_scales)[1]
    if reduction == "sum" and y.dim() > 1:
        log_derivative = log_derivative.flatten(1).sum(1)
    return y, log_derivative
