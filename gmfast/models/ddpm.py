"""DDPM: Ho et al., 2020, https://arxiv.org/abs/2006.11239, and Nichol and Dhariwal, 2021,
https://arxiv.org/abs/2102.09672."""

import math

import torch
from torch import Tensor

from .. import _check, _seed, diffusion
from .. import functional as GF
from ..diffusion import COLUMNS
from .diffusion_image import ImageDiffusion, unet_arguments

SCHEDULES = ("linear", "cosine")
PREDICTIONS = ("epsilon", "x0", "v")
OBJECTIVES = ("simple", "min_snr", "hybrid")


class DDPM(ImageDiffusion):
    """A denoising diffusion model (Ho et al., 2020, arXiv:2006.11239): noise is taken away in steps, each a
    Gaussian about what a U-Net makes of the noisy image. The defaults are the published CIFAR-10 model.

    Images are taken as they are, at their levels: the last step's Gaussian has a probability for each.

    Args:
        image_shape: (C, H, W); H and W are multiples of `2 ** (len(multipliers) - 1)`.
        channels, multipliers, num_blocks, attention, dropout: of the network (`gmfast.models.unet.UNet`).
        num_timesteps: steps of the noise.
        schedule: of the noise: "linear" (of 1000 steps as published, of others as much noise in all), or
            "cosine" (Nichol and Dhariwal, 2021, arXiv:2102.09672).
        beta_start: variance of the noise of the first of 1000 steps, of "linear". Noise far below a level
            hides nothing of an image, but what the network does not know of it counts in the bound: what is
            published suits 256 levels, twenty times as much 16.
        prediction: what the network gives: "epsilon", the noise; "x0", the image; "v", of both (Salimans and
            Ho, 2022, arXiv:2202.00512).
        objective: what is trained on: "simple", the prediction's mean squared error; "min_snr", the same,
            with the weights of Hang et al. (2023, arXiv:2303.09556); "hybrid", for "epsilon", the simple one
            and, to learn the steps' variances, a thousandth of the bound (Nichol and Dhariwal, 2021).
        min_snr_gamma: of "min_snr", the signal-to-noise ratio up to which all of the image's error counts.
        label_dropout: as of `gmfast.models.diffusion_image.ImageDiffusion`.
        num_levels: values a subpixel can take.
        num_labels: number of classes to condition on; None for an unconditional model.

    Raises ValueError, naming the argument, for whatever the above rules out.
    """

    unit = "bits per dimension"

    def __init__(
        self,
        image_shape: tuple[int, int, int] = (3, 32, 32),
        channels: int = 128,
        multipliers: tuple[int, ...] = (1, 2, 2, 2),
        num_blocks: int = 2,
        attention: tuple[int, ...] = (16,),
        dropout: float = 0.1,
        num_timesteps: int = 1000,
        schedule: str = "linear",
        beta_start: float = 1e-4,
        prediction: str = "epsilon",
        objective: str = "simple",
        min_snr_gamma: float = 5.0,
        label_dropout: float = 0.1,
        num_levels: int = 256,
        num_labels: int | None = None,
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
        unet = unet_arguments(channels, multipliers, num_blocks, attention, dropout)
        self.config = {
            "image_shape": self.image_shape,
            **unet,
            "num_timesteps": num_timesteps,
            "schedule": schedule,
            "beta_start": beta_start,
            "prediction": prediction,
            "objective": objective,
            "min_snr_gamma": min_snr_gamma,
            "label_dropout": label_dropout,
            "num_levels": num_levels,
            "num_labels": num_labels,
        }
        self.num_timesteps, self.prediction, self.objective = num_timesteps, prediction, objective
        self.learned_range = objective == "hybrid"
        self.unet = self.build_unet(
            unet, 1000 / num_timesteps, self.image_shape[0] * (2 if self.learned_range else 1)
        )
        self._tables = {}

    @property
    def schedule(self) -> diffusion.VariancePreserving:
        """Of the noise: `alphas_cumprod` of each time step, and which of them a sampler visits."""
        if "schedule" not in self._tables:
            steps = self.num_timesteps
            with torch.device("cpu"):
                if self.config["schedule"] == "cosine":
                    schedule = diffusion.cosine(steps)
                else:
                    betas = (min(beta * 1000 / steps, 0.999) for beta in (self.config["beta_start"], 0.02))
                    schedule = diffusion.linear(steps, *betas)
                self._tables["schedule"] = schedule
        return self._tables["schedule"]

    def table(self, device: torch.device) -> Tensor:
        """Coefficients of the step from time step t to the one before, (T, columns), float64."""
        if device not in self._tables:
            self._tables[device] = diffusion.training_table(self.schedule, self.prediction, device=device)
        return self._tables[device]

    def forward(self, x: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        """The network's prediction from `x (B, C, H, W)` at time steps `t (B,)`, and, where the variances are
        learned, behind it (B, 2C, H, W) their place in the range from -1 to 1."""
        return self.unet(x, t, label)

    def loss(self, x: Tensor, label: Tensor | None = None) -> Tensor:
        """The objective at time steps drawn at random, with noise from torch's global generator."""
        label = self.training_label(self.check_input(x, label))
        t = torch.randint(self.num_timesteps, (len(x),), device=x.device)
        alpha_bar = self.schedule.alphas_cumprod.to(x.device)[t]
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
        """Of the prediction's squared error: min(snr, gamma) of the image's."""
        per_image = {"x0": 1.0, "epsilon": snr, "v": snr + 1}[self.prediction]
        return snr.clamp(max=self.config["min_snr_gamma"]) / per_image

    @torch.no_grad()
    def bound(self, x: Tensor, t: Tensor, label: Tensor | None = None, *, seed=None) -> Tensor:
        """What the variational bound says of the time steps `t (B,)`, (B,), in nats: how far the model's step
        is from that of the noise; at 0, of an image's levels given what the first step of noise left."""
        label = self.check_input(x, label)
        alpha_bar = self.schedule.alphas_cumprod.to(x.device)[t]
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
        self, x: Tensor, label: Tensor | None = None, *, seed=None, num_timesteps: int | None = None
    ) -> Tensor:
        """A lower bound of each image's log-probability, (B,), in nats: minus the variational bound.

        Args:
            seed: of the noise and the choice of time steps: an int, an int64 tensor, or a `torch.Generator`.
            num_timesteps: how many time steps besides the last, which is always among them, are chosen to
                stand for all, so that the bound is right on average; None: all of them.
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
        first = x.new_zeros(len(x), dtype=torch.int64)
        total += self.bound(x, first, label, seed=_seed.stream(seed, 0))
        # Strata of equal length for each image, and a place in them that differs from image to image.
        place = GF.standard_normal((len(x), count), seed=_seed.stream(seed, 1), device=x.device)
        place = torch.special.ndtr(place)
        for i in range(count):
            if count == others:
                t = x.new_full((len(x),), i + 1, dtype=torch.int64)
            else:
                t = 1 + ((i + place[:, i]) * (others / count)).long().clamp(max=others - 1)
            total += self.bound(x, t, label, seed=_seed.stream(seed, 2 + i)) * (others / count)
        return -total

    def heldout_loss(self, x: Tensor, label: Tensor | None = None) -> Tensor:
        """Bits per dimension, by `log_prob` at 32 time steps."""
        return self.bits_per_dim(self.log_prob(x, label, num_timesteps=min(32, self.num_timesteps - 1)))

    def draw(
        self,
        n: int,
        seed: Tensor,
        label: Tensor | None,
        *,
        guidance: float | None,
        progress,
        sampler=None,
        steps: int | None = None,
    ) -> Tensor:
        """By a sampler of `gmfast.diffusion`.

        Args:
            sampler: a name or an object; None: "ddpm", with the variances learned if they are.
            steps: of the sampler; by default all time steps of "ddpm", and 50 of others.
        """
        if sampler in (None, "ddpm"):
            sampler = diffusion.DDPM("learned_range" if self.learned_range else "small")
        ancestral = isinstance(sampler, diffusion.DDPM)
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
