"""Base of the flows of images: dequantization, a bound of the likelihood, and sampling."""

import math

import torch
from torch import Tensor

from ... import _check, _seed
from ... import functional as GF
from ...nn import Transform
from ..base import Batch, Likelihood, Model, check_image_shape, evaluating

#: Size and batch of the photographs that train in minutes.
PHOTOS = {"size": 16, "batch_size": 32}


class ImageFlow(Likelihood, Model):
    """Normalizing flow of images: a density of continuous values, which bounds the likelihood of levels.

    Images are floats in [-1, 1], level `v` of `num_levels` at `2 * v / (num_levels - 1) - 1`. Dequantization
    adds noise u in (0, 1) to each level, and an image's likelihood is the density at `v + u`, in units of a
    level. By Jensen's inequality the expectation of `log_prob` over the noise is at most the image's
    log-probability (Theis et al., 2016, arXiv:1511.01844): bits per dimension bound those of an exact
    likelihood from above.

    A subclass sets `transform`, and `noise_shape` where it is not `image_shape`. It may override the base
    distribution (`base_log_prob` and `noise`) and `dequantize`.

    Attributes:
        transform: From continuous values to noise; the context of its conditioners is the label, int64
            `(B,)`, or None.
        noise_shape: Shape of one sample's noise.

    Args:
        image_shape: (C, H, W).
        num_levels: Number of values of a subpixel.
        num_labels: Number of classes to condition on; None for an unconditional model.
        alpha: In [0, 0.5). Continuous values are logits of `alpha + (1 - 2 * alpha) * (v + u) / num_levels`
            (Dinh et al., 2017, arXiv:1605.08803); with 0 they are `(v + u) / num_levels - 0.5`.
        multiple: Power of two that H and W must be multiples of.

    Raises:
        ValueError: For an argument out of its range, naming it. TypeError: For its type.
    """

    modalities = frozenset({"images"})
    family = "flow"

    transform: Transform
    noise_shape: tuple[int, ...]

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        num_levels: int,
        num_labels: int | None,
        alpha: float,
        multiple: int = 1,
    ):
        super().__init__(num_levels, num_labels)
        _check.integer("num_levels", num_levels)  # None is for vectors
        if not 0 <= alpha < 0.5:
            raise ValueError(f"alpha: expected a number from 0 to below 0.5, got {alpha}")
        self.image_shape = self.noise_shape = check_image_shape(image_shape, multiple=multiple)
        self.alpha = alpha

    def forward(
        self,
        x: Tensor,
        label: Tensor | None = None,
        *,
        seed: int | Tensor | torch.Generator | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Map images to noise.

        Args:
            x: `(B, C, H, W)` in [-1, 1].
            label: Class indices `(B,)` for a conditional model.
            seed: Seed of the dequantization noise: an int, an int64 tensor, a `torch.Generator`, or None to
                draw one from torch's.

        Returns:
            Noise `(B, *noise_shape)` and the log-determinant `(B,)`, in nats, dequantization included.

        Raises:
            ValueError: For shapes and values, naming the argument. TypeError: For types.
        """
        label = self.check_input(x, label)
        y, log_det = self.dequantize(x, _seed.as_tensor(seed, x.device))
        z, more = self.transform(y, label)
        return z, log_det + more

    def log_prob(
        self,
        x: Tensor,
        label: Tensor | None = None,
        *,
        seed: int | Tensor | torch.Generator | None = None,
        num_samples: int = 1,
    ) -> Tensor:
        """Lower bound of each image's log-probability, `(B,)`, in nats.

        Args:
            x: `(B, C, H, W)` in [-1, 1].
            label: Class indices `(B,)` for a conditional model.
            seed: Seed of the dequantization noise, as in `forward`.
            num_samples: Number of draws of the noise, whose densities are averaged: an importance-weighted
                bound (Burda et al., 2016, arXiv:1509.00519). More of them make it tighter, at a proportional
                cost in time and memory.

        Raises:
            ValueError: For shapes and values, naming the argument. TypeError: For types.
        """
        _check.at_least(1, num_samples=num_samples)
        if num_samples > 1:
            label = self.check_input(x, label)
            label = None if label is None else label.repeat_interleave(num_samples, 0)
            x = x.repeat_interleave(num_samples, 0)
        z, log_det = self(x, label, seed=seed)
        log_prob = self.base_log_prob(z) + log_det
        if num_samples == 1:
            return log_prob
        return log_prob.unflatten(0, (-1, num_samples)).logsumexp(1) - math.log(num_samples)

    def loss(self, x: Tensor, label: Tensor | None = None) -> Tensor:
        """Negative log-likelihood of the batch, or its upper bound, a scalar in bits per dimension.

        The dequantization noise is seeded from torch's global generator.
        """
        return -self.log_prob(x, label).sum() / (x.numel() * math.log(2))

    @torch.no_grad()
    def sample(
        self,
        n: int,
        *,
        seed: int | Tensor | torch.Generator | None = None,
        label: Tensor | int | None = None,
        temperature: float = 1.0,
    ) -> Tensor:
        """Draw `n` images, `(n, C, H, W)` in [-1, 1], in one pass.

        Values beyond the lowest or the highest level are clamped to it. The model samples in eval mode and
        returns to its former mode.

        Args:
            n: Number of images, 0 or more.
            seed: An int, an int64 tensor, a `torch.Generator`, or None to draw one from torch's. Image i does
                not depend on `n`, unless a value lies within rounding of the boundary between two levels.
            label: One class or `(n,)` of them, for a conditional model.
            temperature: Factor of the noise; below 1 sharpens.

        Raises:
            ValueError: For values, naming the argument. TypeError: For types.
        """
        request = self.request(n, seed=seed, label=label, temperature=temperature)
        with evaluating(self):
            z = self.noise(n, request.seed, self.dtype, self.device)
            y, _ = self.transform.inverse(z if temperature == 1 else z * temperature, request.label)
        return self.quantize(y)

    def prepare(self, batch: Batch) -> None:
        """Initialise the activation normalisation (`initialize`) from the batch."""
        self.initialize(*batch)

    @torch.no_grad()
    def initialize(self, x: Tensor, label: Tensor | None = None) -> None:
        """Initialise each `gmfast.nn.ActNorm` from the batch `x`, as the first training step would."""
        were_training = self.training
        self.train()
        try:
            self(x, label)
        finally:
            self.train(were_training)

    def base_log_prob(self, z: Tensor) -> Tensor:
        """Log-density of noise `z (B, *noise_shape)` under the base distribution, `(B,)`, in nats."""
        return GF.gaussian_log_prob(z)

    def noise(self, n: int, seed: Tensor, dtype: torch.dtype, device: torch.device) -> Tensor:
        """Draw from the base distribution, `(n, *noise_shape)`."""
        return GF.standard_normal((n, *self.noise_shape), seed=seed, dtype=dtype, device=device)

    def dequantize(self, x: Tensor, seed: Tensor) -> tuple[Tensor, Tensor]:
        """Map images to continuous values, uniform within a level.

        Returns:
            Values of the shape of `x` and the log-determinant `(B,)`, less the log-density of the noise.
        """
        dtype = torch.promote_types(x.dtype, torch.float32)  # half precision does not separate levels
        normal = GF.standard_normal(x.shape, seed=seed, dtype=dtype, device=x.device)
        u = torch.special.ndtr(normal)  # uniform noise, keyed by the sample as the normal is
        # Without the clamp u is 1 once in 30 million draws.
        return self.continuous(x, u.clamp(max=1 - torch.finfo(u.dtype).eps / 2))

    def continuous(self, x: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        """Map images and dequantization noise to the input of `transform`.

        Args:
            x: `(B, C, H, W)` in [-1, 1].
            u: Noise in (0, 1), of the shape of `x`.

        Returns:
            Values of the shape of `x` and the log-determinant `(B,)` of the map from the noise.
        """
        levels = self.levels(x).to(u.dtype)
        if self.alpha == 0:
            y = (levels + u) / self.num_levels - 0.5
            log_det = u.new_full((x.shape[0],), -math.prod(x.shape[1:]) * math.log(self.num_levels))
        else:
            y, log_det = GF.dequantize_logit(levels, num_levels=self.num_levels, alpha=self.alpha, noise=u)
        return y.to(self.dtype), log_det

    def levels(self, x: Tensor) -> Tensor:
        """Levels of images in [-1, 1], rounded to the nearest, as floating point numbers.

        Raises:
            ValueError: For values outside [-1, 1], which are checked on the CPU only.
        """
        dtype = torch.promote_types(x.dtype, torch.float32)  # half precision does not separate levels
        levels = ((x.to(dtype) + 1) * ((self.num_levels - 1) / 2)).round()
        if _check.readable(levels) and levels.numel():
            low, high = levels.aminmax()
            if not (low >= 0 and high < self.num_levels):
                low, high = x.aminmax()
                raise ValueError(
                    f"x: expected values in [-1, 1], got values from {low.item():g} to {high.item():g}"
                )
        return levels

    def quantize(self, y: Tensor) -> Tensor:
        """Map continuous values to images in [-1, 1], each value at a level."""
        if self.alpha == 0:
            levels = ((y + 0.5) * self.num_levels).floor().clamp(0, self.num_levels - 1)
        else:
            levels, _ = GF.dequantize_logit(y, num_levels=self.num_levels, alpha=self.alpha, inverse=True)
        return 2 * levels / (self.num_levels - 1) - 1
