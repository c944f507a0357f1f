"""MAF: Papamakarios, Pavlakou and Murray, 2017, https://arxiv.org/abs/1705.07057."""

import math

from .. import _check
from ..nn import MaskedAffineAutoregressive
from .flow_vector import OfVectors, VectorFlow, stacked


class AffineAutoregressiveFlow(VectorFlow):
    """What MAF and IAF share: all but the direction of their transforms."""

    inverted: bool

    def __init__(
        self,
        image_shape: tuple[int, ...] = (2,),
        hidden: tuple[int, ...] = (64, 64),
        num_transforms: int = 5,
        activation: str = "relu",
        alpha: float = 0.05,
        num_levels: int | None = None,
        num_labels: int | None = None,
    ):
        super().__init__(image_shape, num_levels, num_labels, alpha)
        _check.at_least(1, num_transforms=num_transforms)
        self.config = {
            "image_shape": self.image_shape,
            "hidden": tuple(hidden),
            "num_transforms": num_transforms,
            "activation": activation,
            "alpha": alpha,
            "num_levels": num_levels,
            "num_labels": num_labels,
        }
        values = math.prod(self.image_shape)

        def make(order):
            return MaskedAffineAutoregressive(
                values, tuple(hidden), order=order, num_context=num_labels or 0, activation=activation
            )

        self.transform = OfVectors(stacked(make, num_transforms, values, self.inverted), num_labels)


class MAF(AffineAutoregressiveFlow):
    """Masked autoregressive flow: `z_i = x_i·s_i + t_i`, s_i and t_i computed from the values before x_i by a
    masked network, several times, the order of the values turned around each time.

    The density is one pass. Sampling goes value by value, each hidden unit computed once: the arithmetic of
    one pass (`gmfast.nn.MaskedAffineAutoregressive`).

    Data are real-valued vectors, or images as vectors of dequantized logits (`VectorFlow`).

    Args:
        image_shape: (D,), or (C, H, W) of images.
        hidden: sizes of each network's hidden layers.
        num_transforms: how many networks.
        activation: "relu", "tanh", "elu" or "silu".
        alpha: keeps the logits of images finite.
        num_levels: values a subpixel can take; None for real-valued data.
        num_labels: number of classes to condition on; None for an unconditional model.

    Where the paper has batch normalisation there is `ActNorm`, before each network.

    Raises ValueError, naming the argument, for whatever the above rules out.
    """

    inverted = False
