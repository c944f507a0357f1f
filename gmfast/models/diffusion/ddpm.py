"""DDPM: Ho et al., 2020, https://arxiv.org/abs/2006.11239.

Learned variances and the cosine schedule: Nichol and Dhariwal, 2021, https://arxiv.org/abs/2102.09672.
"""

import math
from typing import Any

import torch
from torch import Tensor

from ... import _check, _seed, diffusion
from ... import functional as GF
from ..._progress import Progress
from ..._table import COLUMNS
from ..base import Batch, Likelihood, bits_per_dim
from ..networks.constants import Constants, real_tensors
from ..networks.unet import UNetConfig
from .image import ImageDiffusion
from .settings import unet_settings

SCHEDULES = ("linear", "cosine")
PREDICTIONS = ("epsilon", "x0", "v")
OBJECTIVES = ("simple", "min_snr", "hybrid")


class DDPM(Likelihood, ImageDiffusion):
    """Denoising diffusion probabilistic model (Ho et al., 2020, arXiv:2006.11239).

    Noise is removed in steps, each a Gaussian whose mean comes from the U-Net's prediction. Images are not
    dequantized: the last step gives each level a probability.

    Args:
        image_shape: (C, H, W); H and W are multiples of `2 ** (len(multipliers) - 1)`.
        num_timesteps: Number of time steps.
        schedule: Noise schedule: "linear", of as much noise in all as the published 1000 steps, or "cosine"
            (Nichol and Dhariwal, 2021, arXiv:2102.09672).
        beta_start: Variance of the noise of the first of 1000 steps, for "linear". Noise far below a level
            hides nothing of an image, but the network's error there counts in the bound: the published value
            suits 256 levels, twenty times as much 16.
        prediction: Output of the network: "epsilon", the noise; "x0", the image; "v" (Salimans and Ho, 2022,
            arXiv:2202.00512).
        objective: "simple": mean squared error of the prediction; "min_snr": the same with the weights of
            Hang et al. (2023, arXiv:2303.09556); "hybrid": for "epsilon", the simple one and, to learn the
            variances, a thousandth of the variational bound (Nichol and Dhariwal, 2021).
        min_snr_gamma: Largest weight of the image's squared error, for "min_snr".
        label_dropout: Share of training images whose class the network does not see, for guidance.
        num_levels: Number of values of a subpixel.
        num_labels: Number of classes to condition on; None for an unconditional model.
        network: Fields of `gmfast.models.networks.unet.UNetConfig` other than the published ones.

    Raises:
        ValueError: For an argument out of range, naming it. TypeError: For an unknown one.
    """

    # beta_start: chosen by the bound on a fifth of the training images, of a model trained on the others.
    settings = unet_settings(digits={"beta_start": 0.002})
    network = UNetConfig(channels=128, multipliers=(1, 2, 2, 2), num_blocks=2, attention=(16,), dropout=0.1)

    def __init__(
        self,
        image_shape: tuple[int, int, int] = (3, 32, 32),
        *,
        num_timesteps: int = 1000,
        schedule: str = "linear",
        beta_start: float = 1e-4,
        prediction: str = "epsilon",
        objective: str = "simple",
        min_snr_gamma: float = 5.0,
        label_dropout: float = 0.1,
        num_levels: int = 256,
        num_labels: int | None = None,
        **network: Any,
    ):
        super().__init__(image_shape, num_levels, num_labels, label_dropout)
        _check.at_least(2, num_timesteps=num_timesteps)
        _check.one_of("schedule", schedule, SCHEDULES)
        _check.one_of("prediction", prediction, PREDICTIONS)
        _check.one_of("objective", objective, OBJECTIVES)
        if objective == "hybrid" and prediction != "epsilon":
            raise ValueError(f"prediction: expected 'epsilon' with objective 'hybrid', got {prediction!r}")
        if not 0 < beta_start < 0.02:
            raise ValueError(f"beta_start: expected a number between 0 and 0.02, got {beta_start}")
        if not min_snr_gamma > 0:
            raise ValueError(f"min_snr_gamma: expected a positive number, got {min_snr_gamma}")
        self.num_timesteps, self.prediction, self.objective = num_timesteps, prediction, objective
        self.min_snr_gamma = min_snr_gamma
        self.learned_range = objective == "hybrid"
        self.unet = self.build_unet(
            network, 1000 / num_timesteps, self.image_shape[0] * (2 if self.learned_range else 1)
        )
        with real_tensors():
            #: Noise schedule, on the CPU.
            self.schedule = make_schedule(schedule, num_timesteps, beta_start)
            table = diffusion.training_table(self.schedule, prediction).tolist()
            alphas_cumprod = self.schedule.alphas_cumprod.tolist()
        self.constants = Constants(alphas_cumprod=alphas_cumprod, table=table)

    def table(self, device: torch.device) -> Tensor:
        """Coefficients of the step from each time step to the one before, `(T, len(COLUMNS))`, float64."""
        return self.constants.table.to(device)

    def alpha_bar(self, t: Tensor) -> Tensor:
        """Squared scale of the image at time steps `t (B,)`, float64 `(B,)`."""
        return self.constants.alphas_cumprod.to(t.device)[t]

    def forward(self, x: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        """Prediction of the network from `x (B, C, H, W)` at time steps `t (B,)`.

        Where variances are learned, the result is `(B, 2C, H, W)`: behind the prediction, their places in the
        range of the log-variance, -1 being its lower end and 1 its upper one.
        """
        return self.unet(x, t, label)

    def loss(self, x: Tensor, label: Tensor | None = None) -> Tensor:
        """Objective at random time steps; torch's global generator draws them and the noise."""
        label = self.training_label(self.check_input(x, label))
        t = torch.randint(self.num_timesteps, (x.shape[0],), device=x.device)
        alpha_bar = self.alpha_bar(t)
        alpha, sigma = alpha_bar.sqrt().to(x.dtype), (1 - alpha_bar).sqrt().to(x.dtype)
        noised, target = GF.q_sample(x, alpha, sigma, target=self.prediction)
        output = self(noised, t, label)
        if self.learned_range:
            simple, bound = GF.diffusion_hybrid_loss(
                output, x, noised, target, self.table(x.device), t, num_classes=self.num_levels
            )
            return (simple + 0.001 * self.num_timesteps * bound).mean()
        error = (output - target).square().flatten(1).mean(1)
        if self.objective == "min_snr":
            error = error * self.min_snr_weight(alpha_bar / (1 - alpha_bar)).to(error.dtype)
        return error.mean()

    def min_snr_weight(self, snr: Tensor) -> Tensor:
        """Weight of the prediction's squared error that is min(snr, gamma) of the image's."""
        per_image = {"x0": 1.0, "epsilon": snr, "v": snr + 1}[self.prediction]
        return snr.clamp(max=self.min_snr_gamma) / per_image

    @torch.no_grad()
    def bound(
        self,
        x: Tensor,
        t: Tensor,
        label: Tensor | None = None,
        *,
        seed: int | Tensor | torch.Generator | None = None,
    ) -> Tensor:
        """Terms of the variational bound at time steps `t (B,)`, `(B,)`, in nats.

        A term is the divergence of the model's step from the posterior of the noise; at time step 0, minus
        the log-probability of the image's levels.
        """
        label = self.check_input(x, label)
        alpha_bar = self.alpha_bar(t)
        noised = GF.q_sample(x, alpha_bar.sqrt().to(x.dtype), (1 - alpha_bar).sqrt().to(x.dtype), seed=seed)
        column = {
            name: value.to(x.dtype).view(-1, 1, 1, 1)
            for name, value in zip(COLUMNS, self.table(x.device)[t].unbind(1), strict=True)
        }
        output = self(noised, t, label)
        low, high = column["log_var_min"], column["log_var_max"]
        log_var = low
        if self.learned_range:
            output, range_ = output.chunk(2, 1)
            log_var = 0.5 * (high + low) + 0.5 * (high - low) * range_
        predicted = (column["x0_x"] * noised + column["x0_m"] * output).clamp(-1, 1)
        mean, true_mean = (column["x"] * noised + column["x0"] * image for image in (predicted, x))
        kl = GF.gaussian_kl(true_mean, low, mean, log_var)
        decoder = GF.discretized_gaussian_nll(
            x, mean, (0.5 * log_var).expand_as(x), num_classes=self.num_levels
        )
        return torch.where((t == 0).view(-1, 1, 1, 1), decoder, kl).flatten(1).sum(1)

    @torch.no_grad()
    def log_prob(
        self,
        x: Tensor,
        label: Tensor | None = None,
        *,
        seed: int | Tensor | torch.Generator | None = None,
        num_timesteps: int | None = None,
    ) -> Tensor:
        """Lower bound of each image's log-probability, `(B,)`, in nats: minus the variational bound.

        Args:
            x: Images, `(B, C, H, W)`.
            label: Classes, `(B,)`, for a conditional model.
            seed: Seed of the noise and the time steps: an int, an int64 tensor, or a `torch.Generator`.
            num_timesteps: Number of time steps, besides time step 0, for an unbiased estimate by stratified
                sampling; None: all of them.
        """
        label = self.check_input(x, label)
        others = self.num_timesteps - 1
        count = others if num_timesteps is None else num_timesteps
        if not 1 <= count <= others:
            raise ValueError(f"num_timesteps: expected a number from 1 to {others}, got {count}")
        seed = _seed.as_tensor(seed, x.device)
        alpha_bar = self.schedule.alphas_cumprod[-1].item()
        total = (
            GF.gaussian_kl(
                math.sqrt(alpha_bar) * x,
                x.new_full((), math.log1p(-alpha_bar)),
                x.new_zeros(()),
                x.new_zeros(()),
            )
            .flatten(1)
            .sum(1)
        )
        first = x.new_zeros(x.shape[0], dtype=torch.int64)
        total += self.bound(x, first, label, seed=_seed.stream(seed, 0))
        # Strata of equal length; the place in each differs from image to image.
        place = GF.standard_normal((x.shape[0], count), seed=_seed.stream(seed, 1), device=x.device)
        place = torch.special.ndtr(place)
        for i in range(count):
            if count == others:
                t = x.new_full((x.shape[0],), i + 1, dtype=torch.int64)
            else:
                t = 1 + ((i + place[:, i]) * (others / count)).long().clamp(max=others - 1)
            total += self.bound(x, t, label, seed=_seed.stream(seed, 2 + i)) * (others / count)
        return -total

    def evaluate(self, batch: Batch) -> dict[str, Tensor]:
        """`bits_per_dim`: upper bound of each image's bits per dimension, `(B,)`, by 32 time steps."""
        log_prob = self.log_prob(*batch, num_timesteps=min(32, self.num_timesteps - 1))
        return {"bits_per_dim": bits_per_dim(log_prob, batch.x)}

    def draw(
        self,
        n: int,
        seed: Tensor,
        label: Tensor | None,
        *,
        guidance: float | None,
        progress: Progress,
        sampler: str | diffusion.Sampler | None = None,
        steps: int | None = None,
    ) -> Tensor:
        """Draw `n` images by a sampler of `gmfast.diffusion`.

        Args:
            n: Number of images.
            seed: int64 tensor `()`.
            label: Classes, int64 `(n,)`, or None.
            guidance: Guidance scale, or None.
            progress: See `sample`.
            sampler: Name or object; None: "ddpm", with the learned variances if there are any.
            steps: Number of steps; None: all time steps for "ddpm", else 50.
        """
        if sampler in (None, "ddpm"):
            sampler = diffusion.samplers.DDPMSampler("learned_range" if self.learned_range else "small")
        ancestral = isinstance(sampler, diffusion.samplers.DDPMSampler)
        if steps is None:
            steps = self.num_timesteps if ancestral else min(50, self.num_timesteps)
        denoiser = self
        if self.learned_range and not (ancestral and sampler.variance == "learned_range"):

            def denoiser(x, t, label=None):
                return self(x, t, label).chunk(2, 1)[0]

        return self.diffuse(
            denoiser,
            n,
            seed,
            label,
            guidance,
            sampler=sampler,
            schedule=self.schedule,
            steps=steps,
            prediction=self.prediction,
            clip=1.0,
            progress=progress,
        )


def make_schedule(name: str, num_timesteps: int, beta_start: float) -> diffusion.VariancePreserving:
    """Make the noise schedule `name`, one of `SCHEDULES`; the arguments are those of `DDPM`."""
    if name == "cosine":
        return diffusion.cosine(num_timesteps)
    betas = (min(beta * 1000 / num_timesteps, 0.999) for beta in (beta_start, 0.02))
    return diffusion.linear(num_timesteps, *betas)
