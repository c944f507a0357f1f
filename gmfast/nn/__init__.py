"""Modules around the operations of `gmfast.functional`."""

from .. import _check
from .activation import ConcatELU, GatedActivation
from .actnorm import ActNorm
from .autoregressive import MaskedAffineAutoregressive, MaskedSplineAutoregressive, naive_inverse
from .base_distribution import (
    BaseDistribution,
    BoxUniform,
    ConditionalBase,
    ConditionalDiagonalNormal,
    DiagonalNormal,
    DistributionBase,
    GaussianMixture,
    StandardNormal,
)
from .conv import CausalConv1d, MaskedConv2d
from .coupling import AffineCoupling, LogisticMixtureCoupling, SplineCoupling
from .elementwise import (
    Affine,
    CauchyCDF,
    Cubic,
    Elementwise,
    Exp,
    LeakyReLU,
    Logit,
    Sigmoid,
    SignedPower,
    Softclip,
    Softplus,
    Tanh,
)
from .flow import Flow
from .invertible_conv import InvertibleConv1x1
from .made import MaskedLinear, MaskedMLP
from .planar import Householder, Planar, Radial
from .spline import (
    PeriodicShift,
    Spline,
    SplineFunction,
    cubic_spline,
    linear_spline,
    quadratic_spline,
)
from .transform import Inverse, Permute, Sequential, Split, Squeeze2d, Transform

__all__ = [
    "ActNorm",
    "Affine",
    "AffineCoupling",
    "BaseDistribution",
    "BoxUniform",
    "CauchyCDF",
    "CausalConv1d",
    "ConcatELU",
    "ConditionalBase",
    "ConditionalDiagonalNormal",
    "Cubic",
    "DiagonalNormal",
    "DistributionBase",
    "Elementwise",
    "Exp",
    "Flow",
    "GatedActivation",
    "GaussianMixture",
    "Householder",
    "Inverse",
    "InvertibleConv1x1",
    "LeakyReLU",
    "LogisticMixtureCoupling",
    "Logit",
    "MaskedAffineAutoregressive",
    "MaskedConv2d",
    "MaskedLinear",
    "MaskedMLP",
    "MaskedSplineAutoregressive",
    "PeriodicShift",
    "Permute",
    "Planar",
    "Radial",
    "Sequential",
    "Sigmoid",
    "SignedPower",
    "Softclip",
    "Softplus",
    "Spline",
    "SplineCoupling",
    "SplineFunction",
    "Split",
    "Squeeze2d",
    "StandardNormal",
    "Tanh",
    "Transform",
    "cubic_spline",
    "linear_spline",
    "naive_inverse",
    "quadratic_spline",
]

for _name in __all__:
    if isinstance(globals()[_name], type):
        _check.annotated(globals()[_name])
