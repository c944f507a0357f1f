"""Autoregressive models of images: likelihood, sampling and completion in raster order."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ..._progress import Progress
from ...decode.builder import Builder, Value
from ..base import Cached, Likelihood, Model, check_image_shape, check_method, evaluating
from .heads import make_head
from .sampling import place_given, sample_cached, sample_naive


class ImageModel(Cached, Likelihood, Model):
    """An exact likelihood of images, pixel by pixel in raster order and channel by channel.

    Images are floats in [-1, 1], class `v` of `num_levels` at `2 * v / (num_levels - 1) - 1`. A model defines
    `forward(x, label)`, the head's parameters at every pixel given the pixels before it, which calls
    `check_input` first, and the same as a decode program in `decoder`.

    Args:
        image_shape: (C, H, W); C is 1 or 3.
        num_levels: Number of values of a subpixel.
        num_labels: Number of classes to condition on; None for an unconditional model.
        head: Name of the output head (`heads.HEADS`).
        nr_logistic_mix: Components of the mixture head.
    """

    modalities = frozenset({"images"})
    family = "autoregressive model"

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        num_levels: int,
        num_labels: int | None,
        head: str,
        nr_logistic_mix: int,
    ):
        super().__init__(num_levels, num_labels)
        self.image_shape = check_image_shape(image_shape, channels=(1, 3))
        self.head = make_head(head, num_levels, nr_logistic_mix)

    @property
    def channel_groups(self) -> int:
        """Number of ordered groups of features: one for each colour that is predicted by itself."""
        return 1 if self.head.joint else self.image_shape[0]

    def check_grouped(self, **sizes: int) -> None:
        """Check that numbers of features are multiples of `channel_groups`.

        Raises:
            ValueError: For the first that is not, naming it.
        """
        for name, value in sizes.items():
            if value < 1 or value % self.channel_groups:
                raise ValueError(
                    f"{name}: expected a positive multiple of {self.channel_groups}, because features fall "
                    f"into that many groups, got {value}"
                )

    def draw_group(self, builder: Builder, params: Value, x: Value, group: int) -> None:
        """Append the draw of a group's channels to a decode program."""
        channels = self.image_shape[0]
        own = channels // self.channel_groups
        builder.draw(
            self.head,
            params,
            x[group * own],
            channels=own,
            first_channel=group * own,
            total_channels=channels,
        )

    def log_prob(self, x: Tensor, label: Tensor | None = None) -> Tensor:
        """Log-probability of each image, `(B,)`, in nats."""
        return -self.head.nll(x, self(x, label)).flatten(1).sum(1)

    def loss(self, x: Tensor, label: Tensor | None = None) -> Tensor:
        """Negative log-likelihood of the batch in bits per dimension, a scalar."""
        return self.head.bits_per_dim(x, self(x, label))

    @torch.no_grad()
    def sample(
        self,
        n: int,
        *,
        seed: int | Tensor | torch.Generator | None = None,
        method: str = "cached",
        label: Tensor | int | None = None,
        temperature: float = 1.0,
        given: Tensor | None = None,
        mask: Tensor | None = None,
        progress: Progress = False,
        weights: str | None = None,
    ) -> Tensor:
        """Draw `n` images, `(n, C, H, W)` in [-1, 1].

        The model is in eval mode meanwhile and in its former mode afterwards, also when Ctrl-C ends it.

        Args:
            n: Number of images, 0 or more.
            seed: An int, an int64 tensor, or a `torch.Generator`; image i is the same for any `n`.
            method: "cached" compiles the model (`gmfast.decode.compile`) and computes each pixel from the
                cached features of those before it, in float32 where the model is in half precision. "naive"
                takes a full forward pass for each value that is drawn: a pixel, or a channel where the head
                predicts each by itself. Their noise is the same, and so are the images, unless a draw lies
                within rounding of the boundary between two levels.
            label: One class or `(n,)` of them, for a conditional model.
            temperature: Factor of the noise; below 1 sharpens each pixel's distribution.
            given: Completion: values in [-1, 1] of a shape that expands to (n, C, H, W).
            mask: Nonzero where a value of `given` is kept; every other value is drawn given those before it
                in raster order. When the kept values come first in that order, as the upper rows do, this is
                a draw from the model given all of them.
            progress: True shows a bar; a function is called with the numbers of positions done and to do.
            weights: "bfloat16" rounds the weights to it, half the memory to read; only with "cached".

        Raises:
            ValueError: For values, naming the argument. TypeError: For types.
        """
        check_method(method, weights)
        request = self.request(n, seed=seed, label=label, temperature=temperature)
        empty = next(self.parameters()).new_zeros(n, *self.image_shape)
        x, keep = place_given(given, mask, empty)
        if self.head.joint and (keep != keep[:, :1]).any():
            raise ValueError(
                "mask: expected the same for all colours of a pixel, because this head draws them together, "
                "got colours that differ"
            )
        options = {"seed": request.seed, "temperature": temperature, "progress": progress}
        with evaluating(self):
            if method == "cached":
                return sample_cached(self, x, keep, label=request.label, weights=weights, **options)
            channels, height, width = self.image_shape
            colours = [slice(None)] if self.head.joint else [slice(c, c + 1) for c in range(channels)]
            order = [(position, colour) for position in range(height * width) for colour in colours]
            return sample_naive(lambda x: self(x, request.label), self.head, x, keep, order, **options)


def down_shift(x: Tensor) -> Tensor:
    """Shift images one row down; zeros enter at the top."""
    return F.pad(x[:, :, :-1], (0, 0, 1, 0))
