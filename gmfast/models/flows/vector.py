"""Base of the flows of vectors, which take images too, and transforms of vectors."""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ...nn import ActNorm, Inverse, Sequential, Transform, naive_inverse
from ..base import Model, check_method
from .image import ImageFlow

#: Data sets of points of the plane.
PLANE = ("moons", "circles", "swiss-roll", "checkerboard", "gaussians", "spirals")
#: Batch and learning rate for them, whose networks are small.
VECTORS = {"batch_size": 256, "lr": 0.003}


class VectorFlow(ImageFlow):
    """Normalizing flow of real-valued vectors, with an exact density, or of images (`ImageFlow`).

    With `num_levels` None a sample is D real numbers, which the transform sees standardised, as
    `(x - mean) / std` (`standardize`). The constants are part of the model and of its density: `log_prob` is
    that of the numbers in the data's units (the standardised density less `sum(log(std))`), `loss` is in bits
    per dimension of it, negative where the density exceeds 1, and samples are in the data's units.

    Attributes:
        mean: Per-feature mean, `(D,)`; real-valued data only.
        std: Per-feature standard deviation, `(D,)`; real-valued data only.

    Args:
        image_shape: (D,) for real-valued data, (C, H, W) for images.
        num_levels: Number of values of a subpixel; None for real-valued data.
        num_labels: Number of classes to condition on; None for an unconditional model.
        alpha: Keeps the logits of images finite (`ImageFlow`).

    Raises:
        ValueError: For an argument out of its range, naming it. TypeError: For its type.
    """

    modalities = frozenset({"images", "vectors"})
    data = "moons"

    def __init__(
        self,
        image_shape: tuple[int, ...],
        num_levels: int | None,
        num_labels: int | None,
        alpha: float,
    ):
        if num_levels is not None:
            super().__init__(image_shape, num_levels, num_labels, alpha)
            return
        Model.__init__(self, num_levels, num_labels)
        image_shape = tuple(image_shape)
        if len(image_shape) != 1 or image_shape[0] < 1:
            raise ValueError(
                f"image_shape: expected (D,) for real-valued data (num_levels None), got {image_shape}"
            )
        self.image_shape = self.noise_shape = image_shape
        self.register_buffer("mean", torch.zeros(image_shape))
        self.register_buffer("std", torch.ones(image_shape))

    @property
    def modality(self) -> str:
        """Kind of data that this instance models: "vectors" or "images"."""
        return "vectors" if self.num_levels is None else "images"

    @torch.no_grad()
    def standardize(self, mean: Tensor, std: Tensor) -> None:
        """Set the constants that real-valued data are standardised with.

        Args:
            mean: Per-feature mean over the training set, `(D,)`.
            std: Per-feature standard deviation, `(D,)`, positive.

        Raises:
            ValueError: For shapes and values, naming the argument, and for a model of images.
        """
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
        """Draw `n` samples, `(n, *image_shape)`: vectors in the data's units, or images in [-1, 1].

        Args:
            n: Number of samples, 0 or more.
            seed: An int, an int64 tensor, a `torch.Generator`, or None to draw one from torch's. Sample i
                does not depend on `n`, to rounding.
            label: One class or `(n,)` of them, for a conditional model.
            temperature: Factor of the noise; below 1 sharpens.
            method: How an autoregressive transform is inverted: "cached" computes each hidden unit once,
                "naive" runs a full pass for each value. Both give the same samples to rounding.

        Raises:
            ValueError: For values, naming the argument. TypeError: For types.
        """
        check_method(method)
        options = {"seed": seed, "label": label, "temperature": temperature}
        if method == "cached":
            return super().sample(n, **options)
        with naive_inverse(self):
            return super().sample(n, **options)

    def dequantize(self, x: Tensor, seed: Tensor) -> tuple[Tensor, Tensor]:
        """Map samples to continuous values: standardised vectors, or dequantized images.

        Returns:
            Values of the shape of `x` and the log-determinant `(B,)`.
        """
        if self.num_levels is not None:
            return super().dequantize(x, seed)
        dtype = torch.promote_types(x.dtype, torch.float32)
        mean, std = self.mean.to(dtype), self.std.to(dtype)
        y = (x.to(dtype) - mean) / std
        return y.to(self.dtype), -std.log().sum().expand(x.shape[0])

    def quantize(self, y: Tensor) -> Tensor:
        """Map continuous values to samples: vectors in the data's units, or images in [-1, 1]."""
        return super().quantize(y) if self.num_levels is not None else y * self.std + self.mean


class OfVectors(Transform):
    """Transform of vectors `(B, D)` applied to flattened samples of any shape, with one-hot labels.

    Args:
        transform: Transform of vectors, whose context is `(B, num_labels)` or None.
        num_labels: Number of classes.
    """

    def __init__(self, transform: Transform, num_labels: int | None):
        super().__init__()
        self.transform, self.num_labels = transform, num_labels

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Map `x (B, *S)` to noise of its shape and the log-determinant `(B,)`; `context` is the label."""
        z, log_det = self.transform(x.flatten(1), self._one_hot(context, x))
        return z.view_as(x), log_det

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Map noise `z (B, *S)` back; the arguments are those of `forward`."""
        x, log_det = self.transform.inverse(z.flatten(1), self._one_hot(context, z))
        return x.view_as(z), log_det

    def _one_hot(self, label: Tensor | None, like: Tensor) -> Tensor | None:
        return None if label is None else F.one_hot(label, self.num_labels).to(like.dtype)


def stacked(
    make: Callable[[Sequence[int]], Transform], num_transforms: int, values: int, inverted: bool
) -> Transform:
    """Stack autoregressive transforms in alternating orders, each after an `ActNorm`.

    Args:
        make: Makes a transform of vectors for an order of the values.
        num_transforms: Number of transforms; the first goes from first value to last, the next one back.
        values: Number of values of a vector.
        inverted: Whether to exchange the directions of each transform.
    """
    transforms = []
    for i in range(num_transforms):
        transform = make(range(values) if i % 2 == 0 else range(values - 1, -1, -1))
        transforms += [ActNorm(values), Inverse(transform) if inverted else transform]
    return Sequential(*transforms)
