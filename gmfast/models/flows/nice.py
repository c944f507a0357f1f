"""NICE: Dinh, Krueger and Bengio, 2014, https://arxiv.org/abs/1410.8516."""

from itertools import pairwise
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ... import _check
from ...nn import ActNorm, AffineCoupling, Permute, Sequential, Transform
from ...nn.transform import no_log_det
from ..networks.labels import add_label, label_embedding
from .image import ImageFlow

BASES = ("logistic", "normal")

_SETTINGS = {"lr": 0.001, "options": {"num_couplings": 8, "hidden": 256, "num_hidden": 2, "alpha": 0.05}}


class MLP(nn.Module):
    """Multilayer perceptron with ReLUs; the first layer adds a class embedding, the last is zero at first.

    Args:
        inputs: Number of input features.
        hidden: Units of each hidden layer.
        num_hidden: Number of hidden layers.
        outputs: Number of output features.
        num_labels: Number of classes, or None.
    """

    def __init__(self, inputs: int, hidden: int, num_hidden: int, outputs: int, num_labels: int | None):
        super().__init__()
        sizes = [inputs, *[hidden] * num_hidden]
        self.hidden = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(sizes))
        self.out = nn.Linear(hidden, outputs)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)
        self.embedding = label_embedding(num_labels, hidden)

    def forward(self, x: Tensor, label: Tensor | None = None) -> Tensor:
        """Map `x (B, inputs)` to `(B, outputs)`."""
        for i, layer in enumerate(self.hidden):
            x = layer(x)
            x = F.relu(add_label(x, self.embedding, label) if i == 0 else x)
        return self.out(x)


class Flatten(Transform):
    """Samples `(B, *shape)` as vectors `(B, D)`."""

    def __init__(self, shape: tuple[int, ...]):
        super().__init__()
        self.shape = shape

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Flatten `x`; the log-determinant is 0."""
        return x.flatten(1), no_log_det(x)

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Unflatten `z`; the log-determinant is 0."""
        return z.unflatten(1, self.shape), no_log_det(z)


class NICE(ImageFlow):
    """NICE (Dinh et al., 2014): additive couplings of an image's even-numbered and odd-numbered values.

    The couplings change the two halves in turns; a scale for each value comes last. Images and likelihood are
    as in `gmfast.models.flows.image.ImageFlow`. The defaults are the published CIFAR-10 model.

    The last scales are those of an `ActNorm`, which centres each value too (the paper has scales alone) and
    is initialised from the first batch.

    Args:
        image_shape: (C, H, W), with at least two values.
        num_couplings: Number of couplings, 4 in the paper; at least 2, so that every value changes.
        hidden: Units of each hidden layer of a coupling's network.
        num_hidden: Number of hidden layers of a coupling's network.
        base: Base distribution, "logistic" or "normal".
        alpha: 0, as published, models the values themselves; otherwise their logits, as RealNVP does.
        num_levels: Number of values of a subpixel.
        num_labels: Number of classes to condition on; None for an unconditional model.

    Raises:
        ValueError: For an argument out of its range, naming it. TypeError: For its type.
    """

    settings: ClassVar = {
        "digits": _SETTINGS,
        "binary-digits": _SETTINGS,
        "photos": {"size": 8, **_SETTINGS},  # layers grow with the square of the number of values
    }

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
        self.noise_shape = (values,)
        changed = values // 2
        kept = values - changed
        transforms = [Flatten(self.image_shape), Permute([*range(0, values, 2), *range(1, values, 2)])]
        for i in range(num_couplings):
            if i > 0:  # the half that changed comes first, to condition the other
                transforms.append(Permute([*range(kept, values), *range(kept)]))
            network = MLP(kept, hidden, num_hidden, changed, num_labels)
            transforms.append(AffineCoupling(network, additive=True))
        self.transform = Sequential(*transforms, ActNorm(values))

    def base_log_prob(self, z: Tensor) -> Tensor:
        """Log-density of noise `z (B, D)` under the base distribution, `(B,)`, in nats."""
        if self.base == "normal":
            return super().base_log_prob(z)
        z = z.to(torch.promote_types(z.dtype, torch.float32))
        return (F.logsigmoid(z) + F.logsigmoid(-z)).sum(1)

    def noise(self, n: int, seed: Tensor, dtype: torch.dtype, device: torch.device) -> Tensor:
        """Draw from the base distribution, `(n, D)`."""
        if self.base == "normal":
            return super().noise(n, seed, dtype, device)
        z = super().noise(n, seed, torch.promote_types(dtype, torch.float32), device)
        # The logistic quantile of the normal CDF.
        return (torch.special.log_ndtr(z) - torch.special.log_ndtr(-z)).to(dtype)
