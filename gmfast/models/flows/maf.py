"""MAF: Papamakarios, Pavlakou and Murray, 2017, https://arxiv.org/abs/1705.07057."""

import math
from collections.abc import Sequence
from typing import ClassVar

from ... import _check
from ...nn import MaskedAffineAutoregressive
from .vector import PLANE, VECTORS, OfVectors, VectorFlow, stacked

_IMAGES = {"lr": 0.002, "options": {"hidden": (128, 128)}}
_POINTS = {**VECTORS, "options": {"num_transforms": 8}}


class AffineAutoregressiveFlow(VectorFlow):
    """Base of MAF and IAF, which differ in the direction of their transforms (`inverted`)."""

    settings: ClassVar = {
        "digits": _IMAGES,
        "binary-digits": _IMAGES,
        "photos": {"size": 8, **_IMAGES},  # layers grow with the square of the number of values
        **dict.fromkeys(PLANE, _POINTS),
    }
    inverted: ClassVar[bool]

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
        values = math.prod(self.image_shape)

        def make(order: Sequence[int]) -> MaskedAffineAutoregressive:
            return MaskedAffineAutoregressive(
                values, tuple(hidden), order=order, num_context=num_labels or 0, activation=activation
            )

        self.transform = OfVectors(stacked(make, num_transforms, values, self.inverted), num_labels)


class MAF(AffineAutoregressiveFlow):
    """Masked autoregressive flow: `z_i = x_i * s_i + t_i`, s_i and t_i functions of the values before x_i.

    Each transform is a masked network; successive ones take the values in opposite orders. The density is one
    pass. Sampling goes value by value and computes each hidden unit once: the arithmetic of one pass
    (`gmfast.nn.MaskedAffineAutoregressive`). In place of the paper's batch normalisation an `ActNorm`
    precedes each network.

    Data are real-valued vectors, or images as vectors of dequantized logits (`VectorFlow`).

    Args:
        image_shape: (D,) for real-valued data, (C, H, W) for images.
        hidden: Sizes of each network's hidden layers.
        num_transforms: Number of transforms.
        activation: "relu", "tanh", "elu" or "silu".
        alpha: Keeps the logits of images finite.
        num_levels: Number of values of a subpixel; None for real-valued data.
        num_labels: Number of classes to condition on; None for an unconditional model.

    Raises:
        ValueError: For an argument out of its range, naming it. TypeError: For its type.
    """

    inverted = False
