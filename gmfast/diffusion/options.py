"""Arguments of `sample` and `capture`, checked in one place."""

import functools
import inspect
from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass, field
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor

from .. import _check
from .._progress import Progress
from ..ops.diffusion_step import check_options
from ._naming import public_name
from .plan import make_plan, resolve, with_cfg_pp
from .samplers import DPMAdaptiveSampler, Plan, Sampler
from .schedules import Schedule

Denoiser = Callable[..., Tensor | tuple[Tensor, Tensor]]
Seed = int | Tensor | torch.Generator | Sequence[int] | None
P = ParamSpec("P")
R = TypeVar("R")


@dataclass(frozen=True, eq=False, repr=False)
class SampleOptions:
    """Arguments of one call of `sample`, which documents them.

    Names are resolved and defaults that depend on other arguments are filled in, so that `sampler`,
    `schedule`, `device`, `dtype`, `known` and `plan` are always the objects that a run uses. No seed is drawn
    and no tensor is moved to the device here.

    Attributes:
        plan: Plan of the run.
    """

    denoiser: Denoiser
    shape: Sequence[int]
    _: KW_ONLY
    sampler: str | Sampler = "ddim"
    schedule: str | Schedule | None = None
    steps: int = 50
    prediction: str | None = None
    guidance: float | None = None
    seed: Seed = None
    device: torch.device | str | None = None
    dtype: torch.dtype | None = None
    progress: Progress = False
    callback: Callable[[int, Tensor, Tensor], object] | None = None
    trajectory: bool = False
    clip: float | None = None
    threshold: float | None = None
    threshold_max: float | None = None
    guidance_rescale: float = 0.0
    cfg_pp: bool = False
    condition: Any = None
    unconditional: Any = None
    init: Tensor | None = None
    latents: Tensor | None = None
    strength: float | Sequence[float] | Tensor = 1.0
    known: Tensor | None = None
    mask: Tensor | None = None
    times: Sequence[float] | Tensor | None = None
    graph: bool = False
    plan: Plan = field(init=False)

    def __post_init__(self) -> None:
        self._check_reports()
        if not callable(self.denoiser):
            raise TypeError(f"denoiser: expected a function of x and t, got {type(self.denoiser).__name__}")
        self._set(shape=tuple(_check.shape(self.shape)))
        self._check_guidance()
        self._check_data()
        like = next((v for v in (self.init, self.latents, self.known) if v is not None), None)
        self._set(
            device=self._resolved_device(like),
            dtype=self.dtype or (torch.float32 if like is None else like.dtype),
        )
        if self.dtype not in _check.FLOATING:
            expected = ", ".join(map(str, _check.FLOATING))
            raise TypeError(f"dtype: expected one of {expected}, got {self.dtype!r}")
        self._check_strength()
        self._make_plan()

    def _set(self, **values: Any) -> None:
        for name, value in values.items():
            object.__setattr__(self, name, value)

    @property
    def guided(self) -> bool:
        """True if steps combine two outputs of the denoiser."""
        return self.guidance is not None and (self.guidance != 1 or self.cfg_pp)

    @property
    def step_options(self) -> dict[str, Any]:
        """Keyword arguments of `gmfast.functional.diffusion_step` that are the same in every step."""
        options = dict(clip=self.clip, threshold=self.threshold, threshold_max=self.threshold_max)
        if self.guided and not self.cfg_pp:
            options.update(guidance=self.guidance, guidance_rescale=self.guidance_rescale)
        return options

    def _check_reports(self) -> None:
        if self.graph:
            for name in ("callback", "trajectory"):
                if getattr(self, name):
                    raise ValueError(f"graph: expected no {name}, which would have to leave the graph")
        if self.callback is not None and not callable(self.callback):
            raise TypeError(f"callback: expected a function or None, got {type(self.callback).__name__}")

    def _check_guidance(self) -> None:
        guidance = 1.0 if self.guidance is None else self.guidance
        check_options(guidance, self.guidance_rescale, self.clip, self.threshold, self.threshold_max)
        needs_guidance = {
            "guidance_rescale": self.guidance_rescale,
            "unconditional": self.unconditional is not None,
            "cfg_pp": self.cfg_pp,
        }
        for name, given in needs_guidance.items():
            if self.guidance is None and given:
                raise ValueError(f"guidance: expected a number, as `{name}` is given, got None")
        if self.cfg_pp:
            for name in ("guidance_rescale", "clip", "threshold"):
                if getattr(self, name):
                    raise ValueError(
                        f"{name}: expected none, as `cfg_pp` is given, got {getattr(self, name)}"
                    )
        if self.threshold is not None and self.clip is not None:
            raise ValueError(f"clip: expected None, as `threshold` is given, got {self.clip}")
        if self.threshold is None and self.threshold_max is not None:
            raise ValueError("threshold: expected a number, as `threshold_max` is given, got None")

    def _check_data(self) -> None:
        for name, value in {"init": self.init, "latents": self.latents, "known": self.known}.items():
            if value is not None:
                _check.floating(name, value)
                if tuple(value.shape) != self.shape:
                    raise ValueError(f"{name}: expected shape {self.shape}, got {tuple(value.shape)}")
        if self.init is not None and self.latents is not None:
            raise ValueError("latents: expected None, as `init` is given, got a tensor")
        mask = self.mask
        if mask is None:
            if self.known is not None:
                raise ValueError("mask: expected a tensor, as `known` is given, got None")
            return
        if self.known is None:
            if self.init is None:
                raise ValueError("known: expected a tensor, or `init`, as `mask` is given, got None")
            self._set(known=self.init)
        _check.tensor("mask", mask)
        if mask.is_complex():
            raise TypeError(f"mask: expected bool or numbers, got {str(mask.dtype)[6:]}")
        sizes = zip(reversed(mask.shape), reversed(self.shape), strict=False)
        if mask.dim() > len(self.shape) or any(n not in (1, size) for n, size in sizes):
            raise ValueError(
                f"mask: expected a shape that broadcasts to {self.shape}, got {tuple(mask.shape)}"
            )
        _check.values("mask", mask, 0, 1)

    def _resolved_device(self, like: Tensor | None) -> torch.device:
        device = self.device
        if device is None:
            if like is not None:
                device = like.device
            elif isinstance(self.seed, torch.Tensor):
                device = self.seed.device
            else:
                parameters = getattr(self.denoiser, "parameters", None)
                parameter = next(iter(parameters()), None) if callable(parameters) else None
                device = "cpu" if parameter is None else parameter.device
        device = torch.device(device)
        if device.type == "cuda" and device.index is None:
            device = torch.device("cuda", torch.cuda.current_device())
        return device

    def _check_strength(self) -> None:
        """Check `strength`; one for each sample becomes a float64 tensor."""
        strength = self.strength
        if isinstance(strength, torch.Tensor | list | tuple):
            try:
                on = strength.device if isinstance(strength, torch.Tensor) else "cpu"
                strength = torch.as_tensor(strength, dtype=torch.float64, device=on)
            except (TypeError, ValueError):
                raise TypeError(f"strength: expected numbers, got {strength!r}") from None
            if tuple(strength.shape) != self.shape[:1]:
                raise ValueError(f"strength: expected shape {self.shape[:1]}, got {tuple(strength.shape)}")
            if _check.values("strength", strength, 0, 1) and (strength == 0).any():
                raise ValueError("strength: expected numbers above 0, got 0")
            self._set(strength=strength)
        else:
            _check.real("strength", strength)
            if not 0 < strength <= 1:
                raise ValueError(f"strength: expected a number above 0 and at most 1, got {strength}")
        if self.init is None and (isinstance(strength, torch.Tensor) or strength != 1):
            raise ValueError("init: expected a tensor, as `strength` is given, got None")

    def _make_plan(self) -> None:
        sampler, schedule = resolve(self.sampler, self.schedule)
        prediction = self.prediction
        if prediction is None and isinstance(getattr(self.denoiser, "prediction", None), str):
            prediction = self.denoiser.prediction
        each = isinstance(self.strength, torch.Tensor)
        strength = 1.0 if each else float(self.strength)
        plan = make_plan(sampler, schedule, self.steps, prediction, self.times, strength)
        adaptive = isinstance(sampler, DPMAdaptiveSampler)
        if adaptive and self.graph:
            raise ValueError(
                "graph: expected False, as DPMAdaptive waits for the errors of its steps, got True"
            )
        if each and (adaptive or not plan.single or len(plan) != plan.steps):
            raise ValueError(
                f"strength: expected a number, as {public_name(type(sampler))} needs the steps before, got "
                "one for each sample"
            )
        if plan.rising and self.latents is None:
            raise ValueError(
                "times: expected at least two falling numbers, as no `latents` are given, got rising"
            )
        if self.cfg_pp:
            if not sampler.cfg_pp:
                raise ValueError(f"cfg_pp: expected False for {public_name(type(sampler))}, got True")
            plan = with_cfg_pp(plan, self.guidance)
        self._set(sampler=sampler, schedule=schedule, plan=plan)


def takes(options: Callable[P, object]) -> Callable[[Callable[..., R]], Callable[P, R]]:
    """Give a function of `(denoiser, shape, **options)` the signature of the class that checks them."""
    signature = inspect.signature(options)

    def decorate(function: Callable[..., R]) -> Callable[P, R]:
        @functools.wraps(function)
        def call(denoiser, shape, **keywords):
            for name in keywords:
                if name not in signature.parameters:
                    raise TypeError(f"{function.__name__}() got an unexpected keyword argument {name!r}")
            return function(denoiser, shape, **keywords)

        call.__signature__ = signature.replace(
            return_annotation=inspect.signature(function).return_annotation
        )
        return call

    return decorate
