"""diffusers' schedulers with their steps fused: one line, the same results.

pipeline = gmfast.integrations.diffusers.accelerate(pipeline)
"""

from ... import _check
from . import _framework


def accelerate(scheduler_or_pipeline, *, noise="generator", seed=None):
    """The same scheduler, or pipeline, whose steps are one pass over the data each.

    The scheduler stays what it is: its class, `config`, `order`, the signatures of its methods, what it
    saves, and the attributes that its steps change. Its results are those of diffusers for the same noise,
    to the rounding of the arithmetic; halves compute in float32. What it is copied to is accelerated too.

    A step never waits for a GPU: the index of a time step that is an element of `timesteps` is known from its
    address. Only a first step's time step that was made elsewhere on the GPU is read, once. The coefficients
    are sent to the device once, at the first step after `timesteps` or `sigmas` changed.

    Args:
        scheduler_or_pipeline: a scheduler of diffusers, or an object with one as `scheduler`. Accelerated
            already, only its noise is changed.
        noise: "generator": what diffusers draws from the generators that `step` is given. "keyed": what the
            kernel draws, keyed by the seed, the sample and the step, whatever the batch size and the device.
        seed: for "keyed": an int, or a list with one for each sample. None: from the generators that `step`
            is given, one for each step.

    Returns:
        The argument.

    Raises:
        ValueError: naming what cannot be accelerated: the class, or the option and its value.
        TypeError: for an object that has no scheduler.
    """
    if noise not in ("generator", "keyed"):
        raise ValueError(f"noise: expected 'generator' or 'keyed', got {noise!r}")
    if seed is not None:
        if noise != "keyed":
            raise ValueError("seed: expected None, as noise='generator' draws from generators")
        for number in seed if isinstance(seed, (list, tuple)) else (seed,):
            if isinstance(number, bool) or not isinstance(number, int):
                raise TypeError(f"seed: expected an int or a list of them, got {type(number).__name__}")
    scheduler = _scheduler(scheduler_or_pipeline)
    if _framework.is_accelerated(scheduler):
        _framework.remove(scheduler)
    _framework.install(scheduler, noise, seed)
    return scheduler_or_pipeline


def unaccelerate(scheduler_or_pipeline):
    """The same scheduler, or pipeline, with its class's own methods again; in the middle of a run, too."""
    scheduler = _scheduler(scheduler_or_pipeline)
    if _framework.is_accelerated(scheduler):
        _framework.remove(scheduler)
    return scheduler_or_pipeline


def _scheduler(given):
    scheduler = getattr(given, "scheduler", given)
    if isinstance(given, type) or not (hasattr(scheduler, "step") and hasattr(scheduler, "config")):
        raise TypeError(
            f"scheduler_or_pipeline: expected a scheduler of diffusers or an object with one as `scheduler`, "
            f"got {_check.kind(given)}"
        )
    return scheduler


__all__ = ["accelerate", "unaccelerate"]
