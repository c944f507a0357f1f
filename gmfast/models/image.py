"""What the autoregressive image models share: checks, likelihood, sampling and completion."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import _check, _seed
from ..decode.builder import Builder, Value
from .autoregressive import (
    Progress,
    check_label,
    check_request,
    evaluating,
    kept,
    labels_of,
    sample_cached,
    sample_naive,
)
from .heads import make_head


class ImageModel(nn.Module):
    """An exact likelihood for images, pixel after pixel in raster order and colour after colour.

    Images are floats in [-1, 1], class `v` of `num_levels` at `2 * v / (num_levels - 1) - 1`. A model gives
    its constructor's arguments to `config` and writes `forward(x, label)`, the head's parameters at every
    pixel given the pixels before it; `x` and `label` go through `check_input` first, which returns the labels
    to use. Its `decoder()` is the same as a decode program (`gmfast.decode.Builder`).
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        num_levels: int,
        num_labels: int | None,
        head: str,
        nr_logistic_mix: int,
    ):
        super().__init__()
        image_shape = tuple(image_shape)
        if len(image_shape) != 3 or image_shape[0] not in (1, 3):
            raise ValueError(f"image_shape: expected (C, H, W) with C = 1 or 3, got {image_shape}")
        if min(image_shape) < 1:
            raise ValueError(f"image_shape: expected positive H and W, got {image_shape}")
        if num_labels is not None:
            _check.at_least(1, num_labels=num_labels)
        self.image_shape, self.num_levels, self.num_labels = image_shape, num_levels, num_labels
        self.head = make_head(head, num_levels, nr_logistic_mix)

    @property
    def channel_groups(self) -> int:
        """Into how many ordered groups features fall: one for each colour that is predicted by itself."""
        return 1 if self.head.joint else self.image_shape[0]

    def check_grouped(self, **sizes: int) -> None:
        """Raises ValueError for numbers of features that do not fall into `channel_groups` equal groups."""
        for name, value in sizes.items():
            if value < 1 or value % self.channel_groups:
                raise ValueError(
                    f"{name}: expected a positive multiple of {self.channel_groups}, because features fall "
                    f"into that many groups, got {value}"
                )

    def draw_group(self, builder: Builder, params: Value, x: Value, group: int) -> None:
        """Appends the draw of a group's colours to a decode program."""
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
        """Log-probability of each image, (B,), in nats."""
        return -self.head.nll(x, self(x, label)).flatten(1).sum(1)

    def loss(self, x: Tensor, label: Tensor | None = None) -> Tensor:
        """Negative log-likelihood of the batch, a scalar in bits per dimension."""
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
        """Draws `n` images, (n, C, H, W) in [-1, 1].

        Args:
            n: how many; 0 is allowed.
            seed: an int, an int64 tensor, or a `torch.Generator`; image i is the same whatever `n` is.
            method: "cached" compiles the model (`gmfast.decode.compile`) and takes each pixel from what is
                remembered of those before it, in float32 where the model is in half precision. "naive" takes
                a full forward pass for each value to be drawn: a pixel, or a colour where the head predicts
                each by itself. Their noise is the same, and so are the images, unless a draw lies within
                rounding of the boundary between two levels.
            label: one class or (n,) of them, for a conditional model.
            temperature: below 1 sharpens each pixel's distribution.
            given, mask: completion. Where `mask` is not zero, the values of `given` (in [-1, 1]) are kept;
                every other value is drawn given those before it in raster order. When what is kept comes
                first in that order, as the upper rows do, this is a draw from the model given all of it.
                Both expand to (n, C, H, W).
            progress: True shows a bar; a function is called now and then with how much is done and of how
                much.
            weights: "bfloat16" rounds the weights to it, half the memory to read at each pixel; only with
                "cached".

        The model is in eval mode meanwhile and in its former mode afterwards, when Ctrl-C ends it too.

        Raises ValueError or TypeError, naming the argument.
        """
        check_request(n, method, temperature, weights, "images")
        weight = next(self.parameters())
        label = labels_of(label, n, self.num_labels, weight.device)
        seed = _seed.as_tensor(seed, weight.device)
        x, keep = kept(given, mask, weight.new_zeros(n, *self.image_shape))
        if self.head.joint and (keep != keep[:, :1]).any():
            raise ValueError(
                "mask: expected the same for all colours of a pixel, because this head draws them together, "
                "got colours that differ"
            )
        options = {"seed": seed, "temperature": temperature, "progress": progress}
        with evaluating(self):
            if method == "cached":
                return sample_cached(self, x, keep, label=label, weights=weights, **options)
            channels, height, width = self.image_shape
            colours = [slice(None)] if self.head.joint else [slice(c, c + 1) for c in range(channels)]
            order = [(position, colour) for position in range(height * width) for colour in colours]
            return sample_naive(lambda x: self(x, label), self.head, x, keep, order, **options)

    def check_input(self, x: Tensor, label: Tensor | None) -> Tensor | None:
        """The labels as int64. Raises ValueError or TypeError for what is not a batch of images and its
        labels."""
        if x.dim() != 4 or tuple(x.shape[1:]) != self.image_shape:
            expected = ", ".join(map(str, self.image_shape))
            raise ValueError(f"x: expected shape (B, {expected}), got {tuple(x.shape)}")
        if not x.is_floating_point():
            raise TypeError(f"x: expected floating point numbers in [-1, 1], got {x.dtype}")
        return check_label(label, len(x), self.num_labels)


def label_embedding(num_labels: int | None, channels: int) -> nn.Embedding | None:
    """A bias for each class, small enough to start with that classes begin alike; None without classes."""
    if num_labels is None:
        return None
    embedding = nn.Embedding(num_labels, channels)
    nn.init.normal_(embedding.weight, 0.0, 0.05)
    return embedding


def down_shift(x: Tensor) -> Tensor:
    """Moves the image one row down; zeros enter at the top."""
    return F.pad(x, (0, 0, 1, -1))
