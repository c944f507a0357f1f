"""Data with noise, as diffusion models are trained on it."""

from .. import reference
from . import _check, _seed


def q_sample(x, alpha, sigma, *, noise=None, seed=None, target=None):
    """alpha·x + sigma·z with standard normal z: a sample of q(x_t | x_0); optionally with the training target.

    Args:
        x: floating, `(B, *S)`.
        alpha, sigma: numbers, or floating `(B,)`: of each sample.
        noise: z, in the shape of `x`; else drawn in the kernel.
        seed: an int, an int64 tensor on the device of `x`, or a `torch.Generator`; None draws one from torch's.
        target: "epsilon" (z), "x0" (x), "v" (alpha·z - sigma·x: Salimans and Ho, 2022, arXiv:2202.00512) or
            "flow" (z - x: Lipman et al., 2023, arXiv:2210.02747); None: only the noised data are returned.

    Returns:
        `x_t`, or `(x_t, target)`, in the shape and dtype of `x`.
    """
    _check.floating("x", x)
    if noise is None:
        seed = _seed.as_tensor(seed, x.device)
    return reference.q_sample(x, alpha, sigma, noise=noise, seed=seed, target=target)
