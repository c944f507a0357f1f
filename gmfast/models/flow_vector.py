"""What the flows of vectors share: real-valued data, and images as vectors."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import _check
from ..nn import ActNorm, Inverse, Sequential, Transform, naive_inverse
from .autoregressive import check_label
from .flow_image import ImageFlow


class VectorFlow(ImageFlow):
    """A normalizing flow of real-valued vectors, with an exact density; or of images, as `ImageFlow` says.

    With `num_levels` None a sample is D real numbers, and what the transform sees of them is standardised:
    `(x - mean) / std`, by constants that `standardize` sets, from the training data. They are part of the
    model and of its density: `log_prob` is that of the numbers as they come (their standardised density less
    `sum(log(std))`), `loss` is in bits per dimension of it (which may be negative, as a density may exceed
    1), and samples are in the data's units.
    """

    #: `gmfast train` gives such a model real-valued data.
    real_valued = True

    def __init__(
        self,
        image_shape: tuple[int, ...],
        num_levels: int | None,
        num_labels: int | None,
        alpha: float | None,
    ):
        image_shape = tuple(image_shape)
        if num_levels is not None:
            super().__init__(image_shape, num_levels, num_labels, alpha)
            return
        nn.Module.__init__(self)
        if len(image_shape) != 1 or image_shape[0] < 1:
            raise ValueError(
                f"image_shape: expected (D,) for real-valued data (num_levels None), got {image_shape}"
            )
        if num_labels is not None:
            _check.at_least(1, num_labels=num_labels)
        self.image_shape, self.num_levels, self.num_labels = image_shape, None, num_labels
        self.noise_shape = image_shape
        self.register_buffer("mean", torch.zeros(image_shape))
        self.register_buffer("std", torch.ones(image_shape))

    @torch.no_grad()
    def standardize(self, mean: Tensor, std: Tensor) -> None:
        """Sets what real-valued data are standardised with, (D,) each; `std` is positive."""
        if self.num_levels is not None:
            raise ValueError("standardize: expected a model of real-valued data, got one of images")
        for name, value in (("mean", mean), ("std", std)):
            if tuple(value.shape) != self.image_shape or not value.isfinite().all():
                raise ValueError(
                    f"{name}: expected finite numbers of shape {self.image_shape}, got {tuple(value.shape)}"
                )
        if not (std > 0).all():
            raise ValueError(f"std: expected positive numbers, got {std.min().item():g}")
        self.mean.copy_(mean)
        self.std.copy_(std)

    @torch.no_grad()
    def sample(
        self,
        n: int,
        *,
        seed: int | Tensor | torch.Generator | None = None,
        label: Tensor | int | None = None,
        temperature: float = 1.0,
        method: str = "cached",
    ) -> Tensor:
        """Draws `n` samples, (n, *image_shape): in the data's units, or images in [-1, 1] on the levels'
        grid.

        Arguments are those of `ImageFlow.sample`, and `method`: what an autoregressive transform inverts
        itself with, "cached", which computes nothing twice, or "naive", one full pass for each value. Both
        give the same samples to rounding.
        """
        if method not in ("cached", "naive"):
            raise ValueError(f'method: expected "cached" or "naive", got {method!r}')
        options = {"seed": seed, "label": label, "temperature": temperature}
        if method == "cached":
            return super().sample(n, **options)
        with naive_inverse(self):
            return super().sample(n, **options)

    def dequantize(self, x: Tensor, seed: Tensor) -> tuple[Tensor, Tensor]:
        if self.num_levels is not None:
            return super().dequantize(x, seed)
        dtype = self.dtype(x)
        mean, std = self.mean.to(dtype), self.std.to(dtype)
        y = (x.to(dtype) - mean) / std
        return y.to(next(self.parameters()).dtype), -std.log().sum().expand(len(x))

    def quantize(self, y: Tensor) -> Tensor:
        return super().quantize(y) if self.num_levels is not None else y * self.std + self.mean

    def check_input(self, x: Tensor, label: Tensor | None) -> Tensor | None:
        if self.num_levels is not None:
            return super().check_input(x, label)
        if x.dim() != 2 or tuple(x.shape[1:]) != self.image_shape:
            raise ValueError(f"x: expected shape (B, {self.image_shape[0]}), got {tuple(x.shape)}")
        if not x.is_floating_point():
            raise TypeError(f"x: expected floating point numbers, got {x.dtype}")
        return check_label(label, len(x), self.num_labels)


class OfVectors(Transform):
    """A transform of vectors (B, D), for samples of any shape; its context is the label, one-hot."""

    def __init__(self, transform: Transform, num_labels: int | None):
        super().__init__()
        self.transform, self.num_labels = transform, num_labels

    def forward(self, x: Tensor, context=None) -> tuple[Tensor, Tensor]:
        z, log_det = self.transform(x.flatten(1), self._one_hot(context, x))
        return z.view_as(x), log_det

    def inverse(self, z: Tensor, context=None) -> tuple[Tensor, Tensor]:
        x, log_det = self.transform.inverse(z.flatten(1), self._one_hot(context, z))
        return x.view_as(z), log_det

    def _one_hot(self, label: Tensor | None, like: Tensor) -> Tensor | None:
        return None if label is None else F.one_hot(label, self.num_labels).to(like.dtype)


def stacked(make, num_transforms: int, values: int, inverted: bool) -> Transform:
    """`num_transforms` autoregressive transforms `make(order)`, in the order of the values and the opposite
    one by turns, each with an `ActNorm` before it, where the papers have batch normalisation."""
    transforms = []
    for i in range(num_transforms):
        transform = make(range(values) if i % 2 == 0 else range(values - 1, -1, -1))
        transforms += [ActNorm(values), Inverse(transform) if inverted else transform]
    return Sequential(*transforms)
