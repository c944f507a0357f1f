"""NICE: Dinh, Krueger and Bengio, 2014, https://arxiv.org/abs/1410.8516."""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import _check
from ..nn import ActNorm, AffineCoupling, Permute, Sequential, Transform
from ..nn.transform import no_log_det
from .flow_image import ImageFlow, add_label
from .image import label_embedding

BASES = ("logistic", "normal")


class MLP(nn.Module):
    """Rectified layers, whose last one begins at zero; the label is a bias of the first one."""

    def __init__(self, inputs: int, hidden: int, num_hidden: int, outputs: int, num_labels: int | None):
        super().__init__()
        sizes = [inputs, *[hidden] * num_hidden]
        self.hidden = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(sizes))
        self.out = nn.Linear(hidden, outputs)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)
        self.embedding = label_embedding(num_labels, hidden)

    def forward(self, x: Tensor, label: Tensor | None = None) -> Tensor:
        for i, layer in enumerate(self.hidden):
            x = layer(x)
            x = F.relu(add_label(x, self.embedding, label) if i == 0 else x)
        return self.out(x)


class Flatten(Transform):
    """`(B, *shape)` to (B, D)."""

    def __init__(self, shape: tuple[int, ...]):
        super().__init__()
        self.shape = shape

    def forward(self, x, context=None):
        return x.flatten(1), no_log_det(x)

    def inverse(self, z, context=None):
        return z.unflatten(1, self.shape), no_log_det(z)


class NICE(ImageFlow):
    """NICE (Dinh et al., 2014): additive couplings of an image's values, the even-numbered and the odd ones
    in turns, and a scale for each value at the end. The defaults are the published CIFAR-10 model.

    Images are floats in [-1, 1], class `v` of `num_levels` at `2 * v / (num_levels - 1) - 1`; `log_prob` and
    `loss` bound the likelihood (`gmfast.models.flow_image.ImageFlow`).

    Args:
        image_shape: (C, H, W), of at least two values.
        num_couplings: at least 2, for every value to change; the paper has 4.
        hidden: units of each of a coupling's `num_hidden` layers.
        num_hidden: rectified layers of a coupling.
        base: of the noise, "logistic" or "normal".
        alpha: 0, as published: values are taken as they are; else the logits that RealNVP takes.
        num_levels: values a subpixel can take.
        num_labels: number of classes to condition on; None for an unconditional model.

    The scales at the end are those of an `ActNorm`, which centres each value too (the paper's has scales
    alone): they begin at the deviations that the first batch has.

    Raises ValueError, naming the argument, for whatever the above rules out.
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int] = (3, 32, 32),
        num_couplings: int = 4,
        hidden: int = 2000,
        num_hidden: int = 4,
        base: str = "logistic",
        alpha: float = 0.0,
        num_levels: int = 256,
        num_labels: int | None = None,
    ):
        super().__init__(image_shape, num_levels, num_labels, alpha)
        values = torch.Size(self.image_shape).numel()
        if values < 2:
            raise ValueError(f"image_shape: expected at least two values, got {self.image_shape}")
        _check.at_least(2, num_couplings=num_couplings)
        _check.at_least(1, hidden=hidden, num_hidden=num_hidden)
        if base not in BASES:
            raise ValueError(f"base: expected {' or '.join(BASES)}, got {base!r}")
        self.base = base
        self.config = {
            "image_shape": self.image_shape,
            "num_couplings": num_couplings,
            "hidden": hidden,
            "num_hidden": num_hidden,
            "base": base,
            "alpha": alpha,
            "num_levels": num_levels,
            "num_labels": num_labels,
        }
        self.noise_shape = (values,)
        changed = values // 2
        kept = values - changed
        transforms = [Flatten(self.image_shape), Permute([*range(0, values, 2), *range(1, values, 2)])]
        for i in range(num_couplings):
            if i > 0:  # what has changed comes first, for the others to follow it
                transforms.append(Permute([*range(kept, values), *range(kept)]))
            network = MLP(kept, hidden, num_hidden, changed, num_labels)
            transforms.append(AffineCoupling(network, additive=True))
        self.transform = Sequential(*transforms, ActNorm(values))

    def base_log_prob(self, z: Tensor) -> Tensor:
        if self.base == "normal":
            return super().base_log_prob(z)
        z = z.to(self.dtype(z))
        return (F.logsigmoid(z) + F.logsigmoid(-z)).sum(1)

    def noise(self, n, seed, dtype, device) -> Tensor:
        if self.base == "normal":
            return super().noise(n, seed, dtype, device)
        z = super().noise(n, seed, torch.promote_types(dtype, torch.float32), device)
        # By the CDFs, which are equal.
        return (torch.special.log_ndtr(z) - torch.special.log_ndtr(-z)).to(dtype)
