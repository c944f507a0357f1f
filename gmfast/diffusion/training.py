"""Inputs of training: noised data with its target, and the coefficients of the variational bound."""

import torch
from torch import Tensor

from .. import _check
from .. import functional as GF
from . import schedules
from ._naming import public_name
from .samplers import DDPMSampler
from .schedules import Schedule, VariancePreservingSchedule


def add_noise(
    x: Tensor,
    t: Tensor | float,
    schedule: str | Schedule = "linear",
    *,
    noise: Tensor | None = None,
    seed: int | Tensor | torch.Generator | None = None,
    target: str | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """Noise data to times of a schedule: alpha(t)·x + sigma(t)·z, by `gmfast.functional.q_sample`.

    Args:
        x: Data, floating point, shape `(B, *S)`.
        t: Times as a denoiser of the schedule is given them, shape `(B,)`, or one for all samples: a number
            or shape `()`. Times outside the schedule are an error on the CPU; on other devices they are not
            checked, and the result is NaN at timesteps that do not exist.
        schedule: One of `gmfast.diffusion.SCHEDULES`, or an object.
        noise: As in `q_sample`.
        seed: As in `q_sample`.
        target: As in `q_sample`, but "v" is (alpha·z - sigma·x)/√(alpha² + sigma²), the form that
            `sample(prediction="v")` takes for every schedule; for variance-preserving ones both are equal.

    Returns:
        The noised data in the shape and dtype of x; with a `target`, a tuple of both.

    Raises:
        ValueError: For shapes, values and names.
        TypeError: For types.
    """
    _check.floating("x", x)
    schedule = schedules.schedule(schedule)
    if not isinstance(t, torch.Tensor):
        _check.real("t", t)
        dtype = torch.float64 if isinstance(t, float) else torch.int64
        t = torch.full(x.shape[:1], t, dtype=dtype, device=x.device)
    if schedule.discrete and t.is_floating_point():
        raise TypeError(f"t: expected int64, as the schedule has time steps, got {str(t.dtype)[6:]}")
    if t.dtype == torch.bool or t.is_complex():
        raise TypeError(f"t: expected times, got {str(t.dtype)[6:]}")
    if t.dim() and t.shape != x.shape[:1]:
        raise ValueError(f"t: expected shape () or {tuple(x.shape[:1])}, got {tuple(t.shape)}")
    if t.device != x.device:
        raise ValueError(f"t: expected a tensor on {x.device}, got one on {t.device}")
    _check.values("t", t, *schedule.span)
    alpha, sigma = schedule.alpha_sigma(t)
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    noised = GF.q_sample(x, alpha.to(wide), sigma.to(wide), noise=noise, seed=seed, target=target)
    if target != "v":
        return noised
    x_t, v = noised
    scale = torch.hypot(alpha, sigma).to(wide).reshape(-1, *[1] * (x.dim() - 1))
    return x_t, (v / scale).to(v.dtype)


def training_table(
    schedule: str | Schedule = "linear",
    prediction: str | None = None,
    *,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Make the coefficient table that `gmfast.functional.diffusion_hybrid_loss` takes.

    Args:
        schedule: A discrete schedule: "linear", "scaled_linear", "cosine", "sigmoid", "laplace", or a
            `VariancePreserving`.
        prediction: What the network returns; the hybrid loss needs "epsilon", the default.
        device: Device of the table.

    Returns:
        The coefficients of the DDPM sampler with a learned range at every timestep, shape `(T, 20)`, float64;
        row t is the step from t to t - 1.

    Raises:
        ValueError: If the schedule is not discrete, or the prediction unknown.
    """
    schedule = schedules.schedule(schedule)
    if not isinstance(schedule, VariancePreservingSchedule):
        raise ValueError(f"schedule: expected one of time steps, got {public_name(type(schedule))}")
    times = tuple(range(len(schedule) - 1, -2, -1))
    plan = DDPMSampler("learned_range").plan(schedule, times, prediction)
    with torch.inference_mode(False):  # autograd may save the table later
        return plan.table("cpu")[:-1].flip(0).to(device)
