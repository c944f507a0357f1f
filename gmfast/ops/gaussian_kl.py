"""The divergence of two diagonal normal distributions."""

from .. import reference


def gaussian_kl(mean1, logvar1, mean2, logvar2):
    """KL(N(mean1, exp(logvar1)) ‖ N(mean2, exp(logvar2))), elementwise, in nats.

    Args:
        mean1, logvar1, mean2, logvar2: floating tensors or numbers that broadcast to each other.

    Returns:
        In the shape they broadcast to. Differentiable in all of them.
    """
    return reference.gaussian_kl(mean1, logvar1, mean2, logvar2)
