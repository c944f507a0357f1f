"""Weights of one step between two noise levels, which several samplers share.

A step from level `now` to level `to` is a linear combination of x, of the denoised x0 and of new noise z.
"""

import math

from ..schedules import Level

#: What a denoiser may return, by the names that `prediction=` takes.
PREDICTIONS = ("epsilon", "x0", "v", "flow", "score")


def x0_weights(prediction: str, level: Level) -> tuple[float, float]:
    """Return (P, Q) of x0 = P·x + Q·m for a model output m at a noise level.

    With the noise z, m is: "epsilon" z; "x0" x0; "v" (alpha·z - sigma·x0)/√(alpha² + sigma²) (Salimans and
    Ho, 2022, arXiv:2202.00512); "flow" z - x0 (Lipman et al., 2023, arXiv:2210.02747); "score" -z/sigma.

    Raises:
        ValueError: If the level is pure noise, where "epsilon" and "score" do not determine x0.
    """
    a, s = level.alpha, level.sigma
    if prediction == "x0":
        return 0.0, 1.0
    if prediction == "v":
        return a / (a * a + s * s), -s / math.hypot(a, s)
    if prediction == "flow":
        return 1 / (a + s), -s / (a + s)
    if a == 0:
        raise ValueError(
            f"prediction: expected 'v', 'x0' or 'flow', as nothing of the data is left at time {level.t:g}, "
            f"got {prediction!r}"
        )
    return 1 / a, (-s / a if prediction == "epsilon" else s * s / a)


def posterior(now: Level, to: Level) -> tuple[float, float, float, float]:
    """Return the weights and the variance of q(x' | x, x0) between two levels of one process.

    Kingma et al., 2021, arXiv:2107.00630, appendix A; Ho et al., 2020, arXiv:2006.11239, eqs. 6 and 7.

    Returns:
        The weights of x and of x0; the variance of q(x | x'), β of DDPM; and the ratio of the posterior's
        variance to it.
    """
    a = now.alpha / to.alpha
    beta = max(now.sigma**2 - (a * to.sigma) ** 2, 0.0)
    return a * (to.sigma / now.sigma) ** 2, to.alpha * beta / now.sigma**2, beta, to.sigma**2 / now.sigma**2


def implicit(now: Level, to: Level, eta: float = 0.0) -> dict[str, float]:
    """Return the weights of DDIM's step (Song et al., 2021, arXiv:2010.02502, eq. 12).

    x' = alpha'·x0 + √(sigma'² - s²)·ε + s·z with ε = (x - alpha·x0)/sigma and s = eta times the posterior's
    standard deviation.

    Raises:
        ValueError: If eta is too large for this level: the step's new noise would exceed sigma'.
    """
    if eta == 0:
        return euler(now, to) | {"noise": 0.0}
    *_, beta, ratio = posterior(now, to)
    s = eta * math.sqrt(beta * ratio)
    if s > to.sigma and eta > 1:
        raise ValueError(
            f"eta: expected at most {eta * to.sigma / s:.6g}, with which all the noise of time {to.t:g} is "
            f"new, got {eta}"
        )
    s = min(s, to.sigma)
    of_epsilon = math.sqrt(to.sigma**2 - s * s)
    return dict(x=of_epsilon / now.sigma, x0=to.alpha - of_epsilon * now.alpha / now.sigma, noise=s)


def euler(now: Level, to: Level) -> dict[str, float]:
    """Return the weights of Euler's step for the probability flow, DDIM's without noise."""
    ratio = to.sigma / now.sigma
    return dict(x=ratio, x0=to.alpha - ratio * now.alpha)


def renoised(to: Level) -> tuple[float, float]:
    """Return the weights of x0 and of new noise in a draw of q(x' | x0).

    At the end of discrete timesteps x' is x0 itself, whatever the schedule's `final_alpha_cumprod`.
    """
    return (1.0, 0.0) if to.t < 0 else (to.alpha, to.sigma)
