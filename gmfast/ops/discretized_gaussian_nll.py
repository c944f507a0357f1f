"""Negative log-likelihood of levels under a normal distribution."""

from .. import reference


def discretized_gaussian_nll(x, mean, log_scale, *, num_classes=256, formulation="exact"):
    """-log P(x) of levels in [-1, 1] under a normal distribution, in nats: DDPM's decoder.

    P is the distribution's mass in the level's bin, which reaches to infinity at -1 and 1 (Ho et al., 2020,
    arXiv:2006.11239).

    Args:
        x: floating, levels -1, -1 + 2/(num_classes - 1), ... 1.
        mean, log_scale: floating, broadcastable to `x`; log_scale is the log of the standard deviation.
        num_classes: levels.
        formulation: "exact", or "improved_ddpm": the published approximation of Φ by tanh, with its clamp.

    Returns:
        In the shape of `x`, float32 for halves. Differentiable in `mean` and `log_scale`.
    """
    return reference.discretized_gaussian_nll(
        x, mean, log_scale, num_classes=num_classes, formulation=formulation
    )
