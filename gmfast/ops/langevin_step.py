"""A step of Langevin dynamics."""

from .. import reference
from . import _check, _seed


def langevin_step(
    x,
    score,
    *,
    step_size=None,
    snr=None,
    alpha=1.0,
    temperature=1.0,
    noise=None,
    seed=None,
    draw=0,
    return_mean=False,
):
    """x + ε·score + √(2·temperature·ε)·z: a step of unadjusted Langevin dynamics.

    With `snr` = r instead of a step size, ε = 2·alpha·(r·‖z‖/‖score‖)², the norms those of samples, averaged
    over the batch: the corrector of Song et al. (2021, arXiv:2011.13456).

    Args:
        x, score: floating, `(B, *S)`; the score is the gradient of log p.
        step_size: ε, a number, a tensor `()` or `(B,)`; either this or `snr`.
        alpha: a number, 1 for variance-exploding processes.
        noise: z, in the shape of `x`; else drawn in the kernel, of the seed's given `draw`.
        return_mean: also return x + ε·score.
    """
    _check.floating("x", x)
    if noise is None:
        seed = _seed.as_tensor(seed, x.device)
    return reference.langevin_step(
        x,
        score,
        step_size=step_size,
        snr=snr,
        alpha=alpha,
        temperature=temperature,
        noise=noise,
        seed=seed,
        draw=draw,
        return_mean=return_mean,
    )
