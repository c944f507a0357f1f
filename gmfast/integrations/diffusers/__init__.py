"""diffusers' schedulers with their steps fused: one line, the same results.

pipeline = gmfast.integrations.diffusers.accelerate(pipeline)
"""

from collections.abc import Sequence
from typing import Any, TypeVar

from ... import _check
from . import install as _install
from .noise import GeneratorNoise, KeyedNoise

_SchedulerOrPipeline = TypeVar("_SchedulerOrPipeline")


def accelerate(
    scheduler_or_pipeline: _SchedulerOrPipeline,
    *,
    noise: str = "generator",
    seed: int | Sequence[int] | None = None,
) -> _SchedulerOrPipeline:
    """Fuse the steps of a scheduler, or of a pipeline's scheduler, in place: one pass over the data each.

    The scheduler keeps its class, `config`, `order`, the signatures of its methods, what it saves, and the
    attributes that its steps change. Results are those of diffusers for the same noise, up to rounding; half
    precision is computed in float32. Copies of the scheduler are accelerated too.

    No step synchronises with a GPU: the index of a timestep that is an element of `timesteps` is known from
    its address. Only a first timestep from elsewhere on the GPU is read, once. Coefficients are sent to the
    device once, at the first step after `timesteps` or `sigmas` changed.

    Args:
        scheduler_or_pipeline: a scheduler of diffusers, or an object with one as `scheduler`. If it is
            accelerated already, only its noise changes.
        noise: "generator": drawn as diffusers does from the generators that `step` is given. "keyed": drawn
            by the kernel, keyed by seed, sample and step, whatever the batch size and the device.
        seed: for "keyed": an int, or a list of one for each sample. None: each step draws one from the
            generators that it is given.

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
    if _install.is_accelerated(scheduler):
        _install.remove(scheduler)
    _install.install(scheduler, KeyedNoise(seed) if noise == "keyed" else GeneratorNoise())
    return scheduler_or_pipeline


def unaccelerate(scheduler_or_pipeline: _SchedulerOrPipeline) -> _SchedulerOrPipeline:
    """Give a scheduler, or a pipeline's scheduler, its class's own methods again, even within a run.

    Args:
        scheduler_or_pipeline: as of `accelerate`; unchanged if it is not accelerated.

    Returns:
        The argument.

    Raises:
        TypeError: for an object that has no scheduler.
    """
    scheduler = _scheduler(scheduler_or_pipeline)
    if _install.is_accelerated(scheduler):
        _install.remove(scheduler)
    return scheduler_or_pipeline


def _scheduler(given: Any) -> Any:
    scheduler = getattr(given, "scheduler", given)
    if isinstance(given, type) or not (hasattr(scheduler, "set_timesteps") and hasattr(scheduler, "config")):
        raise TypeError(
            f"scheduler_or_pipeline: expected a scheduler of diffusers or an object with one as `scheduler`, "
            f"got {_check.kind(given)}"
        )
    return scheduler


__all__ = ["accelerate", "unaccelerate"]
