"""Modules around the operations of `gmfast.functional`."""

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
from .flow import Flow
from .invertible_conv import InvertibleConv1x1
from .made import MaskedLinear, MaskedMLP
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
    "AffineCoupling",
    "BaseDistribution",
    "BoxUniform",
    "CausalConv1d",
    "ConcatELU",
    "ConditionalBase",
    "ConditionalDiagonalNormal",
    "DiagonalNormal",
    "DistributionBase",
    "Flow",
    "GatedActivation",
    "GaussianMixture",
    "Inverse",
    "InvertibleConv1x1",
    "LogisticMixtureCoupling",
    "MaskedAffineAutoregressive",
    "MaskedConv2d",
    "MaskedLinear",
    "MaskedMLP",
    "MaskedSplineAutoregressive",
    "PeriodicShift",
    "Permute",
    "Sequential",
    "Spline",
    "SplineCoupling",
    "SplineFunction",
    "Split",
    "Squeeze2d",
    "StandardNormal",
    "Transform",
    "cubic_spline",
    "linear_spline",
    "naive_inverse",
    "quadratic_spline",
]
