"""Drop-in replacement of `GaussianDiffusion` of improved-diffusion and guided-diffusion, with fused steps.

Arguments, dictionaries, results and the use of torch's global generator are the original's::

    from gmfast.integrations import guided_diffusion as gd  # from . import gaussian_diffusion as gd
    from gmfast.integrations.guided_diffusion import SpacedDiffusion, space_timesteps  # from .respace

Sampling also takes a `seed=`: an int, an int64 tensor or a `torch.Generator`, in the loops also one for each
sample. The kernel then draws the noise, the same for sample *i* whatever the batch size and the device. No
step synchronises with the device. Needs NumPy: constants are NumPy arrays, as in the original.

From Ho et al. (2020, arXiv:2006.11239), Nichol and Dhariwal (2021, arXiv:2102.09672), and Dhariwal and Nichol
(2021, arXiv:2105.05233).
"""

import enum
import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .. import _check, _library, _seed, diffusion
from .. import functional as GF
from ..diffusion import COLUMNS, samplers
from ..ops.discretized_gaussian_nll import FORMULATIONS
from ..ops.torch_normal import torch_normal_like

__all__ = [
    "GaussianDiffusion",
    "LossType",
    "ModelMeanType",
    "ModelVarType",
    "SpacedDiffusion",
    "get_named_beta_schedule",
    "space_timesteps",
]

Model = Callable[..., Tensor]
Seed = int | Tensor | torch.Generator | Sequence[int] | None


class ModelMeanType(enum.Enum):
    """The model's prediction."""

    PREVIOUS_X = enum.auto()  #: the mean of x at the previous timestep
    START_X = enum.auto()  #: the data
    EPSILON = enum.auto()  #: the noise


class ModelVarType(enum.Enum):
    """The variance of a step; learned ones are in the second half of the model's output channels."""

    LEARNED = enum.auto()  #: the model's output is the log-variance
    FIXED_SMALL = enum.auto()  #: the posterior's variance given the data
    FIXED_LARGE = enum.auto()  #: beta
    LEARNED_RANGE = enum.auto()  #: the output, from -1 to 1, interpolates the logarithms of those two


class LossType(enum.Enum):
    """The training loss.

    MSE is the mean squared error, plus the variational bound if variances are learned; KL is the bound. The
    RESCALED ones estimate the bound's sum over all timesteps.
    """

    MSE = enum.auto()
    RESCALED_MSE = enum.auto()
    KL = enum.auto()
    RESCALED_KL = enum.auto()

    def is_vb(self) -> bool:
        """True if the loss is the variational bound."""
        return self in (LossType.KL, LossType.RESCALED_KL)


def get_named_beta_schedule(schedule_name: str, num_diffusion_timesteps: int) -> np.ndarray:
    """Return β of each timestep, a float64 array.

    Args:
        schedule_name: "linear" (Ho et al., 2020; scaled to the same total noise for other than 1000 steps) or
            "cosine" (Nichol and Dhariwal, 2021).
        num_diffusion_timesteps: T.

    Raises:
        NotImplementedError: for another schedule.
    """
    if schedule_name == "linear":
        scale = 1000 / num_diffusion_timesteps
        return np.linspace(scale * 1e-4, scale * 0.02, num_diffusion_timesteps, dtype=np.float64)
    if schedule_name == "cosine":
        kept = diffusion.cosine(num_diffusion_timesteps).alphas_cumprod.numpy()
        return 1 - kept / np.append(1.0, kept[:-1])
    raise NotImplementedError(f"schedule_name: expected 'linear' or 'cosine', got {schedule_name!r}")


def space_timesteps(num_timesteps: int, section_counts: Sequence[int] | str) -> set[int]:
    """Choose a subset of the timesteps for faster sampling.

    Args:
        num_timesteps: T.
        section_counts: a list, or a string with commas: the timesteps are divided into that many equal
            sections, and of each section its count is chosen, evenly spaced from its first to its last.
            "ddimN": N timesteps with an integer stride, from 0.

    Raises:
        ValueError: for a count larger than its section, or an N that no stride gives.
    """
    if isinstance(section_counts, str) and section_counts.startswith("ddim"):
        count = int(section_counts[4:])
        for stride in range(1, num_timesteps):
            if math.ceil(num_timesteps / stride) == count:
                return set(range(0, num_timesteps, stride))
        raise ValueError(
            f"section_counts: expected a count that some stride through {num_timesteps} time steps gives, "
            f"got {section_counts!r}"
        )
    if isinstance(section_counts, str):
        section_counts = [int(count) for count in section_counts.split(",")]
    size, longer = divmod(num_timesteps, len(section_counts))
    steps, first = set(), 0
    for section, count in enumerate(section_counts):
        length = size + (section < longer)
        if count > length:
            raise ValueError(f"section_counts: expected at most {length} of a section, got {count}")
        stride = (length - 1) / (count - 1) if count > 1 else 1
        places = accumulate([0.0, *[stride] * (count - 1)][:count])
        steps.update(first + round(place) for place in places)
        first += length
    return steps


class GaussianDiffusion:
    """The forward process, denoising steps, losses and variational bound of a diffusion.

    A `model` is called as `model(x, t, **model_kwargs)` with t `(B,)`. `t` of all methods is an integer
    tensor `(B,)`. Sums of x and the model's output are computed in float32 at least. Where a gradient is
    needed, steps are plain PyTorch.

    Methods raise ValueError for shapes and values, TypeError for dtypes.

    Args:
        betas: `(T,)`, in (0, 1].
        model_mean_type, model_var_type, loss_type: members of the enumerations here, or of ones with the same
            names.
        rescale_timesteps: whether the model gets timesteps scaled to a range of 1000.
        formulation: of the decoder in the bound, as in `gmfast.functional.discretized_gaussian_nll`; the
            original's is "improved_ddpm".
    """

    def __init__(
        self,
        *,
        betas: Sequence[float] | np.ndarray,
        model_mean_type: enum.Enum,
        model_var_type: enum.Enum,
        loss_type: enum.Enum,
        rescale_timesteps: bool = False,
        formulation: str = "improved_ddpm",
    ):
        self.model_mean_type = _member("model_mean_type", ModelMeanType, model_mean_type)
        self.model_var_type = _member("model_var_type", ModelVarType, model_var_type)
        self.loss_type = _member("loss_type", LossType, loss_type)
        self.rescale_timesteps = rescale_timesteps
        _check.one_of("formulation", formulation, FORMULATIONS)
        self.formulation = formulation

        betas = np.array(betas, dtype=np.float64)
        if betas.ndim != 1 or not len(betas) or not ((betas > 0) & (betas <= 1)).all():
            raise ValueError("betas: expected (T,) numbers above 0 and at most 1")
        self.betas = betas
        self.num_timesteps = len(betas)
        kept = np.cumprod(1 - betas)
        self.alphas_cumprod = kept
        self.alphas_cumprod_prev = np.append(1.0, kept[:-1])
        self.alphas_cumprod_next = np.append(kept[1:], 0.0)
        self.sqrt_alphas_cumprod = np.sqrt(kept)
        self.sqrt_one_minus_alphas_cumprod = np.sqrt(1 - kept)
        self.log_one_minus_alphas_cumprod = np.log(1 - kept)
        with np.errstate(divide="ignore"):  # the last may be 0
            self.sqrt_recip_alphas_cumprod = np.sqrt(1 / kept)
            self.sqrt_recipm1_alphas_cumprod = np.sqrt(1 / kept - 1)
        before = self.alphas_cumprod_prev
        self.posterior_variance = betas * (1 - before) / (1 - kept)
        # The first is 0; its logarithm is replaced by the second's.
        first = self.posterior_variance[1] if len(betas) > 1 else betas[0]
        self.posterior_log_variance_clipped = np.log(np.append(first, self.posterior_variance[1:]))
        self.posterior_mean_coef1 = betas * np.sqrt(before) / (1 - kept)
        self.posterior_mean_coef2 = (1 - before) * np.sqrt(1 - betas) / (1 - kept)
        self._variances = {  # fixed ones and their logarithms
            ModelVarType.FIXED_SMALL: (self.posterior_variance, self.posterior_log_variance_clipped),
            ModelVarType.FIXED_LARGE: (np.append(first, betas[1:]), np.log(np.append(first, betas[1:]))),
        }
        self._schedule = diffusion.VariancePreserving(kept)
        self._tables = {}

    # ---- Forward process --------------------------------------------------------------------------------

    def q_mean_variance(
        self,
        x_start: Tensor,
        t: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return mean, variance and log-variance of q(x_t | x_0)."""
        mean = self._column("sqrt_alphas_cumprod", t, x_start) * x_start
        return (
            mean,
            self._column("one_minus_alphas_cumprod", t, x_start).expand(x_start.shape),
            self._column("log_one_minus_alphas_cumprod", t, x_start).expand(x_start.shape),
        )

    def q_sample(
        self,
        x_start: Tensor,
        t: Tensor,
        noise: Tensor | None = None,
    ) -> Tensor:
        """Sample x_t given the data, by `gmfast.functional.q_sample`; `noise` None draws it."""
        if noise is None:
            noise = torch_normal_like(x_start)
        x_start = _wide(x_start, noise)
        alpha, sigma = (
            self._column(f"sqrt_{name}", t).to(x_start.dtype)
            for name in ("alphas_cumprod", "one_minus_alphas_cumprod")
        )
        return GF.q_sample(x_start, alpha, sigma, noise=noise)

    def q_posterior_mean_variance(
        self,
        x_start: Tensor,
        x_t: Tensor,
        t: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return mean, variance and clipped log-variance of q(x_(t-1) | x_t, x_0)."""
        x = _wide(x_t, x_start)
        return (
            GF.diffusion_step(x, x_start, self._table("ddpm", "x0", x.device), step=_times(t)),
            self._column("posterior_variance", t, x).expand(x.shape),
            self._column("posterior_log_variance_clipped", t, x).expand(x.shape),
        )

    # ---- Steps ------------------------------------------------------------------------------------------

    def p_mean_variance(
        self,
        model: Model,
        x: Tensor,
        t: Tensor,
        clip_denoised: bool = True,
        denoised_fn: Callable[[Tensor], Tensor] | None = None,
        model_kwargs: dict[str, Any] | None = None,
    ) -> dict[str, Tensor]:
        """Compute the model's distribution of x_(t-1) given x_t.

        Args:
            model: the model.
            x: x_t.
            t: timesteps.
            clip_denoised: whether the predicted data are clamped to [-1, 1].
            denoised_fn: function applied to the predicted data before.
            model_kwargs: further arguments of the model.

        Returns:
            A dictionary of "mean", "variance", "log_variance", and the predicted data "pred_xstart".
        """
        output, v = self._call(model, x, t, model_kwargs)
        mean, x0 = self._step("ddpm", output, x, t, clip_denoised, denoised_fn)
        variance, log_variance = self._variance(v, t, mean)
        return {"mean": mean, "variance": variance, "log_variance": log_variance, "pred_xstart": x0}

    def condition_mean(
        self,
        cond_fn: Model,
        p_mean_var: dict[str, Tensor],
        x: Tensor,
        t: Tensor,
        model_kwargs: dict[str, Any] | None = None,
    ) -> Tensor:
        """Shift the mean by the variance times `cond_fn(x, t, **model_kwargs)`, the gradient of ln p(y | x).

        From Sohl-Dickstein et al. (2015, arXiv:1503.03585).
        """
        gradient = cond_fn(x, self._scale_timesteps(t), **(model_kwargs or {}))
        return torch.addcmul(p_mean_var["mean"].float(), p_mean_var["variance"], gradient.float())

    def condition_score(
        self,
        cond_fn: Model,
        p_mean_var: dict[str, Tensor],
        x: Tensor,
        t: Tensor,
        model_kwargs: dict[str, Any] | None = None,
    ) -> dict[str, Tensor]:
        """Add `cond_fn(x, t, **model_kwargs)` to the score in what `p_mean_variance` returned.

        From Song et al. (2021, arXiv:2011.13456).
        """
        gradient = cond_fn(x, self._scale_timesteps(t), **(model_kwargs or {}))
        out = dict(p_mean_var)
        out["pred_xstart"] = self._sum("score", p_mean_var["pred_xstart"], gradient, t)
        out["mean"] = self.q_posterior_mean_variance(out["pred_xstart"], x, t)[0]
        return out

    def p_sample(
        self,
        model: Model,
        x: Tensor,
        t: Tensor,
        clip_denoised: bool = True,
        denoised_fn: Callable[[Tensor], Tensor] | None = None,
        cond_fn: Model | None = None,
        model_kwargs: dict[str, Any] | None = None,
        *,
        seed: Seed = None,
    ) -> dict[str, Tensor]:
        """Sample x_(t-1) given x_t (DDPM).

        Args:
            model: the model.
            x: x_t.
            t: timesteps.
            clip_denoised: whether the predicted data are clamped to [-1, 1].
            denoised_fn: function applied to the predicted data before.
            cond_fn: as of `condition_mean`.
            model_kwargs: further arguments of the model and of `cond_fn`.
            seed: of noise that the kernel draws; None draws from torch's global generator.

        Returns:
            A dictionary of "sample" and "pred_xstart".
        """
        if cond_fn is None and self._ours:
            output, v = self._call(model, x, t, model_kwargs)
            noise = None if seed is not None else torch_normal_like(x)
            sample, x0 = self._step(
                "ddpm", output, x, t, clip_denoised, denoised_fn, variance=v, noise=noise, seed=seed
            )
            return {"sample": sample, "pred_xstart": x0}
        out = self.p_mean_variance(model, x, t, clip_denoised, denoised_fn, model_kwargs)
        noise = None if seed is not None else torch_normal_like(x)
        if cond_fn is not None:
            out["mean"] = self.condition_mean(cond_fn, out, x, t, model_kwargs=model_kwargs)
        sample = self._sum("noise", out["mean"], out["mean"], t, out["log_variance"], noise, seed)
        return {"sample": sample, "pred_xstart": out["pred_xstart"]}

    def ddim_sample(
        self,
        model: Model,
        x: Tensor,
        t: Tensor,
        clip_denoised: bool = True,
        denoised_fn: Callable[[Tensor], Tensor] | None = None,
        cond_fn: Model | None = None,
        model_kwargs: dict[str, Any] | None = None,
        eta: float = 0.0,
        *,
        seed: Seed = None,
    ) -> dict[str, Tensor]:
        """Sample x_(t-1) given x_t by DDIM (Song et al., 2021, arXiv:2010.02502), as `p_sample`."""
        if cond_fn is None and self._ours:
            output, _ = self._call(model, x, t, model_kwargs)
            noise = None if seed is not None else torch_normal_like(x)
            noise = noise if eta else None  # drawn in any case, as in the original
            sample, x0 = self._step(
                "ddim", output, x, t, clip_denoised, denoised_fn, noise=noise, seed=seed, eta=eta
            )
            return {"sample": sample, "pred_xstart": x0}
        out = self.p_mean_variance(model, x, t, clip_denoised, denoised_fn, model_kwargs)
        if cond_fn is not None:
            out = self.condition_score(cond_fn, out, x, t, model_kwargs=model_kwargs)
        noise = None if seed is not None else torch_normal_like(x)
        x, x0 = _wide(x, out["pred_xstart"]), out["pred_xstart"]
        table = self._table("ddim", "x0", x.device, eta)
        sample = GF.diffusion_step(x, x0, table, step=_times(t), noise=noise, seed=seed)
        return {"sample": sample, "pred_xstart": x0}

    def ddim_reverse_sample(
        self,
        model: Model,
        x: Tensor,
        t: Tensor,
        clip_denoised: bool = True,
        denoised_fn: Callable[[Tensor], Tensor] | None = None,
        model_kwargs: dict[str, Any] | None = None,
        eta: float = 0.0,
    ) -> dict[str, Tensor]:
        """Compute x_(t+1) given x_t by DDIM without noise, as `p_sample`; `eta` must be 0."""
        if eta != 0:
            raise ValueError(f"eta: expected 0, as only the path without noise has a way back, got {eta}")
        if self._ours:
            output, _ = self._call(model, x, t, model_kwargs)
            sample, x0 = self._step("reverse", output, x, t, clip_denoised, denoised_fn)
        else:
            x0 = self.p_mean_variance(model, x, t, clip_denoised, denoised_fn, model_kwargs)["pred_xstart"]
            x = _wide(x, x0)
            sample = GF.diffusion_step(x, x0, self._table("reverse", "x0", x.device), step=_times(t))
        return {"sample": sample, "pred_xstart": x0}

    # ---- Loops ------------------------------------------------------------------------------------------

    def p_sample_loop(
        self,
        model: Model,
        shape: Sequence[int],
        noise: Tensor | None = None,
        clip_denoised: bool = True,
        denoised_fn: Callable[[Tensor], Tensor] | None = None,
        cond_fn: Model | None = None,
        model_kwargs: dict[str, Any] | None = None,
        device: torch.device | str | None = None,
        progress: bool = False,
        *,
        seed: Seed = None,
    ) -> Tensor:
        """Generate samples by `p_sample` at all timesteps; arguments as of `p_sample_loop_progressive`."""
        passed = self.p_sample_loop_progressive(
            model,
            shape,
            noise=noise,
            clip_denoised=clip_denoised,
            denoised_fn=denoised_fn,
            cond_fn=cond_fn,
            model_kwargs=model_kwargs,
            device=device,
            progress=progress,
            **({} if seed is None else {"seed": seed}),
        )
        return deque(passed, maxlen=1)[0]["sample"]

    def p_sample_loop_progressive(
        self,
        model: Model,
        shape: Sequence[int],
        noise: Tensor | None = None,
        clip_denoised: bool = True,
        denoised_fn: Callable[[Tensor], Tensor] | None = None,
        cond_fn: Model | None = None,
        model_kwargs: dict[str, Any] | None = None,
        device: torch.device | str | None = None,
        progress: bool = False,
        *,
        seed: Seed = None,
    ) -> Iterator[dict[str, Tensor]]:
        """Yield what `p_sample` returns at each timestep.

        Args:
            model: as of `p_sample`.
            shape: of the samples, (B, C, *S).
            noise: x at the last timestep; None draws it.
            clip_denoised: as of `p_sample`.
            denoised_fn: as of `p_sample`.
            cond_fn: as of `p_sample`.
            model_kwargs: as of `p_sample`.
            device: of the samples; None: that of the model's parameters.
            progress: whether to show a progress bar (tqdm).
            seed: as of `p_sample`, or a seed for each sample.
        """
        return self._loop(
            self.p_sample,
            model,
            shape,
            noise,
            device,
            progress,
            seed,
            clip_denoised=clip_denoised,
            denoised_fn=denoised_fn,
            cond_fn=cond_fn,
            model_kwargs=model_kwargs,
        )

    def ddim_sample_loop(
        self,
        model: Model,
        shape: Sequence[int],
        noise: Tensor | None = None,
        clip_denoised: bool = True,
        denoised_fn: Callable[[Tensor], Tensor] | None = None,
        cond_fn: Model | None = None,
        model_kwargs: dict[str, Any] | None = None,
        device: torch.device | str | None = None,
        progress: bool = False,
        eta: float = 0.0,
        *,
        seed: Seed = None,
    ) -> Tensor:
        """Generate samples by `ddim_sample`; arguments as of `ddim_sample_loop_progressive`."""
        passed = self.ddim_sample_loop_progressive(
            model,
            shape,
            noise=noise,
            clip_denoised=clip_denoised,
            denoised_fn=denoised_fn,
            cond_fn=cond_fn,
            model_kwargs=model_kwargs,
            device=device,
            progress=progress,
            eta=eta,
            **({} if seed is None else {"seed": seed}),
        )
        return deque(passed, maxlen=1)[0]["sample"]

    def ddim_sample_loop_progressive(
        self,
        model: Model,
        shape: Sequence[int],
        noise: Tensor | None = None,
        clip_denoised: bool = True,
        denoised_fn: Callable[[Tensor], Tensor] | None = None,
        cond_fn: Model | None = None,
        model_kwargs: dict[str, Any] | None = None,
        device: torch.device | str | None = None,
        progress: bool = False,
        eta: float = 0.0,
        *,
        seed: Seed = None,
    ) -> Iterator[dict[str, Tensor]]:
        """Yield what `ddim_sample` returns at each timestep; arguments as of `p_sample_loop_progressive`."""
        return self._loop(
            self.ddim_sample,
            model,
            shape,
            noise,
            device,
            progress,
            seed,
            clip_denoised=clip_denoised,
            denoised_fn=denoised_fn,
            cond_fn=cond_fn,
            model_kwargs=model_kwargs,
            eta=eta,
        )

    def _loop(self, step, model, shape, x, device, progress, seed, **options):
        if device is None:
            if not isinstance(model, torch.nn.Module):
                raise ValueError(f"device: expected one, as the model is no nn.Module, got {device}")
            device = next(model.parameters()).device
        if not isinstance(shape, tuple | list):
            raise TypeError(f"shape: expected a tuple or a list, got {type(shape).__name__}")
        if seed is not None:
            seed = options["seed"] = _seed.of_batch(seed, shape[0], torch.device(device))
        if x is None and seed is None:
            x = torch.randn(*shape, device=device)
        elif x is None:
            x = GF.standard_normal(tuple(shape), seed=seed, dtype=torch.get_default_dtype(), device=device)
        times = torch.arange(self.num_timesteps, device=device)[:, None].expand(-1, shape[0])
        times = times.contiguous().unbind()[::-1]
        if progress:
            from tqdm.auto import tqdm

            times = tqdm(times)
        for t in times:
            with torch.no_grad():
                out = step(model, x, t, **options)
            yield out
            x = out["sample"]

    # ---- Losses -----------------------------------------------------------------------------------------

    def _vb_terms_bpd(self, model, x_start, x_t, t, clip_denoised=True, model_kwargs=None):
        """Return the bound's term at t, `(B,)`, in bits per dimension, as "output", and "pred_xstart"."""
        out = self.p_mean_variance(model, x_t, t, clip_denoised=clip_denoised, model_kwargs=model_kwargs)
        true_mean, _, true_log_variance = self.q_posterior_mean_variance(x_start, x_t, t)
        log_variance = _unexpanded(out["log_variance"])
        kl = GF.gaussian_kl(true_mean, _unexpanded(true_log_variance), out["mean"], log_variance)
        decoder = GF.discretized_gaussian_nll(
            x_start, out["mean"], 0.5 * log_variance, formulation=self.formulation
        )
        output = torch.where(t == 0, _bits(decoder), _bits(kl))
        return {"output": output, "pred_xstart": out["pred_xstart"]}

    def training_losses(
        self,
        model: Model,
        x_start: Tensor,
        t: Tensor,
        model_kwargs: dict[str, Any] | None = None,
        noise: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Compute the loss at t.

        Predicted noise with a learned range is computed by `gmfast.functional.diffusion_hybrid_loss`.

        Args:
            model: the model.
            x_start: the data.
            t: timesteps.
            model_kwargs: further arguments of the model.
            noise: like the data; None draws it.

        Returns:
            A dictionary of "loss" `(B,)` and, for the mean squared error, its terms "mse" and, if variances
            are learned, "vb".
        """
        if noise is None:
            noise = torch_normal_like(x_start)
        x_t = self.q_sample(x_start, t, noise=noise)
        if self.loss_type.is_vb():
            loss = self._vb_terms_bpd(model, x_start, x_t, t, clip_denoised=False, model_kwargs=model_kwargs)[
                "output"
            ]
            return {"loss": loss * self.num_timesteps if self.loss_type == LossType.RESCALED_KL else loss}
        output, v = self._call(model, x_t, t, model_kwargs, whole=True)
        terms = {}
        rescale = self.num_timesteps / 1000 if self.loss_type == LossType.RESCALED_MSE else 1.0
        if (
            self.model_mean_type == ModelMeanType.EPSILON
            and self.model_var_type == ModelVarType.LEARNED_RANGE
            and self._ours
        ):
            table = self._table("ddpm", "epsilon", x_t.device)
            terms["mse"], vb = GF.diffusion_hybrid_loss(
                output, x_start, x_t, noise, table, _times(t), formulation=self.formulation
            )
            terms["vb"] = vb * rescale
        else:
            if v is not None:
                output, v = output.chunk(2, 1)
                frozen = torch.cat([output.detach(), v], 1)  # the bound trains the variance alone
                vb = self._vb_terms_bpd(lambda *_: frozen, x_start, x_t, t, clip_denoised=False)["output"]
                terms["vb"] = vb * rescale
            if self.model_mean_type == ModelMeanType.PREVIOUS_X:
                target = self.q_posterior_mean_variance(x_start, x_t, t)[0]
            else:
                target = x_start if self.model_mean_type == ModelMeanType.START_X else noise
            terms["mse"] = _mean((target - output).square())
        terms["loss"] = terms["mse"] + terms["vb"] if "vb" in terms else terms["mse"]
        return terms

    def _prior_bpd(self, x_start):
        """Return the bound's prior term KL(q(x_T | x_0) || N(0, 1)), `(B,)`, in bits per dimension."""
        t = torch.full(x_start.shape[:1], self.num_timesteps - 1, device=x_start.device)
        mean, _, log_variance = self.q_mean_variance(x_start, t)
        return _bits(GF.gaussian_kl(mean, _unexpanded(log_variance), 0.0, 0.0))

    @torch.no_grad()
    def calc_bpd_loop(
        self,
        model: Model,
        x_start: Tensor,
        clip_denoised: bool = True,
        model_kwargs: dict[str, Any] | None = None,
    ) -> dict[str, Tensor]:
        """Compute the variational bound in bits per dimension.

        Args:
            model: the model.
            x_start: the data.
            clip_denoised: whether the predicted data are clamped to [-1, 1].
            model_kwargs: further arguments of the model.

        Returns:
            A dictionary of "total_bpd" and "prior_bpd" `(B,)`, and for each timestep from the last to the
            first, `(B, T)`, "vb", "xstart_mse" and "mse" (of the noise).
        """
        device = x_start.device
        times = torch.arange(self.num_timesteps, device=device)[:, None].expand(-1, len(x_start))
        terms = {"vb": [], "xstart_mse": [], "mse": []}
        for t in times.contiguous().unbind()[::-1]:
            noise = torch_normal_like(x_start)
            x_t = self.q_sample(x_start, t, noise=noise)
            out = self._vb_terms_bpd(
                model, x_start, x_t, t, clip_denoised=clip_denoised, model_kwargs=model_kwargs
            )
            terms["vb"].append(out["output"])
            terms["xstart_mse"].append(_mean((out["pred_xstart"] - x_start).square()))
            epsilon = self._predict_eps_from_xstart(x_t, t, out["pred_xstart"])
            terms["mse"].append(_mean((epsilon - noise).square()))
        terms = {name: torch.stack(values, 1) for name, values in terms.items()}
        prior = self._prior_bpd(x_start)
        return {"total_bpd": terms["vb"].sum(1) + prior, "prior_bpd": prior, **terms}

    # ---- Parts ------------------------------------------------------------------------------------------

    def _predict_xstart_from_eps(self, x_t, t, eps):
        return self._sum("x0 of epsilon", x_t, eps, t)

    def _predict_xstart_from_xprev(self, x_t, t, xprev):
        return self._sum("x0 of x before", x_t, xprev, t)

    def _predict_eps_from_xstart(self, x_t, t, pred_xstart):
        return self._sum("epsilon of x0", x_t, pred_xstart, t)

    def _scale_timesteps(self, t):
        return t.float() * (1000.0 / self.num_timesteps) if self.rescale_timesteps else t

    def _wrap_model(self, model):
        return model

    @property
    def _ours(self):
        """True if `p_mean_variance` is not overridden by a subclass, so that a step need not call it."""
        return type(self).p_mean_variance in (
            GaussianDiffusion.p_mean_variance,
            SpacedDiffusion.p_mean_variance,
        )

    @property
    def _learned(self):
        return self.model_var_type in (ModelVarType.LEARNED, ModelVarType.LEARNED_RANGE)

    def _call(self, model, x, t, model_kwargs, whole=False):
        """Return the model's prediction (`whole`: its whole output), and its variance output or None."""
        if t.shape != x.shape[:1]:
            raise ValueError(f"t: expected shape ({x.shape[0]},), got {tuple(t.shape)}")
        _check.values("t", t, 0, self.num_timesteps - 1)
        model = self._wrap_model(model)
        output = model(x, self._scale_timesteps(t), **(model_kwargs or {}))
        channels = x.shape[1] * (2 if self._learned else 1)
        expected = (x.shape[0], channels, *x.shape[2:])
        if tuple(output.shape) != expected:
            raise ValueError(f"model: expected an output of shape {expected}, got {tuple(output.shape)}")
        if not self._learned:
            return output, None
        prediction, v = output.chunk(2, 1)
        return output if whole else prediction, v

    def _variance(self, v, t, x):
        """Return the variance and its logarithm, in the shape of x."""
        if v is None:
            pair = (f"{name}{self.model_var_type.name}" for name in ("", "log "))
            return tuple(self._column(name, t, x).expand(x.shape) for name in pair)
        log_variance = v
        if self.model_var_type == ModelVarType.LEARNED_RANGE:
            middle, half = (self._column(name, t, x) for name in ("log middle", "log half"))
            log_variance = torch.addcmul(middle, half, v)
        return log_variance.exp(), log_variance

    def _step(self, kind, output, x, t, clip, denoised_fn, *, noise=None, seed=None, variance=None, eta=0.0):
        """Return the step's result and the predicted data."""
        x, step = _wide(x, output), _times(t)
        prediction = self.model_mean_type.name
        options = dict(clip=1.0 if clip else None)
        after = None
        if denoised_fn is not None:
            if prediction == "PREVIOUS_X" and kind == "ddpm":  # the prediction is the mean, whatever x0 is
                after, options = denoised_fn, {}
            else:
                x0 = output
                if prediction == "EPSILON":
                    x0 = self._predict_xstart_from_eps(x, t, output)
                elif prediction == "PREVIOUS_X":
                    x0 = self._predict_xstart_from_xprev(x, t, output)
                output, prediction = denoised_fn(x0), "x0"
                x = _wide(x, output)
        result, x0 = GF.diffusion_step(
            x,
            output,
            self._table(kind, prediction, x.device, eta),
            step=step,
            variance=variance,
            noise=noise,
            seed=seed,
            x0=True,
            **options,
        )
        if after is not None:
            x0 = after(x0)
            x0 = x0.clamp(-1, 1) if clip else x0
        return result, x0

    def _sum(self, kind, x, m, t, variance=None, noise=None, seed=None):
        """Compute the linear combination of x and m that `_sums` defines."""
        x = _wide(x, m)
        table = self._table(kind, None, x.device)
        return GF.diffusion_step(x, m, table, step=_times(t), variance=variance, noise=noise, seed=seed)

    def _table(self, kind, prediction, device, eta=0.0):
        """Return the coefficient table `(T, 20)`, row t for x at t."""
        key = kind, prediction, device, float(eta)
        return self._kept(key, device, lambda: self._make_table(kind, prediction, eta))

    def _kept(self, key, device, make):
        """Return the tensor kept under `key`, made outside inference mode if there is none yet."""
        if key not in self._tables:
            _library.leave_graph(
                "diffusion: expected a call before fullgraph=True, as the first one makes tables"
            )
            with torch.inference_mode(False), torch.device("cpu"):
                self._tables[key] = make().to(device)
        return self._tables[key]

    def _make_table(self, kind, prediction, eta):
        steps = range(self.num_timesteps)
        columns = self._sums(kind)
        if columns is not None:
            return _table_of(self.num_timesteps, columns)
        known = {"EPSILON": "epsilon", "epsilon": "epsilon"}.get(prediction, "x0")
        columns = {}
        if kind == "reverse":
            levels = [self._schedule.level(t) for t in steps]
            levels.append(diffusion.Level(float(len(levels)), 0.0, 1.0, 0.0))
            rows = list(samplers.EulerSampler().rows(self._schedule, levels))  # DDIM without noise
            table = diffusion.Plan(rows, known, levels[0]).table(torch.device("cpu"))[:-1].clone()
        else:
            variance = {"FIXED_SMALL": "small", "FIXED_LARGE": "large"}
            variance = variance.get(self.model_var_type.name, "learned_range")
            sampler = samplers.DDPMSampler(variance) if kind == "ddpm" else samplers.DDIMSampler(eta)
            plan = sampler.plan(self._schedule, [*reversed(steps), -1], known)
            table = plan.table(torch.device("cpu"))[:-1].flip(0)
            if kind == "ddpm" and self.model_var_type == ModelVarType.LEARNED:
                columns |= {"log_var_min": -1.0, "log_var_max": 1.0}  # v is the logarithm
        if prediction == "PREVIOUS_X":
            given = self._sums("x0 of x before")
            columns |= {"x0_x": given["x"], "x0_m": given["m"]}
            if kind == "ddpm":
                columns |= {"x": 0.0, "x0": 0.0, "m": 1.0}
        return _table_of(table, columns)

    def _sums(self, kind):
        """Return the columns of a linear combination of x, m and noise; None for another kind."""
        recip, recipm1 = self.sqrt_recip_alphas_cumprod, self.sqrt_recipm1_alphas_cumprod
        coef1, coef2 = self.posterior_mean_coef1, self.posterior_mean_coef2
        if kind == "noise":  # with the standard deviation from a log-variance
            noisy = (np.arange(self.num_timesteps) > 0).astype(np.float64)
            return {"x": 1.0, "noise": noisy, "log_var_min": -1.0, "log_var_max": 1.0}
        with np.errstate(all="ignore"):
            return {
                "x0 of epsilon": {"x": recip, "m": -recipm1},
                "epsilon of x0": {"x": recip / recipm1, "m": -1 / recipm1},
                "x0 of x before": {"x": -coef2 / coef1, "m": 1 / coef1},
                "score": {"x": 1.0, "m": (1 - self.alphas_cumprod) * recip},
            }.get(kind)

    def _column(self, name, t, x=None):
        """Return constants at t in float32, `(B,)`, or `(B, 1, ...)` to broadcast with x."""
        values = self._kept(
            (name, t.device), t.device, lambda: torch.from_numpy(self._constants(name)).float()
        )[_times(t)]
        return values if x is None else values.reshape(-1, *[1] * (x.dim() - 1))

    def _constants(self, name):
        if name in ("log middle", "log half"):
            low, high = self.posterior_log_variance_clipped, np.log(self.betas)
            return 0.5 * (high + low) if name == "log middle" else 0.5 * (high - low)
        if name == "one_minus_alphas_cumprod":
            return 1 - self.alphas_cumprod
        for kind, pair in self._variances.items():
            if name in (kind.name, f"log {kind.name}"):
                return pair[name.startswith("log")]
        return getattr(self, name)


class SpacedDiffusion(GaussianDiffusion):
    """A diffusion that visits a subset of another's timesteps; the model gets the other's timesteps.

    Args:
        use_timesteps: the subset (`space_timesteps`).
        kwargs: the other diffusion's, as of `GaussianDiffusion`.
    """

    def __init__(self, use_timesteps: Iterable[int], **kwargs: Any):
        self.use_timesteps = set(use_timesteps)
        betas = np.array(kwargs["betas"], dtype=np.float64)
        self.original_num_steps = len(betas)
        self.timestep_map = [t for t in range(len(betas)) if t in self.use_timesteps]
        kept = np.cumprod(1 - betas)[self.timestep_map]
        super().__init__(**{**kwargs, "betas": 1 - kept / np.append(1.0, kept[:-1])})

    def p_mean_variance(self, model: Model, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Call the method of `GaussianDiffusion` with the model wrapped."""
        return super().p_mean_variance(self._wrap_model(model), *args, **kwargs)

    def training_losses(self, model: Model, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Call the method of `GaussianDiffusion` with the model wrapped."""
        return super().training_losses(self._wrap_model(model), *args, **kwargs)

    def condition_mean(self, cond_fn: Model, *args: Any, **kwargs: Any) -> Tensor:
        """Call the method of `GaussianDiffusion` with the model wrapped."""
        return super().condition_mean(self._wrap_model(cond_fn), *args, **kwargs)

    def condition_score(self, cond_fn: Model, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Call the method of `GaussianDiffusion` with the model wrapped."""
        return super().condition_score(self._wrap_model(cond_fn), *args, **kwargs)

    def _scale_timesteps(self, t):
        return t  # the wrapped model scales them

    def _wrap_model(self, model):
        return model if isinstance(model, _Told) else _Told(model, self)


class _Told:
    """A model that gets the timesteps of the other diffusion."""

    def __init__(self, model, spaced):
        self.model = model
        self._spaced = spaced

    def __call__(self, x, t, **kwargs):
        spaced = self._spaced
        steps = spaced._kept(("told", t.device), t.device, lambda: torch.tensor(spaced.timestep_map))
        told = steps[_times(t)].to(t.dtype)
        if spaced.rescale_timesteps:
            told = told.float() * (1000.0 / spaced.original_num_steps)
        return self.model(x, told, **kwargs)


def _member(name, enumeration, value):
    if isinstance(value, enum.Enum) and value.name in enumeration.__members__:
        return enumeration[value.name]
    members = ", ".join(enumeration.__members__)
    raise ValueError(f"{name}: expected a member of {enumeration.__name__} ({members}), got {value!r}")


def _table_of(table, columns):
    """Set columns of a table, or of a zero table with that many rows."""
    if isinstance(table, int):
        table = torch.zeros(table, len(COLUMNS), dtype=torch.float64)
    for name, values in columns.items():
        table[:, COLUMNS.index(name)] = torch.as_tensor(values, dtype=torch.float64)
    return table


def _times(t):
    return t if t.dtype == torch.int64 else t.long()


def _wide(x, other):
    """Convert x to the promoted dtype of x, the other and float32."""
    dtype = torch.promote_types(torch.promote_types(x.dtype, other.dtype), torch.float32)
    return x.to(dtype)


def _unexpanded(x):
    """Undo `expand`: dimensions of stride 0 get size 1."""
    for dim in range(x.dim()):
        if x.stride(dim) == 0 and x.shape[dim] > 1:
            x = x.narrow(dim, 0, 1)
    return x


def _mean(x):
    return x.flatten(1).mean(1)


def _bits(x):
    return _mean(x) / math.log(2)
