"""What the flows of images share: dequantization, likelihood and sampling."""

import math

import torch
from torch import Tensor, nn

from .. import _check, _seed
from .. import functional as GF
from ..nn import Transform
from .autoregressive import check_label, evaluating, labels_of


class ImageFlow(nn.Module):
    """A normalizing flow of images: a density of continuous values, and by it a bound of the likelihood of
    images, which have levels.

    Images are floats in [-1, 1], class `v` of `num_levels` at `2 * v / (num_levels - 1) - 1`. Level v becomes
    `v + u` with noise u in (0, 1), and what the model says of an image is the density there, in units of a
    level: by Jensen's inequality `log_prob` is at most the log of the image's probability on average over the
    noise (Theis et al., 2016, arXiv:1511.01844), and so bits per dimension compare with those of an exact
    likelihood, from above.

    A model gives its constructor's arguments to `config` and `transform`, from continuous values to noise,
    whose shape is `noise_shape`. It may have a `base_log_prob` and a `noise` of its own, and `dequantize`.

    Args:
        alpha: the continuous values are logits of `alpha + (1 - 2 * alpha) * (v + u) / num_levels` (Dinh et
            al., 2017, arXiv:1605.08803). 0: they are `(v + u) / num_levels - 0.5`.
    """

    #: From continuous values to noise; the context of its conditioners is the label, int64 (B,), or None.
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
        super().__init__()
        image_shape = tuple(image_shape)
        if len(image_shape) != 3 or min(image_shape) < 1:
            raise ValueError(f"image_shape: expected positive (C, H, W), got {image_shape}")
        if any(size % multiple for size in image_shape[1:]):
            raise ValueError(
                f"image_shape: expected H and W to be multiples of {multiple}, which are halved "
                f"{multiple.bit_length() - 1} times, got {image_shape}"
            )
        _check.at_least(2, num_levels=num_levels)
        if num_labels is not None:
            _check.at_least(1, num_labels=num_labels)
        if not 0 <= alpha < 0.5:
            raise ValueError(f"alpha: expected a number from 0 to below 0.5, got {alpha}")
        self.image_shape, self.num_levels, self.num_labels = image_shape, num_levels, num_labels
        self.alpha = alpha
        self.noise_shape = image_shape

    def forward(self, x: Tensor, label: Tensor | None = None, *, seed=None) -> tuple[Tensor, Tensor]:
        """Images to noise `(B, *noise_shape)` and the log-determinant (B,), in nats, from levels on.

        `seed` is of the noise that fills the levels: an int, an int64 tensor, or a `torch.Generator`; None
        draws one from torch's global generator."""
        label = self.check_input(x, label)
        y, log_det = self.dequantize(x, _seed.as_tensor(seed, x.device))
        z, more = self.transform(y, label)
        return z, log_det + more

    def log_prob(self, x: Tensor, label: Tensor | None = None, *, seed=None, num_samples: int = 1) -> Tensor:
        """A lower bound of each image's log-probability, (B,), in nats: an estimate from `num_samples` draws
        of the noise, whose density is averaged (Burda et al., 2016, arXiv:1509.00519). The bound is tighter
        with more of them, at their cost in time and memory. `seed` as in `forward`."""
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
        """An upper bound of the batch's negative log-likelihood, a scalar in bits per dimension, with noise
        from torch's global generator."""
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
        """Draws `n` images, (n, C, H, W) in [-1, 1], in one pass.

        Args:
            n: how many; 0 is allowed.
            seed: an int, an int64 tensor, or a `torch.Generator`; image i is the same whatever `n` is, unless
                a value lies within rounding of the boundary between two levels.
            label: one class or (n,) of them, for a conditional model.
            temperature: what the noise is multiplied by; below 1 sharpens.

        Values beyond the lowest or the highest level become these. The model is in eval mode meanwhile and in
        its former mode afterwards.

        Raises ValueError or TypeError, naming the argument.
        """
        _check.integer("n", n)
        if n < 0:
            raise ValueError(f"n: expected a number of images, got {n}")
        _check.number("temperature", temperature, 0, 1e30)
        weight = next(self.parameters())
        label = labels_of(label, n, self.num_labels, weight.device)
        with evaluating(self):
            z = self.noise(n, _seed.as_tensor(seed, weight.device), weight.dtype, weight.device)
            y, _ = self.transform.inverse(z if temperature == 1 else z * temperature, label)
        return self.quantize(y)

    @torch.no_grad()
    def initialize(self, x: Tensor, label: Tensor | None = None) -> None:
        """Initialises what takes its first values from data (`gmfast.nn.ActNorm`) from the batch `x`. The
        first batch that is trained on does the same."""
        were_training = self.training
        self.train()
        try:
            self(x, label)
        finally:
            self.train(were_training)

    def base_log_prob(self, z: Tensor) -> Tensor:
        """Log-density of noise, (B,), in nats."""
        return GF.gaussian_log_prob(z)

    def noise(self, n: int, seed: Tensor, dtype: torch.dtype, device: torch.device) -> Tensor:
        """Draws from the base distribution, (n, *noise_shape)."""
        return GF.standard_normal((n, *self.noise_shape), seed=seed, dtype=dtype, device=device)

    def dequantize(self, x: Tensor, seed: Tensor) -> tuple[Tensor, Tensor]:
        """Images to continuous values, uniform within a level, and the log-determinant (B,)."""
        normal = GF.standard_normal(x.shape, seed=seed, dtype=self.dtype(x), device=x.device)
        u = torch.special.ndtr(normal)  # uniform noise, keyed by the sample as the normal is
        # 1 - u would be 0 for a draw in 30 million.
        return self.continuous(x, u.clamp(max=1 - torch.finfo(u.dtype).eps / 2))

    def continuous(self, x: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        """What the transform takes of images and noise in (0, 1), and the log-determinant (B,) of it as a
        function of the noise."""
        levels = self.levels(x).to(u.dtype)
        if self.alpha == 0:
            y = (levels + u) / self.num_levels - 0.5
            log_det = u.new_full((len(x),), -x[0].numel() * math.log(self.num_levels) if len(x) else 0.0)
        else:
            y, log_det = GF.dequantize_logit(levels, num_levels=self.num_levels, alpha=self.alpha, noise=u)
        return y.to(next(self.parameters()).dtype), log_det

    def levels(self, x: Tensor) -> Tensor:
        """The classes of images, as floating point numbers. Values between two levels count as the nearest.
        Raises ValueError for values beyond [-1, 1], which are looked at on the CPU only."""
        levels = ((x.to(self.dtype(x)) + 1) * ((self.num_levels - 1) / 2)).round()
        if levels.device.type == "cpu" and levels.numel() and not torch.compiler.is_compiling():
            low, high = levels.aminmax()
            if not (low >= 0 and high < self.num_levels):
                low, high = x.aminmax()
                raise ValueError(
                    f"x: expected values in [-1, 1], got values from {low.item():g} to {high.item():g}"
                )
        return levels

    def quantize(self, y: Tensor) -> Tensor:
        """Continuous values to images on the levels' grid."""
        if self.alpha == 0:
            levels = ((y + 0.5) * self.num_levels).floor().clamp(0, self.num_levels - 1)
        else:
            levels, _ = GF.dequantize_logit(y, num_levels=self.num_levels, alpha=self.alpha, inverse=True)
        return 2 * levels / (self.num_levels - 1) - 1

    def check_input(self, x: Tensor, label: Tensor | None) -> Tensor | None:
        """The labels as int64. Raises ValueError or TypeError for what is not a batch of images and its
        labels."""
        if x.dim() != 4 or tuple(x.shape[1:]) != self.image_shape:
            expected = ", ".join(map(str, self.image_shape))
            raise ValueError(f"x: expected shape (B, {expected}), got {tuple(x.shape)}")
        if not x.is_floating_point():
            raise TypeError(f"x: expected floating point numbers in [-1, 1], got {x.dtype}")
        return check_label(label, len(x), self.num_labels)

    @staticmethod
    def dtype(x: Tensor) -> torch.dtype:
        """What levels and noise are computed in: half precision does not tell levels apart."""
        return torch.float64 if x.dtype == torch.float64 else torch.float32


def add_label(h: Tensor, embedding: nn.Embedding | None, label: Tensor | None) -> Tensor:
    """`h (B, C, *S)` and the label's bias for each channel, where there are classes."""
    if embedding is None:
        return h
    return h + embedding(label).view(*h.shape[:2], *[1] * (h.dim() - 2))
