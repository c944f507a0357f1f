from .. import reference


def logistic_mixture_cdf(x, logits, means, log_scales, *, inverse=False, reduction="sum"):
    return reference.logistic_mixture_cdf(x, logits, means, log_scales, inverse=inverse, reduction=reduction)
