"""Glow: Kingma and Dhariwal, 2018, https://arxiv.org/abs/1807.03039."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import _check
from ..nn import ActNorm, AffineCoupling, Inverse, InvertibleConv1x1, Sequential, Split, Squeeze2d, Transform
from .flow_image import ImageFlow, add_label
from .image import label_embedding

COUPLINGS = ("affine", "additive")


class NormalizedConv2d(ActNorm):
    """A convolution that keeps the size, and the normalisation of its result, `(conv(x) + shift) *
    exp(log_scale)`: one convolution whose weights have the scales in them."""

    def __init__(self, inputs: int, outputs: int, kernel_size: int):
        super().__init__(outputs)
        self.weight = nn.Parameter(torch.empty(outputs, inputs, kernel_size, kernel_size))
        nn.init.normal_(self.weight, 0.0, 0.05)

    def forward(self, x: Tensor) -> Tensor:
        padding = self.weight.shape[2] // 2
        if self.training and not self._known_initialized:
            self._first_batch(F.conv2d(x, self.weight, padding=padding), inverse=False)
        scale = torch.exp(self.log_scale)
        return F.conv2d(x, self.weight * scale.view(-1, 1, 1, 1), self.shift * scale, padding=padding)


class ZeroConv2d(nn.Module):
    """A 3×3 convolution that begins at zero, with a learned gain `exp(3 * log_gain)` of each channel."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(outputs, inputs, 3, 3))
        self.bias, self.log_gain = (nn.Parameter(torch.zeros(outputs)) for _ in range(2))

    def forward(self, x: Tensor, label: Tensor | None = None) -> Tensor:
        gain = torch.exp(3 * self.log_gain)
        return F.conv2d(x, self.weight * gain.view(-1, 1, 1, 1), self.bias * gain, padding=1)


class CouplingNetwork(nn.Module):
    """Rectified convolutions of 3×3 and 1×1, and one of 3×3 that begins at zero; the label is a bias of the
    first one."""

    def __init__(self, inputs: int, width: int, outputs: int, num_labels: int | None):
        super().__init__()
        self.first = NormalizedConv2d(inputs, width, 3)
        self.second = NormalizedConv2d(width, width, 1)
        self.out = ZeroConv2d(width, outputs)
        self.embedding = label_embedding(num_labels, width)

    def forward(self, x: Tensor, label: Tensor | None = None) -> Tensor:
        # In place: a convolution's gradient does not need its result.
        h = F.relu(add_label(self.first(x), self.embedding, label), inplace=True)
        return self.out(F.relu(self.second(h), inplace=True))


class Prior(nn.Module):
    """Parameters of an affine map of all channels: numbers for each channel, and for each class more."""

    def __init__(self, channels: int, num_labels: int | None):
        super().__init__()
        self.params = nn.Parameter(torch.zeros(2 * channels))
        self.log_gain = nn.Parameter(torch.zeros(2 * channels))
        self.embedding = None
        if num_labels is not None:
            self.embedding = nn.Embedding(num_labels, 2 * channels)
            nn.init.zeros_(self.embedding.weight)

    def forward(self, x: Tensor, label: Tensor | None = None) -> Tensor:
        params = self.params if self.embedding is None else self.params + self.embedding(label)
        params = (params * torch.exp(3 * self.log_gain)).expand(len(x), -1)
        return params[:, :, None, None].expand(-1, -1, *x.shape[2:])


class Glow(ImageFlow):
    """Glow (Kingma & Dhariwal, 2018): at each scale, steps of activation normalisation, an invertible 1×1
    convolution and an affine coupling; then half of the channels leave, under a prior that the others
    determine. The defaults are the published CIFAR-10 model.

    Images are floats in [-1, 1], class `v` of `num_levels` at `2 * v / (num_levels - 1) - 1`; `log_prob` and
    `loss` bound the likelihood (`gmfast.models.flow_image.ImageFlow`).

    Args:
        image_shape: (C, H, W); H and W are multiples of `2 ** num_scales`.
        num_scales: the paper's L.
        num_steps: at each scale, the paper's K.
        width: channels within a coupling's network.
        coupling: "affine" or "additive".
        lu: parametrise the 1×1 convolutions by an LU decomposition.
        alpha: 0, as published: values are taken as they are; else the logits that RealNVP takes.
        reversible: memory for training that does not grow with the number of steps, at the cost of computing
            activations again (`gmfast.nn.Sequential`).
        num_levels: values a subpixel can take.
        num_labels: number of classes to condition on; None for an unconditional model.

    Convolutions take zeros around the image. Classes shift and scale the prior of what is left at the last
    scale, as published, and are biases of the couplings' networks.

    Raises ValueError, naming the argument, for whatever the above rules out.
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int] = (3, 32, 32),
        num_scales: int = 3,
        num_steps: int = 32,
        width: int = 512,
        coupling: str = "affine",
        lu: bool = True,
        alpha: float = 0.0,
        reversible: bool = False,
        num_levels: int = 256,
        num_labels: int | None = None,
    ):
        _check.at_least(1, num_scales=num_scales, num_steps=num_steps, width=width)
        super().__init__(image_shape, num_levels, num_labels, alpha, 2**num_scales)
        if coupling not in COUPLINGS:
            raise ValueError(f"coupling: expected {' or '.join(COUPLINGS)}, got {coupling!r}")
        self.config = {
            "image_shape": self.image_shape,
            "num_scales": num_scales,
            "num_steps": num_steps,
            "width": width,
            "coupling": coupling,
            "lu": lu,
            "alpha": alpha,
            "reversible": reversible,
            "num_levels": num_levels,
            "num_labels": num_labels,
        }

        def step(channels):
            half = channels // 2
            additive = coupling == "additive"
            network = CouplingNetwork(channels - half, width, half if additive else 2 * half, num_labels)
            affine = {} if additive else {"scale_map": "sigmoid", "shift_first": True, "interleaved": True}
            return [
                ActNorm(channels),
                InvertibleConv1x1(channels, lu=lu),
                AffineCoupling(network, additive=additive, **affine),
            ]

        def scale(number, channels) -> Transform:
            """Keeps the shape of its input."""
            transforms = [Squeeze2d()]
            for _ in range(num_steps):
                transforms += step(4 * channels)
            if number == num_scales - 1:
                prior = Prior(4 * channels, num_labels)
                transforms.append(AffineCoupling(prior, shift_first=True, transformed=4 * channels))
            else:
                half = 2 * channels
                prior = ZeroConv2d(half, 2 * half)
                transforms.append(AffineCoupling(prior, shift_first=True, interleaved=True))
                transforms.append(Split(scale(number + 1, half), half))
            return Sequential(*transforms, Inverse(Squeeze2d()))

        self.transform = scale(0, self.image_shape[0])
        self.transform.reversible = reversible
